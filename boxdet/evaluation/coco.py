"""COCO's average precision and recall, vectorised: pycocotools' numbers, to the last bit, in a fraction of the time.

pycocotools matches in Python, one (image, class, size, threshold) at a time. Here a block of images is matched at once:
only pairs of a detection and an object that overlap enough are looked at, and the k-th detections of all (image, class)
groups choose at the same time, for all sizes and thresholds. IoUs of masks are pycocotools' own C code. ``match`` gives
the matches, ``accumulate`` the precision and recall of them (Lin et al. 2014; pycocotools' cocoeval.py is the rule).
Many detections are shared among the machine's processes, images by ``match`` and classes by ``accumulate``; the numbers
are the same to the last bit.

One departure, where pycocotools is wrong: an object whose annotation id is 0 counts as found like any other.

Letters: D detections, G objects of the ground truth, P pairs of them, J keypoints, T IoU thresholds, R recall levels
(101), K classes (of ``Scores``: by rising category id), A object sizes, M limits of detections an image.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast, overload

import numpy as np
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from boxdet.errors import DataError
from boxdet.evaluation.oks import oks
from boxdet.evaluation.processes import in_processes, usable_processes
from boxdet.evaluation.stored_results import StoredResults, arrays_of, labels_of
from boxdet.files.json_text import without_garbage_search
from boxdet.structures.instances import Fields, Instances
from boxdet.structures.masks import BitmapMasks, PolygonMasks, RleMasks

# pycocotools' areaRngLbl: below 32^2 pixels, 32^2..96^2, above.
SIZE_RANGES = dict(all=(0, 1e10), small=(0, 32**2), medium=(32**2, 96**2), large=(96**2, 1e10))
SIZES = tuple(SIZE_RANGES)
KEYPOINT_SIZES = ('all', 'medium', 'large')  # COCO labels no keypoints of small people
IOU_THRS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.00, 101)
WRONG, FOUND, IGNORED = 0, 1, 2  # what became of a detection

_BLOCK = 20000  # detections that are matched at once: enough to keep numpy busy, little enough to stay in megabytes
_WORTH = 40000  # detections from which on several processes pay
_PARTS = 4  # of the work for each process: they end at about the same time


@dataclass(frozen=True)
class Truths:
    """The objects of the ground truth in columns, sorted by image (in the data set's order) and category id.

    Args:
        image: (G,) place in the data set.
        label: (G,) class, 0 <= label < K.
        ids: (G,) annotation ids.
        boxes: (G, 4) float64 x, y, width, height.
        area: (G,) float64 pixels.
        crowd: (G,) bool: a region; what overlaps is the share of the detection that lies in it, not the IoU.
        shared: (G,) bool: any number of detections may be matched with it.
        ignored: (G,) bool: neither found nor missed. In COCO crowds are both.
        shapes: G RLEs (which may be drawn when they are asked for), or (G, J, 3) keypoints as x, y, visibility; None
            where boxes are matched.
    """
    image: np.ndarray
    label: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    shared: np.ndarray
    ignored: np.ndarray
    shapes: Sequence[dict] | Sequence[np.ndarray] | np.ndarray | None = None


class OksSettings(NamedTuple):
    """How keypoints are compared.

    Args:
        sigmas: (J,) COCO's spread of each.
        offset: pixels from the annotation file's coordinates to those of the results.
    """
    sigmas: Sequence[float]
    offset: float


@dataclass(frozen=True)
class Matches:
    """What became of every detection, sorted by image (in the data set's order), category id and falling score.

    Args:
        truths: the ground truth.
        image: (D,) place in the data set.
        row: (D,) place in that image's Instances.
        label: (D,) class.
        score: (D,) float64.
        area: (D,) float64 pixels.
        rank: (D,) place among the detections of its
            image and class, from 0.
        status: (A, T, D) int8: WRONG, FOUND or IGNORED.
        truth: (T, D) place in ``truths`` of the object that each detection is matched with at the first size, -1
            without one; overlap: (D,) the largest IoU with any object of its image and class. None unless asked for.
        counted: (A, K) objects to be found.
        iou_thrs: (T,).
        sizes: A names.
    """
    truths: Truths
    image: np.ndarray
    row: np.ndarray
    label: np.ndarray
    score: np.ndarray
    area: np.ndarray
    rank: np.ndarray
    status: np.ndarray
    counted: np.ndarray
    iou_thrs: np.ndarray
    sizes: tuple[str, ...]
    truth: np.ndarray | None = None
    overlap: np.ndarray | None = None

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """``truth`` and ``overlap``, which were asked for."""
        if self.truth is None or self.overlap is None:
            raise ValueError('match() was called without with_pairs')
        return self.truth, self.overlap


@dataclass(frozen=True)
class Scores:
    """What one evaluation accumulated.

    Args:
        precision: (T, R, K, A, M), -1 where there is no ground truth.
        recall: (T, K, A, M), likewise.
        iou_thrs: (T,).
        category_ids: K.
        limits: M.
        sizes: A names.
    """
    precision: np.ndarray
    recall: np.ndarray
    iou_thrs: np.ndarray
    category_ids: list[int]
    limits: list[int]
    sizes: tuple[str, ...] = SIZES

    def ap(self, iou: float | None = None, size: str = 'all', limit: int = 100,
           category: int | None = None) -> float:
        """Average precision: the mean over thresholds and classes, unless ``iou`` or ``category`` (an id) chooses one.

        -1 where there is no ground truth of that size and class, or ``iou`` is no threshold of this
        evaluation.
        """
        return self._mean(self.precision[self._thresholds(iou)], size, limit, category)

    def ar(self, iou: float | None = None, size: str = 'all', limit: int = 100,
           category: int | None = None) -> float:
        """Average recall with at most ``limit`` detections an image; otherwise as ``ap``."""
        return self._mean(self.recall[self._thresholds(iou)], size, limit, category)

    def _thresholds(self, iou: float | None) -> slice | np.ndarray:
        return slice(None) if iou is None else np.where(iou == self.iou_thrs)[0]

    def _mean(self, values: np.ndarray, size: str, limit: int, category: int | None) -> float:
        classes = slice(None) if category is None else [self.category_ids.index(category)]
        values = values[..., classes, :, :][..., [self.sizes.index(size)], :][..., [self.limits.index(limit)]]
        values = values[values > -1]
        return float(np.mean(values)) if len(values) else -1.0


def coco_scores(ground_truth: COCO, results: Sequence[Instances], iou_type: str, image_ids: Sequence[int],
                category_ids: Sequence[int], limits: Sequence[int] = (100, 300, 1000),
                iou_thrs: Sequence[float] | np.ndarray | None = None, class_agnostic: bool = False,
                oks_settings: OksSettings | None = None, sizes: Mapping[str, Sequence[float]] | None = None,
                nproc: int | None = None) -> Scores:
    """Evaluate ``results``, one Instances for each of ``image_ids``, with labels that count in ``category_ids``.

    Args:
        ground_truth: is not changed.
        results: may lie on disk; they are read once, in order.
        iou_type: 'bbox', 'segm' or 'keypoints'.
        image_ids: of the results.
        category_ids: of the K labels.
        limits: numbers of detections of an image and class (best first) to evaluate with, rising.
        iou_thrs: default 0.50, 0.55, ... 0.95.
        class_agnostic: match whatever the categories (proposals).
        oks_settings: of 'keypoints'.
        sizes: ranges of the area in pixels by name; None for COCO's.
        nproc: see ``match``.

    Raises:
        DataError: annotations without masks in 'segm', a predicted mask that is not of its image's size, or a process
            that was ended from outside.
    """
    gt = truth_columns(ground_truth, image_ids, category_ids, iou_type, class_agnostic)
    images = [ground_truth.imgs[i] for i in image_ids]
    if sizes is None:
        sizes = {size: SIZE_RANGES[size] for size in (KEYPOINT_SIZES if iou_type == 'keypoints' else SIZES)}
    with without_garbage_search():
        matches = match(gt, results, images, category_ids, iou_type, iou_thrs, max(limits), class_agnostic, sizes,
                        oks_settings=oks_settings, nproc=nproc)
        return accumulate(matches, image_ids, [-1] if class_agnostic else category_ids, limits, nproc)


# --- ground truth ---

def truth_columns(ground_truth: COCO, image_ids: Sequence[int], category_ids: Sequence[int],
                  iou_type: str = 'bbox', class_agnostic: bool = False) -> Truths:
    """The annotations of ``image_ids`` and ``category_ids``; what custom files leave out (area, iscrowd) is filled in.

    Args:
        ground_truth: is not changed.
        image_ids: of the data set, in its order.
        category_ids: of the K labels.
        iou_type: 'bbox', 'segm' or 'keypoints'.
        class_agnostic: in the order of ``category_ids`` where pycocotools does not sort them: it decides among equal
            overlaps.

    Raises:
        DataError: an annotation without a mask in 'segm'.
    """
    labels = {category: label for label, category in enumerate(category_ids)}
    image, rows = [], []
    for place, image_id in enumerate(image_ids):
        own = [a for a in ground_truth.imgToAnns.get(image_id, ()) if a['category_id'] in labels]
        image += [place] * len(own)
        rows += sorted(own, key=lambda a: labels[a['category_id']] if class_agnostic else a['category_id'])
    boxes = np.array([a['bbox'] for a in rows], dtype=np.float64).reshape(-1, 4)
    crowd = np.array([bool(a.get('iscrowd', 0)) for a in rows], dtype=bool)
    unlabelled = np.array([iou_type == 'keypoints' and not a.get('num_keypoints') for a in rows], dtype=bool)
    shapes: Sequence | None = None
    if iou_type == 'segm':
        shapes = _DrawnMasks(ground_truth, rows)
    elif iou_type == 'keypoints':
        shapes = [np.array(a.get('keypoints') or (), dtype=np.float64).reshape(-1, 3) for a in rows]
    return Truths(
        image=np.array(image, dtype=np.int64), ids=np.array([a.get('id', -1) for a in rows]),
        label=np.array([labels[a['category_id']] for a in rows], dtype=np.int64), boxes=boxes,
        area=np.array([a['area'] if 'area' in a else a['bbox'][2] * a['bbox'][3] for a in rows], dtype=np.float64),
        crowd=crowd, shared=crowd, ignored=crowd | unlabelled, shapes=shapes)


class _DrawnMasks(Sequence[dict]):
    """The masks of annotations as RLEs, drawn when they are asked for: by the process that compares them.

    Args:
        ground_truth: what they are of.
        annotations: G.

    Raises:
        DataError: one without a mask.
    """

    def __init__(self, ground_truth: COCO, annotations: Sequence[dict]):
        self._ground_truth, self._annotations = ground_truth, annotations
        for annotation in annotations:
            if not annotation.get('segmentation'):
                image = ground_truth.imgs[annotation['image_id']]
                raise DataError(f"annotation {annotation.get('id')} of image {image['id']} ({image.get('file_name')}) "
                                "has no 'segmentation': metric 'segm' needs masks in the annotation file")

    def __len__(self) -> int:
        return len(self._annotations)

    @overload
    def __getitem__(self, index: int) -> dict: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...

    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        if isinstance(index, slice):
            return [self._ground_truth.annToRLE(annotation) for annotation in self._annotations[index]]
        return self._ground_truth.annToRLE(self._annotations[index])

    def taken(self, rows: np.ndarray) -> _DrawnMasks:
        """Those of some annotations, not yet drawn."""
        return _DrawnMasks(self._ground_truth, [self._annotations[row] for row in rows.tolist()])


def some_truths(gt: Truths, rows: np.ndarray) -> Truths:
    """The objects ``rows`` of ``gt``."""
    columns: dict[str, Any] = {
        name: column[rows] if isinstance(column, np.ndarray) else column.taken(rows) if isinstance(column, _DrawnMasks)
        else [column[row] for row in rows.tolist()] for name, column in vars(gt).items() if column is not None}
    return replace(gt, **columns)


# --- matching ---

def match(gt: Truths, results: Iterable[Instances], images: Sequence[dict], category_ids: Sequence[int],
          iou_type: str = 'bbox', iou_thrs: float | Sequence[float] | np.ndarray | None = None, limit: int = 100,
          class_agnostic: bool = False, sizes: Sequence[str] | Mapping[str, Sequence[float]] = SIZES,
          with_pairs: bool = False, oks_settings: OksSettings | None = None,
          select: Callable[[int, Fields], Fields] | None = None, nproc: int | None = None) -> Matches:
    """Match every detection, best first, with the object of its class that it overlaps most and that is still free.

    Args:
        gt: of ``truth_columns``.
        results: one Instances an image; may lie on disk: they are read once, in order.
        images: COCO's entries (``id, width, height``) of the images, in the order of ``results``.
        category_ids: of the K labels.
        iou_type: 'bbox', 'segm' or 'keypoints'.
        iou_thrs: T overlaps from which on a detection may find an object, default 0.50, 0.55, ... 0.95.
        limit: detections of an image and class beyond so many are left out.
        class_agnostic: whatever the classes (they all become class 0).
        sizes: of ``SIZE_RANGES``, or ranges of the area in pixels by name.
        with_pairs: also tell what is matched with what (``Matches.truth``, ``overlap``).
        oks_settings: how keypoints are compared, in 'keypoints'.
        select: the detections that take part, of an image's place and all of its fields as arrays; None for all.
        nproc: processes; None for as many as this process has processors, where there is enough to do for them. Only
            ``StoredResults`` are shared: others may hold tensors of a GPU, which a forked process cannot read.

    Raises:
        DataError: a predicted mask that is not of its image's size, or a process that was ended from outside.
    """
    unread = dict(bbox=('masks', 'keypoints'), segm=('keypoints',), keypoints=('masks',))[iou_type]
    overlaps: Callable[..., np.ndarray] = _mask_overlaps if iou_type == 'segm' else _box_overlaps
    if iou_type == 'keypoints':
        if oks_settings is None:
            raise ValueError('keypoints are compared by oks_settings')
        overlaps = partial(_keypoint_overlaps, oks_settings=oks_settings)
    thrs = IOU_THRS if iou_thrs is None else np.atleast_1d(np.asarray(iou_thrs, dtype=np.float64))
    order = np.arange(len(category_ids)) if class_agnostic else np.argsort(category_ids, kind='stable')
    class_order = np.argsort(order)
    spans = sizes if isinstance(sizes, Mapping) else SIZE_RANGES
    ranges = np.array([spans[size] for size in sizes], dtype=np.float64)
    if class_agnostic:
        gt = replace(gt, label=np.zeros_like(gt.label))
    groups = gt.image if class_agnostic else gt.image * len(class_order) + class_order[gt.label]
    ignored = gt.ignored | (gt.area < ranges[:, :1]) | (gt.area > ranges[:, 1:])  # (A, G)
    processes = _processes(results, nproc)
    shares = np.array_split(np.arange(len(images)), 1 if processes == 1 else min(processes * _PARTS, len(images)))

    def matched(share: int) -> dict[str, np.ndarray]:
        places = shares[share].tolist()
        rows = _rows(results, places, unread, select, oks_settings)
        parts = []
        for detections, shapes in _blocks(rows, images, places, iou_type, class_order, limit, class_agnostic):
            pairs = _overlapping_pairs(detections, shapes, gt, groups, overlaps, 1e-6 if with_pairs else thrs.min())
            chosen = _choose(pairs, len(detections['row']), groups, gt.shared, ignored, thrs)
            parts.append({**{name: column for name, column in detections.items() if name not in ('group', 'boxes')},
                          'status': _status(pairs, chosen, detections['area'], ignored, ranges),
                          **(_partners(pairs, chosen) if with_pairs else {})})
            del detections, shapes  # before the next ones come
        return _joined(parts)

    columns = _joined(list(in_processes(matched, len(shares), processes)))
    counted = np.stack([np.bincount(gt.label[~row], minlength=1 if class_agnostic else len(class_order))
                        for row in ignored])
    return Matches(gt, counted=counted, iou_thrs=thrs, sizes=tuple(sizes), **columns)


def _processes(results: Iterable[Instances], nproc: int | None) -> int:
    """How many processes match ``results``; one where there is little to do, unless a number is asked for."""
    if not isinstance(results, StoredResults):
        return 1
    processes = usable_processes(nproc)
    if processes == 1 or nproc is None and sum(map(len, labels_of(results))) < _WORTH:
        return 1
    return min(processes, len(results))


def _rows(results: Iterable[Instances], places: Sequence[int], unread: Sequence[str],
          select: Callable[[int, Fields], Fields] | None, oks_settings: OksSettings | None) -> Iterator[Fields]:
    """The fields of the images at ``places`` (all of them where ``results`` are not stored), as they are compared."""
    rows = (results.arrays(lambda name: name not in unread, places) if isinstance(results, StoredResults)
            else arrays_of(results, *unread))
    if select is not None:
        rows = map(select, places, rows)
    if oks_settings is not None:
        offset = oks_settings.offset
        rows = (_in_file_coordinates(fields, offset) for fields in rows)
    return rows


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns of all ``parts``, which are emptied."""
    return {name: np.concatenate([part.pop(name) for part in parts], axis=-1) for name in list(parts[0])}


def _blocks(rows: Iterable[Fields], images: Sequence[dict], places: Sequence[int], iou_type: str,
            class_order: np.ndarray, limit: int, class_agnostic: bool) -> Iterator[tuple[dict[str, np.ndarray], list]]:
    """Columns of the detections of the images at ``places`` and their masks, about ``_BLOCK`` detections at a time.

    ``rows``: the fields of those images. Beside the columns of ``Matches``: 'group' (D,), the number of the image and
    class, and 'boxes' (D, 4) x, y, width, height.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    shapes: list = []
    count = 0
    for place, fields in zip(places, rows):
        image, own = images[place], len(fields['labels'])
        area = np.zeros(own)
        if own and iou_type == 'segm':
            area = _mask_areas(fields, image)
            shapes += _rles(fields['masks'])
        elif own and iou_type == 'keypoints':
            area = _extents(fields, image)
            shapes += list(fields['keypoints'])
        scores = fields['mask_scores' if iou_type == 'segm' and 'mask_scores' in fields else 'scores']
        parts.append((np.full(own, place), np.arange(own), fields['labels'], scores, fields['bboxes'], area))
        count += own
        if count >= _BLOCK or place == places[-1]:
            columns, order = _sorted_columns(parts, iou_type, class_order, limit, class_agnostic)
            yield columns, [shapes[i] for i in order.tolist()] if shapes else shapes
            parts, shapes, count = [], [], 0


def _sorted_columns(parts: Sequence[tuple[np.ndarray, ...]], iou_type: str, class_order: np.ndarray, limit: int,
                    class_agnostic: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns of a block, and which of its detections (D,) they are.

    Args:
        parts: of each image: place, row, label, score, box (xyxy) and area of its detections.
        iou_type: as in ``match``.
        class_order: (K,) the place of each class.
        limit: as in ``match``.
        class_agnostic: as in ``match``.
    """
    image, row, label, score, boxes, area = (np.concatenate(column) for column in zip(*parts))
    boxes, label, score = boxes.astype(np.float64), label.astype(np.int64), score.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    group = class_order[label]
    if class_agnostic:  # equal scores stay in the order of their classes
        order = np.lexsort((group, -score, image))
        group, label = image, np.zeros_like(label)
    else:
        order = np.lexsort((-score, group, image))
        group = group + image * len(class_order)
    rank = _place_in_run(group[order])
    order, rank = order[rank < limit], rank[rank < limit]
    if iou_type == 'bbox':
        area = boxes[:, 2] * boxes[:, 3]
    return dict(image=image[order], row=row[order], label=label[order], score=score[order], area=area[order], rank=rank,
                group=group[order], boxes=boxes[order]), order


def _mask_areas(fields: Fields, image: dict) -> np.ndarray:
    """(N,) float64 pixels of the masks, which must be of the image's size."""
    if 'masks' not in fields:
        raise DataError(f"image {image['id']}: the results hold no masks; 'segm' needs a model with a mask head")
    masks = _rles(fields['masks'])
    for height, width in {tuple(mask['size']) for mask in masks}:
        if (height, width) != (image['height'], image['width']):
            raise DataError(f"image {image['id']} ({image.get('file_name')}): a predicted mask is {width}x{height}, "
                            f"the annotation file says {image['width']}x{image['height']}")
    # A hundred at a time: pycocotools 2.0 with numpy 2 fails on lists of more than 255.
    return np.concatenate([coco_masks.area(masks[i:i + 100]) for i in range(0, len(masks), 100)]).astype(np.float64)


def _rles(masks: RleMasks | BitmapMasks | PolygonMasks | Sequence[dict]) -> Sequence[dict]:
    """The masks as RLE dicts; a user may have put a list of them in the place of a container."""
    return masks.to_rle().rles if hasattr(masks, 'to_rle') else masks


def _in_file_coordinates(fields: Fields, offset: float) -> Fields:
    if 'keypoints' not in fields:
        return fields
    return dict(fields, keypoints=fields['keypoints'].astype(np.float64) - (offset, offset, 0))


def _extents(fields: Fields, image: dict) -> np.ndarray:
    """(N,) float64 area of the box around the keypoints, which pycocotools takes for a detection's size."""
    if 'keypoints' not in fields:
        raise DataError(f"image {image['id']}: the results hold no keypoints; 'keypoints' needs a model with a "
                        'keypoint head')
    places = fields['keypoints'][..., :2]
    return (places.max(axis=1) - places.min(axis=1)).prod(axis=1)


def _place_in_run(values: np.ndarray) -> np.ndarray:
    """(N,) how many equal neighbours stand before each of ``values`` (N,)."""
    places = np.arange(len(values))
    starts = np.concatenate([[True], values[1:] != values[:-1]])[:len(values)]
    return places - np.maximum.accumulate(np.where(starts, places, 0)) if len(values) else places


def _overlapping_pairs(detections: dict[str, np.ndarray], shapes: Sequence, gt: Truths, groups: np.ndarray,
                       overlaps: Callable[..., np.ndarray], least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of one image and class whose overlap is ``least`` at least.

    Args:
        detections: columns of the detections (D,).
        shapes: masks or keypoints of the detections.
        gt: the objects.
        groups: (G,) the number of each object's image and class, rising.
        overlaps: the function of a block's pairs that gives their overlap (P,).
        least: overlaps below it are no pairs.

    Returns:
        detections (P,), rising; objects (P,), rising for each detection; IoU (P,), for a crowd the share of the
        detection.
    """
    first, last = (np.searchsorted(groups, detections['group'], side) for side in ('left', 'right'))
    counts = last - first
    detection = np.repeat(np.arange(len(counts)), counts)
    truth = np.arange(len(detection)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    overlap = overlaps(detections, shapes, gt, detection, truth)
    near = overlap >= min(least, 1 - 1e-10)
    return detection[near], truth[near], overlap[near]


def _box_overlaps(detections: dict[str, np.ndarray], shapes: Sequence, gt: Truths, detection: np.ndarray,
                  truth: np.ndarray) -> np.ndarray:
    """IoU (P,) of boxes, in the order of operations of pycocotools' bbIou."""
    boxes, others = detections['boxes'][detection], gt.boxes[truth]
    shared = (np.minimum(boxes[:, 2:] + boxes[:, :2], others[:, 2:] + others[:, :2])
              - np.maximum(boxes[:, :2], others[:, :2]))
    apart = (shared <= 0).any(axis=1)
    shared = shared[:, 0] * shared[:, 1]
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(gt.crowd[truth], area, area + others[:, 2] * others[:, 3] - shared)
    return np.where(apart, 0, shared / np.where(apart, 1, union))


def _mask_overlaps(detections: dict[str, np.ndarray], shapes: Sequence[dict], gt: Truths, detection: np.ndarray,
                   truth: np.ndarray) -> np.ndarray:
    """IoU (P,) of masks, by pycocotools' C code."""
    overlap, crowd = np.zeros(len(detection)), gt.crowd.astype(np.uint8)
    masks = cast('Sequence[dict]', gt.shapes)
    for pairs, rows, own in _groups(detection, truth):
        overlap[pairs] = coco_masks.iou(shapes[rows], masks[own], crowd[own]).ravel()
    return overlap


def _keypoint_overlaps(detections: dict[str, np.ndarray], shapes: Sequence[np.ndarray], gt: Truths,
                       detection: np.ndarray, truth: np.ndarray, oks_settings: OksSettings) -> np.ndarray:
    """Object keypoint similarity (P,); 0 with an object that has no keypoints in the file."""
    overlap, keypoints = np.zeros(len(detection)), cast('Sequence[np.ndarray]', gt.shapes)
    for pairs, rows, own in _groups(detection, truth):
        labelled = [g for g in range(own.start, own.stop) if len(keypoints[g])]
        block = np.zeros((rows.stop - rows.start, own.stop - own.start))
        if labelled:
            block[:, np.array(labelled) - own.start] = oks(
                np.stack(shapes[rows]), np.stack([keypoints[g] for g in labelled]), gt.boxes[labelled],
                gt.area[labelled], oks_settings.sigmas)
        overlap[pairs] = block.ravel()
    return overlap


def _groups(detection: np.ndarray, truth: np.ndarray) -> Iterator[tuple[slice, slice, slice]]:
    """The pairs, detections and objects of each image and class; all detections of one have the same objects."""
    if not len(detection):
        return
    first = np.flatnonzero(np.diff(detection, prepend=-1))  # a detection's first pair, which is with the first object
    starts = first[np.flatnonzero(np.diff(truth[first], prepend=-1))]
    for a, b in zip(starts, np.append(starts[1:], len(detection))):
        yield slice(a, b), slice(detection[a], detection[b - 1] + 1), slice(truth[a], truth[b - 1] + 1)


def _choose(pairs: tuple[np.ndarray, np.ndarray, np.ndarray], detections: int, groups: np.ndarray, shared: np.ndarray,
            ignored: np.ndarray, thrs: np.ndarray) -> np.ndarray:
    """(A, T, D) the pair that each detection chose, -1 for none.

    In each group the detections choose one after the other: an object that counts before an ignored one, then the
    larger overlap, then the later object. Groups do not touch each other, so the k-th detections of all of them choose
    at once.
    """
    detection, truth, overlap = pairs
    chosen = np.full((len(ignored), len(thrs), detections), -1, dtype=np.int32)
    taken = np.zeros((len(ignored), len(thrs), len(groups)), dtype=bool)
    firsts = np.flatnonzero(np.diff(detection, prepend=-1))
    turns = np.repeat(_place_in_run(groups[truth[firsts]]), np.diff(firsts, append=len(detection)))
    by_turn = np.argsort(turns, kind='stable')
    # The pairs of a detection by rising preference, for each size: what counts there differs.
    orders = np.stack([np.lexsort((overlap, ~row[truth], detection)) for row in ignored])
    preference = np.empty_like(orders, dtype=np.int32)
    np.put_along_axis(preference, orders, np.arange(len(detection))[None], axis=1)
    reach = overlap >= np.minimum(thrs, 1 - 1e-10)[:, None]
    sizes = np.arange(len(ignored))[:, None, None]
    for pair in np.split(by_turn, np.flatnonzero(np.diff(turns[by_turn])) + 1) if len(by_turn) else ():
        starts = np.flatnonzero(np.diff(detection[pair], prepend=-1))
        free = reach[:, pair] & (~taken[:, :, truth[pair]] | shared[truth[pair]])
        best = np.maximum.reduceat(np.where(free, preference[:, None, pair], -1), starts, axis=-1)
        best = np.where(best >= 0, orders[sizes, best], -1)
        chosen[:, :, detection[pair[starts]]] = best
        a, t, k = np.nonzero(best >= 0)
        taken[a, t, truth[best[a, t, k]]] = True
    return chosen


def _status(pairs: tuple[np.ndarray, np.ndarray, np.ndarray], chosen: np.ndarray, area: np.ndarray,
            ignored: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """(A, T, D) int8: what became of each detection."""
    outside = (area < ranges[:, :1]) | (area > ranges[:, 1:])
    status = np.empty(chosen.shape, dtype=np.int8)
    status[:] = np.where(outside, IGNORED, WRONG)[:, None]
    sizes, thrs, detections = np.nonzero(chosen >= 0)
    partners = pairs[1][chosen[sizes, thrs, detections]]
    status[sizes, thrs, detections] = np.where(ignored[sizes, partners], IGNORED, FOUND)
    return status


def _partners(pairs: tuple[np.ndarray, np.ndarray, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """'truth' and 'overlap' of ``Matches``."""
    detection, truth, overlap = pairs
    largest = np.zeros(chosen.shape[-1])
    np.maximum.at(largest, detection, overlap)
    return dict(truth=np.append(truth, -1)[chosen[0]], overlap=largest)


# --- precision and recall ---

def accumulate(matches: Matches, image_ids: Sequence[int], category_ids: Sequence[int],
               limits: Sequence[int], nproc: int | None = None) -> Scores:
    """Precision at 101 levels of recall, and recall, for each class, size, threshold and limit.

    Args:
        matches: of ``match``.
        image_ids: of the data set: of equal scores, those of the smaller image id come first, as in pycocotools.
        category_ids: of the labels.
        limits: M numbers of detections of an image and class to count, rising.
        nproc: as in ``match``.

    Raises:
        DataError: a process that was ended from outside.
    """
    classes = np.argsort(category_ids, kind='stable')
    image_order = np.argsort(np.argsort(image_ids, kind='stable'))
    by_class = np.argsort(matches.label, kind='stable')
    bounds = np.searchsorted(matches.label[by_class], np.arange(len(classes) + 1))
    processes = 1 if nproc is None and len(matches.label) < _WORTH else min(usable_processes(nproc), len(classes))
    parts = min(1 if processes == 1 else processes * _PARTS, len(classes))

    def of_classes(part: int) -> tuple[np.ndarray, np.ndarray]:
        curves = [_curves(matches, by_class[bounds[label]:bounds[label + 1]], label, image_order, limits)
                  for label in classes[part::parts]]
        precision, recall = zip(*curves)
        return np.stack(precision, axis=2), np.stack(recall, axis=1)

    thrs = len(matches.iou_thrs)
    precision = np.empty((thrs, len(RECALL_LEVELS), len(classes), len(matches.sizes), len(limits)))
    recall = np.empty((thrs, len(classes), len(matches.sizes), len(limits)))
    for part, (own, recalls) in enumerate(in_processes(of_classes, parts, processes)):
        precision[:, :, part::parts], recall[:, part::parts] = own, recalls
    return Scores(precision, recall, matches.iou_thrs, sorted(int(c) for c in category_ids), list(limits),
                  matches.sizes)


def _curves(matches: Matches, rows: np.ndarray, label: int, image_order: np.ndarray,
            limits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, A, M) and recall (T, A, M) of one class.

    Args:
        matches: of ``match``.
        rows: the detections of the class.
        label: the class.
        image_order: (images,) places of the images among all, by rising id.
        limits: M, as in ``accumulate``.
    """
    sizes, thrs = len(matches.sizes), len(matches.iou_thrs)
    precision, recall = -np.ones((thrs, len(RECALL_LEVELS), sizes, len(limits))), -np.ones((thrs, sizes, len(limits)))
    rows = rows[np.lexsort((matches.rank[rows], image_order[matches.image[rows]], -matches.score[rows]))]
    most = matches.rank[rows].max(initial=-1) + 1
    for m in reversed(range(len(limits))):
        if m + 1 < len(limits) and limits[m] >= most:  # the next limit cuts nothing more
            precision[..., m], recall[..., m] = precision[..., m + 1], recall[..., m + 1]
            continue
        status = matches.status[..., rows[matches.rank[rows] < limits[m]]]
        for a in np.flatnonzero(matches.counted[:, label]):
            precision[:, :, a, m], recall[:, a, m] = curve(status[a], matches.counted[a, label])
    return precision, recall


def curve(status: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R) at the levels of recall and recall (T,) of detections (T, n), best first."""
    precision = np.zeros((len(status), len(RECALL_LEVELS)))
    # Precision falls between those that found something, so they alone decide: (T, most that were found).
    rows, hits = np.nonzero(status == FOUND)
    counts = np.bincount(rows, minlength=len(status))
    right = np.arange(len(hits)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    wrong = np.cumsum(status == WRONG, axis=1, dtype=np.int32)[rows, hits]
    values = np.zeros((len(status), counts.max()))
    values[rows, right - 1] = right / (wrong.astype(np.float64) + right + np.spacing(1))
    values = np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    places = np.searchsorted(np.arange(1, objects + 1) / objects, RECALL_LEVELS, side='left')
    reached = places < values.shape[1]
    precision[:, reached] = values[:, places[reached]]
    return precision, counts / objects
