"""What a detector does at one threshold of the score: precision, recall, F1, confusion; and what was matched with what.

All of it is counted from the matches that average precision counts (``coco.match``), with no limit on the number of
detections. Works for every data set that gives ``coco``, or ``get_ann_info`` as all of boxdet do.

Letters: D detections, G objects of the ground truth, K classes, S distinct scores.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxdet.datasets.contracts import Dataset, in_coco
from boxdet.errors import DataError
from boxdet.evaluation.coco import FOUND, IGNORED, IOU_THRS, WRONG, Truths, curve, match, truth_columns
from boxdet.structures.instances import Instances

_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Detections:
    """Columns of all detections, by image, class and falling score.

    Args:
        image: (D,) place in the data set.
        row: (D,) place in ``results[image]``.
        label: (D,) class.
        score: (D,) float64.
        truth: (D,) place in ``Records.truths`` of the object it is matched with, -1 for none.
        iou: (D,) largest overlap with an object of its class, float64; 0 where it touches none.
        ignored: (D,) bool: matched with an ignored object, so neither right nor wrong.
    """
    image: np.ndarray
    row: np.ndarray
    label: np.ndarray
    score: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class Objects:
    """Columns of the ground truth, by image and class.

    Args:
        image: (G,) place in the data set.
        label: (G,) class.
        id: (G,) annotation id, or place among the image's.
        box: (G, 4) float64 xyxy.
        area: (G,) float64 pixels.
        ignored: (G,) bool, crowds and difficult ones.
        detection: (G,) place in ``Records.detections`` of the best that found it, -1 for none.
    """
    image: np.ndarray
    label: np.ndarray
    id: np.ndarray
    box: np.ndarray
    area: np.ndarray
    ignored: np.ndarray
    detection: np.ndarray


@dataclass(frozen=True)
class Records:
    """Every detection and object of a data set, matched from overlap ``iou_thr`` on; ``metric`` 'bbox' or 'segm'."""
    detections: Detections
    truths: Objects
    num_classes: int
    iou_thr: float
    metric: str


@dataclass(frozen=True)
class OperatingPoint:
    """A class, or all of them together, at the score ``threshold`` where F1 is largest.

    Args:
        threshold: detections that score so much or more count; 1 where no threshold finds anything.
        precision: at ``threshold``; 0 where nothing is found.
        recall: likewise.
        f1: likewise.
        objects: how many could be found.
        ap: average precision at the overlap of the records, -1 without objects; of all classes together their mean.
        interpolated: (101,) precision at recall 0, 0.01, ... 1, None without objects; of all classes together their
            mean.
        scores: (S,) thresholds of the whole curve, from the highest score down.
        precisions: (S,) at each of them.
        recalls: (S,) at each of them.
    """
    threshold: float
    precision: float
    recall: float
    f1: float
    objects: int
    ap: float
    interpolated: np.ndarray | None
    scores: np.ndarray
    precisions: np.ndarray
    recalls: np.ndarray

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall and F1 of the detections that score ``threshold`` or more."""
        count = int((self.scores >= threshold).sum())
        if not count:
            return 0., 0., 0.
        precision, recall = float(self.precisions[count - 1]), float(self.recalls[count - 1])
        return precision, recall, _f1(precision, recall)


@dataclass(frozen=True)
class OperatingPoints:
    """``overall``: every detection of every class counts alike; ``classes``: K of them."""
    overall: OperatingPoint
    classes: list[OperatingPoint]


def match_records(dataset: Dataset, results: Sequence[Instances], iou_thr: float = 0.5,
                  metric: str = 'bbox') -> Records:
    """Match detections and objects from overlap ``iou_thr`` on, best score first; see ``match_at``."""
    return match_at(dataset, results, [iou_thr], metric)[0]


def match_at(dataset: Dataset, results: Sequence[Instances], iou_thrs: Sequence[float] | np.ndarray,
             metric: str = 'bbox') -> list[Records]:
    """One ``Records`` for each overlap of ``iou_thrs``, in one pass over ``results``.

    Args:
        dataset: with ``coco``, ``img_ids`` and ``cat_ids``, or with ``get_ann_info(index)``: ``bboxes``, ``labels``,
            and regions ``bboxes_ignore`` (of the classes ``labels_ignore``, else of any) where nothing counts.
        results: one Instances an image.
        iou_thrs: overlaps from which on a detection may find an object.
        metric: 'bbox' or 'segm'.

    Raises:
        DataError: masks are asked of a data set or of results that have none.
    """
    classes = len(dataset.CLASSES)
    gt, images, category_ids = _ground_truth(dataset, metric)
    matches = match(gt, results, images, category_ids, metric, iou_thrs, _NO_LIMIT, sizes=('all',), with_pairs=True)
    boxes = gt.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    records = []
    partners, overlap = matches.pairs
    for iou_thr, status, truth in zip(matches.iou_thrs, matches.status[0], partners):
        finder = np.full(len(gt.ids), -1)
        hit = np.flatnonzero(truth >= 0)[::-1]  # the best comes last, and stays
        finder[truth[hit]] = hit
        records.append(Records(
            Detections(matches.image, matches.row, matches.label, matches.score, truth, overlap,
                       status == IGNORED),
            Objects(gt.image, gt.label, gt.ids, boxes, gt.area, gt.ignored, finder),
            classes, float(iou_thr), metric))
    return records


def operating_points(records: Records) -> OperatingPoints:
    """The best threshold of every class and of all together, by F1, and the curves."""
    detections, gt = records.detections, records.truths
    status = _status(detections)
    objects = np.bincount(gt.label[~gt.ignored], minlength=records.num_classes)
    order = np.lexsort((-detections.score, detections.label))
    bounds = np.searchsorted(detections.label[order], np.arange(records.num_classes + 1))
    classes = [_point(detections.score[rows], status[rows], int(count)) for count, rows in
               zip(objects, (order[a:b] for a, b in zip(bounds, bounds[1:])))]
    rows = np.argsort(-detections.score, kind='stable')
    there = [point.interpolated for point in classes if point.interpolated is not None]
    overall = _point(detections.score[rows], status[rows], int(objects.sum()),
                     np.mean(there, axis=0) if there else None)
    return OperatingPoints(overall, classes)


def confusion_matrix(dataset: Dataset, results: Sequence[Instances], score_thr: float = 0.3, iou_thr: float = 0.5,
                     metric: str = 'bbox', records: Records | None = None) -> np.ndarray:
    """Objects (rows) against what they were taken for (columns), background last.

    First come the matches of average precision, within a class, at ``score_thr``. What they leave over is matched
    whatever the class, best score first. What is left then are objects that nothing found (last column) and detections
    where nothing is (last row). So the rows add up to the objects and the columns to the detections that score
    ``score_thr``, without ignored ones.

    Args:
        dataset: as in ``match_at``.
        results: one Instances an image.
        score_thr: detections that score less are not looked at.
        iou_thr: the overlap of a match.
        metric: 'bbox' or 'segm'.
        records: of ``match_records`` with the same ``iou_thr``, where they are at hand.

    Returns:
        (K + 1, K + 1) int64.
    """
    records = records or match_records(dataset, results, iou_thr, metric)
    detections, gt, background = records.detections, records.truths, records.num_classes
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    counting = (detections.score >= score_thr) & ~detections.ignored
    right = counting & (detections.truth >= 0)
    np.add.at(matrix, (detections.label[right], detections.label[right]), 1)
    free = ~gt.ignored
    free[detections.truth[right]] = False
    left = np.flatnonzero(counting & ~right)
    taken = _match_whatever_class(dataset, results, records, left, free)
    wrong = taken >= 0
    np.add.at(matrix, (gt.label[taken[wrong]], detections.label[left[wrong]]), 1)
    np.add.at(matrix[background], detections.label[left[~wrong]], 1)
    free[taken[wrong]] = False
    np.add.at(matrix, (gt.label[free], background), 1)
    return matrix


def image_scores(dataset: Dataset, results: Sequence[Instances], metric: str = 'bbox') -> np.ndarray:
    """Average precision of each image alone: the mean over IoU 0.50 to 0.95 and the classes of its objects.

    Returns:
        float64, one an image; -1 without objects.
    """
    records = match_at(dataset, results, IOU_THRS, metric)
    detections, gt, classes = records[0].detections, records[0].truths, records[0].num_classes
    objects = np.zeros((len(dataset), classes), dtype=np.int64)
    np.add.at(objects, (gt.image[~gt.ignored], gt.label[~gt.ignored]), 1)
    status = np.stack([_status(one.detections) for one in records])  # (T, D), best first in each image and class
    group, wanted = detections.image * classes + detections.label, np.flatnonzero(objects.ravel())
    order = np.argsort(group, kind='stable')
    first, last = (np.searchsorted(group[order], wanted, side) for side in ('left', 'right'))
    sums, images = np.zeros(len(dataset)), wanted // classes
    for image, count, a, b in zip(images, objects.ravel()[wanted], first, last):
        sums[image] += curve(status[:, order[a:b]], count)[0].mean()
    shown = np.bincount(images, minlength=len(dataset))
    return np.where(shown > 0, sums / np.maximum(shown, 1), -1)


def _status(detections: Detections) -> np.ndarray:
    return np.where(detections.ignored, IGNORED, np.where(detections.truth >= 0, FOUND, WRONG))


def _match_whatever_class(dataset: Dataset, results: Sequence[Instances], records: Records, left: np.ndarray,
                          free: np.ndarray) -> np.ndarray:
    """For each of the detections ``left`` the place of the object among the ``free`` (G,) ones that it finds, or -1."""
    detections = records.detections
    gt, images, category_ids = _ground_truth(dataset, records.metric, free)
    places = np.flatnonzero(free)
    bounds = np.searchsorted(detections.image[left], np.arange(len(images) + 1))
    rest = (results[k][detections.row[left[a:b]]] for k, (a, b) in enumerate(zip(bounds, bounds[1:])))
    matches = match(gt, rest, images, category_ids, records.metric, [records.iou_thr], _NO_LIMIT,
                    class_agnostic=True, sizes=('all',), with_pairs=True)
    taken = np.full(len(left), -1)
    truth = matches.pairs[0][0]
    hit = truth >= 0
    taken[bounds[matches.image[hit]] + matches.row[hit]] = places[truth[hit]]
    return taken


def _ground_truth(dataset: Dataset, metric: str,
                  chosen: np.ndarray | None = None) -> tuple[Truths, list[dict], Sequence[int]]:
    """The objects (those of ``chosen`` (G,) bool), the image entries and the category ids of the labels."""
    if in_coco(dataset):
        gt = truth_columns(dataset.coco, dataset.img_ids, dataset.cat_ids, metric)
        images, category_ids = [dataset.coco.imgs[i] for i in dataset.img_ids], dataset.cat_ids
    elif metric == 'segm':
        raise DataError(f'masks of a {type(dataset).__name__} are not matched: its annotations are not in COCO format')
    else:
        gt = _truths_of_boxes(dataset)
        images, category_ids = [dict(id=index) for index in range(len(dataset))], range(len(dataset.CLASSES))
    if chosen is not None:
        # Each column keeps its type, which mypy cannot see.
        gt = Truths(**{name: value[chosen] if isinstance(value, np.ndarray) else value and [  # type: ignore[arg-type]
            value[i] for i in np.flatnonzero(chosen)] for name, value in vars(gt).items()})
    return gt, images, category_ids


def _truths_of_boxes(dataset: Dataset) -> Truths:
    """The boxes that ``get_ann_info`` gives, with the regions where nothing counts."""
    rows: dict[str, list[np.ndarray]] = dict(image=[], label=[], ids=[], boxes=[], ignored=[], crowd=[])
    everything = np.arange(len(dataset.CLASSES))
    for index in range(len(dataset)):
        info = dataset.get_ann_info(index)
        regions = np.asarray(info.get('bboxes_ignore', ()), dtype=np.float64).reshape(-1, 4)
        named = info.get('labels_ignore')
        if named is None:  # a region of any class stands once for each
            place, labels = np.repeat(np.arange(len(regions)), len(everything)), np.tile(everything, len(regions))
        else:
            place, labels = np.arange(len(regions)), np.asarray(named, dtype=np.int64)
        objects = np.asarray(info['labels'], dtype=np.int64)
        label, ignored = np.concatenate([objects, labels]), np.arange(len(objects) + len(labels)) >= len(objects)
        order = np.argsort(label, kind='stable')
        boxes = np.concatenate([np.asarray(info['bboxes'], dtype=np.float64).reshape(-1, 4), regions[place]])
        for name, value in dict(image=np.full(len(label), index), label=label, boxes=boxes, ignored=ignored,
                                ids=np.concatenate([np.arange(len(objects)), len(objects) + place]),
                                crowd=ignored & (named is None)).items():
            rows[name].append(value[order])
    columns = {name: np.concatenate(parts) for name, parts in rows.items()}
    columns['boxes'][:, 2:] -= columns['boxes'][:, :2]
    return Truths(**columns, shared=columns['ignored'], area=columns['boxes'][:, 2:].prod(axis=1))


def _point(scores: np.ndarray, status: np.ndarray, objects: int,
           interpolated: np.ndarray | None = None) -> OperatingPoint:
    """The best threshold of detections with falling ``scores`` (n,)."""
    if interpolated is None and objects:
        interpolated = curve(status[None], objects)[0][0]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    right, wrong = np.cumsum(status == FOUND)[ends], np.cumsum(status == WRONG)[ends]
    precisions, recalls = right / np.maximum(right + wrong, 1), right / max(objects, 1)
    f1 = 2 * right / np.maximum(right + wrong + objects, 1)  # the same as 2 P R / (P + R)
    best = int(f1.argmax()) if len(f1) and f1.max() > 0 else None
    return OperatingPoint(
        threshold=1. if best is None else float(scores[ends[best]]),
        precision=0. if best is None else float(precisions[best]), recall=0. if best is None else float(recalls[best]),
        f1=0. if best is None else float(f1[best]), objects=objects,
        ap=-1. if interpolated is None else float(interpolated.mean()), interpolated=interpolated,
        scores=scores[ends], precisions=precisions, recalls=recalls)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.
