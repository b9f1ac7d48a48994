"""Numbers behind masks: polygons to bitmaps, nearest-neighbour maps, RoIAlign by axis, pasting, run-length codes.

COCO's conventions throughout: a run-length code (RLE) counts pixels column by column, zeros first; a polygon is a flat
array x0, y0, x1, y1, ... in pixels, pixel (row, column) having its centre at (column + 0.5, row + 0.5).

Letters: N masks, R rois, H, W image height and width, h, w height and width of a mask or of a window of it, S sampling
points of a bin. A *window* is (y0, x0, bitmap (h, w) uint8): the part of an otherwise empty (H, W) mask that can be
non-zero, so that work and memory go with the object's size and not with the image's.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from boxdet.geometry.boxes import at_least_float32

Window = tuple[int, int, np.ndarray]

# pycocotools rounds polygon corners to a fifth of a pixel before it draws them.
_POLYGON_STEPS = 5
_FAR = 10**6  # pixels: no polygon's corner is that far from the origin
# Columns of a pasted mask are evaluated in blocks of about this many pixels: a mask that fills a 12-megapixel
# image takes a few megabytes.
_PASTE_BLOCK = 1 << 18


# ---------------------------------------------------------------------------------------------- polygons


def polygon_area(polygon: np.ndarray) -> float:
    """Area in square pixels enclosed by ``polygon`` (2 * P,), by the shoelace formula."""
    x, y = polygon[0::2], polygon[1::2]
    return float(0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def rasterize_polygons(polygons: Sequence[np.ndarray] | Sequence[Sequence[float]], image_hw: tuple[int, int]) -> Window:
    """The union of ``polygons`` as the window of an (H, W) bitmap, pixel for pixel what pycocotools draws on all of it.

    Polygons of fewer than three points enclose nothing and are left out.
    """
    height, width = image_hw
    corners = [_quantize(p) for p in polygons if len(p) >= 6]
    if not corners or height <= 0 or width <= 0:
        return 0, 0, np.zeros((0, 0), dtype=np.uint8)
    every = corners[0] if len(corners) == 1 else np.concatenate(corners)
    (left, top), (right, bottom) = every.min(axis=0).tolist(), every.max(axis=0).tolist()
    # Whole pixels only, so that the shifted polygon has the same raster; what lies left of or above the image stays
    # negative, as pycocotools must cut it there.
    x0, y0 = _clamp(left // _POLYGON_STEPS, 0, width - 1), _clamp(top // _POLYGON_STEPS, 0, height - 1)
    w = _clamp(right // _POLYGON_STEPS + 1, x0 + 1, width) - x0
    h = _clamp(bottom // _POLYGON_STEPS + 1, y0 + 1, height) - y0
    shift = np.array([x0, y0]) * _POLYGON_STEPS
    # pycocotools' own rounding brings these back to the same integers; negative ones it cuts towards zero.
    shifted = [((c - shift - (c < 0)) / _POLYGON_STEPS).ravel() for c in corners]
    codes = coco_mask.frPyObjects(shifted, h, w)
    code = codes[0] if len(codes) == 1 else coco_mask.merge(codes)
    return y0, x0, coco_mask.decode(code)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _quantize(polygon: np.ndarray | Sequence[float]) -> np.ndarray:
    """Corners (P, 2) in fifths of a pixel, rounded as pycocotools' C code does: add a half and cut towards zero.

    Raises:
        ValueError: a corner that is not finite or far off; pycocotools, which walks along every edge, would crash.
    """
    corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    if not (np.abs(corners) < _FAR).all():
        raise ValueError(f'a polygon with a corner that is not finite or beyond {_FAR} pixels')
    return np.trunc(corners * _POLYGON_STEPS + 0.5).astype(np.int64)


# ---------------------------------------------------------------------------------------------- resampling


def rescaled_hw(hw: tuple[int, int], scale: float | tuple[int, int]) -> tuple[int, int]:
    """The size that mmcv's ``rescale_size`` gives an image of size ``hw``; a pixel at least where that gives none.

    Args:
        hw: height, width.
        scale: a factor, or two lengths in any order: the largest size whose longer side is at most the longer and
            whose shorter side is at most the shorter of them.

    Raises:
        ValueError: a factor that is not positive.
    """
    height, width = hw
    if isinstance(scale, (int, float)):
        if scale <= 0:
            raise ValueError(f'an image cannot be scaled by {scale}')
        factor = scale
    else:
        factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(int(height * float(factor) + 0.5), 1), max(int(width * float(factor) + 0.5), 1)


def nearest_index(source: int, target: int) -> np.ndarray:
    """(target,) int32: the source position that OpenCV's nearest-neighbour resize takes for each target position."""
    step = 1.0 / (target / source)
    return np.minimum(np.floor(np.arange(target) * step).astype(np.int32), source - 1)


INTERPOLATIONS = dict(nearest='INTER_NEAREST', bilinear='INTER_LINEAR', bicubic='INTER_CUBIC', area='INTER_AREA',
                      lanczos='INTER_LANCZOS4')


def interpolation_flag(name: str) -> int:
    """OpenCV's number of an interpolation that mmcv calls ``name``.

    Raises:
        ValueError: an unknown name.
    """
    import cv2  # only those who interpolate need it
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation '{name}' is none of {', '.join(INTERPOLATIONS)}")
    return getattr(cv2, INTERPOLATIONS[name])


def resize_bitmap(bitmap: np.ndarray, out_hw: tuple[int, int], interpolation: str) -> np.ndarray:
    """``bitmap`` (H, W) in another size, by OpenCV."""
    import cv2
    return cv2.resize(bitmap, tuple(int(v) for v in out_hw[::-1]), interpolation=interpolation_flag(interpolation))


def warp_bitmap(bitmap: np.ndarray, matrix: np.ndarray, out_hw: tuple[int, int], fill: Any = 0,
                interpolation: str = 'bilinear') -> np.ndarray:
    """What stands in ``bitmap`` (H, W[, C]) at (x, y) goes to ``matrix`` (2, 3) @ (x, y, 1), by OpenCV.

    Args:
        bitmap: of up to four channels.
        matrix: in coordinates in which pixel centres are whole numbers.
        out_hw: height, width of the result.
        fill: a number, or one a channel, for what nothing comes to.
        interpolation: mmcv's name of it.
    """
    import cv2
    fill = tuple(float(v) for v in fill) if np.ndim(fill) else (float(fill),) * 4
    return cv2.warpAffine(bitmap, np.asarray(matrix, dtype=np.float64), tuple(int(v) for v in out_hw[::-1]),
                          flags=interpolation_flag(interpolation), borderMode=cv2.BORDER_CONSTANT, borderValue=fill)


def middle_of(height: int, width: int) -> tuple[float, float]:
    """(x, y) of the middle of an image, in coordinates in which pixel centres are whole numbers."""
    return (width - 1) * 0.5, (height - 1) * 0.5


def rotation_matrix(angle: float, center: Sequence[float], scale: float = 1.0) -> np.ndarray:
    """(2, 3) float64 that turns clockwise by ``angle`` degrees about ``center`` (x, y) and enlarges by ``scale``."""
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    x, y = (float(np.float32(v)) for v in center)  # as OpenCV takes it
    return np.array([[cosine, -sine, (1 - cosine) * x + sine * y], [sine, cosine, (1 - cosine) * y - sine * x]])


def shear_matrix(magnitude: float, direction: str = 'horizontal') -> np.ndarray:
    """(2, 3) that adds ``magnitude`` times y to x, or 'vertical' times x to y; rounded to float32 as mmcv does."""
    _check_axis(direction)
    magnitude = float(np.float32(magnitude))
    return np.array([[1, 0, 0], [magnitude, 1, 0]] if direction == 'vertical' else [[1, magnitude, 0], [0, 1., 0]])


def translation_matrix(offset: float, direction: str = 'horizontal') -> np.ndarray:
    """(2, 3) that adds ``offset`` to x, or 'vertical' to y; rounded to float32 as mmcv does."""
    _check_axis(direction)
    offset = float(np.float32(offset))
    return np.array([[1, 0, 0], [0, 1, offset]] if direction == 'vertical' else [[1, 0, offset], [0, 1., 0]])


def _check_axis(direction: str) -> None:
    if direction not in ('horizontal', 'vertical'):
        raise ValueError(f"direction '{direction}' is neither 'horizontal' nor 'vertical'")


def roi_align_axis(starts: np.ndarray, ends: np.ndarray, bins: int, length: int, index: np.ndarray | None = None,
                   first: np.ndarray | None = None, size: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """RoIAlign (He et al. 2017, section 3; aligned, adaptive sampling) of one axis, as a matrix for each roi.

    RoIAlign of a single channel is separable: ``A_y @ mask @ A_x.T`` with one such matrix an axis.

    Args:
        starts: (R,) float32 edges of the rois on this axis, in pixels.
        ends: (R,) likewise.
        bins: output positions.
        length: pixels of the axis.
        index: (length,) source position of each pixel, -1 for padding; the identity when None. The matrices then act
            on the source, so that an enlarged mask is never built.
        first: (R,) the columns of matrix r stand for the source positions first[r] ... first[r] + size[r] - 1;
            all of the axis by default. Everything outside is taken for zero.
        size: (R,) likewise.

    Returns:
        flat, offsets: matrix r is ``flat[offsets[r]:offsets[r + 1]].reshape(bins, size[r])``, float32.
    """
    count = len(starts)
    first = np.zeros(count, dtype=np.int64) if first is None else first
    size = np.full(count, length, dtype=np.int64) if size is None else size
    offsets = np.concatenate([[0], np.cumsum(size * bins)])
    flat = np.zeros(offsets[-1] + 1, dtype=np.float32)  # the last place takes whatever falls outside the columns
    roi, row, at, weight = _axis_points(starts.astype(np.float32), ends.astype(np.float32), bins, length)
    low = at.astype(np.int32)
    fraction = at - low.astype(np.float32)
    start, width, origin = offsets[:-1][roi] + row * size[roi], size[roi], first[roi]
    for position, share in ((low, weight - weight * fraction), (np.minimum(low + 1, length - 1), weight * fraction)):
        column = (position if index is None else index[position]) - origin
        np.add.at(flat, np.where((column >= 0) & (column < width), start + column, offsets[-1]), share)
    return flat[:-1], offsets


def _axis_points(starts: np.ndarray, ends: np.ndarray, bins: int,
                 length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The sampling points of all rois on an axis, one after the other: (P,) roi, bin, position and weight.

    Torchvision's arithmetic, in float32, step by step.
    """
    begin = starts - np.float32(0.5)
    extent = (ends - np.float32(0.5)) - begin
    points = np.maximum(np.ceil(extent / np.float32(bins)), 0).astype(np.int32)          # (R,) of each bin
    every = points * bins
    roi = np.repeat(np.arange(len(starts), dtype=np.int32), every)
    of_bin, of_roi = points[roi], np.cumsum(every) - every
    row, place = np.divmod(np.arange(len(roi), dtype=np.int32) - of_roi[roi].astype(np.int32), of_bin)
    bin_size = (extent / np.float32(bins))[roi]
    divisor = of_bin.astype(np.float32)
    at = (begin[roi] + row.astype(np.float32) * bin_size
          + (place.astype(np.float32) + np.float32(0.5)) * bin_size / divisor)
    weight = ((at >= -1) & (at <= length)) / divisor
    return roi, row, np.clip(at, 0, length - 1), weight


# ---------------------------------------------------------------------------------------------- run-length codes


def encode_runs(changes: np.ndarray, image_hw: tuple[int, int]) -> dict:
    """COCO RLE of an (H, W) mask from the column-major positions at which it changes.

    Args:
        changes: (2 * runs,) ascending: start of a run of ones, the position after its end, start of the next, ...
            A run that begins where the last one ended is joined to it.
        image_hw: H, W.
    """
    height, width = image_hw
    if len(changes):
        touching = np.flatnonzero(changes[1:] == changes[:-1])
        if len(touching):
            changes = np.delete(changes, np.concatenate([touching, touching + 1]))
    counts = np.diff(np.concatenate([[0], changes, [height * width]]))
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return compress_rle(dict(size=[int(height), int(width)], counts=counts))


def compress_rle(rle: dict) -> dict:
    """COCO RLE with compressed ``counts`` (bytes) from one with a list of counts, or with text or bytes already.

    Raises:
        ValueError: the counts do not add up to the size, or are no RLE.
    """
    height, width = rle['size']
    height, width, counts = int(height), int(width), rle['counts']
    if isinstance(counts, bytes):
        return {'size': [height, width], 'counts': counts}
    if isinstance(counts, str):
        return {'size': [height, width], 'counts': counts.encode('ascii')}
    counts = np.asarray(counts, dtype=np.int64)
    if (counts < 0).any():
        raise ValueError('RLE counts below 0')
    if counts.ndim != 1 or counts.sum() != height * width:
        raise ValueError(f'RLE counts add up to {counts.sum()}, not to {height} x {width}')
    return coco_mask.frPyObjects(dict(size=[height, width], counts=counts), height, width)


def box_around(segmentation: Any) -> tuple[float, float, float, float] | None:
    """Corners x1, y1, x2, y2 of the box around a COCO ``segmentation``, polygons or RLE; None where it is neither."""
    try:
        if isinstance(segmentation, dict):
            x, y, w, h = (float(value) for value in coco_mask.toBbox(compress_rle(segmentation)))
            return x, y, x + w, y + h
        corners = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
        return *corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()
    except (TypeError, ValueError, KeyError):
        return None


def run_lengths(counts: bytes | str | list[int]) -> np.ndarray:
    """The run lengths of a COCO RLE: background first, then in turn.

    The compressed form writes each length in 5-bit groups from the lowest, bit 6 telling that more follow;
    from the fourth length on it holds the difference to the last but one.

    Raises:
        ValueError: compressed counts that end within a length.
    """
    if not isinstance(counts, (bytes, str)):
        return np.asarray(counts, dtype=np.int64)
    if isinstance(counts, str):
        counts = counts.encode('ascii')
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(groups):
        return np.zeros(1, np.int64)
    last = np.flatnonzero((groups & 32) == 0)
    if not len(last):
        raise ValueError('RLE counts that break off')
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    shifts = 5 * (np.arange(last[-1] + 1) - np.repeat(first, sizes))
    values = np.add.reduceat((groups[:last[-1] + 1] & 31) << shifts, first)
    values -= ((groups[last] & 16) >> 4) << (5 * sizes)  # the sign bit of the last group
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def window_changes(columns: np.ndarray, y0: int, x0: int, height: int) -> np.ndarray:
    """Positions at which a mask of ``height`` rows changes, from its window.

    Args:
        columns: (w, h) bool or 0/1, the window transposed: one row of it for each column of the image.
        y0: first row of the window.
        x0: first column of the window.
        height: H.
    """
    w, h = columns.shape
    fenced = np.zeros((w, h + 1), dtype=bool)  # the fence ends every run at the foot of its column
    fenced[:, :h] = columns
    flat = fenced.ravel()
    at = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        at = np.concatenate([[0], at])
    column, row = np.divmod(at, h + 1)
    # A run that reaches the foot and one that starts at the next head: the fence sits between them, so the change
    # of the first is at row h of its column.
    return (x0 + column).astype(np.int64) * height + y0 + row


def encode_window(window: Window, image_hw: tuple[int, int]) -> dict:
    """COCO RLE of the (H, W) mask that is zero outside ``window``."""
    y0, x0, bitmap = window
    return encode_runs(window_changes(bitmap.T, y0, x0, image_hw[0]), image_hw)


# ---------------------------------------------------------------------------------------------- pasting


def paste_to_rle(probs: torch.Tensor | np.ndarray, boxes: torch.Tensor | np.ndarray, image_hw: tuple[int, int],
                 threshold: float = 0.5, whole_pixels: bool = False) -> list[dict]:
    """Put mask-head outputs into the image and encode them, without ever holding a bitmap of the image's size.

    Equal to ``grid_sample`` (bilinear, align_corners=False, zeros outside) of each mask over the whole image, its value
    taken at pixel centres, ``>= threshold``, then pycocotools' encode. Along an axis on which a box has no extent, the
    pixels around it take the middle of the mask: a line of pixels, as mmdetection draws it on the CPU.

    Args:
        probs: (N, h, w) probabilities in the boxes (after the sigmoid).
        boxes: (N, 4) xyxy in image pixels; may reach over the image's edge.
        image_hw: H, W.
        threshold: above 0.
        whole_pixels: as torchvision does it: each box, enlarged by half a mask cell on every side, is cut to whole
            pixels, and its mask resized to that many.

    Returns:
        N COCO RLE dicts ``{'size': [H, W], 'counts': bytes}``.
    """
    if threshold <= 0:
        raise ValueError(f'threshold must be above 0, got {threshold}: pixels outside the boxes have value 0')
    probs, boxes = (at_least_float32(v.detach()).cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v)
                    for v in (probs, boxes))
    kind = np.result_type(np.float32, probs, boxes)
    probs, boxes = probs.astype(kind, copy=False), boxes.astype(kind, copy=False)
    height, width = (int(v) for v in image_hw)
    positions = _whole_pixel_positions if whole_pixels else _source_positions
    padded = np.pad(probs, ((0, 0), (1, 1), (1, 1)))  # the zeros outside take part in the interpolation
    with torch.autocast('cpu', enabled=False):
        return [encode_runs(_paste_changes(mask, box, (height, width), kind.type(threshold), positions),
                            (height, width)) for mask, box in zip(padded, boxes)]


def _paste_changes(mask: np.ndarray, box: np.ndarray, image_hw: tuple[int, int], threshold: np.floating,
                   positions: Callable[..., tuple[int, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Changes of one pasted mask; ``mask`` (h + 2, w + 2) has its border of zeros."""
    x0, col_low, col_fraction = positions(box[0], box[2], mask.shape[1] - 2, image_hw[1])
    y0, row_low, row_fraction = positions(box[1], box[3], mask.shape[0] - 2, image_hw[0])
    if not len(col_low) or not len(row_low):
        return np.zeros(0, dtype=np.int64)
    along_y = np.zeros((mask.shape[0], len(row_low)), dtype=mask.dtype)                  # (h + 2, window height)
    each = np.arange(len(row_low))
    along_y[row_low, each] = 1 - row_fraction
    along_y[row_low + 1, each] += row_fraction
    block = max(_PASTE_BLOCK // len(row_low), 1)
    turned = np.ascontiguousarray(mask.T)                                                # (w + 2, h + 2)
    changes = []
    for start in range(0, len(col_low), block):
        low, fraction = col_low[start:start + block], col_fraction[start:start + block, None]
        columns = turned[low] * (1 - fraction) + turned[low + 1] * fraction              # (block, h + 2)
        # torch's product: numpy's has threads of its own, which are slow to meet where the cores are busy.
        pasted = (torch.from_numpy(columns) @ torch.from_numpy(along_y)).numpy()         # (block, window height)
        changes.append(window_changes(pasted >= threshold, y0, x0 + start, image_hw[0]))
    return np.concatenate(changes)


def _source_positions(start: np.floating, end: np.floating, cells: int,
                      length: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Where the pixels of an axis that a box reaches fall on its mask.

    Returns:
        first pixel, and for it and those after it: (n,) the position in the bordered mask below each, (n,) the
        fraction towards the next one. The arithmetic is grid_sample's, in the type of the box, step by step.
    """
    extent, number = end - start, type(start)
    nothing = 0, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=number)
    if not (np.isfinite(start) and np.isfinite(end)) or extent < 0:
        return nothing
    if extent == 0:
        first, last = (int(np.clip(edge, 0, length)) for edge in (np.floor(start) - 1, np.ceil(end) + 1))
        middle = np.full(max(last - first, 0), (cells - 1) / 2, dtype=number)
        return first, np.floor(middle).astype(np.int64) + 1, middle - np.floor(middle)
    # A mask reaches half a cell beyond its box before it has fallen to zero.
    reach = float(extent) / cells / 2 + 1
    first = int(np.clip(np.floor(start - reach), 0, length))
    last = int(np.clip(np.ceil(end + reach), first, length))
    centres = np.arange(first, last, dtype=number) + number(0.5)
    grid = (centres - start) / extent * number(2) - number(1)
    at = ((grid + number(1)) * number(cells) - number(1)) / number(2)
    inside = np.flatnonzero((at > -1) & (at < cells))
    if not len(inside):
        return nothing
    at = at[inside[0]:inside[-1] + 1]
    low = np.floor(at)
    return first + int(inside[0]), low.astype(np.int64) + 1, at - low


def _whole_pixel_positions(start: np.floating, end: np.floating, cells: int,
                           length: int) -> tuple[int, np.ndarray, np.ndarray]:
    """As ``_source_positions``, for a bordered mask that is resized to a whole number of pixels."""
    number = type(start)
    if not (np.isfinite(start) and np.isfinite(end)):
        return 0, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=number)
    half = (end - start) * number(0.5) * number((cells + 2) / cells)
    centre = (end + start) * number(0.5)
    first, last = int(centre - half), int(centre + half)
    size = max(last - first + 1, 1)
    shown = np.arange(max(first, 0), min(first + size, length))
    # The arithmetic of torch's interpolate (bilinear, align_corners=False).
    at = (shown - first + number(0.5)).astype(number) * number((cells + 2) / size) - number(0.5)
    at = at.clip(0, cells + 1)
    low = np.minimum(np.floor(at), cells)
    return max(first, 0), low.astype(np.int64), at - low
