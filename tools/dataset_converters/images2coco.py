#!/usr/bin/env python3
"""List a folder of images in a COCO file without annotations, to predict them with tools/test.py --format-only.

    python tools/dataset_converters/images2coco.py images classes.txt images.json --exclude-extensions gif

CLASSES names the categories, one a line. OUT is written to the folder 'annotations' beside IMG_PATH, as mmdetection 2.x
does, unless it is a path with a folder in it. Images of folders within IMG_PATH are listed too, by their path in it.
Files that are no images are named at the end and left out; the exit status is then 1.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, DataError, run_command


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = CommandParser(description=summary, epilog=details,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('img_path', type=Path, help='folder of the images')
    parser.add_argument('classes', help='text file with the class names, one a line')
    parser.add_argument('out', help='name, or path, of the JSON file')
    parser.add_argument('-e', '--exclude-extensions', nargs='+', default=[], metavar='EXTENSION',
                        help='endings of files to leave out, as png or .png')
    parser.add_argument('--nproc', type=int, default=1, metavar='N', help='processes (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.nproc < 1:
        parser.error(f'--nproc {args.nproc}: it is 1 at least')
    return args


def find_files(folder: Path, excluded: Sequence[str] = ()) -> list[str]:
    """Every file in ``folder`` and its folders but hidden ones, by its path in it, sorted.

    Raises:
        DataError: no such folder, or no file in it.
    """
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder')
    endings = {'.' + ending.lower().lstrip('.') for ending in excluded}
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in names
                  if not name.startswith('.') and os.path.splitext(name)[1].lower() not in endings]
    if not found:
        others = f' but those that end in {", ".join(sorted(endings))}' if endings else ''
        raise DataError(f'{folder}: no files in it{others}')
    return sorted(found)


def measure(path: str) -> tuple[int, int] | str:
    """(width, height) of an image, or what is wrong with the file."""
    from boxdet.datasets.files import image_size

    try:
        return image_size(path)
    except DataError as error:
        return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from boxdet.datasets.files import read_names
    from boxdet.engine.parallel import in_parallel
    from boxdet.files.writing import write_json

    classes = read_names(args.classes)
    names = find_files(args.img_path, args.exclude_extensions)
    sizes = list(in_parallel(measure, [str(args.img_path / name) for name in names], args.nproc))
    images: list[dict[str, Any]] = []
    for name, size in zip(names, sizes):
        if not isinstance(size, str):
            images.append(dict(id=len(images), file_name=name, width=size[0], height=size[1]))
    if not images:
        raise DataError(f'{args.img_path}: none of its {len(names)} files is an image')
    categories = [dict(id=k, name=name, supercategory='none') for k, name in enumerate(classes)]
    out = Path(args.out)
    if out.parent == Path('.') and not args.out.startswith('.'):
        out = args.img_path.resolve().parent / 'annotations' / out
    write_json(out, dict(images=images, annotations=[], categories=categories))
    print(f'{out}: {len(images)} images, {len(categories)} categories')
    wrong = [size for size in sizes if isinstance(size, str)]
    for line in wrong:
        print(f'left out: {line}', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    run_command(main)
