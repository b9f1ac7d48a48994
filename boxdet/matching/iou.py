"""Overlap of boxes as a registered object, so that a config can choose it."""
from __future__ import annotations

import torch

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32, box_overlaps
from boxdet.registry import IOU_CALCULATORS


@IOU_CALCULATORS.register_module()
class BboxOverlaps2D:
    """IoU, IoF or GIoU of boxes.

    Args:
        scale: in half precision boxes are divided by this first, since areas above 65504 have no float16.
        dtype: ``'fp16'`` computes in half precision; None as the boxes come, in float32 at least.

    Raises:
        ConfigError: another dtype.
    """

    def __init__(self, scale: float = 1.0, dtype: str | None = None):
        if dtype not in (None, 'fp16'):
            raise ConfigError(f"BboxOverlaps2D: dtype is None or 'fp16', not '{dtype}'")
        self.scale = scale
        self.dtype = dtype

    def __call__(self, bboxes1: torch.Tensor, bboxes2: torch.Tensor, mode: str = 'iou',
                 is_aligned: bool = False) -> torch.Tensor:
        """Overlap (N, M) of boxes (N, 4) and (M, 4), or (N,) when aligned; a fifth column (a score) is left out.

        Raises:
            ValueError: an unknown mode, or aligned boxes of different lengths.
        """
        first, second = self._prepare(bboxes1), self._prepare(bboxes2)
        overlaps = box_overlaps(first, second, mode, is_aligned)
        # Half precision saves memory on GPUs; on the CPU what follows has no fast half arithmetic.
        return overlaps.float() if self.dtype == 'fp16' and not overlaps.is_cuda else overlaps

    def _prepare(self, boxes: torch.Tensor) -> torch.Tensor:
        boxes = boxes[..., :4]
        if self.dtype == 'fp16':
            return (boxes / self.scale).half()
        return at_least_float32(boxes)

    def __repr__(self) -> str:
        return f'BboxOverlaps2D(scale={self.scale}, dtype={self.dtype})'
