"""Functions of ``mmdet.core.evaluation`` beside ``eval_map``.

Letters: N detections, G objects of an image, S ranges of area, M numbers of proposals, T thresholds.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from boxdet.evaluation.proposals import proposal_recall
from boxdet.evaluation.voc import match
from boxdet.structures.instances import Instances


def with_scores(rows: np.ndarray) -> np.ndarray:
    """Rows (N, 5); those without a score are ranked by their last column, as 2.x does."""
    return rows if rows.shape[1] == 5 else np.concatenate([rows, rows[:, -1:]], axis=1)


def eval_recalls(gts: Sequence[np.ndarray], proposals: Sequence[np.ndarray],
                 proposal_nums: int | Sequence[int] | None = None,
                 iou_thrs: float | Sequence[float] | None = 0.5, logger: Any = None,
                 use_legacy_coordinate: bool = False) -> np.ndarray:
    """Share of the objects that the best proposals of each image find.

    Args:
        gts: boxes (G, 4) of each image.
        proposals: (N, 4) best first, or (N, 5) with scores, of each image.
        proposal_nums: M numbers of proposals that count, or one; None for all of them.
        iou_thrs: T overlaps of a hit, or one.
        logger: not used.
        use_legacy_coordinate: boxes are a pixel longer than their corners say.

    Returns:
        (M, T).
    """
    assert len(gts) == len(proposals), f'objects of {len(gts)} images, proposals of {len(proposals)}'
    ranked = [rows[np.argsort(-rows[:, 4], kind='stable'), :4] if rows.shape[1] == 5 else rows for rows in proposals]
    nums = max(map(len, ranked), default=1) if proposal_nums is None else proposal_nums
    thrs = np.atleast_1d(0.5 if iou_thrs is None else iou_thrs)
    return proposal_recall(gts, ranked, np.atleast_1d(nums).tolist(), thrs, float(use_legacy_coordinate))


def tpfp_default(det_bboxes: np.ndarray, gt_bboxes: np.ndarray, gt_bboxes_ignore: np.ndarray | None = None,
                 iou_thr: float = 0.5, area_ranges: Sequence[tuple[float, float] | None] | None = None,
                 use_legacy_coordinate: bool = False, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of one class and image are hits, by Pascal VOC's rule.

    Args:
        det_bboxes: (N, 5), the last column being scores.
        gt_bboxes: (G, 4).
        gt_bboxes_ignore: objects that do not count.
        iou_thr: overlap of a hit.
        area_ranges: S pairs of least and largest area of the objects that count; None for all.
        use_legacy_coordinate: boxes are a pixel longer than their corners say.
        **kwargs: of other rules; not used.

    Returns:
        hits and false alarms, float32 (S, N) of 0 and 1.
    """
    ignored = np.zeros((0, 4)) if gt_bboxes_ignore is None else gt_bboxes_ignore
    truth = dict(bboxes=gt_bboxes, labels=np.zeros(len(gt_bboxes), int), bboxes_ignore=ignored,
                 labels_ignore=np.zeros(len(ignored), int))
    rows = with_scores(np.asarray(det_bboxes, dtype=np.float32))
    matches = match([truth], [Instances.from_per_class([rows])], 1, float(use_legacy_coordinate))
    place = np.argsort(-rows[:, 4], kind='stable')  # matches are in the order of scores
    ranges = [None] if area_ranges is None else [one and (one[0] ** 0.5, one[1] ** 0.5) for one in area_ranges]
    hits, alarms = (np.zeros((len(ranges), len(rows)), dtype=np.float32) for _ in range(2))
    for hit, alarm, sizes in zip(hits, alarms, ranges):
        hit[place], alarm[place], _ = matches.judged(iou_thr, sizes)
    return hits, alarms
