"""Masks as the drawing needs them: each one decoded only within its own extent.

A mask of a 1080p picture decoded in full is 2 MB that are almost all zeros; a hundred of them cost more than
the rest of the drawing. Run lengths tell where a mask lies before any pixel is written.

Letters: H, W the image; h, w the extent of one mask; N masks.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from boxdet.geometry.masks import run_lengths

Window = tuple[int, int, np.ndarray]  # left, top, mask (h, w) uint8 of 0 and 1


def mask_windows(masks: Any) -> Iterator[Window | None]:
    """Yield the tight window of each mask in turn, None for an empty one.

    Args:
        masks: a container of ``structures.masks``, a sequence of COCO RLE dicts, or an array or tensor (N, H,
            W).
    """
    if hasattr(masks, 'to_rle'):
        masks = masks.to_rle()
    elif hasattr(masks, 'detach'):
        masks = masks.detach().cpu().numpy()
    for mask in masks:
        yield rle_window(mask) if isinstance(mask, Mapping) else bitmap_window(np.asarray(mask))


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
    height = int(rle['size'][0])
    edges = np.cumsum(run_lengths(rle['counts']))
    starts, stops = edges[0:-1:2], edges[1::2]  # of the foreground runs, in column-major order
    full = stops > starts
    starts, stops = starts[full], stops[full]
    if not len(starts):
        return None
    first_column, last_column = starts // height, (stops - 1) // height
    tops, bottoms = starts - first_column * height, stops - last_column * height
    columns = first_column
    pieces = last_column - first_column + 1
    if pieces.max() > 1:  # runs that go on in the next column: one piece a column
        place = np.cumsum(pieces) - pieces
        columns = np.arange(pieces.sum()) - np.repeat(place - first_column, pieces)
        begin, end = np.zeros(len(columns), np.int64), np.full(len(columns), height)
        begin[place], end[place + pieces - 1] = tops, bottoms
        tops, bottoms = begin, end
    left, top = int(columns.min()), int(tops.min())
    w, h = int(columns.max()) - left + 1, int(bottoms.max()) - top
    # +1 where a piece begins, -1 after its end, then a running sum; the row more keeps columns apart.
    steps = np.zeros(w * (h + 1), np.int8)
    row = (columns - left) * (h + 1) - top
    steps[row + tops] += 1
    steps[row + bottoms] -= 1
    window = np.cumsum(steps, dtype=np.int8).reshape(w, h + 1)[:, :h].T  # (w, h + 1) -> (h, w)
    return left, top, np.ascontiguousarray(window).view(np.uint8)
