"""RoI poolings whose sampling points move: deformable RoI pooling, and cropping on a regular grid.

Letters: B images, C channels, H, W height and width of a feature map, R rois, h, w of the output, S sampling
points. A *roi* is a row (image of the batch, x0, y0, x1, y1) in network-input pixels.

torchvision's RoIAlign gives no gradient for the places where it samples. Here a sum over bilinear samples is a bag
of rows of the feature map, four for each point, with their weights: ``embedding_bag`` adds them up without ever
holding the samples, and its gradient for the weights leads to the points.
"""
from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torchvision.ops import roi_align

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.registry import LAYERS


def corners(x: torch.Tensor, y: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The four pixels around each point of one H x W map, and their bilinear weights.

    Args:
        x: (S,) in feature pixels, 0 being the centre of the first one.
        y: (S,) likewise.
        height: of the map.
        width: of the map.

    Returns:
        index (S, 4) into the H * W pixels, and weight (S, 4), 0 for pixels outside of the map.
    """
    left, top = x.detach().floor(), y.detach().floor()
    columns = torch.stack([left, left + 1, left, left + 1], dim=1)                       # (S, 4)
    rows = torch.stack([top, top, top + 1, top + 1], dim=1)
    weight = (1 - (x[:, None] - columns).abs()) * (1 - (y[:, None] - rows).abs())
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return index.long(), torch.where(inside, weight, 0.0)


def sum_of_samples(features: torch.Tensor, image: torch.Tensor, index: torch.Tensor, weight: torch.Tensor,
                   starts: torch.Tensor) -> torch.Tensor:
    """Add up weighted pixels of ``features`` (B, C, H, W) in bags of consecutive points.

    Args:
        features: (B, C, H, W).
        image: (S,) the image of each point.
        index: (S, 4) as ``corners`` gives it.
        weight: (S, 4) likewise.
        starts: the first point of each bag; a bag may be empty.

    Returns:
        (bags, C), with gradients for features and weights.
    """
    batch, channels, height, width = features.shape
    pixels = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    rows = image.long()[:, None] * (height * width) + index
    return F.embedding_bag(rows.flatten(), pixels, starts * 4, mode='sum', per_sample_weights=weight.flatten())


def deform_roi_pool(features: torch.Tensor, rois: torch.Tensor, offset: torch.Tensor | None,
                    output_size: tuple[int, int], spatial_scale: float = 1.0, sampling_ratio: int = 0,
                    gamma: float = 0.1) -> torch.Tensor:
    """RoIAlign whose bins each move by their own offset (Dai et al. 2017, section 2.2).

    Samples as ``RoIAlign`` with ``aligned=True`` does: up to one pixel outside of the map it takes the border, and
    zero beyond. Waits for the device once when ``sampling_ratio`` is 0, to learn how many points there are.

    Args:
        features: (B, C, H, W) float32 or float64.
        rois: (R, 5) of the same type; they get no gradient.
        offset: (R, 2, h, w): how far each bin moves to the right and down, as a share of the roi's width and height
            times ``gamma``; None: not at all.
        output_size: (h, w).
        spatial_scale: feature pixels a network-input pixel.
        sampling_ratio: points a bin and axis; 0 for as many as the bin has feature pixels.
        gamma: how far an offset of 1 moves a bin, as a share of the roi's size.

    Returns:
        (R, C, h, w).
    """
    if offset is None:
        return roi_align(features, rois, output_size, spatial_scale, sampling_ratio, aligned=True)
    (h, w), (height, width) = output_size, features.shape[2:]
    corner = rois[:, 1:3] * spatial_scale - 0.5                                          # (R, 2): x, y
    size = (rois[:, 3:5] - rois[:, 1:3]) * spatial_scale
    bins = torch.stack(torch.meshgrid(torch.arange(w, device=rois.device), torch.arange(h, device=rois.device),
                                      indexing='xy'), dim=-1)                            # (h, w, 2): x, y
    step = size / size.new_tensor([w, h])                                                # (R, 2) of a bin
    start = (corner[:, None, None] + bins * step[:, None, None]
             + gamma * size[:, None, None] * offset.permute(0, 2, 3, 1)).flatten(1, 2)   # (R, h * w, 2)
    points = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil().clamp(min=0)
    count = points.prod(dim=1).long()                                                    # (R,) points of a bin
    bag_size = count[:, None].expand(-1, h * w).flatten()                                # (R * h * w,)
    total = len(bag_size) * sampling_ratio ** 2 if sampling_ratio > 0 else None          # S; None: ask the device
    bag = torch.arange(len(bag_size), device=rois.device).repeat_interleave(bag_size, output_size=total)  # (S,)
    starts = bag_size.cumsum(0) - bag_size
    roi = bag // (h * w)
    number = torch.arange(len(bag), device=rois.device) - starts[bag]                    # which point of its bin
    across = points[roi, 0].long()
    place = torch.stack([number % across, number // across], dim=1) + 0.5
    xy = start.flatten(0, 1)[bag] + place * step[roi] / points[roi]                      # (S, 2)
    x, y = xy.unbind(dim=1)
    near = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    index, weight = corners(x.clamp(0, width - 1), y.clamp(0, height - 1), height, width)
    weight = torch.where(near[:, None], weight, 0.0)
    mean = sum_of_samples(features, rois[roi, 0], index, weight, starts) / bag_size.clamp(min=1)[:, None]
    return mean.view(len(rois), h, w, features.shape[1]).permute(0, 3, 1, 2)


def _fully_connected(inputs: int, hidden: int, layers: int, outputs: int) -> list[nn.Module]:
    """Linear layers with ReLU between them; the last starts at zero, so that nothing moves at first."""
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(inputs, hidden), nn.ReLU(inplace=True)]
        inputs = hidden
    last = nn.Linear(inputs, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return [*modules, last]


@LAYERS.register_module()
class DeformRoIPoolPack(nn.Module):
    """Deformable RoI pooling with the layers that say how each bin moves (Dai et al. 2017, section 2.2).

    Args:
        output_size: side of the output, or (h, w).
        output_channels: C of the features.
        deform_fc_channels: width of the layers.
        spatial_scale: as in ``deform_roi_pool``.
        sampling_ratio: as in ``deform_roi_pool``.
        gamma: as in ``deform_roi_pool``.
    """

    def __init__(self, output_size: int | tuple[int, int], output_channels: int, deform_fc_channels: int = 1024,
                 spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1):
        super().__init__()
        self.output_size = _pair(output_size)
        self.output_channels, self.deform_fc_channels = output_channels, deform_fc_channels
        self.spatial_scale, self.sampling_ratio = float(spatial_scale), int(sampling_ratio)
        self.gamma = float(gamma)
        bins = self.output_size[0] * self.output_size[1]
        self.offset_fc = nn.Sequential(*_fully_connected(bins * output_channels, deform_fc_channels, 2, bins * 2))

    def pool(self, features: torch.Tensor, rois: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        """``deform_roi_pool`` in float32 at least: a box in half precision would be off by pixels."""
        features = at_least_float32(features)
        offset = None if offset is None else offset.to(features.dtype)
        return deform_roi_pool(features, rois.to(features.dtype), offset, self.output_size, self.spatial_scale,
                               self.sampling_ratio, self.gamma)

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool ``features`` (B, C, H, W) over ``rois`` (R, 5) to (R, C, h, w).

        Raises:
            ConfigError: the features have not ``output_channels`` channels.
        """
        if features.shape[1] != self.output_channels:
            raise ConfigError(f'{type(self).__name__}: output_channels={self.output_channels}, but the features '
                              f'have {features.shape[1]} channels')
        still = self.pool(features, rois, None).flatten(1).to(features.dtype)            # (R, C * h * w)
        offset = self.offset_fc(still).view(-1, 2, *self.output_size)
        return (self.pool(features, rois, offset) * self.modulation(still)).to(features.dtype)

    def modulation(self, still: torch.Tensor) -> torch.Tensor | float:
        """What each bin of the result is multiplied by, from the features pooled without moving."""
        return 1.0

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (f'output_size={self.output_size}, spatial_scale={self.spatial_scale}, '
                f'sampling_ratio={self.sampling_ratio}, gamma={self.gamma}')


@LAYERS.register_module()
class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """The same with a weight in [0, 1] for each bin (Zhu et al. 2019, section 3.2); arguments as there."""

    def __init__(self, output_size: int | tuple[int, int], output_channels: int, deform_fc_channels: int = 1024,
                 spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1):
        super().__init__(output_size, output_channels, deform_fc_channels, spatial_scale, sampling_ratio, gamma)
        bins = self.output_size[0] * self.output_size[1]
        self.mask_fc = nn.Sequential(
            *_fully_connected(bins * output_channels, deform_fc_channels, 1, bins), nn.Sigmoid())

    def modulation(self, still: torch.Tensor) -> torch.Tensor:
        """(R, 1, h, w)."""
        return self.mask_fc(still).view(-1, 1, *self.output_size)


@LAYERS.register_module()
class RoICrop(nn.Module):
    """Crop and resize by bilinear samples on a regular grid from corner to corner: Detectron.pytorch's RoICrop.

    The first and the last point of a row lie on the roi's edges, pixel 0's centre being at 0, and pixels outside of
    the map count as zero: ``affine_grid`` and ``grid_sample`` with ``align_corners=True``.

    Args:
        output_size: side of the output, or (h, w).
        spatial_scale: feature pixels a network-input pixel.
        max_pool: sample twice as many points a side, and keep the largest of each 2 x 2 (CROP_RESIZE_WITH_MAX_POOL
            there, as Chen and Gupta 2017, section 3.2).
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0, max_pool: bool = True):
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)
        self.max_pool = bool(max_pool)

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool ``features`` (B, C, H, W) over ``rois`` (R, 5) to (R, C, h, w)."""
        h, w = (side * (2 if self.max_pool else 1) for side in self.output_size)
        wide = at_least_float32(features)
        boxes = rois[:, 1:].to(wide.dtype) * self.spatial_scale
        x = _between(boxes[:, 0], boxes[:, 2], w)[:, None].expand(-1, h, -1)              # (R, h, w)
        y = _between(boxes[:, 1], boxes[:, 3], h)[:, :, None].expand(-1, -1, w)
        index, weight = corners(x.flatten(), y.flatten(), *features.shape[2:])
        starts = torch.arange(x.numel(), device=rois.device)  # every point is a bag of its own
        image = rois[:, :1].expand(-1, h * w).flatten()
        sampled = sum_of_samples(wide, image, index, weight, starts)          # (R * h * w, C)
        sampled = sampled.view(len(rois), h, w, features.shape[1]).permute(0, 3, 1, 2).to(features.dtype)
        return F.max_pool2d(sampled, 2) if self.max_pool else sampled

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f'output_size={self.output_size}, spatial_scale={self.spatial_scale}, max_pool={self.max_pool}'


def _between(first: torch.Tensor, last: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` numbers from first (R,) to last (R,), both included: (R, count)."""
    middle = first.new_full((1,), 0.5)
    share = torch.linspace(0, 1, count, dtype=first.dtype, device=first.device) if count > 1 else middle
    return first[:, None] + (last - first)[:, None] * share
