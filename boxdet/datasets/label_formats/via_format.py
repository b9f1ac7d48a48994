"""VGG Image Annotator, versions 1 and 2: its project, its JSON export, its CSV export.

An object's class is the value of a region attribute: ``ReadOptions.attribute``, or the only one, or one named as
classes usually are.
"""
from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from boxdet.datasets.label_formats.labels import (
    ImageFinder,
    LabelledObject,
    LabelSet,
    ReadOptions,
    ellipse,
    files_with,
    flat,
    open_image,
)
from boxdet.errors import DataError
from boxdet.files.json_text import read_json

_CLASS_ATTRIBUTES = ('class', 'label', 'name', 'type', 'category', 'object', 'object_name')


def recognises(source: Path) -> bool:
    """Whether this is a file of VIA, or a folder with one."""
    return _file_of(source) is not None


def _file_of(source: Path) -> Path | None:
    files = [source] if source.is_file() else (path for path, _ in zip(files_with(source, '.json', '.csv'), range(20)))
    for path in files:
        with path.open(encoding='utf-8-sig', errors='replace') as file:
            head = file.read(100_000)
        if path.suffix.lower() == '.json' and ('"_via_img_metadata"' in head or '"shape_attributes"' in head):
            return path
        if path.suffix.lower() == '.csv' and 'region_shape_attributes' in head.split('\n', 1)[0]:
            return path
    return None


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read VIA's labels.

    Raises:
        DataError: not VIA's form, or it is not clear which attribute holds the class.
    """
    path = _file_of(source) or source
    entries = list(_from_csv(path) if path.suffix.lower() == '.csv' else _from_json(path))
    attribute = options.attribute or _class_attribute(entries, path)
    labels = LabelSet()
    finder = ImageFinder(options.images, path.parent)
    for name, regions in entries:
        image = open_image(labels, finder.find(name), name)
        if image is None:
            continue
        labels.images.append(image)
        for number, (shape, attributes) in enumerate(regions):
            where = f'{name}: region {number}'
            value = _value(attributes.get(attribute)) if attribute else 'object'
            if not value:
                labels.skip(f"regions without the attribute '{attribute}'", where)
                continue
            one = LabelledObject(value)
            problem = _take_shape(one, shape)
            if problem:
                labels.skip(problem, where)
                continue
            labels.category(value)
            image.objects.append(one)
    if not labels.images:
        raise DataError(f'{path}: none of its images is there; name their folder with --images')
    return labels


Regions = list[tuple[Mapping[str, Any], Mapping[str, Any]]]


def _from_json(path: Path) -> Iterator[tuple[str, Regions]]:
    content = read_json(path)
    content = content.get('_via_img_metadata', content) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: not VIA's form")
    for entry in content.values():
        if not isinstance(entry, Mapping) or 'filename' not in entry:
            continue
        regions = entry.get('regions') or []
        regions = list(regions.values()) if isinstance(regions, Mapping) else regions
        yield entry['filename'], [(r.get('shape_attributes') or {}, r.get('region_attributes') or {}) for r in regions]


def _from_csv(path: Path) -> Iterator[tuple[str, Regions]]:
    found: dict[str, Regions] = {}
    with path.open(encoding='utf-8-sig', newline='') as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            name = row.get('filename') or row.get('#filename')
            if not name:
                raise DataError(f"{path}:{number}: no 'filename'")
            regions = found.setdefault(name, [])
            try:
                shape = json.loads(row.get('region_shape_attributes') or '{}')
                attributes = json.loads(row.get('region_attributes') or '{}')
            except ValueError as error:
                raise DataError(f'{path}:{number}: a region that is not JSON ({error})') from error
            if shape:
                regions.append((shape, attributes))
    yield from found.items()


def _class_attribute(entries: Sequence[tuple[str, Regions]], path: Path) -> str | None:
    used = Counter(key for _, regions in entries for _, attributes in regions for key in attributes)
    if len(used) <= 1:
        return next(iter(used), None)
    for name in _CLASS_ATTRIBUTES:
        for key in used:
            if key.lower() == name:
                return key
    raise DataError(f"{path}: which of the attributes {', '.join(sorted(used))} holds the class? Name it with "
                    '--attribute')


def _value(value: Any) -> str:
    if isinstance(value, Mapping):  # a checkbox: the option that is chosen
        value = next((key for key, chosen in value.items() if chosen), '')
    return str(value if value is not None else '').strip()


def _take_shape(one: LabelledObject, shape: Mapping[str, Any]) -> str | None:
    kind = shape.get('name')
    if kind == 'rect':
        one.bbox = tuple(float(shape[key]) for key in ('x', 'y', 'width', 'height'))  # type: ignore[assignment]
    elif kind == 'polygon' and len(shape.get('all_points_x') or ()) >= 3:
        one.polygons = [flat(zip(shape['all_points_x'], shape['all_points_y']))]
    elif kind == 'circle':
        one.polygons = [ellipse(shape['cx'], shape['cy'], shape['r'], shape['r'])]
    elif kind == 'ellipse':
        one.polygons = [ellipse(shape['cx'], shape['cy'], shape['rx'], shape['ry'],
                                math.degrees(float(shape.get('theta') or 0)))]
    else:
        return f"a '{kind}' has no area"
    return None
