"""Non-maximum suppression, by class, with the config dialect of mmdetection 2.x.

``nms_cfg`` is ``dict(type='nms', iou_threshold=0.5)`` or ``dict(type='soft_nms', iou_threshold=0.3, sigma=0.5,
min_score=1e-3, method='linear')``, either with ``max_num``, ``class_agnostic``, ``split_thr`` and ``offset`` (what is
added to widths and heights; 0 here, 1 in old models).

Prediction is written once, in the heads, over candidates in tensors of one size with a mask that tells which rows are
real. What differs between ways to run it is a ``Suppression`` that is handed in: ``EXACT`` takes the candidates that
there are, ``nms_rounds.SuppressionInRounds`` a fixed number of them in a fixed number of steps.

Letters: B images, N boxes, n of them kept or looked at, K classes, G groups (classes, or pyramid levels), S boxes of
the largest group.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torchvision.ops import nms as torchvision_nms

from boxdet.errors import ConfigError, nearest
from boxdet.geometry.boxes import at_least_float32

_COMMON_KEYS = dict(iou_threshold=None, max_num=-1, class_agnostic=False, split_thr=10000, offset=0)
WITHOUT_FLOAT64 = ('mps',)  # types of devices
_NMS_KEYS: dict[str, dict[str, Any]] = {
    'nms': dict(_COMMON_KEYS, score_threshold=0.0),
    'soft_nms': dict(_COMMON_KEYS, iou_threshold=0.3, sigma=0.5, min_score=1e-3, method='linear'),
}
_SOFT_METHODS = ('naive', 'linear', 'gaussian')
# Up to here all classes are suppressed by one call; beyond, on the CPU, a call a class has far fewer pairs to compare.
_JOINT_LIMIT_CPU = 1000


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, nms_cfg: Mapping[str, Any] | None,
                class_agnostic: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Suppress boxes that overlap a better one of the same group by more than ``iou_threshold``.

    The result is that of a suppression by group, whatever ``split_thr``: mmdetection shifts the groups apart in
    float32, which rounds the boxes of the last of 80 classes to 1/128 of a pixel; here they are shifted in float64.

    Args:
        boxes: (N, 4). Half precision is computed in float32.
        scores: (N,).
        idxs: (N,) group of each box.
        nms_cfg: see the top of the file; None sorts by score only.
        class_agnostic: all boxes are one group; ``nms_cfg['class_agnostic']`` wins over it.

    Returns:
        dets: (n, 5) boxes and scores, best first; soft_nms lowers the scores.
        keep: (n,) their places among the N.

    Raises:
        ConfigError: an unknown type, method or key in ``nms_cfg``, or no ``iou_threshold``.
    """
    boxes, scores = at_least_float32(boxes.detach()), at_least_float32(scores.detach())
    if nms_cfg is None:
        scores, keep = scores.sort(descending=True, stable=True)
        return torch.cat([boxes[keep], scores[:, None]], dim=1), keep
    kind, options = read_nms_config(nms_cfg, class_agnostic)
    groups = torch.zeros_like(idxs) if options['class_agnostic'] else idxs
    compared = boxes
    if options['offset']:
        compared = torch.cat([boxes[:, :2], boxes[:, 2:] + options['offset']], dim=1)
    if not len(boxes):
        keep = torch.zeros(0, dtype=torch.long, device=boxes.device)
    elif kind == 'soft_nms':
        keep, scores = _soft_nms(compared, scores, groups, options)
    else:
        keep = _hard_nms(compared, scores, groups, options)
    keep = keep[:options['max_num']] if options['max_num'] > 0 else keep
    return torch.cat([boxes[keep], scores[keep][:, None]], dim=1), keep


class Suppression(Protocol):
    """What prediction needs of a suppression. All tensors are (B, N, ...): a row of candidates for each image."""

    def supports(self, nms_cfg: Mapping[str, Any] | None) -> bool:
        """Whether it can do what ``nms_cfg`` says."""

    def best(self, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``count`` highest of scores (B, N), highest first, and their places; a score below 0 is no candidate."""

    def pick(self, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``best``, of the anchors of a level; equal scores may come in any order."""

    def room(self, present: torch.Tensor, wanted: int) -> int:
        """How many of the best candidates are looked at.

        Args:
            present: (B, N) bool, the candidates that there are.
            wanted: results of an image; <= 0 for all.
        """

    def keep(self, boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, nms_cfg: Mapping[str, Any] | None,
             groups: torch.Tensor | None = None,
             parts: Sequence[int] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Suppress boxes (B, N, 4) that overlap a better one of their image and group.

        Args:
            boxes: (B, N, 4), in any order.
            scores: (B, N).
            valid: (B, N) bool, False for rows that only fill up.
            nms_cfg: see the top of the file; None keeps every valid box.
            groups: (B, N) the class of each box.
            parts: in the place of ``groups``: how many consecutive boxes are of each pyramid level.

        Returns:
            keep: (B, N) bool.
            scores: (B, N), lowered by soft-NMS.
            settled: () bool, False where ``keep`` may be wrong, so that the exact suppression has to be asked.
        """


class ExactSuppression:
    """Torchvision's suppression, or soft-NMS, of the candidates that there are; asks the device for their number."""

    def supports(self, nms_cfg: Mapping[str, Any] | None) -> bool:
        """Always True."""
        return True

    def best(self, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Suppression``; equal scores stay in their order."""
        return best_in_order(scores, count)

    def pick(self, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Suppression``; equal scores in topk's order, which is that of mmdetection's numbers."""
        return scores.topk(count, dim=1) if count < scores.shape[1] else best_in_order(scores, count)

    def room(self, present: torch.Tensor, wanted: int) -> int:
        """As many as an image has."""
        return int(present.sum(dim=1).max())

    def keep(self, boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, nms_cfg: Mapping[str, Any] | None,
             groups: torch.Tensor | None = None,
             parts: Sequence[int] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``Suppression``."""
        if groups is None:
            groups = group_of_parts(parts or [boxes.shape[1]], boxes.device).expand_as(valid)
        keep, lowered = torch.zeros_like(valid), scores.clone()
        for i, here in enumerate(valid):
            rows = here.nonzero().squeeze(1)
            dets, chosen = batched_nms(boxes[i, rows], scores[i, rows], groups[i, rows], nms_cfg)
            keep[i, rows[chosen]] = True
            lowered[i, rows[chosen]] = dets[:, 4].to(scores.dtype)
        return keep, lowered, keep.new_ones(())


EXACT = ExactSuppression()


def best_in_order(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` highest of scores (B, N), highest first, and their places (B, n); equal ones in their order."""
    if 2 * count >= scores.shape[1]:
        scores, place = scores.sort(dim=1, descending=True, stable=True)
        return scores[:, :count], place[:, :count]
    # Far faster than to sort all of them: pick, put the picked in their order, then sort those.
    place = scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    scores, order = scores.gather(1, place).sort(dim=1, descending=True, stable=True)
    return scores, place.gather(1, order)


def group_of_parts(parts: Sequence[int], device: torch.device) -> torch.Tensor:
    """(N,) int64: 0 for the first ``parts[0]`` rows, 1 for the next ``parts[1]``, and so on."""
    return torch.cat([torch.full((count,), i, device=device) for i, count in enumerate(parts)])


def multiclass_nms(multi_bboxes: torch.Tensor, multi_scores: torch.Tensor, score_thr: float,
                   nms_cfg: Mapping[str, Any] | None, max_num: int = -1, score_factors: torch.Tensor | None = None,
                   return_inds: bool = False) -> tuple[torch.Tensor, ...]:
    """From boxes and class probabilities of N candidates to detections.

    Args:
        multi_bboxes: (N, 4), shared by the classes, or (N, 4K).
        multi_scores: (N, K + 1); the last column is the background.
        score_thr: a candidate of a class scores higher than this.
        nms_cfg: as in ``batched_nms``.
        max_num: detections at most; <= 0 for no limit.
        score_factors: (N,) multiplied onto the scores after the threshold.
        return_inds: also return each detection's place among the N * K pairs of candidate and class.

    Returns:
        dets (n, 5), labels (n,), and inds (n,) if asked for; best first.
    """
    num_classes = multi_scores.shape[1] - 1
    scores = multi_scores[:, :-1]                                                        # (N, K)
    rows, labels = (scores > score_thr).nonzero(as_tuple=True)
    # Only the pairs above the threshold are gathered; N * K boxes are never written down.
    per_class = multi_bboxes.shape[1] > 4
    boxes = multi_bboxes.unflatten(1, (num_classes, 4))[rows, labels] if per_class else multi_bboxes[rows]
    scores = scores[rows, labels]
    if score_factors is not None:
        scores = scores * score_factors[rows]
    dets, keep = batched_nms(boxes, scores, labels, nms_cfg)
    if max_num > 0:
        dets, keep = dets[:max_num], keep[:max_num]
    if return_inds:
        return dets, labels[keep], (rows * num_classes + labels)[keep]
    return dets, labels[keep]


def read_nms_config(nms_cfg: Mapping[str, Any], class_agnostic: bool = False) -> tuple[str, dict[str, Any]]:
    """The type of a suppression and all of its options, defaults filled in.

    Raises:
        ConfigError: as ``batched_nms``.
    """
    given = dict(nms_cfg)
    kind = given.pop('type', 'nms')
    if kind not in _NMS_KEYS:
        raise ConfigError(f"nms: unknown type '{kind}'{nearest(kind, _NMS_KEYS)}")
    if 'iou_thr' in given:  # 2.x's name up to 2.2
        given['iou_threshold'] = given.pop('iou_thr')
    for key in given:
        if key not in _NMS_KEYS[kind]:
            raise ConfigError(f"nms: {kind} takes no '{key}'{nearest(key, _NMS_KEYS[kind])}")
    options = {**_NMS_KEYS[kind], 'class_agnostic': class_agnostic, **given}
    if options['iou_threshold'] is None:
        raise ConfigError(f"nms: {kind} needs 'iou_threshold'")
    method = options.get('method', 'linear')
    if method not in _SOFT_METHODS:
        raise ConfigError(f"nms: unknown soft_nms method '{method}'{nearest(method, _SOFT_METHODS)}")
    return kind, options


def _hard_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Places of the boxes that survive, best first."""
    threshold = options['iou_threshold']
    if options['score_threshold'] > 0:
        valid = (scores > options['score_threshold']).nonzero().squeeze(1)
        rest = {**options, 'score_threshold': 0}
        return valid[_hard_nms(boxes[valid], scores[valid], groups[valid], rest)] if len(valid) else valid
    limit = options['split_thr'] if boxes.is_cuda else min(options['split_thr'], _JOINT_LIMIT_CPU)
    with torch.autocast(boxes.device.type, enabled=False):
        if options['class_agnostic']:
            return torchvision_nms(widest(boxes), widest(scores), threshold)
        if len(boxes) < limit:
            return torchvision_nms(_set_apart(boxes, groups), widest(scores), threshold)
        # A stable sort puts each group together and leaves equal scores in their order.
        order = groups.argsort(stable=True)
        sizes = groups.unique(return_counts=True)[1].tolist()
        kept = torch.cat([part[torchvision_nms(widest(boxes[part]), widest(scores[part]), threshold)]
                          for part in order.split(sizes)]).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _set_apart(boxes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Shift groups so far apart that their boxes (N, 4) cannot meet, exactly: whole pixels in float64."""
    boxes = widest(boxes)
    span = (boxes.amax() - boxes.amin()).ceil() + 1
    return boxes + (groups.to(boxes.dtype) * span)[:, None]


def widest(values: torch.Tensor) -> torch.Tensor:
    """``values`` in float64, or in float32 on a device that has no float64 (Apple's)."""
    return values.float() if values.device.type in WITHOUT_FLOAT64 else values.double()


def _soft_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor,
              options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft-NMS (Bodla et al. 2017), on the CPU as in mmcv.

    Returns:
        keep (n,), best lowered score first; scores (N,), lowered where kept.
    """
    device, original = boxes.device, scores
    values = scores.cpu().numpy()
    table = _group_table(groups.cpu().numpy())  # (G, S) places, -1 for none
    present = table >= 0
    current = np.where(present, values[table], -np.inf)                                  # (G, S)
    # As in mmcv: boxes below min_score are dropped, except the best one of all classes, which is taken first.
    low = present & (current < options['min_score'])
    low[np.unravel_index(current.argmax(), current.shape)] = False
    current[low] = -np.inf
    taken, lowered = _take_by_group(boxes.cpu().numpy()[table], current, table, options)
    result = original.clone()
    keep = torch.from_numpy(taken).to(device)
    result[keep] = torch.from_numpy(lowered).to(device)
    return keep, result


def _group_table(groups: np.ndarray) -> np.ndarray:
    """Places of each group's members as rows (G, S) in their order, filled up with -1."""
    order = np.argsort(groups, kind='stable')
    counts = np.unique(groups, return_counts=True)[1]
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), counts.max()), -1)
    table[row, column] = order
    return table


def _take_by_group(boxes: np.ndarray, current: np.ndarray, table: np.ndarray,
                   options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """In all groups at once: take the best box, lower the scores of those it overlaps, until none is left.

    Args:
        boxes: (G, S, 4).
        current: (G, S) scores, -inf for what is gone; overwritten.
        table: (G, S) place of each box among all.
        options: the completed ``nms_cfg``.

    Returns:
        places and lowered scores of the taken boxes, (n,) each, best first, equal scores by place.
    """
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.transpose(2, 0, 1))                      # (G, S) each
    area = (x2 - x1) * (y2 - y1)
    places, values = [], []
    while True:
        alive = np.flatnonzero((current > -np.inf).any(axis=1))
        if not len(alive):
            break
        if len(alive) < len(current):
            current, table, area, x1, y1, x2, y2 = (a[alive] for a in (current, table, area, x1, y1, x2, y2))
        at = np.arange(len(current)), current.argmax(axis=1)
        places.append(table[at])
        values.append(current[at])
        current[at] = -np.inf
        width = np.minimum(x2, x2[at][:, None]) - np.maximum(x1, x1[at][:, None])
        height = np.minimum(y2, y2[at][:, None]) - np.maximum(y1, y1[at][:, None])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        union = area + area[at][:, None] - inter
        overlap = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
        np.multiply(current, _decay(overlap, options), out=current, where=current > -np.inf)   # not -inf * 0
        current[current < options['min_score']] = -np.inf
    place, value = np.concatenate(places), np.concatenate(values)
    order = np.lexsort((place, -value))
    return place[order], value[order]


def _decay(overlap: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """What scores are multiplied by, for boxes that overlap the taken one by ``overlap``."""
    if options['method'] == 'gaussian':
        return np.exp(-(overlap * overlap) / np.float32(options['sigma']))
    kept = np.float32(0) if options['method'] == 'naive' else 1 - overlap
    return np.where(overlap >= options['iou_threshold'], kept, np.float32(1))
