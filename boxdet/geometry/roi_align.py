"""RoIAlign as sums of rows: on the CPU many times faster than going through a feature map channel by channel.

A feature map in channels-last memory is a table of pixels, one row of C channels each. A bin of a roi is a weighted sum
of a few rows (the pixels around its sampling points), and such sums are what ``embedding_bag`` computes, at full vector
width, for half precision too. The weights are products of one weight vector an axis. The gradient of a pixel is
likewise a weighted sum of rows: of the gradients of the bins that read it. No number is added to a place that others
add to at the same time, so that the result is the same in every run, on a GPU too.

Letters: B images, R rois, r some of them, C channels, H, W of the map, h, w of the output, n bins of an axis, g
sampling points a bin and axis, m pixels a bin and axis that have a weight, P pairs of a bin and a pixel that it reads.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from boxdet.geometry.boxes import at_least_float32

# Weights and row numbers are made for this many pairs of bin and pixel at a time: some ten megabytes.
_PAIRS_AT_ONCE = 1 << 20


def roi_align_rows(features: torch.Tensor, rois: torch.Tensor, output_hw: tuple[int, int], scale: float,
                   sampling_ratio: int, aligned: bool) -> torch.Tensor:
    """Torchvision's ``roi_align``, with a gradient for the features; rois have none there either.

    Args:
        features: (B, C, H, W), best in channels-last memory; any floating type.
        rois: (R, 5) image, x0, y0, x1, y1 in input pixels.
        output_hw: h and w.
        scale: feature pixels an input pixel.
        sampling_ratio: g; 0 for as many as the bin has feature pixels.
        aligned: shift by half a feature pixel.

    Returns:
        (R, C, h, w) of the type of ``features``, in channels-last memory.
    """
    place = torch.arange(len(rois), device=rois.device)
    return roi_align_levels([features], rois, [place], output_hw, [scale], sampling_ratio, aligned)


def roi_align_levels(features: Sequence[torch.Tensor], rois: torch.Tensor, places: Sequence[torch.Tensor],
                     output_hw: tuple[int, int], scales: Sequence[float], sampling_ratio: int,
                     aligned: bool) -> torch.Tensor:
    """``roi_align_rows`` with a feature map of its own for each roi; what is pooled is written where it belongs.

    Args:
        features: L maps (B, C, H, W).
        rois: as in ``roi_align_rows``.
        places: of each level, which rois are pooled from it; each roi is in one of them.
        output_hw: as in ``roi_align_rows``.
        scales: of each level.
        sampling_ratio: as in ``roi_align_rows``.
        aligned: as in ``roi_align_rows``.

    Returns:
        as ``roi_align_rows``.
    """
    rois = rois.detach()
    bins = [_Bins(rois, place, level.shape, output_hw, scale, sampling_ratio, aligned)
            for level, place, scale in zip(features, places, scales)]
    if torch.is_grad_enabled() and any(level.requires_grad for level in features):
        return _RoIAlignRows.apply(bins, len(rois), *features)
    return _pooled(features, bins, len(rois))[0]


class _Bins:
    """Which pixels of a map the bins of its rois read, and with which weights; arguments as in ``roi_align_rows``.

    Args:
        place: (r,) which of the rois.
        shape: B, C, H, W of the map.
    """

    def __init__(self, rois: torch.Tensor, place: torch.Tensor, shape: torch.Size, output_hw: tuple[int, int],
                 scale: float, sampling_ratio: int, aligned: bool):
        _, _, self.height, self.width = shape
        rois, self.place, self.output_hw, self.ratio = rois[place], place, output_hw, sampling_ratio
        shift = 0.5 if aligned else 0.0
        self.start = at_least_float32(rois[:, 1:3]) * scale - shift                              # (r, 2) x, y
        extent = at_least_float32(rois[:, 3:5]) * scale - shift - self.start
        self.extent = extent if aligned else extent.clamp(min=1)
        self.base = rois[:, 0].int() * (self.height * self.width)

    def parts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Some rois at a time: their places (r,), and of their bins the pixels and weights, (r * h * w, m * m) each."""
        rows, columns = self.output_hw
        merged = self.ratio <= 0
        for part, points in _parts(self.extent, self.output_hw, self.ratio):
            start, extent = self.start[part], self.extent[part]
            x, wx = _axis(start[:, 0], extent[:, 0], columns, points[:, 0], self.width, merged)
            y, wy = _axis(start[:, 1], extent[:, 1], rows, points[:, 1], self.height, merged)
            index = self.base[part, None, None, None, None]
            index = index + y[:, :, None, :, None] * self.width + x[:, None, :, None, :]         # (r, h, w, m, m)
            weight = wy[:, :, None, :, None] * wx[:, None, :, None, :]
            bins = len(part) * rows * columns
            yield self.place[part], index.reshape(bins, -1), weight.reshape(bins, -1)


def _pooled(features: Sequence[torch.Tensor], bins: Sequence[_Bins], count: int,
            keep: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The ``count`` results, and with ``keep`` pixels, bins and weights (P,) of the pairs of each level in turn."""
    channels, (rows, columns) = features[0].shape[1], bins[0].output_hw
    out = features[0].new_empty(count, rows * columns, channels)
    cells = torch.arange(rows * columns, dtype=torch.int32, device=out.device)
    kept: list[torch.Tensor] = []
    for level, some in zip(features, bins):
        table, pairs = _as_table(level), [(cells[:0], cells[:0], some.extent.new_empty(0))]
        for place, index, weight in some.parts():
            out[place] = F.embedding_bag(index, table, mode='sum', per_sample_weights=weight.to(table.dtype)
                                         ).view(len(place), -1, channels)
            if keep:
                read = weight != 0
                own = (place.int()[:, None] * (rows * columns) + cells).view(-1, 1).expand_as(index)
                pairs.append((index[read], own[read], weight[read]))
        kept += [torch.cat(parts) for parts in zip(*pairs)]
    return out.view(count, rows, columns, channels).permute(0, 3, 1, 2), kept


def _as_table(features: torch.Tensor) -> torch.Tensor:
    """Maps (B, C, H, W) as rows (B * H * W, C)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


class _RoIAlignRows(torch.autograd.Function):
    """The pooling with its gradient."""

    @staticmethod
    def forward(ctx: Any, bins: Sequence[_Bins], count: int, *features: torch.Tensor) -> torch.Tensor:
        out, pairs = _pooled(features, bins, count, keep=True)
        ctx.save_for_backward(*pairs)
        ctx.shapes = [level.shape for level in features]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wide = at_least_float32(_as_table(grad))                                                 # (R * h * w, C)
        pixels, bins, weights = (ctx.saved_tensors[i::3] for i in range(3))
        grads: list[torch.Tensor] = []
        for (batch, channels, height, width), pixel, own, weight in zip(ctx.shapes, pixels, bins, weights):
            if not len(pixel):
                grads.append(grad.new_zeros(batch, height, width, channels).permute(0, 3, 1, 2))
                continue
            pixel, order = pixel.sort(stable=True)
            every = torch.arange(batch * height * width, dtype=pixel.dtype, device=pixel.device)
            ends = torch.searchsorted(pixel, every)
            sums = F.embedding_bag(own[order], wide, ends.to(own.dtype), mode='sum',
                                   per_sample_weights=weight[order].to(wide.dtype))
            grads.append(sums.to(grad.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2))
        return None, None, *grads


def _parts(extent: torch.Tensor, output_hw: tuple[int, int],
           sampling_ratio: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rois that need about as many sampling points together: their places (r,), and g (r, 2) along x and y."""
    bins = output_hw[0] * output_hw[1]
    if not len(extent):
        return
    if sampling_ratio > 0:
        points = torch.full_like(extent, sampling_ratio, dtype=torch.int64)
        at_once = max(_PAIRS_AT_ONCE // (bins * 4 * sampling_ratio ** 2), 1)
        for part in torch.arange(len(extent), device=extent.device).split(at_once):
            yield part, points[part]
        return
    points = (extent / extent.new_tensor([output_hw[1], output_hw[0]])).ceil().clamp(min=0).long()
    # Few groups, and little work for points that a roi of the group does not have: sizes are taken two by two.
    kind = (points[:, 0] + 1) // 2 + ((points[:, 1] + 1) // 2 << 20)
    order = kind.argsort(stable=True)
    for members in order.split(kind.unique(return_counts=True)[1].tolist()):
        pairs = bins * int((points[members].amax(dim=0) + 1).prod())
        for part in members.split(max(_PAIRS_AT_ONCE // pairs, 1)):
            yield part, points[part]


def _axis(start: torch.Tensor, extent: torch.Tensor, bins: int, points: torch.Tensor, cells: int,
          merged: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels of an axis the bins of r rois read: their numbers (r, n, m) int32 and weights (r, n, m).

    Args:
        start: (r,) where the rois begin, in pixels of the axis.
        extent: (r,) their size.
        bins: n.
        points: (r,) g.
        cells: pixels of the axis.
        merged: the points of a bin are at most a pixel apart, so that they share pixels.
    """
    most, device = int(points.max()), start.device
    step = (extent / bins)[:, None, None]
    each, count = torch.arange(most, device=device), points.clamp(min=1)[:, None, None]
    at = (start[:, None, None] + torch.arange(bins, device=device)[:, None] * step) + (each + 0.5) * step / count
    inside = (at >= -1) & (at <= cells) & (each < points[:, None, None])                         # (r, n, g)
    at = at.clamp(min=0)
    low = at.floor().clamp(max=cells - 1)
    fraction = torch.where(low < cells - 1, at - low, 0.0)
    share = inside.to(at.dtype) / count                                                          # (r, n, g)
    below, above, low = share * (1 - fraction), share * fraction, low.int()
    if not merged:
        index = torch.stack([low, (low + 1).clamp(max=cells - 1)], dim=-1)
        return index.flatten(2), torch.stack([below, above], dim=-1).flatten(2)
    first = low[..., :1] if most else low.new_zeros(*low.shape[:2], 1)                           # (r, n, 1)
    weight = below.new_zeros(*low.shape[:2], most + 1)
    # Points that a roi does not have, of weight 0, may lie far beyond its bin.
    slot = (low - first).clamp(max=max(most - 1, 0)).long()
    weight.scatter_add_(2, slot, below).scatter_add_(2, slot + 1, above)
    return (first + torch.arange(most + 1, dtype=torch.int32, device=device)).clamp(max=cells - 1), weight
