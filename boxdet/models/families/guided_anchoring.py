"""Guided anchoring (Wang et al. 2019, "Region Proposal by Guided Anchoring").

The head first predicts where objects are and how large they are. From this it makes one anchor for each cell.

Letters: B images, L levels, N cells of all levels, A approximations of an anchor in a cell, G ground-truth boxes.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.nms import EXACT, Suppression
from boxdet.matching.assigner import AssignResult, MaxIoUAssigner
from boxdet.models import contracts
from boxdet.models.families.cascade_rpn import OffsetConv, regions
from boxdet.models.initialization import InitCfg
from boxdet.models.rpn_head import ProposalSettings, RPNHead, RPNTrainSettings, flatten_levels
from boxdet.models.settings import number
from boxdet.registry import BBOX_ASSIGNERS, HEADS, LOSSES, MATCHING, Cfg
from boxdet.structures.batch import ImageMeta, image_sizes
from boxdet.structures.instances import Instances, PaddedInstances

_SIZE_LIMIT = 1e-6  # an anchor is at most this many times smaller, or its inverse larger, than the square it is made of


class _OfGroups:
    """Overlaps of boxes (G, 4) with groups (N, 1 + A, 4), each a square and its A approximations.

    The overlap with a group is the best of its approximations; in mode 'iof' it is that of the square.

    Args:
        calculator: overlaps of two sets of boxes, as ``BboxOverlaps2D``.
    """

    def __init__(self, calculator: Any):
        self.calculator = calculator

    def __call__(self, first: Tensor, second: Tensor, mode: str = 'iou') -> Tensor:
        if mode == 'iof':
            return self.calculator(*(boxes[:, 0] if boxes.dim() == 3 else boxes for boxes in (first, second)), mode)
        overlaps = self.calculator(first, second[:, 1:].reshape(-1, 4), mode)                        # (G, N * A)
        return overlaps.view(len(first), len(second), -1).amax(dim=2)


@BBOX_ASSIGNERS.register_module()
class ApproxMaxIoUAssigner(MaxIoUAssigner):
    """``MaxIoUAssigner`` of squares whose overlap is the best one of several boxes around them; arguments as there."""

    def __init__(self, pos_iou_thr: float, neg_iou_thr: float | Sequence[float], **kwargs: Any):
        super().__init__(pos_iou_thr, neg_iou_thr, **kwargs)
        self.iou_calculator = _OfGroups(self.iou_calculator)

    def assign(self, approxs: Tensor, squares: Tensor, approxs_per_octave: int,  # type: ignore[override]
               gt_bboxes: Tensor, gt_bboxes_ignore: Tensor | None = None,
               gt_labels: Tensor | None = None) -> AssignResult:
        """Match squares.

        Args:
            approxs: (N * A, 4), those of a square together.
            squares: (N, 4).
            approxs_per_octave: A.
            gt_bboxes: (G, 4).
            gt_bboxes_ignore: (M, 4) regions to be ignored, or None.
            gt_labels: (G,), or None.
        """
        groups = torch.cat([squares[:, None, :4], approxs[:, :4].reshape(len(squares), approxs_per_octave, 4)], dim=1)
        return super().assign(groups, gt_bboxes, gt_bboxes_ignore, gt_labels)


class FeatureAdaption(nn.Module):
    """A 3x3 convolution whose taps move as the predicted size of the anchor says.

    Args:
        in_channels: C.
        out_channels: C'.
        deform_groups: groups of channels with offsets of their own.

    Raises:
        ConfigError: the groups do not divide the channels.
    """

    def __init__(self, in_channels: int, out_channels: int, deform_groups: int):
        super().__init__()
        if in_channels % deform_groups:
            raise ConfigError(f'GARPNHead: deform_groups={deform_groups} must divide {in_channels} channels')
        self.conv_offset = nn.Conv2d(2, deform_groups * 18, 1, bias=False)
        self.conv_adaption = OffsetConv(in_channels, out_channels)
        self.init_cfg = dict(type='Normal', layer='Conv2d', std=0.1, override=dict(
            type='Normal', name='conv_adaption', std=0.01))

    def forward(self, x: Tensor, shape: Tensor) -> Tensor:
        """Map (B, C, h, w) with sizes (B, 2, h, w), which get no gradient of it, to (B, C', h, w)."""
        return F.relu(self.conv_adaption(x, self.conv_offset(shape.detach())), inplace=True)


@dataclass(frozen=True)
class GARPNTrainSettings(RPNTrainSettings):
    """``train_cfg.rpn`` of ``GARPNHead``.

    Args:
        ga_assigner: config of the matching of sizes, an ``ApproxMaxIoUAssigner``.
        ga_sampler: which of the matched cells learn their size; without one every cell does.
        center_ratio: side of the region around an object's centre where it is to be located, of the object's side.
        ignore_ratio: side of the region around it that takes no part in that.
    """
    ga_assigner: Cfg | object = None
    ga_sampler: Cfg | contracts.Sampler | None = None
    center_ratio: float = number(0.2, 0, 1)
    ignore_ratio: float = number(0.5, 0, 1)


@HEADS.register_module()
class GARPNHead(RPNHead):
    """An RPN that predicts its anchors.

    Args:
        in_channels: channels of each level.
        feat_channels: channels after the convolution.
        approx_anchor_generator: config; its A anchors of a cell stand for the size to come when objects are matched.
        square_anchor_generator: config, of one square a cell, of which the anchor is made.
        anchor_coder: config; how the anchor's size is coded.
        bbox_coder: config; how a box is coded relative to its anchor.
        reg_decoded_bbox: the box loss compares boxes in pixels.
        deform_groups: of ``FeatureAdaption``.
        loc_filter_thr: cells where an object is less probable propose nothing, except while training.
        loss_loc, loss_shape, loss_cls, loss_bbox: configs.
        train_cfg: GARPNTrainSettings or a dict of them.
        test_cfg: ProposalSettings or a dict of them.
        init_cfg: initial weights; normal with a standard deviation of 0.01 by default.

    Raises:
        ConfigError: the two generators do not fit each other, or ``train_cfg`` has no ``ga_assigner``.
    """

    train_settings = GARPNTrainSettings
    fixed_size_prediction = True

    def __init__(self, in_channels: int, feat_channels: int = 256,
                 approx_anchor_generator: Cfg | contracts.AnchorGenerator | None = None,
                 square_anchor_generator: Cfg | contracts.AnchorGenerator | None = None,
                 anchor_coder: Cfg | contracts.BoxCoder | None = None,
                 bbox_coder: Cfg | contracts.BoxCoder | None = None, reg_decoded_bbox: bool = False,
                 deform_groups: int = 4, loc_filter_thr: float = 0.01, loss_loc: Cfg | nn.Module | None = None,
                 loss_shape: Cfg | nn.Module | None = None, loss_cls: Cfg | nn.Module | None = None,
                 loss_bbox: Cfg | nn.Module | None = None, train_cfg: GARPNTrainSettings | Cfg | None = None,
                 test_cfg: ProposalSettings | Cfg | None = None, init_cfg: InitCfg = None):
        self._deform_groups, self.loc_filter_thr = deform_groups, loc_filter_thr
        super().__init__(
            in_channels, feat_channels, square_anchor_generator or dict(
                type='AnchorGenerator', ratios=[1.0], scales=[8], strides=[4, 8, 16, 32, 64]),
            bbox_coder or dict(type='DeltaXYWHBBoxCoder'), reg_decoded_bbox=reg_decoded_bbox, loss_cls=loss_cls,
            loss_bbox=loss_bbox or dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0), train_cfg=train_cfg,
            test_cfg=test_cfg, init_cfg=init_cfg or dict(
                type='Normal', layer='Conv2d', std=0.01,
                override=dict(type='Normal', name='conv_loc', std=0.01, bias_prob=0.01)))
        self.approx_anchor_generator = MATCHING.build(approx_anchor_generator or dict(
            type='AnchorGenerator', octave_base_scale=8, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64]))
        approx, square = self.approx_anchor_generator, self.anchor_generator
        if (approx.strides, approx.scales[0]) != (square.strides, square.scales[0]):
            raise ConfigError('GARPNHead: approx_anchor_generator and square_anchor_generator need the same strides, '
                              f'and the same first scale: {approx.scales[0]:g} and {square.scales[0]:g}')
        self.approxs_per_octave = approx.num_base_priors[0]
        self.anchor_coder = MATCHING.build(anchor_coder or dict(type='DeltaXYWHBBoxCoder'))
        self.loss_loc = LOSSES.build(loss_loc or dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25))
        self.loss_shape = LOSSES.build(loss_shape or dict(type='BoundedIoULoss', beta=0.2, loss_weight=1.0))

    def _build_matching(self) -> None:
        super()._build_matching()
        if self.train_cfg is None:
            return
        if self.train_cfg.ga_assigner is None:
            raise ConfigError("model.train_cfg.rpn needs a 'ga_assigner' for GARPNHead")
        self.ga_assigner = MATCHING.build(self.train_cfg.ga_assigner)
        self.ga_sampler = MATCHING.build(self.train_cfg.ga_sampler or dict(type='PseudoSampler'))
        self.ga_sampling = self.train_cfg.ga_sampler is not None

    def _build_layers(self, in_channels: int, feat_channels: int, num_convs: int) -> None:
        if set(self.anchor_generator.num_base_priors) != {1}:
            raise ConfigError('GARPNHead makes one anchor a cell, and square_anchor_generator has '
                              f'{self.anchor_generator.num_base_priors}')
        self.rpn_conv = nn.Conv2d(in_channels, feat_channels, 3, padding=1)
        self.conv_loc = nn.Conv2d(feat_channels, 1, 1)
        self.conv_shape = nn.Conv2d(feat_channels, 2, 1)
        self.feature_adaption = FeatureAdaption(feat_channels, feat_channels, self._deform_groups)
        self.conv_cls = nn.Conv2d(feat_channels, self.cls_out_channels, 1)
        self.conv_reg = nn.Conv2d(feat_channels, 4, 1)

    def forward(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:  # type: ignore[override]
        """Of each level objectness (B, C, h, w), deltas (B, 4, h, w), sizes (B, 2, h, w) and places (B, 1, h, w)."""
        outs = []
        for x in feats:
            hidden = F.relu(self.rpn_conv(x), inplace=True)
            shape, loc = self.conv_shape(hidden), self.conv_loc(hidden)
            adapted = self.feature_adaption(hidden, shape)
            outs.append((self.conv_cls(adapted), self.conv_reg(adapted), shape, loc))
        return tuple(list(maps) for maps in zip(*outs))

    def guided_anchors(self, shape_preds: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The anchors (B, h * w, 4) of each level, without gradients."""
        made = []
        for squares, shape in zip(self.anchors(shape_preds, dtype), shape_preds):
            deltas = F.pad(at_least_float32(flatten_levels([shape.detach()], 2)), (2, 0))            # (B, h * w, 4)
            squares = squares.expand(len(deltas), -1, -1)
            boxes = self.anchor_coder.decode(squares.flatten(0, 1), deltas.flatten(0, 1), wh_ratio_clip=_SIZE_LIMIT)
            made.append(boxes.view(squares.shape))
        return made

    # ------------------------------------------------------------------------------------------ training

    def loss(self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor],  # type: ignore[override]
             shape_preds: Sequence[Tensor], loc_preds: Sequence[Tensor], gt: Sequence[Instances],
             ignored: Sequence[Tensor] | None, metas: Sequence[ImageMeta],
             batch_hw: tuple[int, int]) -> dict[str, list[Tensor]]:
        """``loss_rpn_cls``, ``loss_rpn_bbox``, ``loss_anchor_shape``, ``loss_anchor_loc``, a scalar a level each.

        The first four arguments are what ``forward`` returned; the others are as in ``RPNHead.loss``.
        """
        if self.train_cfg is None:
            raise ConfigError("model.train_cfg needs 'rpn' for training")
        squares, anchors = self.anchors(cls_scores), torch.cat(self.guided_anchors(shape_preds), dim=1)   # (B, N, 4)
        sizes = [(x.shape[2], x.shape[3]) for x in cls_scores]
        approxs = torch.cat(self.approx_anchor_generator.grid_priors(sizes, device=anchors.device))       # (N * A, 4)
        inside = self._cells_inside(squares, approxs, sizes, metas, batch_hw)
        of_anchors = inside
        if self.train_cfg.allowed_border >= 0:  # every image has a mask then
            of_anchors = [mask if mask is None else mask & self.within_border(own, meta)
                          for mask, own, meta in zip(inside, anchors, metas)]
        losses = self.loss_of_targets(cls_scores, bbox_preds, self.targets(anchors, of_anchors, gt, ignored),
                                      [len(level) for level in squares])
        return dict(**losses, loss_anchor_shape=self._shape_losses(shape_preds, squares, approxs, inside, gt),
                    loss_anchor_loc=self._loc_losses(loc_preds, squares, gt))

    def _cells_inside(self, squares: Sequence[Tensor], approxs: Tensor, sizes: Sequence[tuple[int, int]],
                      metas: Sequence[ImageMeta], batch_hw: tuple[int, int]) -> list[Tensor | None]:
        """Which of the N cells take part, (N,) bool an image: with ``allowed_border``, one approximation is enough."""
        masks: list[Tensor | None] = []
        for meta in metas:
            mask = None
            if meta.padded_size != tuple(batch_hw):
                mask = torch.cat(self.anchor_generator.valid_flags(sizes, meta.padded_size, device=approxs.device))
            if self.train_cfg.allowed_border >= 0:
                near = self.within_border(approxs, meta).view(-1, self.approxs_per_octave).any(dim=1)
                mask = near if mask is None else mask & near
            masks.append(mask)
        return masks

    def _shape_losses(self, shape_preds: Sequence[Tensor], squares: Sequence[Tensor], approxs: Tensor,
                      inside: Sequence[Tensor | None], gt: Sequence[Instances]) -> list[Tensor]:
        counts, every = [len(level) for level in squares], torch.cat(list(squares))                  # (N, 4)
        drawn, objects, factor = [], [], 0
        for i, (mask, own) in enumerate(zip(inside, gt)):
            places = torch.arange(len(every), device=every.device) if mask is None else mask.nonzero().squeeze(1)
            groups = approxs.view(len(every), -1, 4)[places].flatten(0, 1)
            matched = self.ga_assigner.assign(groups, every[places], self.approxs_per_octave, own.bboxes)
            samples = self.ga_sampler.sample(matched, every[places], own.bboxes)
            drawn.append(places[samples.pos_inds] + i * len(every))
            objects.append(samples.pos_gt_boxes)
            factor += max(len(samples.pos_inds), 1) + (max(len(samples.neg_inds), 1) if self.ga_sampling else 0)
        index, boxes = torch.cat(drawn), torch.cat(objects)                                          # (P,), (P, 4)
        deltas = F.pad(at_least_float32(flatten_levels(shape_preds, 2)).flatten(0, 1)[index], (2, 0))
        made = self.anchor_coder.decode(every[index % len(every)], deltas, wh_ratio_clip=_SIZE_LIMIT)
        level = torch.repeat_interleave(torch.tensor(counts)).to(index.device)[index % len(every)]
        return [self.loss_shape(made, boxes, (level == i).to(made.dtype)[:, None].expand(-1, 4), avg_factor=factor)
                for i in range(len(counts))]

    @torch.no_grad()
    def loc_targets(self, squares: Sequence[Tensor], sizes: Sequence[tuple[int, int]],
                    gt: Sequence[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each level, whether an object's centre is near (B, h * w), and what this counts in the loss (B, h * w)."""
        strides = [stride[0] for stride in self.anchor_generator.strides]
        near = [torch.zeros(len(gt), len(level), dtype=torch.bool, device=level.device) for level in squares]
        beside = [torch.zeros_like(level) for level in near]
        weights = [torch.full(level.shape, 0.1, device=level.device) for level in near]
        for i, own in enumerate(gt):
            for level, inside in regions(squares, sizes, strides, self.anchor_generator.scales[0], own.bboxes):
                centre, around = inside[level](self.train_cfg.center_ratio), inside[level](self.train_cfg.ignore_ratio)
                near[level][i] |= centre
                weights[level][i, around] = 0
                weights[level][i, centre] = 1
                for at in set(inside) - {level}:
                    beside[at][i] |= inside[at](self.train_cfg.ignore_ratio)
        for own_weights, others in zip(weights, beside):
            own_weights[others & (own_weights < 1)] = 0
        return near, weights

    def _loc_losses(self, loc_preds: Sequence[Tensor], squares: Sequence[Tensor],
                    gt: Sequence[Instances]) -> list[Tensor]:
        near, weights = self.loc_targets(squares, [(x.shape[2], x.shape[3]) for x in loc_preds], gt)
        factor = sum(level.numel() for level in near) / 200
        # 2.x hands 1 for "near" to a loss that takes numbers of classes, the one class being 0 and the background 1:
        # what it learns is where no object is. Published weights were learnt so.
        return [self.loss_loc(at_least_float32(pred).reshape(-1, 1), target.flatten().long(), weight.flatten(),
                              avg_factor=factor) for pred, target, weight in zip(loc_preds, near, weights)]

    # ------------------------------------------------------------------------------------------ proposals

    @torch.no_grad()
    def predict(self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor],  # type: ignore[override]
                shape_preds: Sequence[Tensor], loc_preds: Sequence[Tensor], metas: Sequence[ImageMeta],
                settings: ProposalSettings | None = None) -> list[Instances]:
        """See ``RPNHead.predict``; the first four arguments are what ``forward`` returned."""
        settings = self.test_cfg if settings is None else settings
        found = self.predict_padded(cls_scores, bbox_preds, shape_preds, loc_preds, metas, settings, EXACT)
        return found.instances(image_sizes(metas))

    @torch.no_grad()
    def predict_padded(self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor],  # type: ignore[override]
                       shape_preds: Sequence[Tensor], loc_preds: Sequence[Tensor],
                       metas: Sequence[ImageMeta] | Tensor, settings: ProposalSettings,
                       suppression: Suppression) -> PaddedInstances:
        """See ``RPNHead.predict_padded``; the first four arguments are what ``forward`` returned."""
        anchors = self.guided_anchors(shape_preds, at_least_float32(cls_scores[0]).dtype)
        among = None if self.training else [
            at_least_float32(loc).flatten(1).sigmoid() >= self.loc_filter_thr for loc in loc_preds]
        return super().predict_padded(cls_scores, bbox_preds, metas, settings, suppression, anchors, among)
