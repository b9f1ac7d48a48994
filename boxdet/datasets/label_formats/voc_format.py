"""Pascal VOC's XML files, in a folder or in ``Annotations`` beside ``JPEGImages``; ``ImageSets/Main`` tells the splits.

Pixels count from 1 in the files and from 0 here, as in ``VOCDataset``. A whole devkit is converted by
``tools/dataset_converters/pascal_voc.py``.
"""
from __future__ import annotations

from pathlib import Path

from boxdet.datasets.files import read_names
from boxdet.datasets.label_formats.labels import (
    ImageFinder,
    LabelledObject,
    LabelSet,
    ReadOptions,
    files_with,
    open_image,
    turn_upright,
)
from boxdet.datasets.voc import read_voc_file
from boxdet.errors import DataError


def recognises(source: Path) -> bool:
    """Whether this is a folder with VOC's XML files."""
    if not source.is_dir():
        return source.suffix.lower() == '.xml' and b'<annotation>' in source.read_bytes()[:500]
    return any(b'<annotation' in path.read_bytes()[:500] and b'<annotations' not in path.read_bytes()[:500]
               for path, _ in zip(files_with(source, '.xml'), range(5)))


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read every XML file."""
    labels = LabelSet()
    folder = source if source.is_dir() else source.parent
    finder = ImageFinder(options.images, folder)
    splits = {name: split for split in ('test', 'val', 'train')
              for file in [folder / 'ImageSets' / 'Main' / f'{split}.txt'] if file.is_file()
              for name in read_names(str(file))}
    for path in [source] if source.is_file() else files_with(source, '.xml'):
        found = read_voc_file(str(path))
        image = open_image(labels, finder.find(path.stem), f'{path.name}: {path.stem}', splits.get(path.stem))
        if image is None:
            continue
        labels.images.append(image)
        for name, (x0, y0, x1, y1), difficult in zip(found.names, found.boxes.tolist(), found.difficult.tolist()):
            image.objects.append(LabelledObject(labels.category(name), bbox=(x0 - 1, y0 - 1, x1 - x0, y1 - y0),
                                                difficult=bool(difficult)))
        turn_upright(image, found.size, labels)
    if not labels.images:
        raise DataError(f'{source}: no XML file whose image is there; name their folder with --images')
    labels.categories.sort()
    return labels
