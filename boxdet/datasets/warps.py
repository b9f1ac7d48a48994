"""Warps: a geometric transform of a sample as one object, worked out once and applied to everything of the image.

A warp says where the pixels, boxes, masks and points of an image lie on the new one. Transforms of a pipeline draw its
numbers. The numbers are mmdetection 2.28's.

A sample lists its keys by kind, as in 2.x: ``results['bbox_fields'] == ['gt_bboxes', 'gt_bboxes_ignore']``. Each kind
says how a value of it is warped. A data set with annotations of another sort registers a kind for them::

    register_field_kind('quad_fields', lambda quads, warp, sample: warp.points(quads), per_object=True)

and its ``pre_pipeline`` writes ``results['quad_fields'] = ['gt_quads']``: every geometric transform then moves the
quadrangles, and drops those whose boxes it drops.

Sizes are (height, width), points (..., 2) x, y in continuous coordinates, boxes xyxy (N, 4). Letters: N objects, H, W
height and width of the image, J keypoints of an object.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from boxdet.errors import ConfigError
from boxdet.geometry.keypoints import HALF_PIXEL, flip_keypoints
from boxdet.geometry.masks import interpolation_flag, nearest_index, warp_bitmap
from boxdet.structures.masks import BitmapMasks, PolygonMasks

Masks = BitmapMasks | PolygonMasks
_OPENCV_TYPES = (np.uint8, np.uint16, np.int16, np.float32, np.float64)
_FLIP_CODES = dict(horizontal=1, vertical=0, diagonal=-1)


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


def visible_keypoints(keypoints: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Keypoints (N, J, 3), of which those outside an image of ``shape`` (H, W, ...) are not labelled any more.

    Those that are not labelled lie at 0, 0, as COCO has them (detectron2).
    """
    kept = keypoints.copy()
    inside = ((kept[..., :2] >= 0) & (kept[..., :2] <= (shape[1], shape[0]))).all(axis=-1)
    kept[~inside | (kept[..., 2] <= 0)] = 0
    return kept


@dataclass(frozen=True, kw_only=True)
class Warp(ABC):
    """What every warp offers; those below say how.

    Args:
        out_hw: size of the new image.
        clip: boxes are clipped to it.
    """
    out_hw: tuple[int, int]
    clip: bool = False

    @abstractmethod
    def image(self, image: np.ndarray) -> np.ndarray:
        """The new image (H, W[, C])."""

    @abstractmethod
    def seg(self, classes: np.ndarray) -> np.ndarray:
        """The new semantic map (H, W): no class that was not there."""

    @abstractmethod
    def points(self, points: np.ndarray) -> np.ndarray:
        """Where points (..., 2) lie on the new image; they may lie outside."""

    @abstractmethod
    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes around where boxes (N, 4) lie, not clipped."""

    @abstractmethod
    def masks(self, masks: Masks) -> Masks:
        """Masks of the new size."""

    def keypoints(self, keypoints: np.ndarray, flip_pairs: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """Keypoints (N, J, 3) that still lie on the image.

        Args:
            keypoints: x, y, visibility.
            flip_pairs: those that a mirror swaps; only a mirror asks for them.
        """
        moved = keypoints.copy()
        moved[..., :2] = self.points(keypoints[..., :2])
        return visible_keypoints(moved, self.out_hw)


@dataclass(frozen=True, kw_only=True)
class Scale(Warp):
    """Resize to ``out_hw``.

    Args:
        in_hw: size of the old image.
        interpolation: mmcv's name of it, for the image; masks and semantic maps are resized by nearest neighbour.
        backend: 'cv2' or 'pillow'.
        ratio: what boxes and points are multiplied by where that is not new size / old size (Mosaic and MixUp take the
            ratio that the sizes were rounded from).
    """
    in_hw: tuple[int, int]
    interpolation: str = 'bilinear'
    backend: str = 'cv2'
    ratio: float | None = None

    @property
    def factor(self) -> np.ndarray:
        """(4,) float32 new / old size: x, y, x, y."""
        x = self.ratio or self.out_hw[1] / self.in_hw[1]
        y = self.ratio or self.out_hw[0] / self.in_hw[0]
        return np.array([x, y, x, y], dtype=np.float32)

    def image(self, image: np.ndarray) -> np.ndarray:
        return _resized(image, self.out_hw, self.interpolation, self.backend)

    def seg(self, classes: np.ndarray) -> np.ndarray:
        return resize_map(classes, self.out_hw)

    def points(self, points: np.ndarray) -> np.ndarray:
        return points * self.factor[:2]

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return boxes * self.factor

    def masks(self, masks: Masks) -> Masks:
        return masks.resize(self.out_hw)


@dataclass(frozen=True, kw_only=True)
class Flip(Warp):
    """Mirror an image of ``out_hw`` 'horizontal', 'vertical' or 'diagonal' (both)."""
    direction: str

    def image(self, image: np.ndarray) -> np.ndarray:
        return cv2.flip(image, _FLIP_CODES[self.direction])

    def seg(self, classes: np.ndarray) -> np.ndarray:
        rows, columns = (slice(None, None, 1 if self.direction == kept else -1) for kept in ('horizontal', 'vertical'))
        return np.ascontiguousarray(classes[rows, columns])

    def points(self, points: np.ndarray) -> np.ndarray:
        moved = points.copy()
        if self.direction != 'vertical':
            moved[..., 0] = self.out_hw[1] - points[..., 0]
        if self.direction != 'horizontal':
            moved[..., 1] = self.out_hw[0] - points[..., 1]
        return moved

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return flip_boxes(boxes, self.out_hw, self.direction)

    def masks(self, masks: Masks) -> Masks:
        return masks.flip(self.direction)

    def keypoints(self, keypoints: np.ndarray, flip_pairs: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        if flip_pairs is None:
            raise ConfigError('RandomFlip: the data set does not say which keypoints a mirror swaps: set its '
                              'flip_pairs ([] for none)')
        flipped = flip_keypoints(torch.from_numpy(keypoints), self.out_hw, [(one, other) for one, other in flip_pairs],
                                 self.direction)
        return visible_keypoints(flipped.numpy(), self.out_hw)


@dataclass(frozen=True, kw_only=True)
class Crop(Warp):
    """Cut out the window of size ``out_hw`` that begins at column ``left`` and row ``top``."""
    left: int
    top: int

    @classmethod
    def of(cls, window: Sequence[int] | np.ndarray, image_hw: Sequence[int], clip: bool = True) -> Crop:
        """The window (x0, y0, x1, y1) as far as it lies on an image of ``image_hw``."""
        x0, y0, x1, y1 = (int(v) for v in window)
        return cls(out_hw=(min(y1, image_hw[0]) - y0, min(x1, image_hw[1]) - x0), left=x0, top=y0, clip=clip)

    def _window(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.out_hw[0]), slice(self.left, self.left + self.out_hw[1])

    def image(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image[self._window()])

    def seg(self, classes: np.ndarray) -> np.ndarray:
        return classes[self._window()]

    def points(self, points: np.ndarray) -> np.ndarray:
        return points - np.array([self.left, self.top], dtype=np.float32)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return boxes - np.array([self.left, self.top] * 2, dtype=np.float32)

    def masks(self, masks: Masks) -> Masks:
        height, width = self.out_hw
        return masks.crop([self.left, self.top, self.left + width, self.top + height])


@dataclass(frozen=True, kw_only=True)
class Place(Warp):
    """Lay the image on a canvas of ``out_hw`` that is as large or larger.

    Args:
        left: column of the canvas at which the image begins.
        top: row of the canvas.
        img_fill: value of the canvas, or one a channel.
        seg_fill: its class.
        mask_fill: whether it belongs to the objects.
    """
    left: int = 0
    top: int = 0
    img_fill: Any = 0
    seg_fill: int = 255
    mask_fill: int = 0

    def image(self, image: np.ndarray) -> np.ndarray:
        return self._laid(image, self.img_fill)

    def seg(self, classes: np.ndarray) -> np.ndarray:
        return self._laid(classes, self.seg_fill)

    def _laid(self, image: np.ndarray, fill: Any) -> np.ndarray:
        height, width = image.shape[:2]
        if (height, width) == tuple(self.out_hw):
            return image
        shape = (*self.out_hw, *image.shape[2:])
        canvas = np.zeros(shape, image.dtype)  # fresh zero pages cost less than filling
        if not np.all(np.equal(fill, 0)):
            canvas[:] = np.asarray(fill if image.ndim == 3 else np.ravel(fill)[0]).astype(image.dtype)
        canvas[self.top:self.top + height, self.left:self.left + width] = image
        return canvas

    def points(self, points: np.ndarray) -> np.ndarray:
        return points + np.array([self.left, self.top], dtype=np.float32)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return boxes + np.array([self.left, self.top] * 2, dtype=boxes.dtype) if self.left or self.top else boxes

    def keypoints(self, keypoints: np.ndarray, flip_pairs: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        return super().keypoints(keypoints) if self.left or self.top else keypoints

    def masks(self, masks: Masks) -> Masks:
        if self.mask_fill:
            return masks.pad(self.out_hw, self.mask_fill)
        return masks.expand(*self.out_hw, self.top, self.left)


@dataclass(frozen=True, kw_only=True)
class Shift(Warp):
    """Move the image of ``out_hw`` by whole pixels, ``x`` to the right and ``y`` down.

    Args:
        x: columns.
        y: rows.
        img_fill: value of what nothing comes to, or one a channel.
        seg_fill: its class.
    """
    x: int
    y: int
    img_fill: Any = 0
    seg_fill: int = 255

    def image(self, image: np.ndarray) -> np.ndarray:
        return self._shifted(image, self.img_fill)

    def seg(self, classes: np.ndarray) -> np.ndarray:
        return self._shifted(classes, self.seg_fill)

    def _shifted(self, image: np.ndarray, fill: Any) -> np.ndarray:
        result = np.empty_like(image)
        result[:] = np.asarray(fill if image.ndim == 3 else np.ravel(fill)[0]).astype(image.dtype)
        (to_y, from_y), (to_x, from_x) = (_overlap(length, shift) for length, shift in
                                          zip(image.shape, (self.y, self.x)))
        result[to_y, to_x] = image[from_y, from_x]
        return result

    def points(self, points: np.ndarray) -> np.ndarray:
        return points + np.array([self.x, self.y], dtype=points.dtype)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        return boxes + np.array([self.x, self.y] * 2, dtype=boxes.dtype)

    def masks(self, masks: Masks) -> Masks:
        for offset, direction in ((self.x, 'horizontal'), (self.y, 'vertical')):
            masks = masks.translate(self.out_hw, offset, direction) if offset else masks
        return masks


def _overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Where in the shifted axis, and where in the old one, lies what both have."""
    kept = max(length - abs(shift), 0)
    return slice(max(shift, 0), max(shift, 0) + kept), slice(max(-shift, 0), max(-shift, 0) + kept)


@dataclass(frozen=True, kw_only=True)
class Affine(Warp):
    """Move every pixel at (x, y) to ``matrix`` (2, 3) @ (x, y, 1), in OpenCV's coordinates.

    In these, pixel centres are whole numbers. As in 2.x the corners of boxes and polygons are mapped by the matrix as
    they are; points, among them keypoints, are where the pixels go.

    Args:
        matrix: (2, 3) float64.
        img_fill: value of what nothing comes to, or one a channel.
        seg_fill: its class.
        interpolation: mmcv's name of it, for image and bitmaps; semantic maps are warped by nearest neighbour.
    """
    matrix: np.ndarray
    img_fill: Any = 0
    seg_fill: int = 255
    interpolation: str = 'bilinear'

    def image(self, image: np.ndarray) -> np.ndarray:
        return warp_bitmap(image, self.matrix, self.out_hw, self.img_fill, self.interpolation)

    def seg(self, classes: np.ndarray) -> np.ndarray:
        known = classes if classes.dtype in _OPENCV_TYPES else classes.astype(np.float64)
        return warp_bitmap(known, self.matrix, self.out_hw, self.seg_fill, 'nearest').astype(classes.dtype, copy=False)

    def points(self, points: np.ndarray) -> np.ndarray:
        moved = (points - HALF_PIXEL) @ self.matrix[:, :2].T + self.matrix[:, 2] + HALF_PIXEL
        return moved.astype(points.dtype)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        corners = boxes[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]                              # (N, 4, 2)
        moved = corners @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1).astype(boxes.dtype)

    def masks(self, masks: Masks) -> Masks:
        return masks.affine(self.matrix, self.out_hw, interpolation=self.interpolation)


def resize_map(classes: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """A map (H, W) in another size, by nearest neighbour as OpenCV takes it."""
    if classes.dtype in _OPENCV_TYPES:
        return cv2.resize(classes, tuple(hw[::-1]), interpolation=cv2.INTER_NEAREST)
    rows, columns = (nearest_index(old, new) for old, new in zip(classes.shape, hw))
    return classes[rows][:, columns]


def _resized(image: np.ndarray, hw: tuple[int, int], interpolation: str, backend: str) -> np.ndarray:
    if backend == 'cv2':
        return cv2.resize(image, hw[::-1], interpolation=interpolation_flag(interpolation))
    from PIL import Image  # only this backend needs it
    kinds = Image.Resampling
    filters = dict(nearest=kinds.NEAREST, bilinear=kinds.BILINEAR, bicubic=kinds.BICUBIC, area=kinds.BOX,
                   lanczos=kinds.LANCZOS)
    return np.array(Image.fromarray(image).resize(hw[::-1], filters[interpolation]))


# ---------------------------------------------------------------------------------------------- fields of a sample


class FieldKind(NamedTuple):
    """A kind of values in a sample.

    Args:
        fields: the key of the sample under which the keys of this kind are listed.
        move: ``move(value, warp, sample)`` gives the value on the new image.
        per_object: row i belongs to box i, and goes when the box goes.
        default: the keys of a sample that lists none.
    """
    fields: str
    move: Callable[[Any, Warp, Mapping[str, Any]], Any]
    per_object: bool = False
    default: tuple[str, ...] = ()

    def keys(self, sample: Mapping[str, Any]) -> list[str]:
        """The keys of this kind that the sample has a value for."""
        return [key for key in sample.get(self.fields, self.default) if sample.get(key) is not None]


FIELD_KINDS: dict[str, FieldKind] = {}


def register_field_kind(fields: str, move: Callable[[Any, Warp, Mapping[str, Any]], Any], per_object: bool = False,
                        default: tuple[str, ...] = ()) -> None:
    """Have geometric transforms move what a sample lists under ``fields``; arguments as FieldKind.

    Raises:
        ValueError: a kind of that name is registered, with another function.
    """
    known = FIELD_KINDS.get(fields)
    if known is not None and known.move is not move:
        raise ValueError(f"the field kind '{fields}' is registered already")
    FIELD_KINDS[fields] = FieldKind(fields, move, per_object, default)


def _move_boxes(boxes: np.ndarray, warp: Warp, sample: Mapping[str, Any]) -> np.ndarray:
    moved = warp.boxes(boxes)
    return clip_boxes(moved, warp.out_hw) if warp.clip else moved


IMAGES, BOXES = 'img_fields', 'bbox_fields'
register_field_kind(IMAGES, lambda image, warp, sample: warp.image(image), default=('img',))
register_field_kind(BOXES, _move_boxes)
register_field_kind('keypoint_fields', lambda keypoints, warp, sample: warp.keypoints(
    keypoints, sample.get('flip_pairs')), per_object=True)
register_field_kind('mask_fields', lambda masks, warp, sample: warp.masks(masks), per_object=True)
register_field_kind('seg_fields', lambda classes, warp, sample: warp.seg(classes))
# What belongs to objects and lies nowhere, such as a number of a track.
register_field_kind('object_fields', lambda values, warp, sample: values, per_object=True)

# What goes with boxes even where the sample does not list it.
_COMPANIONS = dict(gt_bboxes=('gt_labels', 'gt_masks', 'gt_keypoints'),
                   gt_bboxes_ignore=('gt_labels_ignore', 'gt_masks_ignore'))


def move_fields(sample: dict, warp: Warp, kinds: Iterable[str] | None = None) -> None:
    """Apply ``warp`` to all fields of a sample, in place; only to those of some ``kinds`` where they are given."""
    for kind in FIELD_KINDS.values() if kinds is None else [FIELD_KINDS[name] for name in kinds]:
        for key in kind.keys(sample):
            sample[key] = kind.move(sample[key], warp, sample)


def companions(sample: Mapping[str, Any], boxes_key: str) -> list[str]:
    """The keys whose rows belong to the boxes under ``boxes_key``; of ignored boxes those that end in '_ignore'."""
    if boxes_key not in _COMPANIONS:
        return []
    ignored = boxes_key.endswith('_ignore')
    listed = [key for kind in FIELD_KINDS.values() if kind.per_object for key in kind.keys(sample)
              if key.endswith('_ignore') == ignored]
    return list(dict.fromkeys([*(key for key in _COMPANIONS[boxes_key] if sample.get(key) is not None), *listed]))


def keep_objects(sample: dict, boxes_key: str, keep: np.ndarray) -> None:
    """Leave of the boxes under ``boxes_key``, and of what belongs to them, the rows ``keep`` (N,) bool, in place."""
    if keep.all():
        return
    rows = np.flatnonzero(keep)
    for key in [boxes_key, *companions(sample, boxes_key)]:
        sample[key] = sample[key][rows]
