#!/usr/bin/env python
"""How long the first line takes: a command's --help, and the import of the API against that of torch and torchvision.

    python benchmarks/startup.py [--rounds 7] [--quick] [--device cuda] [--json out.json]

Each is a fresh Python process; all run once in every round, and the medians are printed. The first round, which fills
the file system's cache, does not count. With --device cuda the import is followed by a first tensor on the GPU.
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
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    times = {name: [] for name in commands}
    for number in range(1 + (3 if args.quick else args.rounds)):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
            if number:
                times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    for name, value in seconds.items():
        print(f'{name:40s} {value:6.2f} s')
    floor, own = seconds['import torch, torchvision'], seconds['from boxdet.apis import init_detector']
    print(f'the API takes {own - floor:.2f} s more than torch and torchvision (goal: 0.7), {own / floor:.2f} of their '
          f'time')
    if args.json:
        Path(args.json).write_text(json.dumps(seconds, indent=1))


if __name__ == '__main__':
    main()
