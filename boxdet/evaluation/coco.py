"""COCO's average precision and recall: pycocotools' matching, our way in and out of it.

Every number equals pycocotools' own to the last bit; ``Scores`` reads them from the arrays that it
accumulates.

Letters: T IoU thresholds, R recall levels (101), K classes (in the order of sorted category ids), A object
sizes, M limits of detections an image.
"""
from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxdet.errors import DataError

SIZES = (
    'all', 'small', 'medium', 'large')  # pycocotools' areaRngLbl: below 32^2, 32^2..96^2, above, in pixels


@dataclass(frozen=True)
class Scores:
    """What one evaluation accumulated.

    Args:
        precision: (T, R, K, A, M), -1 where there is no ground truth. recall: (T, K, A, M), likewise.
        iou_thrs: (T,). category_ids: K. limits: M.
    """
    precision: np.ndarray
    recall: np.ndarray
    iou_thrs: np.ndarray
    category_ids: list[int]
    limits: list[int]

    def ap(self, iou: float | None = None, size: str = 'all', limit: int = 100,
           category: int | None = None) -> float:
        """Average precision; the mean over thresholds and classes unless ``iou`` and ``category`` (an id)
        choose one.

        -1 where there is no ground truth of that size and class, or ``iou`` is no threshold of this
        evaluation.
        """
        return self._mean(self.precision[self._thresholds(iou)], size, limit, category)

    def ar(self, iou: float | None = None, size: str = 'all', limit: int = 100,
           category: int | None = None) -> float:
        """Average recall with at most ``limit`` detections an image; otherwise as ``ap``."""
        return self._mean(self.recall[self._thresholds(iou)], size, limit, category)

    def _thresholds(self, iou: float | None) -> Any:
        return slice(None) if iou is None else np.where(iou == self.iou_thrs)[0]

    def _mean(self, values: np.ndarray, size: str, limit: int, category: int | None) -> float:
        classes = slice(None) if category is None else [self.category_ids.index(category)]
        values = values[..., classes, :, :][..., [SIZES.index(size)], :][..., [self.limits.index(limit)]]
        values = values[values > -1]
        return float(np.mean(values)) if len(values) else -1.0


def coco_scores(ground_truth: COCO, predictions: Sequence[dict], iou_type: str, image_ids: Sequence[int],
                category_ids: Sequence[int], limits: Sequence[int] = (100, 300, 1000),
                iou_thrs: Sequence[float] | None = None, class_agnostic: bool = False) -> Scores:
    """Evaluate COCO result dicts on ``image_ids`` and ``category_ids``.

    Args:
        ground_truth: is not changed.
        iou_type: 'bbox' or 'segm'.
        limits: numbers of detections an image (best first) to evaluate with, rising.
        iou_thrs: default 0.50, 0.55, ... 0.95.
        class_agnostic: match whatever the categories (proposals).

    Raises:
        DataError: annotations without masks in 'segm', or a predicted mask that is not of its image's size.
    """
    images = {i: ground_truth.imgs[i] for i in image_ids}
    truth = _index(images, _truths(ground_truth, images, iou_type), category_ids)
    found = _index(images, _detections(predictions, images, iou_type), category_ids)
    evaluation = COCOeval(truth, found, iou_type)
    params = evaluation.params
    params.imgIds, params.catIds = list(image_ids), list(category_ids)
    params.maxDets, params.useCats = list(limits), int(not class_agnostic)
    if iou_thrs is not None:
        params.iouThrs = np.asarray(iou_thrs, dtype=np.float64)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return Scores(evaluation.eval['precision'], evaluation.eval['recall'], params.iouThrs,
                  [-1] if class_agnostic else [int(c) for c in params.catIds], params.maxDets)


def _index(images: dict[int, dict], annotations: list[dict], category_ids: Sequence[int]) -> COCO:
    coco = COCO()
    coco.dataset = dict(images=list(images.values()), annotations=annotations,
                        categories=[dict(id=c, name=str(c)) for c in category_ids])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _truths(ground_truth: COCO, images: dict[int, dict], iou_type: str) -> list[dict]:
    """Copies of the annotations: pycocotools writes into them. What custom files leave out is filled in."""
    rows = []
    for image_id in images:
        for annotation in ground_truth.imgToAnns.get(image_id, ()):
            row = dict(annotation)
            row.setdefault('iscrowd', 0)
            if 'area' not in row:
                row['area'] = row['bbox'][2] * row['bbox'][3]
            if iou_type == 'segm' and not row.get('segmentation'):
                raise DataError(
                    f"annotation {row.get('id')} of image {image_id} ({images[image_id].get('file_name')}) "
                    "has no 'segmentation': metric 'segm' needs masks in the annotation file")
            rows.append(row)
    return rows


def _detections(predictions: Sequence[dict], images: dict[int, dict], iou_type: str) -> list[dict]:
    """The predictions as pycocotools' loadRes completes them: ``id`` from 1, ``area``, ``iscrowd``."""
    if iou_type == 'segm':
        for row in predictions:
            image = images[row['image_id']]
            if list(row['segmentation']['size']) != [image['height'], image['width']]:
                height, width = row['segmentation']['size']
                raise DataError(
                    f"image {row['image_id']} ({image.get('file_name')}): a predicted mask is "
                    f"{width}x{height}, the annotation file says {image['width']}x{image['height']}")
        # One at a time: pycocotools 2.0 with numpy 2 fails on lists of more than 255.
        areas = [coco_masks.area(row['segmentation']) for row in predictions]
    else:
        areas = [row['bbox'][2] * row['bbox'][3] for row in predictions]
    return [dict(row, id=i, area=area, iscrowd=0) for i, (row, area) in enumerate(zip(predictions, areas), 1)]
