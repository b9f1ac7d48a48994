"""labelme: a JSON file for each image, with ``shapes`` and ``imagePath``.

Shapes of one label and ``group_id`` are one object. ``point`` shapes of a group are the keypoints of its other shape,
under their own labels. Circles become polygons; lines have no area and are left out.
"""
from __future__ import annotations

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxdet.datasets.label_formats.labels import (
    ImageFinder,
    LabelledObject,
    LabelSet,
    ReadOptions,
    bounding_box,
    ellipse,
    encode_mask,
    files_with,
    flat,
    open_image,
    truthy,
    turn_upright,
)
from boxdet.errors import DataError
from boxdet.files.json_text import read_json
from boxdet.files.writing import write_whole


def recognises(source: Path) -> bool:
    """Whether this is a labelme file, or a folder of them."""
    files = [source] if source.is_file() else (path for path, _ in zip(files_with(source, '.json'), range(20)))
    return any(path.suffix.lower() == '.json' and _is_labelme(path) for path in files)


def _is_labelme(path: Path) -> bool:
    with path.open(encoding='utf-8-sig', errors='replace') as file:
        head = file.read(4096)
        if '"shapes"' not in head and path.stat().st_size > 4096:
            return False  # labelme writes them first; a COCO file of a gigabyte is not read to find out
    try:
        content = json.loads(path.read_text(encoding='utf-8-sig'))
    except ValueError:
        return False
    return isinstance(content, Mapping) and 'shapes' in content and 'imagePath' in content


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read a labelme file, or every one in a folder and the folders within it."""
    labels = LabelSet()
    folder = source if source.is_dir() else source.parent
    finder = ImageFinder(options.images, folder)
    for path in [source] if source.is_file() else files_with(source, '.json'):
        content = read_json(path)
        if not isinstance(content, Mapping) or 'shapes' not in content:
            labels.skip('JSON that is not of labelme', path.name)
            continue
        _read_file(labels, path, content, finder)
    if not labels.images:
        raise DataError(f'{source}: no labelme file with an image that is there; name their folder with --images')
    _number_keypoints(labels)
    return labels


def _read_file(labels: LabelSet, path: Path, content: Mapping[str, Any], finder: ImageFinder) -> None:
    named = str(content.get('imagePath') or path.stem).replace('\\', '/')
    beside = path.parent / named
    image_path = beside if beside.is_file() else finder.find(named) or finder.find(path.stem)
    if image_path is None and content.get('imageData'):
        labels.skip("the image file is missing (the JSON holds a copy: labelme_export_json writes it to a file)",
                    path.name)
        return
    image = open_image(labels, image_path, f'{path.name}: {named}')
    if image is None:
        return
    labels.images.append(image)
    width, height = content.get('imageWidth'), content.get('imageHeight')
    size = (int(width), int(height)) if width and height else None
    groups: dict[Any, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    for number, shape in enumerate(content['shapes']):
        where = f'{path.name}: shape {number}'
        group = shape.get('group_id')
        if not isinstance(shape.get('label'), str) or not shape['label'].strip():
            labels.skip('a shape without a label', where)
            continue
        groups[('alone', number) if group is None else ('group', group)].append((where, shape))
    for members in groups.values():
        image.objects += _objects(labels, members, size or image.size)
    turn_upright(image, size, labels)


def _objects(labels: LabelSet, members: Sequence[tuple[str, Mapping[str, Any]]],
             size: tuple[int, int]) -> list[LabelledObject]:
    """The objects of a group: one a label, and the points among them as keypoints of the only one."""
    found: dict[str, LabelledObject] = {}
    points: list[tuple[str, str, tuple[float, float, int]]] = []
    for where, shape in members:
        name, kind = shape['label'].strip(), shape.get('shape_type') or 'polygon'
        corners = [(float(x), float(y)) for x, y in shape.get('points') or ()]
        if kind == 'point' and corners:
            hidden = truthy((shape.get('flags') or {}).get('occluded', False))
            points.append((where, name, (*corners[0], 1 if hidden else 2)))
            continue
        one = LabelledObject(name)
        problem = _take_shape(one, kind, corners, shape, size)
        if problem:
            labels.skip(problem, where)
            continue
        flags = shape.get('flags') or {}
        one.difficult = truthy(flags.get('difficult', False))
        one.crowd = truthy(flags.get('crowd', flags.get('iscrowd', False)))
        if name in found:
            found[name].join(one)
        else:
            found[name] = one
    for where, name, point in points:
        if len(found) != 1:
            labels.skip('a point in a group without one other shape: a keypoint of nothing', where)
            continue
        labels.place_keypoint(next(iter(found.values())), name, point)
    for name in found:
        labels.category(name)
    return list(found.values())


def _take_shape(one: LabelledObject, kind: str, corners: list[tuple[float, float]], shape: Mapping[str, Any],
                size: tuple[int, int]) -> str | None:
    """Fill ``one`` from a shape; or say why it cannot be."""
    if kind == 'rectangle' and len(corners) >= 2:
        one.bbox = bounding_box(corners)
    elif kind in ('polygon', 'oriented_rectangle') and len(corners) >= 3:
        one.polygons = [flat(corners)]
    elif kind == 'circle' and len(corners) == 2:
        (cx, cy), (x, y) = corners
        radius = math.hypot(x - cx, y - cy)
        one.polygons = [ellipse(cx, cy, radius, radius)]
    elif kind == 'mask' and shape.get('mask') and corners:
        one.rle = encode_mask(_whole_mask(shape['mask'], corners[0], size))
    elif kind in ('line', 'linestrip', 'points'):
        return f"a '{kind}' has no area"
    else:
        return f"a '{kind}' of {len(corners)} points"
    return None


def _whole_mask(text: str, corner: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    part = np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) > 0
    width, height = size
    whole = np.zeros((height, width), dtype=bool)
    x, y = round(corner[0]), round(corner[1])
    part = part[:max(height - y, 0), :max(width - x, 0)]
    whole[y:y + part.shape[0], x:x + part.shape[1]] = part
    return whole


def _number_keypoints(labels: LabelSet) -> None:
    """Give every object of a category with keypoints as many as its list of names has."""
    for image in labels.images:
        for found in image.objects:
            names = labels.keypoints.get(found.category)
            if names and found.keypoints:
                found.keypoints += [(0.0, 0.0, 0)] * (len(names) - len(found.keypoints))


# ------------------------------------------------------------------------------------------------- writing

def write(data: dict[str, Any], out: Path, images: Path) -> dict[str, int]:
    """Write a labelme file for each image of COCO's dict, beside a link to it.

    Parts of an object, and its keypoints, share a ``group_id``. The confidence of a prediction is its description.

    Args:
        data: a COCO data set, or predictions in its form.
        out: the folder.
        images: folder that ``file_name`` is relative to.

    Returns:
        reason -> number of objects that were simplified.
    """
    from boxdet.datasets.label_formats.writing import annotations_by_image, check_image_names, link_image, outlines

    check_image_names(data, beside=True)
    categories = {category['id']: category for category in data['categories']}
    counts: dict[str, int] = {}
    for image, found in annotations_by_image(data):
        name = Path(image['file_name'])
        link_image(images / name, out / name)
        shapes: list[dict[str, Any]] = []
        for group, annotation in enumerate(found, 1):
            category = categories[annotation['category_id']]
            polygons = outlines(annotation, image)
            if isinstance(annotation.get('segmentation'), Mapping):
                counts['masks written as outlines'] = counts.get('masks written as outlines', 0) + 1
            points = _keypoints(annotation, category)
            together = group if points or len(polygons) > 1 else None
            x, y, w, h = annotation['bbox']
            corners = [[x, y], [x + w, y + h]]
            parts = [('polygon', [list(p) for p in zip(polygon[0::2], polygon[1::2])]) for polygon in polygons]
            for kind, place in parts or [('rectangle', corners)]:
                shapes.append(_shape(category['name'], kind, place, together, annotation))
            shapes += [_shape(name_, 'point', [[px, py]], together, {}, hidden=v == 1) for name_, px, py, v in points]
        content = dict(version='5.5.0', flags={}, shapes=shapes, imagePath=name.name, imageData=None,
                       imageHeight=image['height'], imageWidth=image['width'])
        write_whole(out / name.with_suffix('.json'), json.dumps(content, ensure_ascii=False, indent=2))
    return counts


def _keypoints(annotation: Mapping[str, Any], category: Mapping[str, Any]) -> list[tuple[str, float, float, int]]:
    values, names = annotation.get('keypoints') or [], category.get('keypoints') or []
    return [(name, values[i], values[i + 1], values[i + 2]) for name, i in zip(names, range(0, len(values), 3))
            if values[i + 2]]


def _shape(label: str, kind: str, points: list[list[float]], group: int | None, annotation: Mapping[str, Any],
           hidden: bool = False) -> dict[str, Any]:
    score = annotation.get('score')
    flags = dict(occluded=True) if hidden else {}
    if annotation.get('iscrowd'):
        flags['crowd'] = True
    return dict(label=label, points=points, group_id=group, shape_type=kind, flags=flags, mask=None,
                description='' if score is None else f'score {score:.3f}')

