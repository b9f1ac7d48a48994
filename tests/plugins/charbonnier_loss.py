"""A loss with 2.x's arguments."""
import torch
from torch import nn

from boxdet.models import LOSSES


@LOSSES.register_module()
class CharbonnierLoss(nn.Module):
    def __init__(self, eps=1e-3, loss_weight=1.0):
        super().__init__()
        self.eps, self.loss_weight = eps, loss_weight

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        loss = torch.sqrt((pred - target) ** 2 + self.eps ** 2)
        loss = loss if weight is None else loss * weight
        return self.loss_weight * loss.sum() / max(avg_factor or loss.numel(), 1)
