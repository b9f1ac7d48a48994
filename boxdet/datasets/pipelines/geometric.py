"""Transforms that move pixels, boxes, masks, joints and class maps together.

The numbers are mmdetection 2.28's. Sizes are (height, width), scales (w, h) as in 2.x's configs, boxes xyxy (N, 4).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from boxdet.errors import ConfigError
from boxdet.geometry.keypoints import flip_keypoints
from boxdet.geometry.masks import rescaled_hw
from boxdet.registry import PIPELINES
from boxdet.structures.masks import FLIP_DIRECTIONS

_INTERPOLATIONS = dict(nearest=cv2.INTER_NEAREST, bilinear=cv2.INTER_LINEAR, bicubic=cv2.INTER_CUBIC,
                       area=cv2.INTER_AREA, lanczos=cv2.INTER_LANCZOS4)
# Which labels and masks go with which boxes when some are dropped.
_LABELS_OF = dict(gt_bboxes='gt_labels', gt_bboxes_ignore='gt_labels_ignore')
_MASKS_OF = dict(gt_bboxes='gt_masks', gt_bboxes_ignore='gt_masks_ignore')
_KEYPOINTS_OF = dict(gt_bboxes='gt_keypoints')


def clip_boxes(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Boxes (N, 4) within an image of ``shape`` (H, W, ...)."""
    limits = np.array([shape[1], shape[0], shape[1], shape[0]], dtype=np.float32)
    return np.clip(boxes, 0, limits)


def flip_boxes(boxes: np.ndarray, shape: Sequence[int], direction: str) -> np.ndarray:
    """Boxes (..., 4) on the flipped image of ``shape`` (H, W, ...)."""
    flipped = boxes.copy()
    if direction != 'vertical':
        flipped[..., 0::4], flipped[..., 2::4] = shape[1] - boxes[..., 2::4], shape[1] - boxes[..., 0::4]
    if direction != 'horizontal':
        flipped[..., 1::4], flipped[..., 3::4] = shape[0] - boxes[..., 3::4], shape[0] - boxes[..., 1::4]
    return flipped


def moved_joints(joints: np.ndarray, shape: Sequence[int], factor: Sequence[float] = (1, 1),
                 offset: Sequence[float] = (0, 0)) -> np.ndarray:
    """Joints (N, J, 3) scaled by ``factor`` and then moved by ``offset`` (x, y), on a picture of ``shape`` (H, W, ...).

    Those outside are not labelled any more, and those that are not labelled lie at 0, 0, as COCO has them (detectron2).
    """
    moved = joints.copy()
    moved[..., :2] = joints[..., :2] * np.asarray(factor, dtype=np.float32) + np.asarray(offset, dtype=np.float32)
    inside = ((moved[..., :2] >= 0) & (moved[..., :2] <= (shape[1], shape[0]))).all(axis=-1)
    moved[~inside | (moved[..., 2] <= 0)] = 0
    return moved


def flip_image(image: np.ndarray, direction: str) -> np.ndarray:
    """A flipped copy of (H, W[, C])."""
    return cv2.flip(image, dict(horizontal=1, vertical=0, diagonal=-1)[direction])


def pad_image(image: np.ndarray, hw: tuple[int, int], value: float = 0) -> np.ndarray:
    """Fill up with ``value`` below and on the right to ``hw``; the image itself when it has that size."""
    height, width = image.shape[:2]
    if (height, width) == tuple(hw):
        return image
    shape = (*hw, *image.shape[2:])
    padded = np.zeros(shape, image.dtype) if np.all(np.equal(value, 0)) else np.full(shape, value, image.dtype)
    padded[:height, :width] = image
    return padded


def _as_scales(img_scale: Any) -> list[tuple[int, int]] | None:
    if img_scale is None:
        return None
    # --cfg-options may turn (w, h) into [w, h], so what is inside decides.
    scales = list(img_scale) if isinstance(img_scale[0], Sequence) else [img_scale]
    if not all(isinstance(s, Sequence) and len(s) == 2 for s in scales):
        raise ConfigError(f'Resize.img_scale is (w, h) or a list of them, not {img_scale}')
    return [tuple(s) for s in scales]


@PIPELINES.register_module()
class Resize:
    """Resize image, boxes, masks and class map.

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
        interpolation: of the image; masks and class maps are resized by nearest neighbour.
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
        if interpolation not in _INTERPOLATIONS:
            raise ConfigError(f"Resize.interpolation '{interpolation}' is none of {', '.join(_INTERPOLATIONS)}")
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
        if self.override:
            results.pop('scale', None)
            results.pop('scale_factor', None)
        if 'scale' not in results:
            if 'scale_factor' in results:
                factor = results['scale_factor']
                if not isinstance(factor, (int, float)):
                    raise ConfigError('Resize: the sample was resized before; override=True resizes it again')
                height, width = results['img'].shape[:2]
                results['scale'] = (int(width * factor), int(height * factor))
            else:
                results['scale'], results['scale_idx'] = self._draw_scale()
        elif isinstance(results.get('scale_factor'), np.ndarray):
            raise ConfigError('Resize: the sample was resized before; override=True resizes it again')
        self._resize_images(results)
        self._resize_boxes(results)
        hw = results['img_shape'][:2]
        for key in results.get('keypoint_fields', []):
            results[key] = moved_joints(results[key], hw, factor=results['scale_factor'][:2])
        for key in results.get('mask_fields', []):
            if results[key] is not None:
                results[key] = results[key].resize(hw)
        for key in results.get('seg_fields', []):
            results[key] = cv2.resize(results[key], hw[::-1], interpolation=cv2.INTER_NEAREST)
        return results

    def _draw_scale(self) -> tuple[tuple[int, int], int | None]:
        if self.img_scale is None:
            raise ConfigError('Resize: neither img_scale nor a scale in the sample')
        if self.ratio_range is not None:
            least, greatest = self.ratio_range
            ratio = np.random.random_sample() * (greatest - least) + least
            return tuple(int(side * ratio) for side in self.img_scale[0]), None
        if len(self.img_scale) == 1:
            return self.img_scale[0], 0
        if self.multiscale_mode == 'value':
            index = np.random.randint(len(self.img_scale))
            return self.img_scale[index], int(index)
        longer, shorter = [max(s) for s in self.img_scale], [min(s) for s in self.img_scale]
        return (int(np.random.randint(min(longer), max(longer) + 1)),
                int(np.random.randint(min(shorter), max(shorter) + 1))), None

    def _resize_images(self, results: dict) -> None:
        for key in results.get('img_fields', ['img']):
            image = results[key]
            height, width = image.shape[:2]
            new_h, new_w = (rescaled_hw((height, width), results['scale']) if self.keep_ratio
                            else tuple(int(v) for v in results['scale'][::-1]))
            image = self._resized(image, (new_h, new_w))
            results[key] = image
            factor_w, factor_h = new_w / width, new_h / height
            results['scale_factor'] = np.array([factor_w, factor_h, factor_w, factor_h], dtype=np.float32)
            results['img_shape'] = image.shape
            results['pad_shape'] = image.shape
            results['keep_ratio'] = self.keep_ratio

    def _resized(self, image: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
        if self.backend == 'cv2':
            return cv2.resize(image, hw[::-1], interpolation=_INTERPOLATIONS[self.interpolation])
        from PIL import Image  # only this backend needs it
        filters = dict(nearest=Image.NEAREST, bilinear=Image.BILINEAR, bicubic=Image.BICUBIC, area=Image.BOX,
                       lanczos=Image.LANCZOS)
        return np.array(Image.fromarray(image).resize(hw[::-1], filters[self.interpolation]))

    def _resize_boxes(self, results: dict) -> None:
        for key in results.get('bbox_fields', []):
            boxes = results[key] * results['scale_factor']
            results[key] = clip_boxes(boxes, results['img_shape']) if self.bbox_clip_border else boxes


@PIPELINES.register_module()
class RandomFlip:
    """Flip image, boxes, masks, joints, class map, unless ``results['flip']`` says whether and ``flip_direction`` how.

    A mirror makes a left hand a right one: joints change places by the data set's ``flip_pairs``.

    Args:
        flip_ratio: the probability; with several directions it is dealt evenly, or a list has one for each.
        direction: 'horizontal', 'vertical', 'diagonal', or a list of them.

    Raises:
        ConfigError: joints, and the data set does not say which of them are pairs.
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
            self._flip(results, results['flip_direction'])
        return results

    def _flip(self, results: dict, direction: str) -> None:
        for key in results.get('img_fields', ['img']):
            results[key] = flip_image(results[key], direction)
        for key in results.get('bbox_fields', []):
            results[key] = flip_boxes(results[key], results['img_shape'], direction)
        for key in results.get('keypoint_fields', []):
            results[key] = self._flipped_joints(results[key], results, direction)
        for key in results.get('mask_fields', []):
            results[key] = results[key].flip(direction)
        for key in results.get('seg_fields', []):
            results[key] = flip_image(results[key], direction)


    @staticmethod
    def _flipped_joints(joints: np.ndarray, results: dict, direction: str) -> np.ndarray:
        if results.get('flip_pairs') is None:
            raise ConfigError('RandomFlip: the data set does not say which keypoints a mirror swaps: set its '
                              'flip_pairs ([] for none)')
        flipped = flip_keypoints(torch.from_numpy(joints), results['img_shape'], results['flip_pairs'], direction)
        return moved_joints(flipped.numpy(), results['img_shape'])


@PIPELINES.register_module()
class Pad:
    """Fill up image, masks and class map below and on the right.

    Args:
        size: (h, w); or
        size_divisor: to a multiple of so many pixels; or
        pad_to_square: to the longer side.
        pad_val: a number for the image, or ``dict(img=0, masks=0, seg=255)``.
    """

    def __init__(self, size: Sequence[int] | None = None, size_divisor: int | None = None, pad_to_square: bool = False,
                 pad_val: float | dict | None = None):
        given = (size is not None) + (size_divisor is not None) + bool(pad_to_square)
        if given != 1:
            raise ConfigError('Pad needs exactly one of size, size_divisor and pad_to_square=True')
        if not isinstance(pad_val, dict):
            pad_val = dict(img=pad_val or 0)
        self.pad_val = {**dict(img=0, masks=0, seg=255), **pad_val}
        if self.pad_val['masks'] != 0:
            raise ConfigError('Pad.pad_val: masks are filled up with 0')
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.size_divisor = size_divisor
        self.pad_to_square = pad_to_square

    @property
    def can_defer(self) -> bool:
        """Zeros are what the batch is filled up with anyway."""
        return bool(np.all(np.equal(self.pad_val['img'], 0)))

    def __call__(self, results: dict) -> dict:
        for key in results.get('img_fields', ['img']):
            results[key] = pad_image(results[key], self._target(results[key].shape), self.pad_val['img'])
            results['pad_shape'] = results[key].shape
        return self._pad_rest(results)

    def defer(self, results: dict) -> dict:
        """As a call, but of the picture only ``pad_shape`` is set; the batch has room for it."""
        results['pad_shape'] = (*self._target(results['img'].shape), *results['img'].shape[2:])
        return self._pad_rest(results)

    def _target(self, shape: tuple[int, ...]) -> tuple[int, int]:
        height, width = shape[:2]
        if self.pad_to_square:
            return max(height, width), max(height, width)
        if self.size is not None:
            if height > self.size[0] or width > self.size[1]:
                raise ConfigError(f'Pad.size {self.size} is smaller than an image of {(height, width)}')
            return self.size
        divisor = self.size_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def _pad_rest(self, results: dict) -> dict:
        results['pad_fixed_size'] = self.size
        results['pad_size_divisor'] = self.size_divisor
        hw = results['pad_shape'][:2]
        for key in results.get('mask_fields', []):
            results[key] = results[key].pad(hw)
        for key in results.get('seg_fields', []):
            results[key] = pad_image(results[key], hw, self.pad_val['seg'])
        return results


@PIPELINES.register_module()
class SegRescale:
    """Resize the class maps alone, by nearest neighbour: heads that read them work at a fraction of the image's size.

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
        for key in results.get('seg_fields', []) if self.scale_factor != 1 else ():
            hw = rescaled_hw(results[key].shape[:2], self.scale_factor)
            if self.backend == 'cv2':
                results[key] = cv2.resize(results[key], hw[::-1], interpolation=cv2.INTER_NEAREST)
            else:
                from PIL import Image  # only this backend needs it
                results[key] = np.array(Image.fromarray(results[key]).resize(hw[::-1], Image.NEAREST))
        return results


@PIPELINES.register_module()
class RandomCrop:
    """Cut a random part out of image, boxes, masks and class map; None when no box remains.

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
        height, width = results['img'].shape[:2]
        crop_h, crop_w = self._draw_size(height, width)
        top = int(np.random.randint(0, max(height - crop_h, 0) + 1))
        left = int(np.random.randint(0, max(width - crop_w, 0) + 1))
        window = (left, top, left + crop_w, top + crop_h)
        kept = crop_sample(results, window, self.bbox_clip_border, self.recompute_bbox)
        return results if kept or self.allow_negative_crop else None

    def _draw_size(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.crop_size
        if self.crop_type == 'absolute':
            return min(int(low), height), min(int(high), width)
        if self.crop_type == 'absolute_range':
            return (int(np.random.randint(min(height, low), min(height, high) + 1)),
                    int(np.random.randint(min(width, low), min(width, high) + 1)))
        share = np.array([low, high], dtype=np.float32)
        if self.crop_type == 'relative_range':
            share = share + np.random.rand(2) * (1 - share)
        return int(height * share[0] + 0.5), int(width * share[1] + 0.5)


@PIPELINES.register_module()
class AspectCrop:
    """Cut long images to a limited aspect ratio, at random but around the objects where they fit: Detectron.pytorch's
    TRAIN.ASPECT_CROPPING.

    Where the objects reach over more than is left, the part begins within the first half of what they reach too far. It
    stands after Resize and RandomFlip.

    Args:
        aspect_lo, aspect_hi: least and largest width / height (ASPECT_LO, ASPECT_HI).

    Raises:
        ConfigError: not 0 < aspect_lo <= aspect_hi.
    """

    def __init__(self, aspect_lo: float = 0.5, aspect_hi: float = 2.0):
        if not 0 < aspect_lo <= aspect_hi:
            raise ConfigError(f'AspectCrop: aspect_lo={aspect_lo} and aspect_hi={aspect_hi}: they are ratios width / '
                              'height, the least and the largest')
        self.aspect_lo, self.aspect_hi = aspect_lo, aspect_hi

    def __call__(self, results: dict) -> dict:
        height, width = results['img'].shape[:2]
        crop_w = min(width, math.ceil(height * self.aspect_hi))
        crop_h = min(height, math.ceil(width / self.aspect_lo))
        if (crop_h, crop_w) == (height, width):
            return results
        boxes = results.get('gt_bboxes', np.zeros((0, 4), dtype=np.float32))
        left = self._draw_start(boxes[:, 0], boxes[:, 2], width, crop_w)
        top = self._draw_start(boxes[:, 1], boxes[:, 3], height, crop_h)
        crop_sample(results, (left, top, left + crop_w, top + crop_h))
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


def crop_sample(results: dict, window: Sequence[int], clip: bool = True, recompute_bbox: bool = False) -> bool:
    """Cut images, boxes, masks, joints and class maps of a sample to ``window`` (x0, y0, x1, y1), in place.

    Boxes outside are dropped with what goes with them.

    Args:
        clip: clip boxes to the window.
        recompute_bbox: boxes from the cut masks.

    Returns:
        whether an object is left, or there is no ``gt_bboxes`` to tell.
    """
    left, top, right, bottom = window
    for key in results.get('img_fields', ['img']):
        results[key] = np.ascontiguousarray(results[key][top:bottom, left:right])
        results['img_shape'] = results['pad_shape'] = results[key].shape
    fields = results.get('bbox_fields', [])
    for key in fields:
        _crop_boxes(results, key, (left, top), clip, recompute_bbox)
    for key in results.get('seg_fields', []):
        results[key] = results[key][top:bottom, left:right]
    return 'gt_bboxes' not in fields or len(results['gt_bboxes']) > 0


def _crop_boxes(results: dict, key: str, offset_xy: tuple[int, int], clip: bool, recompute_bbox: bool) -> None:
    """Move the boxes under ``key``, drop those outside and what goes with them."""
    left, top = offset_xy
    boxes = results[key] - np.array([left, top, left, top], dtype=np.float32)
    if clip:
        boxes = clip_boxes(boxes, results['img_shape'])
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    results[key] = boxes[keep]
    if _LABELS_OF.get(key) in results:
        results[_LABELS_OF[key]] = results[_LABELS_OF[key]][keep]
    if _KEYPOINTS_OF.get(key) in results:
        joints = results[_KEYPOINTS_OF[key]][keep]
        results[_KEYPOINTS_OF[key]] = moved_joints(joints, results['img_shape'], offset=(-left, -top))
    masks = _MASKS_OF.get(key)
    if masks in results:
        height, width = results['img_shape'][:2]
        results[masks] = results[masks][np.flatnonzero(keep)].crop([left, top, left + width, top + height])
        if recompute_bbox:
            results[key] = results[masks].bboxes()


@PIPELINES.register_module()
class Expand:
    """Lay the image at a random place of a larger canvas (SSD, Liu et al. 2016, section 2.2).

    Args:
        mean: colour of the canvas, in RGB when ``to_rgb``.
        to_rgb: the pipeline's later Normalize turns BGR into RGB.
        ratio_range: bounds of the canvas' size as a multiple of the image's.
        seg_ignore_label: class of the canvas in a class map.
        prob: how often.
    """

    def __init__(self, mean: Sequence[float] = (0, 0, 0), to_rgb: bool = True, ratio_range: Sequence[float] = (1, 4),
                 seg_ignore_label: int | None = None, prob: float = 0.5):
        self.mean = tuple(mean[::-1]) if to_rgb else tuple(mean)
        self.ratio_range = tuple(ratio_range)
        self.seg_ignore_label = seg_ignore_label
        self.prob = prob

    def __call__(self, results: dict) -> dict:
        if np.random.uniform(0, 1) > self.prob:
            return results
        image = results['img']
        height, width, channels = image.shape
        ratio = np.random.uniform(*self.ratio_range)
        canvas_h, canvas_w = int(height * ratio), int(width * ratio)
        left, top = (int(np.random.uniform(0, size * ratio - size)) for size in (width, height))
        canvas = np.empty((canvas_h, canvas_w, channels), dtype=image.dtype)
        canvas[:] = np.asarray(self.mean).astype(image.dtype)
        canvas[top:top + height, left:left + width] = image
        results['img'] = canvas
        results['img_shape'] = results['pad_shape'] = canvas.shape
        for key in results.get('bbox_fields', []):
            results[key] = results[key] + np.array([left, top, left, top], dtype=results[key].dtype)
        for key in results.get('keypoint_fields', []):
            results[key] = moved_joints(results[key], canvas.shape, offset=(left, top))
        for key in results.get('mask_fields', []):
            results[key] = results[key].expand(canvas_h, canvas_w, top, left)
        for key in results.get('seg_fields', []):
            fill = 255 if self.seg_ignore_label is None else self.seg_ignore_label
            plane = np.full((canvas_h, canvas_w), fill, dtype=results[key].dtype)
            plane[top:top + height, left:left + width] = results[key]
            results[key] = plane
        return results


@PIPELINES.register_module()
class MinIoURandomCrop:
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
        while True:
            least = self.modes[np.random.randint(len(self.modes))]
            if least == 1:
                return results
            for _ in range(50):
                patch = self._draw_patch(results, least)
                if patch is not None:
                    return self._cut(results, patch)

    def _draw_patch(self, results: dict, least: float) -> np.ndarray | None:
        """A part (4,) int64, or None when the drawn one will not do."""
        height, width = results['img'].shape[:2]
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

    def _cut(self, results: dict, patch: np.ndarray) -> dict:
        x1, y1, x2, y2 = (int(v) for v in patch)
        results['img'] = np.ascontiguousarray(results['img'][y1:y2, x1:x2])
        results['img_shape'] = results['pad_shape'] = results['img'].shape
        for key in results.get('bbox_fields', []):
            keep = _centres_inside(results[key], patch)
            boxes = results[key][keep]
            if self.bbox_clip_border:
                boxes = np.concatenate([np.maximum(boxes[:, :2], patch[:2]), np.minimum(boxes[:, 2:], patch[2:])], 1)
            results[key] = (boxes - np.tile(patch[:2], 2)).astype(np.float32)
            if _LABELS_OF.get(key) in results:
                results[_LABELS_OF[key]] = results[_LABELS_OF[key]][keep]
            if _KEYPOINTS_OF.get(key) in results:
                joints = results[_KEYPOINTS_OF[key]][keep]
                results[_KEYPOINTS_OF[key]] = moved_joints(joints, results['img_shape'], offset=(-x1, -y1))
            if _MASKS_OF.get(key) in results:
                results[_MASKS_OF[key]] = results[_MASKS_OF[key]][np.flatnonzero(keep)].crop(patch)
        for key in results.get('seg_fields', []):
            results[key] = results[key][y1:y2, x1:x2]
        return results


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
