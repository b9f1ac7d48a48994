"""Open Images' mean average precision, ``OpenImagesEvaluator``, as its challenge measures it.

| metric | keys                                                                        |
|--------|-----------------------------------------------------------------------------|
| 'mAP'  | ``mAP``, the mean over the thresholds; ``AP50`` for each threshold          |

What differs from Pascal VOC's:

* An object counts for the classes above its own in the hierarchy, too, and so does a detection, where the image shows
  or was searched for such a class.
* A detection of a class that the image neither shows nor was searched for is left out.
* A box around a group (a bed of flowers) is found by any detection that lies in it: of those that find no single
  object, the ones with ``ioa_thr`` of their area in it count as one, which has the best score.

Letters: D detections and G objects of all images, N those of one image, K classes.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from boxdet.datasets.contracts import AnnotatedInOpenImages
from boxdet.errors import ConfigError
from boxdet.evaluation.evaluator import Metrics
from boxdet.evaluation.proposals import box_areas
from boxdet.evaluation.voc import Matches, MeanAPEvaluator, Range, average_precision, mean_precision, within
from boxdet.evaluation.voc import match as match_singles
from boxdet.registry import EVALUATORS
from boxdet.structures.instances import Instances


@EVALUATORS.register_module()
class OpenImagesEvaluator(MeanAPEvaluator):
    """Numbers by the keys above, of an OpenImagesDataset.

    Args:
        metric: 'mAP'.
        iou_thr: one overlap or several that a detection must reach with a single object.
        ioa_thr: the part of a detection's area that lies in a group's box, one for each of ``iou_thr``.
        scale_ranges: as MeanAPEvaluator.
        denorm_gt_bbox: 2.x's: boxes of the annotations are relative to the image.
        use_group_of: groups are treated as above; otherwise they are objects like others.

    Raises:
        ConfigError: unknown metric, an option out of range, or thresholds in different numbers.
    """
    METRICS = ('mAP',)
    joined = None

    def __init__(self, metric: str | Sequence[str] | None = None, iou_thr: float | Sequence[float] = 0.5,
                 ioa_thr: float | Sequence[float] = 0.5, scale_ranges: Sequence[Range] | None = None,
                 denorm_gt_bbox: bool = True, use_group_of: bool = True):
        super().__init__(metric, iou_thr, scale_ranges=scale_ranges)
        self.inside = dict(zip(self.thrs, (float(thr) for thr in np.atleast_1d(ioa_thr))))
        if len(self.thrs) != np.size(ioa_thr):
            raise ConfigError(f'iou_thr={iou_thr} and ioa_thr={ioa_thr}: one of the other for each of the one')
        self.denorm_gt_bbox, self.use_group_of = denorm_gt_bbox, use_group_of

    def evaluate(self) -> Metrics:
        """As the table above says.

        Raises:
            DataError: annotations that do not fit together, or images without a size.
        """
        dataset = cast(AnnotatedInOpenImages, self.dataset)
        gt = list(self._truths(dataset))
        results = _counted(self.results, gt, dataset)
        singles = [{key: value[~truth['groups']] for key, value in truth.items()} for truth in gt]
        groups = [{key: value[truth['groups']] for key, value in truth.items()} for truth in gt]
        matches = match_singles(singles, results, len(dataset.CLASSES))
        inside = match_singles(groups, results, len(dataset.CLASSES), overlaps=_inside)

        def rows(thr: float, sizes: Range | None) -> list[tuple[int, int, float, float]]:
            return _class_rows(matches, inside, len(dataset.CLASSES), thr, self.inside[thr], sizes)
        return {**mean_precision(rows, dataset.CLASSES, self.thrs, self.ranges, 'area', self.say)}

    def _truths(self, dataset: AnnotatedInOpenImages) -> Iterator[dict[str, np.ndarray]]:
        """'bboxes' (N, 4) in pixels, 'labels' and 'groups' (N,) of each image, those of the classes above included."""
        tree = dataset.class_tree() if dataset.get_supercategory else np.eye(len(dataset.CLASSES), dtype=bool)
        sizes = dataset.image_sizes() if self.denorm_gt_bbox else np.ones((len(dataset), 2))
        for index, size in enumerate(sizes):
            info = dataset.get_ann_info(index)
            objects, labels = np.nonzero(tree[info['labels']])
            boxes = info['bboxes'].astype(np.float64) * np.tile(size, 2)
            groups = info['gt_is_group_ofs'] & self.use_group_of
            yield dict(bboxes=boxes[objects], labels=labels, groups=groups[objects])


def _counted(results: Sequence[Instances], gt: Sequence[dict[str, np.ndarray]],
             dataset: AnnotatedInOpenImages) -> list[Instances]:
    """The detections that count, with copies for the classes above theirs."""
    tree = dataset.class_tree() if dataset.get_supercategory else np.eye(len(dataset.CLASSES), dtype=bool)
    counted = []
    for result, truth, searched in zip(results, gt, dataset.image_labels()):
        allowed = np.zeros(len(dataset.CLASSES), dtype=bool)
        allowed[truth['labels']] = allowed[searched] = True
        labels = result.numpy()['labels'].astype(np.int64)
        wanted = tree[labels] & allowed
        wanted[np.arange(len(labels)), labels] |= not dataset.filter_labels
        rows, as_labels = np.nonzero(wanted)
        copies = result[rows.tolist()]
        counted.append(Instances(copies.image_size, copies.num_classes, **{
            'bboxes': copies.bboxes, 'scores': copies.scores, 'labels': copies.labels.new_tensor(as_labels)}))
    return counted


def _inside(detections: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N, G) the part of each detection's area that lies in each box."""
    shared = (np.minimum(detections[:, None, 2:], boxes[None, :, 2:])
              - np.maximum(detections[:, None, :2], boxes[None, :, :2])).clip(min=0).prod(axis=2)
    return shared / np.maximum(box_areas(detections)[:, None], 1e-6)


def _class_rows(singles: Matches, groups: Matches, num_classes: int, iou_thr: float, ioa_thr: float,
                sizes: Range | None) -> list[tuple[int, int, float, float]]:
    """Objects, detections, recall reached and average precision of each class."""
    right, wrong, counted = singles.judged(iou_thr, sizes)
    of_size = np.ones(len(groups.gt_labels), dtype=bool) if sizes is None else within(groups.gt_areas, sizes)
    in_group = ~right & (groups.overlap >= ioa_thr)
    in_group[in_group] = of_size[groups.target[in_group]]
    found, first = np.unique(groups.target[in_group], return_index=True)  # in order of score: the best of each group
    scores = np.concatenate([singles.scores[~in_group], groups.scores[in_group][first]])
    labels = np.concatenate([singles.labels[~in_group], groups.gt_labels[found]])
    hits = np.concatenate([right[~in_group], np.ones(len(found), dtype=bool)])
    misses = np.concatenate([wrong[~in_group], np.zeros(len(found), dtype=bool)])
    order = np.argsort(-scores, kind='stable')
    scores, labels, hits, misses = (column[order] for column in (scores, labels, hits, misses))
    rows = []
    for label in range(num_classes):
        mine = labels == label
        objects = int((counted & (singles.gt_labels == label)).sum()
                      + (of_size & (groups.gt_labels == label)).sum())
        true, false = np.cumsum(hits[mine]), np.cumsum(misses[mine])
        recall, precision = true / max(objects, 1), true / np.maximum(true + false, 1)
        rows.append((objects, int(mine.sum()), float(recall[-1]) if len(recall) else 0.,
                     average_precision(recall, precision)))
    return rows
