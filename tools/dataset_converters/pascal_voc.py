#!/usr/bin/env python3
"""Convert Pascal VOC's XML files to COCO JSON, or to the middle format that CustomDataset reads.

    python tools/dataset_converters/pascal_voc.py data/VOCdevkit --out-dir data --out-format coco --nproc 8

DEVKIT_PATH holds VOC2007, VOC2012 or both. Of each year the splits train, val, trainval and test become
voc07_train.json (.pkl), ...; with both years there are voc0712_train, voc0712_val and voc0712_trainval besides. A split
without a list in ImageSets/Main is passed over. File names are relative to DEVKIT_PATH: give it as img_prefix.

Coordinates are those of VOCDataset: counted from 0. Difficult objects are marked 'ignore' in COCO JSON, and stand in
'bboxes_ignore' in the middle format. Training from either is training from the XML files; COCO's evaluation, however,
counts difficult objects, VOC's does not.
"""
from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, DataError, run_command

_SPLITS = ('train', 'val', 'trainval')
_YEARS = ('2007', '2012')


class Image(NamedTuple):
    """One image to convert: the devkit, its year's folder in it, its name, and the classes to keep."""
    devkit: Path
    folder: str
    name: str
    classes: tuple[str, ...]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = CommandParser(description=summary, epilog=details,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('devkit_path', type=Path, help='folder that holds VOC2007 or VOC2012')
    parser.add_argument('-o', '--out-dir', type=Path, help='where the files go (default: devkit_path)')
    parser.add_argument('--out-format', default='pkl', choices=('pkl', 'coco'),
                        help='pkl: the middle format; coco: COCO JSON (default: %(default)s)')
    parser.add_argument('--classes', type=Path, metavar='FILE',
                        help="names to keep, one a line, of data in VOC's form (default: VOC's 20)")
    parser.add_argument('--nproc', type=int, default=1, metavar='N', help='processes (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.nproc < 1:
        parser.error(f'--nproc {args.nproc}: it is 1 at least')
    return args


def plan(devkit: Path) -> dict[str, list[tuple[str, Path]]]:
    """For each output name the (year's folder, list of images) that it is made of, where the lists are there.

    Raises:
        DataError: no year's folder, or no list in any.
    """
    years = [year for year in _YEARS if (devkit / f'VOC{year}').is_dir()]
    if not years:
        raise DataError(f'{devkit}: neither VOC2007 nor VOC2012 is in this folder')
    groups = [[year] for year in years] + ([years] if len(years) > 1 else [])
    found: dict[str, list[tuple[str, Path]]] = {}
    for group in groups:
        for split in (*_SPLITS, 'test') if len(group) == 1 else _SPLITS:
            lists = [(f'VOC{year}', devkit / f'VOC{year}/ImageSets/Main/{split}.txt') for year in group]
            if all(path.is_file() for _, path in lists):
                found[f"voc{''.join(year[2:] for year in group)}_{split}"] = lists
    if not found:
        raise DataError(f'{devkit}: no list train.txt, val.txt, trainval.txt or test.txt in '
                        f'VOC{years[0]}/ImageSets/Main')
    return found


def convert_image(image: Image) -> tuple[dict[str, Any], Counter]:
    """The middle format's entry of an image, and the objects left out by name.

    Raises:
        DataError: as ``boxdet.datasets.voc.read_voc_file``.
    """
    import numpy as np

    from boxdet.datasets.files import image_size
    from boxdet.datasets.voc import read_voc_file

    folder = image.devkit / image.folder
    annotations = read_voc_file(str(folder / 'Annotations' / f'{image.name}.xml'))
    filename = f'{image.folder}/JPEGImages/{image.name}.jpg'
    width, height = annotations.size or image_size(str(image.devkit / filename))
    known = np.array([name in image.classes for name in annotations.names], dtype=bool)
    boxes = (np.trunc(annotations.boxes) - 1).astype(np.float32)
    labels = np.array([image.classes.index(name) if name in image.classes else -1 for name in annotations.names],
                      dtype=np.int64)
    difficult = annotations.difficult
    ann = dict(bboxes=boxes[known & ~difficult], labels=labels[known & ~difficult],
               bboxes_ignore=boxes[known & difficult], labels_ignore=labels[known & difficult])
    others = Counter(name for name, keep in zip(annotations.names, known) if not keep)
    return dict(filename=filename, width=width, height=height, ann=ann), others


def as_coco(entries: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, list]:
    """A COCO data set of what ``convert_image`` gave; categories and images from 0 as in 2.x, annotations from 1."""
    images, annotations = [], []
    for number, entry in enumerate(entries):
        images.append(dict(id=number, file_name=entry['filename'], width=entry['width'], height=entry['height']))
        for suffix in ('', '_ignore'):
            for box, label in zip(entry['ann'][f'bboxes{suffix}'].tolist(), entry['ann'][f'labels{suffix}'].tolist()):
                annotations.append(_annotation(len(annotations) + 1, number, box, label, bool(suffix)))
    categories = [dict(id=label, name=name, supercategory='none') for label, name in enumerate(classes)]
    return dict(images=images, type='instance', categories=categories, annotations=annotations)


def _annotation(number: int, image: int, box: Sequence[float], label: int, difficult: bool) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return dict(id=number, image_id=image, category_id=label, bbox=[x0, y0, x1 - x0, y1 - y0],
                area=(x1 - x0) * (y1 - y0), segmentation=[[x0, y0, x0, y1, x1, y1, x1, y0]], iscrowd=0,
                ignore=int(difficult))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import pickle

    from boxdet.datasets.class_names import VOC_CLASSES
    from boxdet.datasets.files import read_names
    from boxdet.engine.parallel import in_parallel
    from boxdet.files.writing import write_json, write_whole

    classes = read_names(str(args.classes)) if args.classes else VOC_CLASSES
    for name, lists in plan(args.devkit_path).items():
        images = [Image(args.devkit_path, folder, image, classes)
                  for folder, path in lists for image in read_names(str(path))]
        print(f'{name}: {len(images)} images')
        converted = list(in_parallel(convert_image, images, args.nproc))
        entries, others = [entry for entry, _ in converted], sum((count for _, count in converted), Counter())
        out = (args.out_dir or args.devkit_path) / f"{name}.{'json' if args.out_format == 'coco' else 'pkl'}"
        if args.out_format == 'coco':
            write_json(out, as_coco(entries, classes))
        else:
            write_whole(out, lambda file, entries=entries: pickle.dump(entries, file, protocol=4))
        objects = sum(len(entry['ann']['labels']) for entry in entries)
        difficult = sum(len(entry['ann']['labels_ignore']) for entry in entries)
        print(f'{out}: {objects} objects, and {difficult} difficult ones')
        if others:
            listed = ', '.join(f'{other} {count}' for other, count in others.most_common(10))
            print(f'  left out, being none of the {len(classes)} classes: {listed}')


if __name__ == '__main__':
    run_command(main)
