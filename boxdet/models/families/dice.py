"""Dice loss of masks (Milletari et al. 2016, "V-Net").

Letters: N masks.
"""
from __future__ import annotations

import torch

from boxdet.errors import ArgumentError, ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.models.losses import AvgFactor, _Loss, checked_reduction
from boxdet.registry import LOSSES


@LOSSES.register_module()
class DiceLoss(_Loss):
    """1 - twice what a mask and its target share over what both hold, one number a mask.

    Args:
        use_sigmoid: how logits become probabilities; always True where ``activate``.
        activate: ``pred`` are logits and not probabilities.
        reduction: as in the other losses.
        naive_dice: what both hold is the sum of their pixels, and not of the squares.
        loss_weight: as in the other losses.
        eps: added to what is divided by; with ``naive_dice`` to what it divides, too.

    Raises:
        ConfigError: logits, but no sigmoid.
    """

    def __init__(self, use_sigmoid: bool = True, activate: bool = True, reduction: str = 'mean',
                 naive_dice: bool = False, loss_weight: float = 1.0, eps: float = 1e-3):
        super().__init__(reduction, loss_weight)
        if activate and not use_sigmoid:
            raise ConfigError('DiceLoss: logits need use_sigmoid=True; activate=False takes probabilities')
        self.use_sigmoid, self.activate, self.naive_dice, self.eps = use_sigmoid, activate, naive_dice, eps

    def forward(self, pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None,
                reduction_override: str | None = None, avg_factor: AvgFactor = None) -> torch.Tensor:
        """Loss of masks (N, ...) against targets of the same shape; weight (N,).

        Raises:
            ValueError: weights of another shape.
        """
        reduction = checked_reduction(self.reduction, reduction_override)
        if weight is not None and weight.shape != pred.shape[:1]:
            raise ArgumentError(f'DiceLoss: weights {tuple(weight.shape)} of {len(pred)} masks')
        pred, target = at_least_float32(pred).flatten(1), at_least_float32(target).flatten(1)
        pred = pred.sigmoid() if self.activate else pred
        shared = 2 * (pred * target).sum(dim=1)
        if self.naive_dice:
            dice = (shared + self.eps) / (pred.sum(dim=1) + target.sum(dim=1) + self.eps)
        else:
            dice = shared / (pred.square().sum(dim=1) + target.square().sum(dim=1) + 2 * self.eps)
        return self.reduce(1 - dice, weight, avg_factor, reduction)
