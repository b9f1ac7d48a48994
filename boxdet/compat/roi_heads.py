"""RoI heads with mmdetection 2.x's methods.

As long as a plug-in overrides none of them, nor of the heads within, boxdet's own path is taken; otherwise 2.x's:
``forward_train`` calls ``_bbox_forward_train``, which calls ``_bbox_forward`` and the box head's ``get_targets`` and
``loss``. The numbers are the same.

Letters: B images, N boxes of an image, R rois of the batch, P positives, K classes (label K is the background).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from boxdet.abilities import overrides
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
from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.masks import paste_to_rle
from boxdet.models.cascade_roi_head import CascadeRoIHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import StandardRoIHead, box_losses, draw_samples, predict_boxes
from boxdet.structures.batch import SampledRois, to_original
from boxdet.structures.instances import Instances, joined
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


def tests_2x(head: Any) -> bool:
    """Whether a RoI head brings test methods in 2.x's form."""
    return has_own(head, 'simple_test') or _tests_by_parts(head)


def _tests_by_parts(head: Any) -> bool:
    return has_own(head, 'simple_test_bboxes', 'simple_test_mask') \
        or any(has_own(one, 'get_seg_masks') for one in _each(getattr(head, 'mask_head', None)))


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
        counts = [len(own) for own in boxes]
        if has_own(_each(self.mask_head)[-1], 'get_seg_masks'):
            logits = self._mask_logits(x, boxes_to_rois(boxes))
            parts = torch.stack([at_least_float32(own).sigmoid() for own in logits]).mean(dim=0).cpu().split(counts)
            head = _each(self.mask_head)[-1]
            return [head.get_seg_masks(own.numpy(), box, label, self.test_cfg, meta.ori_shape, meta.scale_factor,
                                       rescale)
                    for own, box, label, meta in zip(parts, boxes, det_labels, metas)]
        found = []
        every = self.mask_probs(x, boxes, det_labels).split(counts)
        for probs, box, label, meta in zip(every, boxes, det_labels, metas):
            shown, size = (box / _factor(box, meta), meta.original_size) if rescale else (box, meta.input_size)
            one = Instances(bboxes=shown, scores=shown[:, 0], labels=label, mask_probs=probs)
            found.append(self._by_class(one, size)[1])
        return found

    def simple_test(self, x: Any, proposal_list: Any, img_metas: Any, proposals: Any = None,
                    rescale: bool = False) -> list[Any]:
        """2.x's results of B images."""
        if not _tests_by_parts(self):
            metas = [replace(meta, flip=False) for meta in metas_of(img_metas)]  # that is undone where views are merged
            found = zip(self.predict(x, as_instances(proposal_list), metas), metas)
            return [self._by_class(to_original(one, meta), meta.original_size) if rescale
                    else self._by_class(one, meta.input_size) for one, meta in found]
        rows, labels = self.simple_test_bboxes(x, img_metas, proposal_list, self.test_cfg, rescale=rescale)
        boxes = [bbox2result(own, label, self.last_bbox_head.num_classes) for own, label in zip(rows, labels)]
        if not self.with_mask:
            return boxes
        return list(zip(boxes, self.simple_test_mask(x, img_metas, rows, labels, rescale=rescale)))

    def _by_class(self, found: Instances, size: tuple[int, int]) -> Any:
        """2.x's result of an image of ``size`` (h, w)."""
        found = found.to('cpu')
        if 'mask_probs' in found:
            codes = paste_to_rle(found.mask_probs, found.bboxes, size, self.test_cfg.mask_thr_binary,
                                 getattr(self.test_cfg, 'paste_whole_pixels', False))
            found = found.without('mask_probs').replace(masks=RleMasks(codes, *size))
        return found.per_class(self.last_bbox_head.num_classes, masks='bitmap')

    def _probs_of_logits(self, x: Any, boxes: Any, labels: Any) -> torch.Tensor:
        """As ``mask_probs``, of a plug-in's ``_mask_forward``."""
        rois, labels = boxes_to_rois(boxes), joined(labels)
        channel = torch.zeros_like(labels) if _each(self.mask_head)[-1].class_agnostic else labels
        row = torch.arange(len(rois), device=rois.device)
        stages = [at_least_float32(own[row, channel]).sigmoid() for own in self._mask_logits(x, rois)]
        return torch.stack(stages).mean(dim=0)


class RoIHead2x(_TestMethods, StandardRoIHead):
    """2.x's methods of ``StandardRoIHead``, also in front of a family's RoI head, whose ``bbox_losses`` and so on stay.

    Raises:
        ConfigError: a family's losses, and a head that computes its own in 2.x's form: one of them would be left out.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for part, names in (('bbox', _OF_BOX_HEADS), ('mask', (*_OF_MASK_HEADS, 'get_seg_masks'))):
            head = getattr(self, f'{part}_head', None)
            if self._has_losses(part) and has_own(head, *names) and not has_own(self, f'_{part}_forward_train'):
                raise ConfigError(f'{type(head).__name__} brings one of {", ".join(names)} in the form of mmdetection '
                                  f"2.x, which {type(self).__name__} does not call: override its {part}_losses, or "
                                  f'_{part}_forward_train')

    def _has_losses(self, part: str) -> bool:
        return overrides(self, f'{part}_losses', StandardRoIHead)

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
        found, head = self._bbox_forward(x, rois), self.bbox_head
        if hasattr(head, 'targets') and not has_own(head, *_OF_BOX_HEADS):
            targets = head.targets(sampling_results, self.train_cfg)
            losses = self.bbox_losses(x, sampling_results, found['cls_score'], found['bbox_pred'], targets)
            return dict(found, loss_bbox=dict(losses))
        wanted = head.get_targets(sampling_results, gt_bboxes, gt_labels, self.train_cfg)
        return dict(found, loss_bbox=head.loss(found['cls_score'], found['bbox_pred'], rois, *wanted))

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
        given: dict[str, Any] = dict(rois=bbox2roi([s.pos_boxes for s in sampling_results]))
        if self.shares_extractor:
            is_pos = [torch.arange(len(s.boxes), device=s.boxes.device) < len(s.pos_boxes) for s in sampling_results]
            given = dict(pos_inds=torch.cat(is_pos), bbox_feats=bbox_feats)
        if self._has_losses('mask'):
            pooled = bbox_feats[given['pos_inds']] if self.shares_extractor else self.mask_features(x, given['rois'])
            gt = [Instances(masks=own) for own in gt_masks]
            return dict(mask_feats=pooled, loss_mask=self.mask_losses(x, pooled, sampling_results, gt))
        found = self._mask_forward(x, **given)
        return dict(found, loss_mask=mask_head_loss(self.mask_head, found['mask_pred'], sampling_results, gt_masks,
                                                    self.train_cfg))

    def mask_probs(self, feats: Any, boxes: Any, labels: Any) -> torch.Tensor:
        """As the head's; of ``_mask_forward``, where a plug-in brings one."""
        if has_own(self, '_mask_forward') and len(joined(labels)):
            return self._probs_of_logits(feats, boxes, labels)
        return super().mask_probs(feats, boxes, labels)

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

    def mask_probs(self, feats: Any, boxes: Any, labels: Any) -> torch.Tensor:
        """As ``RoIHead2x.mask_probs``."""
        if has_own(self, '_mask_forward') and len(joined(labels)):
            return self._probs_of_logits(feats, boxes, labels)
        return super().mask_probs(feats, boxes, labels)

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


def mask_head_loss(head: Any, mask_pred: torch.Tensor, samples: Any, gt_masks: Any, settings: Any) -> dict[str, Any]:
    """The mask head's losses, of a head in either form."""
    labels = torch.cat([s.pos_gt_labels for s in samples])
    if hasattr(head, 'get_targets'):
        return head.loss(mask_pred, head.get_targets(samples, gt_masks, settings), labels)
    targets = head.targets(samples, [Instances(masks=own) for own in gt_masks], settings)
    return head.loss(mask_pred[torch.arange(len(labels), device=labels.device), labels], targets)
