#!/usr/bin/env python
"""A hundred 28x28 mask outputs into a 12-megapixel image and to run-length codes: boxdet against full bitmaps.

    python benchmarks/mask_paste.py [--masks 100] [--rounds 5] [--quick] [--json out.json]

The other way is what torchvision and pycocotools users do: paste_masks_in_image, >= 0.5, encode. boxdet does the same
arithmetic in the window of each object (paste_to_rle with whole_pixels=True, and without it the way of mmdetection and
detectron2, whose boxes are not cut to whole pixels). Memory is the peak of a process of its own beyond what it held
before.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

IMAGE_HW = (3000, 4000)
WAYS = ('bitmaps', 'boxdet', 'boxdet, unrounded')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--masks', type=int, default=100)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='one round')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', default='cpu', help='where the mask outputs are')
    parser.add_argument('--json')
    parser.add_argument('--memory-of', choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def outputs(count: int, device: str):
    """Smooth probabilities (N, 28, 28) and boxes (N, 4) from 20 pixels to a third of the image's sides."""
    import torch
    from torch.nn import functional as F
    generator = torch.Generator().manual_seed(0)
    logits = F.interpolate(torch.randn(count, 1, 5, 5, generator=generator) * 4 + 1, size=28, mode='bicubic')[:, 0]
    height, width = IMAGE_HW
    size = torch.rand(count, 2, generator=generator) ** 2 * torch.tensor([width / 3, height / 3]) + 20
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) - size / 2
    return logits.sigmoid().to(device), torch.cat([corner, corner + size], dim=1).to(device)


def run(way: str, probs, boxes) -> list[dict]:
    """RLE dicts of the masks, made in one of the WAYS."""
    if way != 'bitmaps':
        from boxdet.geometry.masks import paste_to_rle
        return paste_to_rle(probs, boxes, IMAGE_HW, whole_pixels=way == 'boxdet')
    import numpy as np
    from pycocotools import mask as coco_mask
    from torchvision.models.detection.roi_heads import paste_masks_in_image
    pasted = paste_masks_in_image(probs[:, None], boxes, IMAGE_HW)[:, 0] >= 0.5
    return [coco_mask.encode(np.asfortranarray(mask)) for mask in pasted.cpu().numpy().view(np.uint8)]


def peak_so_far() -> float:
    """MB that this process held at most (getrusage counts the process that started it, too)."""
    return next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))


def measure_memory(args: argparse.Namespace) -> None:
    import torch
    torch.set_num_threads(args.threads)
    probs, boxes = outputs(args.masks, args.device)
    run(args.memory_of, probs[:1, :2, :2], boxes[:1])  # what is imported and compiled once
    before = peak_so_far()
    run(args.memory_of, probs, boxes)
    print(peak_so_far() - before)


def main() -> None:
    args = parse_args()
    if args.memory_of:
        return measure_memory(args)
    import torch
    from pycocotools import mask as coco_mask
    torch.set_num_threads(args.threads)
    probs, boxes = outputs(args.masks, args.device)
    codes = {way: run(way, probs, boxes) for way in WAYS}
    times = {way: [] for way in WAYS}
    for _ in range(1 if args.quick else args.rounds):
        for way in WAYS:
            start = time.perf_counter()
            run(way, probs, boxes)
            times[way].append(time.perf_counter() - start)
    seconds = {way: statistics.median(values) for way, values in times.items()}
    print(f'{args.masks} masks of {IMAGE_HW[1]}x{IMAGE_HW[0]} pixels, {args.threads} threads, {args.device}')
    print('                         ms   times faster      MB   least IoU with bitmaps')
    numbers = {}
    for way in WAYS:
        command = [sys.executable, __file__, '--memory-of', way, '--masks', str(args.masks), '--device', args.device,
                   '--threads', str(args.threads)]
        megabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        worst = min(coco_mask.iou([a], [b], [0])[0, 0] if coco_mask.area(b) else 1.0
                    for a, b in zip(codes[way], codes['bitmaps']))
        print(f"{way:18s} {1e3 * seconds[way]:8.1f} {seconds['bitmaps'] / seconds[way]:14.1f} {megabytes:7.0f}   "
              f"{worst:.5f}")
        numbers[way] = dict(seconds=seconds[way], megabytes=megabytes, least_iou=worst)
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
    main()
