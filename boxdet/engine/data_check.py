"""Can the annotations of a data set teach what is meant? Contradictions by kind, with a count, three ids and a guess.

All boxes are looked at, as arrays; masks against boxes of a few thousand objects, evenly spread over the file, for each
has to be read.

Letters: A annotations, S of them looked at.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from boxdet.datasets.annotation_facts import (
    NO_MASK,
    NO_SEGMENTATION,
    POLYGONS,
    RLE,
    RLE_OF_ANOTHER_SIZE,
    AnnotationFacts,
)
from boxdet.engine.findings import Finding
from boxdet.geometry.masks import box_around

_IDS = 3  # of examples
_SHOWN = 5  # names
_LOOKED_AT = 2000  # objects whose masks are compared with their boxes; images of a data set without flat arrays
_STRAY = 0.01  # what is wrong with a smaller part of the annotations may be a slip of single ones
_MOST = 0.95  # a guess holds for so many
_CORNER, _CORNER_COUNT = 0.67, 50  # so many boxes that all end within this part of their images are no chance
_APART = 0.3  # IoU of a box and the box around its mask, below which they are not of one object


def annotation_findings(dataset: Any, name: str, wants_masks: bool = False) -> Iterator[Finding]:
    """What the annotations of one data set (called ``name``) contradict, and what of them is left out.

    Args:
        dataset: one that is no wrapper.
        name: what to call it, 'data.train'.
        wants_masks: a mask head learns from them, or they are what masks are measured by.
    """
    facts = getattr(dataset, 'annotation_facts', None)
    if not isinstance(facts, AnnotationFacts):
        yield from _findings_by_image(dataset, name, wants_masks)
        return
    where = f'{name}: {dataset.ann_file}'
    boxes = list(_boxes(facts, where))
    yield from boxes
    if not any(finding.error for finding in boxes):
        yield from _usable(facts, where, is_training=not dataset.test_mode)
        yield from _degenerate(facts, where)
    yield from _strays(facts, where)
    yield from _repeated(facts, where)
    yield from _classes(facts, where, dataset, is_training=not dataset.test_mode)
    yield from _areas(facts, where)
    if hasattr(dataset, 'annotation_keypoints'):
        yield from _keypoints(dataset.annotation_keypoints, facts, where)
    if wants_masks and facts.usable.any():
        yield from _masks(dataset, facts, where)


# ------------------------------------------------------------------------------------------ what can be learned


def _usable(facts: AnnotationFacts, where: str, is_training: bool) -> Iterator[Finding]:
    """None of the objects of the classes is one to learn, or less than half of them."""
    wanted = facts.labels >= 0
    lost = wanted & ~facts.usable
    if not wanted.any() or (facts.usable.any() and not (is_training and 2 * lost.sum() > wanted.sum())):
        return
    by_area = _by_area(facts)
    reasons = {'iscrowd (regions to ignore: set iscrowd to 0 for single objects, as of masks from CVAT)': facts.crowd,
               "marked 'ignore' (take the mark out)": facts.ignored,
               "of 'area' 0 or less (compute it anew, or take it out)": by_area,
               'without area or outside their image (boxes are x, y, width, height in pixels)':
                   facts.degenerate & ~by_area}
    told = '; '.join(f'{int((wanted & of).sum())} {why}' for why, of in reasons.items() if (wanted & of).any())
    if facts.usable.any():
        yield Finding('data.mostly-crowd', f'{where}: {int(lost.sum())} of {int(wanted.sum())} objects cannot be '
                                           f'learned {_ids(facts, lost)}: {told}')
    else:
        yield Finding('data.all-crowd', f'{where}: none of the {int(wanted.sum())} objects can be learned or evaluated '
                                        f'{_ids(facts, wanted)}: {told}')


def _by_area(facts: AnnotationFacts) -> np.ndarray:
    """(A,) bool: left out for the number under 'area' alone."""
    return facts.degenerate & (facts.areas <= 0) & (facts.boxes[:, 2:] >= 1).all(axis=1)


def _degenerate(facts: AnnotationFacts, where: str) -> Iterator[Finding]:
    if facts.degenerate.any() and (facts.usable.any() or not (facts.labels >= 0).any()):
        by_area = int(_by_area(facts).sum())
        negative = int((facts.degenerate & (facts.boxes[:, 2:] < 0).any(axis=1)).sum())
        yield Finding('data.degenerate-boxes', (
            f'{where}: {int(facts.degenerate.sum())} boxes have no area, or lie outside '
            f'their image, and are not used {_ids(facts, facts.degenerate)}'
            + (f"; {by_area} of them for their 'area' of 0 or less: compute it anew, or take it out" if by_area else '')
            + (f'; {negative} of them have a negative width or height: x and y are the upper left corner'
               if negative else '')))


def _strays(facts: AnnotationFacts, where: str) -> Iterator[Finding]:
    if facts.strays:
        yield Finding('data.without-image', (
            f'{where}: {len(facts.strays)} annotations are of images that the file does not list, and are not used '
            f'{_told(facts.strays)}'))


def _repeated(facts: AnnotationFacts, where: str) -> Iterator[Finding]:
    """Objects that stand in the file twice: same image, class and box."""
    # One number for each, as sorting a million rows takes a second; equal numbers of other rows are as good as none.
    parts = np.column_stack([facts.rows, facts.categories.astype(np.int64), facts.boxes.view(np.int64)]).view(np.uint64)
    keys = parts @ np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93,
                             0xA0761D6478BD642F, 0xE7037ED1A0B428DB], dtype=np.uint64)
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), dtype=bool)
    again[first] = False
    if _many(again):
        yield Finding('data.repeated', (
            f'{where}: {int(again.sum())} of {len(again)} objects stand there more than once, with the same image, '
            f'class and box {_ids(facts, again)}: take them out'))


def _classes(facts: AnnotationFacts, where: str, dataset: Any, is_training: bool) -> Iterator[Finding]:
    """Objects of other categories than the classes, and classes without an object."""
    other = facts.labels < 0
    if other.any() and is_training:
        counts = Counter(facts.categories[other].tolist()).most_common()
        names = ', '.join(f'{facts.names.get(one, one)} {count}' for one, count in counts[:_SHOWN])
        yield Finding('data.dropped-classes', (
            f'{where}: {int(other.sum())} of {len(other)} objects are left out, of {len(counts)} categories that are '
            f"none of the {len(dataset.CLASSES)} classes ({names}{', …' if len(counts) > _SHOWN else ''}); where they "
            'count, name them in data.*.classes'))
    if facts.usable.any():
        objects = np.bincount(facts.labels[facts.usable], minlength=len(dataset.CLASSES))
        known = set(facts.names.values())  # of others 'data.missing-classes' tells
        empty = [one for one, count in zip(dataset.CLASSES, objects) if not count and one in known]
        if empty:
            yield Finding('data.empty-class', (
                f"{where}: no object of {len(empty)} of the {len(dataset.CLASSES)} classes ({_names(empty)}): "
                f"{'they cannot be learned' if is_training else 'nothing is measured for them'}"))


# ------------------------------------------------------------------------------------------ boxes and areas


def _boxes(facts: AnnotationFacts, where: str) -> Iterator[Finding]:
    """Boxes in another form than x, y, width, height in the image's pixels."""
    wanted = (facts.labels >= 0) & ~facts.crowd
    if not wanted.any():
        return
    x, y, w, h = facts.boxes[wanted].T
    width, height = facts.sizes[facts.rows[wanted]].T
    outside = (x + w > width + 2) | (y + h > height + 2) | (x < -2) | (y < -2)
    relative = (facts.boxes[wanted] <= 1.001).all(axis=1) & (w > 0) & (h > 0) & (width > 1.5) & (height > 1.5)
    guess, wrong = '', outside
    if relative.mean() >= _MOST:
        guess, wrong = ('relative numbers (0 to 1): multiply them by width and height of the image'), relative
    elif not _many(outside):
        reach = float(((x + w) / width).max()), float(((y + h) / height).max())
        if len(x) >= _CORNER_COUNT and max(reach) <= _CORNER and np.isfinite(width).all():
            yield Finding('data.in-a-corner', (
                f'{where}: none of the {len(x)} boxes reaches beyond {reach[0]:.2f} of the width and {reach[1]:.2f} of '
                'the height of its image; probably boxes of images of another size, or in percent'))
        return
    elif _corners(x, y, w, h, width, height, outside):
        guess = 'corners (x1, y1, x2, y2) in place of x, y, width, height'
    elif _fits_better(outside, (x + w > height + 2) | (y + h > width + 2) | (x < -2) | (y < -2)):
        guess = "x and y exchanged, or the images' width and height"
    elif _many(beyond := (x + w > 1.1 * width) | (y + h > 1.1 * height), least=0.25):
        reach = max(np.median(((x + w) / width)[beyond]), np.median(((y + h) / height)[beyond]))
        guess, wrong = f'boxes of an image of another size (they reach to {reach:.1f} times the side)', beyond
    if guess:
        yield Finding('data.boxes', (
            f'{where}: {int(wrong.sum())} of {len(wrong)} boxes are not x, y, width, height within '
            f'their image {_ids(facts, _among(wanted, wrong))}; probably {guess}'))
    else:
        yield Finding('data.boxes-outside', (
            f'{where}: {int(outside.sum())} of {len(outside)} boxes reach beyond their image '
            f'{_ids(facts, _among(wanted, outside))}: they are cut at its edge'))


def _corners(x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray, width: np.ndarray, height: np.ndarray,
             outside: np.ndarray) -> bool:
    """Whether nearly all boxes are corners in their image, and many of them no boxes by width and height."""
    as_corners = (w > x) & (h > y) & (w <= width + 2) & (h <= height + 2)
    return as_corners.mean() >= 0.98 and outside.mean() >= 0.2


def _areas(facts: AnnotationFacts, where: str) -> Iterator[Finding]:
    """Areas that are larger than their boxes, or hardly any part of them."""
    given = facts.usable & (facts.areas > 0)
    if not given.any():
        return
    share = facts.areas[given] / (facts.boxes[given, 2] * facts.boxes[given, 3])
    wrong = (share > 1.2) | (share < 1e-3)
    if _many(wrong):
        relative = (facts.areas[given][wrong] <= 1).mean() >= _MOST
        cause = 'relative numbers (0 to 1)' if relative else 'areas of images of another size' if (
            np.std(np.log(share[wrong])) < 0.2) else 'areas of other annotations'
        yield Finding('data.areas', (
            f"{where}: 'area' of {int(wrong.sum())} of {len(wrong)} objects contradicts their boxes "
            f'{_ids(facts, _among(given, wrong))}; probably {cause}; objects are sorted into small, '
            'medium and large by it'))


def _keypoints(keypoints: np.ndarray, facts: AnnotationFacts, where: str) -> Iterator[Finding]:
    """Keypoints (A, J, 3) of objects that lie elsewhere than the boxes."""
    visible = keypoints[..., 2] > 0
    chosen = facts.usable & visible.any(axis=1)

    def apart(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(S,) whether most of an object's visible keypoints are beyond its box by half a side."""
        corner, sides = np.split(facts.boxes[rows][:, None], 2, axis=2)
        beyond = ((points < corner - sides / 2) | (points > corner + 1.5 * sides)).any(axis=2) & visible[rows]
        return 2 * beyond.sum(axis=1) > visible[rows].sum(axis=1)

    rows = np.flatnonzero(chosen)
    wrong = apart(keypoints[rows, :, :2].astype(np.float64), rows)
    if not _many(wrong, least=0.05):
        return
    rows = rows[wrong]
    points = keypoints[rows, :, :2].astype(np.float64)
    guesses = {'x and y exchanged': points[..., ::-1],
               'relative numbers (0 to 1): multiply them by width and height of the image':
                   points * facts.sizes[facts.rows[rows]][:, None],
               "relative to the box's corner: add its x and y": points + facts.boxes[rows][:, None, :2]}
    cause = next((what for what, other in guesses.items() if apart(other, rows).mean() <= 0.2), '')
    yield Finding('data.keypoints', (
        f'{where}: the keypoints of {len(rows)} of {len(wrong)} objects lie elsewhere than their boxes '
        f"{_told(facts.ids[rows].tolist())}{f'; probably {cause}' if cause else ''}"))


# ------------------------------------------------------------------------------------------ masks


def _masks(dataset: Any, facts: AnnotationFacts, where: str) -> Iterator[Finding]:
    """Objects without a mask for the mask head, and masks that are elsewhere than their boxes."""
    objects = facts.labels >= 0 if dataset.test_mode else facts.usable
    absent = objects & (facts.masks == NO_MASK)
    if absent.any() and dataset.test_mode:
        yield Finding('data.no-masks', (
            f"{where}: {int(absent.sum())} of {int(objects.sum())} objects have no 'segmentation' "
            f"{_ids(facts, absent)}, and masks are measured: set evaluation.metric (--eval) to 'bbox', or draw them"))
        return
    if absent[objects].all():
        yield Finding('data.no-masks', (
            f"{where}: none of the {int(objects.sum())} objects has a 'segmentation' that the mask head could learn "
            'from: take a model without mask_head (faster_rcnn), or annotations with masks'))
        return
    if absent.any():
        yield Finding('data.some-masks', (
            f"{where}: {int(absent.sum())} of {int(objects.sum())} objects have no "
            f"'segmentation' {_ids(facts, absent)}: their boxes are learned, their masks are "
            'not'))
    odd = objects & (facts.masks == NO_SEGMENTATION)
    if odd.any():
        example = repr(next(iter(dataset.segmentations_of(np.flatnonzero(odd)[:1]))))
        yield Finding('data.masks', (
            f"{where}: the 'segmentation' of {int(odd.sum())} of {int(objects.sum())} objects is neither a list of "
            f'polygons [[x1, y1, x2, y2, …]] nor an RLE dict(size=[height, width], counts=…) {_ids(facts, odd)}, but '
            f"{example[:40]}{'…' if len(example) > 40 else ''}"))
        return
    other_size = objects & (facts.masks == RLE_OF_ANOTHER_SIZE)
    if other_size.any():
        yield Finding('data.masks', f'{where}: {int(other_size.sum())} RLE masks are of another size than their image '
                                    f'{_ids(facts, other_size)}: size is [height, width]')
        return
    yield from _mask_boxes(dataset, facts, where)


def _mask_boxes(dataset: Any, facts: AnnotationFacts, where: str) -> Iterator[Finding]:
    """Boxes around masks against the boxes, of some objects."""
    index, around, unread = _boxes_of_masks(dataset, facts)
    if unread and getattr(dataset, 'on_error', 'raise') != 'skip':
        yield Finding('data.masks', (
            f'{where}: {len(unread)} of {len(index) + len(unread)} masks that were looked at cannot be read '
            f'{_told(facts.ids[unread].tolist())}: a polygon has x and y of three points or more, an RLE counts that '
            'fill its size, all of them numbers'))
    if not len(index):
        return
    boxes = facts.boxes[index] + 0
    boxes[:, 2:] += boxes[:, :2]
    wrong = _iou(boxes, around) < _APART
    if not _many(wrong, least=0.05):
        return
    sizes = facts.sizes[facts.rows[index]]
    odd, of, size = boxes[wrong], around[wrong], sizes[wrong]
    guesses = {
        'masks without a pixel': lambda: (of[:, 2:] <= of[:, :2]).all(axis=1),
        'relative numbers (0 to 1): multiply them by width and height of the image':
            lambda: _iou(odd, of * np.concatenate([size, size], axis=1)),
        'x and y exchanged': lambda: _iou(odd, of[:, [1, 0, 3, 2]]),
        'boxes of corners (x1, y1, x2, y2) in place of x, y, width, height':
            lambda: _iou(facts.boxes[index][wrong], of),
        'the centre of the box in place of its corner, x and y':
            lambda: _iou(odd - np.tile((odd[:, 2:] - odd[:, :2]) / 2, 2), of),
        'masks of images of another size': lambda: _iou(odd, of * _common_factor(odd, of))}
    cause = next((what for what, overlap in guesses.items() if (overlap() > 0.7).mean() >= 0.8), '')
    code = 'data.boxes' if cause.startswith(('boxes', 'the centre')) else 'data.masks'
    chosen = np.zeros(len(facts.ids), dtype=bool)
    chosen[index[wrong]] = True
    yield Finding(code, (
        f'{where}: {int(wrong.sum())} of {len(wrong)} masks that were looked at lie elsewhere than their '
        f"boxes {_ids(facts, chosen)}{f'; probably {cause}' if cause else ''}"))


def _boxes_of_masks(dataset: Any, facts: AnnotationFacts) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Boxes around the masks of S objects, evenly spread over the file.

    Returns:
        places (S,) among the A, boxes (S, 4), places of those whose masks cannot be read.
    """
    objects = np.flatnonzero(facts.usable & np.isin(facts.masks, (POLYGONS, RLE)))
    objects = objects[np.unique(np.linspace(0, len(objects) - 1, min(len(objects), _LOOKED_AT)).round().astype(int))]
    found, boxes, unread = [], [], []
    for place, segmentation in zip(objects.tolist(), dataset.segmentations_of(objects)):
        box = box_around(segmentation)
        if box is None and isinstance(segmentation, list):  # loading leaves the others out
            box = box_around([polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0])
        if box is None or not math.isfinite(sum(box)):
            unread.append(place)
            continue
        found.append(place)
        boxes.append(box)
    return np.array(found, dtype=int), np.array(boxes, dtype=np.float64).reshape(-1, 4), unread


# ------------------------------------------------------------------------------------------ other data sets


def _findings_by_image(dataset: Any, name: str, wants_masks: bool) -> Iterator[Finding]:
    """The same of a data set that gives annotations image by image: some of them, evenly spread."""
    odd = (getattr(dataset, 'filter_report', None) or {}).get('degenerate_boxes') or []
    if odd:
        yield Finding('data.degenerate-boxes', (
            f'{name}: {len(odd)} boxes have no area, or lie outside their image, and are '
            f"not used: {_names([str(one) for one in odd])}"))
    if not hasattr(dataset, 'get_ann_info') or not len(dataset) or getattr(dataset, 'test_mode', False):
        return
    objects = ignored = masks = looked = beyond = 0
    examples: list[str] = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _LOOKED_AT // 10)).round().astype(int)):
        try:
            info = dataset.get_ann_info(int(index))
        except Exception:  # a training that comes to this image says so, or skips it
            continue
        looked += 1
        objects += len(info.get('bboxes', ()))
        outside = _beyond(dataset, int(index), info)
        beyond += outside
        examples += [str(dataset.img_info(int(index))['filename'])] if outside else []
        ignored += len(info.get('bboxes_ignore', ()) if info.get('bboxes_ignore') is not None else ())
        masks += sum(mask is not None for mask in info.get('masks') or ())
    where = f"{name}: {getattr(dataset, 'ann_file', type(dataset).__name__)}"
    if looked and not objects:
        yield Finding('data.all-crowd', (
            f'{where}: no object can be learned in {looked} images that were looked at; {ignored} '
            'regions are ignored'))
    if beyond >= max(2, _STRAY * objects):
        yield Finding('data.boxes-outside', (
            f'{where}: {beyond} of {objects} boxes that were looked at reach beyond their image ({_names(examples)}): '
            'they are cut at its edge; where the images were made smaller since, the boxes have to be, too'))
    if objects and not masks and wants_masks:
        yield Finding('data.no-masks', (
            f'{where}: none of the {objects} objects that were looked at has a mask that the mask '
            'head could learn from: take a model without mask_head (faster_rcnn), or annotations '
            'with masks'))


def _beyond(dataset: Any, index: int, info: Any) -> int:
    """How many boxes (x1, y1, x2, y2) of an image end outside it, by more than 2 pixels."""
    image = dataset.img_info(index) if hasattr(dataset, 'img_info') else {}
    width, height = image.get('width'), image.get('height')
    boxes = np.asarray(info.get('bboxes', ()), dtype=np.float64)
    if not width or not height or boxes.ndim != 2 or boxes.shape[1] < 4:
        return 0
    return int(((boxes[:, :2] < -2) | (boxes[:, 2:4] > np.array([width + 2, height + 2]))).any(axis=1).sum())


# ------------------------------------------------------------------------------------------ small things


def _many(wrong: np.ndarray, least: float = _STRAY) -> bool:
    """More than a stray few."""
    return int(wrong.sum()) >= max(2, least * len(wrong))


def _fits_better(outside: np.ndarray, otherwise: np.ndarray) -> bool:
    """Whether another reading leaves hardly any of the boxes outside."""
    return bool(_many(outside, least=0.05) and otherwise.sum() <= 0.1 * outside.sum())


def _common_factor(boxes: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(4,) the factors that bring boxes of another size onto ``boxes``."""
    sides = np.maximum(of[:, 2:] - of[:, :2], 1e-9)
    factor = np.median((boxes[:, 2:] - boxes[:, :2]) / sides, axis=0)
    return np.concatenate([factor, factor])


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(S,) of boxes (S, 4) with the boxes of the same place."""
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    common = sides[:, 0] * sides[:, 1]
    total = sum((one[:, 2] - one[:, 0]) * (one[:, 3] - one[:, 1]) for one in (a, b)) - common
    return common / np.maximum(total, 1e-9)


def _among(chosen: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """(A,) bool of ``wrong``, which is of those that are ``chosen``."""
    result = np.zeros(len(chosen), dtype=bool)
    result[np.flatnonzero(chosen)[wrong]] = True
    return result


def _ids(facts: AnnotationFacts, wrong: np.ndarray) -> str:
    return _told(facts.ids[wrong].tolist())


def _told(every: Sequence[Any]) -> str:
    ids, more = every[:_IDS], ', …' if len(every) > _IDS else ''
    return f"(annotation {'ids ' if len(ids) > 1 else ''}{', '.join(map(str, ids))}{more})"


def _names(names: Sequence[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', …' if len(names) > _SHOWN else '')
