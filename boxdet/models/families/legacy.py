"""What older models were trained with: boxes whose last pixel counts, "+1", and rounded anchors.

mmdetection 1.x's parts keep its coordinates. Detectron's (and maskrcnn-benchmark's, Detectron.pytorch's) do not need
to: a box that ends with pixel 9 there is one that ends at 10 here, and overlaps, deltas (``DeltaXYWHBBoxCoder``), the
clipping to the image and what is written for COCO are the same numbers. Two things are not: the sides of anchors are
rounded, and RoIAlign pools from the last pixel's own coordinate, one less.

Letters: N boxes, R rois, K classes, A anchors of a cell, Q ratios, S scales.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from boxdet.geometry.boxes import at_least_float32, clip_boxes
from boxdet.matching.anchors import AnchorGenerator
from boxdet.matching.box_coder import DeltaXYWHBBoxCoder
from boxdet.models.roi_extractor import RoIAlign
from boxdet.registry import ANCHOR_GENERATORS, BBOX_CODERS, LAYERS


@BBOX_CODERS.register_module()
class LegacyDeltaXYWHBBoxCoder(DeltaXYWHBBoxCoder):
    """``DeltaXYWHBBoxCoder`` for boxes that are one pixel wider and higher than their corners say.

    Decoded boxes are put about the same centre without that pixel, as in mmdetection 2.x, and clipped to the centre of
    the image's last pixel.

    Args:
        target_means: four numbers that are subtracted from the deltas.
        target_stds: four numbers that the deltas are divided by then.
    """

    def __init__(self, target_means: Sequence[float] = (0., 0., 0., 0.),
                 target_stds: Sequence[float] = (1., 1., 1., 1.)):
        super().__init__(target_means, target_stds, clip_border=False)

    def encode(self, bboxes: torch.Tensor, gt_bboxes: torch.Tensor) -> torch.Tensor:
        """See ``DeltaXYWHBBoxCoder``."""
        return super().encode(_wider(bboxes), _wider(gt_bboxes))

    def decode(self, bboxes: torch.Tensor, pred_bboxes: torch.Tensor,
               max_shape: Sequence[float] | torch.Tensor | None = None,
               wh_ratio_clip: float = 16 / 1000) -> torch.Tensor:
        """See ``DeltaXYWHBBoxCoder``."""
        moved = super().decode(_wider(bboxes), pred_bboxes, None, wh_ratio_clip)
        if max_shape is None:
            return moved
        boxes = moved.unflatten(1, (-1, 4))                                              # (N, K, 4)
        if isinstance(max_shape, torch.Tensor):
            return clip_boxes(boxes, max_shape[:, None] - 1).flatten(1)
        return clip_boxes(boxes, (max_shape[0] - 1, max_shape[1] - 1)).flatten(1)


def _wider(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (N, 4) grown by half a pixel on every side."""
    boxes = at_least_float32(boxes)
    return torch.cat([boxes[:, :2] - 0.5, boxes[:, 2:] + 0.5], dim=1)


@ANCHOR_GENERATORS.register_module()
class LegacyAnchorGenerator(AnchorGenerator):
    """Anchors of whole pixels, a pixel less wide and high than they are; arguments as in ``AnchorGenerator``.

    >>> generator = LegacyAnchorGenerator(strides=[16], ratios=[1.], scales=[1.], base_sizes=[9], center_offset=0.5)
    >>> generator.grid_priors([(2, 2)], device='cpu')[0].tolist()[:2]
    [[0.0, 0.0, 8.0, 8.0], [16.0, 0.0, 24.0, 8.0]]
    """

    def _base_anchors(self, level: int) -> torch.Tensor:
        """The anchors (A, 4) of a level's first cell."""
        anchors = super()._base_anchors(level)
        # The centre, too, is that of a base one pixel smaller, unless it is given.
        shift = 0.0 if self.centers is not None else self.center_offset
        low, high = anchors[:, :2] + 0.5 - shift, anchors[:, 2:] - 0.5 - shift
        return torch.cat([low, high], dim=1).round()


@ANCHOR_GENERATORS.register_module()
class DetectronAnchorGenerator(AnchorGenerator):
    """Anchors as Detectron lays them: a ratio's sides are rounded before the scales enlarge them.

    Arguments as in ``AnchorGenerator``; ``center_offset=0.5`` puts them in the middle of a cell, as there.

    >>> generator = DetectronAnchorGenerator(strides=[16], ratios=[0.5], scales=[8.], center_offset=0.5)
    >>> generator.grid_priors([(1, 1)], device='cpu')[0].tolist()  # -84, -40, 99, 55 with "+1"
    [[-84.0, -40.0, 100.0, 56.0]]
    """

    def _base_anchors(self, level: int) -> torch.Tensor:
        """The anchors (A, 4) of a level's first cell."""
        size = self.base_sizes[level]
        ratios = torch.tensor(self.ratios, dtype=torch.float64, device='cpu')
        scales = torch.tensor(self.scales, dtype=torch.float64, device='cpu')
        width = (size * size / ratios).sqrt().round()
        sides = torch.stack([width, (width * ratios).round()], dim=1)[:, None] * scales[:, None]  # (Q, S, 2)
        half = (sides if self.scale_major else sides.transpose(0, 1)).reshape(-1, 2) / 2          # (A, 2)
        x, y = (self.center_offset * size,) * 2 if self.centers is None else self.centers[level]
        centre = torch.tensor([x, y], dtype=torch.float64, device='cpu')
        return torch.cat([centre - half, centre + half], dim=1).float()


@LAYERS.register_module()
class DetectronRoIAlign(RoIAlign):
    """``RoIAlign`` as Detectron calls it: not aligned, and up to the coordinate of a roi's last pixel.

    Args:
        output_size, spatial_scale, sampling_ratio: as in ``RoIAlign``.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0, sampling_ratio: int = 0):
        super().__init__(output_size, spatial_scale, sampling_ratio, aligned=False)

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool ``features`` (B, C, H, W) over ``rois`` (R, 5) to (R, C, h, w)."""
        return super().forward(features, torch.cat([rois[:, :3], rois[:, 3:] - 1], dim=1))
