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


def check_image_names(data: Mapping[str, Any], beside: bool) -> None:
    """Look, before anything is written, whether each image's files are its own and stay in the folder.

    Args:
        data: a COCO dict.
        beside: each image has a label file, called as the image is but for its ending.

    Raises:
        DataError: a name that leads elsewhere, or two images with one label file.
    """
    seen: dict[Path, dict[str, Any]] = {}
    for image in data['images']:
        name = Path(image['file_name'])
        if name.is_absolute() or '..' in name.parts:
            raise DataError(f"image {image['id']}: file_name '{name}' leads out of the folder that is written: let "
                            'names begin in one folder, and give it with --images')
        other = seen.setdefault(name.with_suffix(''), image)
        if beside and other is not image:
            raise DataError(f"images {other['id']} ('{other['file_name']}') and {image['id']} ('{name}') would have "
                            'one label file: rename one of them')


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
        slashes = Path(str(source).replace('\\', '/'))
        raise DataError(f'{source}: no such image; ' + (
            f"it is there with '/' in place of '\\' ({slashes}): correct file_name" if slashes.is_file() else
            'name their folder with --images'))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.exists():
        return
    try:
        target.symlink_to(source.resolve())
    except OSError:
        import shutil

        shutil.copyfile(source, target)
