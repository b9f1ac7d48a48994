"""Transforms of pixel values."""
from __future__ import annotations

from collections.abc import Sequence

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
    """
    can_defer = True

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True):
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        self.to_rgb = to_rgb

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
        image: (H, W, C).
        mean: (C,) in the order of the channels after ``to_rgb``.
        std: (C,) likewise.
        to_rgb: turn BGR into RGB first.
        hw: size of the result, with zeros below and on the right of the image.

    Raises:
        ConfigError: an image of other channels than ``mean`` has, e.g. one loaded as 'grayscale' or 'unchanged'.
    """
    if image.ndim != 3 or image.shape[2] != len(mean):
        raise ConfigError(f'Normalize: an image of shape {image.shape}, and a mean of {len(mean)} channels; '
                          "LoadImageFromFile(color_type='color') makes three of any image")
    height, width, channels = image.shape
    if image.dtype != np.uint8:  # OpenCV reorders the channels of no float64 image
        image = image.astype(np.float32)
    if to_rgb:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
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
        self.contrast_range = tuple(contrast_range)
        self.saturation_range = tuple(saturation_range)
        self.hue_delta = hue_delta

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
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
