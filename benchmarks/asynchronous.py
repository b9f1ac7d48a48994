#!/usr/bin/env python
"""inference_detector in a row against async_inference_detector in asyncio tasks, as 2.x's tests/async_benchmark.py.

    python benchmarks/asynchronous.py FOLDER [--config CONFIG --checkpoint FILE] [--images 32] [--streams 3]
        [--device cuda] [--quick] [--json out.json]

All tasks start at once, and a queue of --streams CUDA streams (on the CPU: of so many permits) lets that many of them
work. The two ways alternate; the medians are printed, and how late the event loop was at most: what a service's other
requests would have waited. On the CPU set --threads to the cores divided by the networks that are to run at once.
"""
import argparse
import asyncio
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
warnings.filterwarnings('ignore')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--config', default=str(ROOT / 'configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'))
    parser.add_argument('--checkpoint')
    parser.add_argument('--images', type=int, default=32)
    parser.add_argument('--streams', type=int, default=3)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--quick', action='store_true', help='6 images, one round')
    parser.add_argument('--precision', default='fp32')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--json')
    return parser.parse_args()


async def in_tasks(model, files: list[str], streams: int, device: str) -> float:
    """Run all images as tasks; returns the longest time in seconds that the event loop was late."""
    import torch

    from boxdet.apis import async_inference_detector
    from boxdet.utils.contextmanagers import concurrent
    queue, worst = asyncio.Queue(), 0.0
    for _ in range(streams):
        queue.put_nowait(torch.cuda.Stream(device) if device.startswith('cuda') else None)

    async def detect(file: str):
        async with concurrent(queue):
            return await async_inference_detector(model, file)

    tasks = [asyncio.create_task(detect(file)) for file in files]
    while not all(task.done() for task in tasks):
        start = time.perf_counter()
        await asyncio.sleep(0.01)
        worst = max(worst, time.perf_counter() - start - 0.01)
    await asyncio.gather(*tasks)
    return worst


def main() -> None:
    args = parse_args()
    import torch

    from boxdet.apis import inference_detector, init_detector
    torch.set_num_threads(args.threads)
    found = sorted(str(p) for p in args.folder.iterdir() if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    files = [found[i % len(found)] for i in range(6 if args.quick else args.images)]
    model = init_detector(args.config, args.checkpoint, device=args.device, precision=args.precision)
    inference_detector(model, files[0])
    times, late = {'in a row': [], 'in tasks': []}, []
    for _ in range(1 if args.quick else args.rounds):
        start = time.perf_counter()
        for file in files:
            inference_detector(model, file)
        times['in a row'].append((time.perf_counter() - start) / len(files))
        start = time.perf_counter()
        late.append(asyncio.run(in_tasks(model, files, args.streams, args.device)))
        times['in tasks'].append((time.perf_counter() - start) / len(files))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    print(f'{len(files)} images, {args.device}, {args.threads} threads a network, {args.streams} at once, '
          f'{args.precision}')
    for name, value in seconds.items():
        print(f"{name}: {1e3 * value:8.1f} ms an image, ratio {value / seconds['in a row']:.2f}")
    print(f'the event loop was late by {1e3 * max(late):.0f} ms at most')
    if args.json:
        Path(args.json).write_text(json.dumps(dict(seconds, late=max(late)), indent=1))


if __name__ == '__main__':
    main()
