"""Seesaw loss for classes of very different frequency (Wang et al. 2021), and the normalised predictors it goes with.

Letters: N rois, P positive ones, K classes (label K is the background), C channels.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.errors import ArgumentError, ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.models.losses import AvgFactor, accuracy, checked_reduction, weight_reduce_loss
from boxdet.registry import LAYERS, LOSSES


@LOSSES.register_module()
class SeesawLoss(nn.Module):
    """Seesaw loss: cross entropy with a smaller penalty on rare classes from samples of frequent ones.

    The head gives K + 2 scores: those of the classes, and two that tell object and background apart. How many samples
    each class has had is a part of the model's state.

    Args:
        use_sigmoid: always False.
        p: exponent of the mitigation factor, the ratio of the classes' samples; 0 for none.
        q: exponent of the compensation factor, which punishes wrong classes that score higher; 0 for none.
        num_classes: K.
        eps: the least score of the right class in the compensation.
        reduction: 'mean', 'sum' or 'none'.
        loss_weight: what both parts are multiplied by.
        return_dict: return the two parts by name; otherwise their sum.

    Raises:
        ConfigError: ``use_sigmoid=True``.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    def __init__(self, use_sigmoid: bool = False, p: float = 0.8, q: float = 2.0, num_classes: int = 1203,
                 eps: float = 1e-2, reduction: str = 'mean', loss_weight: float = 1.0, return_dict: bool = True):
        super().__init__()
        if use_sigmoid:
            raise ConfigError('SeesawLoss: only use_sigmoid=False exists')
        self.use_sigmoid, self.p, self.q, self.eps = False, p, q, eps
        self.num_classes, self.reduction, self.loss_weight = num_classes, reduction, loss_weight
        self.return_dict = return_dict
        self.register_buffer('cum_samples', torch.zeros(num_classes + 1))

    def get_cls_channels(self, num_classes: int) -> int:
        """How many scores a head of so many classes gives.

        Raises:
            ConfigError: the loss is of another number of classes.
        """
        if num_classes != self.num_classes:
            raise ConfigError(f'SeesawLoss: num_classes={self.num_classes}, and the head has {num_classes}')
        return num_classes + 2

    def get_activation(self, cls_score: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, K + 1) from scores (N, K + 2)."""
        classes, objectness = (part.softmax(dim=-1) for part in self._parts(cls_score))
        return torch.cat([classes * objectness[..., :1], objectness[..., 1:]], dim=-1)

    def get_accuracy(self, cls_score: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """``acc_objectness`` and ``acc_classes``, in percent, of scores (N, K + 2) against labels (N,)."""
        classes, objectness = self._parts(cls_score)
        positive = labels < self.num_classes
        return dict(acc_objectness=accuracy(objectness, (~positive).long()),
                    acc_classes=accuracy(classes[positive], labels[positive]))

    def _parts(self, cls_score: torch.Tensor) -> Sequence[torch.Tensor]:
        if cls_score.shape[-1] != self.num_classes + 2:
            raise ArgumentError(f'SeesawLoss: {self.num_classes + 2} scores for {self.num_classes} classes, not '
                                f'{cls_score.shape[-1]}')
        return at_least_float32(cls_score).split([self.num_classes, 2], dim=-1)

    def forward(self, cls_score: torch.Tensor, labels: torch.Tensor, label_weights: torch.Tensor | None = None,
                avg_factor: AvgFactor = None,
                reduction_override: str | None = None) -> dict[str, torch.Tensor] | torch.Tensor:
        """Loss of scores (N, K + 2) against labels (N,): ``loss_cls_objectness`` and ``loss_cls_classes``."""
        reduction = checked_reduction(self.reduction, reduction_override)
        classes, objectness = self._parts(cls_score)
        self.cum_samples += labels.bincount(minlength=len(self.cum_samples))
        positive = labels < self.num_classes
        weights = torch.ones_like(objectness[:, 0]) if label_weights is None else label_weights.to(objectness.dtype)
        found = self._classes_loss(classes[positive], labels[positive])
        # Without a positive: a zero that is connected to the graph.
        found = weight_reduce_loss(found, weights[positive], reduction, avg_factor) if len(found) else found.sum()
        whole = F.cross_entropy(objectness, (~positive).long(), reduction='none')
        whole = weight_reduce_loss(whole, weights, reduction, avg_factor)
        found, whole = found * self.loss_weight, whole * self.loss_weight
        return dict(loss_cls_objectness=whole, loss_cls_classes=found) if self.return_dict else whole + found

    def _classes_loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss (P,) of scores (P, K): each wrong class's exponential is multiplied by its seesaw weight."""
        weights = torch.ones_like(scores)
        with torch.no_grad():
            own = labels[:, None]
            if self.p > 0:
                samples = self.cum_samples[:self.num_classes].clamp(min=1).to(scores.dtype)
                weights = weights * (samples / samples[own]).clamp(max=1).pow(self.p)
            if self.q > 0:
                probs = scores.softmax(dim=1)
                weights = weights * (probs / probs.gather(1, own).clamp(min=self.eps)).clamp(min=1).pow(self.q)
            shift = weights.log().scatter(1, own, 0)
        return F.cross_entropy(scores + shift, labels, reduction='none')


def _normalised(value: torch.Tensor, norm: torch.Tensor, power: float, eps: float) -> torch.Tensor:
    return value / (norm.pow(power) + eps)


@LAYERS.register_module()
class NormedLinear(nn.Linear):
    """A linear layer on normalised features with normalised weights; the cosine times a temperature, if power is 1.

    Args:
        tempearture: the temperature, by the name that 2.x's configs have for it.
        power: of the norms.
        eps: added to them.
        **kwargs: as of ``torch.nn.Linear``.
    """

    def __init__(self, *args: Any, tempearture: float = 20, power: float = 1.0, eps: float = 1e-6, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tempearture, self.power, self.eps = tempearture, power, eps
        self.init_weights()

    def init_weights(self) -> None:
        """Small normal weights, no bias."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C) to (N, C')."""
        weight = _normalised(self.weight, self.weight.norm(dim=1, keepdim=True), self.power, self.eps)
        x = _normalised(x, x.norm(dim=1, keepdim=True), self.power, self.eps) * self.tempearture
        return F.linear(x, weight, self.bias)


@LAYERS.register_module()
class NormedConv2d(nn.Conv2d):
    """A convolution on normalised features with normalised weights; see ``NormedLinear``.

    Args:
        tempearture: as of ``NormedLinear``.
        power: as of ``NormedLinear``.
        eps: as of ``NormedLinear``.
        norm_over_kernel: the norm of a filter is over the whole of it, and not of each place by itself.
        **kwargs: as of ``torch.nn.Conv2d``.
    """

    def __init__(self, *args: Any, tempearture: float = 20, power: float = 1.0, eps: float = 1e-6,
                 norm_over_kernel: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tempearture, self.power, self.eps, self.norm_over_kernel = tempearture, power, eps, norm_over_kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, h, w) to (B, C', h', w')."""
        norm = self.weight.norm(dim=1, keepdim=True)
        if self.norm_over_kernel:
            norm = self.weight.flatten(1).norm(dim=1)[:, None, None, None]
        weight = _normalised(self.weight, norm, self.power, self.eps)
        x = _normalised(x, x.norm(dim=1, keepdim=True), self.power, self.eps) * self.tempearture
        return self._conv_forward(x, weight, self.bias)
