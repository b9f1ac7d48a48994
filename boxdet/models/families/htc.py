"""Hybrid Task Cascade (Chen et al. 2019): stages of boxes and masks in turn, with the features of a semantic map.

Letters: B images, L levels, R rois, P positive rois, C channels, S semantic classes, h, w of a map or a roi's features.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.models.bbox_head import RoITestSettings
from boxdet.models.cascade_roi_head import CascadeRoIHead, next_boxes
from boxdet.models.detectors import CascadeRCNN
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.models.mask_head import FCNMaskHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import box_losses, draw_samples, mask_loss, mask_samples
from boxdet.registry import DETECTORS, HEADS, LOSSES, ROI_EXTRACTORS, Cfg
from boxdet.structures.batch import ImageMeta, SampledRois
from boxdet.structures.instances import Instances, OfImages, joined

_FUSED = ('bbox', 'mask')


@dataclass(frozen=True)
class HTCTestSettings(RoITestSettings):
    """``RoITestSettings``, and whether a mask is the mean of all stages' or the last stage's, as in mmdetection 3.x.

    mmdetection 2.x takes the mean. The last stage has read what all others made of the roi.
    """
    average_masks: bool = False


@DETECTORS.register_module()
class HybridTaskCascade(CascadeRCNN):
    """A cascade whose stages hand on masks too; see ``HybridTaskCascadeRoIHead``."""


@HEADS.register_module()
class HybridTaskCascadeRoIHead(CascadeRoIHead):
    """A cascade of box and mask heads; a mask head trains on the boxes that its own stage has refined.

    Args:
        num_stages: as in ``CascadeRoIHead``.
        stage_loss_weights: as in ``CascadeRoIHead``.
        semantic_roi_extractor: config; pools the features of the semantic branch.
        semantic_head: config, a ``FusedSemanticHead``; None for a cascade without the branch.
        semantic_fusion: which heads read those features too, of 'bbox' and 'mask'.
        interleaved: a stage's mask head learns on the boxes that its box head has moved.
        mask_info_flow: a stage's mask head reads what the one before made of the same roi.
        **kwargs: as in ``CascadeRoIHead``.

    Raises:
        ConfigError: a semantic head without its extractor, or a fusion with another head.
    """

    test_settings = HTCTestSettings

    def __init__(self, num_stages: int, stage_loss_weights: Sequence[float], semantic_roi_extractor: Cfg | None = None,
                 semantic_head: Cfg | None = None, semantic_fusion: Sequence[str] = _FUSED, interleaved: bool = True,
                 mask_info_flow: bool = True, **kwargs: Any):
        super().__init__(num_stages, stage_loss_weights, **kwargs)
        if not set(semantic_fusion) <= set(_FUSED):
            raise ConfigError(f"model.roi_head.semantic_fusion holds 'bbox' and 'mask', not {tuple(semantic_fusion)}")
        if semantic_head is not None:
            if semantic_roi_extractor is None:
                raise ConfigError('model.roi_head: a semantic_head needs a semantic_roi_extractor')
            self.semantic_roi_extractor = ROI_EXTRACTORS.build(semantic_roi_extractor)
            self.semantic_head = HEADS.build(semantic_head)
        self.semantic_fusion = tuple(semantic_fusion)
        self.interleaved, self.mask_info_flow = interleaved, mask_info_flow
        self.wants_semantic_seg = self.with_semantic

    @property
    def with_semantic(self) -> bool:
        """Whether there is a semantic branch."""
        return hasattr(self, 'semantic_head')

    def context(self, feats: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """L levels and, behind them, the semantic branch's features (B, C, h, w), unless they are there."""
        if not self.with_semantic or len(feats) > self.semantic_head.num_ins:
            return feats
        return *feats, self.semantic_head(feats)[1]

    def box_forward(self, stage: int, feats: Sequence[torch.Tensor],
                    rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``CascadeRoIHead``."""
        pooled = self._fused('bbox', feats, rois, self.bbox_roi_extractor[stage](feats, rois))
        return *self.bbox_head[stage](pooled), pooled

    def mask_features(self, stage: int, feats: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """See ``CascadeRoIHead``."""
        return self._fused('mask', feats, rois, super().mask_features(stage, feats, rois))

    def _fused(self, part: str, feats: Sequence[torch.Tensor], rois: torch.Tensor,
               pooled: torch.Tensor) -> torch.Tensor:
        if not (self.with_semantic and part in self.semantic_fusion):
            return pooled
        semantic = self.semantic_roi_extractor([self.context(feats)[-1]], rois)
        return pooled + pooled_like(semantic, pooled)

    def _convolved(self, heads: Iterable[nn.Module], pooled: torch.Tensor) -> list[torch.Tensor]:
        """What the convolutions of each mask head make of (R, C, ., .)[, reading what the one before made]."""
        found: list[torch.Tensor] = []
        for head in heads:
            found.append(head.convolved(pooled, found[-1] if found and self.mask_info_flow else None))
        return found

    # ------------------------------------------------------------------------------------------ training

    def loss(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None, metas: Sequence[ImageMeta],
             semantic_seg: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """As ``CascadeRoIHead.loss``, and ``loss_semantic_seg`` on the semantic maps (B, 1, h, w)."""
        losses, boxes = {}, [p.bboxes for p in proposals]
        if self.with_semantic:
            logits, feature = self.semantic_head(feats)
            losses.update(self.semantic_head.loss(logits, semantic_seg))
            feats = *feats, feature
        for stage, weight in enumerate(self.stage_loss_weights):
            head, forward = self.bbox_head[stage], partial(self.box_forward, stage)
            rank = partial(box_losses, head, forward, feats) if self.ranks_by_loss[stage] else None
            draw = partial(draw_samples, *self.matching[stage], gt=gt, ignored=ignored, rank_losses=rank)
            samples: Sequence[SampledRois] = draw(boxes)
            scores, deltas, _ = forward(feats, boxes_to_rois([s.boxes for s in samples]))
            targets = head.targets(samples, self.settings_of(stage))
            parts = head.loss(scores, deltas, targets)
            boxes = next_boxes(head, samples, scores, deltas, targets, metas)
            if self.with_mask:
                samples = draw(boxes) if self.interleaved else samples
                samples, _ = mask_samples(samples, self.settings_of(stage))
                pooled = self.mask_features(stage, feats, boxes_to_rois([s.pos_boxes for s in samples]))
                parts.update(self.mask_losses(stage, feats, pooled, samples, gt))
            losses.update({f's{stage}.{name}': value * weight if 'loss' in name else value
                           for name, value in parts.items()})
        return {**losses, **self.keypoint_losses(feats, samples, gt)}

    def mask_losses(self, stage: int, feats: Sequence[torch.Tensor], pooled: torch.Tensor,
                    samples: Sequence[SampledRois], gt: Sequence[Instances]) -> dict[str, torch.Tensor]:
        """See ``CascadeRoIHead``."""
        heads = self.mask_head[0 if self.mask_info_flow else stage:stage + 1]
        return mask_loss(heads[-1], pooled, samples, gt, self.settings_of(stage),
                         forward=lambda x, labels: heads[-1].logits(self._convolved(heads, x)[-1], labels))

    # ------------------------------------------------------------------------------------------ results

    def classify(self, feats: Sequence[torch.Tensor], boxes: OfImages,
                 metas: Sequence[ImageMeta] | torch.Tensor,
                 ) -> tuple[OfImages, torch.Tensor, torch.Tensor]:
        """See ``CascadeRoIHead``."""
        return super().classify(self.context(feats), boxes, metas)

    def mask_probs(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                   labels: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """See ``CascadeRoIHead``; all stages read the features that the last one pools."""
        pooled = self.mask_features(self.num_stages - 1, self.context(feats), boxes_to_rois(boxes))
        stages = list(zip(self.mask_head, self._convolved(self.mask_head, pooled)))
        stages = stages if self.test_cfg.average_masks else stages[-1:]
        first, *others = (at_least_float32(head.logits(x, joined(labels))).sigmoid() for head, x in stages)
        return sum(others, start=first) / len(stages)


def pooled_like(semantic: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """Semantic features (R, C, ., .) of rois, averaged to the size of the ``pooled`` ones (R, C, h, w)."""
    height, width = pooled.shape[-2:]
    same = semantic.shape[-2:] == pooled.shape[-2:]
    return semantic if same else F.adaptive_avg_pool2d(semantic, (height, width))


@HEADS.register_module()
class HTCMaskHead(FCNMaskHead):
    """A mask head that may add the features of the mask head before it (mask information flow).

    Args:
        with_conv_res: have the 1x1 convolution that those features pass.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of their norms.
        **kwargs: as in ``FCNMaskHead``.
    """

    def __init__(self, with_conv_res: bool = True, conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None,
                 **kwargs: Any):
        super().__init__(conv_cfg=conv_cfg, norm_cfg=norm_cfg, **kwargs)
        if with_conv_res:
            self.conv_res = ConvModule(self.conv_out_channels, self.conv_out_channels, 1, conv_cfg=conv_cfg,
                                       norm_cfg=norm_cfg)

    def convolved(self, x: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """As ``FCNMaskHead.convolved``; ``before`` (R, conv_out_channels, ., .) is what the previous head's gave."""
        return super().convolved(x if before is None else x + self.conv_res(before))


@HEADS.register_module()
class FusedSemanticHead(nn.Module):
    """A semantic map and features for the other heads, from the sum of all levels.

    Args:
        num_ins: L.
        fusion_level: the level whose size the others are brought to.
        num_convs: convolutions after the sum.
        in_channels: C of the levels.
        conv_out_channels: C of what it gives.
        num_classes: S.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of their norms.
        ignore_label: ``loss_seg.ignore_index`` by its older name.
        loss_weight: ``loss_seg.loss_weight`` by its older name.
        loss_seg: config of the loss.
        init_cfg: initial weights; by default He's for the logits.
    """

    def __init__(self, num_ins: int, fusion_level: int, num_convs: int = 4, in_channels: int = 256,
                 conv_out_channels: int = 256, num_classes: int = 183, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg | None = None, ignore_label: int | None = None, loss_weight: float | None = None,
                 loss_seg: Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__()
        conv = partial(ConvModule, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.num_ins, self.fusion_level = num_ins, fusion_level
        self.lateral_convs = nn.ModuleList(
            conv(in_channels, in_channels, 1, inplace=False) for _ in range(num_ins))
        self.convs = nn.ModuleList(
            conv(conv_out_channels if i else in_channels, conv_out_channels, 3, padding=1)
            for i in range(num_convs))
        self.conv_embedding = conv(conv_out_channels, conv_out_channels, 1)
        self.conv_logits = nn.Conv2d(conv_out_channels, num_classes, 1)
        loss_seg = loss_seg or dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.2)
        if ignore_label or loss_weight:
            older = dict(ignore_index=ignore_label, loss_weight=loss_weight)
            loss_seg = {**loss_seg, **{key: value for key, value in older.items() if value}}
        self.criterion = LOSSES.build(loss_seg)
        self.init_cfg = init_cfg or dict(type='Kaiming', override=dict(name='conv_logits'))

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, S, h, w) and features (B, C, h, w) from L levels (B, C, ., .)."""
        size = feats[self.fusion_level].shape[-2:]
        levels = [self.lateral_convs[self.fusion_level](feats[self.fusion_level])]
        for i, (conv, feat) in enumerate(zip(self.lateral_convs, feats)):
            if i != self.fusion_level:
                levels.append(conv(F.interpolate(feat, size=size, mode='bilinear', align_corners=True)))
        x = sum(levels[1:], start=levels[0])
        for conv in self.convs:
            x = conv(x)
        return self.conv_logits(x), self.conv_embedding(x)

    def loss(self, logits: torch.Tensor, semantic_seg: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``loss_semantic_seg`` of logits (B, S, h, w) against maps (B, 1, h, w) of classes.

        Raises:
            ConfigError: the maps are of another size.
        """
        if logits.shape[-2:] != semantic_seg.shape[-2:]:
            raise ConfigError(
                f'the semantic maps are {tuple(semantic_seg.shape[-2:])} and the semantic_head reads level '
                f'{self.fusion_level}, of {tuple(logits.shape[-2:])}: SegRescale.scale_factor is 1 / its stride')
        return dict(loss_semantic_seg=self.criterion(at_least_float32(logits), semantic_seg.squeeze(1).long()))
