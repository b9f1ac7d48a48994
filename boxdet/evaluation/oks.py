"""Object keypoint similarity, what IoU is to boxes (COCO's keypoint evaluation, 2016).

Letters: D detections and G ground-truth objects of an image, J keypoints.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def oks(detections: np.ndarray, gt: np.ndarray, gt_boxes: np.ndarray, gt_areas: np.ndarray,
        sigmas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Similarities (D, G) float64 in [0, 1], equal to pycocotools' to the last bit.

    An object's value is the mean over its labelled keypoints of exp(-d^2 / (2 * area * (2 * sigma)^2)), d being how far
    the keypoint was missed. For an object without a labelled keypoint d is how far a keypoint lies outside of its box
    doubled about its centre, and all keypoints count.

    Args:
        detections: (D, J, 2 or 3) x, y.
        gt: (G, J, 3) x, y, visibility.
        gt_boxes: (G, 4) x, y, width, height.
        gt_areas: (G,) square pixels.
        sigmas: (J,).
    """
    spread = (np.asarray(sigmas, dtype=np.float64) * 2) ** 2                             # (J,)
    values = np.zeros((len(detections), len(gt)))
    place = np.asarray(detections, dtype=np.float64)[..., :2]                            # (D, J, 2)
    # By object: a sum over another number of keypoints, or in another order, differs in its last bit.
    for column, (keypoints, box, area) in enumerate(zip(gt, gt_boxes, gt_areas)):
        labelled = keypoints[:, 2] > 0
        if labelled.any():
            offset = place - keypoints[:, :2]
        else:
            corner, size = box[:2], box[2:]
            low, high = corner - size, corner + size * 2
            offset = np.maximum(0, low - place) + np.maximum(0, place - high)
            labelled = ~labelled
        squares = offset ** 2
        error = (squares[..., 0] + squares[..., 1]) / spread / (area + np.spacing(1)) / 2  # (D, J)
        terms = np.exp(-np.ascontiguousarray(error[:, labelled]))
        values[:, column] = terms.sum(axis=1) / np.count_nonzero(labelled)
    return values
