"""What the writers of label formats share."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boxdet.datasets.label_formats.labels import decode_rle, polygon_area
from boxdet.errors import DataError


def annotations_by_image(data: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image of a COCO dict with its annotations."""
    by_image = defaultdict(list)
    for annotation in data['annotations']:
        by_image[annotation['image_id']].append(annotation)
    for image in data['images']:
        yield image, by_image[image['id']]


def outlines(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> list[list[float]]:
    """The polygons of an annotation, the largest first; of a mask the outlines of its parts, without holes."""
    segmentation = annotation.get('segmentation')
    if not segmentation:
        return []
    if isinstance(segmentation, Mapping):
        import cv2

        mask = np.ascontiguousarray(decode_rle(dict(segmentation)))
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        # OpenCV's outline runs through the centres of the outermost pixels: half a pixel inside them.
        polygons = [(contour.reshape(-1, 2) + 0.5).flatten().tolist() for contour in found if len(contour) > 2]
    else:
        polygons = [list(map(float, polygon)) for polygon in segmentation if len(polygon) >= 6]
    return sorted(polygons, key=polygon_area, reverse=True)


def link_image(source: Path, target: Path) -> None:
    """Put an image at ``target``: a link where the file system has them, else a copy.

    Raises:
        DataError: the image is missing.
    """
    if not source.is_file():
        raise DataError(f'{source}: no such image; name their folder with --images')
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.exists():
        return
    try:
        target.symlink_to(source.resolve())
    except OSError:
        import shutil

        shutil.copyfile(source, target)
