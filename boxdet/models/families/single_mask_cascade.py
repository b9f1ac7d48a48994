"""Cascade R-CNN as detectron2 and tensorpack have it: one mask head, class probabilities averaged over the stages.

Their differences from ``CascadeRoIHead`` (Cai and Vasconcelos 2018 leave them open): mask and keypoint head learn from
the samples of the first stage and predict within the boxes of the last; probabilities are averaged, not logits; every
box of a stage goes on to the next, ground truth too; each stage passes a share of its gradient to the features.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from boxdet.geometry.boxes import at_least_float32
from boxdet.models.cascade_roi_head import CascadeRoIHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import draw_samples, mask_loss, mask_samples
from boxdet.registry import HEADS, ROI_EXTRACTORS, Cfg
from boxdet.structures.batch import ImageMeta, SampledRois, image_sizes
from boxdet.structures.instances import Instances, OfImages, image_rows, joined, of_images, split_like


@HEADS.register_module()
class SingleMaskCascadeRoIHead(CascadeRoIHead):
    """Stages of a box head, and one mask head behind them.

    Args:
        mask_roi_extractor: config of the mask head's; it is needed with a mask head.
        mask_head: config of the only mask head; None for boxes only.
        **kwargs: as of ``CascadeRoIHead``.
    """

    def __init__(self, mask_roi_extractor: Cfg | None = None, mask_head: Cfg | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if mask_head is not None:
            self.mask_head = HEADS.build(mask_head)
            self.mask_roi_extractor = ROI_EXTRACTORS.build(mask_roi_extractor)

    def loss(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None, metas: Sequence[ImageMeta]) -> dict[str, torch.Tensor]:
        """Return ``s0.loss_cls``, ``s0.acc``, ``s0.loss_bbox`` and so on for each stage[, and ``loss_mask``]."""
        losses, boxes = {}, [p.bboxes for p in proposals]
        share = 1.0 / self.num_stages
        for stage, weight in enumerate(self.stage_loss_weights):
            head = self.bbox_head[stage]
            samples = draw_samples(*self.matching[stage], boxes, gt, ignored)
            if stage == 0:
                first = samples
            pooled = self.bbox_roi_extractor[stage](feats, boxes_to_rois([s.boxes for s in samples]))
            scores, deltas = head(pooled * share + pooled.detach() * (1.0 - share))
            targets = head.targets(samples, self.settings_of(stage))
            losses.update({f's{stage}.{name}': value * weight if 'loss' in name else value
                           for name, value in head.loss(scores, deltas, targets).items()})
            boxes = _next_boxes(head, samples, scores, deltas, metas)
        if self.with_mask:
            masked, _ = mask_samples(first, self.settings_of(0))
            pooled = self.mask_roi_extractor(feats, boxes_to_rois([s.pos_boxes for s in masked]))
            losses.update(mask_loss(self.mask_head, pooled, masked, gt, self.settings_of(0)))
        return {**losses, **self.keypoint_losses(feats, first, gt)}

    def classify(self, feats: Sequence[torch.Tensor], boxes: OfImages,
                 metas: Sequence[ImageMeta] | torch.Tensor,
                 ) -> tuple[OfImages, torch.Tensor, torch.Tensor]:
        """As ``CascadeRoIHead.classify``; the logits are those of the averaged probabilities."""
        total: torch.Tensor = 0  # type: ignore[assignment]  # the sum starts at the number 0
        sizes = image_sizes(metas)
        for stage, head in enumerate(self.bbox_head):
            scores, deltas, _ = self.box_forward(stage, feats, boxes_to_rois(boxes))
            total = total + at_least_float32(scores).softmax(dim=1)
            if stage + 1 < self.num_stages:
                rows = image_rows(sizes, boxes, split_like(scores[:, :-1].argmax(dim=1), boxes),
                                  split_like(deltas, boxes))
                boxes = of_images([head.refine(*own) for own in rows], sizes, boxes)
        return boxes, (total / self.num_stages).log(), deltas

    def mask_probs(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                   labels: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """As ``StandardRoIHead.mask_probs``."""
        return self.mask_head.predict(self.mask_roi_extractor(feats, boxes_to_rois(boxes)), joined(labels))


@torch.no_grad()
def _next_boxes(head: nn.Module, samples: Sequence[SampledRois], scores: torch.Tensor, deltas: torch.Tensor,
                metas: Sequence[ImageMeta]) -> list[torch.Tensor]:
    """Every sample, moved by its deltas; those that became empty are dropped."""
    counts = [len(s.boxes) for s in samples]
    labels = scores[:, :-1].argmax(dim=1)
    moved = [head.refine(s.boxes, label, delta, meta.input_size) for s, label, delta, meta
             in zip(samples, labels.split(counts), deltas.split(counts), metas)]
    return [boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)] for boxes in moved]
