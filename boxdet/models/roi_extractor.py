"""From feature maps and boxes to fixed-size features.

Letters: B images, L levels, R rois of the batch, C channels, H, W height and width of a feature map, h, w of
the output. A *roi* is a row (image of the batch, x0, y0, x1, y1) in network-input pixels.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.modules.utils import _pair
from torchvision.ops import roi_align, roi_pool

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.roi_align import roi_align_levels, roi_align_rows
from boxdet.models.initialization import InitCfg
from boxdet.registry import LAYERS, ROI_EXTRACTORS

_ROIS_AT_ONCE = 128  # pooled features that wait to be put in order: 6 MB of 7x7 bins and 256 channels


def boxes_to_rois(boxes: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Join the boxes of B images, each (N, 4), or one tensor (B, N, 4) of them, to rois (R, 5), images in order."""
    if isinstance(boxes, torch.Tensor):
        images = torch.arange(boxes.shape[0], device=boxes.device).to(boxes.dtype)[:, None, None]
        return torch.cat([images.expand(-1, boxes.shape[1], 1), boxes], dim=2).flatten(0, 1)
    owners = [b.new_full((len(b), 1), i) for i, b in enumerate(boxes)]
    return torch.cat([torch.cat(owners), torch.cat(list(boxes))], dim=1)


def rescale_rois(rois: torch.Tensor, factor: float) -> torch.Tensor:
    """Enlarge rois (R, 5) ``factor`` times about their centres."""
    centre = (rois[:, 1:3] + rois[:, 3:5]) / 2
    half = (rois[:, 3:5] - rois[:, 1:3]) * (factor / 2)
    return torch.cat([rois[:, :1], centre - half, centre + half], dim=1)


@LAYERS.register_module()
class RoIAlign(nn.Module):
    """RoIAlign (He et al. 2017, section 3).

    Args:
        output_size: side of the output, or (h, w).
        spatial_scale: feature pixels a network-input pixel.
        sampling_ratio: points a bin and axis; 0 for as many as the bin has feature pixels.
        pool_mode: 'avg'; torchvision has no other.
        aligned: shift by half a feature pixel; False is the way of the old Detectron.
        use_torchvision: always torchvision's operator, and not, on the CPU or where algorithms are to be deterministic,
            the way of ``geometry.roi_align``; the numbers are the same up to rounding.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0,
                 sampling_ratio: int = 0, pool_mode: str = 'avg', aligned: bool = True,
                 use_torchvision: bool = False):
        super().__init__()
        if pool_mode != 'avg':
            raise ConfigError(f"RoIAlign: pool_mode is '{pool_mode}'; only 'avg' exists here")
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.aligned = aligned
        self.use_torchvision = use_torchvision

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool ``features`` (B, C, H, W) over ``rois`` (R, 5) to (R, C, h, w)."""
        rois = _forward(rois)
        if self.by_rows(features.device):
            return roi_align_rows(features, rois, self.output_size, self.spatial_scale, self.sampling_ratio,
                                  self.aligned)
        return _in_one_type(features, rois, lambda x, r: roi_align(
            x, r, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned))

    def by_rows(self, device: torch.device) -> bool:
        """Whether features on ``device`` are pooled in the way of ``geometry.roi_align``."""
        # On a GPU torchvision's deterministic way has gradients that are no numbers for rois without area.
        return not self.use_torchvision and (device.type == 'cpu' or torch.are_deterministic_algorithms_enabled())

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (f'output_size={self.output_size}, spatial_scale={self.spatial_scale}, '
                f'sampling_ratio={self.sampling_ratio}, aligned={self.aligned}')


@LAYERS.register_module()
class RoIPool(nn.Module):
    """RoIPool (Girshick 2015, section 2.1) by torchvision; arguments as in ``RoIAlign``."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0):
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool ``features`` (B, C, H, W) over ``rois`` (R, 5) to (R, C, h, w)."""
        return _in_one_type(features, _forward(rois), lambda x, r: roi_pool(x, r, self.output_size, self.spatial_scale))

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f'output_size={self.output_size}, spatial_scale={self.spatial_scale}'


def _forward(rois: torch.Tensor) -> torch.Tensor:
    """Rois (R, 5) of which those that end before they begin, as a file of proposals may hold, have no area instead."""
    return torch.cat([rois[:, :3], torch.maximum(rois[:, 1:3], rois[:, 3:5])], dim=1)


def _in_one_type(features: torch.Tensor, rois: torch.Tensor, pool: Callable) -> torch.Tensor:
    # The operators want one type for both; a box in bfloat16 would be off by pixels, so the narrower one gives way.
    kind = torch.promote_types(at_least_float32(features).dtype, at_least_float32(rois).dtype)
    return pool(features.to(kind), rois.to(kind)).to(features.dtype)


@ROI_EXTRACTORS.register_module()
class SingleRoIExtractor(nn.Module):
    """Pool each roi from one level, chosen by its size (Lin et al. 2017, eq. 1).

    A GPU would have to be asked which rois fall on a level, so there every level pools all rois (``pool_masked``); the
    CPU pools each from its own. ``pools_every_level`` = True or False chooses one of the ways, for a graph of fixed
    sizes, say. What the CPU has pooled is contiguous, as linear layers read it; ``for_convolutions`` = True leaves it
    in channels-last memory where the feature maps are.

    Args:
        roi_layer: config of the pooling layer; one is made for each level.
        out_channels: C.
        featmap_strides: L strides of the levels, network-input pixels a feature pixel.
        finest_scale: rois whose side is below twice this go to level 0, below four times to level 1, ...
        init_cfg: initial weights, for a ``roi_layer`` that has any.
    """

    def __init__(self, roi_layer: dict, out_channels: int, featmap_strides: Sequence[int],
                 finest_scale: int = 56, init_cfg: InitCfg = None):
        super().__init__()
        self.roi_layers = _layers_by_stride(roi_layer, featmap_strides)
        self.out_channels = out_channels
        self.featmap_strides = tuple(featmap_strides)
        self.finest_scale = finest_scale
        self.pools_every_level: bool | None = None
        self.for_convolutions = False
        self.init_cfg = init_cfg

    @property
    def num_inputs(self) -> int:
        """L, the levels used: the first of those that the neck gives."""
        return len(self.featmap_strides)

    def map_roi_levels(self, rois: torch.Tensor, num_levels: int) -> torch.Tensor:
        """The level of each roi, (R,) int64 in [0, num_levels)."""
        side = ((rois[:, 3] - rois[:, 1]).clamp(min=0) * (rois[:, 4] - rois[:, 2]).clamp(min=0)).sqrt()
        levels = torch.floor(torch.log2(side / self.finest_scale + 1e-6))
        return levels.clamp(min=0, max=num_levels - 1).long()

    def forward(self, feats: Sequence[torch.Tensor], rois: torch.Tensor,
                roi_scale_factor: float | None = None) -> torch.Tensor:
        """Pool.

        Args:
            feats: L feature maps (B, C, H, W), or more, of which the first L are used.
            rois: (R, 5).
            roi_scale_factor: enlarge the rois so many times first; the level is that of the roi as it was.

        Returns:
            (R, C, h, w). Every level is connected to it in the graph, also one that no roi falls on.
        """
        feats = feats[:self.num_inputs]
        levels = self.map_roi_levels(rois, len(feats)) if len(feats) > 1 else None
        if roi_scale_factor is not None:
            rois = rescale_rois(rois, roi_scale_factor)
        if levels is None:
            return self.roi_layers[0](feats[0], rois)
        every = rois.device.type != 'cpu' if self.pools_every_level is None else self.pools_every_level
        if every:
            return pool_masked(self.roi_layers, feats, rois, levels)
        pooled = pool_sorted(self.roi_layers, feats, rois, levels)
        as_it_is = self.for_convolutions and feats[0].is_contiguous(memory_format=torch.channels_last)
        return pooled if as_it_is else pooled.contiguous()


def pool_sorted(layers: Sequence[nn.Module] | nn.ModuleList, feats: Sequence[torch.Tensor], rois: torch.Tensor,
                levels: torch.Tensor) -> torch.Tensor:
    """Pool each roi from its level: sort by level, pool each stretch, put back in order. Waits for the device once."""
    order = levels.argsort(stable=True)
    counts = torch.bincount(levels, minlength=len(feats)).tolist()
    if not torch.is_grad_enabled() and len(rois) > _ROIS_AT_ONCE:
        return _pool_in_parts(layers, feats, rois, order.split(counts))
    layer = _the_same(layers, feats)
    if layer is not None:
        scales = [cast(RoIAlign, one).spatial_scale for one in layers]
        return roi_align_levels(feats, _forward(rois), order.split(counts), layer.output_size, scales,
                                layer.sampling_ratio, layer.aligned)
    parts = [layer(feat, part) for layer, feat, part in zip(layers, feats, rois[order].split(counts))]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return torch.cat(parts).index_select(0, place)


def _the_same(layers: Sequence[nn.Module] | nn.ModuleList, feats: Sequence[torch.Tensor]) -> RoIAlign | None:
    """The first of the layers, where all are RoIAligns as they are written here: one call serves their levels."""
    first, settings = layers[0], set()
    for layer, feat in zip(layers, feats):
        if type(layer) is not RoIAlign or not layer.by_rows(feat.device) \
                or layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            return None
        settings.add((layer.output_size, layer.sampling_ratio, layer.aligned))
    return cast(RoIAlign, first) if len(settings) == 1 else None


def _pool_in_parts(layers: Iterable[nn.Module], feats: Sequence[torch.Tensor], rois: torch.Tensor,
                   places: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pool the rois at ``places[l]`` from level l, some at a time: what is not yet in its place stays small.

    Without gradients, which would hold on to every part.
    """
    out: torch.Tensor | None = None
    for layer, feat, here in zip(layers, feats, places):
        for some in here.split(_ROIS_AT_ONCE):
            if not len(some):
                continue
            part = layer(feat, rois[some])
            if out is None:
                out = part.new_empty(len(rois), *part.shape[1:])
            out[some] = part
    assert out is not None  # there are rois
    return out


def pool_masked(layers: Iterable[nn.Module], feats: Sequence[torch.Tensor], rois: torch.Tensor,
                levels: torch.Tensor) -> torch.Tensor:
    """The same without waiting for the device: every level pools all rois, each roi takes what its own level gives."""
    # Rois of other levels are replaced by one pixel, which costs little to pool.
    elsewhere = torch.cat([rois[:, :1], rois.new_zeros(rois.shape[0], 2), rois.new_ones(rois.shape[0], 2)], dim=1)
    out: torch.Tensor | None = None
    for level, (layer, feat) in enumerate(zip(layers, feats)):
        here = levels == level
        pooled = layer(feat, torch.where(here[:, None], rois, elsewhere))
        out = pooled if out is None else torch.where(here[:, None, None, None], pooled, out)
    assert out is not None  # there are levels
    return out


@ROI_EXTRACTORS.register_module()
class GenericRoIExtractor(nn.Module):
    """Pool each roi from every level and join the results (Rossi et al. 2021, GRoIE).

    Args:
        aggregation: 'sum' adds the levels' features, 'concat' joins their channels.
        pre_cfg: config of a layer before the joining; none by default.
        post_cfg: config of a layer after it; none by default.
        roi_layer: as in ``SingleRoIExtractor``.
        out_channels: as in ``SingleRoIExtractor``.
        featmap_strides: as in ``SingleRoIExtractor``.
        init_cfg: as in ``SingleRoIExtractor``.
    """

    def __init__(self, roi_layer: dict, out_channels: int, featmap_strides: Sequence[int],
                 aggregation: str = 'sum', pre_cfg: dict | None = None, post_cfg: dict | None = None,
                 init_cfg: InitCfg = None):
        super().__init__()
        if aggregation not in ('sum', 'concat'):
            raise ConfigError(f"GenericRoIExtractor: aggregation is '{aggregation}'; it is 'sum' or 'concat'")
        self.roi_layers = _layers_by_stride(roi_layer, featmap_strides)
        self.out_channels = out_channels
        self.featmap_strides = tuple(featmap_strides)
        self.aggregation = aggregation
        self.pre_module = None if pre_cfg is None else LAYERS.build(pre_cfg)
        self.post_module = None if post_cfg is None else LAYERS.build(post_cfg)
        self.init_cfg = init_cfg

    @property
    def num_inputs(self) -> int:
        """L, the levels used."""
        return len(self.featmap_strides)

    def forward(self, feats: Sequence[torch.Tensor], rois: torch.Tensor,
                roi_scale_factor: float | None = None) -> torch.Tensor:
        """As ``SingleRoIExtractor.forward``; (R, C, h, w), or (R, L * C, h, w) for 'concat' without ``post_cfg``."""
        if roi_scale_factor is not None:
            rois = rescale_rois(rois, roi_scale_factor)
        pooled = [layer(feat, rois) for layer, feat in zip(self.roi_layers, feats)]
        if self.pre_module is not None:
            pooled = [self.pre_module(p) for p in pooled]
        concat = self.aggregation == 'concat'
        joined = torch.cat(pooled, dim=1) if concat else sum(pooled[1:], start=pooled[0])
        return joined if self.post_module is None else self.post_module(joined)


def _layers_by_stride(roi_layer: dict, featmap_strides: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(LAYERS.build(roi_layer, spatial_scale=1 / stride) for stride in featmap_strides)
