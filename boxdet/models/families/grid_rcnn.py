"""Grid R-CNN (Lu et al. 2019; Grid R-CNN Plus, Lu et al. 2019): a box is a grid of points, each found on a heatmap.

Letters: B images, R rois, P positive rois, N boxes, C channels of the features, c of a point, g points of the grid,
h = w side of a point's heatmap, which shows the half of the roi's surrounding where the point may be.
The surrounding is twice as wide and high as the roi. Points go down the columns: 0 is the left upper one, 1 below it.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.nms import Suppression
from boxdet.models import contracts
from boxdet.models.bbox_head import BoxTargets, RoITrainSettings
from boxdet.models.detectors import TwoStageDetector
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.settings import integer
from boxdet.models.standard_roi_head import StandardRoIHead, add_masks, predict_boxes
from boxdet.registry import DETECTORS, HEADS, LOSSES, ROI_EXTRACTORS, Cfg
from boxdet.structures.batch import ImageMeta, SampledRois, image_sizes
from boxdet.structures.instances import Instances, PaddedInstances, joined

_JITTER = 0.15  # of a roi's size, by which training moves and stretches it at most
_INIT = [dict(type='Kaiming', layer=['Conv2d', 'Linear']),
         dict(type='Normal', layer='ConvTranspose2d', std=0.001,
              override=dict(type='Normal', name='deconv2', std=0.001, bias=-math.log(0.99 / 0.01)))]


@dataclass(frozen=True)
class GridTrainSettings(RoITrainSettings):
    """``RoITrainSettings`` and what the grid learns from.

    Args:
        pos_radius: pixels of a heatmap around a point that belong to it.
        max_num_grid: positives of a batch that the grid learns from, drawn at random.
    """
    pos_radius: int = integer(1)
    max_num_grid: int = integer(192)


@DETECTORS.register_module()
class GridRCNN(TwoStageDetector):
    """Faster R-CNN with a grid of points in the place of deltas; see ``GridRoIHead``."""


@HEADS.register_module()
class GridRoIHead(StandardRoIHead):
    """A RoI head that locates boxes by a grid of points.

    Test-time augmentation merges the boxes that the grid starts from: the box head's.

    Args:
        grid_roi_extractor: config; None for the box head's.
        grid_head: config, a ``GridHead``.
        **kwargs: as in ``StandardRoIHead``; the box head usually gives no deltas (``with_reg=False``).
    """

    train_settings = GridTrainSettings
    fixed_size_prediction = True

    def __init__(self, grid_roi_extractor: Cfg, grid_head: Cfg, **kwargs: Any):
        super().__init__(**kwargs)
        self.grid_roi_extractor = self.bbox_roi_extractor if grid_roi_extractor is None \
            else ROI_EXTRACTORS.build(grid_roi_extractor)
        self.grid_head = HEADS.build(grid_head)

    def grid_features(self, feats: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """What the grid head reads: (R, C, ., .) for rois (R, 5)."""
        pooled = self.grid_roi_extractor(feats, rois)
        return self.shared_head(pooled) if self.with_shared_head else pooled

    def bbox_losses(self, feats: Sequence[torch.Tensor], samples: Sequence[SampledRois], scores: torch.Tensor,
                    deltas: torch.Tensor | None, targets: BoxTargets) -> contracts.Losses:
        """See ``StandardRoIHead``; and ``loss_grid``, of positives that are moved a little."""
        boxes = [_jittered(s.pos_boxes) for s in samples]
        rois, wanted = boxes_to_rois(boxes), targets.pos_gt_boxes
        if len(rois) > self.train_cfg.max_num_grid:
            drawn = torch.randperm(len(rois), device=rois.device)[:self.train_cfg.max_num_grid]
            rois, wanted = rois[drawn], wanted[drawn]
        fused, plain = self.grid_head(self.grid_features(feats, rois), plain=True)
        heatmaps = self.grid_head.targets(rois[:, 1:], wanted, self.train_cfg)
        losses = super().bbox_losses(feats, samples, scores, deltas, targets)
        return {**losses, **self.grid_head.loss(fused, plain, heatmaps)}

    def predict(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances],
                metas: Sequence[ImageMeta]) -> list[Instances]:
        """See ``StandardRoIHead``; the grid's boxes."""
        boxes, scores, deltas = self.classify(feats, [p.bboxes for p in proposals], metas)
        results = predict_boxes(self.bbox_head, boxes, scores, deltas, metas, self.test_cfg)
        moved = self._on_grid(feats, [r.bboxes for r in results]).split([len(r) for r in results])
        results = [r.replace(bboxes=own) for r, own in zip(results, moved)]
        results = add_masks(self, feats, results) if self.with_mask else results
        return self.add_keypoints(feats, results) if self.with_keypoint else results

    def predict_padded(self, feats: Sequence[torch.Tensor], proposals: PaddedInstances,
                       metas: Sequence[ImageMeta] | torch.Tensor, suppression: Suppression) -> PaddedInstances:
        """See ``StandardRoIHead``; the grid's boxes."""
        boxes, scores, deltas = self.classify(feats, proposals.bboxes, metas)
        found = self.bbox_head.predict_padded(boxes, proposals.valid, scores, deltas, image_sizes(metas), self.test_cfg,
                                              suppression)
        found = found.replace(bboxes=self._on_grid(feats, found.bboxes).view_as(found.bboxes))
        if self.with_mask:
            found = found.replace(mask_probs=self.mask_probs(feats, found.bboxes, found.fields['labels']).unflatten(
                0, found.valid.shape))
        return replace(found, settled=found.settled & proposals.settled)

    def _on_grid(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """Where the grid finds boxes (N, 4) of B images, (R, 4) in all."""
        heatmaps, _ = self.grid_head(self.grid_features(feats, boxes_to_rois(boxes)))
        return self.grid_head.predict(heatmaps, joined(boxes))


@HEADS.register_module()
class GridHead(nn.Module):
    """Heatmaps of the points of a grid, each fused with those of its neighbours (section 3.2).

    Args:
        grid_points: g, a square number.
        num_convs: convolutions; the first one halves the features.
        roi_feat_size: side of the features; h = w is twice that.
        in_channels: C.
        conv_kernel_size: of the convolutions.
        point_feat_channels: c.
        deconv_kernel_size: of the two enlargements.
        class_agnostic: kept for configs; heatmaps are of no class.
        loss_grid: config of the loss.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of their norms.
        init_cfg: initial weights.

    Raises:
        ConfigError: points that make no square, or a norm whose groups do not divide the channels.
    """

    def __init__(self, grid_points: int = 9, num_convs: int = 8, roi_feat_size: int = 14, in_channels: int = 256,
                 conv_kernel_size: int = 3, point_feat_channels: int = 64, deconv_kernel_size: int = 4,
                 class_agnostic: bool = False, loss_grid: Cfg | None = None, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__()
        norm_cfg = norm_cfg or dict(type='GN', num_groups=36)
        side = math.isqrt(grid_points)
        if side * side != grid_points or side < 2:
            raise ConfigError(f'GridHead: grid_points is a square number of at least 4, not {grid_points}')
        channels, c = point_feat_channels * grid_points, point_feat_channels
        if norm_cfg['type'] == 'GN' and channels % norm_cfg['num_groups']:
            raise ConfigError(
                f"GridHead: norm_cfg.num_groups={norm_cfg['num_groups']} does not divide the {channels} channels")
        self.grid_points, self.grid_size, self.point_feat_channels = grid_points, side, point_feat_channels
        self.roi_feat_size, self.class_agnostic = roi_feat_size, class_agnostic
        self.map_size = roi_feat_size * 4         # of the whole surrounding
        self.half_size = self.map_size // 4 * 2   # of a heatmap
        self.register_buffer('regions', self._regions(), persistent=False)
        self.convs = nn.Sequential(*(
            ConvModule(channels if i else in_channels, channels, conv_kernel_size, stride=1 if i else 2,
                       padding=(conv_kernel_size - 1) // 2, conv_cfg=conv_cfg, norm_cfg=norm_cfg, bias=True)
            for i in range(num_convs)))
        around = (deconv_kernel_size - 2) // 2
        self.deconv1 = nn.ConvTranspose2d(channels, channels, deconv_kernel_size, 2, around, groups=grid_points)
        self.norm1 = nn.GroupNorm(grid_points, channels)
        self.deconv2 = nn.ConvTranspose2d(channels, grid_points, deconv_kernel_size, 2, around, groups=grid_points)
        self.neighbors = [_neighbors(point, side) for point in range(grid_points)]
        # A depthwise and a pointwise convolution for each neighbour, twice: then a point hears the second next.
        self.forder_trans, self.sorder_trans = (nn.ModuleList(nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 5, padding=2, groups=c), nn.Conv2d(c, c, 1)) for _ in points)
            for points in self.neighbors) for _ in range(2))
        self.loss_grid = LOSSES.build(loss_grid or dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=15))
        self.init_cfg = init_cfg or _INIT

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, x: torch.Tensor, plain: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (R, g, h, w) from features (R, C, ., .); and, if ``plain``, those of points that hear no neighbour."""
        points = self.convs(x).split(self.point_feat_channels, dim=1)
        first = self._heard(self.forder_trans, points, points)
        second = self._heard(self.sorder_trans, points, first)
        return self._heatmaps(second), self._heatmaps(points) if plain else None

    def _heard(self, layers: nn.ModuleList, own: Sequence[torch.Tensor],
               said: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features (R, c, ., .) of each point with what its neighbours say added."""
        return [sum((layer(said[i]) for layer, i in zip(of_point, around)), start=mine)
                for of_point, around, mine in zip(layers, self.neighbors, own)]

    def _heatmaps(self, points: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.deconv2(F.relu(self.norm1(self.deconv1(torch.cat(list(points), dim=1)))))

    def _regions(self) -> torch.Tensor:
        """The left upper pixel (g, 2), as x and y, of each heatmap in the map of the surrounding."""
        def start(place: int) -> int:
            if place in (0, self.grid_size - 1):
                return self.half_size if place else 0
            return max(int((place / (self.grid_size - 1) - 0.25) * self.map_size), 0)

        return torch.tensor([[start(i // self.grid_size), start(i % self.grid_size)] for i in range(self.grid_points)])

    def targets(self, boxes: torch.Tensor, gt_boxes: torch.Tensor, settings: GridTrainSettings) -> torch.Tensor:
        """Heatmaps (R, g, h, w) of zeros and ones that boxes (R, 4) should have given, matched to (R, 4).

        A box whose surrounding is hardly wider than the grid has nothing but zeros.
        """
        size = (boxes[:, 2:] - boxes[:, :2]) * 2                                         # (R, 2)
        corner = (boxes[:, :2] + boxes[:, 2:] - size) / 2
        place = torch.arange(self.grid_points, device=boxes.device)
        share = torch.stack([place // self.grid_size, place % self.grid_size], dim=1) / (self.grid_size - 1)  # (g, 2)
        points = gt_boxes[:, None, :2] * (1 - share) + gt_boxes[:, None, 2:] * share     # (R, g, 2)
        center = ((points - corner[:, None]) / size[:, None] * self.map_size).trunc()
        cells = torch.arange(self.half_size, device=boxes.device)
        cells = self.regions[:, None] + cells[None, :, None]               # (g, h, 2)
        off = (cells[None] - center[:, :, None]) ** 2                                    # (R, g, h, 2)
        near = off[..., None, :, 0] + off[..., :, None, 1] <= settings.pos_radius ** 2   # (R, g, h, w)
        large = (size > self.grid_size).all(dim=1)
        return (near & large[:, None, None, None]).float()

    def loss(self, fused: torch.Tensor, plain: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``loss_grid``, of both logits (R, g, h, w)."""
        return dict(loss_grid=sum(self.loss_grid(at_least_float32(one), targets) for one in (fused, plain)))

    @torch.no_grad()
    def predict(self, heatmaps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (N, 4) from logits (N, g, h, w) in the surroundings of boxes (N, 4).

        A side lies where its points do on the average, each weighed by its probability.
        """
        score, place = at_least_float32(heatmaps).sigmoid().flatten(2).max(dim=2)        # (N, g)
        cell = torch.stack([place % self.half_size, place // self.half_size], dim=2) + self.regions
        size = boxes[:, 2:] - boxes[:, :2]
        corner = (boxes[:, :2] + boxes[:, 2:]) / 2 - size
        points = (cell + 0.5) / self.half_size * size[:, None] + corner[:, None]         # (N, g, 2)
        grid = torch.cat([points, score[..., None]], dim=2).unflatten(1, (self.grid_size, self.grid_size))
        sides = [(grid[:, 0], 0), (grid[:, :, 0], 1), (grid[:, -1], 0), (grid[:, :, -1], 1)]
        return torch.stack([(own[..., axis] * own[..., 2]).sum(dim=1) / own[..., 2].sum(dim=1) for own, axis in sides],
                           dim=1)


def _neighbors(point: int, side: int) -> list[int]:
    """Left, above, below and right of a point, as far as they exist."""
    column, row = divmod(point, side)
    around = ((column - 1, row), (column, row - 1), (column, row + 1), (column + 1, row))
    return [x * side + y for x, y in around if 0 <= x < side and 0 <= y < side]


def _jittered(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (P, 4) moved and stretched at random."""
    shift, growth = (torch.rand_like(boxes) * (2 * _JITTER) - _JITTER).chunk(2, dim=1)
    size = boxes[:, 2:] - boxes[:, :2]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 + size * shift
    half = size * (1 + growth) / 2
    return torch.cat([center - half, center + half], dim=1)
