"""Boxes as numbers: xyxy, absolute, continuous coordinates; the width is x2 - x1, there is no "+1".

Letters: N, M boxes; leading dimensions of any number are written ``...``.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from boxdet.errors import ArgumentError

FLIP_DIRECTIONS = ('horizontal', 'vertical', 'diagonal')


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32; float32 and float64 as they are.

    Boxes, scores and losses are computed so: a box in half precision is off by pixels, and a float64 model is one whose
    every digit counts.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """Areas (...,) of boxes (..., 4); a box whose corners are swapped in one direction has a negative one."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_overlaps(boxes1: torch.Tensor, boxes2: torch.Tensor, mode: str = 'iou', is_aligned: bool = False,
                 eps: float = 1e-6) -> torch.Tensor:
    """Overlap of boxes (N, 4) with boxes (M, 4), differentiable.

    Args:
        boxes1: (N, 4).
        boxes2: (M, 4); M = N when ``is_aligned``.
        mode: ``iou``, intersection over union; ``iof``, over the area of ``boxes1`` (its foreground); ``giou``,
            generalised IoU in [-1, 1] (Rezatofighi et al. 2019).
        is_aligned: compare row by row and not every pair.
        eps: areas that are divided by are at least this, in square pixels.

    Returns:
        (N, M), or (N,) when aligned.

    Raises:
        ValueError: an unknown mode, or aligned boxes of different lengths.
    """
    if mode not in ('iou', 'iof', 'giou'):
        raise ArgumentError(f"overlap mode is 'iou', 'iof' or 'giou', not '{mode}'")
    if is_aligned and boxes1.shape != boxes2.shape:
        raise ArgumentError(f'aligned boxes of different shapes: {tuple(boxes1.shape)} and {tuple(boxes2.shape)}')
    if not is_aligned:
        boxes1, boxes2 = boxes1[:, None], boxes2[None]                # (N, 1, 4), (1, M, 4)
    first, second = boxes1.unbind(-1), boxes2.unbind(-1)
    # Width and height apart: two matrices (N, M) at a time, where stacked corners would take four.
    inter = _extent(first, second, 0) * _extent(first, second, 1)
    area = box_area(boxes1)
    union = (area if mode == 'iof' else (area + box_area(boxes2)).sub_(inter)).clamp(min=eps)
    if mode != 'giou':
        return inter / union
    width = torch.maximum(first[2], second[2]) - torch.minimum(first[0], second[0])
    height = torch.maximum(first[3], second[3]) - torch.minimum(first[1], second[1])
    hull = (width.clamp_(min=0) * height.clamp_(min=0)).clamp(min=eps)
    return inter / union - (hull - union) / hull


def _extent(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Length of the intersection along x (axis 0) or y (axis 1)."""
    end = torch.minimum(first[axis + 2], second[axis + 2])
    return end.sub_(torch.maximum(first[axis], second[axis])).clamp_(min=0)


def clip_boxes(boxes: torch.Tensor, image_hw: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """Move the corners of boxes (..., 4) into an image of (height, width, ...), or each into its own image (..., 2)."""
    if isinstance(image_hw, torch.Tensor):
        limits = image_hw.flip(-1).to(boxes.dtype)                                       # (..., 2) width, height
        return boxes.clamp(min=0).minimum(torch.cat([limits, limits], dim=-1))
    height, width = image_hw[:2]
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)


def flip_boxes(boxes: torch.Tensor, image_hw: Sequence[int], direction: str = 'horizontal') -> torch.Tensor:
    """Mirror boxes (..., 4) with their image of (height, width, ...); twice gives the boxes back.

    Columns beyond the first four are taken as the further boxes of (..., 4K).

    Raises:
        ValueError: the direction is none of horizontal, vertical, diagonal (both).
    """
    if direction not in FLIP_DIRECTIONS:
        raise ArgumentError(f"flip direction is one of {', '.join(FLIP_DIRECTIONS)}, not '{direction}'")
    height, width = image_hw[:2]
    x1, y1, x2, y2 = boxes.reshape(*boxes.shape[:-1], boxes.shape[-1] // 4, 4).unbind(-1)      # (..., K) each
    if direction != 'vertical':
        x1, x2 = width - x2, width - x1
    if direction != 'horizontal':
        y1, y2 = height - y2, height - y1
    return torch.stack([x1, y1, x2, y2], dim=-1).reshape(boxes.shape)


def scale_boxes(boxes: torch.Tensor, factor: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
    """Multiply boxes (..., 4K) by one number, (x, y), or (x, y, x, y)."""
    if isinstance(factor, (int, float)):
        return boxes * factor
    factor = torch.as_tensor(factor, dtype=boxes.dtype, device=boxes.device).flatten()
    return boxes * factor.repeat(boxes.shape[-1] // len(factor))


def xyxy_to_xywh(boxes: torch.Tensor) -> torch.Tensor:
    """Corners (..., 4) to left, top, width, height, as COCO files hold them."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def xywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """Left, top, width, height (..., 4) to corners."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def xyxy_to_cxcywh(boxes: torch.Tensor) -> torch.Tensor:
    """Corners (..., 4) to centre x, centre y, width, height."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """Centre x, centre y, width, height (..., 4) to corners."""
    half = boxes[..., 2:] * 0.5
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)
