"""Mask Scoring R-CNN (Huang et al. 2019): a head tells how well a mask fits, and scores are multiplied by that."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from boxdet.geometry.boxes import at_least_float32
from boxdet.models.bbox_head import RoITrainSettings
from boxdet.models.detectors import TwoStageDetector
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.settings import number
from boxdet.models.standard_roi_head import StandardRoIHead
from boxdet.registry import DETECTORS, HEADS, LOSSES, Cfg
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances, joined

_INIT = [dict(type='Kaiming', override=dict(name='convs')), dict(type='Caffe2Xavier', override=dict(name='fcs')),
         dict(type='Normal', std=0.01, override=dict(name='fc_mask_iou'))]


@dataclass(frozen=True)
class MaskScoringTrainSettings(RoITrainSettings):
    """``RoITrainSettings`` with ``mask_thr_binary``: a pixel whose logit is higher belongs to the predicted mask."""
    mask_thr_binary: float = number(0.5)


@DETECTORS.register_module()
class MaskScoringRCNN(TwoStageDetector):
    """Mask R-CNN whose scores are multiplied by the IoU that their masks are expected to have."""


@HEADS.register_module()
class MaskScoringRoIHead(StandardRoIHead):
    """A RoI head with a ``mask_iou_head`` beside the mask head; the rest as in ``StandardRoIHead``."""

    train_settings = MaskScoringTrainSettings

    def __init__(self, mask_iou_head: Cfg, **kwargs: Any):
        super().__init__(**kwargs)
        self.mask_iou_head = HEADS.build(mask_iou_head)

    def mask_losses(self, feats: Sequence[torch.Tensor], pooled: torch.Tensor, samples: Sequence[SampledRois],
                    gt: Sequence[Instances]) -> dict[str, torch.Tensor]:
        """``loss_mask`` and ``loss_mask_iou``."""
        labels = torch.cat([s.pos_gt_labels for s in samples])
        logits = self.mask_head.forward_labels(pooled, labels)
        targets = self.mask_head.targets(samples, gt, self.train_cfg)
        wanted = _mask_ious(logits.detach() > self.train_cfg.mask_thr_binary, targets, samples, gt)
        found = self._ious(pooled, logits, labels)
        return self.mask_head.loss(logits, targets) | self.mask_iou_head.loss(found, wanted)

    def mask_fields(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                    labels: Sequence[torch.Tensor] | torch.Tensor, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """The masks, and the scores (R,) times the IoU that they are expected to have."""
        pooled, labels = self.mask_features(feats, boxes_to_rois(boxes)), joined(labels)
        logits = self.mask_head.forward_labels(pooled, labels)
        ious = self._ious(pooled, logits, labels)
        return dict(mask_probs=at_least_float32(logits).sigmoid(), scores=scores * ious)

    def _ious(self, pooled: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return at_least_float32(self.mask_iou_head(pooled, logits).gather(1, labels[:, None]).squeeze(1))


@HEADS.register_module()
class MaskIoUHead(nn.Module):
    """Convolutions and linear layers that give the IoU of a mask with its object, by class; arguments as in 2.x."""

    def __init__(self, num_convs: int = 4, num_fcs: int = 2, roi_feat_size: int | tuple[int, int] = 14,
                 in_channels: int = 256, conv_out_channels: int = 256, fc_out_channels: int = 1024,
                 num_classes: int = 80, loss_iou: Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(conv_out_channels if i else in_channels + 1, conv_out_channels, 3, padding=1,
                      stride=2 if i == num_convs - 1 else 1) for i in range(num_convs))
        cells = (_pair(roi_feat_size)[0] // 2) * (_pair(roi_feat_size)[1] // 2)
        self.fcs = nn.ModuleList(nn.Linear(fc_out_channels if i else conv_out_channels * cells, fc_out_channels)
                                 for i in range(num_fcs))
        self.fc_mask_iou = nn.Linear(fc_out_channels, num_classes)
        self.loss_iou = LOSSES.build(loss_iou or dict(type='MSELoss', loss_weight=0.5))
        self.init_cfg = init_cfg or _INIT

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, feats: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """IoUs (R, K) from features (R, C, h, w) and mask logits (R, H, W) with H = 2h, W = 2w."""
        x = torch.cat([feats, F.max_pool2d(logits.sigmoid()[:, None], 2)], dim=1)
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.fc_mask_iou(x)

    def loss(self, found: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``loss_mask_iou`` of IoUs (P,), without those that should be 0."""
        return dict(loss_mask_iou=self.loss_iou(found[wanted > 0], wanted[wanted > 0]))


def _mask_ious(masks: torch.Tensor, targets: torch.Tensor, samples: Sequence[SampledRois],
               gt: Sequence[Instances]) -> torch.Tensor:
    """IoUs (P,) of predicted masks (P, H, W) bool with whole objects, of which the positives show a part each."""
    parts = []
    for drawn, objects in zip(samples, gt):
        areas, boxes = objects.masks.areas, drawn.pos_boxes.long().tolist()
        parts += [objects.masks[[i]].crop(box).areas[0] / (areas[i] + 1e-7)
                  for box, i in zip(boxes, drawn.pos_gt_index.tolist())]
    shown = samples[0].pos_boxes.new_tensor(parts) + 1e-7
    common, found, part = ((m != 0).sum(dim=(1, 2)).to(shown.dtype) for m in (masks * targets, masks, targets))
    return common / (found + part / shown - common)
