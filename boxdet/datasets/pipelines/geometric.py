"""Transforms that draw a warp and apply it to the whole sample.

A transform says what is drawn; ``datasets.warps`` has the geometry, and knows the keys of a sample that it is
applied to. The numbers are mmdetection 2.28's. Sizes are (height, width), scales (w, h) as in 2.x's configs, boxes xyxy
(N, 4).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from boxdet.datasets.pipelines.formatting import PAD_VAL
from boxdet.datasets.warps import (
    BOXES,
    FIELD_KINDS,
    IMAGES,
    Affine,
    Crop,
    Flip,
    Place,
    Scale,
    Shift,
    Warp,
    clip_boxes,
    keep_objects,
    move_fields,
    resize_map,
)
from boxdet.errors import ConfigError, nearest
from boxdet.geometry.masks import INTERPOLATIONS, rescaled_hw
from boxdet.registry import PIPELINES
from boxdet.structures.masks import FLIP_DIRECTIONS

Keep = Callable[[np.ndarray, np.ndarray], np.ndarray]


class GeometricTransform:
    """A transform that moves everything of a sample by one warp.

    A subclass that treats one kind of field in its own way overrides ``move_kind``.
    """

    def move(self, results: dict, warp: Warp, keep: Keep | None = None, images: bool = True) -> None:
        """Apply ``warp`` to all fields of the sample, in place.

        Args:
            results: the sample.
            warp: what to apply.
            keep: ``keep(boxes before (N, 4), boxes after (N, 4))`` tells, (N,) bool, which objects stay; None for all.
            images: False leaves the images to the device.
        """
        before = {key: results[key] for key in FIELD_KINDS[BOXES].keys(results)} if keep else {}
        for kind in list(FIELD_KINDS):
            if kind == IMAGES and not images:
                continue
            self.move_kind(kind, results, warp)
            if kind == BOXES and keep is not None:
                for key, boxes in before.items():
                    keep_objects(results, key, keep(boxes, results[key]))

    def move_kind(self, kind: str, results: dict, warp: Warp) -> None:
        """Apply ``warp`` to the fields of one kind, e.g. 'bbox_fields'."""
        move_fields(results, warp, [kind])

    def crop(self, results: dict, window: Sequence[int] | np.ndarray, clip: bool, keep: Keep,
             recompute_bbox: bool = False) -> bool:
        """Cut the sample to a window, in place, and drop objects.

        Args:
            results: the sample.
            window: (x0, y0, x1, y1) in whole pixels.
            clip: clip boxes to the window.
            keep: as for ``move``.
            recompute_bbox: boxes from the cut masks.

        Returns:
            whether an object is left, or there is no ``gt_bboxes`` to tell.
        """
        self.move(results, Crop.of(window, _hw(results), clip), keep)
        results['img_shape'] = results['pad_shape'] = results[first_image(results)].shape
        fields = results.get('bbox_fields', [])
        for boxes, masks in (('gt_bboxes', 'gt_masks'), ('gt_bboxes_ignore', 'gt_masks_ignore')):
            if recompute_bbox and boxes in fields and masks in results:
                results[boxes] = results[masks].bboxes()
        return 'gt_bboxes' not in fields or len(results['gt_bboxes']) > 0


def first_image(results: dict) -> str:
    """The key of the image whose size is the sample's."""
    return results.get('img_fields', ['img'])[0]


def _hw(results: dict) -> tuple[int, int]:
    """Height and width of the sample's image."""
    return results[first_image(results)].shape[:2]


def _pair(sides: Sequence[float]) -> tuple[int, int]:
    return int(sides[0]), int(sides[1])


def with_area(_: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: which boxes (N, 4) have an area."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def larger_than(pixels: float) -> Keep:
    """What keeps boxes that are wider and higher than ``pixels``."""
    return lambda _, boxes: np.all((boxes[:, 2:] - boxes[:, :2]) > pixels, axis=1)


def inside(boxes: np.ndarray, hw: Sequence[int]) -> np.ndarray:
    """(N,) bool: which boxes (N, 4) reach into an image of size ``hw``."""
    return np.all(boxes[:, :2] < (hw[1], hw[0]), axis=1) & np.all(boxes[:, 2:] > 0, axis=1)


def alike(before: np.ndarray, after: np.ndarray, min_size: float, min_area_ratio: float,
          max_aspect_ratio: float) -> np.ndarray:
    """Which objects still look like themselves (YOLOv5's filter).

    Args:
        before: (N, 4) boxes as large as they would be if nothing were cut off.
        after: (N, 4) what is left of them.
        min_size: both sides must be longer, in pixels.
        min_area_ratio: the area left, as a share of the whole one, must be larger.
        max_aspect_ratio: longer side / shorter side must be smaller.

    Returns:
        (N,) bool.
    """
    whole, left = before[:, 2:] - before[:, :2], after[:, 2:] - after[:, :2]
    aspect = np.maximum(left[:, 0] / (left[:, 1] + 1e-16), left[:, 1] / (left[:, 0] + 1e-16))
    share = left.prod(axis=1) / (whole.prod(axis=1) + 1e-16)
    return (left > min_size).all(axis=1) & (share > min_area_ratio) & (aspect < max_aspect_ratio)


def _as_scales(img_scale: Any) -> list[tuple[int, int]] | None:
    if img_scale is None:
        return None
    # --cfg-options may turn (w, h) into [w, h], so what is inside decides.
    scales = list(img_scale) if isinstance(img_scale, Sequence) and all(
        isinstance(one, Sequence) for one in img_scale) else [img_scale]
    if not scales or not all(isinstance(s, (tuple, list)) and len(s) == 2 for s in scales):
        raise ConfigError(f'Resize.img_scale is (w, h) or a list of them, not {img_scale}')
    return [tuple(s) for s in scales]


@PIPELINES.register_module()
class Resize(GeometricTransform):
    """Resize image, boxes, masks, keypoints and semantic map.

    The scale is ``results['scale']`` or ``results['scale_factor']`` where one is set, else drawn:
    with ``ratio_range`` the one ``img_scale`` times a random ratio; from several scales by ``multiscale_mode`` 'value'
    one of them, by 'range' a longer and a shorter side between the smallest and largest of them.

    Args:
        img_scale: (w, h), or a list of them.
        multiscale_mode: 'range' or 'value'.
        ratio_range: (least, greatest) ratio.
        keep_ratio: make the image as large as fits into the scale, in any orientation; else exactly the scale.
        bbox_clip_border: clip boxes to the image.
        backend: 'cv2' or 'pillow'.
        interpolation: of the image; masks and semantic maps are resized by nearest neighbour.
        override: resize again, whatever an earlier Resize did.
    """

    def __init__(self, img_scale: Any = None, multiscale_mode: str = 'range',
                 ratio_range: Sequence[float] | None = None, keep_ratio: bool = True, bbox_clip_border: bool = True,
                 backend: str = 'cv2', interpolation: str = 'bilinear', override: bool = False):
        self.img_scale = _as_scales(img_scale)
        if ratio_range is not None and (self.img_scale is None or len(self.img_scale) != 1):
            raise ConfigError('Resize.ratio_range needs exactly one img_scale')
        if multiscale_mode not in ('range', 'value'):
            raise ConfigError(f"Resize.multiscale_mode '{multiscale_mode}' is neither 'range' nor 'value'")
        if self.img_scale and len(self.img_scale) > 2 and multiscale_mode == 'range' and ratio_range is None:
            raise ConfigError(f"Resize.img_scale: 'range' lies between two scales, {len(self.img_scale)} are given; "
                              "multiscale_mode='value' draws one of a list")
        if interpolation not in INTERPOLATIONS:
            raise ConfigError(f"Resize.interpolation '{interpolation}' is none of {', '.join(INTERPOLATIONS)}")
        if backend not in ('cv2', 'pillow'):
            raise ConfigError(f"Resize.backend '{backend}' is neither 'cv2' nor 'pillow'")
        self.multiscale_mode = multiscale_mode
        self.ratio_range = ratio_range
        self.keep_ratio = keep_ratio
        self.bbox_clip_border = bbox_clip_border
        self.backend = backend
        self.interpolation = interpolation
        self.override = override

    def __call__(self, results: dict) -> dict:
        """Resize the sample."""
        self._set_scale(results)
        hw = _hw(results)
        out_hw = rescaled_hw(hw, results['scale']) if self.keep_ratio else _pair(results['scale'][::-1])
        warp = Scale(out_hw=out_hw, clip=self.bbox_clip_border, in_hw=hw, interpolation=self.interpolation,
                     backend=self.backend)
        results['scale_factor'], results['keep_ratio'] = warp.factor, self.keep_ratio
        image = results[first_image(results)]
        results['img_shape'] = results['pad_shape'] = (*out_hw, *image.shape[2:])
        self.move(results, warp)
        return results

    def _set_scale(self, results: dict) -> None:
        if self.override:
            results.pop('scale', None)
            results.pop('scale_factor', None)
        if 'scale' in results:
            if 'scale_factor' in results:
                raise ConfigError('Resize: the sample was resized before; override=True resizes it again')
        elif 'scale_factor' in results:
            factor = results['scale_factor']
            if not isinstance(factor, (int, float)):
                raise ConfigError('Resize: the sample was resized before; override=True resizes it again')
            height, width = _hw(results)
            results['scale'] = (int(width * factor), int(height * factor))
        else:
            results['scale'], results['scale_idx'] = self._draw_scale()

    def _draw_scale(self) -> tuple[tuple[int, int], int | None]:
        if self.img_scale is None:
            raise ConfigError('Resize: neither img_scale nor a scale in the sample')
        if self.ratio_range is not None:
            return draw_ratio(self.img_scale[0], self.ratio_range), None
        if len(self.img_scale) == 1:
            return self.img_scale[0], 0
        if self.multiscale_mode == 'value':
            index = np.random.randint(len(self.img_scale))
            return self.img_scale[index], int(index)
        return draw_between(self.img_scale), None


def draw_ratio(scale: Sequence[int], ratio_range: Sequence[float]) -> tuple[int, int]:
    """A scale (w, h) times a random ratio of the range."""
    least, greatest = ratio_range
    ratio = np.random.random_sample() * (greatest - least) + least
    return _pair([side * ratio for side in scale])


def draw_between(scales: Sequence[Sequence[int]]) -> tuple[int, int]:
    """A longer and a shorter side between the smallest and largest of the scales."""
    longer, shorter = [max(s) for s in scales], [min(s) for s in scales]
    return (int(np.random.randint(min(longer), max(longer) + 1)),
            int(np.random.randint(min(shorter), max(shorter) + 1)))


@PIPELINES.register_module()
class RandomFlip(GeometricTransform):
    """Flip the sample, unless ``results['flip']`` says whether and ``flip_direction`` how.

    A mirror makes a left hand a right one: keypoints change places by the data set's ``flip_pairs``.

    Args:
        flip_ratio: the probability; with several directions it is dealt evenly, or a list has one for each.
        direction: 'horizontal', 'vertical', 'diagonal', or a list of them.

    Raises:
        ConfigError: keypoints, and the data set does not say which of them are pairs.
    """
    can_defer = True

    def __init__(self, flip_ratio: float | Sequence[float] | None = None,
                 direction: str | Sequence[str] = 'horizontal'):
        self.direction = [direction] if isinstance(direction, str) else list(direction)
        for name in self.direction:
            if name not in FLIP_DIRECTIONS:
                raise ConfigError(f"RandomFlip.direction '{name}' is none of {', '.join(FLIP_DIRECTIONS)}")
        ratios = flip_ratio
        if ratios is not None and not isinstance(ratios, Sequence):
            ratios = [ratios / len(self.direction)] * len(self.direction)
        if ratios is not None and (len(ratios) != len(self.direction) or not 0 <= sum(ratios) <= 1 + 1e-9
                                   or min(ratios) < 0):
            raise ConfigError(f'RandomFlip.flip_ratio {flip_ratio} for {len(self.direction)} direction(s): give '
                              'probabilities that sum to 1 at most')
        self.flip_ratio = None if ratios is None else list(ratios)

    def __call__(self, results: dict) -> dict:
        """Flip the sample, or not."""
        if 'flip' not in results:
            if self.flip_ratio is None:
                raise ConfigError('RandomFlip: neither flip_ratio nor a flip in the sample')
            chances = [*self.flip_ratio, max(0.0, 1 - sum(self.flip_ratio))]
            drawn = np.random.choice(len(chances), p=chances)
            results['flip'] = bool(drawn < len(self.direction))
            results.setdefault('flip_direction', self.direction[drawn] if results['flip'] else None)
        if results.get('flip_direction') is None:
            results['flip_direction'] = self.direction[0] if results['flip'] else None
        if results['flip']:
            hw = results['img_shape'][:2] if 'img_shape' in results else _hw(results)
            self.move(results, Flip(out_hw=hw, direction=results['flip_direction']))
        return results


@PIPELINES.register_module()
class Pad(GeometricTransform):
    """Fill up image, masks and semantic map below and on the right.

    Args:
        size: (h, w); or
        size_divisor: to a multiple of so many pixels; or
        pad_to_square: to the longer side.
        pad_val: a number for the image, or ``dict(img=0, masks=0, seg=255)``. Polygons have nothing to fill.
    """

    def __init__(self, size: Sequence[int] | None = None, size_divisor: int | None = None, pad_to_square: bool = False,
                 pad_val: float | dict | None = None):
        given = (size is not None) + (size_divisor is not None) + bool(pad_to_square)
        if given != 1:
            raise ConfigError('Pad needs exactly one of size, size_divisor and pad_to_square=True')
        self.pad_val = {**PAD_VAL, **(pad_val if isinstance(pad_val, dict) else dict(img=pad_val or 0))}
        unknown = next((key for key in self.pad_val if key not in PAD_VAL), None)
        if unknown is not None:
            raise ConfigError(f"Pad.pad_val knows no '{unknown}'{nearest(unknown, PAD_VAL)}")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.size_divisor = size_divisor
        self.pad_to_square = pad_to_square

    @property
    def can_defer(self) -> bool:
        """Zeros are what the batch is filled up with anyway."""
        return bool(np.all(np.equal(self.pad_val['img'], 0)))

    def __call__(self, results: dict) -> dict:
        """Pad the sample."""
        return self._pad(results, images=True)

    def defer(self, results: dict) -> dict:
        """As a call, but of the image only ``pad_shape`` is set; the batch has room for it."""
        return self._pad(results, images=False)

    def _pad(self, results: dict, images: bool) -> dict:
        out_hw = self._target(_hw(results))
        results['pad_shape'] = (*out_hw, *results[first_image(results)].shape[2:])
        results['pad_fixed_size'], results['pad_size_divisor'] = self.size, self.size_divisor
        fill = self.pad_val
        self.move(results, Place(out_hw=out_hw, img_fill=fill['img'], seg_fill=fill['seg'], mask_fill=fill['masks']),
                  images=images)
        return results

    def _target(self, hw: tuple[int, int]) -> tuple[int, int]:
        height, width = hw
        if self.size is not None:
            if height > self.size[0] or width > self.size[1]:
                raise ConfigError(f'Pad.size {self.size} is smaller than an image of {(height, width)}')
            return self.size
        divisor = self.size_divisor or max(height, width)  # else pad_to_square
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor


@PIPELINES.register_module()
class SegRescale:
    """Resize the semantic maps alone, by nearest neighbour: heads read them at a fraction of the image's size.

    Args:
        scale_factor: new size / old size.
        backend: 'cv2' or 'pillow', which round differently.
    """
    can_defer = True

    def __init__(self, scale_factor: float = 1, backend: str = 'cv2'):
        if scale_factor <= 0:
            raise ConfigError(f'SegRescale.scale_factor {scale_factor} is not above 0')
        if backend not in ('cv2', 'pillow'):
            raise ConfigError(f"SegRescale.backend '{backend}' is neither 'cv2' nor 'pillow'")
        self.scale_factor = scale_factor
        self.backend = backend

    def __call__(self, results: dict) -> dict:
        """Resize the semantic maps of the sample."""
        for key in results.get('seg_fields', []) if self.scale_factor != 1 else ():
            hw = rescaled_hw(results[key].shape[:2], self.scale_factor)
            if self.backend == 'cv2':
                results[key] = resize_map(results[key], hw)
            else:
                from PIL import Image  # only this backend needs it
                results[key] = np.array(Image.fromarray(results[key]).resize(hw[::-1], Image.Resampling.NEAREST))
        return results


@PIPELINES.register_module()
class RandomCrop(GeometricTransform):
    """Cut a random part out of the sample; None when no box remains.

    Args:
        crop_size: (h, w), or a range of sizes, by ``crop_type``.
        crop_type: 'absolute' h, w in pixels; 'absolute_range' each side drawn between h and w pixels; 'relative' shares
            of the image; 'relative_range' shares drawn between these and 1.
        allow_negative_crop: keep a part without boxes.
        recompute_bbox: boxes from the cut masks.
        bbox_clip_border: clip boxes to the part.
    """

    def __init__(self, crop_size: Sequence[float], crop_type: str = 'absolute', allow_negative_crop: bool = False,
                 recompute_bbox: bool = False, bbox_clip_border: bool = True):
        kinds = ('absolute', 'absolute_range', 'relative', 'relative_range')
        if crop_type not in kinds:
            raise ConfigError(f"RandomCrop.crop_type '{crop_type}' is none of {', '.join(kinds)}")
        low, high = crop_size
        if crop_type.startswith('absolute') and (low <= 0 or high <= 0 or crop_type.endswith('range') and low > high):
            raise ConfigError(f'RandomCrop.crop_size {crop_size} is no {crop_type} size')
        if crop_type.startswith('relative') and not (0 < low <= 1 and 0 < high <= 1):
            raise ConfigError(f'RandomCrop.crop_size {crop_size} must lie between 0 and 1')
        self.crop_size = (low, high)
        self.crop_type = crop_type
        self.allow_negative_crop = allow_negative_crop
        self.recompute_bbox = recompute_bbox
        self.bbox_clip_border = bbox_clip_border

    def __call__(self, results: dict) -> dict | None:
        """Cut the sample."""
        return self.crop_at_random(results, *self._draw_size(*_hw(results)), self.allow_negative_crop)

    def crop_at_random(self, results: dict, crop_h: int, crop_w: int, keep_empty: bool) -> dict | None:
        """Cut a part (crop_h, crop_w) at a random place; None when no box remains, unless ``keep_empty``."""
        height, width = _hw(results)
        top = int(np.random.randint(0, max(height - crop_h, 0) + 1))
        left = int(np.random.randint(0, max(width - crop_w, 0) + 1))
        window = (left, top, left + crop_w, top + crop_h)
        kept = self.crop(results, window, self.bbox_clip_border, with_area, self.recompute_bbox)
        return results if kept or keep_empty else None

    def _draw_size(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.crop_size
        if self.crop_type == 'absolute':
            return min(int(low), height), min(int(high), width)
        if self.crop_type == 'absolute_range':
            least, most = int(low), int(high)
            return (int(np.random.randint(min(height, least), min(height, most) + 1)),
                    int(np.random.randint(min(width, least), min(width, most) + 1)))
        share: np.ndarray = np.array([low, high], dtype=np.float32)
        if self.crop_type == 'relative_range':
            share = share + np.random.rand(2) * (1 - share)
        return int(height * share[0] + 0.5), int(width * share[1] + 0.5)


@PIPELINES.register_module()
class AspectCrop(GeometricTransform):
    """Cut long images to a limited aspect ratio (Detectron.pytorch's TRAIN.ASPECT_CROPPING).

    The part is drawn at random, but around the objects where they fit. Where they reach over more than is left, it
    begins within the first half of what they reach too far. It stands after Resize and RandomFlip.

    Args:
        aspect_lo: least width / height (ASPECT_LO).
        aspect_hi: largest width / height (ASPECT_HI).

    Raises:
        ConfigError: not 0 < aspect_lo <= aspect_hi.
    """

    def __init__(self, aspect_lo: float = 0.5, aspect_hi: float = 2.0):
        if not 0 < aspect_lo <= aspect_hi:
            raise ConfigError(f'AspectCrop: aspect_lo={aspect_lo} and aspect_hi={aspect_hi}: they are ratios width / '
                              'height, the least and the largest')
        self.aspect_lo, self.aspect_hi = aspect_lo, aspect_hi

    def __call__(self, results: dict) -> dict:
        """Cut the sample where it is too long."""
        height, width = _hw(results)
        crop_w = min(width, math.ceil(height * self.aspect_hi))
        crop_h = min(height, math.ceil(width / self.aspect_lo))
        if (crop_h, crop_w) == (height, width):
            return results
        boxes = results.get('gt_bboxes', np.zeros((0, 4), dtype=np.float32))
        left = self._draw_start(boxes[:, 0], boxes[:, 2], width, crop_w)
        top = self._draw_start(boxes[:, 1], boxes[:, 3], height, crop_h)
        self.crop(results, (left, top, left + crop_w, top + crop_h), True, with_area)
        return results

    @staticmethod
    def _draw_start(firsts: np.ndarray, lasts: np.ndarray, length: int, kept: int) -> int:
        """Where ``kept`` of ``length`` pixels begin, for objects from ``firsts`` to ``lasts`` (N,)."""
        first, last = (math.floor(firsts.min()), math.ceil(lasts.max())) if len(firsts) else (0, 0)
        if not len(firsts):
            low, high = 0, length - kept
        elif last - first <= kept:
            low, high = max(last - kept, 0), min(first, length - kept)
        else:
            low, high = first, first + (last - first - kept) // 2
        return int(np.random.randint(low, high + 1))


@PIPELINES.register_module()
class Expand(GeometricTransform):
    """Lay the image at a random place of a larger canvas (SSD, Liu et al. 2016, section 2.2).

    Args:
        mean: colour of the canvas, in RGB when ``to_rgb``.
        to_rgb: the pipeline's later Normalize turns BGR into RGB.
        ratio_range: bounds of the canvas' size as a multiple of the image's.
        seg_ignore_label: class of the canvas in a semantic map.
        prob: how often.
    """

    def __init__(self, mean: Sequence[float] = (0, 0, 0), to_rgb: bool = True, ratio_range: Sequence[float] = (1, 4),
                 seg_ignore_label: int | None = None, prob: float = 0.5):
        self.mean = tuple(mean[::-1]) if to_rgb else tuple(mean)
        self.ratio_range = ratio_range[0], ratio_range[1]
        self.seg_ignore_label = seg_ignore_label
        self.prob = prob

    def __call__(self, results: dict) -> dict:
        """Lay the sample on a larger canvas, or not."""
        if np.random.uniform(0, 1) > self.prob:
            return results
        height, width = _hw(results)
        ratio = np.random.uniform(*self.ratio_range)
        left, top = (int(np.random.uniform(0, size * ratio - size)) for size in (width, height))
        unknown = PAD_VAL['seg'] if self.seg_ignore_label is None else self.seg_ignore_label
        self.move(results, Place(out_hw=(int(height * ratio), int(width * ratio)), left=left, top=top,
                                 img_fill=self.mean, seg_fill=unknown))
        results['img_shape'] = results['pad_shape'] = results[first_image(results)].shape
        return results


@PIPELINES.register_module()
class MinIoURandomCrop(GeometricTransform):
    """Cut out a part that overlaps every box by at least a drawn IoU (SSD, Liu et al. 2016, section 2.2).

    Args:
        min_ious: thresholds to draw from, beside 1 (the whole image) and 0 (any part).
        min_crop_size: smallest side of the part as a share of the image's.
        bbox_clip_border: clip boxes to the part.
    """

    def __init__(self, min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size: float = 0.3,
                 bbox_clip_border: bool = True):
        self.modes = (1, *min_ious, 0)
        self.min_crop_size = min_crop_size
        self.bbox_clip_border = bbox_clip_border

    def __call__(self, results: dict) -> dict:
        """Cut the sample, or leave it whole."""
        while True:
            least = self.modes[np.random.randint(len(self.modes))]
            if least == 1:
                return results
            for _ in range(50):
                patch = self._draw_patch(results, least)
                if patch is not None:
                    self.crop(results, patch, self.bbox_clip_border, partial(_centres_inside_before, patch))
                    return results

    def _draw_patch(self, results: dict, least: float) -> np.ndarray | None:
        """A part (4,) int64, or None when the drawn one will not do."""
        height, width = _hw(results)
        new_w = np.random.uniform(self.min_crop_size * width, width)
        new_h = np.random.uniform(self.min_crop_size * height, height)
        if not 0.5 <= new_h / new_w <= 2:
            return None
        left, top = np.random.uniform(width - new_w), np.random.uniform(height - new_h)
        patch = np.array((left, top, left + new_w, top + new_h)).astype(np.int64)
        if patch[2] == patch[0] or patch[3] == patch[1]:
            return None
        boxes = np.concatenate([results[key] for key in results.get('bbox_fields', [])] or [np.zeros((0, 4))])
        if len(boxes) and (_overlaps(boxes, patch).min() < least or not _centres_inside(boxes, patch).any()):
            return None
        return patch


def _centres_inside_before(patch: np.ndarray, boxes: np.ndarray, _: np.ndarray) -> np.ndarray:
    return _centres_inside(boxes, patch)


def _centres_inside(boxes: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """(N,) bool."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centre > patch[:2]) & (centre < patch[2:])).all(axis=1)


def _overlaps(boxes: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """(N,) IoU of each box with the patch."""
    sides = np.minimum(boxes[:, 2:], patch[2:]) - np.maximum(boxes[:, :2], patch[:2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (patch[2:] - patch[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-6)


@PIPELINES.register_module()
class RandomShift(GeometricTransform):
    """Shift the sample by some pixels, unless no object of ``gt_bboxes`` would be left (YOLOF, Chen et al. 2021).

    Args:
        shift_ratio: how often.
        max_shift_px: largest shift on each axis, in pixels.
        filter_thr_px: objects that are left no wider or higher than this are dropped.

    Raises:
        ConfigError: ``shift_ratio`` outside 0 to 1, or a negative shift.
    """

    def __init__(self, shift_ratio: float = 0.5, max_shift_px: int = 32, filter_thr_px: int = 1):
        if not 0 <= shift_ratio <= 1 or max_shift_px < 0:
            raise ConfigError(f'RandomShift: shift_ratio={shift_ratio} lies between 0 and 1, and '
                              f'max_shift_px={max_shift_px} is not negative')
        self.shift_ratio, self.max_shift_px, self.filter_thr_px = shift_ratio, max_shift_px, int(filter_thr_px)

    def __call__(self, results: dict) -> dict:
        """Shift the sample, or not."""
        if np.random.random() >= self.shift_ratio or not self.max_shift_px:
            return results
        x, y = (int(np.random.randint(-self.max_shift_px, self.max_shift_px)) for _ in range(2))
        warp = Shift(out_hw=_hw(results), clip=True, x=x, y=y)
        keep = larger_than(self.filter_thr_px)
        if 'gt_bboxes' in results.get('bbox_fields', []):
            boxes = clip_boxes(warp.boxes(results['gt_bboxes']), warp.out_hw)
            if not keep(boxes, boxes).any():
                return results
        self.move(results, warp, keep)
        return results


@PIPELINES.register_module()
class RandomAffine(GeometricTransform):
    """Turn, scale, shear and shift the sample at random (YOLOX, Ge et al. 2021); the corner of the image is the centre.

    Args:
        max_rotate_degree: largest turn.
        max_translate_ratio: largest shift, as a share of the new image's sides.
        scaling_ratio_range: bounds of the scale.
        max_shear_degree: largest shear on each axis.
        border: (h, w) pixels that the new image has more on each side; negative ones undo Mosaic's canvas.
        border_val: colour of what nothing comes to.
        min_bbox_size: with
        min_area_ratio: and
        max_aspect_ratio: what is left of an object must look like, see ``alike``; only where ``skip_filter`` is False.
        bbox_clip_border: clip boxes to the new image.
        skip_filter: drop only objects that are outside.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, max_rotate_degree: float = 10.0, max_translate_ratio: float = 0.1,
                 scaling_ratio_range: Sequence[float] = (0.5, 1.5), max_shear_degree: float = 2.0,
                 border: Sequence[int] = (0, 0), border_val: Sequence[int] = (114, 114, 114), min_bbox_size: float = 2,
                 min_area_ratio: float = 0.2, max_aspect_ratio: float = 20, bbox_clip_border: bool = True,
                 skip_filter: bool = True):
        if not 0 <= max_translate_ratio <= 1:
            raise ConfigError(f'RandomAffine.max_translate_ratio {max_translate_ratio} does not lie between 0 and 1')
        if not 0 < scaling_ratio_range[0] <= scaling_ratio_range[1]:
            raise ConfigError(f'RandomAffine.scaling_ratio_range {scaling_ratio_range}: two positive factors, the '
                              'smaller first')
        self.max_rotate_degree, self.max_shear_degree = max_rotate_degree, max_shear_degree
        self.max_translate_ratio = max_translate_ratio
        self.scaling_ratio_range = scaling_ratio_range[0], scaling_ratio_range[1]
        self.border, self.border_val = tuple(border), tuple(border_val)
        self.min_bbox_size, self.min_area_ratio = min_bbox_size, min_area_ratio
        self.max_aspect_ratio = max_aspect_ratio
        self.bbox_clip_border, self.skip_filter = bbox_clip_border, skip_filter

    def __call__(self, results: dict) -> dict:
        """Warp the sample."""
        height, width = _hw(results)
        out_hw = height + 2 * self.border[0], width + 2 * self.border[1]
        if min(out_hw) < 1:
            raise ConfigError(f'RandomAffine.border {self.border} leaves nothing of an image of {_hw(results)}')
        turn = math.radians(np.random.uniform(-self.max_rotate_degree, self.max_rotate_degree))
        scale = np.random.uniform(*self.scaling_ratio_range)
        shear_x, shear_y = (math.tan(math.radians(np.random.uniform(-self.max_shear_degree, self.max_shear_degree)))
                            for _ in range(2))
        shift = [np.random.uniform(-self.max_translate_ratio, self.max_translate_ratio) * side for side in out_hw[::-1]]
        cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
        linear = np.array([[1, shear_x], [shear_y, 1]]) @ [[cosine, -sine], [sine, cosine]]
        warp = Affine(out_hw=out_hw, clip=self.bbox_clip_border, img_fill=self.border_val,
                      matrix=np.concatenate([linear, np.array(shift)[:, None]], axis=1))
        self.move(results, warp, partial(self._kept, scale, out_hw))
        results['img_shape'] = results['pad_shape'] = results[first_image(results)].shape
        return results

    def _kept(self, scale: float, hw: Sequence[int], before: np.ndarray, after: np.ndarray) -> np.ndarray:
        kept = inside(after, hw)
        if self.skip_filter:
            return kept
        return kept & alike(before * scale, after, self.min_bbox_size, self.min_area_ratio, self.max_aspect_ratio)
