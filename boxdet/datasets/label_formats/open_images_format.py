"""Open Images' CSV of boxes: corners relative to the image, ``IsGroupOf`` for crowds, classes as machine ids.

Names of the classes are read from ``class-descriptions*.csv`` beside the file (or above it), where it is there.
"""
from __future__ import annotations

import csv
from pathlib import Path

from boxdet.datasets.label_formats.labels import (
    ImageFinder,
    LabelledImage,
    LabelledObject,
    LabelSet,
    ReadOptions,
    files_with,
    open_image,
    truthy,
)
from boxdet.errors import DataError

_COLUMNS = ('ImageID', 'LabelName', 'XMin', 'XMax', 'YMin', 'YMax')


def recognises(source: Path) -> bool:
    """Whether this is a file of boxes, or a folder with one."""
    return bool(_files(source))


def _files(source: Path) -> list[Path]:
    paths = [source] if source.is_file() else list(files_with(source, '.csv'))
    return [path for path in paths if path.suffix.lower() == '.csv' and set(_COLUMNS) <= set(_header(path))]


def _header(path: Path) -> list[str]:
    with path.open(encoding='utf-8-sig', errors='replace') as file:
        return file.readline().strip().split(',')


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read every file of boxes; its name tells the split (train, validation, test)."""
    files = _files(source)
    if not files:
        raise DataError(f"{source}: no CSV with the columns {', '.join(_COLUMNS)}")
    folder = source if source.is_dir() else source.parent
    names = _class_names(folder)
    labels, finder = LabelSet(), ImageFinder(options.images, folder)
    for path in files:
        split = next((value for key, value in (('train', 'train'), ('validation', 'val'), ('test', 'test'))
                      if key in path.stem.lower()), None)
        _read_file(labels, path, split, names, finder)
    if not labels.images:
        raise DataError(f'{source}: none of its images is there; name their folder with --images')
    return labels


def _class_names(folder: Path) -> dict[str, str]:
    for place in (folder, folder.parent):
        for path in sorted(place.glob('*class-descriptions*.csv')):
            with path.open(encoding='utf-8-sig', newline='') as file:
                return {row[0]: row[1] for row in csv.reader(file) if len(row) >= 2}
    return {}


def _read_file(labels: LabelSet, path: Path, split: str | None, names: dict[str, str], finder: ImageFinder) -> None:
    images: dict[str, LabelledImage | None] = {}
    with path.open(encoding='utf-8-sig', newline='') as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            where, key = f'{path.name}:{number}', row['ImageID']
            if key not in images:
                image = images[key] = open_image(labels, finder.find(key), f'{where}: {key}', split)
                if image is not None:
                    labels.images.append(image)
            image = images[key]
            if image is None:
                continue
            try:
                x0, x1, y0, y1 = (float(row[name]) for name in ('XMin', 'XMax', 'YMin', 'YMax'))
            except (TypeError, ValueError):
                labels.skip('corners that are not numbers', where)
                continue
            width, height = image.size
            category = labels.category(names.get(row['LabelName'], row['LabelName']))
            image.objects.append(LabelledObject(
                category, bbox=(x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height),
                crowd=truthy(row.get('IsGroupOf') or '0')))
