"""What the annotations of a data set say, as flat arrays: for checks that look at all of them at once.

Letters: A annotations of listed images, I images.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of an annotation's ``segmentation``.
NO_MASK, POLYGONS, RLE, RLE_OF_ANOTHER_SIZE = range(4)


@dataclass(frozen=True)
class AnnotationFacts:
    """What an annotation file says, before anything is left out.

    Args:
        ids: (A,) the annotations' ids.
        rows: (A,) int64, the image of each among the I of the file.
        boxes: (A, 4) float64 x, y, width, height as they stand in the file.
        areas: (A,) float64, NaN where an annotation has none.
        crowd, ignored: (A,) bool, ``iscrowd`` and ``ignore``.
        degenerate: (A,) bool, without area or outside the image.
        labels: (A,) int64 in [0, K), -1 for a category that is none of the classes.
        categories: (A,) the categories' ids. names: the file's category names by id.
        masks: (A,) int8: NO_MASK, POLYGONS, RLE or RLE_OF_ANOTHER_SIZE.
        sizes: (I, 2) float64 width, height of the images; infinite where the file does not say.
    """
    ids: np.ndarray
    rows: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    degenerate: np.ndarray
    labels: np.ndarray
    categories: np.ndarray
    names: Mapping[Any, str]
    masks: np.ndarray
    sizes: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """(A,) bool: the objects that are learned."""
        return ~(self.crowd | self.ignored | self.degenerate) & (self.labels >= 0)


def mask_kinds(annotations: Sequence[Mapping[str, Any]], sizes: np.ndarray) -> np.ndarray:
    """(A,) int8: what the COCO ``segmentation`` of each annotation is.

    Args:
        annotations: A, as parsed.
        sizes: (A, 2) width, height of the annotation's image; infinite where that is not known.
    """
    # One quick look at each of a million: a list that begins with three points or more is a mask of polygons.
    kinds = np.array([POLYGONS if type(one := a.get('segmentation')) is list and one and type(one[0]) is list
                      and len(one[0]) >= 6 else NO_MASK for a in annotations], dtype=np.int8)
    for place in np.flatnonzero(kinds == NO_MASK).tolist():
        kinds[place] = _kind(annotations[place].get('segmentation'), sizes[place])
    return kinds


def _kind(segmentation: Any, size: np.ndarray) -> int:
    if isinstance(segmentation, dict):
        given = segmentation.get('size')
        fits = np.isinf(size).any() or given is None or list(given) == [size[1], size[0]]
        return RLE if fits else RLE_OF_ANOTHER_SIZE
    if not isinstance(segmentation, (list, tuple)):
        return NO_MASK if segmentation is None else POLYGONS  # what it is otherwise is told when it is loaded
    for polygon in segmentation:
        if not hasattr(polygon, '__len__') or len(polygon) >= 6:
            return POLYGONS
    return NO_MASK
