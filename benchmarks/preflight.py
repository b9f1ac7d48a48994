"""What the checks of the annotations cost at the start of a training, as a share of opening the file.

    python benchmarks/preflight.py                                    COCO's size: 118,000 images, 860,000 objects
    python benchmarks/preflight.py --images 5000 --objects 36000      quicker

The file is generated: boxes and polygons of COCO's numbers of corners (22 on average), written once to --folder.
"""
from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = tuple(f'class_{i}' for i in range(80))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=118_000, help='default: %(default)s')
    parser.add_argument('--objects', type=int, default=860_000, help='default: %(default)s')
    parser.add_argument('--folder', help='where the generated file stays (default: a temporary folder)')
    return parser.parse_args(argv)


def write_annotations(path: Path, images: int, objects: int, seed: int = 0) -> None:
    """A COCO file of ``images`` images of 640 x 480 and ``objects`` objects: ellipses of 3 to 41 corners."""
    rng = np.random.default_rng(seed)
    with path.open('w') as file:
        entries = [dict(id=i, file_name=f'{i:012d}.jpg', width=640, height=480) for i in range(1, images + 1)]
        categories = [dict(id=k + 1, name=name) for k, name in enumerate(CLASSES)]
        file.write(f'{{"images": {json.dumps(entries)}, "categories": {json.dumps(categories)}, "annotations": [')
        for number in range(objects):
            w, h = rng.uniform(8, 200, 2)
            x, y = rng.uniform(0, 640 - w), rng.uniform(0, 480 - h)
            turns = np.linspace(0, 2 * np.pi, rng.integers(3, 42), endpoint=False)
            corners = np.stack([x + w / 2 * (1 + np.cos(turns)), y + h / 2 * (1 + np.sin(turns))], axis=1)
            box = [round(float(value), 2) for value in (x, y, w, h)]
            one = dict(id=number + 1, image_id=int(rng.integers(images)) + 1, category_id=int(rng.integers(80)) + 1,
                       iscrowd=0, bbox=box, area=round(box[2] * box[3] * 0.7, 2),
                       segmentation=[np.round(corners, 2).ravel().tolist()])
            file.write((', ' if number else '') + json.dumps(one))
        file.write(']}')


class Clock:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Any):
        self.function, self.seconds = function, 0.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        start = time.perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


def measure(path: Path) -> dict[str, float]:
    """Seconds of opening the file, and of each check of it."""
    from boxdet.datasets import coco
    from boxdet.engine.data_check import annotation_findings

    settle, kinds = Clock(coco.settle_values), Clock(coco.mask_kinds)
    coco.settle_values, coco.mask_kinds = settle, kinds
    start = time.perf_counter()
    dataset = coco.CocoDataset(str(path), [], classes=CLASSES)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    findings = list(annotation_findings(dataset, 'data.train', wants_masks=True))
    checked = time.perf_counter() - start
    for finding in findings:
        print(finding)
    return {'opening': opened - settle.seconds - kinds.seconds, 'values of other types': settle.seconds,
            'kinds of masks': kinds.seconds, 'contradictions': checked}


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f'preflight_{args.images}_{args.objects}.json'
        if not path.exists():
            write_annotations(path, args.images, args.objects)
        print(f'{args.images} images, {args.objects} objects, {path.stat().st_size / 1e6:.0f} MB')
        seconds = measure(path)
    for name, value in seconds.items():
        print(f'{name:24s}{value:8.2f} s')
    more = sum(seconds.values()) - seconds['opening']
    print(f'the checks take {100 * more / seconds["opening"]:.1f} % of opening the file')


if __name__ == '__main__':
    main()
