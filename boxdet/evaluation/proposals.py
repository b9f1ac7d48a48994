"""Recall of proposals without classes, in numpy: the quick look at an RPN ('proposal_fast').

Letters: G ground-truth boxes of an image, P proposals of an image, T IoU thresholds, M numbers of proposals.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def proposal_recall(gt: Sequence[np.ndarray], proposals: Sequence[np.ndarray],
                    proposal_nums: Sequence[int], iou_thrs: Sequence[float] | np.ndarray,
                    border: float = 0.) -> np.ndarray:
    """Share of the ground-truth boxes that are found; a box and a proposal match once, best overlap first.

    Args:
        gt: one array (G, 4) xyxy an image.
        proposals: one array (P, 4) xyxy an image, best first.
        proposal_nums: M; how many of the first proposals of an image count.
        iou_thrs: T.
        border: see ``box_iou``.

    Returns:
        (M, T) float64; 0 where there is no ground truth at all.
    """
    thrs = np.asarray(iou_thrs, dtype=np.float64)
    hits, total = np.zeros((len(proposal_nums), len(thrs))), 0
    for boxes, candidates in zip(gt, proposals):
        total += len(boxes)
        if not len(boxes) or not len(candidates):
            continue
        overlaps = box_iou(boxes, candidates[:max(proposal_nums)], border)
        for row, num in enumerate(proposal_nums):
            matched = greedy_overlaps(overlaps[:, :num], thrs.min())
            hits[row] += (matched[:, None] >= thrs).sum(axis=0)
    return hits / max(total, 1)


def greedy_overlaps(overlaps: np.ndarray, floor: float) -> np.ndarray:
    """The overlap (G,) that each box is matched with.

    The largest of ``overlaps`` (G, P) comes first, each row and column once. Overlaps below ``floor`` match nothing; a
    box without a match gets 0.
    """
    matched, used = np.zeros(len(overlaps)), set()
    rows, columns = np.nonzero(overlaps >= floor)
    values = overlaps[rows, columns]
    for k in np.argsort(-values, kind='stable'):
        row, column = rows[k], columns[k]
        if matched[row] == 0 and column not in used:
            matched[row] = values[k]
            used.add(column)
    return matched


def box_iou(boxes: np.ndarray, others: np.ndarray, border: float = 0., dtype: type = np.float32) -> np.ndarray:
    """IoU (G, P) of xyxy boxes (G, 4) and (P, 4).

    Args:
        boxes: (G, 4).
        others: (P, 4).
        border: 1 for Pascal VOC's way of measuring: the last pixel belongs to a box, which is x2 - x1 + 1 wide.
        dtype: float32 is what mmdetection 2.x computes proposals in.
    """
    boxes, others = np.asarray(boxes, dtype), np.asarray(others, dtype)
    shared = (np.minimum(boxes[:, None, 2:], others[None, :, 2:])
              - np.maximum(boxes[:, None, :2], others[None, :, :2]) + dtype(border)).clip(min=0).prod(axis=2)
    areas, other_areas = (box_areas(b, border) for b in (boxes, others))
    return shared / np.maximum(areas[:, None] + other_areas[None] - shared, dtype(1e-6))


def box_areas(boxes: np.ndarray, border: float = 0.) -> np.ndarray:
    """Area (N,) of xyxy boxes (N, 4); ``border`` as in ``box_iou``."""
    width, height = (boxes[:, 2:] - boxes[:, :2] + boxes.dtype.type(border)).T
    return width * height
