#!/usr/bin/env python
"""What operators cost that torchvision lacks, in plain torch: CARAFE, switchable atrous convolution, split attention.

    python benchmarks/plain_operators.py                     on the CPU, at the sizes of an 800 x 1216 image
    python benchmarks/plain_operators.py --device cuda

Each is timed beside what it takes the place of, forward only, turn by turn; the table that it prints is that of
docs/performance.md.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from boxdet.models.families.carafe import CARAFE
from boxdet.models.families.detectors import SwitchableAtrousConv2d
from boxdet.models.families.resnest import SplitAttention
from boxdet.models.layers import DeformConv2d


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0], epilog=__doc__.partition('\n\n')[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='median of so many (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1, metavar='N', help='default: %(default)s')
    parser.add_argument('--scale', type=float, default=1.0, metavar='S', help='of the sides of the maps')
    return parser.parse_args(argv)


def rows(device: str, scale: float) -> list[tuple[str, str, Callable[[], torch.Tensor]]]:
    """(what it does, by which operator, a call of it) in groups that are compared with the first of them."""
    def maps(channels: int, stride: int, batch: int = 1) -> torch.Tensor:
        return torch.rand(batch, channels, round(800 / stride * scale), round(1216 / stride * scale), device=device)

    def conv(make: Callable[..., nn.Module], channels: int, **options: bool) -> nn.Module:
        return make(channels, channels, 3, padding=1, bias=False, **options).to(device).eval()

    level, carafe = maps(256, 8), CARAFE(256, 2).to(device).eval()
    stage = maps(256, 16)
    found: list[tuple[str, str, Callable[[], torch.Tensor]]] = [
        ('P3 to twice its size', 'nearest pixel', lambda: F.interpolate(level, scale_factor=2)),
        ('P3 to twice its size', 'CARAFE', lambda: carafe(level))]
    for name, layer in (('convolution', conv(nn.Conv2d, 256)), ('deformable convolution', conv(DeformConv2d, 256)),
                        ('SAC', conv(SwitchableAtrousConv2d, 256)),
                        ('SAC, use_deform', conv(SwitchableAtrousConv2d, 256, use_deform=True))):
        found.append(('3x3 of stage 4', name, lambda layer=layer: layer(stage)))  # type: ignore[misc]
    images = maps(128, 8, batch=4)
    plain, split = conv(nn.Conv2d, 128), SplitAttention(128, 1, 1, 1, 2, 4, None, dict(type='BN')).to(device).eval()
    return [*found, ('3x3 of stage 3, 4 images', 'convolution', lambda: plain(images)),
            ('3x3 of stage 3, 4 images', "ResNeSt's split attention", lambda: split(images))]


def seconds(call: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    if call().is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    measured = rows(args.device, args.scale)
    for *_, call in measured:
        call()
    times = [[seconds(call) for *_, call in measured] for _ in range(args.rounds)]
    medians = [statistics.median(column) for column in zip(*times)]
    first = {what: medians[i] for i, (what, *_) in reversed(list(enumerate(measured)))}
    print('| what | operator | ms | ratio |\n|---|---|---|---|')
    for (what, name, _), median in zip(measured, medians):
        print(f'| {what} | {name} | {median * 1e3:.1f} | {median / first[what]:.1f} |')


if __name__ == '__main__':
    main()
