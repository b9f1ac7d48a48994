"""Masks as the drawing needs them: each one decoded only within its own extent.

A mask of a 1080p image decoded in full is 2 MB that are almost all zeros; a hundred of them cost more than
the rest of the drawing. Run lengths tell where a mask lies before any pixel is written.

Letters: H, W the image; h, w the extent of one mask; N masks; P pieces of columns.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from boxdet.geometry.masks import run_lengths

Window = tuple[int, int, np.ndarray]  # left, top, mask (h, w) uint8 of 0 and 1
Outlines = tuple[tuple[int, int, int, int], Sequence[np.ndarray]]  # x0, y0, x1, y1; rings (n, 1, 2) int32

_TRACED_COARSELY = 384**2  # pixels of the extent, from which on every second one is looked at
_SMOOTHING = 0.75  # pixels (of those looked at) that an outline may lie beside the steps of the mask's edge


def mask_windows(masks: Any) -> Iterator[Window | None]:
    """Yield the tight window of each mask in turn, None for an empty one.

    Args:
        masks: a container of ``structures.masks``, a sequence of COCO RLE dicts, or an array or tensor (N, H,
            W).
    """
    for mask in _in_turn(masks):
        yield rle_window(mask) if isinstance(mask, Mapping) else bitmap_window(np.asarray(mask))


def _in_turn(masks: Any) -> Any:
    if hasattr(masks, 'to_rle'):
        return masks.to_rle()
    return masks.detach().cpu().numpy() if hasattr(masks, 'detach') else masks


def bitmap_window(bitmap: np.ndarray) -> Window | None:
    """Cut the extent out of a bitmap (H, W)."""
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if not len(rows):
        return None
    left, top = int(columns[0]), int(rows[0])
    window = bitmap[top:int(rows[-1]) + 1, left:int(columns[-1]) + 1]
    return left, top, np.ascontiguousarray(window != 0).view(np.uint8)


def rle_window(rle: Mapping[str, Any]) -> Window | None:
    """Decode a COCO RLE (compressed or not) within its extent."""
    found = _runs(rle)
    if found is None:
        return None
    left, top, columns = _columns(*found)
    return left, top, np.ascontiguousarray(columns.T)


def mask_outlines(masks: Any) -> Iterator[Outlines | None]:
    """Yield the outlines of each mask in turn, those of its holes among them; None for an empty mask.

    Steps of a pixel are smoothed away. Of a large run-length code, every second pixel of every second column is looked
    at: the difference is no wider than the line, and it takes a quarter of the time.

    Args:
        masks: as of ``mask_windows``.
    """
    for mask in _in_turn(masks):
        if isinstance(mask, Mapping):
            found = _runs(mask)
            yield None if found is None else _trace_runs(*found)
        else:
            window = bitmap_window(np.asarray(mask))
            yield None if window is None else _trace_bitmap(*window)


def _trace_bitmap(left: int, top: int, bitmap: np.ndarray) -> Outlines:
    rings, _ = cv2.findContours(bitmap, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    extent = left, top, left + bitmap.shape[1], top + bitmap.shape[0]
    return extent, [cv2.approxPolyDP(ring, _SMOOTHING, True) for ring in rings]


def _trace_runs(columns: np.ndarray, tops: np.ndarray, bottoms: np.ndarray) -> Outlines:
    """The extent and the outlines of a mask from its pieces of columns, see ``_runs``."""
    extent = left, top, right, bottom = int(columns[0]), int(tops.min()), int(columns[-1]) + 1, int(bottoms.max())
    step = 1
    if (right - left) * (bottom - top) > _TRACED_COARSELY:
        chosen = columns % 2 == 0
        halved = columns[chosen] // 2, (tops[chosen] + 1) // 2, (bottoms[chosen] + 1) // 2
        seen = halved[1] < halved[2]
        if seen.any():
            step, (columns, tops, bottoms) = 2, (part[seen] for part in halved)
    x0, y0, window = _columns(columns, tops, bottoms)
    turned, _ = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(y0, x0))  # rows are columns
    return extent, [cv2.approxPolyDP(ring, _SMOOTHING, True)[:, :, ::-1] * np.int32(step) for ring in turned]


def _runs(rle: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Where a COCO RLE is 1, in pieces of one column each, in column-major order; None where nowhere.

    Returns:
        the column, first row, and row after the last of each piece, (P,) int64.
    """
    height = int(rle['size'][0])
    edges = np.cumsum(run_lengths(rle['counts']))
    starts, stops = edges[0:-1:2], edges[1::2]
    full = stops > starts
    if not full.all():
        starts, stops = starts[full], stops[full]
    if not len(starts):
        return None
    first_column, last_column = starts // height, (stops - 1) // height
    tops, bottoms = starts - first_column * height, stops - last_column * height
    pieces = last_column - first_column + 1
    if pieces.max() == 1:
        return first_column, tops, bottoms
    place = np.cumsum(pieces) - pieces  # a run that goes on in the next column is a piece in each
    columns = np.arange(pieces.sum()) - np.repeat(place - first_column, pieces)
    begin, end = np.zeros(len(columns), np.int64), np.full(len(columns), height)
    begin[place], end[place + pieces - 1] = tops, bottoms
    return columns, begin, end


def _columns(columns: np.ndarray, tops: np.ndarray, bottoms: np.ndarray) -> Window:
    """The window of such pieces, transposed: (w, h), a row of it for each column of the image."""
    left, top = int(columns[0]), int(tops.min())
    w, h = int(columns[-1]) + 1 - left, int(bottoms.max()) - top
    row = (columns - left) * h - top
    changes = np.zeros(2 * len(columns) + 2, np.int64)
    changes[1:-1:2], changes[2:-1:2], changes[-1] = row + tops, row + bottoms, w * h
    values = np.zeros(len(changes) - 1, np.uint8)
    values[1::2] = 1
    return left, top, np.repeat(values, np.diff(changes)).reshape(w, h)
