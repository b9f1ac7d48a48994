"""From a data set, results and metric names to numbers, under mmdetection 2.x's keys.

| metric          | keys                                                                              |
|-----------------|-----------------------------------------------------------------------------------|
| 'bbox', 'segm'  | ``bbox_mAP``, ``bbox_mAP_50|75|s|m|l``, ``bbox_mAP_copypaste``; ``segm_...``      |
| 'proposal'      | ``AR@100``, ``AR@300``, ``AR@1000``, ``AR_s@1000``, ``AR_m@1000``, ``AR_l@1000``  |
| 'proposal_fast' | ``AR@100``, ``AR@300``, ``AR@1000`` (``proposal_fast_AR@100`` beside 'proposal')  |
| ``classwise``   | besides, ``bbox_NAME_precision`` for each class                                   |

A value is -1 where there is no ground truth to measure it on, as in pycocotools.
"""
from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Union

import numpy as np
import torch

from boxdet.errors import ConfigError, DataError, nearest
from boxdet.evaluation.coco import Scores, coco_scores
from boxdet.evaluation.predictions import coco_predictions, from_legacy, write_json
from boxdet.evaluation.proposals import proposal_recall
from boxdet.structures.instances import Instances

METRICS = ('bbox', 'segm', 'proposal', 'proposal_fast')
_AP_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_SIZES = dict(s='small', m='medium', l='large')
_DEFAULT_LIMIT = 100  # COCO's rule: the 100 best detections of an image count

Logger = Union[None, str, logging.Logger]


def evaluate(dataset: Any, results: Iterable[Any], metric: str | Sequence[str] = 'bbox',
             logger: Logger = None, jsonfile_prefix: str | None = None, classwise: bool = False,
             proposal_nums: Sequence[int] = (100, 300, 1000), iou_thrs: float | Sequence[float] | None = None,
             metric_items: str | Sequence[str] | None = None, max_dets: int | None = None) -> dict[str, Any]:
    """Evaluate ``results``, one for each image of ``dataset`` in its order.

    Args:
        dataset: gives ``coco`` (pycocotools), ``img_ids``, ``cat_ids`` and ``CLASSES``.
        results: Instances, or mmdetection 2.x's lists.
        metric: one or several of 'bbox', 'segm', 'proposal', 'proposal_fast'.
        logger: where the tables go: None prints them, 'silent' drops them.
        jsonfile_prefix: also write the predictions there, see ``format_results``.
        classwise: also a table and keys for each class.
        proposal_nums: numbers of proposals an image for average recall, rising.
        iou_thrs: default 0.50, 0.55, ... 0.95.
        metric_items: the items wanted ('mAP', 'mAP_50', ..., 'AR@100', 'AR_s@1000', ...) in place of the
            usual ones.
        max_dets: detections an image that count in 'bbox' and 'segm', default 100 as COCO has it.

    Returns:
        dict of floats by the keys above; the ``..._copypaste`` value is a text.

    Raises:
        ConfigError: unknown metric or item. DataError: no annotations, or results that do not fit the data
            set.
    """
    metrics = _checked_metrics(metric)
    nums = sorted({int(n) for n in np.atleast_1d(proposal_nums)})
    thrs = _thresholds(iou_thrs)
    items = {name: _checked_items(name, metric_items, nums) for name in metrics}
    results = _aligned(dataset, results)
    require_annotations(dataset)
    say = _speaker(logger)
    if jsonfile_prefix is not None:
        format_results(dataset, results, jsonfile_prefix)
    if not any(len(result) for result in results):
        say(f'the results of all {len(results)} images are empty: every metric is 0', logging.WARNING)
    values: dict[str, Any] = {}
    for name in metrics:
        if name == 'proposal_fast':
            prefix = 'proposal_fast_' if 'proposal' in metrics else ''
            values.update(_fast_recall(dataset, results, nums, thrs, prefix, say))
            continue
        limit = _DEFAULT_LIMIT if max_dets is None or name == 'proposal' else int(max_dets)
        scores = _scores(dataset, results, name, thrs, sorted({limit, *nums}))
        _note_cut(results, name, limit, say)
        found = {item: item_value(scores, item, limit, nums) for item in items[name]}
        if name == 'proposal':
            values.update(found)
        else:
            values.update({f'{name}_{item}': value for item, value in found.items()})
            six = [item_value(scores, item, limit, nums) for item in _AP_ITEMS]
            values[f'{name}_mAP_copypaste'] = ' '.join(f'{value:.3f}' for value in six)
        say(_summary(name, scores, limit, nums))
        if classwise and name != 'proposal':
            values.update(_per_class(dataset, scores, name, limit, say))
    return values


def format_results(dataset: Any, results: Iterable[Any], jsonfile_prefix: str,
                   proposals: bool | None = None) -> dict[str, str]:
    """Write ``PREFIX.bbox.json`` and, of results with masks, ``PREFIX.segm.json``; of an RPN
    ``PREFIX.proposal.json``.

    Needs no annotations. The files are COCO's result format: servers and pycocotools' ``loadRes`` take them.

    Args:
        proposals: whether an RPN made the results; None: found from them.

    Returns:
        the paths by 'bbox', 'segm', 'proposal' (the file to evaluate that metric with).

    Raises:
        DataError: results that do not fit the data set, or a folder that cannot be written.
    """
    results = _aligned(dataset, results)
    prefix = os.fspath(jsonfile_prefix)
    if _are_proposals(results, len(dataset.cat_ids)) if proposals is None else proposals:
        kinds = ['proposal']
    else:
        kinds = ['bbox', 'segm'] if any('masks' in result for result in results) else ['bbox']
    files = {}
    for kind in kinds:
        files[kind] = f'{prefix}.{kind}.json'
        write_json(files[kind], _predictions(dataset, results, kind))
    files.setdefault('proposal', files[kinds[0]])
    return files


def item_value(scores: Scores, item: str, limit: int, proposal_nums: Sequence[int]) -> float:
    """The value of 'mAP', 'mAP_50', 'mAP_s', 'AR@100', 'AR_s@1000', ...

    AP counts ``limit`` detections an image; 'AR@N' counts N, which is one of ``proposal_nums``.
    """
    if item.startswith('AR'):
        name, _, num = item.partition('@')
        return scores.ar(size=_SIZES.get(name[3:], 'all'), limit=int(num))
    detail = item[4:]
    if detail.isdigit():
        return scores.ap(iou=int(detail) / 100, limit=limit)
    return scores.ap(size=_SIZES.get(detail, 'all'), limit=limit)


def metric_names(metric: str | Sequence[str] = 'bbox', metric_items: str | Sequence[str] | None = None,
                 proposal_nums: Sequence[int] = (100, 300, 1000)) -> list[str]:
    """The keys that ``evaluate`` gives with these options, but those of single classes and ``..._copypaste``.

    Raises:
        ConfigError: unknown metric or item.
    """
    metrics, nums = _checked_metrics(metric), sorted({int(n) for n in np.atleast_1d(proposal_nums)})
    names = []
    for name in metrics:
        if name == 'proposal_fast':
            names += [('proposal_fast_' if 'proposal' in metrics else '') + f'AR@{n}' for n in nums]
            continue
        items = _checked_items(name, metric_items, nums)
        names += items if name == 'proposal' else [f'{name}_{item}' for item in items]
    return names


def _checked_metrics(metric: str | Sequence[str]) -> list[str]:
    metrics = [metric] if isinstance(metric, str) else list(dict.fromkeys(metric))
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"unknown metric '{name}'{nearest(name, METRICS)} (this data set has "
                              f"{', '.join(METRICS)})")
    return metrics


def _checked_items(metric: str, wanted: str | Sequence[str] | None, nums: Sequence[int]) -> list[str]:
    recalls = [f'AR@{n}' for n in nums] + [f'AR_{size}@{nums[-1]}' for size in _SIZES]
    if wanted is None:
        return recalls if metric == 'proposal' else list(_AP_ITEMS)
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    for item in wanted:
        if item not in (*_AP_ITEMS, *recalls):
            raise ConfigError(f"unknown metric item '{item}'{nearest(item, [*_AP_ITEMS, *recalls])}")
    return wanted


def _thresholds(iou_thrs: float | Sequence[float] | None) -> np.ndarray:
    if iou_thrs is None:
        return np.linspace(0.5, 0.95, 10)
    return np.atleast_1d(np.asarray(iou_thrs, dtype=np.float64))


def _aligned(dataset: Any, results: Iterable[Any]) -> list[Instances]:
    """The results as Instances, checked against the data set."""
    results = [from_legacy(result) for result in results]
    results = [
        r if 'labels' in r else r.replace(labels=torch.zeros(len(r), dtype=torch.long)) for r in results]
    if len(results) != len(dataset):
        raise DataError(
            f'{len(results)} results for a data set of {len(dataset)} images: they belong to another '
            'data set, or a run that did not end')
    classes = len(dataset.cat_ids)
    for index, result in enumerate(results):
        if len(result) and int(result.labels.max()) >= classes:
            raise DataError(
                f'image {dataset.img_ids[index]}: a detection of class {int(result.labels.max())}, but the '
                f'data set has {classes} classes (0 to {classes - 1}): the model was made for others')
    return results


def require_annotations(dataset: Any) -> None:
    """Raise DataError when ``dataset`` holds nothing to evaluate against."""
    if not dataset.coco.anns:
        source = getattr(dataset, 'ann_file', 'the data set')
        raise DataError(
            f'{source} holds no annotations, so there is nothing to evaluate against: use --format-only to '
            'write the predictions')


def _are_proposals(results: Sequence[Instances], classes: int) -> bool:
    """Whether an RPN made them: it knows of one class, or none, whatever the data set has."""
    return bool(results) and all('masks' not in result and not result.labels.any()
                                 and (result.num_classes is None or result.num_classes == 1 < classes)
                                 for result in results)


def _predictions(dataset: Any, results: Sequence[Instances], kind: str) -> list[dict]:
    return [row for image_id, result in zip(dataset.img_ids, results)
            for row in coco_predictions(result, image_id, dataset.cat_ids, kind)]


def _scores(dataset: Any, results: Sequence[Instances], metric: str, thrs: np.ndarray,
            limits: list[int]) -> Scores:
    # Proposals keep their labels here: pycocotools only sees detections of the categories that it evaluates.
    kind = 'segm' if metric == 'segm' else 'bbox'
    if kind == 'segm' and not any('masks' in result for result in results):
        raise DataError("the results hold no masks: metric 'segm' needs a model with a mask head")
    return coco_scores(dataset.coco, _predictions(dataset, results, kind), kind, dataset.img_ids,
                       dataset.cat_ids, limits, thrs, class_agnostic=metric == 'proposal')


def _fast_recall(dataset: Any, results: Sequence[Instances], nums: Sequence[int], thrs: np.ndarray,
                 prefix: str, say: Callable) -> dict[str, float]:
    """AR of 'proposal_fast': crowds and ignored boxes are no ground truth."""
    wanted = set(dataset.cat_ids)
    truths = []
    for image_id in dataset.img_ids:
        rows = [a['bbox'] for a in dataset.coco.imgToAnns.get(image_id, ())
                if not a.get('ignore', False) and not a.get('iscrowd', 0) and a['category_id'] in wanted]
        boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
        truths.append(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    found = []
    for result in results:
        arrays = result.numpy()
        found.append(arrays['bboxes'][np.argsort(-arrays['scores'], kind='stable')])
    recall = proposal_recall(truths, found, nums, thrs).mean(axis=1)
    values = {f'{prefix}AR@{num}': float(value) for num, value in zip(nums, recall)}
    say('proposal_fast: ' + ', '.join(f'AR@{num} {value:.4f}' for num, value in zip(nums, recall)))
    return values


def _note_cut(results: Sequence[Instances], metric: str, limit: int, say: Callable) -> None:
    if metric == 'proposal':
        return
    cut = sum(bool(len(r) and np.bincount(r.numpy()['labels']).max() > limit) for r in results)
    if cut:
        say(f'{cut} images have more than {limit} detections of one class; {metric} counts the {limit} best '
            'of them (evaluate with max_dets for more)', logging.WARNING)


def _summary(metric: str, scores: Scores, limit: int, nums: Sequence[int]) -> str:
    """The table that pycocotools prints."""
    span = f'{scores.iou_thrs[0]:0.2f}:{scores.iou_thrs[-1]:0.2f}'
    line = ' Average {:<9} ({}) @[ IoU={:<9} | area={:>6} | maxDets={:>4} ] = {:0.3f}'
    lines = [f'{metric}:']
    if metric != 'proposal':
        rows = [(span, None, 'all'), ('0.50', 0.5, 'all'), ('0.75', 0.75, 'all')] + [
            (span, None, size) for size in _SIZES.values()]
        lines += [
            line.format('Precision', 'AP', text, size, limit, scores.ap(iou=iou, size=size, limit=limit))
            for text, iou, size in rows]
    recalls = [('all', n) for n in nums] + [(size, nums[-1]) for size in _SIZES.values()]
    lines += [
        line.format('Recall', 'AR', span, size, n, scores.ar(size=size, limit=n)) for size, n in recalls]
    return '\n'.join(lines)


def _per_class(dataset: Any, scores: Scores, metric: str, limit: int, say: Callable) -> dict[str, float]:
    """Log the table of classes; return their AP by ``METRIC_NAME_precision``."""
    from terminaltables import AsciiTable

    wanted = set(dataset.img_ids)
    boxes = Counter(a['category_id'] for a in dataset.coco.anns.values()
                    if a['image_id'] in wanted and not a.get('iscrowd', 0))
    rows, values = [], {}
    for name, category in zip(dataset.CLASSES, dataset.cat_ids):
        numbers = [
            scores.ap(iou=iou, size=size, limit=limit, category=category)
            for iou, size in ((None, 'all'), (0.5, 'all'), (0.75, 'all'), (None, 'small'), (None, 'medium'),
                              (None, 'large'))]
        values[f'{metric}_{name}_precision'] = numbers[0]
        rows.append([name, str(boxes[category]), *('-' if n < 0 else f'{n:.3f}' for n in numbers)])
    table = AsciiTable([['class', 'objects', 'AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large'],
                        *rows])
    table.justify_columns = {column: 'right' for column in range(1, 8)}
    say(f'{metric} by class:\n{table.table}')
    return values


def _speaker(logger: Logger) -> Callable[..., None]:
    def say(text: str, level: int = logging.INFO) -> None:
        if isinstance(logger, logging.Logger):
            logger.log(level, text)
        elif logger != 'silent':
            print(text)
    return say
