"""Base classes under mmdetection 2.x's names whose 2.x methods are called: what ``mmdet.models`` gives to a plug-in.

Each class here is one of boxdet's with the methods of 2.x beside its own. As long as a plug-in overrides none of them,
boxdet's own path is taken; otherwise 2.x's: ``forward_train`` of the detector calls that of the heads, which call
``_bbox_forward``, ``get_targets``, ``loss`` and ``get_bboxes`` in 2.x's forms. The numbers are the same either way.

Letters: B images, N boxes of an image, R rois of the batch, P positives, K classes (label K is the background).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from boxdet import registry
from boxdet.abilities import ability
from boxdet.compat import data
from boxdet.compat.forms import (
    SamplingResult,
    as_batch,
    as_ground_truth,
    as_ignored,
    as_instances,
    as_rows,
    as_training_inputs,
    bbox2result,
    has_own,
    meta_dict,
    metas_of,
    unpacked,
)
from boxdet.geometry.boxes import at_least_float32, clip_boxes
from boxdet.geometry.masks import paste_to_rle
from boxdet.geometry.nms import multiclass_nms
from boxdet.models import bbox_head, cascade_roi_head, detectors, mask_head, rpn_head, standard_roi_head
from boxdet.models.bbox_head import BoxTargets
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import box_losses
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks

_TEST_METHODS = ('simple_test', 'simple_test_bboxes', 'simple_test_mask', '_mask_forward')
_ANY_HW = (-1, -1)  # of a batch whose size nobody knows: anchors beyond an image's padding are left out in any case


def bbox2roi(bbox_list: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rois (R, 5) of boxes (N, 4 or 5) of B images."""
    return boxes_to_rois([boxes[:, :4] for boxes in bbox_list])


# ---------------------------------------------------------------------------------------------- detectors


class Detector2x:
    """2.x's methods of every detector."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.fp16_enabled = False

    @property
    def with_shared_head(self) -> bool:
        """Whether roi features pass shared layers first."""
        return self.with_roi_head and getattr(self.roi_head, 'with_shared_head', False)

    def forward(self, img: Any = None, img_metas: Any = None, return_loss: bool | None = None, mode: str | None = None,
                **kwargs: Any) -> Any:
        """2.x's ``forward(img, img_metas, return_loss, ...)``, or boxdet's ``forward(batch, mode)``."""
        first = img[0] if isinstance(img, (list, tuple)) and img else img
        if isinstance(first, Batch):
            return super().forward(img, mode or ('predict' if return_loss is False else 'loss'), **kwargs)
        img, img_metas = unpacked(img), unpacked(img_metas)
        kwargs = {key: unpacked(value) for key, value in kwargs.items()}
        if return_loss is None or return_loss:
            return self.forward_train(img, img_metas, **kwargs)
        return self.forward_test(img, img_metas, **kwargs)

    def loss(self, batch: Batch) -> dict[str, Any]:
        """As the detector's; through ``forward_train`` where a part brings a method of 2.x's."""
        if not (has_own(self, 'forward_train') or self._parts_are_own()):
            return super().loss(batch)
        return self.forward_train(**as_training_inputs(self._on_device(batch)))

    def _parts_are_own(self) -> bool:
        heads = [getattr(self, name) for name in ('rpn_head', 'roi_head') if hasattr(self, name)]
        return any(wants_2x(head) for head in heads)

    def forward_train(self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]], **kwargs: Any) -> dict[str, Any]:
        """Losses by name, of 2.x's arguments."""
        if not self._parts_are_own():
            return super().loss(as_batch(img, img_metas, **kwargs))
        gt_bboxes, proposals = kwargs.pop('gt_bboxes'), kwargs.pop('proposals', None)
        gt_labels, ignored = kwargs.pop('gt_labels', None), kwargs.pop('gt_bboxes_ignore', None)
        shape = tuple(img.shape[-2:])
        img_metas = [{**(meta if isinstance(meta, Mapping) else meta_dict(meta)), 'batch_input_shape': shape}
                     for meta in img_metas]
        feats, losses = self.extract_feat(img), {}
        if self.with_rpn:
            settings = self.test_cfg.rpn if self.train_cfg.rpn_proposal is None else self.train_cfg.rpn_proposal
            losses, proposals = rpn_forward_train(self.rpn_head, feats, img_metas, gt_bboxes, ignored, settings)
        if not self.with_roi_head:
            return losses
        if hasattr(self.roi_head, 'forward_train'):
            parts = self.roi_head.forward_train(feats, img_metas, proposals, gt_bboxes, gt_labels, ignored, **kwargs)
        else:
            gt = as_ground_truth(gt_bboxes, gt_labels, kwargs.get('gt_masks'), kwargs.get('gt_keypoints'))
            parts = self.roi_head.loss(feats, as_instances(proposals), gt, as_ignored(ignored, gt_bboxes),
                                       metas_of(img_metas))
        return {**losses, **parts}

    def predict(self, batch: Batch | Sequence[Batch], rescale: bool = True) -> list[Instances]:
        """As the detector's; through ``simple_test`` where a part brings a test method of 2.x's."""
        views = [batch] if isinstance(batch, Batch) else batch
        own = has_own(self, 'simple_test', 'forward_test') or has_own(getattr(self, 'roi_head', None), *_TEST_METHODS)
        if not own or len(views) > 1:
            return super().predict(batch, rescale=rescale)
        view = self._on_device(views[0])
        given = {} if view.proposals is None else dict(proposals=as_rows(view.proposals))
        metas = [meta_dict(meta) for meta in view.metas]
        with torch.no_grad():
            results = self.simple_test(view.images, metas, rescale=rescale, **given)
        sizes = [meta.original_size if rescale else tuple(meta.img_shape[:2]) for meta in view.metas]
        return [best_first(Instances.from_per_class(result, size)) for result, size in zip(results, sizes)]

    def forward_test(self, imgs: Sequence[torch.Tensor] | torch.Tensor, img_metas: Sequence[Any], rescale: bool = False,
                     **kwargs: Any) -> list[Any]:
        """2.x's results of the views ``imgs`` (1, 3, H, W) of the images."""
        if isinstance(imgs, torch.Tensor):
            imgs, img_metas = [imgs], [img_metas] if isinstance(img_metas[0], Mapping) else img_metas
        if len(imgs) != len(img_metas):
            raise ValueError(f'{len(imgs)} views of the images, but img_metas of {len(img_metas)}')
        metas = [[one] if isinstance(one, Mapping) else list(one) for one in img_metas]
        if len(imgs) > 1:
            return self.aug_test(imgs, metas, rescale=rescale, **kwargs)
        kwargs = {key: value[0] if key == 'proposals' and isinstance(value, (list, tuple)) else value
                  for key, value in kwargs.items()}
        return self.simple_test(imgs[0], metas[0], rescale=rescale, **kwargs)

    def simple_test(self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]],
                    proposals: Sequence[torch.Tensor] | None = None, rescale: bool = False) -> list[Any]:
        """2.x's results of B images: K arrays (n, 5); with masks a pair whose masks are (H, W) bool arrays."""
        metas = [dict(meta) for meta in img_metas]
        if has_own(getattr(self, 'roi_head', None), *_TEST_METHODS):
            feats = self.extract_feat(img)
            if proposals is None:
                proposals = as_rows(self.rpn_head.predict(*self.rpn_head(feats), metas_of(metas), self.test_cfg.rpn))
            return self.roi_head.simple_test(feats, proposals, metas, rescale=rescale)
        found = super().predict(as_batch(img, _complete(metas, img), proposals=proposals), rescale=rescale)
        return [self.result_2x(one) for one in found]

    def aug_test(self, imgs: Sequence[torch.Tensor], img_metas: Sequence[Sequence[Mapping[str, Any]]],
                 rescale: bool = False, proposals: Sequence[Any] | None = None) -> list[Any]:
        """2.x's results, merged from several views of an image."""
        views = [as_batch(img, _complete(metas, img)) for img, metas in zip(imgs, img_metas)]
        return [self.result_2x(one) for one in super().predict(views, rescale=rescale)]

    def result_2x(self, result: Instances) -> Any:
        """What 2.x's ``inference_detector`` gives for an image; of an RPN an array (N, 5)."""
        if not self.with_roi_head:
            return as_rows([result])[0].numpy()
        return result.per_class(result.num_classes or self.roi_head.last_bbox_head.num_classes, masks='bitmap')

    def forward_dummy(self, img: torch.Tensor) -> tuple[Any, ...]:
        """The outputs of all heads on an image, with 1000 proposals of chance: for counting operations."""
        feats, outs = self.extract_feat(img), ()
        if self.with_rpn:
            outs += (self.rpn_head(feats),)
        if self.with_roi_head:
            proposals = torch.rand(1000, 4, device=img.device) * img.shape[-1]
            rois = boxes_to_rois([torch.cat([proposals[:, :2], proposals[:, :2] + proposals[:, 2:]], dim=1)])
            stages = range(getattr(self.roi_head, 'num_stages', 1))
            several = hasattr(self.roi_head, 'num_stages')
            outs += tuple(self.roi_head.box_forward(*([stage] if several else []), feats, rois)[:2] for stage in stages)
            if self.with_mask:
                head = self.roi_head.mask_head
                outs += tuple((head[stage] if several else head)(
                    self.roi_head.mask_features(*([stage] if several else []), feats, rois[:100])) for stage in stages)
        return outs

    def extract_feats(self, imgs: Sequence[torch.Tensor]) -> list[Any]:
        """``extract_feat`` of each view."""
        return [self.extract_feat(img) for img in imgs]

    def _parse_losses(self, losses: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        """The sum of what has 'loss' in its name, and numbers to log."""
        means = {name: sum(one.mean() for one in value) if isinstance(value, (list, tuple)) else value.mean()
                 for name, value in losses.items()}
        total = sum(value for name, value in means.items() if 'loss' in name)
        return total, {**{name: float(value) for name, value in means.items()}, 'loss': float(total)}

    def train_step(self, data: Any, optimizer: Any = None) -> dict[str, Any]:
        """``loss``, ``log_vars``, ``num_samples`` of a batch, which may be a dict of ``forward_train``'s arguments."""
        losses = self.loss(data) if isinstance(data, Batch) else self(**data, return_loss=True)
        loss, log_vars = self._parse_losses(losses)
        count = len(data) if isinstance(data, Batch) else len(unpacked(data['img_metas']))
        return dict(loss=loss, log_vars=log_vars, num_samples=count)

    val_step = train_step


def _complete(metas: Sequence[Mapping[str, Any]], img: torch.Tensor) -> list[dict[str, Any]]:
    """Metas with the shapes that a script left out: those of the input."""
    height, width = img.shape[-2:]
    filled = []
    for meta in metas:
        meta = dict(meta)
        meta.setdefault('img_shape', (height, width, 3))
        meta.setdefault('pad_shape', (height, width, 3))
        meta.setdefault('ori_shape', meta['img_shape'])
        filled.append(meta)
    return filled


def best_first(result: Instances) -> Instances:
    """The rows in descending order of their scores."""
    return result[result.scores.argsort(descending=True, stable=True)]


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


class RPNHead2x:
    """2.x's methods of the RPN head."""

    def forward_single(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Objectness and deltas of one level."""
        scores, deltas = super().forward([x])
        return scores[0], deltas[0]

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As the head's; of ``forward_single``, where a plug-in brings one."""
        if not has_own(self, 'forward_single'):
            return super().forward(feats)
        return tuple(map(list, zip(*(self.forward_single(x) for x in feats))))

    def forward_train(self, x: Any, img_metas: Sequence[Mapping], gt_bboxes: Any, gt_labels: Any = None,
                      gt_bboxes_ignore: Any = None, proposal_cfg: Any = None, **kwargs: Any) -> Any:
        """Losses; with ``proposal_cfg`` also proposals (N, 5)."""
        outs = self(x)
        losses = self.loss(*outs, gt_bboxes, img_metas, gt_bboxes_ignore=gt_bboxes_ignore)
        if proposal_cfg is None:
            return losses
        return losses, self.get_bboxes(*outs, img_metas=img_metas, cfg=proposal_cfg)

    def loss(self, cls_scores: Any, bbox_preds: Any, gt_bboxes: Any, img_metas: Any, metas: Any = None,
             batch_hw: Any = None, gt_bboxes_ignore: Any = None) -> dict[str, list[torch.Tensor]]:
        """2.x's ``loss(cls_scores, bbox_preds, gt_bboxes, img_metas, gt_bboxes_ignore=None)``, or boxdet's."""
        if batch_hw is not None:
            return super().loss(cls_scores, bbox_preds, gt_bboxes, img_metas, metas, batch_hw)
        gt_bboxes_ignore = metas if gt_bboxes_ignore is None else gt_bboxes_ignore
        return super().loss(cls_scores, bbox_preds, as_ground_truth(gt_bboxes, None),
                            as_ignored(gt_bboxes_ignore, gt_bboxes), metas_of(img_metas),
                            dict(img_metas[0]).get('batch_input_shape', _ANY_HW))

    def get_bboxes(self, cls_scores: Any, bbox_preds: Any, score_factors: Any = None, img_metas: Any = None,
                   cfg: Any = None, rescale: bool = False, with_nms: bool = True, **kwargs: Any) -> list[torch.Tensor]:
        """B proposals (N, 5)."""
        settings = self.test_cfg if cfg is None else read_settings(self, cfg)
        return as_rows(super().predict(cls_scores, bbox_preds, metas_of(img_metas), settings))

    def predict(self, cls_scores: Any, bbox_preds: Any, metas: Any, settings: Any = None) -> list[Instances]:
        """As the head's; of ``get_bboxes``, where a plug-in brings one."""
        if not has_own(self, 'get_bboxes'):
            return super().predict(cls_scores, bbox_preds, metas, settings)
        return as_instances(self.get_bboxes(cls_scores, bbox_preds, img_metas=[meta_dict(m) for m in metas],
                                            cfg=settings))

    def simple_test_rpn(self, x: Any, img_metas: Any) -> list[torch.Tensor]:
        """B proposals (N, 5)."""
        return self.get_bboxes(*self(x), img_metas=img_metas)

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


class BBoxHead2x:
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
            scores, avg_factor = at_least_float32(cls_score), max(float((label_weights > 0).sum()), 1.0)
            if len(scores):
                losses['loss_cls'] = self.loss_cls(scores, labels, label_weights, avg_factor=avg_factor,
                                                   reduction_override=reduction_override)
                losses['acc'] = (scores.detach().argmax(dim=1) == labels).sum() * (100.0 / len(labels))
        if bbox_pred is not None:
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
                   scale_factor: Any, rescale: bool = False, cfg: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
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
        return multiclass_nms(boxes, scores, cfg.score_thr, cfg.nms, cfg.max_per_img)

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


class MaskHead2x:
    """2.x's methods of the mask head."""

    def get_targets(self, sampling_results: Sequence[Any], gt_masks: Sequence[Any],
                    rcnn_train_cfg: Any) -> torch.Tensor:
        """Target masks (P, h, w) of the positives of B images."""
        return super().targets(sampling_results, [SimpleNamespace(masks=own) for own in gt_masks], rcnn_train_cfg)

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
        found = [[] for _ in range(self.num_classes)]
        for label, bitmap in zip(det_labels.tolist(), bitmaps):
            found[label].append(bitmap)
        return found


# ---------------------------------------------------------------------------------------------- RoI heads

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


class RoIHead2x:
    """2.x's methods of ``StandardRoIHead``."""

    @property
    def bbox_assigner(self) -> Any:
        """What matches proposals with objects."""
        return self.assigner

    @property
    def bbox_sampler(self) -> Any:
        """What draws from them."""
        return self.sampler

    @property
    def share_roi_extractor(self) -> bool:
        """Whether the mask head reads the box head's features."""
        return self.shares_extractor

    def loss(self, feats: Any, proposals: Any, gt: Any, ignored: Any, metas: Any, **kwargs: Any) -> dict[str, Any]:
        """As the head's; through ``forward_train`` where a part brings a method of 2.x's."""
        if not wants_2x(self):
            return super().loss(feats, proposals, gt, ignored, metas, **kwargs)
        masks = [own.masks for own in gt] if all('masks' in own for own in gt) else None
        return self.forward_train(feats, [meta_dict(meta) for meta in metas], as_rows(proposals),
                                  [own.bboxes for own in gt], [own.labels for own in gt], ignored, masks)

    def _samples(self, x: Any, proposal_list: Any, gt_bboxes: Any, gt_labels: Any, gt_bboxes_ignore: Any) -> list[Any]:
        ranks, samples = self.ranks_by_loss, []
        for i, boxes in enumerate(proposal_list):
            region = None if gt_bboxes_ignore is None else gt_bboxes_ignore[i]
            with torch.no_grad():
                matched = self.assigner.assign(boxes[:, :4], gt_bboxes[i], region, gt_labels[i])
                rank = partial(box_losses, self.bbox_head, self.box_forward, x, i)
                drawn = self.sampler.sample(matched, boxes[:, :4], gt_bboxes[i], gt_labels[i],
                                            **(dict(rank_losses=rank) if ranks else {}))
            samples.append(SamplingResult.of(drawn, len(gt_bboxes[i])))
        return samples

    def forward_train(self, x: Any, img_metas: Any, proposal_list: Any, gt_bboxes: Any, gt_labels: Any,
                      gt_bboxes_ignore: Any = None, gt_masks: Any = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The losses of boxes and masks."""
        if self.with_keypoint:
            gt = as_ground_truth(gt_bboxes, gt_labels, gt_masks, kwargs.get('gt_keypoints'))
            return super().loss(x, as_instances(proposal_list), gt, as_ignored(gt_bboxes_ignore, gt_bboxes),
                                metas_of(img_metas))
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
        feats = self.mask_features(x, rois) if rois is not None else bbox_feats[pos_inds.bool()]
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

    def simple_test_bboxes(self, x: Any, img_metas: Any, proposals: Any, rcnn_test_cfg: Any = None,
                           rescale: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """B boxes (n, 5) and labels (n,)."""
        metas, settings = metas_of(img_metas), self.test_cfg if rcnn_test_cfg is None else rcnn_test_cfg
        boxes, scores, deltas = self.classify(x, [own[:, :4] for own in proposals], metas)
        found = standard_roi_head.predict_boxes(self.last_bbox_head, boxes, scores, deltas, metas, settings)
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
            size = meta.original_size if rescale else tuple(meta.img_shape[:2])
            shown = (box / _factor(box, meta) if rescale else box).cpu()
            rles = RleMasks(paste_to_rle(own.cpu(), shown, size, self.test_cfg.mask_thr_binary), *size)
            one = Instances(size, self.last_bbox_head.num_classes, bboxes=shown, scores=shown[:, 0],
                            labels=label.cpu(), masks=rles)
            found.append(one.per_class(masks='bitmap')[1])
        return found

    def _mask_logits(self, x: Any, rois: torch.Tensor) -> list[torch.Tensor]:
        """``_mask_forward``'s (R, K, h, w), of each stage."""
        return [self._mask_forward(x, rois)['mask_pred']]

    def simple_test(self, x: Any, proposal_list: Any, img_metas: Any, proposals: Any = None,
                    rescale: bool = False) -> list[Any]:
        """2.x's results of B images."""
        rows, labels = self.simple_test_bboxes(x, img_metas, proposal_list, self.test_cfg, rescale=rescale)
        boxes = [bbox2result(own, label, self.last_bbox_head.num_classes) for own, label in zip(rows, labels)]
        if not self.with_mask:
            return boxes
        return list(zip(boxes, self.simple_test_mask(x, img_metas, rows, labels, rescale=rescale)))

    def forward_dummy(self, x: Any, proposals: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores, deltas and, with a mask head, mask logits of proposals (N, 4)."""
        rois = boxes_to_rois([proposals[:, :4]])
        outs = self.box_forward(x, rois)[:2]
        return (*outs, self.mask_head(self.mask_features(x, rois[:100]))) if self.with_mask else outs


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
    targets = head.targets(samples, [SimpleNamespace(masks=own) for own in gt_masks], settings)
    return head.loss(mask_pred[torch.arange(len(labels), device=labels.device), labels], targets)


class CascadeRoIHead2x(RoIHead2x):
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
        scores, deltas, pooled = cascade_roi_head.CascadeRoIHead.box_forward(self, stage, x, rois)
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
                      gt_bboxes_ignore: Any = None, gt_masks: Any = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The losses of all stages, ``s0.loss_cls`` and so on."""
        losses, boxes = {}, [own[:, :4] for own in proposal_list]
        for stage, weight in enumerate(self.stage_loss_weights):
            head, settings = self.bbox_head[stage], self.stage_settings[stage]
            assigner, sampler = self.matching[stage]
            forward = partial(self.box_forward, stage)
            samples = []
            for i, own in enumerate(boxes):
                region = None if gt_bboxes_ignore is None else gt_bboxes_ignore[i]
                with torch.no_grad():
                    matched = assigner.assign(own, gt_bboxes[i], region, gt_labels[i])
                    rank = {}
                    if ability(sampler, 'ranks_by_loss'):
                        rank['rank_losses'] = partial(box_losses, head, forward, x, i)
                    samples.append(SamplingResult.of(sampler.sample(matched, own, gt_bboxes[i], gt_labels[i], **rank),
                                                     len(gt_bboxes[i])))
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


# ---------------------------------------------------------------------------------------------- matching


class Sampler2x:
    """Samples by 2.x's names, from 2.x's call; what else a caller gives (``feats``) is not needed."""

    def __init__(self, *args: Any, context: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.context = context

    def sample(self, assign_result: Any, bboxes: torch.Tensor, gt_bboxes: torch.Tensor,
               gt_labels: torch.Tensor | None = None, **kwargs: Any) -> SamplingResult:
        """As the sampler's."""
        ranks = {name: value for name, value in kwargs.items() if name == 'rank_losses'}
        drawn = super().sample(assign_result, bboxes[:, :4].float(), gt_bboxes.float(), gt_labels, **ranks)
        return SamplingResult.of(drawn, len(gt_bboxes))


# ---------------------------------------------------------------------------------------------- all of them

# Which methods a class of boxdet's gets, by its first ancestor here.
_FORMS = ((detectors._Detector, Detector2x), (standard_roi_head.StandardRoIHead, RoIHead2x),
          (cascade_roi_head.CascadeRoIHead, CascadeRoIHead2x), (bbox_head.BBoxHead, BBoxHead2x),
          (mask_head.FCNMaskHead, MaskHead2x), (rpn_head.RPNHead, RPNHead2x))
# Classes whose own methods are no template of 2.x's: they stay as they are.
_HOMES = 'boxdet.models.', 'boxdet.datasets.'
_AS_THEY_ARE = ('boxdet.models.families.',)
_made: dict[type, type] = {}


def form_of(cls: type) -> type:
    """The class that ``mmdet.models`` has under this name: ``cls`` with 2.x's methods, or ``cls``."""
    if cls in _made or not isinstance(cls, type) or not cls.__module__.startswith(_HOMES) \
            or cls.__module__.startswith(_AS_THEY_ARE):
        return _made.get(cls, cls)
    form = next((form for base, form in (*_FORMS, *data.FORMS) if issubclass(cls, base)), None)
    if form is None and cls.__module__.startswith('boxdet.datasets.pipelines.') and '__call__' in vars(cls):
        form = data.Transform2x
    if form is None:
        return cls
    # The class's own bases come first, so that a RoI head of 2.x is a subclass of 2.x's StandardRoIHead too.
    bases = tuple(dict.fromkeys(form_of(base) for base in cls.__bases__ if form_of(base) is not base))
    own = (cls,) if not bases else (*bases, cls)
    content = dict(__module__='boxdet.compat.models', __doc__=cls.__doc__)
    if 'can_defer' in vars(cls):  # an ability that is not inherited
        content['can_defer'] = vars(cls)['can_defer']
    made = type(cls.__name__, (form, *own) if not bases else own, content)
    _made[cls] = made
    return made


def register_forms() -> None:
    """Put the classes with 2.x's methods into the registries, under the same names."""
    for known in (registry.MODELS, registry.DATASETS, registry.PIPELINES):
        for name in known.names():
            cls = known.get(name)
            made = form_of(cls)
            if made is not cls:
                known.register_module(name=name, module=made, force=True)
    for name in registry.MATCHING.names():
        cls = registry.MATCHING.get(name)
        if hasattr(cls, 'sample') and not issubclass(cls, Sampler2x) and cls.__module__.startswith('boxdet.'):
            made = type(name, (Sampler2x, cls), dict(__module__='boxdet.compat.models', __doc__=cls.__doc__))
            _made[cls] = made
            registry.MATCHING.register_module(name=name, module=made, force=True)
