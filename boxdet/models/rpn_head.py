"""Region proposal network (Ren et al. 2015, section 3; on pyramids Lin et al. 2017, section 4.1).

Letters: B images, L levels, H, W height and width of a level, A anchors a cell, N anchors of all levels (the
sum of H * W * A, level by level, row by row, the A of a cell together), G ground-truth boxes of an image, P
positive and Q negative anchors of the batch, C outputs an anchor (1 for a sigmoid, 2 for a softmax: object,
background).
"""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.abilities import ability
from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.nms import EXACT, Suppression, group_of_parts
from boxdet.models import contracts
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.models.settings import OlderKey, Settings, integer, nms, number, read_section
from boxdet.registry import HEADS, LOSSES, MATCHING, Cfg, accepted_keywords
from boxdet.structures.batch import ImageMeta, image_sizes
from boxdet.structures.instances import Instances, PaddedInstances, image_rows, of_images

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RPNTrainSettings(Settings):
    """``train_cfg.rpn``: which anchors are objects, and which of them enter the loss.

    Args:
        assigner: config for the matching registry.
        sampler: config for the matching registry; without one every anchor takes part.
        allowed_border: pixels that an anchor may reach over the image's edge; negative admits all.
        pos_weight: loss weight of positives, 1 when <= 0.
        debug: log how many anchors were matched.
    """
    assigner: Cfg | contracts.Assigner | None = None
    sampler: Cfg | contracts.Sampler | None = None
    allowed_border: float = number(0)
    pos_weight: float = number(-1)
    debug: bool = False


@dataclass(frozen=True)
class ProposalSettings(Settings):
    """``train_cfg.rpn_proposal`` and ``test_cfg.rpn``: from RPN outputs to proposals.

    Args:
        nms_pre: best of a level and image that are decoded; <= 0 for all.
        max_per_img: proposals of an image at most; <= 0 for no limit.
        nms: config of the suppression, by level unless ``nms_across_levels``.
        min_bbox_size: boxes must be wider and higher than this many pixels; negative keeps all.
        nms_across_levels: boxes of different levels suppress one another.
        nms_post: best of a level and image after the suppression; <= 0 for no limit.
        max_per_batch: best of all images of a batch together (maskrcnn-benchmark's FPN_POST_NMS_PER_BATCH,
            which sets it for training only); <= 0 for no limit.
    """
    nms_pre: int = integer(-1)
    max_per_img: int = integer(1000)
    nms: Cfg = nms(type='nms', iou_threshold=0.7)
    min_bbox_size: float = number(0)
    nms_across_levels: bool = False
    nms_post: int = integer(-1)
    max_per_batch: int = integer(-1)

    # As mmdetection up to 2.10 wrote them.
    older_keys: ClassVar[Mapping[str, OlderKey]] = dict(
        max_num=lambda value: ('max_per_img', value),
        nms_thr=lambda value: ('nms', dict(type='nms', iou_threshold=value)))

    @property
    def joins_levels(self) -> bool:
        """Whether boxes of different levels suppress one another."""
        return self.nms_across_levels or bool((self.nms or {}).get('class_agnostic'))


@dataclass
class AnchorTargets:
    """What the sampled anchors of a batch should have predicted.

    Args:
        index: (P + Q,) their places among the B * N anchors of the batch; all positives, then all negatives.
        anchors: (P, 4) the positives.
        gt_boxes: (P, 4) the boxes they are matched to.
        avg_factor: what the summed losses are divided by.
    """
    index: torch.Tensor
    anchors: torch.Tensor
    gt_boxes: torch.Tensor
    avg_factor: float

    @property
    def num_pos(self) -> int:
        """P."""
        return len(self.anchors)


@HEADS.register_module()
class RPNHead(nn.Module):
    """One convolution over every level, then objectness and box deltas of each anchor.

    Args:
        in_channels: channels of each level.
        feat_channels: channels after the convolution.
        anchor_generator: config for the matching registry.
        bbox_coder: config for the matching registry.
        num_convs: convolutions before the two outputs.
        num_classes: always 1, object or not.
        reg_decoded_bbox: the box loss compares boxes in pixels and not deltas (IoU losses).
        loss_cls: config of the loss; a sigmoid one gives C = 1, a softmax C = 2.
        loss_bbox: config of the loss.
        train_cfg: RPNTrainSettings (or what a subclass declares as ``train_settings``) or a dict of them; None where
            the head is not trained.
        test_cfg: ProposalSettings (``test_settings``) or a dict of them, used by ``predict`` where it is given no
            others.
        init_cfg: initial weights; normal with a standard deviation of 0.01 by default.

    Raises:
        ConfigError: no assigner in ``train_cfg``, or more than one class.
    """

    train_settings = RPNTrainSettings
    test_settings = ProposalSettings  # of ``train_cfg.rpn_proposal`` too
    fixed_size_prediction = True

    def __init__(self, in_channels: int, feat_channels: int = 256,
                 anchor_generator: Cfg | contracts.AnchorGenerator | None = None,
                 bbox_coder: Cfg | contracts.BoxCoder | None = None, num_convs: int = 1, num_classes: int = 1,
                 reg_decoded_bbox: bool = False, loss_cls: Cfg | nn.Module | None = None,
                 loss_bbox: Cfg | nn.Module | None = None, train_cfg: RPNTrainSettings | Cfg | None = None,
                 test_cfg: ProposalSettings | Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__()
        if num_classes != 1:
            raise ConfigError(
                f'RPNHead tells objects from background: num_classes must be 1, not {num_classes}')
        self.anchor_generator = MATCHING.build(anchor_generator or dict(
            type='AnchorGenerator', scales=[8, 16, 32], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]))
        self.bbox_coder = MATCHING.build(bbox_coder or dict(type='DeltaXYWHBBoxCoder', clip_border=True))
        self.loss_cls = LOSSES.build(loss_cls
                                     or dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0))
        self.loss_bbox = LOSSES.build(loss_bbox or dict(type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0))
        self.use_sigmoid = ability(self.loss_cls, 'use_sigmoid')
        self.cls_out_channels = 1 if self.use_sigmoid else 2
        self.reg_decoded_bbox = reg_decoded_bbox
        self.num_classes = num_classes
        self.train_cfg = read_section(self, 'train_settings', train_cfg, 'train_cfg.rpn')
        self.test_cfg = read_section(self, 'test_settings', test_cfg, 'test_cfg.rpn')
        self._build_matching()
        self._build_layers(in_channels, feat_channels, num_convs)
        self.init_cfg = init_cfg or dict(type='Normal', layer='Conv2d', std=0.01)

    def _build_matching(self) -> None:
        self.assigner = self.sampler = None
        if self.train_cfg is None:
            return
        if self.train_cfg.assigner is None:
            raise ConfigError("model.train_cfg.rpn needs an 'assigner'")
        self.assigner = MATCHING.build(self.train_cfg.assigner)
        self.sampler = _build_sampler(self.train_cfg.sampler)
        # Without sampling every anchor is in the loss, and the few positives alone say how much there was to
        # learn.
        self.sampling = type(self.sampler).__name__ != 'PseudoSampler'

    def _build_layers(self, in_channels: int, feat_channels: int, num_convs: int) -> None:
        anchors = self.anchor_generator.num_base_priors
        if len(set(anchors)) != 1:
            raise ConfigError(
                f'RPNHead shares its layers between levels: each needs as many anchors, not {anchors}')
        if num_convs > 1:
            channels = [in_channels] + [feat_channels] * num_convs
            self.rpn_conv: nn.Module = nn.Sequential(*(ConvModule(a, b, 3, padding=1, inplace=False)
                                                       for a, b in zip(channels, channels[1:])))
        else:
            self.rpn_conv = nn.Conv2d(in_channels, feat_channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(feat_channels, anchors[0] * self.cls_out_channels, 1)
        self.rpn_reg = nn.Conv2d(feat_channels, anchors[0] * 4, 1)

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return objectness (B, A * C, H, W) and deltas (B, A * 4, H, W) of each of the L levels."""
        outs = []
        for x in feats:  # level by level: the hidden features of the largest level are as large as the level itself
            hidden = F.relu(self.rpn_conv(x), inplace=True)
            outs.append((self.rpn_cls(hidden), self.rpn_reg(hidden)))
        return [cls for cls, _ in outs], [reg for _, reg in outs]

    # ------------------------------------------------------------------------------------------ training

    def loss(self, cls_scores: Sequence[torch.Tensor], bbox_preds: Sequence[torch.Tensor],
             gt: Sequence[Instances], ignored: Sequence[torch.Tensor] | None, metas: Sequence[ImageMeta],
             batch_hw: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Return ``loss_rpn_cls`` and ``loss_rpn_bbox``, lists of a scalar a level.

        Args:
            cls_scores: what ``forward`` returned.
            bbox_preds: likewise.
            gt: B objects.
            ignored: B boxes (M, 4) whose anchors are left out.
            metas: B images.
            batch_hw: height and width of the padded images.
        """
        if self.train_cfg is None:
            raise ConfigError("model.train_cfg needs 'rpn' for training")
        anchors = self.anchors(cls_scores)
        targets = self.targets(torch.cat(anchors), self.inside_flags(cls_scores, anchors, metas, batch_hw),
                               gt, ignored)
        return self.loss_of_targets(cls_scores, bbox_preds, targets, [len(level) for level in anchors])

    def loss_of_targets(self, cls_scores: Sequence[torch.Tensor], bbox_preds: Sequence[torch.Tensor],
                        targets: AnchorTargets, counts: Sequence[int]) -> dict[str, list[torch.Tensor]]:
        """As ``loss``, with the targets known.

        Args:
            cls_scores: what ``forward`` returned.
            bbox_preds: likewise.
            targets: of the batch.
            counts: anchors of each level.
        """
        # Of 250,000 anchors an image a few hundred enter the loss: they are picked first.
        every_cls = flatten_levels(cls_scores, self.cls_out_channels).flatten(0, 1)      # (B * N, C)
        every_reg = flatten_levels(bbox_preds, 4).flatten(0, 1)                          # (B * N, 4)
        picked_cls = at_least_float32(every_cls.index_select(0, targets.index))            # (P + Q, C)
        picked_reg = at_least_float32(every_reg.index_select(0, targets.index[:targets.num_pos]))  # (P, 4)
        place, ends = targets.index % sum(counts), list(accumulate(counts))
        level = torch.stack([place >= end for end in ends]).sum(dim=0)                   # (P + Q,)
        labels = torch.ones_like(targets.index)  # the background is class 1
        labels[:targets.num_pos] = 0
        weights = torch.ones_like(picked_cls[:, 0])
        if self.train_cfg.pos_weight > 0:
            weights[:targets.num_pos] = self.train_cfg.pos_weight
        boxes = targets.gt_boxes
        if self.reg_decoded_bbox:
            picked_reg = self.bbox_coder.decode(targets.anchors, picked_reg)
        elif len(boxes):
            boxes = self.bbox_coder.encode(targets.anchors, boxes)
        on_level = [(level == i).to(weights.dtype) for i in range(len(counts))]
        return dict(
            loss_rpn_cls=[self.loss_cls(picked_cls, labels, weights * on, avg_factor=targets.avg_factor)
                          for on in on_level],
            loss_rpn_bbox=[self.loss_bbox(picked_reg, boxes, on[:targets.num_pos, None].expand(-1, 4),
                                          avg_factor=targets.avg_factor) for on in on_level])

    @torch.no_grad()
    def targets(self, anchors: torch.Tensor, inside: Sequence[torch.Tensor | None], gt: Sequence[Instances],
                ignored: Sequence[torch.Tensor] | None) -> AnchorTargets:
        """Match the anchors (N, 4) with each image's ground truth and draw those that enter the loss.

        Args:
            anchors: (N, 4) of all levels, or (B, N, 4) where each image has its own.
            inside: B masks (N,) bool of the anchors that take part; None for all.
            gt: as in ``loss``.
            ignored: as in ``loss``.
        """
        pos, neg, pos_anchors, gt_boxes, avg_factor = [], [], [], [], 0
        for i, (every, objects, mask) in enumerate(zip(anchors.expand(len(gt), -1, -1), gt, inside)):
            places = None if mask is None else mask.nonzero().squeeze(1)
            own = every if places is None else every[places]
            assert self.assigner is not None and self.sampler is not None  # ``loss`` has looked
            matched = self.assigner.assign(own, objects.bboxes, None if ignored is None else ignored[i], None)
            drawn = self.sampler.sample(matched, own, objects.bboxes)  # of any class; a lone RPN is given no labels
            offset = i * len(every)
            pos.append((drawn.pos_inds if places is None else places[drawn.pos_inds]) + offset)
            neg.append((drawn.neg_inds if places is None else places[drawn.neg_inds]) + offset)
            pos_anchors.append(drawn.pos_boxes)
            gt_boxes.append(drawn.pos_gt_boxes)
            avg_factor += max(len(pos[-1]), 1) + (max(len(neg[-1]), 1) if self.sampling else 0)
            if self.train_cfg.debug:
                _LOG.info(
                    'rpn: image %d has %d objects; of %d anchors %d positive and %d negative ones were drawn',
                    i, len(objects), len(own), len(pos[-1]), len(neg[-1]))
        return AnchorTargets(torch.cat(pos + neg), torch.cat(pos_anchors), torch.cat(gt_boxes), avg_factor)

    def anchors(self, cls_scores: Sequence[torch.Tensor], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """The anchors of each level, (H * W * A, 4), for maps of these sizes."""
        sizes = [tuple(c.shape[-2:]) for c in cls_scores]
        return self.anchor_generator.grid_priors(sizes, dtype=dtype, device=cls_scores[0].device)

    def inside_flags(self, cls_scores: Sequence[torch.Tensor], anchors: Sequence[torch.Tensor],
                     metas: Sequence[ImageMeta], batch_hw: tuple[int, int]) -> list[torch.Tensor | None]:
        """Which of the N anchors take part, (N,) bool an image: None where all do.

        Out are cells beyond the image's own padding (``pad_shape``), and, with ``allowed_border`` >= 0,
        anchors that reach over the image's edge by more than that.
        """
        sizes = [tuple(c.shape[-2:]) for c in cls_scores]
        every = torch.cat(list(anchors))
        flags = []
        for meta in metas:
            mask = None
            if meta.padded_size != tuple(batch_hw):
                valid = self.anchor_generator.valid_flags(sizes, meta.padded_size, device=every.device)
                mask = torch.cat(valid)
            if self.train_cfg.allowed_border >= 0:
                near = self.within_border(every, meta)
                mask = near if mask is None else mask & near
            flags.append(mask)
        return flags

    def within_border(self, anchors: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
        """Which anchors (N, 4) reach over the image's edge by less than ``allowed_border`` pixels: (N,) bool."""
        border, (height, width) = self.train_cfg.allowed_border, meta.input_size
        return ((anchors[:, 0] >= -border) & (anchors[:, 1] >= -border)
                & (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border))

    # ------------------------------------------------------------------------------------------ proposals

    @torch.no_grad()
    def predict(self, cls_scores: Sequence[torch.Tensor], bbox_preds: Sequence[torch.Tensor],
                metas: Sequence[ImageMeta], settings: ProposalSettings | None = None) -> list[Instances]:
        """Return B Instances(bboxes (N, 4) in network-input pixels, scores (N,)), best first.

        Args:
            cls_scores: what ``forward`` returned.
            bbox_preds: likewise.
            metas: of B images.
            settings: in the place of ``test_cfg``.
        """
        settings = self.test_cfg if settings is None else settings
        found = self.predict_padded(cls_scores, bbox_preds, metas, settings, EXACT)
        return found.instances(image_sizes(metas))

    @torch.no_grad()
    def predict_padded(self, cls_scores: Sequence[torch.Tensor], bbox_preds: Sequence[torch.Tensor],
                       metas: Sequence[ImageMeta] | torch.Tensor, settings: ProposalSettings,
                       suppression: Suppression, anchors: Sequence[torch.Tensor] | None = None,
                       among: Sequence[torch.Tensor] | None = None) -> PaddedInstances:
        """Proposals ``bboxes`` (B, n, 4) and ``scores`` (B, n), best first, those that only fill up last.

        Args:
            cls_scores: what ``forward`` returned.
            bbox_preds: likewise.
            metas: of B images, or their (height, width) as a tensor (B, 2).
            settings: how many proposals, and which.
            suppression: how candidates are chosen and suppressed.
            anchors: of each level and image (B, H * W * A, 4), in the place of the generator's.
            among: of each level (B, H * W * A) bool: which anchors may become proposals; all by default.
        """
        grids = self.anchors(cls_scores, at_least_float32(cls_scores[0]).dtype) if anchors is None else anchors
        chosen: Sequence[torch.Tensor | None] = among or [None] * len(grids)
        kept = [self._best_of_level(*level, settings.nms_pre, suppression)
                for level in zip(cls_scores, bbox_preds, grids, chosen)]
        counts = [scores.shape[1] for scores, _, _ in kept]
        scores, deltas, starts = (torch.cat(parts, dim=1) for parts in zip(*kept))      # (B, N), (B, N, 4) twice
        sizes = image_sizes(metas)
        decoded = [self.bbox_coder.decode(*rows, max_shape=size)
                   for *rows, size in image_rows(sizes, starts, deltas)]
        boxes = of_images(decoded, sizes, starts)                                        # (B, N, 4)
        valid = scores >= 0
        if settings.min_bbox_size >= 0:
            valid = valid & ((boxes[..., 2:] - boxes[..., :2]) > settings.min_bbox_size).all(dim=-1)
        parts = [sum(counts)] if settings.nms_across_levels else counts
        keep, scores, settled = suppression.keep(boxes, scores, valid, settings.nms, parts=parts)
        scores, place = suppression.best(scores.masked_fill(~keep, -1), scores.shape[1])
        if settings.nms_post > 0:
            level = group_of_parts(counts, place.device)[place]                         # (B, N), best first
            of_level = (level[..., None] == torch.arange(len(counts), device=place.device)) & (scores >= 0)[..., None]
            rank = of_level.cumsum(dim=1).gather(2, level[..., None]).squeeze(2)        # within its level, from 1
            scores, order = suppression.best(scores.masked_fill(rank > settings.nms_post, -1), scores.shape[1])
            place = place.gather(1, order)
        if settings.max_per_img > 0:
            scores, place = scores[:, :settings.max_per_img], place[:, :settings.max_per_img]
        valid = scores >= 0
        if settings.max_per_batch > 0:
            valid = valid & best_of_batch(scores, settings.max_per_batch)
        boxes = boxes.gather(1, place[..., None].expand(-1, -1, 4))
        return PaddedInstances(dict(bboxes=boxes, scores=scores), valid, settled)

    def _best_of_level(self, cls_score: torch.Tensor, bbox_pred: torch.Tensor, anchors: torch.Tensor,
                       among: torch.Tensor | None, nms_pre: int,
                       suppression: Suppression) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The ``nms_pre`` best of a level: scores (B, n), -1 where none, deltas (B, n, 4), anchors (B, n, 4)."""
        logits = at_least_float32(flatten_levels([cls_score], self.cls_out_channels))   # (B, H * W * A, C)
        scores = logits[..., 0].sigmoid() if self.use_sigmoid else logits.softmax(-1)[..., 0]
        if among is not None:
            scores = scores.masked_fill(~among, -1)
        deltas = flatten_levels([bbox_pred], 4)                                         # (B, H * W * A, 4)
        if nms_pre > 0:
            scores, place = suppression.pick(scores, nms_pre)                           # (B, n)
            deltas = deltas.gather(1, place[..., None].expand(-1, -1, 4))
            one_each = anchors.dim() == 3                                               # (B, H * W * A, 4)
            anchors = anchors.gather(1, place[..., None].expand(-1, -1, 4)) if one_each else anchors[place]
        else:
            anchors = anchors.expand(scores.shape[0], -1, -1)
        return scores, at_least_float32(deltas), anchors


def _build_sampler(cfg: Cfg | contracts.Sampler | None) -> contracts.Sampler:
    """The sampler of anchors, every anchor by default.

    Raises:
        ConfigError: it would add the ground truth to the anchors, for which there are no outputs.
    """
    if not isinstance(cfg, Mapping):
        return MATCHING.build(cfg or dict(type='PseudoSampler'))
    if cfg.get('add_gt_as_proposals'):
        raise ConfigError(
            'model.train_cfg.rpn.sampler.add_gt_as_proposals must be False: anchors are not added to')
    names, _ = accepted_keywords(MATCHING.get(cfg.get('type', '')))
    return MATCHING.build(cfg, **({'add_gt_as_proposals': False} if 'add_gt_as_proposals' in names else {}))


def flatten_levels(maps: Sequence[torch.Tensor], channels: int) -> torch.Tensor:
    """Join L maps (B, A * channels, H, W) to (B, N, channels), in the order of the anchors."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, channels) for m in maps], dim=1)


def best_of_batch(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which of scores (B, n) are among the ``count`` best of all images together: (B, n) bool."""
    best = scores.flatten().topk(min(count, scores.numel())).indices
    return torch.zeros_like(scores, dtype=torch.bool).flatten().index_fill_(0, best, True).view(scores.shape)
