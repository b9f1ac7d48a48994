"""Gradient harmonised losses (Li et al. 2019, "Gradient Harmonized Single-stage Detector").

Samples are weighted by the inverse of how many have a gradient of the same length: the many easy ones and
the outliers count less.

Letters: N elements, K classes, M ranges of the gradient's length.
"""
from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.models.losses import AvgFactor, checked_reduction, weight_reduce_loss
from boxdet.registry import LOSSES


class _Harmonised(nn.Module):
    """What both losses share: the ranges, and weights by how many elements are in each."""

    def __init__(self, bins: int, momentum: float, loss_weight: float, reduction: str, last_edge: float):
        super().__init__()
        self.bins, self.momentum = bins, momentum
        self.loss_weight, self.reduction = loss_weight, reduction
        edges = torch.arange(bins + 1).float() / bins
        edges[-1] = last_edge
        self.register_buffer('edges', edges)
        if momentum > 0:
            self.register_buffer('acc_sum', torch.zeros(bins))

    def weights(self, length: torch.Tensor, valid: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Weights of elements of any shape by their gradient's length; 0 where not ``valid``."""
        place = torch.bucketize(length.detach(), self.edges.to(length.dtype)[1:-1], right=True)      # in [0, M)
        counts = torch.zeros(self.bins, dtype=length.dtype, device=length.device)
        counts = counts.index_add(0, place[valid], torch.ones_like(length[valid]))
        filled = counts > 0
        if self.momentum > 0:
            moved = self.momentum * self.acc_sum + (1 - self.momentum) * counts.to(self.acc_sum.dtype)
            self.acc_sum.copy_(torch.where(filled, moved, self.acc_sum))
            counts = self.acc_sum.to(length.dtype)
        share = torch.where(filled, total / counts.clamp(min=torch.finfo(counts.dtype).tiny), 0.0)
        return torch.where(valid, share[place], 0.0) / filled.sum().clamp(min=1)


@LOSSES.register_module()
class GHMC(_Harmonised):
    """Sigmoid cross entropy, harmonised.

    Args:
        bins: M.
        momentum: of the number of elements in a range; 0 takes each batch by itself.
        use_sigmoid: always True.
        loss_weight: what the loss is multiplied by.
        reduction: 'mean', 'sum' or 'none'.

    Raises:
        ConfigError: ``use_sigmoid=False``.
    """

    def __init__(self, bins: int = 10, momentum: float = 0, use_sigmoid: bool = True, loss_weight: float = 1.0,
                 reduction: str = 'mean'):
        super().__init__(bins, momentum, loss_weight, reduction, 1 + 1e-6)
        if not use_sigmoid:
            raise ConfigError('GHMC: only use_sigmoid=True exists')
        self.use_sigmoid = use_sigmoid

    def forward(self, pred: torch.Tensor, target: torch.Tensor, label_weight: torch.Tensor | None = None,
                avg_factor: AvgFactor = None, reduction_override: str | None = None) -> torch.Tensor:
        """Loss of logits (N, K) against classes (N,), K being the background, or answers (N, K).

        ``label_weight`` is 0 for elements that do not count. ``avg_factor`` is of no use: the loss has its own.
        """
        reduction = checked_reduction(self.reduction, reduction_override)
        pred = at_least_float32(pred)
        if pred.dim() != target.dim():
            target = target[:, None] == torch.arange(pred.shape[1], device=target.device)
            label_weight = label_weight if label_weight is None else label_weight[:, None]
        target = target.to(pred.dtype)
        valid = torch.ones_like(pred, dtype=torch.bool) if label_weight is None else (label_weight > 0).expand_as(pred)
        total = valid.sum().clamp(min=1).to(pred.dtype)
        weights = self.weights((pred.sigmoid() - target).abs(), valid, total)
        loss = F.binary_cross_entropy_with_logits(pred, target, reduction='none')
        return self.loss_weight * weight_reduce_loss(loss, weights, reduction, None if reduction == 'sum' else total)


@LOSSES.register_module()
class GHMR(_Harmonised):
    """A smooth L1 without corners, harmonised.

    Args:
        mu: where it turns from quadratic to linear.
        bins: M.
        momentum: of the number of elements in a range; 0 takes each batch by itself.
        loss_weight: what the loss is multiplied by.
        reduction: 'mean', 'sum' or 'none'.
    """
    needs_boxes = False  # of deltas, which are of the size of 1, and not of boxes in pixels

    def __init__(self, mu: float = 0.02, bins: int = 10, momentum: float = 0, loss_weight: float = 1.0,
                 reduction: str = 'mean'):
        super().__init__(bins, momentum, loss_weight, reduction, 1e3)
        self.mu = mu

    def forward(self, pred: torch.Tensor, target: torch.Tensor, label_weight: torch.Tensor | None = None,
                avg_factor: AvgFactor = None, reduction_override: str | None = None) -> torch.Tensor:
        """Loss of (N, 4) against (N, 4); arguments as in ``GHMC``."""
        reduction = checked_reduction(self.reduction, reduction_override)
        difference = at_least_float32(pred) - at_least_float32(target)
        root = (difference ** 2 + self.mu ** 2).sqrt()
        label_weight = torch.ones_like(difference) if label_weight is None else label_weight.expand_as(difference)
        total = label_weight.sum().clamp(min=1).to(difference.dtype)
        weights = self.weights((difference / root).abs(), label_weight > 0, total)
        return self.loss_weight * weight_reduce_loss(root - self.mu, weights, reduction,
                                                     None if reduction == 'sum' else total)
