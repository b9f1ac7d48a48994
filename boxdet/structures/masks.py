"""Masks of the objects of one image: BitmapMasks and PolygonMasks for ground truth, RleMasks for results.

One set of methods; each returns a new object and leaves the old one as it is. Sizes are (height, width), boxes xyxy.
The numbers are mmdetection 2.28's: bitmaps are resized by nearest neighbour, polygons by their corners.

A BitmapMasks draws nothing until pixels are asked for. It keeps what it was made from (polygons, RLE or arrays in their
original size) and two index maps: the source row of each row, and the source column of each column. Resizing, flipping,
padding and cropping only change the maps; the pixels are then read once, in the window of the object.

Letters: N objects, H, W height and width of the masks, R rois, h, w size of a window or of a target.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from boxdet.errors import DataError
from boxdet.geometry.masks import (
    Window,
    compress_rle,
    encode_window,
    nearest_index,
    polygon_area,
    rasterize_polygons,
    rescaled_hw,
    roi_align_axis,
    run_lengths,
)

FLIP_DIRECTIONS = ('horizontal', 'vertical', 'diagonal')


def _positions(index: Any, length: int) -> np.ndarray:
    """Row numbers (n,) from an int, slice, boolean or integer array, tensor or list."""
    if isinstance(index, torch.Tensor):
        index = index.cpu().numpy()
    if isinstance(index, (list, tuple)) and not index:
        index = np.zeros(0, dtype=np.int64)
    return np.atleast_1d(np.arange(length)[index])


def _clipped_crop(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """x1, y1, w, h of a crop inside the image, at least one pixel each way, as 2.x cuts it."""
    x1, y1, x2, y2 = (int(v) for v in np.clip(np.asarray(box), 0, [width, height, width, height]))
    return x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)


def _check_direction(direction: str) -> None:
    if direction not in FLIP_DIRECTIONS:
        raise ValueError(f"flip direction '{direction}' is none of {', '.join(FLIP_DIRECTIONS)}")


def _as_arrays(boxes: Any, index: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rois (R, 4) float32 clipped to the image, and (R,) int64."""
    boxes, index = (v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for v in (boxes, index))
    limits = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(boxes.astype(np.float32).reshape(-1, 4), 0, limits), index.astype(np.int64).reshape(-1)


class _Source:
    """One object in its original size (H, W): a window of pixels, or the polygons or RLE that it is drawn from.

    Drawn once, at the first use, and shared by every BitmapMasks that descends from the same annotation. It travels
    between processes as the RLE of its window.
    """
    __slots__ = ('_made_from', '_window', '_name')

    def __init__(self, made_from: Any, window: Window | None = None, name: str = ''):
        self._made_from = made_from
        self._window = window
        self._name = name

    def window(self) -> Window:
        if self._window is None:
            try:
                self._window = self._draw()
            except (ValueError, TypeError) as error:
                raise DataError(f'{self._name or "mask"}: {error}') from error
            self._made_from = None
        return self._window

    def _draw(self) -> Window:
        segmentation, height, width = self._made_from
        if not isinstance(segmentation, dict):
            return rasterize_polygons(segmentation, (height, width))
        rle = compress_rle(segmentation)
        lengths = run_lengths(rle['counts'])
        if (lengths < 0).any() or lengths.sum() != height * width:
            raise ValueError(f'RLE counts add up to {lengths.sum()}, not to {height} x {width}')
        x0, y0, w, h = (int(v) for v in coco_mask.toBbox(rle))
        return y0, x0, np.ascontiguousarray(coco_mask.decode(rle)[y0:y0 + h, x0:x0 + w])

    def __reduce__(self):
        y0, x0, bitmap = self.window()
        return _unpacked_source, (y0, x0, encode_window((0, 0, bitmap), bitmap.shape), self._name)


def _unpacked_source(y0: int, x0: int, rle: dict, name: str) -> _Source:
    return _Source(None, (y0, x0, coco_mask.decode(rle)), name)


def usable_polygons(segmentation: Any, name: str) -> list[Sequence[float]]:
    """The polygons of three points and more, [x1, y1, x2, y2, ...] each; others are left out as 2.x does.

    Raises:
        DataError: no such polygon, or no list of polygons; ``name`` is what to call it.
    """
    if not isinstance(segmentation, (list, tuple)) or not all(
            isinstance(polygon, (list, tuple, np.ndarray)) for polygon in segmentation):
        raise DataError(f"{name}: 'segmentation' is a list of polygons, each [x1, y1, x2, y2, ...], or an RLE")
    usable = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not usable:
        raise DataError(f"{name}: no polygon of three points or more (x and y of each) in its 'segmentation'")
    return usable


class BitmapMasks:
    """Bitmaps (N, H, W) that are drawn on demand.

    Args:
        masks: (N, H, W) array or N arrays (H, W), non-zero inside the object.
        height, width: H, W.

    Raises:
        ValueError: masks of another size.

    >>> masks = BitmapMasks(np.eye(4, dtype=np.uint8)[None], 4, 4)
    >>> masks.resize((8, 8)).flip('horizontal').areas()
    array([16])
    """

    def __init__(self, masks: Sequence[np.ndarray] | np.ndarray, height: int, width: int):
        for mask in masks:
            if np.shape(mask) != (height, width):
                raise ValueError(f'a mask of shape {np.shape(mask)} among masks of {height} x {width}')
        self.height, self.width = int(height), int(width)
        self._sources = [_Source(None, (0, 0, np.asarray(mask).astype(np.uint8, copy=False))) for mask in masks]
        self._rows = np.arange(self.height, dtype=np.int32)  # source row of each row, -1 for padding
        self._cols = np.arange(self.width, dtype=np.int32)

    @classmethod
    def from_coco(cls, segmentations: Sequence[Any], height: int, width: int,
                  names: Sequence[str] | None = None) -> BitmapMasks:
        """Masks from COCO's ``segmentation`` values: lists of polygons, or RLE with compressed or plain counts.

        Args:
            names: what errors call each of them, e.g. 'annotations.json: annotation 17'.

        Raises:
            DataError: an RLE of another size, or no polygon of three points; when drawn, also counts that do not fit
                the size.
        """
        result = cls([], height, width)
        names = names or [f'mask {i}' for i in range(len(segmentations))]
        for segmentation, name in zip(segmentations, names):
            if not isinstance(segmentation, dict):
                segmentation = usable_polygons(segmentation, name)
            elif 'counts' not in segmentation or 'size' not in segmentation:
                raise DataError(f"{name}: an RLE has 'size' and 'counts', not {', '.join(segmentation) or 'nothing'}")
            elif tuple(segmentation['size']) != (height, width):
                raise DataError(f"{name}: RLE of size {tuple(segmentation['size'])} on an image of {(height, width)}")
            result._sources.append(_Source((segmentation, height, width), name=name))
        return result

    @classmethod
    def from_boxes(cls, boxes: np.ndarray, height: int, width: int) -> BitmapMasks:
        """Full boxes (N, 4), cut to whole pixels."""
        result = cls([], height, width)
        limits = np.array([width, height, width, height])
        for x1, y1, x2, y2 in np.clip(boxes, 0, limits).astype(np.int64):
            full = np.ones((max(y2 - y1, 0), max(x2 - x1, 0)), dtype=np.uint8)
            result._sources.append(_Source(None, (int(y1), int(x1), full)))
        return result

    def _derived(self, sources: list[_Source], rows: np.ndarray, cols: np.ndarray) -> BitmapMasks:
        result = BitmapMasks([], len(rows), len(cols))
        result._sources, result._rows, result._cols = sources, rows, cols
        return result

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: Any) -> BitmapMasks:
        return self._derived([self._sources[i] for i in _positions(index, len(self))], self._rows, self._cols)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._bitmap(i) for i in range(len(self)))

    def __repr__(self) -> str:
        return f'BitmapMasks({len(self)} of {self.height} x {self.width})'

    @staticmethod
    def cat(parts: Sequence[BitmapMasks]) -> BitmapMasks:
        """Join masks of one size, in order."""
        first = parts[0]
        if any((p.height, p.width) != (first.height, first.width) for p in parts):
            raise ValueError(f'masks of different sizes: {parts}')
        if not all(np.array_equal(p._rows, first._rows) and np.array_equal(p._cols, first._cols) for p in parts):
            parts = [p._settled() for p in parts]
            first = parts[0]
        return first._derived([s for p in parts for s in p._sources], first._rows, first._cols)

    def _settled(self) -> BitmapMasks:
        """The same pixels as sources of their own, with maps that are the identity."""
        result = BitmapMasks([], self.height, self.width)
        result._sources = [_Source(None, self._window(i)) for i in range(len(self))]
        return result

    # -- geometry: only the maps change

    def resize(self, out_hw: tuple[int, int]) -> BitmapMasks:
        """Nearest neighbour, as OpenCV takes it."""
        height, width = (int(v) for v in out_hw)
        return self._derived(self._sources, self._rows[nearest_index(self.height, height)],
                             self._cols[nearest_index(self.width, width)])

    def rescale(self, scale: float | tuple[int, int]) -> BitmapMasks:
        """``resize`` that keeps the ratio; ``scale`` as in ``geometry.masks.rescaled_hw``."""
        return self.resize(rescaled_hw((self.height, self.width), scale))

    def flip(self, direction: str = 'horizontal') -> BitmapMasks:
        """Mirror 'horizontal', 'vertical' or 'diagonal' (both)."""
        _check_direction(direction)
        rows = self._rows if direction == 'horizontal' else self._rows[::-1]
        cols = self._cols if direction == 'vertical' else self._cols[::-1]
        return self._derived(self._sources, rows, cols)

    def pad(self, out_hw: tuple[int, int]) -> BitmapMasks:
        """Add empty rows below and columns on the right up to ``out_hw``."""
        return self.expand(out_hw[0], out_hw[1], 0, 0)

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> BitmapMasks:
        """Lay the masks on a larger empty canvas at ``top``, ``left``."""
        if min(top, left, expanded_h - top - self.height, expanded_w - left - self.width) < 0:
            raise ValueError(f'{self.height} x {self.width} at {(top, left)} does not fit {(expanded_h, expanded_w)}')
        return self._derived(self._sources, _shifted(self._rows, top, expanded_h),
                             _shifted(self._cols, left, expanded_w))

    def translate(self, out_hw: tuple[int, int], offset: int, direction: str = 'horizontal') -> BitmapMasks:
        """Shift by ``offset`` pixels to the right or down ('vertical') within masks of size ``out_hw``."""
        shift_y, shift_x = (offset, 0) if direction == 'vertical' else (0, offset)
        return self._derived(self._sources, _shifted(self._rows, shift_y, out_hw[0]),
                             _shifted(self._cols, shift_x, out_hw[1]))

    def crop(self, box: Sequence[float]) -> BitmapMasks:
        """The part inside ``box`` (4,), which is clipped to the masks and cut to whole pixels."""
        x1, y1, w, h = _clipped_crop(box, self.height, self.width)
        return self._derived(self._sources, self._rows[y1:y1 + h], self._cols[x1:x1 + w])

    # -- pixels

    def union(self) -> np.ndarray:
        """(H, W) uint8, 1 where any of the masks is."""
        result = np.zeros((self.height, self.width), dtype=np.uint8)
        for i in range(len(self)):
            y0, x0, bitmap = self._window(i)
            result[y0:y0 + bitmap.shape[0], x0:x0 + bitmap.shape[1]] |= bitmap != 0
        return result

    def without(self, region: np.ndarray) -> BitmapMasks:
        """The masks where ``region`` (H, W) is 0: what something in front leaves visible.

        Raises:
            ValueError: a region of another size.
        """
        if region.shape != (self.height, self.width):
            raise ValueError(f'a region of shape {region.shape} for masks of {self.height} x {self.width}')
        result = BitmapMasks([], self.height, self.width)
        for i in range(len(self)):
            y0, x0, bitmap = self._window(i)
            free = region[y0:y0 + bitmap.shape[0], x0:x0 + bitmap.shape[1]] == 0
            result._sources.append(_Source(None, (y0, x0, bitmap * free)))
        return result

    def _window(self, i: int) -> Window:
        """Mask i after all maps, as a window of (H, W)."""
        y0, x0, bitmap = self._sources[i].window()
        # Maps are monotonic between padded ends, so the positions that show the object are contiguous.
        ys = np.flatnonzero((self._rows >= y0) & (self._rows < y0 + bitmap.shape[0]))
        xs = np.flatnonzero((self._cols >= x0) & (self._cols < x0 + bitmap.shape[1]))
        if not len(ys) or not len(xs):
            return 0, 0, np.zeros((0, 0), dtype=np.uint8)
        return int(ys[0]), int(xs[0]), bitmap[self._rows[ys] - y0][:, self._cols[xs] - x0]

    def _bitmap(self, i: int) -> np.ndarray:
        result = np.zeros((self.height, self.width), dtype=np.uint8)
        y0, x0, bitmap = self._window(i)
        result[y0:y0 + bitmap.shape[0], x0:x0 + bitmap.shape[1]] = bitmap
        return result

    def to_bitmaps(self) -> np.ndarray:
        """(N, H, W) uint8."""
        return np.stack(list(self)) if len(self) else np.zeros((0, self.height, self.width), dtype=np.uint8)

    to_ndarray = to_bitmaps

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) uint8, under 2.x's name."""
        return self.to_bitmaps()

    def to_tensor(self, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        """(N, H, W) tensor."""
        return torch.from_numpy(self.to_bitmaps()).to(device, dtype)

    def to_rle(self) -> RleMasks:
        """Encode without building bitmaps of the image's size."""
        size = self.height, self.width
        return RleMasks([encode_window(self._window(i), size) for i in range(len(self))], *size)

    def areas(self) -> np.ndarray:
        """(N,) pixels inside."""
        return np.array([np.count_nonzero(self._window(i)[2]) for i in range(len(self))], dtype=np.int64)

    def bboxes(self) -> np.ndarray:
        """(N, 4) float32 tight boxes; zeros for an empty mask."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for i in range(len(self)):
            y0, x0, bitmap = self._window(i)
            ys, xs = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
            if len(ys):
                boxes[i] = x0 + xs[0], y0 + ys[0], x0 + xs[-1] + 1, y0 + ys[-1] + 1
        return boxes

    get_bboxes = bboxes

    def crop_and_resize(self, boxes: Any, out_hw: tuple[int, int], index: Any,
                        device: torch.device | str = 'cpu') -> torch.Tensor:
        """Mask targets of rois: RoIAlign of each roi's bitmap (aligned, adaptive sampling), then ``>= 0.5``.

        Args:
            boxes: (R, 4) tensor or array; clipped to the masks first.
            out_hw: h, w of a target.
            index: (R,) the mask of each roi.

        Returns:
            (R, h, w) float32 of 0 and 1 on ``device``.
        """
        boxes, index = _as_arrays(boxes, index, self.height, self.width)
        targets = np.zeros((len(boxes), *out_hw), dtype=np.float32)
        if len(boxes):
            order = np.argsort(index, kind='stable')
            targets[order] = self._align(boxes[order], index[order], out_hw) >= 0.5
        return torch.from_numpy(targets).to(device)

    def _align(self, boxes: np.ndarray, index: np.ndarray, out_hw: tuple[int, int]) -> np.ndarray:
        """RoIAlign (R, h, w) float32 of boxes (R, 4), whose masks ``index`` (R,) ascend; reads the sources' windows."""
        objects, starts = np.unique(index, return_index=True)
        windows = [self._sources[i].window() for i in objects]
        spans = np.array([(y0, x0, *bitmap.shape) for y0, x0, bitmap in windows])
        y0, x0, heights, widths = np.repeat(spans, np.diff(starts, append=len(index)), axis=0).T
        over_y, at_y = roi_align_axis(boxes[:, 1], boxes[:, 3], out_hw[0], self.height, self._rows, y0, heights)
        over_x, at_x = roi_align_axis(boxes[:, 0], boxes[:, 2], out_hw[1], self.width, self._cols, x0, widths)
        values = np.empty((len(boxes), *out_hw), dtype=np.float32)
        # RoIs of one object share its pixels: one matrix product serves them all. The products are torch's: numpy's
        # have threads of their own, which wait for one another tens of milliseconds where loaders keep the cores busy.
        over_y, over_x, out = (torch.from_numpy(array) for array in (over_y, over_x, values))
        with torch.autocast('cpu', enabled=False):
            for (_, _, bitmap), start, stop in zip(windows, starts, [*starts[1:], len(index)]):
                height, width = bitmap.shape
                left = over_y[at_y[start]:at_y[stop]].view(-1, height)                   # (n * h, window height)
                right = over_x[at_x[start]:at_x[stop]].view(-1, out_hw[1], width)        # (n, w, window width)
                half = (left @ torch.from_numpy(bitmap.astype(np.float32))).view(stop - start, out_hw[0], width)
                torch.bmm(half, right.transpose(1, 2), out=out[start:stop])
        return values


def _shifted(index: np.ndarray, shift: int, length: int) -> np.ndarray:
    """An index map of ``length`` whose content stands ``shift`` further on."""
    result = np.full(length, -1, dtype=np.int32)
    start, stop = max(shift, 0), min(len(index) + shift, length)
    if stop > start:
        result[start:stop] = index[start - shift:stop - shift]
    return result


class PolygonMasks:
    """Polygons of N objects on an image of H x W; drawn only in ``crop_and_resize`` and ``to_bitmaps``.

    Args:
        masks: for each object a list of polygons, each a flat array x0, y0, x1, y1, ... (2 * P,).
        height, width: H, W.
    """

    def __init__(self, masks: Sequence[Sequence[np.ndarray]], height: int, width: int):
        self.masks = [[np.asarray(p, dtype=np.float64) for p in polygons] for polygons in masks]
        self.height, self.width = int(height), int(width)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Any) -> PolygonMasks:
        return PolygonMasks([self.masks[i] for i in _positions(index, len(self))], self.height, self.width)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return iter(self.masks)

    def __repr__(self) -> str:
        return f'PolygonMasks({len(self)} of {self.height} x {self.width})'

    @staticmethod
    def cat(parts: Sequence[PolygonMasks]) -> PolygonMasks:
        """Join masks of one size, in order."""
        first = parts[0]
        if any((p.height, p.width) != (first.height, first.width) for p in parts):
            raise ValueError(f'masks of different sizes: {parts}')
        return PolygonMasks([polygons for p in parts for polygons in p.masks], first.height, first.width)

    def _mapped(self, scale_xy: tuple[float, float], shift_xy: tuple[float, float],
                out_hw: tuple[int, int]) -> PolygonMasks:
        """Every corner times ``scale_xy`` plus ``shift_xy``."""
        scale, shift = np.array(scale_xy, dtype=np.float64), np.array(shift_xy, dtype=np.float64)
        return PolygonMasks([[(p.reshape(-1, 2) * scale + shift).ravel() for p in polygons] for polygons in self.masks],
                            *out_hw)

    def resize(self, out_hw: tuple[int, int]) -> PolygonMasks:
        """Scale the corners."""
        return self._mapped((out_hw[1] / self.width, out_hw[0] / self.height), (0, 0), out_hw)

    def rescale(self, scale: float | tuple[int, int]) -> PolygonMasks:
        """``resize`` that keeps the ratio; ``scale`` as in ``geometry.masks.rescaled_hw``."""
        return self.resize(rescaled_hw((self.height, self.width), scale))

    def flip(self, direction: str = 'horizontal') -> PolygonMasks:
        """Mirror 'horizontal', 'vertical' or 'diagonal' (both)."""
        _check_direction(direction)
        sign_x, shift_x = (1, 0) if direction == 'vertical' else (-1, self.width)
        sign_y, shift_y = (1, 0) if direction == 'horizontal' else (-1, self.height)
        return self._mapped((sign_x, sign_y), (shift_x, shift_y), (self.height, self.width))

    def pad(self, out_hw: tuple[int, int]) -> PolygonMasks:
        """A larger canvas; the corners stay."""
        return PolygonMasks(self.masks, *out_hw)

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> PolygonMasks:
        """Lay the masks on a larger empty canvas at ``top``, ``left``."""
        return self._mapped((1, 1), (left, top), (expanded_h, expanded_w))

    def translate(self, out_hw: tuple[int, int], offset: int, direction: str = 'horizontal') -> PolygonMasks:
        """Shift by ``offset`` pixels to the right or down ('vertical') within masks of size ``out_hw``."""
        return self._mapped((1, 1), (0, offset) if direction == 'vertical' else (offset, 0), out_hw)

    def crop(self, box: Sequence[float]) -> PolygonMasks:
        """The part inside ``box`` (4,), which is clipped to the masks; corners outside stay, drawing cuts them."""
        x1, y1, w, h = _clipped_crop(box, self.height, self.width)
        return self._mapped((1, 1), (-x1, -y1), (h, w))

    def _bitmap(self, i: int) -> np.ndarray:
        result = np.zeros((self.height, self.width), dtype=np.uint8)
        y0, x0, bitmap = rasterize_polygons(self.masks[i], (self.height, self.width))
        result[y0:y0 + bitmap.shape[0], x0:x0 + bitmap.shape[1]] = bitmap
        return result

    def to_bitmaps(self) -> np.ndarray:
        """(N, H, W) uint8."""
        if not len(self):
            return np.zeros((0, self.height, self.width), dtype=np.uint8)
        return np.stack([self._bitmap(i) for i in range(len(self))])

    to_ndarray = to_bitmaps

    def to_tensor(self, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        """(N, H, W) tensor."""
        return torch.from_numpy(self.to_bitmaps()).to(device, dtype)

    def to_rle(self) -> RleMasks:
        """Encode without building bitmaps of the image's size."""
        size = self.height, self.width
        return RleMasks([encode_window(rasterize_polygons(p, size), size) for p in self.masks], *size)

    def areas(self) -> np.ndarray:
        """(N,) float64 square pixels: the sum over each object's polygons."""
        return np.array([sum(polygon_area(p) for p in polygons) for polygons in self.masks], dtype=np.float64)

    def bboxes(self) -> np.ndarray:
        """(N, 4) float32 boxes around the corners; zeros for an object without polygons."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, polygons in zip(boxes, self.masks):
            if polygons:
                corners = np.concatenate(polygons).reshape(-1, 2)
                box[:] = *corners.min(axis=0), *corners.max(axis=0)
        return boxes

    get_bboxes = bboxes

    def crop_and_resize(self, boxes: Any, out_hw: tuple[int, int], index: Any,
                        device: torch.device | str = 'cpu') -> torch.Tensor:
        """Mask targets of rois: the polygons are moved and scaled into each roi and drawn there.

        Args, returns: as ``BitmapMasks.crop_and_resize``. A roi counts as one pixel wide and high at least.
        """
        boxes, index = _as_arrays(boxes, index, self.height, self.width)
        targets = np.zeros((len(boxes), *out_hw), dtype=np.float32)
        for target, (x1, y1, x2, y2), i in zip(targets, boxes.astype(np.float64), index):
            scale = np.array([out_hw[1] / max(x2 - x1, 1), out_hw[0] / max(y2 - y1, 1)])
            moved = [((p.reshape(-1, 2) - (x1, y1)) * scale).ravel() for p in self.masks[i]]
            y0, x0, bitmap = rasterize_polygons(moved, out_hw)
            target[y0:y0 + bitmap.shape[0], x0:x0 + bitmap.shape[1]] = bitmap
        return torch.from_numpy(targets).to(device)


class RleMasks(Sequence):
    """A sequence of N COCO RLE dicts ``{'size': [H, W], 'counts': bytes}``: masks of results, in original pixels.

    ``masks[i]`` is a dict; a slice, a boolean or an integer array selects a new RleMasks.

    Args:
        rles: with compressed (bytes or text) or plain counts.
        height, width: H, W; those of the first RLE when left out.
    """

    def __init__(self, rles: Sequence[dict], height: int | None = None, width: int | None = None):
        self.rles = [compress_rle(rle) for rle in rles]
        if height is None or width is None:
            height, width = self.rles[0]['size'] if self.rles else (0, 0)
        self.height, self.width = int(height), int(width)

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (int, np.integer)):
            return self.rles[index]
        return RleMasks([self.rles[i] for i in _positions(index, len(self))], self.height, self.width)

    def __repr__(self) -> str:
        return f'RleMasks({len(self)} of {self.height} x {self.width})'

    @staticmethod
    def cat(parts: Sequence[RleMasks]) -> RleMasks:
        """Join masks of one size, in order."""
        first = parts[0]
        if any((p.height, p.width) != (first.height, first.width) for p in parts):
            raise ValueError(f'masks of different sizes: {parts}')
        return RleMasks([rle for p in parts for rle in p.rles], first.height, first.width)

    def to_bitmap_masks(self) -> BitmapMasks:
        """The same masks as a BitmapMasks, whose geometry is cheap."""
        return BitmapMasks.from_coco(self.rles, self.height, self.width)

    def resize(self, out_hw: tuple[int, int]) -> RleMasks:
        """Nearest neighbour."""
        return self.to_bitmap_masks().resize(out_hw).to_rle()

    def rescale(self, scale: float | tuple[int, int]) -> RleMasks:
        """``resize`` that keeps the ratio; ``scale`` as in ``geometry.masks.rescaled_hw``."""
        return self.resize(rescaled_hw((self.height, self.width), scale))

    def flip(self, direction: str = 'horizontal') -> RleMasks:
        """Mirror 'horizontal', 'vertical' or 'diagonal' (both)."""
        return self.to_bitmap_masks().flip(direction).to_rle()

    def pad(self, out_hw: tuple[int, int]) -> RleMasks:
        """Add empty rows below and columns on the right up to ``out_hw``."""
        return self.to_bitmap_masks().pad(out_hw).to_rle()

    def crop(self, box: Sequence[float]) -> RleMasks:
        """The part inside ``box`` (4,), which is clipped to the masks and cut to whole pixels."""
        return self.to_bitmap_masks().crop(box).to_rle()

    def crop_and_resize(self, boxes: Any, out_hw: tuple[int, int], index: Any,
                        device: torch.device | str = 'cpu') -> torch.Tensor:
        """As ``BitmapMasks.crop_and_resize``."""
        return self.to_bitmap_masks().crop_and_resize(boxes, out_hw, index, device)

    def to_bitmaps(self) -> np.ndarray:
        """(N, H, W) uint8; one byte a pixel, so decode what you need only."""
        if not self.rles:
            return np.zeros((0, self.height, self.width), dtype=np.uint8)
        return np.ascontiguousarray(coco_mask.decode(self.rles).transpose(2, 0, 1))

    def to_rle(self) -> RleMasks:
        """Itself."""
        return self

    def areas(self) -> np.ndarray:
        """(N,) pixels inside."""
        # One at a time: pycocotools 2.0 with numpy 2 fails on lists of more than 255.
        return np.array([coco_mask.area(rle) for rle in self.rles], dtype=np.int64)

    def bboxes(self) -> np.ndarray:
        """(N, 4) float32 tight boxes."""
        if not self.rles:
            return np.zeros((0, 4), dtype=np.float32)
        boxes = np.asarray(coco_mask.toBbox(self.rles), dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return boxes
