"""The second stage's box head (Girshick 2015; with shared layers on pyramids Lin et al. 2017, section 4.2).

Letters: B images, R rois of the batch, P positive rois, K classes (label K is the background), C channels, h,
w height and width of a roi's features. bbox_pred is (R, 4), or (R, K * 4) with deltas of its own for each
class.
"""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from boxdet.abilities import ability
from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32, clip_boxes
from boxdet.geometry.nms import EXACT, Suppression
from boxdet.models import contracts
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.models.settings import Settings, integer, nms, number
from boxdet.registry import HEADS, LAYERS, LOSSES, MATCHING, Cfg
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances, PaddedInstances, image_rows, joined, of_images

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoITrainSettings(Settings):
    """``train_cfg.rcnn``: which proposals are objects, and which of them enter the loss.

    Args:
        assigner: config for the matching registry.
        sampler: config for the matching registry.
        mask_size: side of the square mask targets in pixels, or (height, width).
        mask_samples: positives of an image that the mask head learns from, drawn at random; all when <= 0. The mask
            head takes a large part of the time and memory of a step.
        pos_weight: loss weight of positives, 1 when <= 0.
        debug: log how many proposals were matched.
    """
    assigner: Cfg | contracts.Assigner | None = None
    sampler: Cfg | contracts.Sampler | None = None
    mask_size: int | tuple[int, int] = 28
    mask_samples: int = integer(-1)
    pos_weight: float = number(-1)
    debug: bool = False


@dataclass(frozen=True)
class RoITestSettings(Settings):
    """``test_cfg.rcnn``: from class scores, boxes and masks to results.

    Args:
        score_thr: results score higher than this.
        nms: config of the suppression, by class.
        max_per_img: results of an image at most; <= 0 for no limit.
        mask_thr_binary: a pixel belongs to the object from this probability on; above 0, the probability of every
            pixel outside the box.
        min_bbox_size: boxes must be wider and higher than this many network-input pixels; negative keeps all.
        keep_empty: keep results without area, as mmdetection does; detectron2 drops them from the ``max_per_img`` best.
        paste_whole_pixels: masks are put on boxes whose corners are cut to whole pixels, torchvision's way.
    """
    score_thr: float = number(0.05, 0, 1)
    nms: Cfg = nms(type='nms', iou_threshold=0.5)
    max_per_img: int = integer(100)
    mask_thr_binary: float = number(0.5, 1e-6, 1)
    min_bbox_size: float = number(-1)
    keep_empty: bool = True
    paste_whole_pixels: bool = False


@dataclass
class BoxTargets:
    """What the sampled rois of a batch should have predicted; rois as ``SampledRois.boxes``, images in order.

    Args:
        labels: (R,) int64 in [0, K].
        label_weights: (R,).
        pos_index: (P,) the places of the positives among the rois.
        pos_boxes: (P, 4) the positives.
        pos_gt_boxes: (P, 4) the boxes they are matched to.
    """
    labels: torch.Tensor
    label_weights: torch.Tensor
    pos_index: torch.Tensor
    pos_boxes: torch.Tensor
    pos_gt_boxes: torch.Tensor


@HEADS.register_module()
class BBoxHead(nn.Module):
    """Shared convolutions and linear layers, then a branch of them each for class scores and box deltas.

    Without any such layers, the default, the two outputs are linear in the roi's features.

    Args:
        with_avg_pool: average the features over height and width before the first linear layer.
        with_cls: have the output of class scores.
        with_reg: have the output of box deltas.
        roi_feat_size: side of the features, or (h, w).
        in_channels: C of the features.
        num_classes: K.
        bbox_coder: config for the matching registry.
        reg_class_agnostic: one box a roi, and not one for each class.
        reg_decoded_bbox: the box loss compares boxes in pixels and not deltas (IoU losses).
        reg_predictor_cfg: the type of the last layer of the deltas, 'Linear' or a registered layer.
        cls_predictor_cfg: likewise, of the scores.
        loss_cls: config of the loss.
        loss_bbox: config of the loss.
        num_shared_convs: convolutions before the branches part.
        num_shared_fcs: linear layers before the branches part.
        num_cls_convs: convolutions of the branch for scores.
        num_cls_fcs: its linear layers.
        num_reg_convs: convolutions of the branch for deltas.
        num_reg_fcs: its linear layers.
        conv_out_channels: channels of the convolutions.
        fc_out_channels: size of the linear layers.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of their norms.
        init_cfg: initial weights; by default normal (0.01 scores, 0.001 boxes), Xavier for the other linear
            layers.

    Raises:
        ConfigError: neither output, or convolutions of a branch after shared linear layers.
    """

    fixed_size_prediction = True

    def __init__(self, with_avg_pool: bool = False, with_cls: bool = True, with_reg: bool = True,
                 roi_feat_size: int | tuple[int, int] = 7, in_channels: int = 256, num_classes: int = 80,
                 bbox_coder: Cfg | contracts.BoxCoder | None = None, reg_class_agnostic: bool = False,
                 reg_decoded_bbox: bool = False, reg_predictor_cfg: Cfg | None = None,
                 cls_predictor_cfg: Cfg | None = None, loss_cls: Cfg | nn.Module | None = None,
                 loss_bbox: Cfg | nn.Module | None = None, num_shared_convs: int = 0, num_shared_fcs: int = 0,
                 num_cls_convs: int = 0, num_cls_fcs: int = 0, num_reg_convs: int = 0, num_reg_fcs: int = 0,
                 conv_out_channels: int = 256, fc_out_channels: int = 1024, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__()
        if not (with_cls or with_reg):
            raise ConfigError('a box head needs with_cls or with_reg')
        if num_shared_fcs and (num_cls_convs or num_reg_convs):
            raise ConfigError(
                'a box head cannot have convolutions (num_cls_convs, num_reg_convs) after num_shared_fcs')
        self.with_avg_pool, self.with_cls, self.with_reg = with_avg_pool, with_cls, with_reg
        self.in_channels, self.num_classes, self.roi_feat_size = in_channels, num_classes, _pair(roi_feat_size)
        self.reg_class_agnostic, self.reg_decoded_bbox = reg_class_agnostic, reg_decoded_bbox
        self.bbox_coder = MATCHING.build(bbox_coder or dict(
            type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2]))
        self.loss_cls = LOSSES.build(loss_cls
                                     or dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0))
        self._custom_accuracy = ability(self.loss_cls, 'custom_accuracy')
        self._custom_activation = ability(self.loss_cls, 'custom_activation')
        self.loss_bbox = LOSSES.build(loss_bbox or dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))

        cells = 1 if with_avg_pool else _pair(roi_feat_size)[0] * _pair(roi_feat_size)[1]
        branch = partial(_branch, conv_out=conv_out_channels, fc_out=fc_out_channels, conv_cfg=conv_cfg,
                         norm_cfg=norm_cfg)
        shared_convs, shared_fcs, shared = branch(in_channels, num_shared_convs, num_shared_fcs, cells)
        after = 1 if num_shared_fcs else cells
        cls_convs, cls_fcs, cls_out = branch(shared, num_cls_convs, num_cls_fcs if with_cls else 0, after)
        reg_convs, reg_fcs, reg_out = branch(shared, num_reg_convs, num_reg_fcs if with_reg else 0, after)
        # What a subclass that builds layers of its own reads.
        self.num_shared_convs, self.num_shared_fcs = num_shared_convs, num_shared_fcs
        self.num_cls_convs, self.num_cls_fcs = num_cls_convs, num_cls_fcs
        self.num_reg_convs, self.num_reg_fcs = num_reg_convs, num_reg_fcs
        self.conv_out_channels, self.fc_out_channels = conv_out_channels, fc_out_channels
        self.shared_out_channels = shared
        self.cls_last_dim = cls_out if num_shared_fcs or num_cls_fcs else cls_out * cells
        self.reg_last_dim = reg_out if num_shared_fcs or num_reg_fcs else reg_out * cells
        # The outputs come first, as in mmdetection's models: the state of an optimizer goes by this order.
        if with_cls:
            custom = ability(self.loss_cls, 'custom_cls_channels')
            channels = self.loss_cls.get_cls_channels(num_classes) if custom else num_classes + 1
            self.fc_cls = _predictor(cls_predictor_cfg, self.cls_last_dim, channels)
        if with_reg:
            self.fc_reg = _predictor(reg_predictor_cfg, self.reg_last_dim, 4 if reg_class_agnostic else 4 * num_classes)
        self.shared_convs, self.shared_fcs = shared_convs, shared_fcs
        self.cls_convs, self.cls_fcs = cls_convs, cls_fcs
        self.reg_convs, self.reg_fcs = reg_convs, reg_fcs
        self.init_cfg = init_cfg or self._default_init()

    def _default_init(self) -> list[dict]:
        outputs = [('fc_cls', 0.01)] * self.with_cls + [('fc_reg', 0.001)] * self.with_reg
        cfg = [dict(type='Normal', std=std, override=dict(name=name)) for name, std in outputs]
        hidden = [dict(name=name) for name in ('shared_fcs', 'cls_fcs', 'reg_fcs')
                  if len(getattr(self, name))]
        if hidden:
            cfg.append(dict(type='Xavier', distribution='uniform', override=hidden))
        return cfg

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Map features (R, C, h, w) to scores (R, K + 1) and deltas (R, 4 or K * 4); None for a missing output."""
        for conv in self.shared_convs:
            x = conv(x)
        x = self._through_fcs(x, self.shared_fcs)
        scores = deltas = None
        if self.with_cls:
            branch = x
            for conv in self.cls_convs:
                branch = conv(branch)
            scores = self.fc_cls(self._flat(self._through_fcs(branch, self.cls_fcs)))
        if self.with_reg:
            branch = x
            for conv in self.reg_convs:
                branch = conv(branch)
            deltas = self.fc_reg(self._flat(self._through_fcs(branch, self.reg_fcs)))
        return scores, deltas

    def _through_fcs(self, x: torch.Tensor, fcs: nn.ModuleList) -> torch.Tensor:
        for fc in fcs:
            x = F.relu(fc(self._flat(x)))
        return x

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return x
        return x.mean(dim=(2, 3)) if self.with_avg_pool else x.flatten(1)  # (R, C) or (R, C * h * w)

    # ------------------------------------------------------------------------------------------ training

    def targets(self, samples: Sequence[SampledRois], settings: RoITrainSettings) -> BoxTargets:
        """Labels, weights and boxes for the samples of B images."""
        labels, weights, index, start = [], [], [], 0
        pos_weight = settings.pos_weight if settings.pos_weight > 0 else 1.0
        for i, drawn in enumerate(samples):
            positive, negative = len(drawn.pos_boxes), len(drawn.neg_boxes)
            device = drawn.pos_boxes.device
            labels += [drawn.pos_gt_labels.long(), torch.full((negative,), self.num_classes, device=device)]
            weights += [torch.full((positive,), pos_weight, device=device),
                        torch.ones(negative, device=device) if drawn.neg_weights is None else drawn.neg_weights]
            index.append(torch.arange(start, start + positive, device=device))
            start += positive + negative
            if settings.debug:
                _LOG.info('rcnn: of image %d %d positive and %d negative proposals were drawn', i, positive,
                          negative)
        return BoxTargets(torch.cat(labels), torch.cat(weights), torch.cat(index),
                          torch.cat([s.pos_boxes for s in samples]),
                          torch.cat([s.pos_gt_boxes for s in samples]))

    def loss(self, cls_score: torch.Tensor | None, bbox_pred: torch.Tensor | None,
             targets: BoxTargets) -> dict[str, torch.Tensor]:
        """Return ``loss_cls``, ``acc`` (top-1, in percent) and ``loss_bbox``, scalars.

        Both losses are divided by R: one positive counts as much in an image of few as in one of many
            (Girshick 2015).
        """
        losses: dict[str, torch.Tensor] = {}
        count = max(len(targets.labels), 1)
        if cls_score is not None:
            cls_score = at_least_float32(cls_score)
            found = self.loss_cls(cls_score, targets.labels, targets.label_weights, avg_factor=count)
            losses.update(found if isinstance(found, Mapping) else dict(loss_cls=found))
            if self._custom_accuracy:
                losses.update(self.loss_cls.get_accuracy(cls_score.detach(), targets.labels))
            else:
                hits = cls_score.detach().argmax(dim=1) == targets.labels
                losses['acc'] = hits.sum() * (100.0 / count)
        if bbox_pred is not None:
            deltas = self.deltas_of(at_least_float32(bbox_pred[targets.pos_index]), targets.labels[targets.pos_index])
            boxes = targets.pos_gt_boxes
            if self.reg_decoded_bbox:
                deltas = self.bbox_coder.decode(targets.pos_boxes, deltas)
            else:
                boxes = self.bbox_coder.encode(targets.pos_boxes, boxes)
            losses['loss_bbox'] = self.loss_bbox(deltas, boxes, avg_factor=count)
        return losses

    def deltas_of(self, bbox_pred: torch.Tensor, labels: torch.Tensor,
                  row: torch.Tensor | None = None) -> torch.Tensor:
        """The deltas (N, 4) that rows (N, 4 or K * 4) hold for ``labels`` (N,); or those at ``row`` (N,)."""
        if self.reg_class_agnostic:
            return bbox_pred if row is None else bbox_pred[row]
        row = torch.arange(labels.shape[0], device=labels.device) if row is None else row
        return bbox_pred.view(bbox_pred.shape[0], self.num_classes, 4)[row, labels]

    # ------------------------------------------------------------------------------------------ results

    def probabilities(self, cls_score: torch.Tensor) -> torch.Tensor:
        """Class probabilities (R, K + 1) from scores (R, K + 1); the background is the last one."""
        cls_score = at_least_float32(cls_score)
        return self.loss_cls.get_activation(cls_score) if self._custom_activation else cls_score.softmax(dim=-1)

    def ranked_scores(self, scores: torch.Tensor, bbox_pred: torch.Tensor | None) -> torch.Tensor:
        """The scores of results, (B, N, K), from those that ``score_thr`` is for; here the same."""
        return scores

    @torch.no_grad()
    def predict(self, boxes: torch.Tensor, cls_score: torch.Tensor, bbox_pred: torch.Tensor | None,
                image_hw: tuple[int, int], settings: RoITestSettings) -> Instances:
        """Results of one image, best first.

        Args:
            boxes: (N, 4) its proposals.
            cls_score: (N, K + 1).
            bbox_pred: (N, 4 or K * 4); without deltas the proposals are the boxes.
            image_hw: boxes are clipped to it.
            settings: which results.

        Returns:
            Instances(bboxes, scores, labels) in network-input pixels.
        """
        every = torch.ones(1, len(boxes), dtype=torch.bool, device=boxes.device)
        found = self.predict_padded([boxes], every, cls_score, bbox_pred, [image_hw], settings, EXACT)
        return found.instances([image_hw], self.num_classes)[0]

    @torch.no_grad()
    def predict_padded(self, boxes: Sequence[torch.Tensor] | torch.Tensor, valid: torch.Tensor, cls_score: torch.Tensor,
                       bbox_pred: torch.Tensor | None, sizes: Sequence[tuple[int, int]] | torch.Tensor,
                       settings: RoITestSettings, suppression: Suppression) -> PaddedInstances:
        """Results ``bboxes`` (B, n, 4), ``scores`` (B, n) and ``labels`` (B, n), best first.

        They are not ``settled`` where fewer results than wanted came of the candidates that the suppression looked at,
        though there were more.

        Args:
            boxes: the proposals of B images, (N, 4) each.
            valid: (B, N) bool, False for proposals that only fill up.
            cls_score: (B * N, K + 1).
            bbox_pred: (B * N, 4 or K * 4), or None.
            sizes: (height, width) of B images, see ``structures.batch.image_sizes``; boxes are clipped to them.
            settings: which results.
            suppression: how many candidates are looked at, and how they are suppressed.
        """
        batch, count = valid.shape
        scores = self.probabilities(cls_score)[:, :self.num_classes].unflatten(0, (batch, count))
        above = ((scores > settings.score_thr) & valid[..., None]).flatten(1)            # (B, N * K)
        # A thousand proposals times the classes are many boxes: only the candidates are decoded.
        scores = self.ranked_scores(scores, bbox_pred)
        room = suppression.room(above, settings.max_per_img)
        scores, place = suppression.best(scores.flatten(1).masked_fill(~above, -1), room)                 # (B, n)
        label, row = place % self.num_classes, place // self.num_classes
        row = row + count * torch.arange(batch, device=row.device)[:, None]              # among all B * N
        deltas = None
        if bbox_pred is not None:
            deltas = self.deltas_of(bbox_pred, label.flatten(), row.flatten()).unflatten(0, row.shape)
        found = joined(boxes)[row]                                                       # (B, n, 4)
        found = of_images([self.decode(*rows) for rows in image_rows(sizes, found, deltas)], sizes, found)
        present = scores >= 0
        if settings.min_bbox_size >= 0:
            present = present & ((found[..., 2:] - found[..., :2]) > settings.min_bbox_size).all(dim=-1)
        keep, scores, settled = suppression.keep(found, scores, present, settings.nms, groups=label)
        enough = (above.sum(dim=1) <= room) | (keep.sum(dim=1) >= settings.max_per_img)
        limit = settings.max_per_img if settings.max_per_img > 0 else scores.shape[1]
        scores, first = suppression.best(scores.masked_fill(~keep, -1), limit)
        found, label = found.gather(1, first[..., None].expand(-1, -1, 4)), label.gather(1, first)
        keep = scores >= 0
        if not settings.keep_empty:
            keep = keep & (found[..., 2:] > found[..., :2]).all(dim=-1)
        return PaddedInstances(dict(bboxes=found, scores=scores, labels=label), keep, settled & enough.all())

    @torch.no_grad()
    def decode(self, boxes: torch.Tensor, bbox_pred: torch.Tensor | None,
               image_hw: tuple[int, int] | torch.Tensor) -> torch.Tensor:
        """Boxes (N, 4) moved by deltas (N, 4 or K * 4) and clipped to the image; clipped only, without deltas.

        ``image_hw`` may be a tensor (N, 2): the image of each box.
        """
        if bbox_pred is None:
            return clip_boxes(boxes, image_hw)
        return self.bbox_coder.decode(boxes, at_least_float32(bbox_pred), max_shape=image_hw)

    @torch.no_grad()
    def refine(self, boxes: torch.Tensor, labels: torch.Tensor, bbox_pred: torch.Tensor,
               image_hw: tuple[int, int] | torch.Tensor) -> torch.Tensor:
        """Boxes (N, 4) moved by the deltas for ``labels`` (N,) in [0, K), clipped to the image: the next stage's."""
        return self.decode(boxes, self.deltas_of(bbox_pred, labels), image_hw)


@HEADS.register_module()
class ConvFCBBoxHead(BBoxHead):
    """``BBoxHead`` by the name that configs give it where it has layers of its own."""


@HEADS.register_module()
class Shared2FCBBoxHead(ConvFCBBoxHead):
    """Two shared linear layers: the head of Faster R-CNN on pyramids."""

    def __init__(self, fc_out_channels: int = 1024, **kwargs: Any):
        super().__init__(num_shared_fcs=2, fc_out_channels=fc_out_channels, **kwargs)


@HEADS.register_module()
class Shared4Conv1FCBBoxHead(ConvFCBBoxHead):
    """Four shared convolutions and a linear layer (Wu and He 2018, "Group Normalization", section 4.2)."""

    def __init__(self, fc_out_channels: int = 1024, **kwargs: Any):
        super().__init__(num_shared_convs=4, num_shared_fcs=1, fc_out_channels=fc_out_channels, **kwargs)


def _branch(channels: int, num_convs: int, num_fcs: int, cells: int, conv_out: int, fc_out: int,
            conv_cfg: Cfg | None, norm_cfg: Cfg | None) -> tuple[nn.ModuleList, nn.ModuleList, int]:
    """Convolutions, then linear layers of which the first reads ``cells`` positions; and the size they end with."""
    convs, fcs = nn.ModuleList(), nn.ModuleList()
    for _ in range(num_convs):
        convs.append(ConvModule(channels, conv_out, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg))
        channels = conv_out
    for i in range(num_fcs):
        fcs.append(nn.Linear(channels * cells if i == 0 else channels, fc_out))
        channels = fc_out
    return convs, fcs, channels


def _predictor(cfg: Cfg | None, in_features: int, out_features: int) -> nn.Module:
    options = dict(cfg or {}, type=(cfg or {}).get('type', 'Linear'))
    return LAYERS.build(dict(options, in_features=in_features, out_features=out_features))
