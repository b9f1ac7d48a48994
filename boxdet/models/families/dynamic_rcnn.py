"""Dynamic R-CNN (Zhang et al. 2020): the IoU of positives rises, and the box loss narrows, as proposals get better.

What was gathered since the last change is no part of a checkpoint: a resumed training starts from the config's values,
and has those of its proposals after ``update_iter_interval`` iterations.

Letters: B images, R rois, P positive rois.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from boxdet.errors import ConfigError
from boxdet.models import contracts
from boxdet.models.bbox_head import BoxTargets, RoITrainSettings
from boxdet.models.standard_roi_head import StandardRoIHead
from boxdet.registry import HEADS
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances

_KEYS = {'iou_topk', 'beta_topk', 'update_iter_interval', 'initial_iou', 'initial_beta'}
_NO_BETA = 1e-15  # a median below it says nothing


@dataclass(frozen=True)
class DynamicTrainSettings(RoITrainSettings):
    """``RoITrainSettings`` with ``dynamic_rcnn``.

    Its keys are: ``iou_topk``, the rank of the IoU that an image gives; ``beta_topk``, the rank of the error that an
    image gives; ``update_iter_interval``, the iterations between two changes; ``initial_iou`` and ``initial_beta``, the
    least IoU and the largest beta.
    """
    dynamic_rcnn: Mapping[str, float] | None = None


class ThresholdAssigner(contracts.Assigner, Protocol):
    """An assigner whose thresholds may be set (``MaxIoUAssigner``)."""
    pos_iou_thr: float
    neg_iou_thr: float | tuple[float, float]
    min_pos_iou: float


@HEADS.register_module()
class DynamicRoIHead(StandardRoIHead):
    """A RoI head whose IoU threshold and box loss change with the proposals; arguments as in ``StandardRoIHead``.

    What was gathered of the proposals is not in the checkpoint, as in 2.x: after a resume it starts from
    ``initial_iou`` and ``initial_beta`` until the next change.

    Raises:
        ConfigError: ``train_cfg.rcnn.dynamic_rcnn`` is incomplete, or the box loss has no beta.
    """

    train_settings = DynamicTrainSettings
    assigner: ThresholdAssigner | None

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if not hasattr(self.bbox_head.loss_bbox, 'beta'):
            raise ConfigError("DynamicRoIHead: bbox_head.loss_bbox has no beta; it is a 'SmoothL1Loss'")
        given = set() if self.train_cfg is None else set(self.train_cfg.dynamic_rcnn or ())
        if self.train_cfg is not None and given != _KEYS:
            raise ConfigError(f'model.train_cfg.rcnn.dynamic_rcnn needs the keys {sorted(_KEYS)}; '
                              f'missing: {sorted(_KEYS - given)}, unknown: {sorted(given - _KEYS)}')
        self.iou_history: list[torch.Tensor] = []
        self.beta_history: list[torch.Tensor] = []
        self._seen = 0

    def draw(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None) -> list[SampledRois]:
        """See ``StandardRoIHead``; notes how well the proposals lie."""
        assert self.assigner is not None  # ``loss`` is for heads that are trained
        ious, rank = [], self.train_cfg.dynamic_rcnn['iou_topk']
        with torch.no_grad():
            for i, (own, objects) in enumerate(zip(boxes, gt)):
                if len(own):
                    matched = self.assigner.assign(own, objects.bboxes, None if ignored is None else ignored[i])
                    ious.append(matched.max_overlaps.topk(min(rank, len(own))).values[-1])
        if ious:
            self.iou_history.append(torch.stack(ious).mean())
        return super().draw(feats, boxes, gt, ignored)

    def bbox_losses(self, feats: Sequence[torch.Tensor], samples: Sequence[SampledRois], scores: torch.Tensor,
                    deltas: torch.Tensor | None, targets: BoxTargets) -> contracts.Losses:
        """See ``StandardRoIHead``; notes how far the positives are to be moved."""
        losses, settings = super().bbox_losses(feats, samples, scores, deltas, targets), self.train_cfg.dynamic_rcnn
        if len(targets.pos_boxes):
            wanted = self.bbox_head.bbox_coder.encode(targets.pos_boxes, targets.pos_gt_boxes)
            errors = wanted[:, :2].abs().mean(dim=1)                                     # (P,)
            self.beta_history.append(errors.kthvalue(min(settings['beta_topk'] * len(samples), len(errors))).values)
        self._seen += 1
        if self._seen % settings['update_iter_interval'] == 0:
            self.update_hyperparameters()
        return losses

    def update_hyperparameters(self) -> tuple[float, float]:
        """Set the IoU of positives and the loss's beta from what was noted; the two."""
        settings, loss = self.train_cfg.dynamic_rcnn, self.bbox_head.loss_bbox
        iou = float(torch.stack(self.iou_history).mean()) if self.iou_history else 0.0
        iou = max(settings['initial_iou'], iou)
        assert self.assigner is not None  # as in ``draw``
        self.assigner.pos_iou_thr = self.assigner.neg_iou_thr = self.assigner.min_pos_iou = iou
        if self.beta_history:
            # The median; of an even number the middle of the two.
            middle = float(torch.stack(self.beta_history).quantile(0.5))
            loss.beta = loss.beta if middle < _NO_BETA else min(settings['initial_beta'], middle)
        self.iou_history, self.beta_history = [], []
        return iou, loss.beta
