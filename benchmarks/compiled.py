#!/usr/bin/env python
"""What torch.compile takes and gains on the CPU: a training step and a detection of Mask R-CNN R50-FPN.

    python benchmarks/compiled.py [--what train infer] [--rounds 5] [--threads 2] [--precision fp32] [--json out.json]

Training is one of train_peers.py's (480 x 640, batch 2); backbone, neck and both heads that propose and classify are
compiled. A detection is a whole call on an image of 800 x 1216, with init_detector(compile=True), and then of another
size. The plain and the compiled model take turns; figures are the first compiled call beyond a plain one (what
compiling takes), medians of the others, and after how many the compiling is paid for. Inductor compiles in processes of
its own, which have the cores to themselves on an idle machine.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
warnings.filterwarnings('ignore')

TRAINED, DETECTED, OTHER = (480, 640), (800, 1216), (736, 1120)  # height and width of the images
CONFIG = str(ROOT / 'configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py')


def training(compiled: bool) -> Callable[[], Any]:
    """A training step; compiled where tools/train.py has the model in the form that it trains in."""
    from benchmarks import train_peers
    from boxdet.engine import environment
    place = environment.place_for_training

    def placed(*arguments: Any) -> Any:
        model = place(*arguments)
        for part in (model.backbone, model.neck, model.rpn_head, model.roi_head.bbox_head) if compiled else ():
            part.compile()
        return model
    environment.place_for_training = placed
    try:
        side = train_peers.boxdet_side(argparse.Namespace(device='cpu', cfg_options=[]),
                                       train_peers.drawn_batch(2, *TRAINED))
    finally:
        environment.place_for_training = place
    return lambda: side.step(lambda: None)


def detection(compiled: bool, precision: str) -> Callable[[Any], Any]:
    """A function of an image; the weights are random."""
    from boxdet.apis import inference_detector, init_detector
    model = init_detector(CONFIG, device='cpu', precision=precision, compile=compiled)
    return lambda image: inference_detector(model, image)


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Of the wall clock, and of this process's processor."""
    began, worked = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - worked


def compare(name: str, plain: Callable[[], Any], compiled: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Print and return seconds: to compile, a plain call, a compiled one; and calls until they are even."""
    plain()
    first = seconds(compiled)
    times = [(seconds(plain), seconds(compiled)) for _ in range(rounds)]
    before, after = (statistics.median(pair[side][0] for pair in times) for side in (0, 1))
    worked = [statistics.median(pair[side][1] for pair in times) for side in (0, 1)]
    taken = first[0] - before
    even = taken / (before - after) if after < before else float('inf')
    print(f'{name}: compiling {taken:.1f} s, then {1e3 * before:.0f} -> {1e3 * after:.0f} ms ({after / before:.2f}), '
          f'processor {1e3 * worked[0]:.0f} -> {1e3 * worked[1]:.0f} ms ({worked[1] / worked[0]:.2f}), '
          f'even after {even:.0f} calls', flush=True)
    return dict(compiling=taken, before=before, after=after, processor_before=worked[0], processor_after=worked[1],
                even=even)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--what', nargs='+', choices=['train', 'infer'], default=['train', 'infer'])
    parser.add_argument('--rounds', type=int, default=5, help='calls of each that count (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=2, help='default: %(default)s')
    parser.add_argument('--precision', nargs='+', default=['fp32'], help='of detections (default: fp32)')
    parser.add_argument('--json', type=Path, help='also write the figures there')
    args = parser.parse_args()
    import numpy as np
    import torch
    torch.set_num_threads(args.threads)
    figures = {}
    if 'train' in args.what:
        torch.manual_seed(0)
        figures['train'] = compare('training step', training(False), training(True), args.rounds)
    for precision in args.precision if 'infer' in args.what else ():
        plain, compiled = (detection(one, precision) for one in (False, True))
        for size in (DETECTED, OTHER):
            image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
            name = f'detection, {precision}, {size[0]} x {size[1]}'
            figures[name] = compare(name, partial(plain, image), partial(compiled, image), args.rounds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == '__main__':
    main()
