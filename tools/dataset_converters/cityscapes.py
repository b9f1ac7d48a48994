#!/usr/bin/env python3
"""Convert Cityscapes' images of instance ids to COCO annotation files, one for each split.

    python tools/dataset_converters/cityscapes.py data/cityscapes --nproc 8 --out-dir data/cityscapes/annotations

PATH/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png and PATH/gtFine/SPLIT/CITY/NAME_gtFine_instanceIds.png become
instancesonly_filtered_gtFine_SPLIT.json for SPLIT train, val and test; a split that is not there is passed over, and a
test split without ground truth lists its images only. An id of 1000 or more is one object, a smaller one a group of
objects (iscrowd=1). The classes are the eight that Cityscapes evaluates, the category ids its label ids, the masks RLE.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, DataError, run_command

SPLITS = ('train', 'val', 'test')
_IMAGE, _INSTANCES, _CLASSES = 'leftImg8bit.png', 'gtFine_instanceIds.png', 'gtFine_labelIds.png'
_FIRST_INSTANCE = 1000  # an instance id is 1000 * label + number
_LAST_LABEL = 33


class Files(NamedTuple):
    """An image, its instance ids (None where there is no ground truth) and the city, which is its folder's name."""
    image: Path
    instances: Path | None
    city: str


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = CommandParser(description=summary, epilog=details,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cityscapes_path', type=Path, help='folder of the data set')
    parser.add_argument('--img-dir', default='leftImg8bit', help='folder of the images in it (default: %(default)s)')
    parser.add_argument('--gt-dir', default='gtFine', help='folder of the ground truth in it (default: %(default)s)')
    parser.add_argument('-o', '--out-dir', type=Path, help='where the JSON files go (default: cityscapes_path)')
    parser.add_argument('--nproc', type=int, default=1, metavar='N', help='processes (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.nproc < 1:
        parser.error(f'--nproc {args.nproc}: it is 1 at least')
    return args


def collect_files(images: Path, truth: Path, optional: bool = False) -> list[Files]:
    """The images of a split, sorted, each with its file of instance ids.

    Args:
        images: the split's folder of images.
        truth: the split's folder of ground truth.
        optional: there may be no folder ``truth``.

    Raises:
        DataError: no images, one of another name, or one without ground truth.
    """
    paths = sorted(images.glob('*/*.png'))
    if not paths:
        raise DataError(f'{images}: no images CITY/NAME_{_IMAGE}')
    found, without = [], optional and not truth.is_dir()
    for path in paths:
        if not path.name.endswith(_IMAGE):
            raise DataError(f'{path}: the names of images end in {_IMAGE}')
        instances = truth / path.parent.name / (path.name.removesuffix(_IMAGE) + _INSTANCES)
        if not without and not instances.is_file():
            raise DataError(f'{path} has no ground truth: {instances} is not there')
        found.append(Files(path, None if without else instances, path.parent.name))
    return found


def convert_image(files: Files) -> dict[str, Any]:
    """COCO's entry of an image, without id; 'annotations' holds those of its objects, without ids.

    Raises:
        DataError: a file that cannot be read, ids of another size than the image, an id that Cityscapes lacks.
    """
    from boxdet.datasets.files import image_size

    width, height = image_size(str(files.image))  # of the header
    entry = dict(file_name=f'{files.city}/{files.image.name}', height=height, width=width, annotations=[],
                 segm_file=f'{files.city}/{files.image.name.removesuffix(_IMAGE)}{_CLASSES}')
    if files.instances is not None:
        entry['annotations'] = objects_of(files.instances, (height, width))
    return entry


def objects_of(path: Path, image_hw: tuple[int, int]) -> list[dict[str, Any]]:
    """COCO annotations of an image of instance ids, without ids, by rising instance id."""
    import numpy as np
    from pycocotools import mask as coco_mask

    from boxdet.datasets.cityscapes import LABEL_IDS
    from boxdet.datasets.files import decode_image, read_bytes
    from boxdet.geometry.masks import encode_runs

    ids = decode_image(read_bytes(str(path)), str(path), 'unchanged')
    if ids.shape != image_hw:
        raise DataError(f'{path}: shape {ids.shape}, the image it belongs to is {image_hw[0]} x {image_hw[1]} '
                        '(height x width); instance ids have one channel')
    columns = ids.T.ravel()  # COCO counts column by column
    at = np.flatnonzero(columns >= min(LABEL_IDS.values()))
    at = at[np.argsort(columns[at], kind='stable')]
    present, starts = np.unique(columns[at], return_index=True)
    annotations = []
    for instance, pixels in zip(present.tolist(), np.split(at, starts[1:])):
        label = instance // _FIRST_INSTANCE if instance >= _FIRST_INSTANCE else instance
        if not 0 <= label <= _LAST_LABEL:
            raise DataError(f'{path}: instance id {instance}: Cityscapes has no label {label}')
        if label not in LABEL_IDS.values():
            continue
        gaps = np.flatnonzero(np.diff(pixels) > 1)
        runs = np.stack([pixels[np.append(0, gaps + 1)], pixels[np.append(gaps, len(pixels) - 1)] + 1], axis=1)
        rle = encode_runs(runs.ravel(), image_hw)
        annotations.append(dict(
            iscrowd=int(instance < _FIRST_INSTANCE), category_id=label, bbox=coco_mask.toBbox(rle).tolist(),
            area=len(pixels), segmentation=dict(size=rle['size'], counts=rle['counts'].decode('ascii'))))
    return annotations


def as_coco(entries: Sequence[dict[str, Any]]) -> dict[str, list]:
    """A COCO data set of what ``convert_image`` gave; image ids count from 0 as in 2.x.

    Annotation ids count from 1: to COCO's evaluation an object of id 0 (2.x's first) is never found. Without any
    object, 'annotations' is left out, as in 2.x.
    """
    from boxdet.datasets.cityscapes import LABEL_IDS

    annotations = [dict(annotation, image_id=number) for number, entry in enumerate(entries)
                   for annotation in entry['annotations']]
    data = dict(
        images=[{**{k: v for k, v in entry.items() if k != 'annotations'}, 'id': i} for i, entry in enumerate(entries)],
        categories=[dict(id=number, name=name) for name, number in LABEL_IDS.items()],
        annotations=[dict(annotation, id=number) for number, annotation in enumerate(annotations, 1)])
    if not annotations:
        del data['annotations']
    return data


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.engine.parallel import in_parallel
    from boxdet.files.writing import write_json

    images, truth = args.cityscapes_path / args.img_dir, args.cityscapes_path / args.gt_dir
    splits = [split for split in SPLITS if (images / split).is_dir()]
    if not splits:
        raise DataError(f'{images}: none of the folders {", ".join(SPLITS)} is there')
    for split in splits:
        began = time.monotonic()
        files = collect_files(images / split, truth / split, optional=split == 'test')
        out = (args.out_dir or args.cityscapes_path) / f'instancesonly_filtered_gtFine_{split}.json'
        print(f'{split}: {len(files)} images')
        data = as_coco(list(in_parallel(convert_image, files, args.nproc, 'images')))
        write_json(out, data)
        print(f"{out}: {len(data.get('annotations', ()))} objects, {time.monotonic() - began:.1f} s")


if __name__ == '__main__':
    run_command(main)
