"""What the annotations of a data set say, as flat arrays: for checks that look at all of them at once.

Letters: A annotations of listed images, I images.
"""
from __future__ import annotations

from collections.abc import Mapping
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


def mask_kind(segmentation: Any, size: tuple[float, float]) -> int:
    """What a COCO ``segmentation`` is.

    Args:
        segmentation: as parsed.
        size: width, height of the image; infinite where that is not known.
    """
    if isinstance(segmentation, dict):
        given = segmentation.get('size')
        fits = size[0] == float('inf') or given is None or list(given) == [size[1], size[0]]
        return RLE if fits else RLE_OF_ANOTHER_SIZE
    if not isinstance(segmentation, (list, tuple)):
        return NO_MASK if segmentation is None else POLYGONS  # what it is otherwise is told when it is loaded
    for polygon in segmentation:
        if not hasattr(polygon, '__len__') or len(polygon) >= 6:
            return POLYGONS
    return NO_MASK
