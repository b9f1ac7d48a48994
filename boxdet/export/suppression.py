"""Suppressions for a graph (``geometry.nms.Suppression``): nothing is asked of the tensors, and every size is known.

``OnnxSuppression`` calls an operator of our own, which becomes ONNX's NonMaxSuppression. ``ProgramSuppression`` calls
torchvision's nms only, so that a ``.pt2`` file runs where boxdet is not installed.

Letters: B images, N boxes of an image, G groups (classes, or pyramid levels).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torchvision.ops import nms

from boxdet.geometry.nms import group_of_parts, read_nms_config


class OnnxSuppression:
    """Torchvision's suppression with ONNX's operators.

    Args:
        candidates: so many pairs of box and class of an image are looked at, at most. An image that has more and of
            them fewer results than wanted is not ``settled``.
        num_groups: classes of the boxes that are suppressed by class.
    """

    def __init__(self, candidates: int, num_groups: int):
        self.candidates = candidates
        self.num_groups = num_groups

    def supports(self, nms_cfg: Mapping[str, Any] | None) -> bool:
        """Whether the config has no soft_nms and no ``max_num``."""
        if nms_cfg is None:
            return True
        kind, options = read_nms_config(nms_cfg)
        return kind == 'nms' and options['max_num'] <= 0

    def pick(self, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``best``."""
        return self.best(scores, count)

    def best(self, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``count`` highest of scores (B, N) and their places, filled up with scores of -1 where N is less."""
        present = scores.shape[1]
        if isinstance(present, int) and present >= count:
            return scores.topk(count, dim=1)
        scores, place = F.pad(scores, (0, count), value=-1).topk(count, dim=1)
        return scores, place.clamp(max=present - 1)

    def room(self, present: torch.Tensor, wanted: int) -> int:
        """A fixed number."""
        return min(max(self.candidates, wanted), present.shape[1])

    def keep(self, boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, nms_cfg: Mapping[str, Any] | None,
             groups: torch.Tensor | None = None,
             parts: Sequence[int] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``geometry.nms.Suppression``."""
        settled = valid.new_ones(())
        if nms_cfg is None:
            return valid, scores, settled
        _, options = read_nms_config(nms_cfg)
        if options['score_threshold'] > 0:
            valid = valid & (scores > options['score_threshold'])
        if options['offset']:
            boxes = torch.cat([boxes[..., :2], boxes[..., 2:] + options['offset']], dim=-1)
        count = self.num_groups
        if groups is None:
            assert parts is not None  # one of the two says what suppresses what
            groups, count = group_of_parts(parts, boxes.device).expand_as(valid), len(parts)
        if options['class_agnostic']:
            groups, count = torch.zeros_like(groups), 1
        return self._keep(boxes, scores, valid, groups, count, options['iou_threshold']), scores, settled

    def _keep(self, boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, groups: torch.Tensor,
              num_groups: int, threshold: float) -> torch.Tensor:
        """(B, N) bool: the valid boxes that no better one of their group overlaps by more than ``threshold``."""
        every = torch.arange(num_groups, device=groups.device)[None, :, None]
        of_group = valid[:, None] & (groups[:, None] == every)                           # (B, G, N)
        return nms_by_group(boxes, torch.where(of_group, scores[:, None], -1.0), threshold)


class ProgramSuppression(OnnxSuppression):
    """The same with torchvision's operator alone: groups and images are set apart, in float64."""

    def _keep(self, boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, groups: torch.Tensor,
              num_groups: int, threshold: float) -> torch.Tensor:
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
        return _joint_nms(boxes, scores, valid, images * num_groups + groups, threshold)


@torch.library.custom_op('boxdet::nms_by_group', mutates_args=())
def nms_by_group(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Suppress boxes (B, N, 4) by groups.

    Args:
        boxes: (B, N, 4).
        scores: (B, G, N), below 0 where a box is not of the group, or not there at all.
        threshold: boxes that overlap a better one of their group by more than this go.

    Returns:
        (B, N) bool: the boxes that stay.
    """
    best, groups = scores.max(dim=1)
    groups = groups + scores.shape[1] * torch.arange(len(boxes), device=boxes.device)[:, None]
    return _joint_nms(boxes, best, best >= 0, groups, threshold)


@nms_by_group.register_fake
def _(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def _joint_nms(boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, groups: torch.Tensor,
               threshold: float) -> torch.Tensor:
    """(B, N) bool: one suppression of all boxes (B, N, 4), which ``groups`` (B, N) tell apart."""
    boxes = boxes.double()
    span = (boxes.amax() - boxes.amin()).ceil() + 1
    # What is not valid gets no area and a place of its own, so that it suppresses nothing.
    apart = torch.where(valid[..., None], boxes + (groups * span)[..., None], -span)
    chosen = nms(apart.flatten(0, 1), scores.double().flatten(), threshold)
    keep = torch.zeros_like(valid).flatten().index_fill(0, chosen, True)
    return keep.unflatten(0, valid.shape) & valid
