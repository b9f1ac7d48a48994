#!/usr/bin/env python3
r"""Write COCO labels, or a model's predictions, in the form of a labelling tool, to correct them there.

    python tools/dataset_converters/from_coco.py instances_val.json out --to labelme --images val2017
    python tools/dataset_converters/from_coco.py instances_val.json out --to cvat --images val2017 \
        --results results.segm.json --score-thr 0.5

With --results, a file that tools/test.py --format-only wrote, the predictions take the place of the labels; the COCO
file then only names images and categories (tools/infer_dir.py writes both in one file, which needs no --results).

    yolo          data.yaml, labels/, links to the images: Ultralytics
    labelme       a JSON file beside a link to each image
    cvat          annotations.xml: CVAT's import 'CVAT for images 1.1'
    label_studio  tasks.json and config.xml: the import of Label Studio; name the images' folder as its local storage
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, DataError, run_command


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from boxdet.datasets.label_formats import WRITERS

    summary, _, details = __doc__.partition('\n\n')
    parser = CommandParser(description=summary, epilog=details,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('coco', type=Path, help='COCO file with images and categories')
    parser.add_argument('out', type=Path, help='folder to write into')
    parser.add_argument('--to', required=True, choices=WRITERS, help='the form to write')
    parser.add_argument('--images', type=Path, metavar='DIR',
                        help='folder that file_name is relative to (default: that of the COCO file)')
    parser.add_argument('--results', type=Path, metavar='FILE', help="predictions in COCO's results form")
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='S',
                        help='predictions that score less are left out (default: %(default)s)')
    return parser.parse_args(argv)


def with_results(data: dict[str, Any], results: Any, path: Path) -> dict[str, Any]:
    """COCO's dict with predictions in place of its annotations.

    Args:
        data: images and categories.
        results: COCO's results: dicts with image_id, category_id, score, and bbox, segmentation or keypoints.
        path: their file, for messages.

    Raises:
        DataError: not of that form, or of images or categories that ``data`` does not have.
    """
    from pycocotools import mask as coco_mask

    if not isinstance(results, list) or not all(isinstance(r, dict) and 'image_id' in r for r in results):
        raise DataError(f"{path}: not COCO's results form: a list of dicts with image_id, category_id, score")
    images = {image['id'] for image in data['images']}
    categories = {category['id'] for category in data['categories']}
    annotations = []
    for number, result in enumerate(results):
        if result['image_id'] not in images or result.get('category_id') not in categories:
            raise DataError(f"{path}: result {number} is of image {result['image_id']}, category "
                            f"{result.get('category_id')}: not in the COCO file")
        entry = dict(result, iscrowd=0)
        if 'bbox' not in entry:
            segmentation = entry.get('segmentation')
            if not isinstance(segmentation, dict):
                raise DataError(f'{path}: result {number} has neither a bbox nor a mask')
            entry['bbox'] = coco_mask.toBbox(dict(segmentation, counts=segmentation['counts'].encode())).tolist()
        annotations.append(entry)
    return dict(data, annotations=annotations)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.datasets.label_formats import format_module
    from boxdet.files.json_text import read_json

    data = read_json(args.coco)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ('images', 'categories')):
        raise DataError(f"{args.coco}: not a COCO file: it needs lists of 'images' and 'categories'")
    data.setdefault('annotations', [])
    if args.results is not None:
        data = with_results(data, read_json(args.results), args.results)
    kept = [a for a in data['annotations'] if a.get('score') is None or a['score'] >= args.score_thr]
    dropped = len(data['annotations']) - len(kept)
    counts = format_module(args.to).write(dict(data, annotations=kept), args.out, args.images or args.coco.parent)
    print(f"{args.out}: {len(data['images'])} images, {len(kept)} objects, as {args.to}")
    if dropped:
        print(f'left out: {dropped} predictions that score less than {args.score_thr}')
    for reason, number in counts.items():
        print(f'note: {number} x {reason}')


if __name__ == '__main__':
    run_command(main)
