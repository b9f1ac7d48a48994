"""Boxes as what a head predicts: shifts and log scales relative to a proposal (Girshick et al. 2014, appendix C).

Letters: N boxes, K classes.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from boxdet.errors import ArgumentError, ConfigError
from boxdet.geometry.boxes import at_least_float32, clip_boxes
from boxdet.registry import BBOX_CODERS


@BBOX_CODERS.register_module()
class DeltaXYWHBBoxCoder:
    """(dx, dy, dw, dh): the centre's shift in widths and heights of the box, the logarithm of the size's growth.

    Args:
        target_means: four numbers that are subtracted from the deltas.
        target_stds: four numbers that the deltas are divided by then.
        clip_border: decoded boxes are clipped to the image, where its shape is given.
        add_ctr_clamp: limit the centre's shift to ``ctr_clamp`` pixels, and the growth only from above (YOLOF).

    Raises:
        ConfigError: means or deviations that are not four, or a deviation of zero.
    """

    def __init__(self, target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
                 target_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0), clip_border: bool = True,
                 add_ctr_clamp: bool = False, ctr_clamp: float = 32):
        self.means, self.stds = tuple(map(float, target_means)), tuple(map(float, target_stds))
        if len(self.means) != 4 or len(self.stds) != 4:
            raise ConfigError('DeltaXYWHBBoxCoder: target_means and target_stds are four numbers each')
        if not all(self.stds):
            raise ConfigError('DeltaXYWHBBoxCoder: a target_std of 0')
        self.clip_border = clip_border
        self.add_ctr_clamp = add_ctr_clamp
        self.ctr_clamp = ctr_clamp
        self._is_plain = self.means == (0.0,) * 4 and self.stds == (1.0,) * 4

    def encode(self, bboxes: torch.Tensor, gt_bboxes: torch.Tensor) -> torch.Tensor:
        """Deltas (N, 4) that move each of ``bboxes`` (N, 4) onto the same row of ``gt_bboxes`` (N, 4)."""
        bboxes, gt_bboxes = at_least_float32(bboxes), at_least_float32(gt_bboxes)
        center, size = (bboxes[:, :2] + bboxes[:, 2:]) * 0.5, bboxes[:, 2:] - bboxes[:, :2]
        gt_center, gt_size = (gt_bboxes[:, :2] + gt_bboxes[:, 2:]) * 0.5, gt_bboxes[:, 2:] - gt_bboxes[:, :2]
        deltas = torch.cat([(gt_center - center) / size, (gt_size / size).log()], dim=1)
        if self._is_plain:
            return deltas
        return torch.stack([(delta - mean) / std for delta, mean, std in zip(deltas.unbind(-1), self.means, self.stds)],
                           -1)

    def decode(self, bboxes: torch.Tensor, pred_bboxes: torch.Tensor,
               max_shape: Sequence[float] | torch.Tensor | None = None,
               wh_ratio_clip: float = 16 / 1000) -> torch.Tensor:
        """Move boxes by their deltas.

        Args:
            bboxes: (N, 4), or (B, N, 4) of several images.
            pred_bboxes: (N, 4) or (N, 4K), or (B, N, 4K).
            max_shape: (height, width, ...) of the image, for clipping; or a tensor (N, 2) of one for each box. Of
                several images one for all, or B of them.
            wh_ratio_clip: sizes grow at most by its inverse and shrink at most to it.

        Returns:
            boxes of the shape of ``pred_bboxes``.

        Raises:
            ValueError: shapes of another number of images.
        """
        if pred_bboxes.dim() == 3:
            sizes = [max_shape] * len(pred_bboxes)
            if max_shape is not None and _is_one_each(max_shape):
                sizes = [tuple(float(v) for v in shape[:2]) for shape in cast('Sequence[Sequence[float]]', max_shape)]
            if len(sizes) != len(pred_bboxes):
                raise ArgumentError(f'shapes of {len(sizes)} images for boxes of {len(pred_bboxes)}')
            found = [self.decode(*own, wh_ratio_clip) for own in zip(bboxes, pred_bboxes, sizes)]
            return torch.stack(found) if found else at_least_float32(pred_bboxes)
        deltas = at_least_float32(pred_bboxes).reshape(pred_bboxes.shape[0], pred_bboxes.shape[1] // 4, 4)  # (N, K, 4)
        if not self._is_plain:
            # By number: tensors of the four would be copied to the device, or shared between threads and streams.
            scaled = [delta * std + mean for delta, mean, std in zip(deltas.unbind(-1), self.means, self.stds)]
            deltas = torch.stack(scaled, dim=-1)
        bboxes = at_least_float32(bboxes)[:, None]  # (N, 1, 4)
        size = bboxes[..., 2:] - bboxes[..., :2]
        shift, growth = size * deltas[..., :2], deltas[..., 2:]
        limit = abs(math.log(wh_ratio_clip))
        if self.add_ctr_clamp:
            shift = shift.clamp(-self.ctr_clamp, self.ctr_clamp)
            growth = growth.clamp(max=limit)
        else:
            growth = growth.clamp(-limit, limit)
        center = (bboxes[..., :2] + bboxes[..., 2:]) * 0.5 + shift
        half = size * growth.exp() * 0.5
        first, second = center - half, center + half  # (N, K, 2) each
        if not (self.clip_border and max_shape is not None):
            return torch.cat([first, second], dim=-1).reshape(pred_bboxes.shape)
        if isinstance(max_shape, torch.Tensor) and max_shape.dim() == 1:
            max_shape = max_shape.tolist()
        if isinstance(max_shape, torch.Tensor):
            return clip_boxes(torch.cat([first, second], dim=-1), max_shape[:, None]).reshape(pred_bboxes.shape)
        height, width = max_shape[:2]
        corners = [first[..., 0].clamp(0, width), first[..., 1].clamp(0, height),
                   second[..., 0].clamp(0, width), second[..., 1].clamp(0, height)]
        return torch.stack(corners, dim=-1).reshape(pred_bboxes.shape)

    def __repr__(self) -> str:
        return f'DeltaXYWHBBoxCoder(target_means={self.means}, target_stds={self.stds}, clip_border={self.clip_border})'


def _is_one_each(max_shape: Sequence[float] | torch.Tensor) -> bool:
    """Whether it holds a shape for each of several images or boxes, and not one for all."""
    return max_shape.dim() > 1 if isinstance(max_shape, torch.Tensor) else hasattr(max_shape[0], '__len__')
