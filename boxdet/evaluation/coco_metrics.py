"""COCO's metrics of boxes, masks, keypoints, proposals, under mmdetection 2.x's keys: ``CocoEvaluator``.

| metric          | keys                                                                              |
|-----------------|-----------------------------------------------------------------------------------|
| 'bbox', 'segm'  | ``bbox_mAP``, ``bbox_mAP_50|75|s|m|l``, ``bbox_mAP_copypaste``; ``segm_...``      |
| 'keypoints'     | ``keypoints_mAP``, ``keypoints_mAP_50|75|m|l``, ``keypoints_mAP_copypaste``       |
| 'proposal'      | ``AR@100``, ``AR@300``, ``AR@1000``, ``AR_s@1000``, ``AR_m@1000``, ``AR_l@1000``  |
| 'proposal_fast' | ``AR@100``, ``AR@300``, ``AR@1000`` (``proposal_fast_AR@100`` beside 'proposal')  |
| ``classwise``   | besides, ``bbox_NAME_precision`` for each class                                   |

A value is -1 where there is no ground truth to measure it on, as in pycocotools.
"""
from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from boxdet.datasets.contracts import AnnotatedInCoco, with_keypoints
from boxdet.errors import ConfigError, DataError, nearest
from boxdet.evaluation.coco import SIZE_RANGES, OksSettings, Scores, coco_scores
from boxdet.evaluation.concat import JoinedCoco
from boxdet.evaluation.evaluator import Evaluator, Metrics
from boxdet.evaluation.predictions import coco_predictions
from boxdet.evaluation.processes import checked_nproc
from boxdet.evaluation.proposals import proposal_recall
from boxdet.evaluation.stored_results import labels_of
from boxdet.files.writing import write_json_list
from boxdet.geometry.keypoints import HALF_PIXEL
from boxdet.registry import EVALUATORS
from boxdet.structures.instances import Instances

_AP_ITEMS = ('mAP', 'mAP_50', 'mAP_75')
_KEYPOINT_RECALLS = ('AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l')
_SIZES = dict(s='small', m='medium', l='large')
_DEFAULT_LIMIT = 100  # COCO's rule: the 100 best detections of an image and class count
_KEYPOINT_LIMIT = 20  # and the 20 best persons


@EVALUATORS.register_module()
class CocoEvaluator(Evaluator[AnnotatedInCoco]):
    """COCO's numbers, by the keys above; a value with ``copypaste`` in its key is a text.

    The data set gives ``coco`` (pycocotools), ``img_ids``, ``cat_ids`` and ``CLASSES``.

    Args:
        metric: of ``METRICS``.
        jsonfile_prefix: also write the predictions there, see ``format_results``.
        classwise: also a table and keys for each class.
        proposal_nums: numbers of proposals an image for average recall, rising.
        iou_thrs: default 0.50, 0.55, ... 0.95.
        metric_items: the items wanted ('mAP', 'mAP_50', ..., 'AR@100', 'AR_s@1000', ...; of keypoints 'AR', 'AR_50',
            ...) in place of the usual ones.
        max_dets: detections of an image and class that count in 'bbox' and 'segm'. Default: 100 as COCO has it, and all
            of them, with a note, where the model gives more (its ``max_per_img`` is above 100). 20 in 'keypoints'.
        area_ranges: ranges of the objects' area in square pixels, by name, in place of COCO's small (below 32 * 32),
            medium and large (from 96 * 96): ``dict(tiny=(0, 256), rest=(256, 1e10))`` gives ``bbox_mAP_tiny``, ...
        nproc: processes that share the work; default as many as this process has processors, where there is enough to
            do. The numbers are the same.

    Raises:
        ConfigError: unknown metric or item, or an option out of range.
    """
    METRICS = ('bbox', 'segm', 'keypoints', 'proposal', 'proposal_fast')
    NEEDS = dict(bbox='labels', segm='masks', keypoints='keypoints')
    FILES = 'jsonfile_prefix'
    joined = JoinedCoco

    def __init__(self, metric: str | Sequence[str] | None = None, jsonfile_prefix: str | None = None,
                 classwise: bool = False, proposal_nums: Sequence[int] = (100, 300, 1000),
                 iou_thrs: float | Sequence[float] | None = None, metric_items: str | Sequence[str] | None = None,
                 max_dets: int | None = None, area_ranges: Mapping[str, Sequence[float]] | None = None,
                 nproc: int | None = None):
        super().__init__(metric)
        self.nproc = checked_nproc(nproc)
        self.jsonfile_prefix, self.classwise, self.max_dets = jsonfile_prefix, classwise, max_dets
        self.nums = sorted({int(n) for n in np.atleast_1d(proposal_nums)})
        self.thrs = np.linspace(0.5, 0.95, 10) if iou_thrs is None else np.atleast_1d(np.asarray(iou_thrs, np.float64))
        self.ranges = None if area_ranges is None else checked_ranges(area_ranges)
        self.items = self._items(metric_items)
        if max_dets is not None and int(max_dets) < 1:
            raise ConfigError(f'max_dets={max_dets}: at least 1 detection counts')

    def metric_names(self) -> list[str]:
        """The keys that ``evaluate`` gives, but those of single classes and ``..._copypaste``."""
        names = []
        for name in self.metrics:
            if name == 'proposal_fast':
                names += [f'{self._fast_prefix}AR@{n}' for n in self.nums]
                continue
            names += self.items[name] if name == 'proposal' else [f'{name}_{item}' for item in self.items[name]]
        return names

    def check(self, dataset: AnnotatedInCoco) -> None:
        """Raise UserError when ``dataset`` holds nothing to evaluate against, or does not know its keypoints."""
        if not dataset.coco.anns:
            source = getattr(dataset, 'ann_file', 'the data set')
            raise DataError(f'{source} holds no annotations, so there is nothing to evaluate against: use '
                            '--format-only to write the predictions')
        if 'keypoints' in self.metrics:
            _oks_settings(dataset)

    def evaluate(self) -> Metrics:
        """As the class says.

        Raises:
            DataError: results without the masks or keypoints that a metric needs.
        """
        dataset, results, say = self.dataset, self.results, self.say
        if self.jsonfile_prefix is not None:
            self.format_results(dataset, results, self.jsonfile_prefix)
        values: Metrics = {}
        for name in self.metrics:
            if name == 'proposal_fast':
                values.update(_fast_recall(dataset, results, self.nums, self.thrs, self._fast_prefix, say))
                continue
            limit = _limit(results, name, self.max_dets, say)
            limits = [limit] if name == 'keypoints' else sorted({limit, *self.nums})
            scores = _scores(dataset, results, name, self.thrs, limits, self.ranges, self.nproc)
            found = {item: item_value(scores, item, limit) for item in self.items[name]}
            if name == 'proposal':
                values.update(found)
            else:
                values.update({f'{name}_{item}': value for item, value in found.items()})
                usual = [item_value(scores, item, limit) for item in self._usual_items(name)]
                values[f'{name}_mAP_copypaste'] = ' '.join(f'{value:.3f}' for value in usual)
            say(_summary(name, scores, limit, self.nums))
            if self.classwise and name != 'proposal':
                values.update(_per_class(dataset, scores, name, limit, say))
        return values

    def format_results(self, dataset: AnnotatedInCoco, results: Sequence[Instances], jsonfile_prefix: str = 'results',
                       proposals: bool | None = None) -> dict[str, str]:
        """Write COCO's result files: see the function of this name."""
        return format_results(dataset, results, jsonfile_prefix, proposals)

    @property
    def _fast_prefix(self) -> str:
        return 'proposal_fast_' if 'proposal' in self.metrics else ''

    def _items(self, wanted: str | Sequence[str] | None) -> dict[str, list[str]]:
        """The items of each metric. Of the wanted ones each takes those that it has (keypoints have no small size)."""
        if wanted is None:
            return {name: self._usual_items(name) for name in self.metrics}
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        known = {name: [*self._usual_items('keypoints'), *_KEYPOINT_RECALLS] if name == 'keypoints' else
                 [*self._usual_items('bbox'), *self._usual_items('proposal')] for name in self.metrics}
        every = list(dict.fromkeys(item for items in known.values() for item in items))
        for item in wanted:
            if item not in every:
                raise ConfigError(f"unknown metric item '{item}'{nearest(item, every)}")
        return {name: [item for item in wanted if item in items] for name, items in known.items()}

    def _usual_items(self, metric: str) -> list[str]:
        sizes = list(self.ranges or _SIZES)
        if metric.startswith('proposal'):
            return [f'AR@{n}' for n in self.nums] + [f'AR_{size}@{self.nums[-1]}' for size in sizes]
        return [*_AP_ITEMS, *(f'mAP_{size}' for size in sizes if metric != 'keypoints' or self.ranges or size != 's')]


def checked_ranges(ranges: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """``area_ranges`` as numbers.

    Raises:
        ConfigError: no dict of pairs (smallest, largest) by names.
    """
    checked = {}
    for name, span in ranges.items() if isinstance(ranges, Mapping) else [(ranges, None)]:
        try:
            low, high = (float(side) for side in span)
            named = isinstance(name, str) and name != 'all' and not name.isdigit() and '@' not in name
            usable = named and 0 <= low < high
        except (TypeError, ValueError):
            usable = False
        if not usable:
            raise ConfigError(f'area_ranges: a name and its smallest and largest area in square pixels, such as '
                              f'dict(tiny=(0, 256), rest=(256, 1e10)), not {name!r}: {span!r}')
        checked[name] = (low, high)
    return checked


def format_results(dataset: AnnotatedInCoco, results: Sequence[Instances], jsonfile_prefix: str = 'results',
                   proposals: bool | None = None) -> dict[str, str]:
    """Write ``PREFIX.bbox.json``, or of an RPN ``PREFIX.proposal.json``.

    Of results with masks also ``PREFIX.segm.json``, with keypoints ``PREFIX.keypoints.json``. Needs no annotations. The
    files are COCO's result format: servers and pycocotools' ``loadRes`` take them.

    Args:
        dataset: gives ``img_ids`` and ``cat_ids``.
        results: one Instances an image.
        jsonfile_prefix: PREFIX.
        proposals: whether an RPN made the results; None: found from them.

    Returns:
        the paths by 'bbox', 'segm', 'keypoints', 'proposal' (the file to evaluate that metric with).

    Raises:
        DataError: a folder that cannot be written.
    """
    prefix = os.fspath(jsonfile_prefix)
    kinds = ['bbox', *(kind for kind, field in (('segm', 'masks'), ('keypoints', 'keypoints'))
                       if any(field in result for result in results))]
    if _are_proposals(results, len(dataset.cat_ids)) if proposals is None else proposals:
        kinds = ['proposal']
    files = {}
    for kind in kinds:
        files[kind] = f'{prefix}.{kind}.json'
        write_json_list(files[kind], _predictions(dataset, results, kind))
    files.setdefault('proposal', files[kinds[0]])
    return files


def item_value(scores: Scores, item: str, limit: int) -> float:
    """The value of 'mAP', 'mAP_50', 'mAP_s', 'AR', 'AR_50', 'AR@100', 'AR_s@1000', ...

    ``limit`` detections of an image and class count, in 'AR@N' N of them (a limit of ``scores``).
    """
    name, _, num = item.partition('@')
    measure, _, detail = name.partition('_')
    return (scores.ar if measure == 'AR' else scores.ap)(
        iou=int(detail) / 100 if detail.isdigit() else None,
        size='all' if detail.isdigit() or not detail else _SIZES.get(detail, detail),
        limit=int(num) if num else limit)


def _are_proposals(results: Sequence[Instances], classes: int) -> bool:
    """Whether an RPN made them: it knows of one class, or none, whatever the data set has."""
    return bool(results) and all('masks' not in result and not result.labels.any()
                                 and (result.num_classes is None or result.num_classes == 1 < classes)
                                 for result in results)


def _predictions(dataset: AnnotatedInCoco, results: Sequence[Instances], kind: str) -> Iterator[dict]:
    offset = getattr(dataset, 'keypoint_offset', HALF_PIXEL)
    for image_id, result in zip(dataset.img_ids, results):
        yield from coco_predictions(result, image_id, dataset.cat_ids, kind, offset)


def _scores(dataset: AnnotatedInCoco, results: Sequence[Instances], metric: str, thrs: np.ndarray,
            limits: list[int], ranges: Mapping[str, Sequence[float]] | None, nproc: int | None) -> Scores:
    oks_settings = _oks_settings(dataset) if metric == 'keypoints' else None
    field = dict(segm='masks', keypoints='keypoints').get(metric)
    if field is not None and not any(field in result for result in results):
        raise DataError(f"the results hold no {field}: metric '{metric}' needs a model with a "
                        f"{field.removesuffix('s')} head")
    return coco_scores(dataset.coco, results, 'bbox' if metric == 'proposal' else metric, dataset.img_ids,
                       dataset.cat_ids, limits, thrs, class_agnostic=metric == 'proposal', oks_settings=oks_settings,
                       sizes=None if ranges is None else {'all': SIZE_RANGES['all'], **ranges}, nproc=nproc)


def _oks_settings(dataset: AnnotatedInCoco) -> OksSettings:
    """How the keypoints of ``dataset`` are compared.

    Raises:
        ConfigError: it has none, or does not say how far each may be off.
    """
    if not with_keypoints(dataset):
        raise ConfigError(f"metric 'keypoints' needs a CocoKeypointDataset, not a {type(dataset).__name__}")
    if dataset.SIGMAS is None:
        raise ConfigError(f"metric 'keypoints' needs sigmas=[...] of the {len(dataset.KEYPOINT_NAMES)} keypoints of "
                          f'{dataset.ann_file}, how far each may be off: only those of COCO are known')
    return OksSettings(dataset.SIGMAS, dataset.keypoint_offset)


def _fast_recall(dataset: AnnotatedInCoco, results: Sequence[Instances], nums: Sequence[int], thrs: np.ndarray,
                 prefix: str, say: Callable) -> dict[str, float]:
    """AR of 'proposal_fast': crowds and ignored boxes are no ground truth."""
    wanted = set(dataset.cat_ids)
    gt = []
    for image_id in dataset.img_ids:
        rows = [a['bbox'] for a in dataset.coco.imgToAnns.get(image_id, ())
                if not a.get('ignore', False) and not a.get('iscrowd', 0) and a['category_id'] in wanted]
        boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
        gt.append(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    proposals = []
    for result in results:
        arrays = result.numpy()
        proposals.append(arrays['bboxes'][np.argsort(-arrays['scores'], kind='stable')])
    recall = proposal_recall(gt, proposals, nums, thrs).mean(axis=1)
    values = {f'{prefix}AR@{num}': float(value) for num, value in zip(nums, recall)}
    say('proposal_fast: ' + ', '.join(f'AR@{num} {value:.4f}' for num, value in zip(nums, recall)))
    return values


def _limit(results: Sequence[Instances], metric: str, max_dets: int | None, say: Callable) -> int:
    """How many detections of an image and class count; says so when COCO's rule would leave some out."""
    if metric == 'proposal':
        return _DEFAULT_LIMIT
    if metric == 'keypoints' and max_dets is None:
        return _KEYPOINT_LIMIT
    most = np.array([np.bincount(labels).max(initial=0) for labels in labels_of(results)])
    limit = _DEFAULT_LIMIT if max_dets is None else int(max_dets)
    if most.max(initial=0) <= limit:
        return limit
    told = f'{(most > limit).sum()} images have more than {limit} detections of one class'
    if max_dets is not None:
        say(f'{told}; {metric} counts the {limit} best of them (evaluate with max_dets for more)', logging.WARNING)
        return limit
    say(f'{told} (up to {most.max()}): {metric} counts all that the model gives (max_per_img); with max_dets={limit} '
        f'it counts the {limit} best, as COCO does', logging.WARNING)
    return int(most.max())


def _summary(metric: str, scores: Scores, limit: int, nums: Sequence[int]) -> str:
    """The table that pycocotools prints."""
    span = f'{scores.iou_thrs[0]:0.2f}:{scores.iou_thrs[-1]:0.2f}'
    line = ' Average {:<9} ({}) @[ IoU={:<9} | area={:>{width}} | maxDets={:>4} ] = {:0.3f}'
    rows = [(None, 'all'), (0.5, 'all'), (0.75, 'all'), *((None, size) for size in scores.sizes[1:])]
    line = line.replace('{width}', str(max(6, *map(len, scores.sizes))))
    texts = {None: span, 0.5: '0.50', 0.75: '0.75'}
    lines = [f'{metric}:']
    if metric != 'proposal':
        lines += [line.format('Precision', 'AP', texts[iou], size, limit, scores.ap(iou=iou, size=size, limit=limit))
                  for iou, size in rows]
    if metric == 'keypoints':
        recalls: list[tuple[float | None, str, int]] = [(iou, size, limit) for iou, size in rows]
    else:
        recalls = [*((None, 'all', n) for n in nums), *((None, size, nums[-1]) for size in scores.sizes[1:])]
    lines += [line.format('Recall', 'AR', texts[iou], size, n, scores.ar(iou=iou, size=size, limit=n))
              for iou, size, n in recalls]
    return '\n'.join(lines)


def _per_class(dataset: AnnotatedInCoco, scores: Scores, metric: str, limit: int, say: Callable) -> dict[str, float]:
    """Log the table of classes; return their AP by ``METRIC_NAME_precision``."""
    from terminaltables import AsciiTable

    wanted = set(dataset.img_ids)
    boxes = Counter(a['category_id'] for a in dataset.coco.anns.values()
                    if a['image_id'] in wanted and not a.get('iscrowd', 0)
                    and (metric != 'keypoints' or a.get('num_keypoints')))
    rows, values = [], {}
    sizes = scores.sizes[1:] if set(scores.sizes) - set(SIZE_RANGES) else ('small', 'medium', 'large')
    for name, category in zip(dataset.CLASSES, dataset.cat_ids):
        numbers = [scores.ap(iou=iou, size=size, limit=limit, category=category) if size in scores.sizes else -1
                   for iou, size in ((None, 'all'), (0.5, 'all'), (0.75, 'all'), *((None, size) for size in sizes))]
        values[f'{metric}_{name}_precision'] = numbers[0]
        rows.append([name, str(boxes[category]), *('-' if n < 0 else f'{n:.3f}' for n in numbers)])
    table = AsciiTable([['class', 'objects', 'AP', 'AP50', 'AP75', *(f'AP {size}' for size in sizes)], *rows])
    table.justify_columns = dict.fromkeys(range(1, 5 + len(sizes)), 'right')
    say(f'{metric} by class:\n{table.table}')
    return values
