"""Suppression that the host need not wait for: the same boxes stay as by ``nms``, after a fixed number of steps.

On a GPU every question how many boxes are left stops the host until all work handed out so far is done. Here nothing is
asked: boxes come sorted, in tensors of a fixed size, and a mask tells which stay. Greedy suppression is the only set of
boxes of which each is in the set exactly when no better one of the set overlaps it; so a set that a round leaves as it
was is the right one. Each round settles at least one box more, in practice whole images within ten; whether they are
settled is told by a flag on the device, which travels with the results.

Letters: B sets of boxes, n boxes of a set, r rows of n.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from boxdet.geometry.nms import best_in_order, read_nms_config, widest

ROUNDS = 32
# Overlaps are computed for so many pairs at a time, in float64 as in ``nms``: some 400 MB.
_PAIRS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class SuppressionInRounds:
    """A ``geometry.nms.Suppression`` of fixed size: the host is never asked to wait.

    Args:
        rounds: steps of a suppression.
        least_candidates: so many pairs of box and class are looked at, at least,
        candidates_a_result: and so many for each result that is wanted.
    """
    rounds: int = ROUNDS
    least_candidates: int = 1024
    candidates_a_result: int = 4

    def supports(self, nms_cfg: Mapping[str, Any] | None) -> bool:
        """Whether the config has no soft_nms and no ``max_num``."""
        if nms_cfg is None:
            return True
        kind, options = read_nms_config(nms_cfg)
        return kind == 'nms' and options['max_num'] <= 0

    def best(self, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``ExactSuppression.best``."""
        return best_in_order(scores, count)

    def pick(self, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``best``."""
        return best_in_order(scores, count)

    def room(self, present: torch.Tensor, wanted: int) -> int:
        """A fixed number, whatever there is."""
        return min(max(self.least_candidates, self.candidates_a_result * wanted), present.shape[1])

    def keep(self, boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, nms_cfg: Mapping[str, Any] | None,
             groups: torch.Tensor | None = None,
             parts: Sequence[int] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``geometry.nms.Suppression``."""
        if nms_cfg is None:
            return valid, scores, valid.new_ones(())
        if groups is not None:
            keep, settled = self._sorted_keep(boxes, scores, valid, nms_cfg, groups)
            return keep, scores, settled
        if parts is None or read_nms_config(nms_cfg)[1]['class_agnostic']:
            parts = [boxes.shape[1]]
        # A set for each level of each image, filled up to the size of the largest: (B, S, n).
        own_boxes, own_scores, own_valid = (
            _in_sets(values, parts).flatten(0, 1) for values in (boxes, scores, valid))
        keep, settled = self._sorted_keep(own_boxes, own_scores, own_valid, nms_cfg, None)
        keep = keep.unflatten(0, (len(boxes), len(parts)))
        return torch.cat([keep[:, i, :count] for i, count in enumerate(parts)], dim=1), scores, settled

    def _sorted_keep(self, boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, nms_cfg: Mapping[str, Any],
                     groups: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """``nms_in_rounds`` of sets in any order."""
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        boxes, valid = boxes.gather(1, order[..., None].expand_as(boxes)), valid.gather(1, order)
        groups = None if groups is None else groups.gather(1, order)
        keep, settled = nms_in_rounds(boxes, scores, valid, nms_cfg, groups, self.rounds)
        return torch.zeros_like(keep).scatter_(1, order, keep), settled


IN_ROUNDS = SuppressionInRounds()


def _in_sets(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Split (B, N, ...) into sets of ``counts`` that are filled up with zeros: (B, S, n, ...)."""
    tail = [0, 0] * (values.dim() - 2)
    return torch.stack([F.pad(part, [*tail, 0, max(counts) - part.shape[1]])
                        for part in values.split(list(counts), dim=1)], dim=1)


def nms_in_rounds(boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, nms_cfg: Mapping[str, Any] | None,
                  groups: torch.Tensor | None = None, rounds: int = ROUNDS) -> tuple[torch.Tensor, torch.Tensor]:
    """Which boxes of B sets are not overlapped by a better one of theirs.

    Args:
        boxes: (B, n, 4), best first.
        scores: (B, n).
        valid: (B, n) bool, False for rows that only fill up.
        nms_cfg: one that ``SuppressionInRounds`` supports; None keeps every valid box.
        groups: (B, n): only boxes of one group suppress each other; None: all of a set do.
        rounds: how many are run; a round settles what no unsettled box overlaps.

    Returns:
        keep: (B, n) bool. settled: () bool, False where the rounds did not suffice and ``keep`` may be wrong.
    """
    if nms_cfg is None:
        return valid, valid.new_ones(())
    _, options = read_nms_config(nms_cfg)
    boxes = widest(boxes)
    if options['score_threshold'] > 0:
        valid = valid & (scores > options['score_threshold'])
    if options['offset']:
        boxes = torch.cat([boxes[..., :2], boxes[..., 2:] + options['offset']], dim=-1)
    groups = None if options['class_agnostic'] else groups
    over = _suppressors(boxes, options['iou_threshold'], groups, torch.float16 if boxes.is_cuda else torch.float32)
    keep = before = valid
    for _ in range(rounds):
        before, keep = keep, valid & (torch.bmm(keep[:, None].to(over.dtype), over).squeeze(1) == 0)
    return keep, (keep == before).all()


def _suppressors(boxes: torch.Tensor, threshold: float, groups: torch.Tensor | None,
                 dtype: torch.dtype) -> torch.Tensor:
    """(B, n, n) of 0 and 1: box i is better than box j and overlaps it by more than ``threshold``."""
    batch, count = boxes.shape[:2]
    over = boxes.new_empty((batch, count, count), dtype=dtype)
    rows = max(_PAIRS_AT_ONCE // max(batch * count, 1), 1)
    every, place = boxes.unbind(-1), torch.arange(count, device=boxes.device)
    area = (every[2] - every[0]) * (every[3] - every[1])                                # (B, n)
    for first in range(0, count, rows):
        part = slice(first, first + rows)
        width, height = (_extent(every[axis], every[axis + 2], part) for axis in (0, 1))
        inter = width.mul_(height)                                                      # (B, r, n)
        union = (area[:, part, None] + area[:, None]).sub_(inter)
        above = (inter.div_(union) > threshold) & (place[part, None] < place)
        over[:, part] = above if groups is None else above & (groups[:, part, None] == groups[:, None])
    return over


def _extent(low: torch.Tensor, high: torch.Tensor, part: slice) -> torch.Tensor:
    """(B, r, n): how far the intervals ``part`` of (B, n) and all of them reach into each other."""
    start = torch.maximum(low[:, part, None], low[:, None])
    return torch.minimum(high[:, part, None], high[:, None]).sub_(start).clamp_(min=0)
