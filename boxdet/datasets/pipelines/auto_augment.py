"""AutoAugment (Cubuk et al. 2018; Zoph et al. 2019 for detection) and the geometric transforms of its policies.

Strengths are levels from 0 to 10, as in the papers; names, keywords and numbers are mmdetection 2.28's. Semantic maps
are warped by nearest neighbour, where 2.x mixes class numbers linearly, and keypoints go with the pixels.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from boxdet.datasets.pipelines.compose import Compose
from boxdet.datasets.pipelines.geometric import GeometricTransform, first_image, larger_than
from boxdet.datasets.warps import Affine, Shift, Warp
from boxdet.errors import ConfigError
from boxdet.geometry.masks import INTERPOLATIONS, middle_of, rotation_matrix, shear_matrix
from boxdet.registry import PIPELINES

MAX_LEVEL = 10


def check_level(name: str, level: float) -> float:
    """``level`` as a share of the largest.

    Raises:
        ConfigError: it does not lie between 0 and 10.
    """
    if not isinstance(level, (int, float)) or not 0 <= level <= MAX_LEVEL:
        raise ConfigError(f'{name}.level {level!r} does not lie between 0 and {MAX_LEVEL}')
    return level / MAX_LEVEL


def check_share(name: str, key: str, value: float) -> float:
    """``value`` if it lies between 0 and 1.

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f'{name}.{key} {value!r} does not lie between 0 and 1')
    return value


Number = TypeVar('Number', int, float)


def _check_fill(name: str, value: float | Sequence[float]) -> tuple[float, ...]:
    """One number a channel."""
    fill = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),) * 3
    if len(fill) != 3 or not all(0 <= v <= 255 for v in fill):
        raise ConfigError(f'{name}.img_fill_val {value!r} is neither a number from 0 to 255 nor three of them')
    return fill


def _check_direction(name: str, direction: str) -> str:
    if direction not in ('horizontal', 'vertical'):
        raise ConfigError(f"{name}.direction '{direction}' is neither 'horizontal' nor 'vertical'")
    return direction


@PIPELINES.register_module()
class AutoAugment:
    """Run one of several policies, drawn for each sample.

    Args:
        policies: lists of transform configs.

    Raises:
        ConfigError: no policy, or one without a transform.
    """

    def __init__(self, policies: Sequence[Sequence[Mapping[str, Any]]]):
        if not isinstance(policies, (list, tuple)) or not policies or not all(
                isinstance(policy, (list, tuple)) and policy for policy in policies):
            raise ConfigError(f'AutoAugment.policies is a list of lists of transform configs, none empty: {policies!r}')
        self.transforms = [Compose(policy) for policy in policies]

    def __call__(self, results: dict) -> dict | None:
        """Run the drawn policy; None where it drops the sample."""
        return self.transforms[np.random.randint(len(self.transforms))](results)


class _Warping(GeometricTransform):
    """Warp the sample with probability ``prob``, and drop objects that leave the image."""

    def __init__(self, level: float, prob: float, img_fill_val: float | Sequence[float], seg_ignore_label: int,
                 random_negative_prob: float):
        name = type(self).__name__
        self.share = check_level(name, level)
        self.prob = check_share(name, 'prob', prob)
        self.random_negative_prob = check_share(name, 'random_negative_prob', random_negative_prob)
        self.img_fill_val = _check_fill(name, img_fill_val)
        self.level = level
        self.seg_ignore_label = seg_ignore_label

    def _signed(self, value: Number) -> Number:
        return -value if np.random.rand() < self.random_negative_prob else value

    def _finish(self, results: dict, warp: Warp, min_size: float = 0) -> dict:
        self.move(results, warp, larger_than(min_size))
        results['img_shape'] = results['pad_shape'] = results[first_image(results)].shape
        return results


@PIPELINES.register_module()
class Rotate(_Warping):
    """Turn the sample by ``level / 10 * max_rotate_angle`` degrees, clockwise or the other way.

    Args:
        level: from 0 to 10.
        scale: enlarge by it.
        center: (x, y) of what stays where it is, or one number for both; the middle of the image by default.
        img_fill_val: colour of what nothing comes to, in the image's order of channels, or one number.
        seg_ignore_label: its class in semantic maps.
        prob: how often.
        max_rotate_angle: degrees of level 10.
        random_negative_prob: how often the other way.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, level: float, scale: float = 1, center: float | Sequence[float] | None = None,
                 img_fill_val: float | Sequence[float] = 128, seg_ignore_label: int = 255, prob: float = 0.5,
                 max_rotate_angle: float = 30, random_negative_prob: float = 0.5):
        super().__init__(level, prob, img_fill_val, seg_ignore_label, random_negative_prob)
        if center is not None:
            center = tuple(center) if isinstance(center, Sequence) else (center, center)
            if len(center) != 2:
                raise ConfigError(f'Rotate.center is (x, y), not {center}')
        for key, value in (('scale', scale), ('max_rotate_angle', max_rotate_angle)):
            if not isinstance(value, (int, float)):
                raise ConfigError(f'Rotate.{key} is a number, not {value!r}')
        self.scale, self.center, self.max_rotate_angle = scale, center, max_rotate_angle
        self.angle = self.share * max_rotate_angle

    def __call__(self, results: dict) -> dict:
        """Turn the sample, or not."""
        if np.random.rand() > self.prob:
            return results
        hw = results[first_image(results)].shape[:2]
        matrix = rotation_matrix(self._signed(self.angle), self.center or middle_of(*hw), self.scale)
        return self._finish(results, Affine(out_hw=hw, clip=True, matrix=matrix, img_fill=self.img_fill_val,
                                            seg_fill=self.seg_ignore_label))


@PIPELINES.register_module()
class Shear(_Warping):
    """Shift each row (or column) of the sample by ``level / 10 * max_shear_magnitude`` times its number.

    Args:
        level: from 0 to 10.
        img_fill_val: colour of what nothing comes to, in the image's order of channels, or one number.
        seg_ignore_label: its class in semantic maps.
        prob: how often.
        direction: 'horizontal' or 'vertical'.
        max_shear_magnitude: factor of level 10.
        random_negative_prob: how often the other way.
        interpolation: of image and masks.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, level: float, img_fill_val: float | Sequence[float] = 128, seg_ignore_label: int = 255,
                 prob: float = 0.5, direction: str = 'horizontal', max_shear_magnitude: float = 0.3,
                 random_negative_prob: float = 0.5, interpolation: str = 'bilinear'):
        super().__init__(level, prob, img_fill_val, seg_ignore_label, random_negative_prob)
        if interpolation not in INTERPOLATIONS:
            raise ConfigError(f"Shear.interpolation '{interpolation}' is none of {', '.join(INTERPOLATIONS)}")
        self.direction = _check_direction('Shear', direction)
        self.max_shear_magnitude = check_share('Shear', 'max_shear_magnitude', max_shear_magnitude)
        self.magnitude = self.share * max_shear_magnitude
        self.interpolation = interpolation

    def __call__(self, results: dict) -> dict:
        """Shear the sample, or not."""
        if np.random.rand() > self.prob:
            return results
        hw = results[first_image(results)].shape[:2]
        matrix = shear_matrix(self._signed(self.magnitude), self.direction)
        return self._finish(results, Affine(out_hw=hw, clip=True, matrix=matrix, img_fill=self.img_fill_val,
                                            seg_fill=self.seg_ignore_label, interpolation=self.interpolation))


@PIPELINES.register_module()
class Translate(_Warping):
    """Shift the sample by ``level / 10 * max_translate_offset`` whole pixels.

    Args:
        level: from 0 to 10.
        prob: how often.
        img_fill_val: colour of what nothing comes to, in the image's order of channels, or one number.
        seg_ignore_label: its class in semantic maps.
        direction: 'horizontal' or 'vertical'.
        max_translate_offset: pixels of level 10.
        random_negative_prob: how often to the left or up.
        min_size: objects that are left no wider or higher than this are dropped.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, level: float, prob: float = 0.5, img_fill_val: float | Sequence[float] = 128,
                 seg_ignore_label: int = 255, direction: str = 'horizontal', max_translate_offset: float = 250.,
                 random_negative_prob: float = 0.5, min_size: float = 0):
        super().__init__(level, prob, img_fill_val, seg_ignore_label, random_negative_prob)
        self.direction = _check_direction('Translate', direction)
        if not isinstance(max_translate_offset, (int, float)):
            raise ConfigError(f'Translate.max_translate_offset is a number of pixels, not {max_translate_offset!r}')
        self.max_translate_offset, self.min_size = max_translate_offset, min_size
        self.offset = int(self.share * max_translate_offset)

    def __call__(self, results: dict) -> dict:
        """Shift the sample, or not."""
        if np.random.rand() > self.prob:
            return results
        offset = self._signed(self.offset)
        x, y = (0, offset) if self.direction == 'vertical' else (offset, 0)
        warp = Shift(out_hw=results[first_image(results)].shape[:2], clip=True, x=x, y=y, img_fill=self.img_fill_val,
                     seg_fill=self.seg_ignore_label)
        return self._finish(results, warp, self.min_size)
