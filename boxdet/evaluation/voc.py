"""Pascal VOC's mean average precision, ``VOCEvaluator`` and ``MeanAPEvaluator``.

A detection belongs to the object of its class and image that it overlaps most. It is right when that overlap reaches
the threshold and no better scored detection took the object before; it counts for nothing when the object is difficult;
it is wrong otherwise (Everingham et al. 2010, section 4.2, and the development kit).

| metric   | keys                                                                                               |
|----------|----------------------------------------------------------------------------------------------------|
| 'mAP'    | ``mAP``, the mean over the thresholds; ``AP50`` for each threshold; with ``scale_ranges`` besides    |
|          | ``mAP_32_96`` and ``AP50_32_96`` of the objects of that size                                         |
| 'recall' | ``recall@100@0.5`` for each number of detections and threshold; ``AR@100`` where there are several    |

Average precision is the mean of 11 points of the curve where the data set's ``ap_rule`` is '11points' (VOC 2007), else
the area under it.

Letters: D detections and G objects of all images, N those of one image, T thresholds, S ranges of size, K classes.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from boxdet.datasets.contracts import AnnotatedDataset
from boxdet.datasets.wrappers import ConcatDataset
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation.concat import Joined
from boxdet.evaluation.evaluator import Evaluator, Metrics
from boxdet.evaluation.proposals import box_areas, box_iou, proposal_recall
from boxdet.registry import EVALUATORS
from boxdet.structures.instances import Instances

Range = tuple[float, float]
Overlaps = Callable[[np.ndarray, np.ndarray], np.ndarray]


@EVALUATORS.register_module()
class MeanAPEvaluator(Evaluator[AnnotatedDataset]):
    """The numbers of the table above, of any data set with ``get_ann_info`` and ``has_annotations``.

    Args:
        metric: of ``METRICS``.
        iou_thr: one overlap or several that a detection must reach, above 0 and not above 1.
        proposal_nums: detections an image that count for 'recall', the best first.
        scale_ranges: (smallest, largest) sides in pixels: objects of an area from the one's square to below the
            other's are measured by themselves.

    Attributes:
        border: what is added to a box's width and height; 1 where the last pixel belongs to a box.

    Raises:
        ConfigError: unknown metric, or an option out of range.
    """
    METRICS: tuple[str, ...] = ('mAP', 'recall')
    NEEDS = dict(mAP='labels')
    joined: Callable[[ConcatDataset], Joined] | None = Joined
    border = 0.

    def __init__(self, metric: str | Sequence[str] | None = None, iou_thr: float | Sequence[float] = 0.5,
                 proposal_nums: Sequence[int] = (100, 300, 1000), scale_ranges: Sequence[Range] | None = None):
        super().__init__(metric)
        self.thrs, self.nums, self.ranges = _options(iou_thr, proposal_nums, scale_ranges)

    def metric_names(self) -> list[str]:
        """The keys that ``evaluate`` gives."""
        names = []
        if 'mAP' in self.metrics:
            for suffix in ['', *map(_suffix, self.ranges)]:
                names += [f'mAP{suffix}', *(f'{_ap_name(thr)}{suffix}' for thr in self.thrs)]
        if 'recall' in self.metrics:
            names += [f'recall@{num}@{thr}' for num in self.nums for thr in self.thrs]
            names += [f'AR@{num}' for num in self.nums] if len(self.thrs) > 1 else []
        return names

    def check(self, dataset: AnnotatedDataset) -> None:
        """Raise DataError when ``dataset`` holds nothing to evaluate against."""
        if not dataset.has_annotations:
            raise DataError(f'{dataset.ann_file} holds no annotations, so there is nothing to evaluate against: use '
                            '--out to save the results')

    def evaluate(self) -> Metrics:
        """As the table above says.

        Raises:
            DataError: annotations that do not fit together.
        """
        dataset, results = self.dataset, self.results
        gt = [dataset.get_ann_info(i) for i in range(len(dataset))]
        values: Metrics = {}
        if 'mAP' in self.metrics:
            rule = getattr(dataset, 'ap_rule', 'area')
            matches = match(gt, results, len(dataset.CLASSES), self.border)
            values.update(mean_precision(
                lambda thr, sizes: _class_rows(matches, len(dataset.CLASSES), thr, sizes, rule),
                dataset.CLASSES, self.thrs, self.ranges, rule, self.say))
        if 'recall' in self.metrics:
            values.update(_recall(gt, results, self.nums, self.thrs, self.border, self.say))
        return values


@EVALUATORS.register_module()
class VOCEvaluator(MeanAPEvaluator):
    """As MeanAPEvaluator, boxes being measured as Pascal VOC does: the last pixel belongs to a box."""
    border = 1.


def _options(iou_thr: float | Sequence[float], proposal_nums: Sequence[int],
             scale_ranges: Sequence[Range] | None) -> tuple[list[float], list[int], list[Range]]:
    thrs = [float(thr) for thr in np.atleast_1d(iou_thr)]
    if not thrs or not all(0 < thr <= 1 for thr in thrs):
        raise ConfigError(f'iou_thr={iou_thr}: an overlap is above 0 and not above 1')
    nums = [int(num) for num in np.atleast_1d(proposal_nums)]
    if not nums or min(nums) < 1:
        raise ConfigError(f'proposal_nums={proposal_nums}: numbers of 1 at least')
    try:
        ranges = [(float(low), float(high)) for low, high in scale_ranges or ()]
    except (TypeError, ValueError):
        raise ConfigError(f'scale_ranges={scale_ranges}: pairs of sides in pixels, [(0, 32), (32, 96)]') from None
    return thrs, nums, ranges


def _ap_name(thr: float) -> str:
    return f'AP{round(thr * 100):02d}'


def _suffix(sizes: Range) -> str:
    return f'_{sizes[0]:g}_{sizes[1]:g}'


# -- matching

@dataclass(frozen=True)
class Matches:
    """Every detection, best first, with the object it overlaps most.

    Args:
        labels: (D,) classes of the detections.
        scores: (D,) their scores.
        areas: (D,) their areas.
        overlap: (D,) IoU with their object, -1 where there is none of that class in the image.
        target: (D,) index of that object, -1 likewise.
        gt_labels: (G,) classes of the objects.
        gt_areas: (G,) their areas.
        difficult: (G,) whether each is difficult.
    """
    labels: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    overlap: np.ndarray
    target: np.ndarray
    gt_labels: np.ndarray
    gt_areas: np.ndarray
    difficult: np.ndarray

    def judged(self, thr: float, sizes: Range | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right (D,), wrong (D,) and counted objects (G,), all bool; a detection may be neither right nor wrong.

        Args:
            thr: the overlap that a detection must reach.
            sizes: count objects of these sides only; a detection of another size is not wrong then.
        """
        counted = ~self.difficult
        if sizes is not None:
            counted = counted & within(self.gt_areas, sizes)
        reaches = self.overlap >= thr
        on_counted = reaches.copy()
        on_counted[reaches] = counted[self.target[reaches]]
        right = np.zeros(len(self.labels), dtype=bool)
        candidates = np.flatnonzero(on_counted)
        _, first = np.unique(self.target[candidates], return_index=True)  # in order of score: the best of each object
        right[candidates[first]] = True
        free = ~reaches if sizes is None else ~reaches & within(self.areas, sizes)
        return right, (on_counted & ~right) | free, counted


def within(areas: np.ndarray, sizes: Range) -> np.ndarray:
    """Which areas (N,) are those of squares with sides in ``sizes``, its end left out."""
    return (areas >= sizes[0] ** 2) & (areas < sizes[1] ** 2)


def match(gt: Sequence[dict], results: Sequence[Instances], num_classes: int, border: float = 0.,
          overlaps: Overlaps | None = None) -> Matches:
    """Find the object of each detection.

    Args:
        gt: of ``get_ann_info``: 'bboxes', 'labels' and, of objects that do not count, 'bboxes_ignore' with
            'labels_ignore'; as in 2.x boxes to be ignored that have no labels play no part.
        results: one Instances an image.
        num_classes: K.
        border: see ``box_iou``.
        overlaps: of detections (N, 4) and objects (G, 4), as (N, G); None for the IoU.

    Raises:
        DataError: a label beyond ``num_classes``, or boxes and labels in different numbers.
    """
    overlaps = overlaps or functools.partial(box_iou, border=border, dtype=np.float64)
    parts, objects, start = [], [], 0
    for index, (truth, result) in enumerate(zip(gt, results)):
        boxes, labels, difficult = _objects(truth, index, num_classes)
        detections = result.numpy()
        parts.append(_match_image(boxes, labels, detections, start, border, overlaps))
        objects.append((labels, box_areas(boxes, border), difficult))
        start += len(boxes)
    columns = [np.concatenate(column) for column in zip(*parts)]
    order = np.argsort(-columns[1], kind='stable')
    return Matches(*(column[order] for column in columns), *(np.concatenate(column) for column in zip(*objects)))


def _objects(truth: dict, index: int, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes, labels = np.asarray(truth['bboxes'], dtype=np.float64), np.asarray(truth['labels'])
    difficult = np.zeros(len(boxes), dtype=bool)
    if truth.get('labels_ignore') is not None:
        others = np.asarray(truth.get('bboxes_ignore', ()), dtype=np.float64).reshape(-1, 4)
        more = np.asarray(truth['labels_ignore'], dtype=np.int64).reshape(-1)
        if len(others) != len(more):
            raise DataError(f'image {index}: {len(others)} boxes to be ignored and {len(more)} labels of them')
        boxes, labels = np.concatenate([boxes.reshape(-1, 4), others]), np.concatenate([labels, more])
        difficult = np.concatenate([difficult, np.ones(len(more), dtype=bool)])
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise DataError(f'image {index}: labels {labels.min()} to {labels.max()} of {num_classes} classes')
    return boxes.reshape(-1, 4), labels, difficult


def _match_image(boxes: np.ndarray, labels: np.ndarray, found: dict[str, np.ndarray], start: int,
                 border: float, overlaps: Overlaps) -> tuple[np.ndarray, ...]:
    """Labels, scores, areas, overlaps and targets (N,) of one image's detections; objects count from ``start``."""
    detections = found['bboxes'].astype(np.float64)
    overlap, target = np.full(len(detections), -1.), np.full(len(detections), -1)
    if len(boxes) and len(detections):
        of_class = np.where(found['labels'][:, None] == labels, overlaps(detections, boxes), -1.)
        target = of_class.argmax(axis=1)
        overlap = of_class[np.arange(len(detections)), target]
        target = np.where(overlap < 0, -1, target + start)
    return found['labels'], found['scores'].astype(np.float64), box_areas(detections, border), overlap, target


# -- numbers

def average_precision(recall: np.ndarray, precision: np.ndarray, rule: str = 'area') -> float:
    """The area under the curve of monotonically falling precision, or the mean of its values at recall 0, 0.1, … 1.

    Args:
        recall: (D,) after each detection, best first.
        precision: (D,) likewise.
        rule: 'area' or '11points'.
    """
    if rule == '11points':
        # Multiples of 0.1 as VOC's kit and mmdetection round them: 0.3 of recall does not reach the fourth point.
        return float(sum(precision[recall >= point].max(initial=0.) for point in np.arange(0., 1.001, 0.1)) / 11)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.) * envelope).sum())


def mean_precision(rows_at: Callable[[float, Range | None], list[tuple[int, int, float, float]]],
                   classes: Sequence[str], thrs: Sequence[float], ranges: Sequence[Range], rule: str,
                   say: Callable[..., None]) -> dict[str, float]:
    """The means by their keys, 'mAP' and 'AP50', of all objects and of those of some sizes; tables are said.

    Args:
        rows_at: objects, detections, recall and average precision of each class, by threshold and size.
        classes: names.
        thrs: the thresholds.
        ranges: of sides in pixels.
        rule: '11points' or 'area', how precision was averaged.
        say: takes a table.
    """
    values = {}
    for sizes in (None, *ranges):
        suffix, means = _suffix(sizes) if sizes else '', {}
        for thr in thrs:
            rows = rows_at(thr, sizes)
            measured = [row[3] for row in rows if row[0]]
            means[_ap_name(thr) + suffix] = float(np.mean(measured)) if measured else 0.
            say(_table(classes, rows, thr, sizes, rule, means[_ap_name(thr) + suffix]))
        values.update({f'mAP{suffix}': float(np.mean(list(means.values()))), **means})
    return values


def _class_rows(matches: Matches, num_classes: int, thr: float, sizes: Range | None,
                rule: str) -> list[tuple[int, int, float, float]]:
    """Objects, detections, recall reached and average precision of each class."""
    right, wrong, counted = matches.judged(thr, sizes)
    rows = []
    for label in range(num_classes):
        mine = matches.labels == label
        objects = int((counted & (matches.gt_labels == label)).sum())
        hits, misses = np.cumsum(right[mine]), np.cumsum(wrong[mine])
        recall, precision = hits / max(objects, 1), hits / np.maximum(hits + misses, 1)
        rows.append((objects, int(mine.sum()), float(recall[-1]) if len(recall) else 0.,
                     average_precision(recall, precision, rule)))
    return rows


def _table(classes: Sequence[str], rows: Sequence[tuple], thr: float, sizes: Range | None, rule: str,
           mean: float) -> str:
    from terminaltables import AsciiTable

    cells = [[name, str(objects), str(detections), f'{recall:.3f}', f'{ap:.3f}' if objects else '-']
             for name, (objects, detections, recall, ap) in zip(classes, rows)]
    table = AsciiTable([['class', 'objects', 'detections', 'recall', 'AP'], *cells, ['mAP', '', '', '', f'{mean:.3f}']])
    table.inner_footing_row_border = True
    table.justify_columns = dict.fromkeys(range(1, 5), 'right')
    of_size = f', objects of {sizes[0]:g} to {sizes[1]:g} pixels' if sizes else ''
    how = '11 points' if rule == '11points' else 'area'
    return f'average precision at IoU {thr:g} ({how}){of_size}:\n{table.table}'


def _recall(gt: Sequence[dict], results: Sequence[Instances], nums: Sequence[int], thrs: Sequence[float],
            border: float, say: Callable[..., None]) -> dict[str, float]:
    proposals = []
    for result in results:
        arrays = result.numpy()
        proposals.append(arrays['bboxes'][np.argsort(-arrays['scores'], kind='stable')])
    recall = proposal_recall([truth['bboxes'] for truth in gt], proposals, nums, thrs, border)
    values = {f'recall@{num}@{thr}': float(recall[i, j]) for i, num in enumerate(nums) for j, thr in enumerate(thrs)}
    if len(thrs) > 1:
        values.update({f'AR@{num}': float(recall[i].mean()) for i, num in enumerate(nums)})
    say('recall: ' + ', '.join(f'{key} {value:.4f}' for key, value in values.items()))
    return values
