"""RPN, box and mask heads with mmdetection 2.x's methods.

As long as a plug-in overrides none of them, boxdet's own path is taken; otherwise 2.x's. The numbers are the same.

Letters: B images, N boxes of an image, R rois of the batch, P positives, K classes (label K is the background).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from boxdet.compat.forms import (
    as_ground_truth,
    as_ignored,
    as_instances,
    as_rows,
    has_own,
    meta_dict,
    metas_of,
)
from boxdet.geometry.boxes import at_least_float32, clip_boxes
from boxdet.geometry.masks import paste_to_rle
from boxdet.geometry.nms import EXACT, multiclass_nms
from boxdet.models.bbox_head import BBoxHead, BoxTargets
from boxdet.models.mask_head import FCNMaskHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.rpn_head import AnchorTargets, RPNHead, flatten_levels
from boxdet.structures.batch import image_sizes
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks

_ANY_HW = (-1, -1)  # of a batch whose size nobody knows: anchors beyond an image's padding are left out in any case

# ---------------------------------------------------------------------------------------------- RPN


def rpn_forward_train(head: Any, feats: Any, metas: Sequence[Mapping], gt_bboxes: Any, ignored: Any,
                      settings: Any) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Losses and proposals (N, 5), of an RPN head in either form."""
    if hasattr(head, 'forward_train'):
        return head.forward_train(feats, metas, gt_bboxes, gt_labels=None, gt_bboxes_ignore=ignored,
                                  proposal_cfg=settings)
    outs = head(feats)
    losses = head.loss(*outs, as_ground_truth(gt_bboxes, None), as_ignored(ignored, gt_bboxes), metas_of(metas),
                       metas[0]['batch_input_shape'])
    return losses, as_rows(head.predict(*outs, metas_of(metas), settings))


class RPNHead2x(RPNHead):
    """2.x's methods of the RPN head."""

    def forward_single(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Objectness and deltas of one level."""
        scores, deltas = super().forward([x])
        return scores[0], deltas[0]

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As the head's; of ``forward_single``, where a plug-in brings one."""
        if not has_own(self, 'forward_single'):
            return super().forward(feats)
        outs = [self.forward_single(x) for x in feats]
        return [scores for scores, _ in outs], [deltas for _, deltas in outs]

    def forward_train(self, x: Any, img_metas: Sequence[Mapping], gt_bboxes: Any, gt_labels: Any = None,
                      gt_bboxes_ignore: Any = None, proposal_cfg: Any = None, **kwargs: Any) -> Any:
        """Losses; with ``proposal_cfg`` also proposals (N, 5)."""
        head: Any = self  # a plug-in's may have more outputs than two
        outs = head(x)
        losses = head.loss(*outs, gt_bboxes, img_metas, gt_bboxes_ignore=gt_bboxes_ignore)
        if proposal_cfg is None:
            return losses
        return losses, head.get_bboxes(*outs, img_metas=img_metas, cfg=proposal_cfg)

    def loss(self, cls_scores: Any, bbox_preds: Any, gt_bboxes: Any, img_metas: Any, metas: Any = None,
             batch_hw: Any = None, gt_bboxes_ignore: Any = None) -> dict[str, list[torch.Tensor]]:
        """2.x's ``loss(cls_scores, bbox_preds, gt_bboxes, img_metas, gt_bboxes_ignore=None)``, or boxdet's."""
        if batch_hw is not None:
            return super().loss(cls_scores, bbox_preds, gt_bboxes, img_metas, metas, batch_hw)
        gt_bboxes_ignore = metas if gt_bboxes_ignore is None else gt_bboxes_ignore
        return super().loss(cls_scores, bbox_preds, as_ground_truth(gt_bboxes, None),
                            as_ignored(gt_bboxes_ignore, gt_bboxes), metas_of(img_metas),
                            dict(img_metas[0]).get('batch_input_shape', _ANY_HW))

    def loss_of_targets(self, cls_scores: Sequence[torch.Tensor], bbox_preds: Sequence[torch.Tensor],
                        targets: AnchorTargets, counts: Sequence[int]) -> dict[str, list[torch.Tensor]]:
        """As the head's; of ``loss_single``, where a plug-in brings one."""
        if not has_own(self, 'loss_single'):
            return super().loss_of_targets(cls_scores, bbox_preds, targets, counts)
        images, rows, positive = len(cls_scores[0]), sum(counts), targets.index[:targets.num_pos]
        boxes = targets.gt_boxes
        if len(boxes) and not self.reg_decoded_bbox:
            boxes = self.bbox_coder.encode(targets.anchors, boxes)
        labels = torch.ones(images * rows, dtype=torch.long, device=boxes.device)  # the background
        labels[positive] = 0
        label_weights, box_targets, box_weights = boxes.new_zeros(len(labels)), boxes.new_zeros(len(labels), 4), \
            boxes.new_zeros(len(labels), 4)
        label_weights[targets.index] = 1
        if self.train_cfg.pos_weight > 0:
            label_weights[positive] = self.train_cfg.pos_weight
        box_targets[positive], box_weights[positive] = boxes, 1
        anchors = [level.expand(images, -1, -1) for level in self.anchors(cls_scores)]
        wanted = zip(*(value.view(images, rows, *value.shape[1:]).split(list(counts), dim=1)
                       for value in (labels, label_weights, box_targets, box_weights)))
        losses = [self.loss_single(score, delta, own, label, label_weight, box, box_weight, targets.avg_factor)
                  for score, delta, own, (label, label_weight, box, box_weight)
                  in zip(cls_scores, bbox_preds, anchors, wanted)]
        return dict(loss_rpn_cls=[one for one, _ in losses], loss_rpn_bbox=[one for _, one in losses])

    def loss_single(self, cls_score: torch.Tensor, bbox_pred: torch.Tensor, anchors: torch.Tensor, labels: torch.Tensor,
                    label_weights: torch.Tensor, bbox_targets: torch.Tensor, bbox_weights: torch.Tensor,
                    num_total_samples: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The two losses of a level: scores (B, A * C, H, W), deltas (B, A * 4, H, W), the rest (B, H * W * A, ...).

        Anchors that were not drawn have the weight 0; label 0 is an object, 1 the background.
        """
        scores = at_least_float32(flatten_levels([cls_score], self.cls_out_channels).flatten(0, 1))
        deltas = at_least_float32(flatten_levels([bbox_pred], 4).flatten(0, 1))
        if self.reg_decoded_bbox:
            deltas = self.bbox_coder.decode(anchors.reshape(-1, 4), deltas)
        return (self.loss_cls(scores, labels.reshape(-1), label_weights.reshape(-1), avg_factor=num_total_samples),
                self.loss_bbox(deltas, bbox_targets.reshape(-1, 4), bbox_weights.reshape(-1, 4),
                               avg_factor=num_total_samples))

    def get_bboxes(self, cls_scores: Any, bbox_preds: Any, score_factors: Any = None, img_metas: Any = None,
                   cfg: Any = None, rescale: bool = False, with_nms: bool = True, **kwargs: Any) -> list[torch.Tensor]:
        """B proposals (N, 5)."""
        settings = self.test_cfg if cfg is None else read_settings(self, cfg)
        if not has_own(self, '_get_bboxes_single'):
            return as_rows(super().predict(cls_scores, bbox_preds, metas_of(img_metas), settings))
        priors = self.anchors(cls_scores, at_least_float32(cls_scores[0]).dtype)
        factors = [None] * len(priors)
        return [self._get_bboxes_single([level[i].detach() for level in cls_scores],
                                        [level[i].detach() for level in bbox_preds], factors, priors, meta, settings,
                                        rescale, with_nms) for i, meta in enumerate(img_metas)]

    def _get_bboxes_single(self, cls_score_list: Sequence[torch.Tensor], bbox_pred_list: Sequence[torch.Tensor],
                           score_factor_list: Any, mlvl_priors: Sequence[torch.Tensor], img_meta: Any, cfg: Any = None,
                           rescale: bool = False, with_nms: bool = True, **kwargs: Any) -> torch.Tensor:
        """Proposals (N, 5) of one image, from scores (A * C, H, W), deltas (A * 4, H, W), anchors (H * W * A, 4)."""
        settings, metas = self.test_cfg if cfg is None else read_settings(self, cfg), metas_of([img_meta])
        found = super().predict_padded([level[None] for level in cls_score_list],
                                       [level[None] for level in bbox_pred_list], metas, settings, EXACT,
                                       anchors=[level[None] for level in mlvl_priors])
        return as_rows(found.instances(image_sizes(metas)))[0]

    def predict(self, cls_scores: Any, bbox_preds: Any, metas: Any, settings: Any = None) -> list[Instances]:
        """As the head's; of ``get_bboxes`` or ``_get_bboxes_single``, where a plug-in brings one."""
        if not has_own(self, 'get_bboxes', '_get_bboxes_single'):
            return super().predict(cls_scores, bbox_preds, metas, settings)
        return as_instances(self.get_bboxes(cls_scores, bbox_preds, img_metas=[meta_dict(m) for m in metas],
                                            cfg=settings))

    def simple_test_rpn(self, x: Any, img_metas: Any) -> list[torch.Tensor]:
        """B proposals (N, 5)."""
        head: Any = self
        return head.get_bboxes(*head(x), img_metas=img_metas)

    def simple_test(self, feats: Any, img_metas: Any, rescale: bool = False) -> list[torch.Tensor]:
        """B proposals (N, 5)."""
        return self.simple_test_rpn(feats, img_metas)


def read_settings(head: Any, cfg: Any) -> Any:
    """A section in the class that the head declares."""
    declared = type(head).test_settings
    if not isinstance(cfg, Mapping) or declared is None:
        return cfg
    return declared(**cfg)


# ---------------------------------------------------------------------------------------------- box head


class BBoxHead2x(BBoxHead):
    """2.x's methods of the box head: ``get_targets``, ``loss``, ``get_bboxes``, ``refine_bboxes``."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU(inplace=True)
        if self.with_avg_pool:
            self.avg_pool = nn.AvgPool2d(self.roi_feat_size)
        self.fp16_enabled = False

    def _get_target_single(self, pos_bboxes: torch.Tensor, neg_bboxes: torch.Tensor, pos_gt_bboxes: torch.Tensor,
                           pos_gt_labels: torch.Tensor, cfg: Any) -> tuple[torch.Tensor, ...]:
        """Labels, label weights, box targets (N, 4) and their weights, of an image's positives and negatives."""
        positive, total = len(pos_bboxes), len(pos_bboxes) + len(neg_bboxes)
        labels = pos_bboxes.new_full((total,), self.num_classes, dtype=torch.long)
        label_weights, targets = pos_bboxes.new_ones(total), pos_bboxes.new_zeros(total, 4)
        weights = pos_bboxes.new_zeros(total, 4)
        labels[:positive] = pos_gt_labels
        label_weights[:positive] = cfg.pos_weight if cfg.pos_weight > 0 else 1.0
        if positive:
            encoded = pos_gt_bboxes if self.reg_decoded_bbox else self.bbox_coder.encode(pos_bboxes, pos_gt_bboxes)
            targets[:positive], weights[:positive] = encoded, 1
        return labels, label_weights, targets, weights

    def get_targets(self, sampling_results: Sequence[Any], gt_bboxes: Any, gt_labels: Any, rcnn_train_cfg: Any,
                    concat: bool = True) -> tuple[Any, ...]:
        """``labels, label_weights, bbox_targets, bbox_weights`` of the samples of B images."""
        parts = zip(*(self._get_target_single(s.pos_boxes, s.neg_boxes, s.pos_gt_boxes, s.pos_gt_labels, rcnn_train_cfg)
                      for s in sampling_results))
        return tuple(torch.cat(part) if concat else list(part) for part in parts)

    def loss(self, cls_score: torch.Tensor | None, bbox_pred: torch.Tensor | None, rois: Any,
             labels: torch.Tensor | None = None, label_weights: torch.Tensor | None = None,
             bbox_targets: torch.Tensor | None = None, bbox_weights: torch.Tensor | None = None,
             reduction_override: str | None = None) -> dict[str, torch.Tensor]:
        """2.x's loss, or boxdet's ``loss(cls_score, bbox_pred, targets)``."""
        if isinstance(rois, BoxTargets):
            return super().loss(cls_score, bbox_pred, rois)
        losses = {}
        if cls_score is not None:
            assert labels is not None and label_weights is not None
            scores, avg_factor = at_least_float32(cls_score), max(float((label_weights > 0).sum()), 1.0)
            if len(scores):
                losses['loss_cls'] = self.loss_cls(scores, labels, label_weights, avg_factor=avg_factor,
                                                   reduction_override=reduction_override)
                losses['acc'] = (scores.detach().argmax(dim=1) == labels).sum() * (100.0 / len(labels))
        if bbox_pred is not None:
            assert labels is not None and bbox_targets is not None and bbox_weights is not None
            positive = (labels >= 0) & (labels < self.num_classes)
            if not positive.any():
                losses['loss_bbox'] = bbox_pred[positive].sum()
                return losses
            deltas = self.deltas_of(at_least_float32(bbox_pred[positive]), labels[positive])
            if self.reg_decoded_bbox:
                deltas = self.bbox_coder.decode(rois[positive, 1:], deltas)
            losses['loss_bbox'] = self.loss_bbox(deltas, bbox_targets[positive], bbox_weights[positive],
                                                 avg_factor=len(bbox_targets), reduction_override=reduction_override)
        return losses

    def get_bboxes(self, rois: torch.Tensor, cls_score: Any, bbox_pred: torch.Tensor | None, img_shape: Any,
                   scale_factor: Any, rescale: bool = False,
                   cfg: Any = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Results of one image: boxes (n, 5) and labels (n,); boxes and scores of all rois without ``cfg``."""
        if isinstance(cls_score, list):
            cls_score = sum(cls_score) / len(cls_score)
        scores = None if cls_score is None else self.probabilities(cls_score)
        if bbox_pred is None:
            boxes = rois[:, 1:].clone() if img_shape is None else clip_boxes(rois[:, 1:], img_shape[:2])
        else:
            boxes = self.bbox_coder.decode(rois[..., 1:], at_least_float32(bbox_pred), max_shape=img_shape)
        if rescale and len(boxes):
            factor = boxes.new_tensor(scale_factor).expand(4) if not torch.is_tensor(scale_factor) else scale_factor
            boxes = (boxes.view(len(boxes), -1, 4) / factor).view(len(boxes), -1)
        if cfg is None:
            return boxes, scores
        assert scores is not None
        rows, labels = multiclass_nms(boxes, scores, cfg.score_thr, cfg.nms, cfg.max_per_img)
        return rows, labels

    def predict(self, boxes: torch.Tensor, cls_score: torch.Tensor, bbox_pred: torch.Tensor | None, image_hw: Any,
                settings: Any) -> Instances:
        """As the head's; of ``get_bboxes``, where a plug-in brings one."""
        if not has_own(self, 'get_bboxes'):
            return super().predict(boxes, cls_score, bbox_pred, image_hw, settings)
        rows, labels = self.get_bboxes(boxes_to_rois([boxes]), cls_score, bbox_pred, (*image_hw, 3),
                                       boxes.new_ones(4), rescale=False, cfg=settings)
        return Instances(tuple(image_hw), self.num_classes, bboxes=rows[:, :4], scores=rows[:, 4], labels=labels)

    def regress_by_class(self, rois: torch.Tensor, label: torch.Tensor, bbox_pred: torch.Tensor,
                         img_meta: Mapping[str, Any]) -> torch.Tensor:
        """Rois (n, 4 or 5) moved by the deltas of their labels (n,)."""
        moved = self.refine(rois[:, -4:], label, bbox_pred, tuple(img_meta['img_shape'][:2]))
        return moved if rois.shape[1] == 4 else torch.cat([rois[:, :1], moved], dim=1)

    def refine_bboxes(self, rois: torch.Tensor, labels: torch.Tensor, bbox_preds: torch.Tensor,
                      pos_is_gts: Sequence[torch.Tensor], img_metas: Sequence[Mapping]) -> list[torch.Tensor]:
        """The next stage's boxes of B images; those that were ground truth are left out."""
        found = []
        for i, (is_gt, meta) in enumerate(zip(pos_is_gts, img_metas)):
            here = (rois[:, 0] == i).nonzero().squeeze(1)
            moved = self.regress_by_class(rois[here, 1:], labels[here], bbox_preds[here], meta)
            keep = is_gt.new_ones(len(here))
            keep[:len(is_gt)] = 1 - is_gt
            found.append(moved[keep.bool()])
        return found


# ---------------------------------------------------------------------------------------------- mask head


class MaskHead2x(FCNMaskHead):
    """2.x's methods of the mask head."""

    def forward_labels(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """As the head's; of ``forward``, where a plug-in brings one."""
        if not has_own(self, 'forward'):
            return super().forward_labels(x, labels)
        channel = torch.zeros_like(labels) if self.class_agnostic else labels
        return self(x)[torch.arange(len(labels), device=labels.device), channel]

    def get_targets(self, sampling_results: Sequence[Any], gt_masks: Sequence[Any],
                    rcnn_train_cfg: Any) -> torch.Tensor:
        """Target masks (P, h, w) of the positives of B images."""
        return super().targets(sampling_results, [Instances(masks=own) for own in gt_masks], rcnn_train_cfg)

    def loss(self, mask_pred: torch.Tensor, mask_targets: torch.Tensor,
             labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """2.x's loss of logits (P, K, h, w), or boxdet's of those (P, h, w) of each label."""
        if labels is None:
            return super().loss(mask_pred, mask_targets)
        if len(mask_pred) == 0:
            return dict(loss_mask=mask_pred.sum())
        channel = torch.zeros_like(labels) if self.class_agnostic else labels
        return dict(loss_mask=self.loss_mask(at_least_float32(mask_pred), mask_targets, channel))

    def get_seg_masks(self, mask_pred: Any, det_bboxes: torch.Tensor, det_labels: torch.Tensor, rcnn_test_cfg: Any,
                      ori_shape: Any, scale_factor: Any, rescale: bool) -> list[list[Any]]:
        """K lists of (H, W) bool arrays, from logits (N, K, h, w) and boxes (N, 4 or 5) in network-input pixels."""
        probs = at_least_float32(torch.as_tensor(mask_pred)).sigmoid() if torch.is_tensor(mask_pred) \
            else det_bboxes.new_tensor(mask_pred)
        rows = torch.arange(len(probs), device=probs.device)
        probs = probs[:, 0] if self.class_agnostic else probs[rows, det_labels]
        factor = det_bboxes.new_tensor(scale_factor).expand(4) if not torch.is_tensor(scale_factor) else scale_factor
        boxes = det_bboxes[:, :4] / factor if rescale else det_bboxes[:, :4]
        height, width = ori_shape[:2]
        if not rescale:
            height, width = round(height * float(factor[1])), round(width * float(factor[0]))
        codes = paste_to_rle(probs.detach().cpu(), boxes.detach().cpu(), (int(height), int(width)),
                             rcnn_test_cfg.mask_thr_binary)
        bitmaps = RleMasks(codes, int(height), int(width)).to_bitmaps().astype(bool)
        found: list[list[np.ndarray]] = [[] for _ in range(self.num_classes)]
        for label, bitmap in zip(det_labels.tolist(), bitmaps):
            found[label].append(bitmap)
        return found
