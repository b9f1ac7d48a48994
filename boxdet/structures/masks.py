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
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask

from boxdet.errors import ArgumentError, DataError
from boxdet.geometry.masks import (
    Window,
    compress_rle,
    encode_window,
    middle_of,
    nearest_index,
    polygon_area,
    rasterize_polygons,
    rescaled_hw,
    resize_bitmap,
    roi_align_axis,
    rotation_matrix,
    run_lengths,
    shear_matrix,
    translation_matrix,
    warp_bitmap,
)

Array = np.ndarray | torch.Tensor
Index = int | slice | Sequence[int] | Sequence[bool] | np.ndarray | torch.Tensor  # of rows
Polygons = Sequence[Sequence[float]] | Sequence[np.ndarray]  # x1, y1, x2, y2, ... each
Segmentation = dict | Polygons  # COCO's: RLE, or polygons
FLIP_DIRECTIONS = ('horizontal', 'vertical', 'diagonal')


def _positions(index: Index, length: int) -> np.ndarray:
    """Row numbers (n,) from an int, slice, boolean or integer array, tensor or list."""
    if isinstance(index, torch.Tensor):
        index = index.cpu().numpy()
    if isinstance(index, (list, tuple)) and not index:
        index = np.zeros(0, dtype=np.int64)
    if isinstance(index, np.ndarray) and index.dtype.kind not in 'biu':
        raise ArgumentError(f'an index of rows is of integers or bools, not of {index.dtype}')
    return np.atleast_1d(np.arange(length)[index])


def _clipped_crop(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """x1, y1, w, h of a crop inside the image, at least one pixel each way, as 2.x cuts it."""
    if np.shape(box) != (4,):
        raise ArgumentError(f'a crop is one box (4,), not {np.shape(box)}')
    x1, y1, x2, y2 = (int(v) for v in np.clip(np.asarray(box), 0, [width, height, width, height]))
    return x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)


def _check_direction(direction: str) -> None:
    if direction not in FLIP_DIRECTIONS:
        raise ArgumentError(f"flip direction '{direction}' is none of {', '.join(FLIP_DIRECTIONS)}")


def _as_arrays(boxes: Array, index: Array | Sequence[int], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rois (R, 4) float32 clipped to the image, and (R,) int64."""
    boxes, index = (v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for v in (boxes, index))
    limits = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(boxes.astype(np.float32).reshape(-1, 4), 0, limits), index.astype(np.int64).reshape(-1)


class _Source:
    """One object in its original size (H, W): a window of pixels, or the polygons or RLE that it is drawn from.

    Drawn once, at the first use, and shared by every BitmapMasks that descends from the same annotation. It travels
    between processes as the RLE of its window.
    """
    __slots__ = ('_made_from', '_name', '_window', 'absent')

    def __init__(self, made_from: tuple[Segmentation, int, int] | None, window: Window | None = None, name: str = '',
                 absent: bool = False):
        self._made_from = made_from
        self._window = None if window is None else _with_a_pixel(window)
        self._name = name
        self.absent = absent  # not annotated: which pixels are its own is unknown

    def window(self) -> Window:
        if self._window is None:
            try:
                self._window = _with_a_pixel(self._draw())
            except (ValueError, TypeError) as error:
                raise DataError(f'{self._name or "mask"}: {error}') from error
            self._made_from = None
        return self._window

    def _draw(self) -> Window:
        assert self._made_from is not None  # where there is no window, there is what it is drawn from
        segmentation, height, width = self._made_from
        if not isinstance(segmentation, dict):
            return rasterize_polygons(segmentation, (height, width))
        rle = compress_rle(segmentation)
        lengths = run_lengths(rle['counts'])
        if (lengths < 0).any() or lengths.sum() != height * width:
            raise ArgumentError(f'RLE counts add up to {lengths.sum()}, not to {height} x {width}')
        x0, y0, w, h = (int(v) for v in coco_mask.toBbox(rle))
        return y0, x0, np.ascontiguousarray(coco_mask.decode(rle)[y0:y0 + h, x0:x0 + w])

    def __reduce__(self):
        y0, x0, bitmap = self.window()
        if bitmap.dtype != np.uint8:
            return _Source, (None, (y0, x0, bitmap), self._name)
        return _unpacked_source, (y0, x0, encode_window((0, 0, bitmap), bitmap.shape), self._name, self.absent)


def _with_a_pixel(window: Window) -> Window:
    """An object without pixels as a window of one that is 0: arrays of no rows would be a case of their own."""
    return window if window[2].size else (0, 0, np.zeros((1, 1), dtype=window[2].dtype))


def _as_pixels(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint8 of 0 and 1, or float32."""
    mask = np.asarray(mask)
    if mask.dtype.kind == 'f':
        return mask.astype(np.float32, copy=False)
    return mask if mask.dtype == np.uint8 and mask.max(initial=0) <= 1 else (mask != 0).astype(np.uint8)


def _generator(rng: np.random.RandomState | int | None) -> np.random.RandomState:
    """What draws random numbers: numpy's global state, a new one from a seed, or ``rng`` itself."""
    if rng is None:
        return np.random.mtrand._rand
    return np.random.RandomState(rng) if isinstance(rng, (int, np.integer)) else rng


def _unpacked_source(y0: int, x0: int, rle: dict, name: str, absent: bool = False) -> _Source:
    return _Source(None, (y0, x0, coco_mask.decode(rle)), name, absent)


def usable_polygons(segmentation: object, name: str) -> list[Sequence[float]]:
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
        masks: (N, H, W) array or N arrays (H, W), non-zero inside the object; floats (``crop_and_resize`` without
            ``binarize``) stay as they are.
        height: H.
        width: W.

    Raises:
        ValueError: masks of another size.

    >>> masks = BitmapMasks(np.eye(4, dtype=np.uint8)[None], 4, 4)
    >>> masks.resize((8, 8)).flip('horizontal').areas
    array([16])
    """

    def __init__(self, masks: Sequence[np.ndarray] | np.ndarray, height: int, width: int):
        for mask in masks:
            if np.shape(mask) != (height, width):
                raise ArgumentError(f'a mask of shape {np.shape(mask)} among masks of {height} x {width}')
        self.height, self.width = int(height), int(width)
        self._sources = [_Source(None, (0, 0, _as_pixels(mask))) for mask in masks]
        self._rows = np.arange(self.height, dtype=np.int32)  # source row of each row, -1 for padding
        self._cols = np.arange(self.width, dtype=np.int32)

    @classmethod
    def from_coco(cls, segmentations: Sequence[Segmentation], height: int, width: int,
                  names: Sequence[str] | None = None) -> BitmapMasks:
        """Masks from COCO's ``segmentation`` values: lists of polygons, or RLE with compressed or plain counts.

        Args:
            segmentations: N; None for an object that nobody drew (see ``absent``).
            height: H.
            width: W.
            names: what errors call each of them, e.g. 'annotations.json: annotation 17'.

        Raises:
            DataError: an RLE of another size, or no polygon of three points; when drawn, also counts that do not fit
                the size.
        """
        result = cls([], height, width)
        names = names or [f'mask {i}' for i in range(len(segmentations))]
        for segmentation, name in zip(segmentations, names):
            if segmentation is None:
                result._sources.append(_Source(None, (0, 0, np.zeros((0, 0), dtype=np.uint8)), name, absent=True))
                continue
            if not isinstance(segmentation, dict):
                segmentation = usable_polygons(segmentation, name)
            elif 'counts' not in segmentation or 'size' not in segmentation:
                raise DataError(f"{name}: an RLE has 'size' and 'counts', not {', '.join(segmentation) or 'nothing'}")
            elif not isinstance(segmentation['size'], (list, tuple)):
                raise DataError(f"{name}: 'size' of an RLE is [height, width], not {segmentation['size']!r}")
            elif not isinstance(segmentation['counts'], (str, bytes, list, tuple)):
                raise DataError(f"{name}: 'counts' of an RLE are a list of numbers or a text, not "
                                f"{segmentation['counts']!r}")
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

    def __getitem__(self, index: Index) -> BitmapMasks:
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
            raise ArgumentError(f'masks of different sizes: {parts}')
        if not all(np.array_equal(p._rows, first._rows) and np.array_equal(p._cols, first._cols) for p in parts):
            parts = [p._settled() for p in parts]
            first = parts[0]
        return first._derived([s for p in parts for s in p._sources], first._rows, first._cols)

    def _settled(self) -> BitmapMasks:
        """The same pixels as sources of their own, with maps that are the identity."""
        result = BitmapMasks([], self.height, self.width)
        result._sources = [_Source(None, self._window(i), absent=source.absent)
                           for i, source in enumerate(self._sources)]
        return result

    @classmethod
    def random(cls, num_masks: int = 3, height: int = 32, width: int = 32, dtype: npt.DTypeLike = np.uint8,
               rng: np.random.RandomState | int | None = None) -> BitmapMasks:
        """Random bitmaps of which nine tenths of the pixels are 1, for tests.

        Args:
            num_masks: N.
            height: H.
            width: W.
            dtype: of the bitmaps.
            rng: where random numbers come from, or a seed.
        """
        drawn = _generator(rng).rand(num_masks, height, width)
        return cls((drawn > 0.1).astype(dtype), height, width)

    # -- geometry: only the maps change, where a result is a selection of rows and columns

    def resize(self, out_shape: tuple[int, int], interpolation: str = 'nearest') -> BitmapMasks:
        """Nearest neighbour as OpenCV takes it, or what mmcv calls ``interpolation``, which draws the bitmaps."""
        height, width = (int(v) for v in out_shape)
        if interpolation != 'nearest':
            return BitmapMasks([resize_bitmap(mask, (height, width), interpolation) for mask in self], height, width)
        return self._derived(self._sources, self._rows[nearest_index(self.height, height)],
                             self._cols[nearest_index(self.width, width)])

    def rescale(self, scale: float | tuple[int, int], interpolation: str = 'nearest') -> BitmapMasks:
        """``resize`` that keeps the ratio; ``scale`` as in ``geometry.masks.rescaled_hw``."""
        return self.resize(rescaled_hw((self.height, self.width), scale), interpolation)

    def flip(self, flip_direction: str = 'horizontal') -> BitmapMasks:
        """Mirror 'horizontal', 'vertical' or 'diagonal' (both)."""
        _check_direction(flip_direction)
        rows = self._rows if flip_direction == 'horizontal' else self._rows[::-1]
        cols = self._cols if flip_direction == 'vertical' else self._cols[::-1]
        return self._derived(self._sources, rows, cols)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Add rows below and columns on the right up to ``out_shape``, filled with ``pad_val``."""
        if not pad_val:
            return self.expand(out_shape[0], out_shape[1], 0, 0)
        ends = ((0, out_shape[0] - self.height), (0, out_shape[1] - self.width))
        return BitmapMasks([np.pad(mask, ends, constant_values=pad_val) for mask in self], *out_shape)

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> BitmapMasks:
        """Lay the masks on a larger empty canvas at ``top``, ``left``."""
        if min(top, left, expanded_h - top - self.height, expanded_w - left - self.width) < 0:
            raise ArgumentError(f'{self.height} x {self.width} at {(top, left)} does not fit '
                                f'{(expanded_h, expanded_w)}')
        return self._derived(self._sources, _shifted(self._rows, top, expanded_h),
                             _shifted(self._cols, left, expanded_w))

    def affine(self, matrix: np.ndarray, out_shape: tuple[int, int], fill_val: int = 0,
               interpolation: str = 'bilinear') -> BitmapMasks:
        """Map every pixel at (x, y) to ``matrix`` (2, 3) @ (x, y, 1), by OpenCV's ``warpAffine``; draws the bitmaps.

        Args:
            matrix: in OpenCV's coordinates, in which pixel centres are whole numbers.
            out_shape: H, W of the result.
            fill_val: what stands where nothing of the masks comes to lie.
            interpolation: mmcv's name of it.
        """
        return BitmapMasks([warp_bitmap(mask, matrix, out_shape, fill_val, interpolation) for mask in self],
                              *out_shape)

    def translate(self, out_shape: tuple[int, int], offset: float, direction: str = 'horizontal', fill_val: int = 0,
                  interpolation: str = 'bilinear') -> BitmapMasks:
        """Shift by ``offset`` pixels to the right or down ('vertical') within masks of size ``out_shape``.

        Args: as ``affine``.
        """
        if fill_val or offset != int(offset):
            return self.affine(translation_matrix(offset, direction), out_shape, fill_val, interpolation)
        shift_y, shift_x = (int(offset), 0) if direction == 'vertical' else (0, int(offset))
        return self._derived(self._sources, _shifted(self._rows, shift_y, out_shape[0]),
                             _shifted(self._cols, shift_x, out_shape[1]))

    def shear(self, out_shape: tuple[int, int], magnitude: float, direction: str = 'horizontal',
              border_value: int = 0, interpolation: str = 'bilinear') -> BitmapMasks:
        """Shift each row by ``magnitude`` times its number, or each column ('vertical').

        Args: as ``affine``.
        """
        return self.affine(shear_matrix(magnitude, direction), out_shape, border_value, interpolation)

    def rotate(self, out_shape: tuple[int, int], angle: float, center: Sequence[float] | None = None,
               scale: float = 1.0, fill_val: int = 0, interpolation: str = 'bilinear') -> BitmapMasks:
        """Turn clockwise by ``angle`` degrees about ``center`` (x, y), the middle of the masks by default.

        Args: as ``affine``; ``scale`` enlarges.
        """
        matrix = rotation_matrix(angle, middle_of(self.height, self.width) if center is None else center, scale)
        return self.affine(matrix, out_shape, fill_val, interpolation)

    def crop(self, bbox: Sequence[float]) -> BitmapMasks:
        """The part inside ``bbox`` (4,), which is clipped to the masks and cut to whole pixels."""
        x1, y1, w, h = _clipped_crop(bbox, self.height, self.width)
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
            raise ArgumentError(f'a region of shape {region.shape} for masks of {self.height} x {self.width}')
        result = BitmapMasks([], self.height, self.width)
        for i in range(len(self)):
            y0, x0, bitmap = self._window(i)
            free = region[y0:y0 + bitmap.shape[0], x0:x0 + bitmap.shape[1]] == 0
            result._sources.append(_Source(None, (y0, x0, bitmap * free), absent=self._sources[i].absent))
        return result

    def _window(self, i: int) -> Window:
        """Mask i after all maps, as a window of (H, W)."""
        y0, x0, bitmap = self._sources[i].window()
        # Maps are monotonic between padded ends, so the positions that show the object are contiguous.
        ys = np.flatnonzero((self._rows >= y0) & (self._rows < y0 + bitmap.shape[0]))
        xs = np.flatnonzero((self._cols >= x0) & (self._cols < x0 + bitmap.shape[1]))
        if not len(ys) or not len(xs):
            return 0, 0, np.zeros((0, 0), dtype=bitmap.dtype)
        return int(ys[0]), int(xs[0]), bitmap[self._rows[ys] - y0][:, self._cols[xs] - x0]

    def _bitmap(self, i: int) -> np.ndarray:
        y0, x0, bitmap = self._window(i)
        result = np.zeros((self.height, self.width), dtype=bitmap.dtype)
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

    @property
    def absent(self) -> np.ndarray:
        """(N,) bool: objects without an annotated mask, from which none can be learned."""
        return np.array([source.absent for source in self._sources], dtype=bool)

    @property
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

    def crop_and_resize(self, bboxes: Array, out_shape: tuple[int, int], inds: Array,
                        device: torch.device | str = 'cpu',
                        interpolation: str = 'bilinear', binarize: bool = True) -> BitmapMasks:
        """2.x's form of ``roi_targets``: the targets as BitmapMasks.

        Args:
            bboxes: (R, 4) tensor or array; clipped to the masks first.
            out_shape: h, w of a target.
            inds: (R,) the mask of each roi.
            device: without effect, as are
            interpolation: of 2.x; RoIAlign interpolates bilinearly on the CPU.
            binarize: ``>= 0.5``; else what RoIAlign gives, as floats.

        Returns:
            R masks; none where there is no mask to take them from.
        """
        if not len(self):
            return BitmapMasks([], *out_shape)
        return BitmapMasks(self._targets(bboxes, out_shape, inds, binarize), *out_shape)

    def roi_targets(self, boxes: Array, out_hw: tuple[int, int], index: Array,
                    device: torch.device | str = 'cpu') -> torch.Tensor:
        """Mask targets of rois: RoIAlign of each roi's bitmap (aligned, adaptive sampling), then ``>= 0.5``.

        Args:
            boxes: (R, 4) tensor or array; clipped to the masks first.
            out_hw: h, w of a target.
            index: (R,) the mask of each roi.
            device: where the result goes.

        Returns:
            (R, h, w) float32 of 0 and 1 on ``device``.
        """
        return torch.from_numpy(self._targets(boxes, out_hw, index).astype(np.float32, copy=False)).to(device)

    def _targets(self, boxes: Array, out_hw: tuple[int, int], index: Array, binarize: bool = True) -> np.ndarray:
        """(R, h, w) float32."""
        boxes, index = _as_arrays(boxes, index, self.height, self.width)
        targets = np.zeros((len(boxes), *out_hw), dtype=np.float32)
        if len(boxes):
            order = np.argsort(index, kind='stable')
            values = self._align(boxes[order], index[order], out_hw)
            targets[order] = values >= 0.5 if binarize else values
        return targets

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
        along_y, along_x, out = (torch.from_numpy(array) for array in (over_y, over_x, values))
        with torch.autocast('cpu', enabled=False):
            for (_, _, bitmap), start, stop in zip(windows, starts, [*starts[1:], len(index)]):
                height, width = bitmap.shape
                left = along_y[at_y[start]:at_y[stop]].view(-1, height)                  # (n * h, window height)
                right = along_x[at_x[start]:at_x[stop]].view(-1, out_hw[1], width)       # (n, w, window width)
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
    """Polygons of N objects on an image of H x W; drawn only in ``roi_targets`` and ``to_bitmaps``.

    Args:
        masks: for each object a list of polygons, each a flat array x0, y0, x1, y1, ... (2 * P,).
        height: H.
        width: W.

    Raises:
        ValueError: a polygon that is no such array.
    """

    def __init__(self, masks: Sequence[Sequence[np.ndarray]], height: int, width: int):
        self.masks = [[np.asarray(p, dtype=np.float64) for p in polygons] for polygons in masks]
        for i, polygons in enumerate(self.masks):
            for polygon in polygons:
                if polygon.ndim != 1 or not polygon.size or polygon.size % 2:
                    raise ArgumentError(f'object {i}: a polygon is x0, y0, x1, y1, ..., not of shape {polygon.shape}')
        self.height, self.width = int(height), int(width)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Index) -> PolygonMasks:
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
            raise ArgumentError(f'masks of different sizes: {parts}')
        return PolygonMasks([polygons for p in parts for polygons in p.masks], first.height, first.width)

    @classmethod
    def random(cls, num_masks: int = 3, height: int = 32, width: int = 32, n_verts: int = 5,
               dtype: npt.DTypeLike = np.float32,
               rng: np.random.RandomState | int | None = None) -> PolygonMasks:
        """Random polygons, corners in order about a point inside, for tests.

        Args:
            num_masks: N.
            height: H.
            width: W.
            n_verts: corners of each.
            dtype: to which corners are rounded.
            rng: where random numbers come from, or a seed.
        """
        generator, masks = _generator(rng), []
        for _ in range(num_masks):
            angles = np.sort(generator.rand(n_verts)) * 2 * np.pi
            radii = generator.uniform(0.3, 1, n_verts)
            shape = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None] / 2 + 0.5  # within 0 to 1
            size = generator.uniform(0.2, 1)
            corners = (shape * size + generator.rand(2) * (1 - size)) * (width, height)
            masks.append([corners.astype(dtype).ravel()])
        return cls(masks, height, width)

    def _mapped(self, scale_xy: tuple[float, float], shift_xy: tuple[float, float],
                out_hw: tuple[int, int]) -> PolygonMasks:
        """Every corner times ``scale_xy`` plus ``shift_xy``."""
        scale, shift = np.array(scale_xy, dtype=np.float64), np.array(shift_xy, dtype=np.float64)
        return PolygonMasks([[(p.reshape(-1, 2) * scale + shift).ravel() for p in polygons] for polygons in self.masks],
                            *out_hw)

    def resize(self, out_shape: tuple[int, int], interpolation: str = 'nearest') -> PolygonMasks:
        """Scale the corners; there is nothing to interpolate."""
        return self._mapped((out_shape[1] / self.width, out_shape[0] / self.height), (0, 0), out_shape)

    def rescale(self, scale: float | tuple[int, int], interpolation: str = 'nearest') -> PolygonMasks:
        """``resize`` that keeps the ratio; ``scale`` as in ``geometry.masks.rescaled_hw``."""
        return self.resize(rescaled_hw((self.height, self.width), scale), interpolation)

    def flip(self, flip_direction: str = 'horizontal') -> PolygonMasks:
        """Mirror 'horizontal', 'vertical' or 'diagonal' (both)."""
        _check_direction(flip_direction)
        sign_x, shift_x = (1, 0) if flip_direction == 'vertical' else (-1, self.width)
        sign_y, shift_y = (1, 0) if flip_direction == 'horizontal' else (-1, self.height)
        return self._mapped((sign_x, sign_y), (shift_x, shift_y), (self.height, self.width))

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> PolygonMasks:
        """A larger canvas; the corners stay, and polygons have nothing that ``pad_val`` could fill."""
        return PolygonMasks(self.masks, *out_shape)

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> PolygonMasks:
        """Lay the masks on a larger empty canvas at ``top``, ``left``."""
        return self._mapped((1, 1), (left, top), (expanded_h, expanded_w))

    def affine(self, matrix: np.ndarray, out_shape: tuple[int, int], fill_val: int | None = 0,
               interpolation: str = 'bilinear', limits: tuple[float, float] | None = None) -> PolygonMasks:
        """Map every corner to ``matrix`` (2, 3) @ (x, y, 1); as in 2.x those outside come to the edge.

        Args:
            matrix: as for bitmaps.
            out_shape: H, W of the result.
            fill_val: 0.
            interpolation: there is nothing to interpolate.
            limits: the largest x and y; W and H by default. An infinite one leaves its axis as it is.

        Raises:
            ValueError: another ``fill_val`` than 0 (or None): polygons have nothing to fill.
        """
        if fill_val:
            raise ArgumentError(f'polygons cannot be filled with {fill_val}: to_bitmap() makes bitmaps, which can')
        matrix = np.asarray(matrix, dtype=np.float64)
        high = np.array([out_shape[1], out_shape[0]] if limits is None else limits, dtype=np.float64)
        low = np.where(np.isinf(high), -np.inf, 0)
        return PolygonMasks([[np.clip(p.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2], low, high).ravel()
                              for p in polygons] for polygons in self.masks], *out_shape)

    def translate(self, out_shape: tuple[int, int], offset: float, direction: str = 'horizontal',
                  fill_val: int | None = 0, interpolation: str = 'bilinear') -> PolygonMasks:
        """Shift by ``offset`` pixels to the right or down ('vertical'); on that axis corners outside come to the edge.

        Args, raises: as ``affine``.
        """
        limits = (np.inf, out_shape[0]) if direction == 'vertical' else (out_shape[1], np.inf)
        return self.affine(translation_matrix(offset, direction), out_shape, fill_val, limits=limits)

    def shear(self, out_shape: tuple[int, int], magnitude: float, direction: str = 'horizontal',
              border_value: int | None = 0, interpolation: str = 'bilinear') -> PolygonMasks:
        """Shift each corner by ``magnitude`` times its other coordinate.

        Args, raises: as ``affine``.
        """
        return self.affine(shear_matrix(magnitude, direction), out_shape, border_value)

    def rotate(self, out_shape: tuple[int, int], angle: float, center: Sequence[float] | None = None,
               scale: float = 1.0, fill_val: int | None = 0, interpolation: str = 'bilinear') -> PolygonMasks:
        """Turn clockwise by ``angle`` degrees about ``center`` (x, y), the middle by default.

        Args, raises: as ``affine``; ``scale`` enlarges.
        """
        matrix = rotation_matrix(angle, middle_of(self.height, self.width) if center is None else center, scale)
        return self.affine(matrix, out_shape, fill_val)

    def crop(self, bbox: Sequence[float]) -> PolygonMasks:
        """The part inside ``bbox`` (4,), which is clipped to the masks; corners outside stay, drawing cuts them."""
        x1, y1, w, h = _clipped_crop(bbox, self.height, self.width)
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

    def to_bitmap(self) -> BitmapMasks:
        """The same masks as bitmaps, drawn when their pixels are asked for."""
        size = self.height, self.width
        result = BitmapMasks([], *size)
        result._sources = [_Source((polygons, *size), absent=not polygons) for polygons in self.masks]
        return result

    def to_tensor(self, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        """(N, H, W) tensor."""
        return torch.from_numpy(self.to_bitmaps()).to(device, dtype)

    def to_rle(self) -> RleMasks:
        """Encode without building bitmaps of the image's size."""
        size = self.height, self.width
        return RleMasks([encode_window(rasterize_polygons(p, size), size) for p in self.masks], *size)

    @property
    def absent(self) -> np.ndarray:
        """(N,) bool: objects without any polygon, from which no mask can be learned."""
        return np.array([not polygons for polygons in self.masks], dtype=bool)

    @property
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

    def crop_and_resize(self, bboxes: Array, out_shape: tuple[int, int], inds: Array,
                        device: torch.device | str = 'cpu',
                        interpolation: str = 'bilinear', binarize: bool = True) -> PolygonMasks:
        """2.x's form of ``roi_targets``: the polygons in each roi, not drawn yet.

        Args:
            bboxes: (R, 4) tensor or array; clipped to the masks first.
            out_shape: h, w of a target.
            inds: (R,) the object of each roi.
            device: without effect, as is
            interpolation: there is nothing to interpolate.
            binarize: polygons are always binary.

        Raises:
            ValueError: ``binarize=False``.
        """
        if not binarize:
            raise ArgumentError('polygons are always binary: binarize=False needs to_bitmap() first')
        if not len(self):
            return PolygonMasks([], *out_shape)
        boxes, index = _as_arrays(bboxes, inds, self.height, self.width)
        return PolygonMasks([self._inside(box, i, out_shape) for box, i in zip(boxes, index)], *out_shape)

    def _inside(self, box: np.ndarray, i: int, out_hw: tuple[int, int]) -> list[np.ndarray]:
        """The polygons of object i, moved and scaled into ``box`` (4,)."""
        x1, y1, x2, y2 = box.astype(np.float64)
        scale = np.array([out_hw[1] / max(x2 - x1, 1), out_hw[0] / max(y2 - y1, 1)])
        return [((p.reshape(-1, 2) - (x1, y1)) * scale).ravel() for p in self.masks[i]]

    def roi_targets(self, boxes: Array, out_hw: tuple[int, int], index: Array,
                    device: torch.device | str = 'cpu') -> torch.Tensor:
        """Mask targets of rois: the polygons are moved and scaled into each roi and drawn there.

        Args, returns: as ``BitmapMasks.roi_targets``. A roi counts as one pixel wide and high at least.
        """
        boxes, index = _as_arrays(boxes, index, self.height, self.width)
        targets = np.zeros((len(boxes), *out_hw), dtype=np.float32)
        for target, box, i in zip(targets, boxes, index):
            y0, x0, bitmap = rasterize_polygons(self._inside(box, i, out_hw), out_hw)
            target[y0:y0 + bitmap.shape[0], x0:x0 + bitmap.shape[1]] = bitmap
        return torch.from_numpy(targets).to(device)


class RleMasks(Sequence[dict]):
    """A sequence of N COCO RLE dicts ``{'size': [H, W], 'counts': bytes}``: masks of results, in original pixels.

    ``masks[i]`` is a dict; a slice, a boolean or an integer array selects a new RleMasks.

    Args:
        rles: with compressed (bytes or text) or plain counts.
        height: H; that of the first RLE when left out.
        width: W; likewise.
    """

    def __init__(self, rles: Sequence[dict], height: int | None = None, width: int | None = None):
        self.rles = [compress_rle(rle) for rle in rles]
        if height is None or width is None:
            height, width = self.rles[0]['size'] if self.rles else (0, 0)
        self.height, self.width = int(height), int(width)

    def __len__(self) -> int:
        return len(self.rles)

    @overload
    def __getitem__(self, index: int) -> dict: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Sequence[bool] | Array) -> RleMasks: ...

    def __getitem__(self, index: Index) -> RleMasks | dict:
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
            raise ArgumentError(f'masks of different sizes: {parts}')
        return RleMasks([rle for p in parts for rle in p.rles], first.height, first.width)

    def to_bitmap_masks(self) -> BitmapMasks:
        """The same masks as a BitmapMasks, whose geometry is cheap."""
        return BitmapMasks.from_coco(self.rles, self.height, self.width)

    def resize(self, out_shape: tuple[int, int], interpolation: str = 'nearest') -> RleMasks:
        """As ``BitmapMasks.resize``."""
        return self.to_bitmap_masks().resize(out_shape, interpolation).to_rle()

    def rescale(self, scale: float | tuple[int, int], interpolation: str = 'nearest') -> RleMasks:
        """``resize`` that keeps the ratio; ``scale`` as in ``geometry.masks.rescaled_hw``."""
        return self.resize(rescaled_hw((self.height, self.width), scale), interpolation)

    def flip(self, flip_direction: str = 'horizontal') -> RleMasks:
        """Mirror 'horizontal', 'vertical' or 'diagonal' (both)."""
        return self.to_bitmap_masks().flip(flip_direction).to_rle()

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> RleMasks:
        """Add rows below and columns on the right up to ``out_shape``, filled with ``pad_val``."""
        return self.to_bitmap_masks().pad(out_shape, pad_val).to_rle()

    def crop(self, bbox: Sequence[float]) -> RleMasks:
        """The part inside ``bbox`` (4,), which is clipped to the masks and cut to whole pixels."""
        return self.to_bitmap_masks().crop(bbox).to_rle()

    def roi_targets(self, boxes: Array, out_hw: tuple[int, int], index: Array,
                    device: torch.device | str = 'cpu') -> torch.Tensor:
        """As ``BitmapMasks.roi_targets``."""
        return self.to_bitmap_masks().roi_targets(boxes, out_hw, index, device)

    def to_bitmaps(self) -> np.ndarray:
        """(N, H, W) uint8; one byte a pixel, so decode what you need only."""
        if not self.rles:
            return np.zeros((0, self.height, self.width), dtype=np.uint8)
        return np.ascontiguousarray(coco_mask.decode(self.rles).transpose(2, 0, 1))

    def to_rle(self) -> RleMasks:
        """Itself."""
        return self

    @property
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
