"""LVIS's federated metrics (Gupta et al. 2019, section 4) of boxes and masks: ``LVISEvaluator``.

| metric                      | keys                                                                                |
|-----------------------------|-------------------------------------------------------------------------------------|
| 'bbox', 'segm'              | ``bbox_AP``, ``bbox_AP50|75|s|m|l``, of rare, common and frequent classes           |
|                             | ``bbox_APr|c|f``, ``bbox_mAP_copypaste``; ``segm_...``; with ``area_ranges``        |
|                             | ``bbox_AP_NAME`` in place of ``bbox_APs|m|l``                                       |
| 'proposal', 'proposal_fast' | COCO's, see boxdet/evaluation/coco_metrics.py: no class is asked for                |
| ``classwise``               | besides, ``bbox_NAME_precision`` for each class                                     |

The matching is COCO's; the numbers are those of the package lvis. What differs from COCO:

* the 300 best detections of an image count, of all classes together;
* a detection of a class that the image neither shows nor lists under ``neg_category_ids`` is left out;
* one that finds nothing is no error where its class is among the image's ``not_exhaustive_category_ids``;
* there are no crowds, and objects or detections without area are left out.

A value is -1 where there is no ground truth to measure it on.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from boxdet.datasets.contracts import AnnotatedInCoco
from boxdet.errors import DataError
from boxdet.evaluation.coco import (
    IGNORED,
    SIZE_RANGES,
    SIZES,
    WRONG,
    Matches,
    Scores,
    Truths,
    accumulate,
    match,
    some_truths,
    truth_columns,
)
from boxdet.evaluation.coco_metrics import CocoEvaluator, checked_ranges, format_results
from boxdet.evaluation.evaluator import Evaluator, Logger, Metrics
from boxdet.files.json_text import without_garbage_search
from boxdet.registry import EVALUATORS
from boxdet.structures.instances import Fields, Instances

MAX_DETS = 300
# The letters of the classes' ``frequency``: seen on 1 to 10, 11 to 100 and more images of the training set.
FREQUENCIES = dict(r='rare', c='common', f='frequent')
_SIZES = dict(s='small', m='medium', l='large')


@EVALUATORS.register_module()
class LVISEvaluator(Evaluator[AnnotatedInCoco]):
    """LVIS's numbers, by the keys above, of an LVISDataset; the value of ``..._copypaste`` is a text.

    Args:
        metric: of ``METRICS``.
        jsonfile_prefix: also write the predictions there, in COCO's form.
        classwise: also a table and keys for each class.
        proposal_nums: as CocoEvaluator.
        iou_thrs: as CocoEvaluator.
        max_dets: detections of an image that count in 'bbox' and 'segm', default 300.
        area_ranges: as CocoEvaluator; ``bbox_AP_NAME`` of each takes the place of ``bbox_APs|m|l``.
        nproc: as CocoEvaluator.

    Raises:
        ConfigError: unknown metric, or an option out of range.
    """
    METRICS = ('bbox', 'segm', 'proposal', 'proposal_fast')
    NEEDS = dict(bbox='labels', segm='masks')
    FILES = 'jsonfile_prefix'

    def __init__(self, metric: str | Sequence[str] | None = None, jsonfile_prefix: str | None = None,
                 classwise: bool = False, proposal_nums: Sequence[int] = (100, 300, 1000),
                 iou_thrs: float | Sequence[float] | None = None, max_dets: int | None = None,
                 area_ranges: Mapping[str, Sequence[float]] | None = None, nproc: int | None = None):
        super().__init__(metric)
        self.classwise, self.iou_thrs, self.nproc = classwise, iou_thrs, nproc
        self.ranges = None if area_ranges is None else checked_ranges(area_ranges)
        # The size of an item by what stands behind 'AP'.
        self.sizes = _SIZES if self.ranges is None else {f'_{name}': name for name in self.ranges}
        self.items = [f'AP{detail}' for detail in ('', '50', '75', *self.sizes, *FREQUENCIES)]
        self.limit = MAX_DETS if max_dets is None else int(max_dets)
        own = [name for name in self.metrics if not name.startswith('proposal')]
        self._of_coco = CocoEvaluator([name for name in self.metrics if name not in own], jsonfile_prefix,
                                      proposal_nums=proposal_nums, iou_thrs=iou_thrs, area_ranges=area_ranges,
                                      nproc=nproc)
        self._own = own

    def metric_names(self) -> list[str]:
        """The keys that ``evaluate`` gives, but those of single classes and texts."""
        return self._of_coco.metric_names() + [f'{name}_{item}' for name in self._own for item in self.items]

    def check(self, dataset: AnnotatedInCoco) -> None:
        """Raise DataError when ``dataset`` holds nothing to evaluate against, or lacks what LVIS's rules need."""
        self._of_coco.check(dataset)
        require_lists(dataset)

    def reset(self, dataset: AnnotatedInCoco, logger: Logger = None) -> None:
        """Begin with ``dataset``; forget what was processed before."""
        super().reset(dataset, logger)
        self._of_coco.reset(dataset, logger)

    def evaluate(self) -> Metrics:
        """As the class says.

        Raises:
            DataError: results without the masks that 'segm' needs.
        """
        dataset, results = self.dataset, self.results
        self._of_coco.process(range(len(results)), results)
        values = self._of_coco.evaluate()
        for name in self._own:
            if name == 'segm' and not any('masks' in result for result in results):
                raise DataError("the results hold no masks: metric 'segm' needs a model with a mask head")
            scores = lvis_scores(dataset, results, name, self.limit, self.iou_thrs, self.ranges, self.nproc)
            found = {item: item_value(dataset, scores, item, self.sizes) for item in self.items}
            values.update({f'{name}_{item}': value for item, value in found.items()})
            values[f'{name}_mAP_copypaste'] = ' '.join(f'{item}:{value:.4f}' for item, value in found.items())
            _note_cut(results, name, self.limit, self.say)
            self.say(_summary(name, found, scores, self.limit, self.sizes))
            if self.classwise:
                values.update(_per_class(dataset, scores, name, self.say))
        return values

    def format_results(self, dataset: AnnotatedInCoco, results: Sequence[Instances], jsonfile_prefix: str = 'results',
                       proposals: bool | None = None) -> dict[str, str]:
        """Write COCO's result files: see boxdet/evaluation/coco_metrics.py."""
        return format_results(dataset, results, jsonfile_prefix, proposals)


def require_lists(dataset: AnnotatedInCoco) -> None:
    """Raise DataError, naming the image or category, when ``dataset`` lacks what the federated rules need."""
    for image_id in dataset.img_ids:
        for key in ('neg_category_ids', 'not_exhaustive_category_ids'):
            if not isinstance(dataset.coco.imgs[image_id].get(key), list):
                raise DataError(f"{dataset.ann_file}: image {image_id} has no list '{key}': LVIS's evaluation needs it "
                                '(CocoDataset evaluates a file of fully annotated images)')
    for category_id in dataset.cat_ids:
        category = dataset.coco.cats.get(category_id)
        if category is not None and category.get('frequency') not in FREQUENCIES:
            raise DataError(f"{dataset.ann_file}: category {category_id} ({category['name']}) needs a 'frequency' "
                            f"({', '.join(FREQUENCIES)}), not {category.get('frequency')!r}")


# ---------------------------------------------------------------------------------------------- the rules of LVIS


def lvis_scores(dataset: AnnotatedInCoco, results: Sequence[Instances], iou_type: str, limit: int = MAX_DETS,
                iou_thrs: float | Sequence[float] | np.ndarray | None = None,
                ranges: Mapping[str, Sequence[float]] | None = None, nproc: int | None = None) -> Scores:
    """Precision and recall by LVIS's rules.

    Args:
        dataset: an LVISDataset.
        results: one Instances an image.
        iou_type: 'bbox' or 'segm'.
        limit: detections of an image that count.
        iou_thrs: default 0.50, 0.55, ... 0.95.
        ranges: of the area in square pixels by name; None for COCO's.
        nproc: see ``coco.match``.
    """
    images = [dataset.coco.imgs[image_id] for image_id in dataset.img_ids]
    gt = _truths(dataset, iou_type)
    present = _table(len(images), len(dataset.cat_ids), gt.image, gt.label)
    searched = present | _listed(dataset, images, 'neg_category_ids')
    with without_garbage_search():
        matches = match(gt, results, images, dataset.cat_ids, iou_type, iou_thrs, limit,
                        sizes=SIZES if ranges is None else {'all': SIZE_RANGES['all'], **ranges},
                        select=partial(_wanted, searched=searched, limit=limit), nproc=nproc)
        matches = _forgiven(matches, _listed(dataset, images, 'not_exhaustive_category_ids'))
        return accumulate(matches, dataset.img_ids, dataset.cat_ids, [limit], nproc)


def _truths(dataset: AnnotatedInCoco, iou_type: str) -> Truths:
    """The objects that have an area, none of them a crowd."""
    gt = truth_columns(dataset.coco, dataset.img_ids, dataset.cat_ids, iou_type)
    with_area, nowhere = np.flatnonzero(gt.area > 0), np.zeros(len(gt.area), dtype=bool)
    ignored = np.array([bool(dataset.coco.anns[i].get('ignore')) for i in gt.ids.tolist()], dtype=bool)
    gt = replace(gt, crowd=nowhere, shared=nowhere, ignored=ignored)
    return some_truths(gt, with_area)


def _listed(dataset: AnnotatedInCoco, images: Sequence[dict], key: str) -> np.ndarray:
    """(images, K) bool: the classes that the entries of the images list under ``key``."""
    labels = {category: label for label, category in enumerate(dataset.cat_ids)}
    pairs = [(place, labels[category]) for place, image in enumerate(images) for category in image[key]
             if category in labels]
    place, label = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return _table(len(images), len(labels), place, label)


def _table(images: int, classes: int, place: np.ndarray, label: np.ndarray) -> np.ndarray:
    table = np.zeros((images, classes), dtype=bool)
    table[place, label] = True
    return table


def _wanted(place: int, fields: Fields, searched: np.ndarray, limit: int) -> Fields:
    """Of an image's ``limit`` best detections those of classes that it was ``searched`` for (images, K)."""
    best = np.argsort(-fields['scores'], kind='stable')[:limit]
    rows = best[searched[place, fields['labels'][best]]]
    return {name: [value[row] for row in rows] if isinstance(value, list) else value[rows]
            for name, value in fields.items()}


def _forgiven(matches: Matches, not_exhaustive: np.ndarray) -> Matches:
    """Unmatched detections are ignored in classes whose objects are not all annotated, and where they have no area."""
    forgiven = not_exhaustive[matches.image, matches.label]
    status = np.where((matches.status == WRONG) & forgiven | ~(matches.area > 0), np.int8(IGNORED), matches.status)
    return replace(matches, status=status)


def item_value(dataset: AnnotatedInCoco, scores: Scores, item: str, sizes: Mapping[str, str] = _SIZES) -> float:
    """The value of 'AP', 'AP50', 'APs', 'APr', ...; -1 without ground truth; ``sizes`` are those behind 'AP'."""
    detail = item[2:]
    limit, = scores.limits
    if detail in FREQUENCIES:
        rows = [k for k, category in enumerate(scores.category_ids)
                if category in dataset.coco.cats and dataset.coco.cats[category]['frequency'] == detail]
        values = scores.precision[:, :, rows, 0, 0]
        values = values[values > -1]
        return float(np.mean(values)) if len(values) else -1.0
    if detail.isdigit():
        return scores.ap(iou=int(detail) / 100, limit=limit)
    return scores.ap(size=sizes.get(detail, 'all'), limit=limit)


# ---------------------------------------------------------------------------------------------- tables


def _note_cut(results: Sequence[Instances], metric: str, limit: int, say: Callable[..., None]) -> None:
    cut = sum(len(result) > limit for result in results)
    if cut:
        say(f'{cut} images have more than {limit} detections; {metric} counts the {limit} best of them',
            logging.WARNING)


def _summary(metric: str, found: dict[str, float], scores: Scores, limit: int, sizes: Mapping[str, str]) -> str:
    """One line an item, in the manner of pycocotools."""
    span = f'{scores.iou_thrs[0]:0.2f}:{scores.iou_thrs[-1]:0.2f}'
    line = ' Average {:<9} ({}) @[ IoU={:<9} | area={:>6} | maxDets={:>4} | classes={:>8} ] = {:0.3f}'
    rows = []
    for item, value in found.items():
        detail = item[2:]
        iou = f'{int(detail) / 100:0.2f}' if detail.isdigit() else span
        rows.append(line.format('Precision', 'AP', iou, sizes.get(detail, 'all'), limit,
                                FREQUENCIES.get(detail, 'all'), value))
    for size in ('all', *sizes.values()):
        rows.append(line.format('Recall', 'AR', span, size, limit, 'all', scores.ar(size=size, limit=limit)))
    return '\n'.join([f'{metric}:', *rows])


def _per_class(dataset: AnnotatedInCoco, scores: Scores, metric: str, say: Callable[..., None]) -> dict[str, float]:
    """Log the table of classes that have objects; return the AP of all by ``METRIC_NAME_precision``."""
    from terminaltables import AsciiTable

    limit, = scores.limits
    values = {name: scores.ap(limit=limit, category=category)
              for name, category in zip(dataset.CLASSES, dataset.cat_ids)}
    frequency = {name: FREQUENCIES[dataset.coco.cats[category]['frequency']]
                 for name, category in zip(dataset.CLASSES, dataset.cat_ids) if category in dataset.coco.cats}
    table = AsciiTable([['class', 'frequency', 'AP'], *([name, frequency[name], f'{value:.3f}']
                                                        for name, value in values.items() if value >= 0)])
    table.justify_columns[2] = 'right'
    say(f'{metric} by class:\n{table.table}')
    return {f'{metric}_{name}_precision': value for name, value in values.items()}
