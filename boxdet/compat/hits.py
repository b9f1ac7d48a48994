"""Which detections are hits by ImageNet's and OpenImages' rules, beside ``tpfp_default``.

Letters: N detections, G objects of an image, S ranges of area.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from boxdet.compat.evaluation import tpfp_default
from boxdet.compat.functions import bbox_overlaps
from boxdet.errors import ConfigError


def tpfp_imagenet(det_bboxes: np.ndarray, gt_bboxes: np.ndarray, gt_bboxes_ignore: np.ndarray | None = None,
                  default_iou_thr: float = 0.5, area_ranges: Sequence[tuple[float, float] | None] | None = None,
                  use_legacy_coordinate: bool = False, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """``tpfp_default`` by ImageNet's rule: small objects need less overlap, and a hit takes the best one that is left.

    Args:
        det_bboxes: (N, 5), the last column being scores.
        gt_bboxes: (G, 4), counted from 1.
        gt_bboxes_ignore: objects that do not count.
        default_iou_thr: overlap of a hit for large objects; w * h / ((w + 10) * (h + 10)) where that is less.
        area_ranges: S pairs of least and largest area of the objects that count; None for all.
        use_legacy_coordinate: boxes are a pixel longer than their corners say.
        **kwargs: of other rules; not used.

    Returns:
        hits and false alarms, float32 (S, N) of 0 and 1.
    """
    ignored = np.zeros((0, 4)) if gt_bboxes_ignore is None else gt_bboxes_ignore
    objects, border = np.vstack([gt_bboxes, ignored]), float(use_legacy_coordinate)
    overlaps = bbox_overlaps(det_bboxes[:, :4], objects - 1, use_legacy_coordinate=use_legacy_coordinate)
    sides = objects[:, 2:] - objects[:, :2] + border
    needed = np.minimum((sides / (sides + 10)).prod(axis=1), default_iou_thr)
    hits, alarms = [], []
    for sizes in area_ranges or [None]:
        low, high = (0, np.inf) if sizes is None or sizes[0] is None else sizes
        left_out = ~_within(objects, border, low, high) | (np.arange(len(objects)) >= len(gt_bboxes))
        hit, alarm, taken = np.zeros(len(det_bboxes), bool), np.zeros(len(det_bboxes), bool), np.zeros_like(left_out)
        for i in np.argsort(-det_bboxes[:, -1], kind='stable'):
            fits = np.where(~taken & (overlaps[i] >= needed), overlaps[i], -1)
            if fits.max(initial=-1) < 0:
                alarm[i] = _within(det_bboxes[i:i + 1], border, low, high)[0]
                continue
            best = fits.argmax()
            taken[best], hit[i] = True, not left_out[best]
        hits.append(hit)
        alarms.append(alarm)
    return np.array(hits, np.float32), np.array(alarms, np.float32)


def _within(boxes: np.ndarray, border: float, low: float, high: float) -> np.ndarray:
    area = (boxes[:, 2:4] - boxes[:, :2] + border).prod(axis=1)
    return (area >= low) & (area < high)


def tpfp_openimages(det_bboxes: np.ndarray, gt_bboxes: np.ndarray, gt_bboxes_ignore: np.ndarray | None = None,
                    iou_thr: float = 0.5, area_ranges: Any = None, use_legacy_coordinate: bool = False,
                    gt_bboxes_group_of: np.ndarray | None = None, use_group_of: bool = True, ioa_thr: float = 0.5,
                    **kwargs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``tpfp_default`` by OpenImages' rule: what lies in a group of objects is one detection, the best, and a hit.

    Args:
        det_bboxes: (N, 5), the last column being scores.
        gt_bboxes: (G, 4).
        gt_bboxes_ignore: objects that do not count.
        iou_thr: overlap of a hit.
        area_ranges: refused.
        use_legacy_coordinate: boxes are a pixel longer than their corners say.
        gt_bboxes_group_of: (G,) bool: which boxes are of a group.
        use_group_of: else groups are objects as others.
        ioa_thr: share of a detection that lies in a group.
        **kwargs: of other rules; not used.

    Returns:
        hits and false alarms, float32 (1, M) of 0 and 1; the M detections that count (M, 5), groups' at the end.

    Raises:
        ConfigError: ``area_ranges``.
    """
    if area_ranges is not None:
        raise ConfigError('tpfp_openimages: OpenImages has no ranges of area')
    groups = np.zeros(len(gt_bboxes), bool)
    if use_group_of and gt_bboxes_group_of is not None:
        groups = np.asarray(gt_bboxes_group_of, dtype=bool)
    hits, alarms = (one[0] for one in tpfp_default(det_bboxes, gt_bboxes[~groups], gt_bboxes_ignore, iou_thr,
                                                   use_legacy_coordinate=use_legacy_coordinate))
    inside = bbox_overlaps(det_bboxes[:, :4], gt_bboxes[groups], 'iof', use_legacy_coordinate=use_legacy_coordinate)
    grouped = (hits == 0) & (inside.max(axis=1, initial=0) >= ioa_thr) if groups.any() else np.zeros(len(hits), bool)
    best = np.zeros((int(groups.sum()), 5), det_bboxes.dtype)
    for i in np.flatnonzero(grouped):
        k = inside[i].argmax()
        if det_bboxes[i, 4] > best[k, 4]:
            best[k] = det_bboxes[i]
    found = (best[:, 4] > 0).astype(np.float32)
    return (np.concatenate([hits[~grouped], found])[None], np.concatenate([alarms[~grouped], 1 - found])[None],
            np.concatenate([det_bboxes[~grouped], best]))
