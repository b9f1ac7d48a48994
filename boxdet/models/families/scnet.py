"""SCNet (Vu et al. 2021): training samples as in testing, and branches that read one another's features.

Letters: B images, L levels, R rois, P positive rois, K classes, C channels, D size of the box head's shared features.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.models.bbox_head import BBoxHead
from boxdet.models.cascade_roi_head import CascadeRoIHead, next_boxes
from boxdet.models.detectors import CascadeRCNN
from boxdet.models.families.htc import FusedSemanticHead, pooled_like
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule, build_conv_layer, build_norm_layer
from boxdet.models.mask_head import FCNMaskHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import box_losses, draw_samples, mask_loss, mask_samples
from boxdet.registry import DETECTORS, HEADS, ROI_EXTRACTORS, Cfg
from boxdet.structures.batch import ImageMeta
from boxdet.structures.instances import Instances, OfImages, joined


@DETECTORS.register_module()
class SCNet(CascadeRCNN):
    """A cascade with one mask head behind it; see ``SCNetRoIHead``."""


@HEADS.register_module()
class SCNetRoIHead(CascadeRoIHead):
    """Stages of box heads, and one mask head behind the last; it reads that stage's box features.

    Args:
        num_stages: as in ``CascadeRoIHead``; the mask loss is multiplied by the sum of the weights.
        stage_loss_weights: as in ``CascadeRoIHead``; the mask loss is multiplied by the sum of the weights.
        semantic_roi_extractor: config; pools the features of the semantic branch.
        semantic_head: config, a ``SCNetSemanticHead``; None for none.
        feat_relay_head: config, a ``FeatureRelayHead``; None: the mask head does not read the box head's features.
        glbctx_head: config, a ``GlobalContextHead``; None for none.
        mask_roi_extractor: config.
        mask_head: config.
        **kwargs: as in ``CascadeRoIHead``.

    Raises:
        ConfigError: parts that need one another are missing.
    """

    def __init__(self, num_stages: int, stage_loss_weights: Sequence[float], semantic_roi_extractor: Cfg | None = None,
                 semantic_head: Cfg | None = None, feat_relay_head: Cfg | None = None, glbctx_head: Cfg | None = None,
                 mask_roi_extractor: Cfg | None = None, mask_head: Cfg | None = None, **kwargs: Any):
        super().__init__(num_stages, stage_loss_weights, **kwargs)
        if mask_head is None or mask_roi_extractor is None:
            raise ConfigError('model.roi_head: SCNetRoIHead needs a mask_head and a mask_roi_extractor')
        self.mask_roi_extractor, self.mask_head = ROI_EXTRACTORS.build(mask_roi_extractor), HEADS.build(mask_head)
        if semantic_head is not None:
            if semantic_roi_extractor is None:
                raise ConfigError('model.roi_head: a semantic_head needs a semantic_roi_extractor')
            self.semantic_roi_extractor = ROI_EXTRACTORS.build(semantic_roi_extractor)
            self.semantic_head = HEADS.build(semantic_head)
        self.feat_relay_head = None if feat_relay_head is None else HEADS.build(feat_relay_head)
        self.glbctx_head = None if glbctx_head is None else HEADS.build(glbctx_head)
        self.wants_semantic_seg = self.with_semantic

    @property
    def with_semantic(self) -> bool:
        """Whether there is a semantic branch."""
        return hasattr(self, 'semantic_head')

    def context(self, feats: Sequence[torch.Tensor]) -> _Context:
        """L levels with the semantic branch's features and the images' contexts; what has them stays as it is."""
        if isinstance(feats, _Context):
            return feats
        semantic = self.semantic_head(feats) if self.with_semantic else (None, None)
        whole = (None, None) if self.glbctx_head is None else self.glbctx_head(feats)
        return _Context(feats, semantic, whole)

    def _fused(self, feats: Sequence[torch.Tensor], rois: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled features (R, C, h, w) with those of the semantic branch and of the roi's image added."""
        context = self.context(feats)
        if self.with_semantic:
            semantic = self.semantic_roi_extractor([context.semantic[1]], rois)
            pooled = pooled + pooled_like(semantic, pooled)
        return pooled if self.glbctx_head is None else pooled + context.whole[1][rois[:, 0].long()]

    def box_forward(self, stage: int, feats: Sequence[torch.Tensor],
                    rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``CascadeRoIHead``."""
        pooled = self._fused(feats, rois, self.bbox_roi_extractor[stage](feats, rois))
        return *self.bbox_head[stage](pooled), pooled

    def mask_features(self, stage: int, feats: Sequence[torch.Tensor], rois: torch.Tensor,
                      shared: torch.Tensor | None = None) -> torch.Tensor:
        """See ``CascadeRoIHead``; ``shared`` (R, D) are the box head's features of the rois, where they are known."""
        pooled = self._fused(feats, rois, self.mask_roi_extractor(feats, rois))
        if self.feat_relay_head is None:
            return pooled
        if shared is None:
            boxes = self._fused(feats, rois, self.bbox_roi_extractor[stage](feats, rois))
            shared = self.bbox_head[stage].shared(boxes)
        return pooled + self.feat_relay_head(shared)

    # ------------------------------------------------------------------------------------------ training

    def loss(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None, metas: Sequence[ImageMeta],
             semantic_seg: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return ``loss_semantic_seg``, ``loss_glbctx``, the losses of each stage's boxes, and ``loss_mask``."""
        losses, boxes = {}, [p.bboxes for p in proposals]
        feats = context = self.context(feats)
        if self.with_semantic:
            losses.update(self.semantic_head.loss(context.semantic[0], semantic_seg))
        if self.glbctx_head is not None:
            losses.update(self.glbctx_head.loss(context.whole[0], [objects.labels for objects in gt]))
        for stage, weight in enumerate(self.stage_loss_weights):
            head, forward = self.bbox_head[stage], partial(self.box_forward, stage)
            rank = partial(box_losses, head, forward, feats) if self.ranks_by_loss[stage] else None
            samples = draw_samples(*self.matching[stage], boxes, gt, ignored, rank)
            scores, deltas, pooled = forward(feats, boxes_to_rois([s.boxes for s in samples]))
            targets = head.targets(samples, self.settings_of(stage))
            losses.update({f's{stage}.{name}': value * weight if 'loss' in name else value
                           for name, value in head.loss(scores, deltas, targets).items()})
            if stage + 1 < self.num_stages:
                boxes = next_boxes(head, samples, scores, deltas, targets, metas)
        drawn, index = mask_samples(samples, self.settings_of(-1))
        shared = None if self.feat_relay_head is None else head.shared(pooled[targets.pos_index[index]])
        pooled = self.mask_features(-1, feats, boxes_to_rois([s.pos_boxes for s in drawn]), shared)
        found = mask_loss(self.mask_head, pooled, drawn, gt, self.settings_of(-1))
        losses |= {name: value * sum(self.stage_loss_weights) for name, value in found.items()}
        return {**losses, **self.keypoint_losses(feats, samples, gt)}

    # ------------------------------------------------------------------------------------------ results

    def classify(self, feats: Sequence[torch.Tensor], boxes: OfImages,
                 metas: Sequence[ImageMeta] | torch.Tensor,
                 ) -> tuple[OfImages, torch.Tensor, torch.Tensor]:
        """See ``CascadeRoIHead``."""
        return super().classify(self.context(feats), boxes, metas)

    def mask_probs(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                   labels: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """As ``StandardRoIHead.mask_probs``."""
        return self.mask_head.predict(self.mask_features(-1, self.context(feats), boxes_to_rois(boxes)), joined(labels))


class _Context(tuple[torch.Tensor, ...]):
    """L levels, and what the whole images give: logits and features of the semantic branch and of the global one."""

    semantic: tuple
    whole: tuple

    def __new__(cls, feats: Sequence[torch.Tensor], semantic: tuple, whole: tuple) -> _Context:
        """Levels with two pairs (logits, features)."""
        self = super().__new__(cls, feats)
        self.semantic, self.whole = semantic, whole
        return self


@HEADS.register_module()
class SCNetBBoxHead(BBoxHead):
    """``BBoxHead`` whose shared features others read; arguments as there."""

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (R, C, h, w) to those before the branches part, (R, D)."""
        for conv in self.shared_convs:
            x = conv(x)
        return self._through_fcs(x, self.shared_fcs)


class _SimplifiedBlocks(nn.ModuleList):
    """Residual blocks of two convolutions without an activation at their end."""

    def __init__(self, in_channels: int, channels: int, count: int, conv_cfg: Cfg | None, norm_cfg: Cfg | None):
        super().__init__(_SimplifiedBlock(channels if i else in_channels, channels, conv_cfg, norm_cfg)
                         for i in range(count))


class _SimplifiedBlock(nn.Module):
    """x + conv(relu(conv(x))), with norms where there are any."""

    def __init__(self, in_channels: int, channels: int, conv_cfg: Cfg | None, norm_cfg: Cfg | None):
        super().__init__()
        bias = norm_cfg is None
        self.conv1 = build_conv_layer(conv_cfg, in_channels, channels, 3, padding=1, bias=bias)
        self.conv2 = build_conv_layer(conv_cfg, channels, channels, 3, padding=1, bias=bias)
        self.norm_names: tuple[str, ...] = ()
        if norm_cfg is not None:
            norms = [build_norm_layer(norm_cfg, channels, postfix=i) for i in (1, 2)]
            self.norm_names = tuple(name for name, _ in norms)
            for name, norm in norms:
                self.add_module(name, norm)
        self.downsample: nn.Module | None = None
        if in_channels != channels:
            if norm_cfg is None:
                raise ConfigError(f'conv_to_res: {in_channels} channels cannot become {channels} without a norm_cfg')
            self.downsample = nn.Sequential(build_conv_layer(conv_cfg, in_channels, channels, 1, bias=False),
                                            build_norm_layer(norm_cfg, channels)[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(R, C, h, w) to (R, C', h, w)."""
        norms = [getattr(self, name) for name in self.norm_names] or [nn.Identity()] * 2
        out = norms[1](self.conv2(F.relu(norms[0](self.conv1(x)))))
        return out + (x if self.downsample is None else self.downsample(x))


@HEADS.register_module()
class SCNetMaskHead(FCNMaskHead):
    """``FCNMaskHead`` whose convolutions are residual blocks of two, if ``conv_to_res``."""

    def __init__(self, conv_to_res: bool = True, conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None,
                 **kwargs: Any):
        super().__init__(conv_cfg=conv_cfg, norm_cfg=norm_cfg, **kwargs)
        if conv_to_res:
            self.convs = _SimplifiedBlocks(self.in_channels, self.conv_out_channels, self.num_convs // 2, conv_cfg,
                                           norm_cfg)


@HEADS.register_module()
class SCNetSemanticHead(FusedSemanticHead):
    """``FusedSemanticHead`` whose convolutions are residual blocks of two, if ``conv_to_res``."""

    def __init__(self, conv_to_res: bool = True, num_convs: int = 4, in_channels: int = 256,
                 conv_out_channels: int = 256, conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None, **kwargs: Any):
        super().__init__(num_convs=num_convs, in_channels=in_channels, conv_out_channels=conv_out_channels,
                         conv_cfg=conv_cfg, norm_cfg=norm_cfg, **kwargs)
        if conv_to_res:
            self.convs = _SimplifiedBlocks(in_channels, conv_out_channels, num_convs // 2, conv_cfg, norm_cfg)


@HEADS.register_module()
class GlobalContextHead(nn.Module):
    """Which classes are on an image, from its coarsest level.

    Args:
        num_convs: convolutions.
        in_channels: C of the level.
        conv_out_channels: C of what it gives.
        num_classes: K.
        loss_weight: of the loss.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of their norms.
        conv_to_res: residual blocks of two convolutions each.
        init_cfg: initial weights.
    """

    def __init__(self, num_convs: int = 4, in_channels: int = 256, conv_out_channels: int = 256, num_classes: int = 80,
                 loss_weight: float = 1.0, conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None,
                 conv_to_res: bool = False, init_cfg: InitCfg = None):
        super().__init__()
        self.loss_weight = loss_weight
        self.convs: nn.ModuleList
        if conv_to_res:
            self.convs = _SimplifiedBlocks(in_channels, conv_out_channels, num_convs // 2, conv_cfg, norm_cfg)
        else:
            self.convs = nn.ModuleList(
                ConvModule(conv_out_channels if i else in_channels, conv_out_channels, 3, padding=1, conv_cfg=conv_cfg,
                           norm_cfg=norm_cfg) for i in range(num_convs))
        self.fc = nn.Linear(conv_out_channels, num_classes)
        self.init_cfg = init_cfg or dict(type='Normal', std=0.01, override=dict(name='fc'))

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, K) and features (B, C, 1, 1) from L levels (B, C, h, w)."""
        x = feats[-1]
        for conv in self.convs:
            x = conv(x)
        x = x.mean(dim=(2, 3), keepdim=True)
        return self.fc(x.flatten(1)), x

    def loss(self, logits: torch.Tensor, labels: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return ``loss_glbctx`` of logits (B, K); labels (N,) are those of B images' objects."""
        logits = at_least_float32(logits)
        present = torch.zeros_like(logits)
        for row, own in zip(present, labels):
            row[own] = 1
        return dict(loss_glbctx=self.loss_weight * F.binary_cross_entropy_with_logits(logits, present))


@HEADS.register_module()
class FeatureRelayHead(nn.Module):
    """The box head's features as a map for the mask head.

    Args:
        in_channels: D.
        out_conv_channels: C of the map.
        roi_feat_size: side of the box head's features.
        scale_factor: how many times larger the mask head's are.
        init_cfg: initial weights.
    """

    def __init__(self, in_channels: int = 1024, out_conv_channels: int = 256, roi_feat_size: int = 7,
                 scale_factor: int = 2, init_cfg: InitCfg = None):
        super().__init__()
        self.shape, self.scale_factor = (out_conv_channels, roi_feat_size, roi_feat_size), scale_factor
        self.fc = nn.Linear(in_channels, out_conv_channels * roi_feat_size ** 2)
        self.init_cfg = init_cfg or dict(type='Kaiming', layer='Linear')

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (R, D) to (R, C, h, w)."""
        x = self.fc(x).view(len(x), *self.shape)
        return F.interpolate(x, scale_factor=self.scale_factor, mode='bilinear', align_corners=True)
