"""One HTML page that shows how a detector did: numbers, curves, classes, confusion, and the images it got wrong.

The page holds its data and images, needs no network, and is written in one piece. Objects and detections are matched
once for each IoU threshold (``operating_points``); everything on the page is counted from those matches.

Letters: K classes, D detections, G objects of the ground truth, T IoU thresholds.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from boxdet.datasets.contracts import Dataset, ImageFolder, in_coco
from boxdet.datasets.files import decode_image, read_bytes
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation.evaluate import default_metric
from boxdet.evaluation.operating_points import (
    OperatingPoint,
    OperatingPoints,
    Records,
    confusion_matrix,
    match_at,
    operating_points,
)
from boxdet.files.json_text import JsonObject
from boxdet.files.writing import write_whole
from boxdet.registry import Cfg
from boxdet.structures.instances import Instances
from boxdet.visualization.web import embedded_jpeg, outline_path

_IOUS = np.linspace(0.5, 0.95, 10)
_CURVES = (0.5, 0.75, 0.9)
_BINS = 10  # of the scores, for the calibration
# COCO's division of objects by area, in pixels.
_SIZES = (('small: below 32²', 0, 32 ** 2), ('medium: 32² to 96²', 32 ** 2, 96 ** 2),
          ('large: from 96²', 96 ** 2, np.inf))
_ERROR_KINDS = ('wrong class', 'wrong place', 'double', 'nothing there', 'missed')
_IMAGE_SIDE = 720
_MOST_DRAWN = 60  # detections drawn on one image


def write_report(path: str | os.PathLike, dataset: ImageFolder, results: Sequence[Instances],
                 metrics: Mapping[str, float | str], title: str, meta: Sequence[str] = (), most_errors: int = 60,
                 say: Callable[[str], None] | None = None) -> Path:
    """Write the report of ``results`` as ``path``/index.html.

    Args:
        path: a folder, made when it is not there.
        dataset: with ``get_ann_info``, ``data_infos``, ``img_prefix`` and ``CLASSES``, as every data set of boxdet.
        results: one Instances an image, in its order.
        metrics: what ``evaluate`` gave: the numbers shown first.
        title: the headline.
        meta: what stands below it (config, checkpoint, data set).
        most_errors: errors shown with their image.
        say: told of images that cannot be shown.

    Returns:
        the file.

    Raises:
        DataError: results that do not fit the data set, or a folder that cannot be written.
    """
    data = report_data(dataset, results, metrics, most_errors, say)
    page = Path(__file__).with_name('report.html').read_text(encoding='utf-8')
    # '<' never stands in the page's data, so no name of a class or file can end the script.
    content = json.dumps({**data, 'title': title, 'meta': list(meta)}, separators=(',', ':')).replace('<', '\\u003c')
    file = Path(path) / 'index.html'
    return write_whole(file, page.replace('/*DATA*/', content))


def report_data(dataset: ImageFolder, results: Sequence[Instances], metrics: Mapping[str, float | str],
                most_errors: int = 60, say: Callable[[str], None] | None = None) -> JsonObject:
    """What the page shows, as plain lists and numbers; the keys are those that report.html reads."""
    kind = 'segm' if any('masks' in result for result in results) and 'segm_mAP' in metrics else 'bbox'
    matched = match_at(dataset, results, _IOUS, kind)
    points = {round(records.iou_thr, 2): operating_points(records) for records in matched}
    half, base = points[0.5], matched[0]
    threshold = half.overall.threshold
    confusion = confusion_matrix(dataset, results, threshold, 0.5, kind, base)
    errors, images = _errors(dataset, results, base, half, most_errors, say)
    return dict(
        headline=_headline(metrics, half, base),
        classes=_classes(dataset.CLASSES, points, base),
        overall=_point(half.overall),
        curves=[_curve(iou, points[iou]) for iou in _CURVES],
        calibration=_calibration(base, len(dataset.CLASSES)),
        sizes=_sizes(base, half, metrics, kind),
        confusion=dict(
            names=[*dataset.CLASSES, ''], matrix=confusion.tolist(),
            note=f'Rows are the objects, columns what the detector took them for, at score {threshold:.2f} and IoU '
                 '0.50. The last column counts objects that were missed, the last row detections where nothing is.'),
        errors=errors, images=images, errorKinds=list(_ERROR_KINDS),
        apNote='average precision, mean over IoU 0.50 to 0.95',
        classNote=f"{'Masks' if kind == 'segm' else 'Boxes'}. Click a heading to sort, a class to see it alone. AP "
                  'is the mean over IoU 0.50, 0.55, … 0.95.',
        about=f'{len(results)} images, {int((~base.truths.ignored).sum())} objects, '
              f'{len(base.detections.score)} detections. Made by boxdet.')


def check_reportable(dataset: Dataset) -> None:
    """Raise ConfigError when ``dataset`` is no single data set (several joined, one repeated): reports are on one."""
    if not all(hasattr(dataset, name) for name in ('get_ann_info', 'data_infos', 'ann_file')):
        raise ConfigError(f'a report is on one data set, not on a {type(dataset).__name__}: report on its data sets '
                          'one at a time')


def default_metrics(cfg: Cfg, dataset: Dataset) -> list[str]:
    """The metrics of ``evaluation`` in a config, else the first one of the data set's."""
    named = (cfg.get('evaluation') or {}).get('metric') or default_metric(dataset)
    return [cast(str, named)] if isinstance(named, (str, Mapping)) else list(named)


# --- numbers ---

def _headline(metrics: Mapping[str, float | str], half: OperatingPoints, base: Records) -> list[dict[str, str]]:
    """The first numbers: the metrics as evaluated (no single classes, no texts), then the best F1."""
    shown = [dict(name=name, text='–' if value < 0 else f'{value:.3f}') for name, value in metrics.items()
             if isinstance(value, float) and not name.endswith('_precision')]
    best = half.overall
    return [*shown, dict(name=f'best F1, at score {best.threshold:.2f}', text=f'{best.f1:.3f}',
                         hint='IoU 0.50, all classes together'),
            dict(name='objects', text=str(int((~base.truths.ignored).sum())))]


def _point(point: OperatingPoint) -> dict[str, float]:
    return dict(precision=float(point.precision), recall=float(point.recall), f1=float(point.f1),
                threshold=float(point.threshold))


def _classes(names: Sequence[str], points: Mapping[float, OperatingPoints], base: Records) -> list[JsonObject]:
    objects = np.bincount(base.truths.label[~base.truths.ignored], minlength=len(names))
    detections, rows = base.detections, []
    for label, name in enumerate(names):
        best = points[0.5].classes[label]
        above = (detections.label == label) & (detections.score >= best.threshold) & ~detections.ignored
        aps = [point.classes[label].ap for point in points.values()]
        rows.append(dict(name=name, objects=int(objects[label]), detections=int(above.sum()), **_point(best),
                         ap=float(np.mean(aps)) if objects[label] else -1., ap50=float(best.ap),
                         ap75=float(points[0.75].classes[label].ap)))
    return rows


def _curve(iou: float, points: OperatingPoints) -> JsonObject:
    """Interpolated precision at 101 recalls in thousandths, of every class that has objects and of their mean."""
    return dict(iou=iou, mean=_thousandths(points.overall), classes=[_thousandths(point) for point in points.classes])


def _thousandths(point: OperatingPoint) -> list[int] | None:
    return None if point.interpolated is None else np.rint(1000 * point.interpolated).astype(int).tolist()


def _calibration(base: Records, classes: int) -> JsonObject:
    """For each bin of scores: detections, those that are right, and the sum of their scores."""
    detections = base.detections
    kept = ~detections.ignored
    bins = np.minimum((detections.score * _BINS).astype(int), _BINS - 1)
    right = (detections.truth >= 0).astype(float)

    def counted(chosen: np.ndarray) -> list[list[float]]:
        sums = [np.bincount(bins[chosen], weights, minlength=_BINS) for weights in (
            None, right[chosen], detections.score[chosen].astype(float))]
        return [[int(n), int(r), round(float(s), 4)] for n, r, s in zip(*sums)]
    return dict(all=counted(kept), classes=[counted(kept & (detections.label == label)) for label in range(classes)])


def _sizes(base: Records, half: OperatingPoints, metrics: Mapping[str, float | str], kind: str) -> JsonObject:
    """Objects and found objects by size, for all classes and for each."""
    gt, detections = base.truths, base.detections
    thresholds = np.array([point.threshold for point in half.classes])
    hit = gt.detection >= 0
    hit[hit] = detections.score[gt.detection[hit]] >= thresholds[gt.label[hit]]
    masks = [(gt.area >= low) & (gt.area < high) & ~gt.ignored for _, low, high in _SIZES]
    extra = [f'{kind}_mAP_{size}' for size in 'sml']
    return dict(
        names=[name for name, _, _ in _SIZES],
        all=[[int(m.sum()), int((m & hit).sum())] for m in masks],
        classes=[[[int((m & (gt.label == k)).sum()), int((m & hit & (gt.label == k)).sum())] for m in masks]
                 for k in range(len(thresholds))],
        extra=[dict(name='AP', values=[float(metrics[key]) for key in extra])] if set(extra) <= set(metrics) else [])


# --- errors and their images ---

def _errors(dataset: ImageFolder, results: Sequence[Instances], base: Records, half: OperatingPoints, most: int,
            say: Callable[[str], None] | None) -> tuple[list[dict], list[dict]]:
    """The worst errors, worst first, and the images that they point to."""
    chosen = _false_detections(base, results, dataset.CLASSES, most - most // 2)
    chosen += _misses(base, half, dataset.CLASSES, most // 2)
    places: dict[int, int] = {}
    images: list[dict] = []
    shown = []
    for error in chosen:
        index = error.pop('index')
        if index not in places:
            drawn = _image(dataset, results[index], base, half, index, say)
            places[index] = len(images) if drawn is not None else -1
            images += [] if drawn is None else [drawn]
        if places[index] >= 0:
            shown.append({**error, **_in_image(error, images[places[index]]), 'image': places[index]})
    for image in images:
        for one in (*image['truth'], *image['found']):
            del one['place']
    return shown, images


def _spread(order: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """The first ``most`` of ``order``, but of no class more than its share while others have some left."""
    turn = np.zeros(len(order), dtype=int)  # how many of its class stand before it
    for label in np.unique(labels[order]):
        mine = np.flatnonzero(labels[order] == label)
        turn[mine] = np.arange(len(mine))
    share = max(most // max(len(np.unique(labels[order])), 1), 1)
    return np.concatenate([order[turn < share], order[turn >= share]])[:most]


def _false_detections(base: Records, results: Sequence[Instances], names: Sequence[str], most: int) -> list[dict]:
    """The most confident detections that found nothing, with what they are instead."""
    detections = base.detections
    wrong = np.flatnonzero((detections.truth < 0) & ~detections.ignored)
    wrong = wrong[np.argsort(-detections.score[wrong], kind='stable')]
    errors = []
    for place in sorted(_spread(wrong, detections.label, most), key=lambda place: -detections.score[place]):
        image, label, score = int(detections.image[place]), int(detections.label[place]), float(detections.score[place])
        box = results[image].numpy()['bboxes'][detections.row[place]].astype(float)
        kind, other, detail = _what_is_wrong(base, image, label, box, float(detections.iou[place]), names)
        errors.append(dict(index=image, kind=kind, label=label, other=other, source=box.tolist(),
                           detection_place=int(place), title=f'{names[label]}, score {score:.2f}', detail=detail))
    return errors


def _what_is_wrong(base: Records, image: int, label: int, box: np.ndarray, iou: float,
                   names: Sequence[str]) -> tuple[str, int, str]:
    """(kind, class of the object that is there or -1, in words) of a detection that found no object."""
    gt = base.truths
    here = np.flatnonzero((gt.image == image) & ~gt.ignored)
    overlaps = _ious(box, gt.box[here])
    other = gt.label[here] != label
    best = int(np.where(other, overlaps, -1).argmax()) if other.any() else -1
    if iou >= base.iou_thr:
        return 'double', label, f'the object has a better detection (IoU {iou:.2f})'
    if best >= 0 and overlaps[best] >= base.iou_thr:
        there = int(gt.label[here[best]])
        return 'wrong class', there, f'there is: {names[there]} (IoU {overlaps[best]:.2f})'
    if iou >= 0.1:
        return 'wrong place', label, f'IoU {iou:.2f} with the nearest {names[label]}'
    return 'nothing there', -1, f'no {names[label]} is near'


def _misses(base: Records, half: OperatingPoints, names: Sequence[str], most: int) -> list[dict]:
    """The largest objects that no detection found, or none above the best threshold of their class."""
    gt, detections = base.truths, base.detections
    thresholds = np.array([point.threshold for point in half.classes])
    score = np.where(gt.detection >= 0, detections.score[gt.detection] if len(detections.score) else 0., -1.)
    missed = np.flatnonzero((score < thresholds[gt.label]) & ~gt.ignored)
    missed = missed[np.argsort(-gt.area[missed], kind='stable')]
    errors = []
    for place in sorted(_spread(missed, gt.label, most), key=lambda place: -gt.area[place]):
        label = int(gt.label[place])
        detail = 'nothing found it' if score[place] < 0 else (
            f'found with score {score[place]:.2f} only; the class counts from {thresholds[label]:.2f}')
        errors.append(dict(index=int(gt.image[place]), kind='missed', label=label, other=label,
                           source=gt.box[place].tolist(), truth_place=int(place), title=f'{names[label]} missed',
                           detail=f'{gt.area[place]:.0f} pixels; {detail}'))
    return errors


def _ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of ``box`` (4,) with ``boxes`` (n, 4)."""
    sides = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(min=0)
    common = sides.prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return common / np.maximum((box[2:] - box[:2]).prod() + areas - common, 1e-9)


def _image(dataset: ImageFolder, result: Instances, base: Records, half: OperatingPoints, index: int,
           say: Callable[[str], None] | None) -> JsonObject | None:
    """An image of the data set, small and as text, with its objects and detections; None when it cannot be read."""
    name = dataset.data_infos[index]['filename']
    try:
        path = os.path.join(dataset.img_prefix or '', name)
        image = decode_image(read_bytes(path), path)
    except DataError as error:
        if say is not None:
            say(f'the report shows no errors of an image that cannot be read: {error}')
        return None
    address, (width, height), scale = embedded_jpeg(image, _IMAGE_SIDE)
    return dict(name=name, width=width, height=height, scale=scale, src=address,
                truth=_drawn_truths(dataset, base, index, scale),
                found=_drawn_detections(result, base, half, index, scale, dataset.CLASSES))


def _drawn_truths(dataset: ImageFolder, base: Records, index: int, scale: float) -> list[dict]:
    gt = base.truths
    places = np.flatnonzero((gt.image == index) & ~gt.ignored)
    drawn = [dict(place=int(i), text=dataset.CLASSES[gt.label[i]], box=_scaled(gt.box[i], scale))
             for i in places]
    if base.metric == 'segm' and in_coco(dataset):
        for one, annotation in zip(drawn, (dataset.coco.anns[gt.id[i]] for i in places)):
            one['mask'] = outline_path(dataset.coco.annToRLE(annotation), scale)
    return drawn


def _drawn_detections(result: Instances, base: Records, half: OperatingPoints, index: int, scale: float,
                      names: Sequence[str]) -> list[dict]:
    """Those above the best threshold of their class; and those that an error may point to, which score lower."""
    detections = base.detections
    places = np.flatnonzero(detections.image == index)
    places = places[np.argsort(-detections.score[places], kind='stable')][:_MOST_DRAWN]
    boxes, drawn = result.numpy()['bboxes'], []
    for i in places:
        row, label, score = int(detections.row[i]), int(detections.label[i]), float(detections.score[i])
        one = dict(place=int(i), text=f'{names[label]} {score:.2f}', box=_scaled(boxes[row], scale),
                   weak=score < half.classes[label].threshold)
        if base.metric == 'segm':
            one['mask'] = outline_path(result.masks[row], scale)
        drawn.append(one)
    return drawn


def _scaled(box: np.ndarray, scale: float) -> list[float]:
    return [round(float(v) * scale, 1) for v in box]


def _in_image(error: JsonObject, image: JsonObject) -> JsonObject:
    """The error's box in the image's pixels, and which of the drawn things it is about."""
    data: JsonObject = {'box': [round(v * image['scale'], 1) for v in error.pop('source')]}
    for key, drawn in (('detection', image['found']), ('truth', image['truth'])):
        place = error.pop(f'{key}_place', None)
        data[key] = next((i for i, one in enumerate(drawn) if one['place'] == place), -1) if place is not None else -1
    return data
