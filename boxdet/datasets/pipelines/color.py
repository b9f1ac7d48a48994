"""Transforms of pixel values."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from boxdet.errors import ConfigError
from boxdet.registry import PIPELINES
from boxdet.structures.batch import normalize_pixels_


@PIPELINES.register_module()
class Normalize:
    """``(img - mean) / std`` in float32, channel by channel.

    Args:
        mean: (3,) in the order of the channels after ``to_rgb``.
        std: (3,) likewise.
        to_rgb: turn BGR into RGB first.

    Raises:
        ConfigError: a ``std`` that is not above 0, or not as many numbers as ``mean``.
    """
    can_defer = True

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True):
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        self.to_rgb = to_rgb
        if self.mean.shape != self.std.shape or not (self.std > 0).all() or not np.isfinite(self.mean).all():
            raise ConfigError(f'Normalize: mean={self.mean.tolist()}, std={self.std.tolist()}: one number a channel '
                              'each, and a std above 0')

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        for key in results.get('img_fields', ['img']):
            results[key] = normalize(results[key], self.mean, self.std, self.to_rgb)
        return self.defer(results)

    def defer(self, results: dict) -> dict:
        """Only note how to normalise."""
        results['img_norm_cfg'] = dict(mean=self.mean, std=self.std, to_rgb=self.to_rgb)
        return results


def normalize(image: np.ndarray, mean: np.ndarray, std: np.ndarray, to_rgb: bool,
              hw: tuple[int, int] | None = None) -> np.ndarray:
    """A new float32 image (H, W, C): ``(image - mean) * (1 / std)``, each step rounded to float32.

    Args:
        image: (H, W, C), or (H, W) of one channel.
        mean: (C,) in the order of the channels after ``to_rgb``.
        std: (C,) likewise.
        to_rgb: turn BGR into RGB first.
        hw: size of the result, with zeros below and on the right of the image.

    Raises:
        ConfigError: an image of other channels than ``mean`` has, e.g. one loaded as 'grayscale' or 'unchanged'.
    """
    if image.ndim == 2 and len(mean) == 1:
        return normalize(image[..., None], mean, std, to_rgb, hw)[..., 0]
    if image.ndim != 3 or image.shape[2] != len(mean):
        raise ConfigError(f'Normalize: an image of shape {image.shape}, and a mean of {len(mean)} channels; '
                          "LoadImageFromFile(color_type='color') makes three of any image")
    height, width, channels = image.shape
    if image.dtype != np.uint8:  # OpenCV reorders the channels of no float64 image
        image = image.astype(np.float32)
    if to_rgb and channels == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    elif to_rgb and channels > 3:  # what else there is stays behind the colours: transparency, infrared
        image = image[..., [2, 1, 0, *range(3, channels)]]
    # Only the border is filled with zeros: fresh zero pages for all of it cost more than normalising does.
    result = torch.empty(*(hw or (height, width)), channels)
    result[height:] = 0
    result[:height, width:] = 0
    normalize_pixels_(result[:height, :width].copy_(torch.from_numpy(np.ascontiguousarray(image))), mean, std)
    return result.numpy()


@PIPELINES.register_module()
class PhotoMetricDistortion:
    """Random brightness, contrast, saturation, hue and order of channels, each with probability 0.5.

    The image becomes float32 BGR in about 0..255 (SSD, Liu et al. 2016, section 2.2).

    Args:
        brightness_delta: largest amount added.
        contrast_range: bounds of the factor.
        saturation_range: bounds of the factor.
        hue_delta: largest turn in degrees.
    """

    def __init__(self, brightness_delta: int = 32, contrast_range: Sequence[float] = (0.5, 1.5),
                 saturation_range: Sequence[float] = (0.5, 1.5), hue_delta: int = 18):
        self.brightness_delta = brightness_delta
        self.contrast_range = contrast_range[0], contrast_range[1]
        self.saturation_range = saturation_range[0], saturation_range[1]
        self.hue_delta = hue_delta

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        if results.get('img_fields', ['img']) != ['img']:
            raise ConfigError(f"PhotoMetricDistortion changes 'img' alone, and the sample's img_fields are "
                              f"{results['img_fields']}")
        image = results['img'].astype(np.float32)
        if np.random.randint(2):
            image += np.float32(np.random.uniform(-self.brightness_delta, self.brightness_delta))
        contrast_first = np.random.randint(2)
        if contrast_first:
            self._change_contrast(image)
        image = self._change_hue_and_saturation(image)
        if not contrast_first:
            self._change_contrast(image)
        if np.random.randint(2):
            image = np.ascontiguousarray(image[..., np.random.permutation(3)])
        results['img'] = image
        return results

    def _change_contrast(self, image: np.ndarray) -> None:
        if np.random.randint(2):
            image *= np.float32(np.random.uniform(*self.contrast_range))

    def _change_hue_and_saturation(self, image: np.ndarray) -> np.ndarray:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        if np.random.randint(2):
            image[..., 1] *= np.float32(np.random.uniform(*self.saturation_range))
        if np.random.randint(2):
            hue = image[..., 0]
            hue += np.float32(np.random.uniform(-self.hue_delta, self.hue_delta))
            hue[hue > 360] -= 360
            hue[hue < 0] += 360
        return cv2.cvtColor(image, cv2.COLOR_HSV2BGR)


class _ColorTransform:
    """Change the values of colour images with probability ``prob``; other image fields stay."""

    def __init__(self, prob: float):
        if not isinstance(prob, (int, float)) or not 0 <= prob <= 1:
            raise ConfigError(f'{type(self).__name__}.prob {prob!r} does not lie between 0 and 1')
        self.prob = prob

    def __call__(self, results: dict) -> dict:
        """Change the images of the sample, or not."""
        if np.random.rand() > self.prob:
            return results
        for key in results.get('img_fields', ['img']):
            image = results[key]
            if image.ndim == 3 and image.shape[2] == 3:
                results[key] = self.changed(image).astype(image.dtype, copy=False)
        return results

    def changed(self, image: np.ndarray) -> np.ndarray:
        """A new image (H, W, 3)."""
        raise TypeError(f'{type(self).__name__} does not say how an image is changed')


def _enhancement(name: str, level: float) -> float:
    """The factor of a level from 0 to 10: from 0.1 to 1.9 (RandAugment)."""
    if not isinstance(level, (int, float)) or not 0 <= level <= 10:
        raise ConfigError(f'{name}.level {level!r} does not lie between 0 and 10')
    return level / 10 * 1.8 + 0.1


def _clipped(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``image`` within 0..255, its fractions cut off where ``dtype`` has none."""
    return np.clip(image, 0, 255).astype(dtype, copy=False)


def _equalized(channel: np.ndarray) -> np.ndarray:
    """A channel (H, W) whose histogram is as flat as a table of values makes it; the table is PIL's."""
    counts = np.histogram(channel, 256, (0, 255))[0]
    found = counts[counts > 0]
    step = (found.sum() - found[-1]) // 255
    if step == 0:
        return channel
    table = np.concatenate([[0], (counts.cumsum() + step // 2)[:-1] // step]).clip(0, 255)
    return table[channel.astype(np.int64)].astype(channel.dtype)


@PIPELINES.register_module()
class ColorTransform(_ColorTransform):
    """Blend the image with its grey form: level 0 is nearly grey, 5 leaves it, 10 has nearly twice the saturation.

    Args:
        level: from 0 to 10.
        prob: how often.
    """

    def __init__(self, level: float, prob: float = 0.5):
        super().__init__(prob)
        self.level, self.factor = level, _enhancement('ColorTransform', level)

    def changed(self, image: np.ndarray) -> np.ndarray:
        """A new image (H, W, 3)."""
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        return _clipped(cv2.addWeighted(image, self.factor, grey, 1 - self.factor, 0), image.dtype)


@PIPELINES.register_module()
class EqualizeTransform(_ColorTransform):
    """Equalise the histogram of each channel.

    Args:
        prob: how often.
    """

    def __init__(self, prob: float = 0.5):
        super().__init__(prob)

    def changed(self, image: np.ndarray) -> np.ndarray:
        """A new image (H, W, 3)."""
        return cv2.merge([_equalized(channel) for channel in cv2.split(image)])


@PIPELINES.register_module()
class BrightnessTransform(_ColorTransform):
    """Multiply the image by 0.1 (level 0) to 1.9 (level 10).

    Args:
        level: from 0 to 10.
        prob: how often.
    """

    def __init__(self, level: float, prob: float = 0.5):
        super().__init__(prob)
        self.level, self.factor = level, _enhancement('BrightnessTransform', level)

    def changed(self, image: np.ndarray) -> np.ndarray:
        """A new image (H, W, 3)."""
        return _clipped(image.astype(np.float32) * np.float32(self.factor), image.dtype)


@PIPELINES.register_module()
class ContrastTransform(_ColorTransform):
    """Blend the image with its mean grey: level 0 is nearly uniform, 5 leaves it.

    Args:
        level: from 0 to 10.
        prob: how often.
    """

    def __init__(self, level: float, prob: float = 0.5):
        super().__init__(prob)
        self.level, self.factor = level, _enhancement('ContrastTransform', level)

    def changed(self, image: np.ndarray) -> np.ndarray:
        """A new image (H, W, 3)."""
        mean = round(float(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean(dtype=np.float64)))
        grey = np.full_like(image, mean, dtype=np.float32)
        return _clipped(cv2.addWeighted(image.astype(np.float32), self.factor, grey, 1 - self.factor, 0), image.dtype)


@PIPELINES.register_module()
class CutOut:
    """Fill rectangles at random places with one colour (DeVries and Taylor 2017); the annotations stay.

    Args:
        n_holes: how many, or (least, most).
        cutout_shape: (w, h) in pixels, or a list of them to draw from; or
        cutout_ratio: (w, h) as shares of the image, or a list of them.
        fill_in: the colour.

    Raises:
        ConfigError: both or none of ``cutout_shape`` and ``cutout_ratio``, or a value out of range.
    """

    def __init__(self, n_holes: int | Sequence[int], cutout_shape: Any = None, cutout_ratio: Any = None,
                 fill_in: Sequence[float] = (0, 0, 0)):
        if (cutout_shape is None) == (cutout_ratio is None):
            raise ConfigError('CutOut needs either cutout_shape or cutout_ratio')
        self.n_holes = tuple(n_holes) if isinstance(n_holes, (tuple, list)) else (n_holes, n_holes)
        if len(self.n_holes) != 2 or not 0 <= self.n_holes[0] <= self.n_holes[1]:
            raise ConfigError(f'CutOut.n_holes {n_holes}: a number, or the least and the most')
        self.with_ratio = cutout_ratio is not None
        given = cutout_ratio if self.with_ratio else cutout_shape
        several = isinstance(given, (tuple, list)) and all(isinstance(one, (tuple, list)) for one in given)
        self.candidates = list(given) if several else [given]
        if not self.candidates or not all(isinstance(one, (tuple, list)) and len(one) == 2 for one in self.candidates):
            raise ConfigError(f'CutOut: {given} is neither (w, h) nor a list of them')
        self.fill_in = tuple(fill_in)

    def __call__(self, results: dict) -> dict:
        """Fill the rectangles."""
        image = results['img'].copy()
        height, width = image.shape[:2]
        for _ in range(np.random.randint(self.n_holes[0], self.n_holes[1] + 1)):
            x, y = np.random.randint(0, width), np.random.randint(0, height)
            w, h = self.candidates[np.random.randint(0, len(self.candidates))]
            if self.with_ratio:
                w, h = int(w * width), int(h * height)
            image[y:y + h, x:x + w] = self.fill_in
        results['img'] = image
        return results
