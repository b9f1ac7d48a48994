#!/usr/bin/env python
"""Images a second of a folder, by batch size, with and without reading ahead; and frames a second of a video of them.

    python benchmarks/throughput.py FOLDER [--config CONFIG --checkpoint FILE] [--images 64] [--precision bf16]
        [--device cuda] [--quick] [--json out.json]

Every setting runs over the same images once in every round; the medians are printed. Without a config it is Mask
R-CNN R50-FPN with weights that find nothing: reading, backbone, neck and proposals. The video is made of the images,
all of one size, with OpenCV.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
warnings.filterwarnings('ignore')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--config', default=str(ROOT / 'configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'))
    parser.add_argument('--checkpoint')
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--quick', action='store_true', help='8 images, one round')
    parser.add_argument('--precision', default='fp32')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--json')
    return parser.parse_args()


def frames_of(path: str) -> Iterator:
    """The frames of a video, (H, W, 3) uint8 BGR."""
    import cv2
    video = cv2.VideoCapture(path)
    try:
        while (frame := video.read())[0]:
            yield frame[1]
    finally:
        video.release()


def make_video(files: list[str], path: str) -> None:
    import cv2
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'mp4v'), 25, (640, 480))
    for file in files:
        video.write(cv2.resize(cv2.imread(file), (640, 480)))
    video.release()


def main() -> None:
    args = parse_args()
    import torch

    from boxdet.apis import inference_stream, init_detector
    torch.set_num_threads(args.threads)
    count = 8 if args.quick else args.images
    found = sorted(str(p) for p in args.folder.iterdir() if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    files = [found[i % len(found)] for i in range(count)]
    model = init_detector(args.config, args.checkpoint, device=args.device, precision=args.precision)
    with tempfile.TemporaryDirectory() as folder:
        video = f'{folder}/video.mp4'
        make_video(files, video)
        settings = {('folder', batch, ahead): (lambda: files) for batch in args.batches for ahead in (0, None)}
        settings |= {('video', 1, ahead): (lambda: frames_of(video)) for ahead in (0, None)}
        times = {setting: [] for setting in settings}
        list(inference_stream(model, files[:2]))
        for _ in range(1 if args.quick else args.rounds):
            for (source, batch, ahead), images in settings.items():
                start = time.perf_counter()
                done = sum(1 for _ in inference_stream(model, images(), batch, ahead))
                times[source, batch, ahead].append((time.perf_counter() - start) / done)
    print(f'{count} images, {args.device}, {args.threads} threads, {args.precision}: images a second')
    print('source  batch   one after the other   reading ahead   ratio')
    numbers = {}
    for source, batch in dict.fromkeys((s, b) for s, b, _ in settings):
        plain, ahead = (1 / statistics.median(times[source, batch, value]) for value in (0, None))
        print(f'{source:7s} {batch:5d} {plain:21.2f} {ahead:15.2f} {ahead / plain:7.2f}')
        numbers[f'{source} {batch}'] = dict(plain=plain, ahead=ahead)
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
    main()
