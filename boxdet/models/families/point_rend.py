"""PointRend (Kirillov et al. 2020): a coarse mask, and a small network that looks again at the points in doubt.

Letters: B images, L levels, R rois, P positive rois, K classes, C channels, n points of a roi, H, W of a map, h, w of a
mask. Points (R, n, 2) are x, y in [0, 1] of their roi; a mask's cell spans 1 / w of it.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.models.bbox_head import RoITestSettings, RoITrainSettings
from boxdet.models.detectors import TwoStageDetector
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.models.mask_head import FCNMaskHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.roi_sampling import corners, sum_of_samples
from boxdet.models.settings import integer, number
from boxdet.models.standard_roi_head import StandardRoIHead, have_masks
from boxdet.registry import DETECTORS, HEADS, LAYERS, LOSSES, Cfg
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances, joined


@dataclass(frozen=True)
class PointRendTrainSettings(RoITrainSettings):
    """``RoITrainSettings`` and which points are learnt from.

    Args:
        num_points: n.
        oversample_ratio: so many times n points are drawn, of which those in doubt are chosen.
        importance_sample_ratio: part of n that is chosen by doubt; the rest is drawn anywhere.
    """
    num_points: int = integer(14 * 14)
    oversample_ratio: float = number(3, 1)
    importance_sample_ratio: float = number(0.75, 0, 1)


@dataclass(frozen=True)
class PointRendTestSettings(RoITestSettings):
    """``RoITestSettings`` and how a mask grows.

    Args:
        subdivision_steps: how often.
        subdivision_num_points: points that are looked at again each time.
        scale_factor: how many times larger it gets each time.
    """
    subdivision_steps: int = integer(5)
    subdivision_num_points: int = integer(28 * 28)
    scale_factor: int = integer(2)


@DETECTORS.register_module()
class PointRend(TwoStageDetector):
    """Mask R-CNN whose masks are refined point by point; see ``PointRendRoIHead``."""


@HEADS.register_module()
class PointRendRoIHead(StandardRoIHead):
    """A RoI head whose masks grow in steps, with the points in doubt predicted anew.

    Args:
        point_head: config, a ``MaskPointHead``.
        **kwargs: as in ``StandardRoIHead``; it needs a mask head and a ``mask_roi_extractor``, whose levels the points
            are read from.

    Raises:
        ConfigError: one of them is missing.
    """

    train_settings = PointRendTrainSettings
    test_settings = PointRendTestSettings

    def __init__(self, point_head: Cfg, **kwargs: Any):
        super().__init__(**kwargs)
        if not self.with_mask or self.shares_extractor:
            raise ConfigError('model.roi_head: PointRendRoIHead needs a mask_head and a mask_roi_extractor')
        self.point_head = HEADS.build(point_head)

    def mask_losses(self, feats: Sequence[torch.Tensor], pooled: torch.Tensor, samples: Sequence[SampledRois],
                    gt: Sequence[Instances]) -> dict[str, torch.Tensor]:
        """``loss_mask`` of the coarse masks and ``loss_point``."""
        labels, rois = torch.cat([s.pos_gt_labels for s in samples]), boxes_to_rois([s.pos_boxes for s in samples])
        coarse = self.mask_head(pooled)                                                  # (P, K, h, w)
        targets = self.mask_head.targets(samples, gt, self.train_cfg)
        with torch.no_grad():
            points = points_in_doubt(coarse, labels, self.train_cfg)
            wanted = _mask_values(samples, gt, points)
        known = have_masks(samples, gt)
        if known is not None:
            labels, rois, coarse, targets, points, wanted = (
                one[known] for one in (labels, rois, coarse, targets, points, wanted))
        row = torch.arange(len(labels), device=labels.device)
        found = self.point_head(self._fine(feats, rois, points), point_sample(coarse, points))
        return self.mask_head.loss(coarse[row, labels], targets) | self.point_head.loss(found, wanted, labels)

    def mask_probs(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                   labels: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """As ``StandardRoIHead.mask_probs``, with h, w of the coarse mask times the ``scale_factor`` of each step."""
        rois, labels, settings = boxes_to_rois(boxes), joined(labels), self.test_cfg
        coarse = self.mask_head(self.mask_features(feats, rois))
        row = torch.arange(len(labels), device=labels.device)
        mask = coarse[row, labels]                                                       # (R, h, w)
        for step in range(settings.subdivision_steps):
            mask = F.interpolate(mask[:, None], scale_factor=settings.scale_factor, mode='bilinear',
                                 align_corners=False)[:, 0]
            height, width = mask.shape[1:]
            last = step + 1 == settings.subdivision_steps
            # While all of the next, larger mask will be looked at anyway, this one need not be.
            if settings.subdivision_num_points >= settings.scale_factor ** 2 * height * width and not last:
                continue
            index = (-mask.abs().flatten(1)).topk(min(settings.subdivision_num_points, height * width), dim=1).indices
            points = torch.stack([(index % width + 0.5) / width, (index // width + 0.5) / height], dim=2).to(rois.dtype)
            found = self.point_head(self._fine(feats, rois, points), point_sample(coarse, points))  # (R, K, n)
            found = found[:, 0] if self.point_head.class_agnostic else found[row, labels]
            mask = mask.flatten(1).scatter(1, index, found.to(mask.dtype)).view(-1, height, width)
        return at_least_float32(mask).sigmoid()

    def _fine(self, feats: Sequence[torch.Tensor], rois: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Features (R, C, n) of points (R, n, 2), those of the mask's levels after one another."""
        strides = self.mask_roi_extractor.featmap_strides
        return torch.cat([roi_point_sample(feat, rois, points, 1 / stride) for feat, stride in zip(feats, strides)],
                         dim=1)


@HEADS.register_module()
class CoarseMaskHead(FCNMaskHead):
    """A mask of each class from linear layers.

    Args:
        num_convs: convolutions before the features are made smaller.
        num_fcs: linear layers.
        fc_out_channels: size of them.
        downsample_factor: how many times smaller the features get; h, w are theirs.
        init_cfg: initial weights.
        **kwargs: as in ``FCNMaskHead``.

    Raises:
        ConfigError: no linear layer, or a factor below 1.
    """

    def __init__(self, num_convs: int = 0, num_fcs: int = 2, fc_out_channels: int = 1024, downsample_factor: int = 2,
                 init_cfg: InitCfg = None, conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None, **kwargs: Any):
        init_cfg = init_cfg or dict(type='Xavier', override=[
            dict(name='fcs'), dict(type='Constant', val=0.001, name='fc_logits')])
        super().__init__(num_convs=num_convs, upsample_cfg=dict(type=None), init_cfg=init_cfg, conv_cfg=conv_cfg,
                         norm_cfg=norm_cfg, **kwargs)
        if num_fcs < 1 or downsample_factor < 1:
            raise ConfigError('CoarseMaskHead: num_fcs and downsample_factor are at least 1')
        del self.conv_logits  # linear layers are in its place
        channels = self.conv_out_channels if num_convs else self.in_channels
        self.downsample_conv = ConvModule(
            channels, self.conv_out_channels, downsample_factor, stride=downsample_factor, conv_cfg=conv_cfg,
            norm_cfg=norm_cfg) if downsample_factor > 1 else None
        channels = self.conv_out_channels if downsample_factor > 1 else channels
        self.output_size = tuple(side // downsample_factor for side in self.roi_feat_size)
        area = self.output_size[0] * self.output_size[1]
        self.fcs = nn.ModuleList(nn.Linear(fc_out_channels if i else channels * area, fc_out_channels)
                                 for i in range(num_fcs))
        self.fc_logits = nn.Linear(fc_out_channels, self.num_classes * area)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map roi features (R, C, ., .) to mask logits (R, K, h, w)."""
        x = self.convolved(x)
        x = (x if self.downsample_conv is None else self.downsample_conv(x)).flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.fc_logits(x).view(len(x), self.num_classes, *self.output_size)

    def forward_labels(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See ``FCNMaskHead``."""
        return self.forward(x)[torch.arange(len(labels), device=labels.device), labels]


@HEADS.register_module()
class MaskPointHead(nn.Module):
    """Whether a point is on the object, of each class: a network that all points share.

    Args:
        num_classes: K.
        num_fcs: layers, 1x1 convolutions.
        in_channels: C of the fine features.
        fc_channels: C of the layers.
        class_agnostic: one answer a point, and not one for each class.
        coarse_pred_each_layer: every layer reads the coarse mask's values again.
        conv_cfg: layer config.
        norm_cfg: of the layers' norms.
        act_cfg: of their activation.
        loss_point: config of the loss.
        init_cfg: initial weights.
    """

    def __init__(self, num_classes: int, num_fcs: int = 3, in_channels: int = 256, fc_channels: int = 256,
                 class_agnostic: bool = False, coarse_pred_each_layer: bool = True, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg | None = None, act_cfg: Cfg | None = None, loss_point: Cfg | None = None,
                 init_cfg: InitCfg = None):
        super().__init__()
        self.num_classes, self.class_agnostic = num_classes, class_agnostic
        self.coarse_pred_each_layer = coarse_pred_each_layer
        again = num_classes if coarse_pred_each_layer else 0
        conv = partial(ConvModule, conv_cfg=conv_cfg or dict(type='Conv1d'), norm_cfg=norm_cfg,
                       act_cfg=act_cfg or dict(type='ReLU'))
        self.fcs = nn.ModuleList(
            conv(fc_channels + again if i else in_channels + num_classes, fc_channels, 1)
            for i in range(num_fcs))
        self.fc_logits = nn.Conv1d((fc_channels + again) if num_fcs else in_channels + num_classes,
                                   1 if class_agnostic else num_classes, 1)
        self.loss_point = LOSSES.build(loss_point or dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))
        self.init_cfg = init_cfg or dict(type='Normal', std=0.001, override=dict(name='fc_logits'))

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Logits (R, K, n) from features (R, C, n) and the coarse mask's logits (R, K, n) at n points."""
        x = torch.cat([fine, coarse], dim=1)
        for fc in self.fcs:
            x = fc(x)
            if self.coarse_pred_each_layer:
                x = torch.cat([x, coarse], dim=1)
        return self.fc_logits(x)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``loss_point`` of logits (P, K, n) against values (P, n) in [0, 1] for labels (P,)."""
        labels = torch.zeros_like(labels) if self.class_agnostic else labels
        return dict(loss_point=self.loss_point(at_least_float32(logits), targets, labels))


@LAYERS.register_module()
class SimpleRoIAlign(nn.Module):
    """One bilinear sample in the middle of each bin.

    Args:
        output_size: side of the output, or (h, w).
        spatial_scale: feature pixels a network-input pixel.
        aligned: always True: a feature pixel's centre is at its half.

    Raises:
        ConfigError: ``aligned=False``.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0, aligned: bool = True):
        super().__init__()
        if not aligned:
            raise ConfigError('SimpleRoIAlign: only aligned=True exists')
        self.output_size, self.spatial_scale = _pair(output_size), float(spatial_scale)

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool ``features`` (B, C, H, W) over ``rois`` (R, 5) to (R, C, h, w)."""
        h, w = self.output_size
        y, x = torch.meshgrid((torch.arange(h, device=rois.device) + 0.5) / h,
                              (torch.arange(w, device=rois.device) + 0.5) / w, indexing='ij')
        points = torch.stack([x, y], dim=2).view(1, h * w, 2).expand(len(rois), -1, -1).to(rois.dtype)
        return roi_point_sample(features, rois, points, self.spatial_scale).unflatten(2, (h, w))


def point_sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (R, C, n) of maps (R, C, h, w) at points (R, n, 2) in [0, 1] of each; zero beyond."""
    grid = (points * 2 - 1)[:, :, None].to(maps.dtype)
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]


def roi_point_sample(features: torch.Tensor, rois: torch.Tensor, points: torch.Tensor, scale: float) -> torch.Tensor:
    """Bilinear samples (R, C, n) of features (B, C, H, W) at points (R, n, 2) in [0, 1] of rois (R, 5); zero beyond."""
    wide = at_least_float32(features)
    rois = rois.to(torch.promote_types(wide.dtype, rois.dtype))
    place = (rois[:, None, 1:3] + points * (rois[:, None, 3:5] - rois[:, None, 1:3])) * scale - 0.5      # (R, n, 2)
    x, y = place.flatten(0, 1).unbind(dim=1)
    index, weight = corners(x, y, *features.shape[2:])
    image = rois[:, :1].expand(-1, points.shape[1]).flatten()
    starts = torch.arange(len(x), device=rois.device)  # every point is a bag of its own
    sampled = sum_of_samples(wide, image, index, weight.to(wide.dtype), starts)                          # (R * n, C)
    return sampled.view(len(rois), points.shape[1], features.shape[1]).transpose(1, 2).to(features.dtype)


def points_in_doubt(coarse: torch.Tensor, labels: torch.Tensor, settings: PointRendTrainSettings) -> torch.Tensor:
    """Points (P, n, 2): those where masks (P, K, h, w) of labels (P,) are least sure, and some anywhere."""
    count, chosen = settings.num_points, int(settings.importance_sample_ratio * settings.num_points)
    points = torch.rand(len(coarse), int(count * settings.oversample_ratio), 2, device=coarse.device)
    own = coarse[torch.arange(len(labels), device=labels.device), labels][:, None]       # (P, 1, h, w)
    # The doubt of the sampled value: between -1 and 1 a point may be at 0, which neither pixel is.
    doubt = -point_sample(own, points)[:, 0].abs()
    index = doubt.topk(chosen, dim=1).indices
    points = points.gather(1, index[..., None].expand(-1, -1, 2))
    return torch.cat([points, torch.rand(len(coarse), count - chosen, 2, device=coarse.device)], dim=1)


def _mask_values(samples: Sequence[SampledRois], gt: Sequence[Instances], points: torch.Tensor) -> torch.Tensor:
    """What the objects' masks hold, (P, n) in [0, 1], at points (P, n, 2) of the positives matched to them."""
    values, start = [], 0
    for drawn, objects in zip(samples, gt):
        boxes, index = drawn.pos_boxes, drawn.pos_gt_index
        own = points[start:start + len(boxes)].to(boxes.dtype)
        place = boxes[:, None, :2] + own * (boxes[:, None, 2:] - boxes[:, None, :2])                     # in pixels
        found = own.new_zeros(own.shape[:2])
        for i in index.unique().tolist():
            here = index == i
            mask = objects.masks[[i]].to_tensor(boxes.dtype, boxes.device)[:, None]                      # (1, 1, H, W)
            share = place[here] / place.new_tensor([mask.shape[3], mask.shape[2]])
            found[here] = point_sample(mask, share.flatten(0, 1)[None])[0, 0].view(-1, own.shape[1])
        values.append(found)
        start += len(boxes)
    return torch.cat(values)
