"""Whether an exported detector gives what the detector gives, in the numbers that the references are compared by.

Letters: B images, n, N results of an image.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from boxdet.geometry.masks import paste_to_rle
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks

# By precision: pixels of a box, score, mask IoU. Half precision moves the results of a trained detector by so much.
TOLERANCES = dict(fp32=(0.05, 5e-4, 0.995), fp16=(1.0, 0.02, 0.95))


@dataclass
class Parity:
    """Detections of the detector, and how many of them the exported one has, too.

    Two are equal when they have the same label and differ by less than is said here.

    Args:
        box: pixels of an edge, and of each keypoint.
        score: of the object.
        mask_iou: masks overlap by this at least.
        images: so many were compared.
        detections: of the detector.
        exported: of the exported one.
        equal: those that have a counterpart.
    """
    box: float = 0.05
    score: float = 5e-4
    mask_iou: float = 0.995
    images: int = 0
    detections: int = 0
    exported: int = 0
    equal: int = 0

    @property
    def share(self) -> float:
        """Equal ones among the detections, or among the exported ones where these are more; 1 where there is none."""
        most = max(self.detections, self.exported)
        return self.equal / most if most else 1.0

    def add(self, expected: Instances, found: Mapping[str, np.ndarray], threshold: float = 0.5,
            whole_pixels: bool = False) -> None:
        """Compare an image.

        Args:
            expected: of the detector, in pixels of the network's input.
            found: outputs of the exported one for the image, (N, ...) each.
            threshold: of mask probabilities.
            whole_pixels: see ``paste_to_rle``.
        """
        boxes, scores, labels = (torch.from_numpy(np.asarray(found[name])) for name in ('boxes', 'scores', 'labels'))
        fits = ((expected.labels[:, None] == labels)
                & ((expected.bboxes[:, None] - boxes[None]).abs().amax(dim=-1) <= self.box)
                & ((expected.scores[:, None] - scores[None]).abs() <= self.score))       # (N, n)
        if 'keypoints' in expected:
            places = torch.from_numpy(np.asarray(found['keypoints']))[..., :2]
            fits &= (expected.keypoints[:, None, :, :2] - places).abs().amax(dim=(-2, -1)) <= self.box
        masks = None
        if 'masks' in expected:
            assert expected.image_size is not None  # masks know it
            masks = _bitmaps(found, expected.image_size, threshold, whole_pixels)
        own = expected.masks.to_bitmap_masks().masks if masks is not None and len(expected) else None
        free = np.ones(len(boxes), dtype=bool)
        for i, row in enumerate(fits.numpy()):
            for j in np.flatnonzero(row & free):
                if own is None or masks is None or _iou(own[i], masks[j]) >= self.mask_iou:
                    free[j] = False
                    self.equal += 1
                    break
        self.images += 1
        self.detections += len(expected)
        self.exported += len(boxes)

    def __str__(self) -> str:
        return (f'{self.equal} of {self.detections} detections equal in {self.images} images (exported: '
                f'{self.exported}; {self.share:.2%})')


def _bitmaps(found: Mapping[str, np.ndarray], image_hw: tuple[int, int], threshold: float,
             whole_pixels: bool) -> np.ndarray:
    if 'masks' in found:
        return np.asarray(found['masks'])[:, :image_hw[0], :image_hw[1]].astype(bool)
    probs = 1 / (1 + np.exp(-np.asarray(found['mask_logits'], dtype=np.float32)))
    codes = paste_to_rle(probs, np.asarray(found['boxes']), image_hw, threshold, whole_pixels)
    return RleMasks(codes, *image_hw).to_bitmap_masks().masks


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.logical_or(one, other).sum()
    return float(np.logical_and(one, other).sum() / union) if union else 1.0
