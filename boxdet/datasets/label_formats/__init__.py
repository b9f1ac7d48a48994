"""Label files of other tools, read into one structure (``labels.LabelSet``) and written from COCO's.

A format is one module with ``recognises(source)`` and ``read(source, options)``; those that are written, too, have
``write(data, out, options)``. Only the module that is asked for is imported.
"""
from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from boxdet.errors import DataError, nearest

if TYPE_CHECKING:  # a command line lists the formats without OpenCV
    from boxdet.datasets.label_formats.labels import LabelSet, ReadOptions

# The order is the order of recognition: the more particular forms come first.
READERS = {
    'coco': "COCO's JSON",
    'labelme': 'labelme: a JSON file beside each image',
    'cvat': 'CVAT for images or video 1.1: annotations.xml',
    'label_studio': "Label Studio's JSON or JSON-MIN",
    'via': 'VGG Image Annotator: JSON or CSV',
    'open_images': "Open Images' CSV of boxes",
    'csv': 'a CSV whose first line names the columns',
    'yolo': 'YOLO: boxes, polygons or poses in text files (Ultralytics, Darknet)',
    'voc': "Pascal VOC's XML files",
    'instance_pngs': 'PNGs of instance ids, or a folder of masks for each image',
}
WRITERS = ('yolo', 'labelme', 'cvat', 'label_studio')


def format_module(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        DataError: there is no such format.
    """
    if name not in READERS:
        raise DataError(f"format '{name}' is none of {', '.join(READERS)}{nearest(name, READERS)}")
    return importlib.import_module(f'boxdet.datasets.label_formats.{name}_format')


def recognise(source: Path) -> str:
    """The name of the format that ``source``, a file or a folder, is in.

    Raises:
        DataError: it does not exist, or is in none of the formats.
    """
    if not source.exists():
        raise DataError(f'{source}: no such file or folder')
    for name in READERS:
        if format_module(name).recognises(source):
            return name
    raise DataError(f'{source}: in none of the known formats; name it with --format ({", ".join(READERS)})')


def read_labels(source: Path, name: str | None = None, options: ReadOptions | None = None) -> LabelSet:
    """Read labels.

    Args:
        source: file or folder.
        name: the format; recognised where it is None.
        options: see ``ReadOptions``.

    Raises:
        DataError: what cannot be read, with the file.
    """
    if not source.exists():
        raise DataError(f'{source}: no such file or folder')
    from boxdet.datasets.label_formats.labels import ReadOptions
    module = format_module(name or recognise(source))
    return module.read(source, options or ReadOptions())
