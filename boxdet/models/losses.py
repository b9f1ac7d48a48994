"""Losses, each a module ``loss(pred, target, weight=None, avg_factor=None, reduction_override=None)``.

``weight`` multiplies the loss of each element, the sum is divided by ``avg_factor`` where it is given, and by the
number of elements otherwise; ``reduction`` is ``mean``, ``sum`` or ``none``. Without elements a loss is a zero that is
connected to the graph. Half precision is computed in float32.

Letters: N elements (anchors, rois), K classes, R rois with masks of h x w.
"""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast, overload

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.errors import ArgumentError, ConfigError, nearest
from boxdet.geometry.boxes import at_least_float32, box_area, box_overlaps
from boxdet.registry import LOSSES

_REDUCTIONS = ('mean', 'sum', 'none')
AvgFactor = float | torch.Tensor | None


def weight_reduce_loss(loss: torch.Tensor, weight: torch.Tensor | None = None, reduction: str = 'mean',
                       avg_factor: AvgFactor = None) -> torch.Tensor:
    """Weigh a loss of any shape by ``weight``, which broadcasts to it, and reduce it.

    Raises:
        ValueError: ``avg_factor`` together with the reduction ``sum``.
    """
    if weight is not None:
        loss = loss * weight
    if reduction == 'none':
        return loss
    if avg_factor is None:
        # The mean of nothing would be NaN; its sum is a zero that backward() accepts.
        return loss.mean() if reduction == 'mean' and loss.numel() else loss.sum()
    if reduction == 'sum':
        raise ArgumentError("avg_factor is of no use with reduction 'sum'")
    return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps)


@overload
def accuracy(pred: torch.Tensor, target: torch.Tensor, topk: int = 1, thresh: float | None = None) -> torch.Tensor: ...


@overload
def accuracy(pred: torch.Tensor, target: torch.Tensor, topk: Sequence[int],
             thresh: float | None = None) -> list[torch.Tensor]: ...


def accuracy(pred: torch.Tensor, target: torch.Tensor, topk: int | Sequence[int] = 1,
             thresh: float | None = None) -> torch.Tensor | list[torch.Tensor]:
    """Percentage of rows whose class is among the ``topk`` highest scores, a scalar; a list of them for several topk.

    Args:
        pred: (N, K) scores.
        target: (N,) classes.
        topk: one number or several.
        thresh: a score must also be higher than this.

    Raises:
        ValueError: ``topk`` is higher than K or no number, or shapes that do not go together.
    """
    counts = (topk,) if isinstance(topk, int) else tuple(topk)
    if not all(isinstance(count, int) for count in counts):
        raise ArgumentError(f'topk is one number or several, not {topk!r}')
    if pred.dim() != 2 or target.shape != pred.shape[:1]:
        raise ArgumentError(f'scores (N, K) and classes (N,), not {tuple(pred.shape)} and {tuple(target.shape)}')
    if not len(pred):
        results = [pred.new_zeros(()) for _ in counts]
        return results[0] if isinstance(topk, int) else results
    if max(counts) > pred.shape[1]:
        raise ArgumentError(f'top {max(counts)} of {pred.shape[1]} classes')
    values, labels = pred.detach().topk(max(counts), dim=1)                              # (N, topk)
    correct = labels == target[:, None]
    if thresh is not None:
        correct = correct & (values > thresh)
    results = [correct[:, :k].sum() * (100.0 / len(pred)) for k in counts]
    return results[0] if isinstance(topk, int) else results


class _Loss(nn.Module):
    """What the losses share: the keywords ``reduction`` and ``loss_weight``."""

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0):
        super().__init__()
        self.reduction = checked_reduction(reduction)
        self.loss_weight = loss_weight

    def reduce(self, loss: torch.Tensor, weight: torch.Tensor | None, avg_factor: AvgFactor,
               reduction: str) -> torch.Tensor:
        """Weigh, reduce and multiply by ``loss_weight``."""
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)


def checked_reduction(reduction: str, override: str | None = None) -> str:
    """``reduction``, or ``override`` in its place; what a loss asks before it looks at anything else.

    Raises:
        ConfigError: there is no such reduction.
    """
    found = reduction if override is None else override
    if found not in _REDUCTIONS:
        raise ConfigError(f"loss: unknown reduction '{found}'{nearest(found, _REDUCTIONS)}")
    return found


# ------------------------------------------------------------------------------------------------- classification


@LOSSES.register_module()
class CrossEntropyLoss(_Loss):
    """Cross entropy: softmax over classes, a sigmoid for each class, or a mask's pixels.

    Args:
        use_sigmoid: each class is a yes or no of its own.
        use_mask: ``pred`` are masks of each class, of which the roi's own counts.
        reduction: as in the other losses.
        loss_weight: as in the other losses.
        class_weight: weight of each class; with sigmoid or masks of the positive answers.
        ignore_index: elements of this label have no loss; -100 by default.
        avg_non_ignore: the mean is over the elements that are not ignored, where no ``avg_factor`` is given.

    Raises:
        ConfigError: both ``use_sigmoid`` and ``use_mask``.
    """

    def __init__(self, use_sigmoid: bool = False, use_mask: bool = False, reduction: str = 'mean',
                 class_weight: Sequence[float] | None = None, ignore_index: int | None = None,
                 loss_weight: float = 1.0, avg_non_ignore: bool = False):
        super().__init__(reduction, loss_weight)
        if use_sigmoid and use_mask:
            raise ConfigError('CrossEntropyLoss: use_sigmoid and use_mask exclude each other')
        self.use_sigmoid = use_sigmoid
        self.use_mask = use_mask
        self.class_weight = None if class_weight is None else list(class_weight)
        # Moves with the model, so that no step copies it to the device; no key of the state dict.
        self.register_buffer('_class_weight', None if class_weight is None else torch.tensor(self.class_weight),
                             persistent=False)
        self.ignore_index = ignore_index
        self.avg_non_ignore = avg_non_ignore

    @property
    def exclusive_classes(self) -> bool:
        """Whether an element has one class of several: a softmax."""
        return not (self.use_sigmoid or self.use_mask)

    def forward(self, cls_score: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None,
                avg_factor: AvgFactor = None, reduction_override: str | None = None,
                ignore_index: int | None = None) -> torch.Tensor:
        """Loss of scores against labels.

        Args:
            cls_score: (N, K) logits; with ``use_mask`` (R, K, h, w).
            label: (N,) classes, or (N, K) zeros and ones with ``use_sigmoid``; with ``use_mask`` the masks (R, h, w).
            weight: (N,) or of the loss's shape; with ``use_mask`` the class (R,) of each roi, as mmdetection has it.
            avg_factor: what the sum is divided by, in the place of the number of elements.
            reduction_override: 'none', 'mean' or 'sum', in the place of ``reduction``.
            ignore_index: in the place of the constructor's.
        """
        reduction = checked_reduction(self.reduction, reduction_override)
        ignore_index = self.ignore_index if ignore_index is None else ignore_index
        ignore_index = -100 if ignore_index is None else ignore_index
        cls_score = at_least_float32(cls_score)
        class_weight = self._class_weight
        if class_weight is not None:
            class_weight = class_weight.to(cls_score.device, cls_score.dtype, non_blocking=True)
        if self.use_mask:
            loss, weight = mask_cross_entropy(cls_score, label, cast(torch.Tensor, weight), class_weight), None
        elif self.use_sigmoid:
            loss, weight, valid = binary_cross_entropy(cls_score, label, weight, class_weight, ignore_index)
            avg_factor = self._non_ignored(avg_factor, valid, reduction)
        else:
            loss = F.cross_entropy(cls_score, label, class_weight, reduction='none', ignore_index=ignore_index)
            avg_factor = self._non_ignored(avg_factor, label != ignore_index, reduction)
        weight = weight if weight is None else weight.to(loss.dtype)
        return self.reduce(loss, weight, avg_factor, reduction)

    def _non_ignored(self, avg_factor: AvgFactor, valid: torch.Tensor, reduction: str) -> AvgFactor:
        return valid.sum() if avg_factor is None and self.avg_non_ignore and reduction == 'mean' else avg_factor


def binary_cross_entropy(pred: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None,
                         class_weight: torch.Tensor | None = None,
                         ignore_index: int = -100) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sigmoid cross entropy of logits (N, K) with classes (N,), K standing for none of them, or with (N, K) answers.

    Elements of a negative label or of ``ignore_index`` weigh nothing.

    Returns:
        loss (N, K), its weights and which of it is valid, both broadcasting to (N, K).
    """
    if pred.dim() != label.dim():
        valid = ((label >= 0) & (label != ignore_index))[:, None]                        # (N, 1)
        answers = (label[:, None] == torch.arange(pred.shape[-1], device=label.device)) & valid
        valid = valid.expand_as(pred)
        weight = weight if weight is None else weight[:, None]
    else:
        valid = (label >= 0) & (label != ignore_index)
        answers = label
    weight = valid.to(pred.dtype) if weight is None else weight * valid
    loss = F.binary_cross_entropy_with_logits(pred, answers.to(pred.dtype), pos_weight=class_weight, reduction='none')
    return loss, weight, valid


def mask_cross_entropy(pred: torch.Tensor, target: torch.Tensor, label: torch.Tensor,
                       class_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Sigmoid cross entropy (R, h, w) of the channel ``label`` (R,) of logits (R, K, h, w) with masks (R, h, w)."""
    own = pred[torch.arange(len(pred), device=pred.device), label]                       # (R, h, w)
    return F.binary_cross_entropy_with_logits(own, target.to(own.dtype), weight=class_weight, reduction='none')


@LOSSES.register_module()
class FocalLoss(_Loss):
    """Sigmoid focal loss (Lin et al. 2017, RetinaNet).

    Args:
        use_sigmoid: always True.
        gamma: how much easy examples lose.
        alpha: weight of the positive answers, 1 - alpha of the negative ones.
        activated: ``pred`` are probabilities and not logits.

    Raises:
        ConfigError: ``use_sigmoid=False``.
    """

    def __init__(self, use_sigmoid: bool = True, gamma: float = 2.0, alpha: float = 0.25, reduction: str = 'mean',
                 loss_weight: float = 1.0, activated: bool = False):
        super().__init__(reduction, loss_weight)
        if use_sigmoid is not True:
            raise ConfigError('FocalLoss: only use_sigmoid=True exists')
        self.use_sigmoid = use_sigmoid
        self.gamma = gamma
        self.alpha = alpha
        self.activated = activated

    def forward(self, pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None,
                avg_factor: AvgFactor = None, reduction_override: str | None = None) -> torch.Tensor:
        """Loss of (N, K) against classes (N,), K being the background, or answers (N, K); weight (N,) or (N, K)."""
        reduction = checked_reduction(self.reduction, reduction_override)
        pred = at_least_float32(pred)
        if pred.dim() != target.dim():
            target = target[:, None] == torch.arange(pred.shape[1], device=target.device)
        target = target.to(pred.dtype)                                                   # (N, K)
        prob = pred if self.activated else pred.sigmoid()
        wrong = (1 - prob) * target + prob * (1 - target)
        focus = (self.alpha * target + (1 - self.alpha) * (1 - target)) * wrong.pow(self.gamma)
        if self.activated:
            with torch.autocast(pred.device.type, enabled=False):  # half precision is refused there
                loss = F.binary_cross_entropy(pred, target, reduction='none') * focus
        else:
            loss = F.binary_cross_entropy_with_logits(pred, target, reduction='none') * focus
        if weight is not None and weight.dim() == 1:
            weight = weight[:, None]
        return self.reduce(loss, weight, avg_factor, reduction)


# ------------------------------------------------------------------------------------------------- regression


class _ElementLoss(_Loss, ABC):
    """A loss of each number by itself; subclasses say which in ``elementwise``."""
    needs_boxes = False  # it measures deltas, which are around 1, not boxes in pixels

    @abstractmethod
    def elementwise(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of each number, of the shape of both."""

    def forward(self, pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None,
                avg_factor: AvgFactor = None, reduction_override: str | None = None) -> torch.Tensor:
        """Loss of ``pred`` against ``target`` of the same shape.

        Raises:
            ValueError: different shapes.
        """
        reduction = checked_reduction(self.reduction, reduction_override)
        if pred.shape != target.shape:
            raise ArgumentError(f'{type(self).__name__}: pred {tuple(pred.shape)}, target {tuple(target.shape)}')
        loss = self.elementwise(at_least_float32(pred), at_least_float32(target))
        return self.reduce(loss, weight, avg_factor, reduction)


@LOSSES.register_module()
class L1Loss(_ElementLoss):
    """|pred - target|."""

    def elementwise(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``_ElementLoss.elementwise``."""
        return (pred - target).abs()


@LOSSES.register_module()
class MSELoss(_ElementLoss):
    """(pred - target) squared."""

    def elementwise(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``_ElementLoss.elementwise``."""
        return F.mse_loss(pred, target, reduction='none')


@LOSSES.register_module()
class SmoothL1Loss(_ElementLoss):
    """Quadratic below ``beta``, linear above (Girshick 2015, Fast R-CNN)."""

    def __init__(self, beta: float = 1.0, reduction: str = 'mean', loss_weight: float = 1.0):
        super().__init__(reduction, loss_weight)
        if beta <= 0:
            raise ConfigError(f'SmoothL1Loss: beta is above 0, not {beta} (L1Loss is its limit)')
        self.beta = beta

    def elementwise(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``_ElementLoss.elementwise``."""
        return F.smooth_l1_loss(pred, target, reduction='none', beta=self.beta)


@LOSSES.register_module()
class BalancedL1Loss(_ElementLoss):
    """Smooth L1 with more gradient for small errors (Pang et al. 2019, Libra R-CNN, section 3.3).

    Args:
        alpha: of the paper.
        gamma: likewise.
        beta: where the linear part begins.
    """

    def __init__(self, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0, reduction: str = 'mean',
                 loss_weight: float = 1.0):
        super().__init__(reduction, loss_weight)
        if beta <= 0:
            raise ConfigError(f'BalancedL1Loss: beta is above 0, not {beta}')
        self.alpha = alpha
        self.gamma = gamma
        self.beta = beta

    def elementwise(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``_ElementLoss.elementwise``."""
        error = (pred - target).abs()
        b = math.exp(self.gamma / self.alpha) - 1
        inner = self.alpha / b * (b * error + 1) * (b * error / self.beta + 1).log() - self.alpha * error
        return torch.where(error < self.beta, inner, self.gamma * error + self.gamma / b - self.alpha * self.beta)


# ------------------------------------------------------------------------------------------------- boxes


class _BoxLoss(_Loss, ABC):
    """A loss of decoded boxes (N, 4), one number a box; subclasses say which in ``of_boxes``."""
    needs_boxes = True

    def __init__(self, eps: float = 1e-6, reduction: str = 'mean', loss_weight: float = 1.0):
        super().__init__(reduction, loss_weight)
        self.eps = eps

    @abstractmethod
    def of_boxes(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss (N,) of boxes (N, 4)."""

    def forward(self, pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None,
                avg_factor: AvgFactor = None, reduction_override: str | None = None) -> torch.Tensor:
        """Loss of boxes (N, 4) xyxy; weight (N,), or (N, 4) of which the mean counts."""
        reduction = checked_reduction(self.reduction, reduction_override)
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(-1)
        loss = self.of_boxes(at_least_float32(pred), at_least_float32(target))
        return self.reduce(loss, weight, avg_factor, reduction)


@LOSSES.register_module()
class IoULoss(_BoxLoss):
    """-log IoU, 1 - IoU or 1 - IoU squared (Yu et al. 2016).

    Args:
        linear: mmdetection's older word for ``mode='linear'``.
        eps: the least IoU that the logarithm sees.
        mode: ``log``, ``linear`` or ``square``.

    Raises:
        ConfigError: an unknown mode.
    """

    def __init__(self, linear: bool = False, eps: float = 1e-6, reduction: str = 'mean', loss_weight: float = 1.0,
                 mode: str = 'log'):
        super().__init__(eps, reduction, loss_weight)
        if mode not in ('linear', 'square', 'log'):
            raise ConfigError(f"IoULoss: unknown mode '{mode}'{nearest(mode, ('linear', 'square', 'log'))}")
        self.mode = 'linear' if linear else mode

    def of_boxes(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``_BoxLoss.of_boxes``."""
        iou = box_overlaps(pred, target, is_aligned=True).clamp(min=self.eps)
        if self.mode == 'log':
            return -iou.log()
        return 1 - (iou if self.mode == 'linear' else iou ** 2)


@LOSSES.register_module()
class GIoULoss(_BoxLoss):
    """1 - generalised IoU (Rezatofighi et al. 2019)."""

    def of_boxes(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``_BoxLoss.of_boxes``."""
        return 1 - box_overlaps(pred, target, mode='giou', is_aligned=True, eps=self.eps)


@LOSSES.register_module()
class DIoULoss(_BoxLoss):
    """1 - IoU + squared distance of the centres over the squared diagonal of the hull (Zheng et al. 2020)."""

    def of_boxes(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``_BoxLoss.of_boxes``."""
        iou, distance = _iou_and_distance(pred, target, self.eps)
        return 1 - (iou - distance)


@LOSSES.register_module()
class CIoULoss(_BoxLoss):
    """DIoU with a term for the aspect ratio, from an IoU of 0.5 on (Zheng et al. 2021)."""

    def of_boxes(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``_BoxLoss.of_boxes``."""
        iou, distance = _iou_and_distance(pred, target, self.eps)
        angles = [((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1] + self.eps)).atan() for b in (target, pred)]
        aspect = 4 / math.pi ** 2 * (angles[0] - angles[1]) ** 2
        with torch.no_grad():
            # In large boxes that agree the eps of the union is rounded away; this must not become 0 / 0.
            trade_off = (iou > 0.5).to(iou.dtype) * aspect / (1 - iou + aspect).clamp(min=self.eps)
        return 1 - (iou - (distance + trade_off * aspect)).clamp(-1, 1)


def _iou_and_distance(pred: torch.Tensor, target: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU (N,), and squared distance of the centres over the squared diagonal of the hull (N,)."""
    inter = (torch.minimum(pred[:, 2:], target[:, 2:]) - torch.maximum(pred[:, :2], target[:, :2])).clamp(min=0)
    inter = inter[:, 0] * inter[:, 1]
    iou = inter / (box_area(pred) + box_area(target) - inter + eps)
    hull = (torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])).clamp(min=0)
    shift = (target[:, :2] + target[:, 2:]) - (pred[:, :2] + pred[:, 2:])  # twice the centres' distance
    return iou, shift.square().sum(-1) / 4 / (hull.square().sum(-1) + eps)


@LOSSES.register_module()
class BoundedIoULoss(_Loss):
    """Four bounds of the IoU, by centre and size, under a smooth L1 (Tychsen-Smith and Petersson 2018).

    Args:
        beta: of the smooth L1.
        eps: added to what is divided by.
    """
    needs_boxes = True

    def __init__(self, beta: float = 0.2, eps: float = 1e-3, reduction: str = 'mean', loss_weight: float = 1.0):
        super().__init__(reduction, loss_weight)
        if beta <= 0:
            raise ConfigError(f'BoundedIoULoss: beta is above 0, not {beta}')
        self.beta = beta
        self.eps = eps

    def forward(self, pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None,
                avg_factor: AvgFactor = None, reduction_override: str | None = None) -> torch.Tensor:
        """Loss of boxes (N, 4) xyxy, four numbers a box: weight (N, 4), or (N,) for all four."""
        reduction = checked_reduction(self.reduction, reduction_override)
        pred, target = at_least_float32(pred), at_least_float32(target).detach()
        center, size = (pred[:, :2] + pred[:, 2:]) * 0.5, pred[:, 2:] - pred[:, :2]
        gt_center, gt_size = (target[:, :2] + target[:, 2:]) * 0.5, target[:, 2:] - target[:, :2]
        shift = 2 * (gt_center - center).abs()
        by_center = 1 - ((gt_size - shift) / (gt_size + shift + self.eps)).clamp(min=0)
        by_size = 1 - torch.minimum(gt_size / (size + self.eps), size / (gt_size + self.eps))
        bound = torch.cat([by_center, by_size], dim=1)                                   # (N, 4): x, y, w, h
        loss = torch.where(bound < self.beta, 0.5 * bound * bound / self.beta, bound - 0.5 * self.beta)
        if weight is not None and weight.dim() == 1:
            weight = weight[:, None]
        return self.reduce(loss, weight, avg_factor, reduction)
