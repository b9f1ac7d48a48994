#!/usr/bin/env python
"""How long drawing a hundred instances on a 1080p frame takes: boxes, labels and masks of three sizes of objects.

    python benchmarks/drawing.py [--objects 100] [--rounds 15] [--quick] [--threads 2] [--json out.json]

The instances are ellipses of a fixed seed with a hole in every fourth, their masks run-length codes as a detector gives
them; the image is noise. Small objects are discs of 160 pixels, mixed ones 60 to 500 pixels high and wide, large ones
300 to 1000. The scenes take turns within a round; medians are printed. The processor's time is that of all threads.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

IMAGE_HW = (1080, 1920)
SIZES = {'small': (160, 160), 'mixed': (60, 500), 'large': (300, 1000)}  # pixels, least and most


def scene(least: int, most: int, count: int):
    """Instances of ``count`` ellipses, their axes between ``least`` and ``most`` pixels, cut at the image's edge."""
    import cv2
    import numpy as np
    import torch
    from pycocotools import mask as coco_mask

    from boxdet.structures.instances import Instances
    from boxdet.structures.masks import RleMasks

    draw, (height, width) = np.random.default_rng(0), IMAGE_HW
    axes = draw.integers(least, most + 1, (count, 2)) // 2
    centers = draw.integers((80, 80), (width - 80, height - 80), (count, 2))
    codes = []
    for number, (center, axis) in enumerate(zip(centers.tolist(), axes.tolist())):
        bitmap = np.zeros(IMAGE_HW, np.uint8)
        cv2.ellipse(bitmap, center, axis, 0, 0, 360, 1, cv2.FILLED)
        if number % 4 == 0:
            cv2.ellipse(bitmap, center, [side // 3 for side in axis], 0, 0, 360, 0, cv2.FILLED)
        codes.append(coco_mask.encode(np.asfortranarray(bitmap)))
    masks = RleMasks(codes, *IMAGE_HW)
    scores, labels = torch.from_numpy(draw.uniform(0.3, 1, count)), torch.from_numpy(draw.integers(0, 80, count))
    return Instances(IMAGE_HW, bboxes=torch.from_numpy(masks.bboxes()), masks=masks, scores=scores, labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--objects', type=int, default=100)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--quick', action='store_true', help='three rounds')
    parser.add_argument('--threads', type=int, default=2, help='of OpenCV (default: %(default)s)')
    parser.add_argument('--json')
    args = parser.parse_args()
    import cv2
    import numpy as np

    from boxdet.visualization.draw import draw_instances
    cv2.setNumThreads(args.threads)
    image = np.random.default_rng(1).integers(0, 256, (*IMAGE_HW, 3), dtype=np.uint8)
    scenes = {name: scene(*sizes, args.objects) for name, sizes in SIZES.items()}
    times = {(name, masks): [] for name in scenes for masks in (True, False)}
    for _ in range(1 + (3 if args.quick else args.rounds)):
        for (name, masks), measured in times.items():
            start, worked = time.perf_counter(), time.process_time()
            draw_instances(image, scenes[name], score_thr=0.0, show_mask=masks)
            measured.append((time.perf_counter() - start, time.process_time() - worked))
    print(f'{args.objects} objects on {IMAGE_HW[1]}x{IMAGE_HW[0]} pixels, {args.threads} threads')
    print(f"{'objects':10s} {'pixels':>10s} {'masks':>6s} {'ms':>8s} {'processor ms':>13s}")
    numbers = {}
    for (name, masks), measured in times.items():
        wall, worked = (statistics.median(values) for values in zip(*measured[1:]))  # the first one fills caches
        low, high = SIZES[name]
        drawn = 'yes' if masks else 'no'
        print(f"{name:10s} {f'{low}-{high}':>10s} {drawn:>6s} {1e3 * wall:8.1f} {1e3 * worked:13.1f}")
        numbers[f"{name}, {'masks' if masks else 'boxes only'}"] = dict(seconds=wall, processor_seconds=worked)
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
    main()
