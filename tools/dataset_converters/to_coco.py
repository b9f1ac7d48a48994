#!/usr/bin/env python3
"""Convert labels of another form to COCO JSON, which boxdet trains from.

    python tools/dataset_converters/to_coco.py my_yolo_data out                     # the form is recognised
    python tools/dataset_converters/to_coco.py export.json out --format label_studio --images photos
    python tools/dataset_converters/to_coco.py labelme_folder out --val 0.2         # a fifth for validation

OUT/annotations gets instances_train.json, instances_val.json, ... for the splits that the source has or --val makes,
else instances_all.json. Images stay where they are: the last lines say which img_prefix and classes to put into a
config. Everything that was left out is counted with its reason; nothing is written when no object is left.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, DataError, run_command


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from boxdet.datasets.label_formats import READERS

    summary, _, details = __doc__.partition('\n\n')
    forms = '\n'.join(f'  {name:15s} {text}' for name, text in READERS.items())
    parser = CommandParser(description=summary, epilog=f'{details}\n\nforms:\n{forms}',
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='file or folder of the labels')
    parser.add_argument('out', type=Path, help="folder to write 'annotations' into")
    parser.add_argument('--format', choices=list(READERS), metavar='FORM',
                        help='form of the labels (default: recognised)')
    parser.add_argument('--images', type=Path, metavar='DIR',
                        help='folder of the images, if they are not beside the labels')
    parser.add_argument('--classes', nargs='+', default=[], metavar='NAME',
                        help='classes to keep, in this order; for forms that hold numbers only: their names')
    parser.add_argument('--attribute', metavar='NAME', help='via: the region attribute that holds the class')
    parser.add_argument('--label-divisor', type=int, default=0, metavar='N',
                        help='instance_pngs: instance id // N is the class (default: one class)')
    parser.add_argument('--val', type=float, metavar='SHARE',
                        help='put this share of the images into instances_val.json')
    parser.add_argument('--merge-splits', action='store_true', help="forget the source's own splits")
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the split (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.val is not None and not 0 < args.val < 1:
        parser.error(f'--val {args.val}: a share between 0 and 1')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.datasets.label_formats import read_labels, recognise
    from boxdet.datasets.label_formats.labels import LabelledImage, ReadOptions, split_images, to_coco
    from boxdet.files.writing import write_json

    form = args.format or recognise(args.source)
    options = ReadOptions(args.images, tuple(args.classes), args.attribute, args.label_divisor)
    labels = read_labels(args.source, form, options)
    objects = sum(len(image.objects) for image in labels.images)
    print(f'{args.source}: {form}, {len(labels.images)} images, {objects} objects of {len(labels.categories)} classes')
    if args.classes and set(args.classes) != set(labels.categories):
        labels.keep_classes(args.classes)
    splits: dict[str, list[LabelledImage]] = {}
    for image in labels.images:
        splits.setdefault('all' if args.merge_splits else image.split or 'all', []).append(image)
    if args.val is not None:
        own = {name: len(images) for name, images in splits.items() if name in ('val', 'test')}
        if own:
            listed = ', '.join(f'{name}: {count} images' for name, count in own.items())
            raise DataError(f'the labels bring splits of their own ({listed}): leave out --val, or say --merge-splits')
        splits['train'], splits['val'] = split_images(labels.images, args.val, args.seed)
        splits.pop('all', None)
        if not splits['val']:
            raise DataError('--val: all images are copies of one; there is nothing to divide')
    root = Path(os.path.commonpath([image.path.parent.resolve() for image in labels.images]))
    for image in labels.images:
        image.path = image.path.resolve()
    data = {name: to_coco(labels, images, root) for name, images in splits.items()}
    _print_notes(labels.left_out, 'left out')
    _print_notes(labels.notes, 'note')
    if not any(part['annotations'] for part in data.values()):
        raise DataError(f'{args.source}: no object is left; nothing was written')
    written = {}
    for name, part in data.items():
        written[name] = args.out / 'annotations' / f'instances_{name}.json'
        write_json(written[name], part)
        counts = Counter(a['category_id'] for a in part['annotations'])
        per_class = ', '.join(f"{c['name']} {counts[c['id']]}" for c in part['categories'][:20])
        more = '' if len(part['categories']) <= 20 else f', and {len(part["categories"]) - 20} classes more'
        print(f"{written[name]}: {len(part['images'])} images, {len(part['annotations'])} objects ({per_class}{more})")
    print('for the config:')
    print(f"    classes = {tuple(labels.categories)!r}   # num_classes={len(labels.categories)}")
    for name, path in written.items():
        key = dict(all='train').get(name, name)
        print(f"    data.{key} = dict(ann_file='{path}', img_prefix='{os.path.relpath(root)}/', classes=classes)")


def _print_notes(notes: dict[str, list[str]], heading: str) -> None:
    for reason, places in notes.items():
        shown = ', '.join(places[:3]) + (', ...' if len(places) > 3 else '')
        print(f'{heading}: {len(places)} x {reason} ({shown})')


if __name__ == '__main__':
    run_command(main)
