"""A CSV with a line an object, whose first line names the columns.

Columns are known by their usual names: an image file, a class, and corners (xmin, ymin, xmax, ymax) or a corner and a
size (x, y, width, height of the box). Where no number is above 1, they are relative to the image.
"""
from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from boxdet.datasets.label_formats.labels import (
    ImageFinder,
    LabelledImage,
    LabelledObject,
    LabelSet,
    ReadOptions,
    open_image,
    truthy,
)
from boxdet.errors import DataError

_NAMES = {
    'file': ('filename', 'file_name', 'file', 'image', 'image_name', 'img', 'path', 'image_path', 'img_path',
    'image_id',
             'imageid'),
    'class': ('class', 'label', 'category', 'class_name', 'category_name', 'name', 'label_name', 'labelname'),
    'x0': ('xmin', 'x_min', 'x1', 'left', 'xtl', 'bbox_x1'), 'y0': ('ymin', 'y_min', 'y1', 'top', 'ytl', 'bbox_y1'),
    'x1': ('xmax', 'x_max', 'x2', 'right', 'xbr', 'bbox_x2'), 'y1': ('ymax', 'y_max', 'y2', 'bottom', 'ybr', 'bbox_y2'),
    'x': ('x', 'bbox_x', 'xmin', 'x_min', 'x1', 'left'), 'y': ('y', 'bbox_y', 'ymin', 'y_min', 'y1', 'top'),
    'w': ('w', 'bbox_width', 'bbox_w', 'box_width', 'width'), 'h': ('h', 'bbox_height', 'bbox_h', 'box_height',
    'height'), 'split': ('split', 'subset', 'set'), 'crowd': ('iscrowd', 'is_crowd', 'crowd'), 'difficult':
    ('difficult',),
}


def recognises(source: Path) -> bool:
    """Whether this is such a CSV, or a folder with one."""
    path = _file_of(source)
    return path is not None and _columns(path) is not None


def _file_of(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix.lower() in ('.csv', '.tsv') else None
    return next((path for path in sorted(source.glob('*.csv')) if _columns(path) is not None), None)


def _dialect(path: Path) -> str:
    with path.open(encoding='utf-8-sig', errors='replace') as file:
        head = file.readline()
    return max(',;\t', key=head.count)


def _columns(path: Path) -> dict[str, str] | None:
    """The file's column for each role; None where one that is needed is missing."""
    with path.open(encoding='utf-8-sig', errors='replace', newline='') as file:
        header = next(csv.reader(file, delimiter=_dialect(path)), [])
    by_lower = {name.strip().lower(): name for name in header}
    found = {role: by_lower[name] for role, names in _NAMES.items() for name in reversed(names) if name in by_lower}
    if not {'file', 'class'} <= found.keys():
        return None
    if {'x0', 'y0', 'x1', 'y1'} <= found.keys():
        return {role: found[role] for role in found if role not in ('x', 'y', 'w', 'h')}
    return found if {'x', 'y', 'w', 'h'} <= found.keys() else None


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read the CSV."""
    path = _file_of(source)
    columns = None if path is None else _columns(path)
    if path is None or columns is None:
        raise DataError(f'{source}: its first line must name columns for the image file, the class, and xmin, ymin, '
                        'xmax, ymax or x, y, w, h')
    labels, finder = LabelSet(), ImageFinder(options.images, path.parent)
    images: dict[str, LabelledImage | None] = {}
    rows = []
    with path.open(encoding='utf-8-sig', newline='') as file:
        for number, row in enumerate(csv.DictReader(file, delimiter=_dialect(path)), 2):
            rows.append((f'{path.name}:{number}', row))
    relative = _are_relative(rows, columns)
    for where, row in rows:
        key = (row[columns['file']] or '').strip()
        if key not in images:
            split = (row.get(columns.get('split', '')) or '').strip().lower() or None
            split = dict(valid='val', validation='val').get(split, split) if split else None
            image = images[key] = open_image(labels, finder.find(key), f'{where}: {key}', split)
            if image is not None:
                labels.images.append(image)
        image = images[key]
        if image is None:
            continue
        name = (row[columns['class']] or '').strip()
        box = _box(row, columns)
        if not name and box is None:
            continue  # an image without objects
        if not name or box is None:
            labels.skip('no class, or numbers that are none', where)
            continue
        if relative:
            (x, y, w, h), (width, height) = box, image.size
            box = (x * width, y * height, w * width, h * height)
        image.objects.append(LabelledObject(
            labels.category(name), bbox=box, crowd=truthy(row.get(columns.get('crowd', ''), '')),
            difficult=truthy(row.get(columns.get('difficult', ''), ''))))
    if not labels.images:
        raise DataError(f'{path}: none of its images is there; name their folder with --images')
    if relative:
        labels.note('numbers up to 1: taken as relative to the image', path.name)
    return labels


def _box(row: Mapping[str, str], columns: Mapping[str, str]) -> tuple[float, float, float, float] | None:
    try:
        if 'x0' in columns and 'x' not in columns:
            x0, y0, x1, y1 = (float(row[columns[key]]) for key in ('x0', 'y0', 'x1', 'y1'))
            return (x0, y0, x1 - x0, y1 - y0)
        x, y, w, h = (float(row[columns[key]]) for key in ('x', 'y', 'w', 'h'))
        return (x, y, w, h)
    except (TypeError, ValueError):
        return None


def _are_relative(rows: list[tuple[str, dict[str, str]]], columns: Mapping[str, str]) -> bool:
    boxes = [box for _, row in rows if (box := _box(row, columns)) is not None]
    return bool(boxes) and all(abs(value) <= 1.0 for box in boxes for value in box)
