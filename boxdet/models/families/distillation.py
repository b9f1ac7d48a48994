"""Distillation: a student's scores against a teacher's (Hinton et al. 2015).

Letters: N elements, K classes.
"""
from __future__ import annotations

import torch
from torch.nn import functional as F

from boxdet.errors import ArgumentError, ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.models.losses import AvgFactor, _Loss, checked_reduction
from boxdet.registry import LOSSES


@LOSSES.register_module()
class KnowledgeDistillationKLDivLoss(_Loss):
    """Kullback-Leibler divergence of both softmaxes, the mean over the classes, times the temperature squared.

    Args:
        reduction: as in the other losses.
        loss_weight: as in the other losses.
        T: temperature, which scores are divided by; 1 or higher.

    Raises:
        ConfigError: a lower temperature.
    """

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0, T: int = 10):
        super().__init__(reduction, loss_weight)
        if T < 1:
            raise ConfigError(f'KnowledgeDistillationKLDivLoss: T is 1 or higher, not {T}')
        self.T = T

    def forward(self, pred: torch.Tensor, soft_label: torch.Tensor, weight: torch.Tensor | None = None,
                avg_factor: AvgFactor = None, reduction_override: str | None = None) -> torch.Tensor:
        """Loss of the student's logits (N, K) against the teacher's (N, K), which get no gradient; weight (N,).

        Raises:
            ValueError: different shapes.
        """
        reduction = checked_reduction(self.reduction, reduction_override)
        if pred.shape != soft_label.shape:
            raise ArgumentError(f'KnowledgeDistillationKLDivLoss: pred {tuple(pred.shape)}, soft_label '
                                f'{tuple(soft_label.shape)}')
        wanted = (at_least_float32(soft_label).detach() / self.T).softmax(dim=1)
        found = (at_least_float32(pred) / self.T).log_softmax(dim=1)
        loss = F.kl_div(found, wanted, reduction='none').mean(dim=1) * self.T ** 2
        return self.reduce(loss, weight, avg_factor, reduction)
