"""Why average precision is lost: precision and recall with one kind of error after the other excused.

The curves of COCO's analysis (Hoiem et al. 2012 in COCO's form), each with all that the one before excuses:

* C75, C50: precision at IoU 0.75 and 0.50; Loc: at 0.10, so that bad places do not count.
* Sim: detections on an object of another class of the same supercategory do not count.
* Oth: nor do those on an object of any other class.
* BG: nor do any other false positives; FN: nor do objects that are missed.

Letters: K classes, A object sizes, R levels of recall, C = 7 curves.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from boxdet.datasets.contracts import AnnotatedInCoco
from boxdet.evaluation.coco import Matches, Truths, accumulate, match, truth_columns
from boxdet.structures.instances import Instances

CAUSES = ('C75', 'C50', 'Loc', 'Sim', 'Oth', 'BG', 'FN')
_LIMIT = 100


@dataclass(frozen=True)
class ErrorCurves:
    """Curves of every class.

    Args:
        precision: (C, R, K, A), -1 where a class has no object of that size.
        objects: (A, K) how many there are.
        sizes: A names.
        labels: K names, in the order of the axes.
        areas: of all objects that count, pixels.
    """
    precision: np.ndarray
    objects: np.ndarray
    sizes: list[str]
    labels: list[str]
    areas: np.ndarray

    def of(self, label: int) -> np.ndarray:
        """(C, R, A) the curves of a class, 0 where there is nothing."""
        return np.maximum(self.precision[:, :, label], 0)

    def mean(self) -> np.ndarray:
        """(C, R, A) the mean over the classes that have objects of a size."""
        there = self.precision > -1
        return np.where(there, self.precision, 0).sum(axis=2) / np.maximum(there.sum(axis=2), 1)


def error_curves(dataset: AnnotatedInCoco, results: Sequence[Instances], iou_type: str,
                 sizes: Mapping[str, Sequence[float]]) -> ErrorCurves:
    """Match three times: as it is, with other classes of the supercategory excused, and with all other classes excused.

    Args:
        dataset: with ``coco``, ``img_ids``, ``cat_ids`` and ``CLASSES``.
        results: one Instances an image.
        iou_type: 'bbox' or 'segm'.
        sizes: ranges of the area in pixels by name.
    """
    images = [dataset.coco.imgs[i] for i in dataset.img_ids]
    gt = truth_columns(dataset.coco, dataset.img_ids, dataset.cat_ids, iou_type)
    if gt.shapes is not None:
        gt = replace(gt, shapes=list(gt.shapes))  # drawn once for all matchings
    families = _families(dataset)
    present = np.zeros((len(images), len(dataset.cat_ids)), dtype=bool)
    for index, result in enumerate(results):
        present[index, np.unique(result.labels.numpy())] = True

    def precision(gt: Truths, thrs: Sequence[float]) -> tuple[np.ndarray, Matches]:
        matches = match(gt, results, images, dataset.cat_ids, iou_type, thrs, _LIMIT, sizes=sizes)
        scores = accumulate(matches, dataset.img_ids, dataset.cat_ids, [_LIMIT])
        # Back from sorted category ids to labels.
        return scores.precision[..., 0][:, :, np.argsort(np.argsort(dataset.cat_ids))], matches

    plain, matches = precision(gt, (0.75, 0.5, 0.1))
    similar, _ = precision(_with_others(gt, present, dataset.cat_ids, families[:, None] == families), [0.1])
    other, _ = precision(_with_others(gt, present, dataset.cat_ids), [0.1])
    background = np.where(other > 0, 1, other)
    missed = np.where(other > -1, 1., other)
    return ErrorCurves(np.concatenate([plain, similar, other, background, missed]), matches.counted, list(sizes),
                       list(dataset.CLASSES), gt.area[~gt.ignored])


def _families(dataset: AnnotatedInCoco) -> np.ndarray:
    """(K,) a number for the supercategory of each class; a class without one is alone."""
    names = [dataset.coco.cats[c].get('supercategory') if c in dataset.coco.cats else None for c in dataset.cat_ids]
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] if name else -1 - k for k, name in enumerate(names)])


def _with_others(gt: Truths, present: np.ndarray, category_ids: Sequence[int],
                 alike: np.ndarray | None = None) -> Truths:
    """``gt`` and, for every class that an image has detections of, its objects of other classes as crowds.

    Args:
        gt: of ``truth_columns``.
        present: (images, K) classes of the detections of each image.
        category_ids: of the K labels.
        alike: (K, K) bool: objects of which classes (columns) excuse detections of a class (rows); all without it.
    """
    wanted = present[gt.image]  # (G, K)
    if alike is not None:
        wanted = wanted & alike[:, gt.label].T
    wanted[np.arange(len(gt.label)), gt.label] = False
    source, label = np.nonzero(wanted)
    rows = np.concatenate([np.arange(len(gt.label)), source])
    columns = dict(label=np.concatenate([gt.label, label]), **{
        name: np.concatenate([getattr(gt, name), np.ones(len(source), bool)])
        for name in ('crowd', 'shared', 'ignored')})
    order = np.lexsort((rows, np.asarray(category_ids)[columns['label']], gt.image[rows]))
    rows = rows[order]
    return replace(gt, image=gt.image[rows], ids=gt.ids[rows], boxes=gt.boxes[rows],
                   area=gt.area[rows], shapes=None if gt.shapes is None else [gt.shapes[g] for g in rows],
                   **{name: column[order] for name, column in columns.items()})
