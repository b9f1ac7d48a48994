"""RoI heads with mmdetection 2.x's methods.

As long as a plug-in overrides none of them, nor of the heads within, boxdet's own path is taken; otherwise 2.x's:
``forward_train`` calls ``_bbox_forward_train``, which calls ``_bbox_forward`` and the box head's ``get_targets`` and
``loss``. The numbers are the same.

Letters: B images, N boxes of an image, R rois of the batch, P positives, K classes (label K is the background).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from boxdet.compat.forms import (
    SamplingResult,
    as_ground_truth,
    as_ignored,
    as_instances,
    as_rows,
    bbox2result,
    bbox2roi,
    has_own,
    meta_dict,
    metas_of,
)
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.masks import paste_to_rle
from boxdet.models.cascade_roi_head import CascadeRoIHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import StandardRoIHead, box_losses, draw_samples, predict_boxes
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks

_OF_BOX_HEADS = ('get_targets', '_get_target_single', 'loss')
_OF_MASK_HEADS = ('get_targets', 'loss')
_OF_ROI_HEADS = ('forward_train', '_bbox_forward_train', '_mask_forward_train', '_mask_forward')


def wants_2x(head: Any) -> bool:
    """Whether a head, or a head in it, brings training methods in 2.x's form."""
    if not hasattr(head, 'forward_train'):
        return False
    if has_own(head, *_OF_ROI_HEADS) or not hasattr(head, 'bbox_head') and has_own(head, 'loss', 'get_bboxes'):
        return True
    parts = [(one, names) for attribute, names in (('bbox_head', _OF_BOX_HEADS), ('mask_head', _OF_MASK_HEADS))
             for one in _each(getattr(head, attribute, None))]
    return any(has_own(one, *names) for one, names in parts)


def _each(part: Any) -> list[Any]:
    return list(part) if isinstance(part, nn.ModuleList) else [] if part is None else [part]


def _of_2x(drawn: Sequence[SampledRois], gt_bboxes: Sequence[torch.Tensor]) -> list[SamplingResult]:
    return [SamplingResult.of(one, len(boxes)) for one, boxes in zip(drawn, gt_bboxes)]


class _TestMethods(nn.Module):
    """2.x's test methods, of one stage as of several."""

    @property
    def share_roi_extractor(self) -> bool:
        """Whether the mask head reads the box head's features."""
        return self.shares_extractor

    def simple_test_bboxes(self, x: Any, img_metas: Any, proposals: Any, rcnn_test_cfg: Any = None,
                           rescale: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """B boxes (n, 5) and labels (n,)."""
        metas, settings = metas_of(img_metas), self.test_cfg if rcnn_test_cfg is None else rcnn_test_cfg
        boxes, scores, deltas = self.classify(x, [own[:, :4] for own in proposals], metas)
        found = predict_boxes(self.last_bbox_head, boxes, scores, deltas, metas, settings)
        rows = as_rows(found)
        if rescale:
            rows = [torch.cat([own[:, :4] / _factor(own, meta), own[:, 4:]], dim=1) for own, meta in zip(rows, metas)]
        return rows, [one.labels for one in found]

    def simple_test_mask(self, x: Any, img_metas: Any, det_bboxes: Any, det_labels: Any,
                         rescale: bool = False) -> list[Any]:
        """B results by class of (H, W) bool arrays, for boxes that are ``rescale``d or not."""
        metas = metas_of(img_metas)
        boxes = [own[:, :4] * _factor(own, meta) if rescale else own[:, :4] for own, meta in zip(det_bboxes, metas)]
        head = _each(self.mask_head)[-1]
        if has_own(self, '_mask_forward'):
            logits = self._mask_logits(x, boxes_to_rois(boxes))
            probs = torch.stack([at_least_float32(own).sigmoid() for own in logits]).mean(dim=0)
            parts = probs.cpu().split([len(own) for own in boxes])
            return [head.get_seg_masks(own.numpy(), box, label, self.test_cfg, meta.ori_shape, meta.scale_factor,
                                       rescale)
                    for own, box, label, meta in zip(parts, boxes, det_labels, metas)]
        probs = self.mask_probs(x, boxes, det_labels).split([len(own) for own in boxes])
        found = []
        for own, box, label, meta in zip(probs, boxes, det_labels, metas):
            size = meta.original_size if rescale else meta.input_size
            shown = (box / _factor(box, meta) if rescale else box).cpu()
            rles = RleMasks(paste_to_rle(own.cpu(), shown, size, self.test_cfg.mask_thr_binary), *size)
            one = Instances(size, self.last_bbox_head.num_classes, bboxes=shown, scores=shown[:, 0],
                            labels=label.cpu(), masks=rles)
            found.append(one.per_class(masks='bitmap')[1])
        return found

    def simple_test(self, x: Any, proposal_list: Any, img_metas: Any, proposals: Any = None,
                    rescale: bool = False) -> list[Any]:
        """2.x's results of B images."""
        rows, labels = self.simple_test_bboxes(x, img_metas, proposal_list, self.test_cfg, rescale=rescale)
        boxes = [bbox2result(own, label, self.last_bbox_head.num_classes) for own, label in zip(rows, labels)]
        if not self.with_mask:
            return boxes
        return list(zip(boxes, self.simple_test_mask(x, img_metas, rows, labels, rescale=rescale)))


class RoIHead2x(_TestMethods, StandardRoIHead):
    """2.x's methods of ``StandardRoIHead``."""

    @property
    def bbox_assigner(self) -> Any:
        """What matches proposals with objects."""
        return self.assigner

    @property
    def bbox_sampler(self) -> Any:
        """What draws from them."""
        return self.sampler

    def loss(self, feats: Any, proposals: Any, gt: Any, ignored: Any, metas: Any, **kwargs: Any) -> dict[str, Any]:
        """As the head's; through ``forward_train`` where a part brings a method of 2.x's."""
        if not wants_2x(self):
            return dict(super().loss(feats, proposals, gt, ignored, metas, **kwargs))
        masks = [own.masks for own in gt] if all('masks' in own for own in gt) else None
        return self.forward_train(feats, [meta_dict(meta) for meta in metas], as_rows(proposals),
                                  [own.bboxes for own in gt], [own.labels for own in gt], ignored, masks)

    def _samples(self, x: Any, proposal_list: Any, gt_bboxes: Any, gt_labels: Any,
                 gt_bboxes_ignore: Any) -> list[SamplingResult]:
        gt = as_ground_truth(gt_bboxes, gt_labels)
        return _of_2x(self.draw(x, [boxes[:, :4] for boxes in proposal_list], gt, gt_bboxes_ignore), gt_bboxes)

    def forward_train(self, x: Any, img_metas: Any, proposal_list: Any, gt_bboxes: Any, gt_labels: Any,
                      gt_bboxes_ignore: Any = None, gt_masks: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The losses of boxes and masks."""
        if self.with_keypoint:
            gt = as_ground_truth(gt_bboxes, gt_labels, gt_masks, kwargs.get('gt_keypoints'))
            return dict(super().loss(x, as_instances(proposal_list), gt, as_ignored(gt_bboxes_ignore, gt_bboxes),
                                     metas_of(img_metas)))
        samples = self._samples(x, proposal_list, gt_bboxes, gt_labels, gt_bboxes_ignore)
        found = self._bbox_forward_train(x, samples, gt_bboxes, gt_labels, img_metas)
        losses = dict(found['loss_bbox'])
        if self.with_mask:
            losses.update(self._mask_forward_train(x, samples, found['bbox_feats'], gt_masks, img_metas)['loss_mask'])
        return losses

    def _bbox_forward(self, x: Any, rois: torch.Tensor) -> dict[str, Any]:
        """``cls_score``, ``bbox_pred`` and ``bbox_feats`` of rois (R, 5)."""
        scores, deltas, pooled = super().box_forward(x, rois)
        return dict(cls_score=scores, bbox_pred=deltas, bbox_feats=pooled)

    def box_forward(self, feats: Any, rois: torch.Tensor) -> tuple[Any, Any, Any]:
        """As the head's; of ``_bbox_forward``, where a plug-in brings one."""
        if not has_own(self, '_bbox_forward'):
            return super().box_forward(feats, rois)
        found = self._bbox_forward(feats, rois)
        return found['cls_score'], found['bbox_pred'], found.get('bbox_feats')

    def _bbox_forward_train(self, x: Any, sampling_results: Any, gt_bboxes: Any, gt_labels: Any,
                            img_metas: Any) -> dict[str, Any]:
        """``_bbox_forward`` of the samples, and ``loss_bbox``: the losses by name."""
        rois = bbox2roi([s.boxes for s in sampling_results])
        found = self._bbox_forward(x, rois)
        losses = box_head_loss(self.bbox_head, found, rois, sampling_results, gt_bboxes, gt_labels, self.train_cfg)
        return dict(found, loss_bbox=losses)

    def _mask_forward(self, x: Any, rois: torch.Tensor | None = None, pos_inds: torch.Tensor | None = None,
                      bbox_feats: torch.Tensor | None = None) -> dict[str, Any]:
        """``mask_pred`` and ``mask_feats`` of rois (R, 5), or of those of ``bbox_feats`` that ``pos_inds`` picks."""
        if rois is not None:
            feats = self.mask_features(x, rois)
        else:
            assert bbox_feats is not None and pos_inds is not None
            feats = bbox_feats[pos_inds.bool()]
        return dict(mask_pred=self.mask_head(feats), mask_feats=feats)

    def _mask_forward_train(self, x: Any, sampling_results: Any, bbox_feats: Any, gt_masks: Any,
                            img_metas: Any) -> dict[str, Any]:
        """``_mask_forward`` of the positives, and ``loss_mask``: the losses by name."""
        if self.shares_extractor:
            parts = [(s.pos_boxes.new_ones(len(s.pos_boxes)), s.pos_boxes.new_zeros(len(s.neg_boxes)))
                     for s in sampling_results]
            found = self._mask_forward(x, pos_inds=torch.cat([one for pair in parts for one in pair]).bool(),
                                       bbox_feats=bbox_feats)
        else:
            found = self._mask_forward(x, bbox2roi([s.pos_boxes for s in sampling_results]))
        return dict(found, loss_mask=mask_head_loss(self.mask_head, found['mask_pred'], sampling_results, gt_masks,
                                                    self.train_cfg))

    def _mask_logits(self, x: Any, rois: torch.Tensor) -> list[torch.Tensor]:
        """``_mask_forward``'s (R, K, h, w), of each stage."""
        return [self._mask_forward(x, rois)['mask_pred']]

    def forward_dummy(self, x: Any, proposals: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores, deltas and, with a mask head, mask logits of proposals (N, 4)."""
        rois = boxes_to_rois([proposals[:, :4]])
        outs = self.box_forward(x, rois)[:2]
        return (*outs, self.mask_head(self.mask_features(x, rois[:100]))) if self.with_mask else outs


class CascadeRoIHead2x(_TestMethods, CascadeRoIHead):
    """2.x's methods of ``CascadeRoIHead``, whose own take the stage first."""

    @property
    def bbox_assigner(self) -> list[Any]:
        """Of each stage."""
        return [assigner for assigner, _ in self.matching]

    @property
    def bbox_sampler(self) -> list[Any]:
        """Of each stage."""
        return [sampler for _, sampler in self.matching]

    def _bbox_forward(self, stage: int, x: Any, rois: torch.Tensor) -> dict[str, Any]:
        """As ``RoIHead2x._bbox_forward``, in a stage."""
        scores, deltas, pooled = super().box_forward(stage, x, rois)
        return dict(cls_score=scores, bbox_pred=deltas, bbox_feats=pooled)

    def box_forward(self, stage: int, feats: Any, rois: torch.Tensor) -> tuple[Any, Any, Any]:
        """As ``RoIHead2x.box_forward``, in a stage."""
        found = self._bbox_forward(stage, feats, rois)
        return found['cls_score'], found['bbox_pred'], found.get('bbox_feats')

    def _bbox_forward_train(self, stage: int, x: Any, sampling_results: Any, gt_bboxes: Any, gt_labels: Any,
                            rcnn_train_cfg: Any) -> dict[str, Any]:
        """As ``RoIHead2x._bbox_forward_train``, in a stage."""
        rois = bbox2roi([s.boxes for s in sampling_results])
        found = self._bbox_forward(stage, x, rois)
        head = self.bbox_head[stage]
        targets = head.get_targets(sampling_results, gt_bboxes, gt_labels, rcnn_train_cfg)
        return dict(found, rois=rois, bbox_targets=targets,
                    loss_bbox=head.loss(found['cls_score'], found['bbox_pred'], rois, *targets))

    def _mask_forward(self, stage: int, x: Any, rois: torch.Tensor) -> dict[str, Any]:
        """As ``RoIHead2x._mask_forward``, in a stage."""
        feats = self.mask_features(stage, x, rois)
        return dict(mask_pred=self.mask_head[stage](feats), mask_feats=feats)

    def _mask_logits(self, x: Any, rois: torch.Tensor) -> list[torch.Tensor]:
        return [self._mask_forward(stage, x, rois)['mask_pred'] for stage in range(self.num_stages)]

    def _mask_forward_train(self, stage: int, x: Any, sampling_results: Any, gt_masks: Any, rcnn_train_cfg: Any,
                            bbox_feats: Any = None) -> dict[str, Any]:
        """As ``RoIHead2x._mask_forward_train``, in a stage."""
        found = self._mask_forward(stage, x, bbox2roi([s.pos_boxes for s in sampling_results]))
        losses = mask_head_loss(self.mask_head[stage], found['mask_pred'], sampling_results, gt_masks, rcnn_train_cfg)
        return dict(found, loss_mask=losses)

    def forward_train(self, x: Any, img_metas: Any, proposal_list: Any, gt_bboxes: Any, gt_labels: Any,
                      gt_bboxes_ignore: Any = None, gt_masks: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The losses of all stages, ``s0.loss_cls`` and so on."""
        losses, boxes = {}, [own[:, :4] for own in proposal_list]
        for stage, weight in enumerate(self.stage_loss_weights):
            head, settings = self.bbox_head[stage], self.stage_settings[stage]
            rank = partial(box_losses, head, partial(self.box_forward, stage), x) if self.ranks_by_loss[stage] else None
            gt = as_ground_truth(gt_bboxes, gt_labels)
            samples = _of_2x(draw_samples(*self.matching[stage], boxes, gt, gt_bboxes_ignore, rank), gt_bboxes)
            found = self._bbox_forward_train(stage, x, samples, gt_bboxes, gt_labels, settings)
            parts = dict(found['loss_bbox'])
            if self.with_mask:
                masks = self._mask_forward_train(stage, x, samples, gt_masks, settings, found.get('bbox_feats'))
                parts.update(masks['loss_mask'])
            losses.update({f's{stage}.{name}': value * weight if 'loss' in name else value
                           for name, value in parts.items()})
            if stage + 1 < self.num_stages:
                with torch.no_grad():
                    labels = found['bbox_targets'][0]
                    guess = found['cls_score'][:, :-1].argmax(dim=1)
                    labels = torch.where(labels == head.num_classes, guess, labels)
                    boxes = head.refine_bboxes(found['rois'], labels, found['bbox_pred'],
                                               [s.pos_is_gt.long() for s in samples], img_metas)
        return losses


# ---------------------------------------------------------------------------------------------- heads in either form


def _factor(like: torch.Tensor, meta: Any) -> torch.Tensor:
    return like.new_tensor(meta.scale_factor.tolist())


def box_head_loss(head: Any, found: Mapping[str, Any], rois: torch.Tensor, samples: Any, gt_bboxes: Any, gt_labels: Any,
                  settings: Any) -> dict[str, torch.Tensor]:
    """The box head's losses, of a head in either form."""
    if not hasattr(head, 'get_targets'):
        return head.loss(found['cls_score'], found['bbox_pred'], head.targets(samples, settings))
    targets = head.get_targets(samples, gt_bboxes, gt_labels, settings)
    return head.loss(found['cls_score'], found['bbox_pred'], rois, *targets)


def mask_head_loss(head: Any, mask_pred: torch.Tensor, samples: Any, gt_masks: Any, settings: Any) -> dict[str, Any]:
    """The mask head's losses, of a head in either form."""
    labels = torch.cat([s.pos_gt_labels for s in samples])
    if hasattr(head, 'get_targets'):
        return head.loss(mask_pred, head.get_targets(samples, gt_masks, settings), labels)
    targets = head.targets(samples, [Instances(masks=own) for own in gt_masks], settings)
    return head.loss(mask_pred[torch.arange(len(labels), device=labels.device), labels], targets)
