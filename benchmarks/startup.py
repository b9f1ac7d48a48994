#!/usr/bin/env python
"""How long the first line takes: a command's --help, and the import of the API against that of torch and torchvision.

    python benchmarks/startup.py [--rounds 7] [--quick] [--device cuda] [--beside ANOTHER_CHECKOUT] [--json out.json]

Each is a fresh Python process; all run once in every round, and the medians are printed: of the time that passes, and
of the processor's, which other work changes less. The first round, which fills the file system's cache, does not count.
--beside runs another checkout's in the same rounds. With --device cuda the import is followed by a first tensor on the
GPU.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--quick', action='store_true', help='three rounds')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--beside', type=Path, metavar='DIR', help='another checkout, measured in the same rounds')
    parser.add_argument('--json')
    args = parser.parse_args()
    first = f"; import torch; torch.zeros(1, device='{args.device}')" if args.device != 'cpu' else ''
    commands = {
        'python -c pass': ['-c', 'pass'],
        'tools/test.py --help': ['tools/test.py', '--help'],
        'tools/train.py --help': ['tools/train.py', '--help'],
        'import torch, torchvision': ['-c', 'import torch, torchvision' + first],
        'from boxdet.apis import init_detector': ['-c', 'from boxdet.apis import init_detector' + first],
    }
    roots = [('', ROOT)] + ([('beside: ', args.beside.resolve())] if args.beside else [])
    runs = {label + name: (root, command) for name, command in commands.items() for label, root in roots}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(1 + (3 if args.quick else args.rounds)):
        for name, (root, command) in runs.items():
            start, before = time.perf_counter(), sum(os.times()[2:4])
            subprocess.run([sys.executable, *command], cwd=root, env={**os.environ, 'PYTHONPATH': str(root)},
                           check=True, stdout=subprocess.DEVNULL)
            if number:
                times[name].append((time.perf_counter() - start, sum(os.times()[2:4]) - before))
    seconds = {name: [statistics.median(kind) for kind in zip(*values)] for name, values in times.items()}
    for name, (wall, processor) in seconds.items():
        print(f'{name:46s} {wall:6.2f} s {processor:6.2f} s of the processor')
    for label, _ in roots:
        (floor, _), (own, _) = (seconds[label + name] for name in list(commands)[-2:])
        print(f'{label}the API takes {own - floor:.2f} s more than torch and torchvision (goal: 0.7), '
              f'{own / floor:.2f} of their time')
    if args.json:
        Path(args.json).write_text(json.dumps(seconds, indent=1))


if __name__ == '__main__':
    main()
