"""Cascade RPN (Vu et al. 2019): anchors are refined in stages; each stage samples features at the anchors of the last.

Each cell has one anchor. The first stage takes its positives from regions around the objects' centres, the last one by
overlap.

Letters: B images, L levels, N anchors of a level (its cells) or of all levels, G ground-truth boxes, C channels, h, w
of a level.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from boxdet.abilities import ability
from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.nms import EXACT, Suppression
from boxdet.matching.assigner import BACKGROUND, IGNORED, AssignResult
from boxdet.models.initialization import InitCfg, initialize, normal_init
from boxdet.models.rpn_head import ProposalSettings, RPNHead, RPNTrainSettings, flatten_levels
from boxdet.models.settings import PerStage, read_section
from boxdet.registry import BBOX_ASSIGNERS, HEADS, MATCHING, Cfg
from boxdet.structures.batch import ImageMeta, image_sizes
from boxdet.structures.instances import Instances, PaddedInstances


@BBOX_ASSIGNERS.register_module()
class RegionAssigner:
    """Match the anchors whose centres lie near that of an object, on the level of the object's size.

    Args:
        center_ratio: side of the region of positives, of the object's side.
        ignore_ratio: side of the region around it that takes no part.
    """

    reads_levels = True

    def __init__(self, center_ratio: float = 0.2, ignore_ratio: float = 0.5):
        self.center_ratio, self.ignore_ratio = center_ratio, ignore_ratio

    @torch.no_grad()
    def assign_levels(self, levels: Sequence[Tensor], sizes: Sequence[tuple[int, int]], strides: Sequence[int],
                      scale: float, gt_bboxes: Tensor) -> AssignResult:
        """Match the anchors of an image.

        Args:
            levels: L of (N, 4).
            sizes: L of (h, w).
            strides: of the levels.
            scale: side of an anchor, in strides.
            gt_bboxes: (G, 4).
        """
        found = [torch.full((len(level),), BACKGROUND, dtype=torch.long, device=level.device) for level in levels]
        if len(gt_bboxes):
            near = [torch.zeros_like(own, dtype=torch.bool) for own in found]
            for i, (level, inside) in enumerate(regions(levels, sizes, strides, scale, gt_bboxes)):
                found[level][inside[level](self.ignore_ratio)] = IGNORED
                found[level][inside[level](self.center_ratio)] = i + 1
                for at in set(inside) - {level}:
                    near[at] |= inside[at](self.ignore_ratio)
            # 2.x takes these flags for places: of the levels beside the object's own nothing but the cells 0 and 1 are
            # left out. Published weights were learnt so.
            for own, flags in zip(found, near):
                own[flags.long()] = IGNORED
        gt_inds = torch.cat(found)
        return AssignResult(len(gt_bboxes), gt_inds, gt_bboxes.new_zeros(len(gt_inds)))


def regions(levels: Sequence[Tensor], sizes: Sequence[tuple[int, int]], strides: Sequence[int], scale: float,
            gt_bboxes: Tensor) -> Iterator[tuple[int, dict[int, Callable[[float], Tensor]]]]:
    """Yield, for each object, the level of its size and the regions around its centre.

    Arguments are as in ``RegionAssigner.assign_levels``.

    Yields:
        the number of the level, and a function for it and for each level beside it. Called with a share of the object's
        sides, the function returns a mask (N,): which anchors have their centres in a box of that share, drawn around
        the object's centre.
    """
    side = (gt_bboxes[:, 2:] - gt_bboxes[:, :2]).prod(dim=1).sqrt()
    target = (side.log2() - side.new_tensor(float(scale * strides[0])).log2() + 0.5).floor()
    for box, level in zip(gt_bboxes, target.clamp(0, len(levels) - 1).long().tolist()):
        yield level, {at: partial(_inside, levels[at] / strides[at], box / strides[at], sizes[at])
                      for at in (level - 1, level, level + 1) if 0 <= at < len(levels)}


def _inside(anchors: Tensor, box: Tensor, size: tuple[int, int], part: float) -> Tensor:
    """Which anchors (N, 4) have their centres in the middle ``part`` of the box, all in cells: (N,) bool."""
    low, high, ratio = box[:2], box[2:], (1 - part) / 2
    limit = box.new_tensor([size[1], size[0]])
    start, end = (torch.minimum(torch.round(corner).clamp(min=0), limit)
                  for corner in ((1 - ratio) * low + ratio * high, ratio * low + (1 - ratio) * high))
    centre = (anchors[:, :2] + anchors[:, 2:]) * 0.5
    return ((centre >= start) & (centre <= end)).all(dim=1)


class OffsetConv(nn.Module):
    """A 3x3 convolution whose taps move by given offsets."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Map (B, C, h, w) with offsets (B, 18 a group of channels, h, w) to (B, C', h, w)."""
        return deform_conv2d(x, offset.to(x.dtype), self.weight, padding=1)


class AdaptiveConv(nn.Module):
    """A 3x3 convolution that is dilated, or whose taps lie on the anchors.

    Args:
        in_channels: C.
        out_channels: C'.
        type: 'dilation' or 'offset'.
        dilation: of the former.
    """

    def __init__(self, in_channels: int, out_channels: int, type: str = 'dilation', dilation: int = 3):
        super().__init__()
        if type not in ('dilation', 'offset'):
            raise ConfigError(f"StageCascadeRPNHead: adapt_cfg.type is 'dilation' or 'offset', not '{type}'")
        self.follows_anchors = type == 'offset'
        self.conv = OffsetConv(in_channels, out_channels) if self.follows_anchors else nn.Conv2d(
            in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        if not self.follows_anchors:
            normal_init(self.conv, std=0.01)

    def forward(self, x: Tensor, anchors: Tensor, stride: int) -> Tensor:
        """Map (B, C, h, w) to (B, C', h, w); ``anchors`` (B, h * w, 4) in pixels, ``stride`` pixels a cell."""
        return self.conv(x, _offsets(anchors, stride, x.shape[2:])) if self.follows_anchors else self.conv(x)


def _offsets(anchors: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """From the taps of a 3x3 convolution to a grid of 3x3 points over each anchor: (B, 18, h, w), y before x."""
    tap = torch.arange(-1, 2, device=anchors.device, dtype=anchors.dtype)
    taps = torch.stack(torch.meshgrid(tap, tap, indexing='ij'), dim=-1).reshape(9, 2)                # y, x
    rows, columns = (torch.arange(n, device=anchors.device, dtype=anchors.dtype) for n in size)
    cells = torch.stack(torch.meshgrid(rows, columns, indexing='ij'), dim=-1).reshape(-1, 2)
    stretch = (anchors[..., 2:] - anchors[..., :2]).flip(-1) / stride / 2 - 1                        # (B, N, 2)
    centre = ((anchors[..., :2] + anchors[..., 2:]) * 0.5).flip(-1) / stride - cells
    offset = stretch[:, :, None] * taps + centre[:, :, None]                                         # (B, N, 9, 2)
    return offset.flatten(2).transpose(1, 2).unflatten(2, tuple(size))


@HEADS.register_module()
class StageCascadeRPNHead(RPNHead):
    """One stage of ``CascadeRPNHead``.

    Args:
        in_channels: C.
        anchor_generator: config, of one anchor a cell.
        adapt_cfg: config of ``AdaptiveConv``.
        bridged_feature: the next stage reads what the convolution gives, and not what this stage reads.
        with_cls: it tells objects from background, and does not only move boxes.
        sampling: draw anchors; otherwise all are learnt from.
        init_cfg: initial weights.
        kwargs: those of ``RPNHead``.

    Raises:
        ConfigError: more than one anchor a cell.
    """

    own_types = ('adapt_cfg',)

    def __init__(self, in_channels: int, anchor_generator: Cfg | None = None, adapt_cfg: Mapping | None = None,
                 bridged_feature: bool = False, with_cls: bool = True, sampling: bool = True, init_cfg: InitCfg = None,
                 **kwargs: Any):
        self.bridged_feature, self.with_cls, self._draws = bridged_feature, with_cls, sampling
        self._adapt_cfg = dict(adapt_cfg or dict(type='dilation', dilation=3))
        anchor_generator = anchor_generator or dict(
            type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8, 16, 32, 64])
        if isinstance(anchor_generator, Mapping):
            self.anchor_scale, self.anchor_strides = anchor_generator['scales'][0], anchor_generator['strides']
        parts = [dict(name='rpn_reg'), dict(name='rpn_cls')] if with_cls else [dict(name='rpn_reg')]
        super().__init__(in_channels, anchor_generator=anchor_generator,
                         init_cfg=init_cfg or dict(type='Normal', std=0.01, override=parts), **kwargs)

    def _build_matching(self) -> None:
        super()._build_matching()
        if self.assigner is not None:
            self.sampler = self.sampler if self._draws else MATCHING.build(dict(type='PseudoSampler'))
            self.sampling = self._draws

    def _build_layers(self, in_channels: int, feat_channels: int, num_convs: int) -> None:
        if set(self.anchor_generator.num_base_priors) != {1}:
            raise ConfigError('StageCascadeRPNHead has one anchor a cell, not '
                              f'{self.anchor_generator.num_base_priors}')
        self.rpn_conv = AdaptiveConv(in_channels, feat_channels, **self._adapt_cfg)
        if self.with_cls:
            self.rpn_cls = nn.Conv2d(feat_channels, self.cls_out_channels, 1)
        self.rpn_reg = nn.Conv2d(feat_channels, 4, 1)

    # Stages are run by CascadeRPNHead, which knows the anchors.
    def forward(self, feats: Sequence[Tensor], anchors: Sequence[Tensor]) -> _Outputs:  # type: ignore[override]
        """Outputs of L levels (B, C, h, w) on their anchors (B, N, 4)."""
        hidden = [F.relu(self.rpn_conv(x, boxes, stride))
                  for x, boxes, stride in zip(feats, anchors, self.anchor_strides)]
        return _Outputs(anchors, [self.rpn_cls(x) for x in hidden] if self.with_cls else [],
                        [self.rpn_reg(x) for x in hidden], hidden if self.bridged_feature else feats)

    def refine(self, outs: _Outputs, metas: Sequence[ImageMeta]) -> list[Tensor]:
        """The anchors (B, N, 4) of each level, moved and clipped to their images."""
        moved = []
        for boxes, deltas in zip(outs.anchors, outs.bbox_preds):
            flat = flatten_levels([deltas.detach()], 4)
            moved.append(torch.stack([self.bbox_coder.decode(one, at_least_float32(delta), max_shape=size)
                                      for one, delta, size in zip(boxes, flat, image_sizes(metas))]))
        return moved

    def stage_loss(self, outs: _Outputs, gt: Sequence[Instances], metas: Sequence[ImageMeta],
                   batch_hw: tuple[int, int]) -> dict[str, list[Tensor]]:
        """``loss_rpn_reg`` and, ``with_cls``, ``loss_rpn_cls``: lists of a scalar a level."""
        if self.train_cfg is None:
            raise ConfigError("model.train_cfg needs 'rpn' for training: a list, one a stage")
        counts = [boxes.shape[1] for boxes in outs.anchors]
        ends = torch.tensor(list(accumulate(counts)), device=outs.anchors[0].device)
        every = torch.cat(list(outs.anchors), dim=1)                                                 # (B, N, 4)
        deltas = at_least_float32(flatten_levels(outs.bbox_preds, 4))
        logits = at_least_float32(flatten_levels(outs.cls_scores, self.cls_out_channels)) if self.with_cls else None
        drawn = [self._draw(i, outs, every[i], gt[i], metas, batch_hw) for i in range(len(gt))]
        pos, neg = [d[0] for d in drawn], [d[1] for d in drawn]
        boxes, anchors = torch.cat([d[2] for d in drawn]), torch.cat([every[i, p] for i, p in enumerate(pos)])
        factor: float = sum(max(len(p), 1) + max(len(n), 1) for p, n in zip(pos, neg))
        if not self.sampling:
            factor = every.shape[0] * every.shape[1] / 200  # as in guided anchoring
        moved = torch.cat([deltas[i, p] for i, p in enumerate(pos)])
        if self.reg_decoded_bbox:
            moved = self.bbox_coder.decode(anchors, moved)
        elif len(boxes):
            boxes = self.bbox_coder.encode(anchors, boxes)
        of_pos = torch.bucketize(torch.cat(pos), ends, right=True)
        on = [(of_pos == level).to(moved.dtype)[:, None].expand(-1, 4) for level in range(len(counts))]
        losses = dict(loss_rpn_reg=[self.loss_bbox(moved, boxes, here, avg_factor=factor) for here in on])
        if logits is not None:
            picked = torch.cat([logits[i, p] for i, p in enumerate(pos)] + [logits[i, n] for i, n in enumerate(neg)])
            labels = torch.ones(len(picked), dtype=torch.long, device=picked.device)
            labels[:len(of_pos)] = 0
            weights = torch.ones_like(picked[:, 0])
            if self.train_cfg.pos_weight > 0:
                weights[:len(of_pos)] = self.train_cfg.pos_weight
            level_of = torch.cat([of_pos, torch.bucketize(torch.cat(neg), ends, right=True)])
            losses['loss_rpn_cls'] = [self.loss_cls(picked, labels, weights * (level_of == level), avg_factor=factor)
                                      for level in range(len(counts))]
        return losses

    @torch.no_grad()
    def _draw(self, i: int, outs: _Outputs, anchors: Tensor, objects: Instances, metas: Sequence[ImageMeta],
              batch_hw: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Places of positives (P,) and negatives (Q,) among the anchors of image i; the positives' objects (P, 4)."""
        assert self.assigner is not None and self.sampler is not None  # ``stage_loss`` has looked
        mask = self.inside_flags(outs.bbox_preds, [anchors], [metas[i]], batch_hw)[0]
        if ability(self.assigner, 'reads_levels'):
            sizes = [(x.shape[2], x.shape[3]) for x in outs.bbox_preds]
            matched = self.assigner.assign_levels([level[i] for level in outs.anchors], sizes, self.anchor_strides,
                                                  self.anchor_scale, objects.bboxes)
            if mask is not None and len(objects):
                matched.gt_inds[~mask] = IGNORED
            mask = None
        else:
            matched = self.assigner.assign(anchors if mask is None else anchors[mask], objects.bboxes, None, None)
        places = torch.arange(len(anchors), device=anchors.device) if mask is None else mask.nonzero().squeeze(1)
        drawn = self.sampler.sample(matched, anchors[places], objects.bboxes)
        return places[drawn.pos_inds], places[drawn.neg_inds], drawn.pos_gt_boxes


@dataclass
class _Outputs:
    """What a stage made of its anchors; each a list of a tensor a level."""
    anchors: Sequence[Tensor]
    cls_scores: Sequence[Tensor]
    bbox_preds: Sequence[Tensor]
    feats: Sequence[Tensor]


class _Run:
    """The stages on the features of a batch: run once its images are known, and once only."""

    def __init__(self, feats: Sequence[Tensor]):
        self.feats = feats
        self.outputs: list[_Outputs] = []


@HEADS.register_module()
class CascadeRPNHead(nn.Module):
    """Stages of an RPN. Crowd regions count as background, as in 2.x.

    While training it proposes by ``test_cfg.rpn``, as 2.x does, and not by ``train_cfg.rpn_proposal``.

    Args:
        num_stages: how many.
        stages: their configs.
        train_cfg: a list of RPNTrainSettings or dicts of them, one a stage.
        test_cfg: ProposalSettings or a dict of them.
        init_cfg: initial weights.

    Raises:
        ConfigError: another number of stages or of their settings.
    """

    fixed_size_prediction = True
    runs_on_images = True
    train_settings = PerStage(RPNTrainSettings)
    test_settings = ProposalSettings

    def __init__(self, num_stages: int, stages: Sequence[Cfg],
                 train_cfg: Sequence[RPNTrainSettings | Cfg] | None = None,
                 test_cfg: ProposalSettings | Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__()
        self.train_cfg = read_section(self, 'train_settings', train_cfg, 'train_cfg.rpn')
        self.test_cfg = read_section(self, 'test_settings', test_cfg, 'test_cfg.rpn')
        if num_stages != len(stages):
            raise ConfigError(f'CascadeRPNHead: num_stages={num_stages}, but there are {len(stages)} stages')
        if self.train_cfg is not None and (not isinstance(self.train_cfg, tuple) or len(self.train_cfg) != num_stages):
            raise ConfigError(f'model.train_cfg.rpn must be a list of {num_stages}, one a stage of CascadeRPNHead')
        each = self.train_cfg or [None] * num_stages
        self.num_stages, self.init_cfg = num_stages, init_cfg
        self.stages = nn.ModuleList(HEADS.build(stage, train_cfg=own, test_cfg=self.test_cfg)
                                    for stage, own in zip(stages, each))

    def init_weights(self) -> None:
        """Run ``init_cfg``, its own and the stages'."""
        initialize(self)

    def forward(self, feats: Sequence[Tensor]) -> tuple[_Run]:
        """The stages wait for ``loss`` or ``predict``: anchors are clipped to images."""
        return (_Run(feats),)

    def run(self, run: _Run, metas: Sequence[ImageMeta]) -> list[_Outputs]:
        """The outputs of each stage on the features that ``forward`` was given."""
        if not run.outputs:
            grids = self.stages[0].anchors(run.feats, at_least_float32(run.feats[0]).dtype)
            anchors, feats = [grid.expand(len(metas), -1, -1) for grid in grids], run.feats
            for i, stage in enumerate(self.stages):
                outs = stage(feats, anchors)
                run.outputs.append(outs)
                if i + 1 < self.num_stages:
                    anchors, feats = stage.refine(outs, metas), outs.feats
        return run.outputs

    def loss(self, run: _Run, gt: Sequence[Instances], ignored: Sequence[Tensor] | None, metas: Sequence[ImageMeta],
             batch_hw: tuple[int, int]) -> dict[str, list[Tensor]]:
        """``s0.loss_rpn_reg``, ``s1.loss_rpn_cls``, ...: see ``contracts.RPNHead``."""
        return {f's{i}.{name}': value for i, (stage, outs) in enumerate(zip(self.stages, self.run(run, metas)))
                for name, value in stage.stage_loss(outs, gt, metas, batch_hw).items()}

    @torch.no_grad()
    def predict(self, run: _Run, metas: Sequence[ImageMeta],
                settings: ProposalSettings | None = None) -> list[Instances]:
        """See ``contracts.RPNHead``."""
        settings = self.test_cfg if settings is None or self.training else settings
        return self.predict_padded(run, metas, settings, EXACT).instances(image_sizes(metas))

    @torch.no_grad()
    def predict_padded(self, run: _Run, metas: Sequence[ImageMeta], settings: ProposalSettings,
                       suppression: Suppression) -> PaddedInstances:
        """See ``RPNHead.predict_padded``."""
        outs = self.run(run, metas)[-1]
        return self.stages[-1].predict_padded(outs.cls_scores, outs.bbox_preds, metas, settings, suppression,
                                              outs.anchors)
