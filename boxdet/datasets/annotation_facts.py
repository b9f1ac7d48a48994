"""What the annotations of a data set say, as flat arrays: for checks that look at all of them at once.

Letters: A annotations of listed images, I images.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of an annotation's ``segmentation``.
NO_MASK, POLYGONS, RLE, RLE_OF_ANOTHER_SIZE, NO_SEGMENTATION = range(5)


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
        masks: (A,) int8: NO_MASK, POLYGONS, RLE, RLE_OF_ANOTHER_SIZE, or NO_SEGMENTATION where it is neither.
        sizes: (I, 2) float64 width, height of the images; infinite where the file does not say.
        strays: ids of annotations of images that the file does not list; they are not among the A.
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
    strays: Sequence[Any] = ()

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
                      and len(one[0]) >= 6 and type(one[0][0]) in (int, float) else NO_MASK for a in annotations],
                     dtype=np.int8)
    for place in np.flatnonzero(kinds == NO_MASK).tolist():
        kinds[place] = _kind(annotations[place].get('segmentation'), sizes[place])
    return kinds


def _kind(segmentation: Any, size: np.ndarray) -> int:
    if segmentation is None:
        return NO_MASK
    if isinstance(segmentation, dict):
        given = segmentation.get('size')
        if 'counts' not in segmentation or not isinstance(given, (list, tuple)):
            return NO_SEGMENTATION
        return RLE if np.isinf(size).any() or list(given) == [size[1], size[0]] else RLE_OF_ANOTHER_SIZE
    if not isinstance(segmentation, (list, tuple)) or not all(map(_is_polygon, segmentation)):
        return NO_SEGMENTATION
    if any(len(polygon) >= 6 for polygon in segmentation):
        return POLYGONS
    points = len(segmentation) >= 3 and {len(polygon) for polygon in segmentation} == {2}
    return NO_SEGMENTATION if points else NO_MASK


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, np.ndarray) or (isinstance(polygon, (list, tuple)) and not any(
        isinstance(number, (list, tuple, dict)) for number in polygon[:1]))
