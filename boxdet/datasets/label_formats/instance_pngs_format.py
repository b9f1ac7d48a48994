"""Masks of instances as PNG files.

Either a file an image, whose pixels hold an instance's number (0 is background); or a folder an image, with a file of
0 and not 0 for each object. Images lie in ``images``, masks in ``masks`` (or ``ReadOptions.images`` and the source
itself); a mask belongs to the image of its name, endings such as ``_mask`` apart.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from boxdet.datasets.label_formats.labels import (
    ImageFinder,
    LabelledImage,
    LabelledObject,
    LabelSet,
    ReadOptions,
    encode_mask,
    files_with,
    open_image,
    turn_upright,
)
from boxdet.errors import DataError

_ENDINGS = ('_masks', '_mask', '_gtfine_instanceids', '_instanceids', '_instances', '_instance', '_labels', '_label',
            '_seg')
_FOLDERS = ('masks', 'Masks', 'instances', 'SegmentationObject', 'PedMasks', 'labels')


def recognises(source: Path) -> bool:
    """Whether this is a folder with a folder of masks."""
    return source.is_dir() and _mask_folder(source) is not None


def _mask_folder(source: Path) -> Path | None:
    for name in _FOLDERS:
        if (source / name).is_dir() and next(files_with(source / name, '.png'), None) is not None:
            return source / name
    return source if any(source.glob('*/masks/*.png')) else None


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read the masks.

    Raises:
        DataError: no masks, or classes that ``classes`` and ``label_divisor`` do not tell.
    """
    folder = _mask_folder(source) or source
    classes = options.classes or ('object',)
    if len(classes) > 1 and options.label_divisor <= 0:
        raise DataError('several --classes for PNGs of instances need --label-divisor: instance id // divisor is the '
                        'class')
    labels, finder = LabelSet(), _Finder(options.images, source, folder)
    for name in classes:
        labels.category(name)
    for stem, parts in _masks(folder):
        image = open_image(labels, finder.find(stem), stem)
        if image is None:
            continue
        labels.images.append(image)
        size = _read_parts(labels, image, parts, classes, options.label_divisor)
        turn_upright(image, size, labels)
    if not labels.images:
        raise DataError(f'{source}: no mask whose image is there; name their folder with --images')
    return labels


class _Finder(ImageFinder):
    """Finds images only: a mask is none, though it has a photo's name."""

    def __init__(self, images: Path | None, source: Path, masks: Path):
        others = [path for path in sorted(source.iterdir()) if path.is_dir() and path != masks]
        super().__init__(*([images] if images else others or [source]))

    def find(self, name: str) -> Path | None:
        """As ``ImageFinder.find``; not within a folder of masks."""
        found = super().find(name)
        return None if found is not None and 'masks' in found.parts[-2:-1] else found


def _masks(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """(stem of the image, its mask files)."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            inner = path / 'masks' if (path / 'masks').is_dir() else path
            parts = sorted(inner.glob('*.png'))
            if parts:
                yield path.name, parts
        elif path.suffix.lower() == '.png':
            stem = path.stem
            for ending in _ENDINGS:
                if stem.lower().endswith(ending):
                    stem = stem[:-len(ending)]
                    break
            yield stem, [path]


def _read_parts(labels: LabelSet, image: LabelledImage, parts: list[Path], classes: tuple[str, ...],
                divisor: int) -> tuple[int, int]:
    size = image.size
    for path in parts:
        mask = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        if mask is None:
            raise DataError(f'{path}: not a PNG that can be read')
        if mask.ndim == 3:  # a colour an instance
            mask = mask[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
        size = (mask.shape[1], mask.shape[0])
        if len(parts) > 1:
            mask = (mask > 0).astype(np.int64)
        for instance in np.unique(mask[mask > 0]).tolist():
            number = instance // divisor if divisor > 0 else 0
            if not 0 <= number < len(classes):
                labels.skip(f'instance ids whose class {number} is not among the {len(classes)} classes', path.name)
                continue
            image.objects.append(LabelledObject(classes[number], rle=encode_mask(mask == instance)))
    return size
