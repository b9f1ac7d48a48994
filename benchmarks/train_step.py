#!/usr/bin/env python
"""Time training steps: fp32 against bf16, batch 1, 2 and 4, alone and with 2 processes.

    python benchmarks/train_step.py [--config CONFIG] [--device cuda] [--rounds 5] [--batches 1 2 4] [--json out.json]

For every setting: the step (seconds from one batch on the device to the next update, the device waited for), the wait
for data (what a step has to wait when the loader has --workers processes of its own), images a second, and the peak of
memory (the device's on a GPU, all of the process on a CPU) less what the other precision's weights take meanwhile.

The settings of one batch size take turns, one step each a round, so that a machine whose speed drifts is the same to
both precisions; each figure is the median over the rounds, after two that do not count. Images are drawn
(tools/make_shapes.py's, or a real data set with --data FOLDER) and scaled to --scale.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from boxdet.errors import ConfigError, run_command  # noqa: E402

PRECISIONS = {'fp32': None, 'bf16': dict(dtype='bfloat16')}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=str(ROOT / 'configs/shapes/mask_rcnn_r18_fpn_shapes.py'))
    parser.add_argument('--device', default='cpu', help='cpu, cuda (default: %(default)s)')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 2, 4], metavar='N')
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], metavar='N')
    parser.add_argument('--rounds', type=int, default=5, help='steps that count (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=1, help='loader processes for each rank (default: %(default)s)')
    parser.add_argument('--threads', type=int, help='CPU threads of each process (default: the cores, shared out)')
    parser.add_argument('--scale', type=int, nargs=2, default=[320, 320], metavar=('W', 'H'),
                        help='images are resized to fit into this (default: 320 320; COCO trains at 1333 800)')
    parser.add_argument('--data', type=Path, help='folder with annotations/instances_train.json and train/')
    parser.add_argument('--json', type=Path, help='also write the figures there')
    parser.add_argument('--rank-of', type=int, help=argparse.SUPPRESS)  # set for the processes that it starts itself
    return parser.parse_args(argv)


# --- one process ---

def build(args: argparse.Namespace, batch: int, device: Any) -> tuple[Any, Iterator, dict[str, tuple[Any, Any]]]:
    """(loader, endless batches, {precision: (model, update step)}): each precision has weights of its own."""
    import torch

    from boxdet.datasets import build_dataloader, build_dataset
    from boxdet.engine.config import load_config
    from boxdet.engine.distributed import get_dist_info, wrap_distributed
    from boxdet.engine.schedule import build_optimizer, build_update_step
    from boxdet.models import build_detector
    cfg = load_config(args.config)
    train = dict(cfg.data.train)
    train.update(ann_file=str(args.data / 'annotations/instances_train.json'), img_prefix=str(args.data / 'train'))
    train['pipeline'] = [{**step, 'img_scale': tuple(args.scale)} if step['type'] == 'Resize' else step
                         for step in train['pipeline']]
    loader = build_dataloader(build_dataset(train), batch, args.workers, dist=get_dist_info()[1] > 1, seed=0,
                              runner_type='IterBasedRunner')
    sides = {}
    for name, fp16 in PRECISIONS.items():
        torch.manual_seed(0)
        model = build_detector(cfg.model).to(device).train()
        optimizer = build_optimizer(model, dict(type='SGD', lr=1e-3, momentum=0.9))
        sides[name] = wrap_distributed(model, device), build_update_step(optimizer, None, fp16, device.type)
    return loader, iter(loader), sides


def one_step(model: Any, step: Any, batches: Iterator, device: Any) -> tuple[float, float]:
    """(seconds of the step, seconds waited for its batch)."""
    import torch

    from boxdet.engine.loss_watch import total_loss
    began = time.perf_counter()
    batch = next(batches)
    loaded = time.perf_counter()
    with step.optim_context(model):
        loss, _ = total_loss(model(batch.to(device), mode='loss'))
    step.backward(loss)
    step.step()
    step.zero_grad()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - loaded, loaded - began


@contextlib.contextmanager
def peak_memory(device: Any) -> Iterator[dict[str, float]]:
    """Fills in 'memory': MB at the peak inside. Of a CPU process the resident size that its steps reached."""
    import torch
    found: dict[str, float] = {}
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # Linux: forget the peak so far
            Path('/proc/self/clear_refs').write_text('5')
    yield found
    if device.type == 'cuda':
        found['memory'] = torch.cuda.max_memory_allocated(device) / 2 ** 20
    else:
        status = Path('/proc/self/status')
        found['memory'] = (next(int(line.split()[1]) for line in status.read_text().splitlines()
                                if line.startswith('VmHWM')) / 1024 if status.exists()
                           else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def held(model: Any, step: Any) -> float:
    """MB that a model keeps between steps: weights, buffers, the optimizer's state, DDP's buckets of gradients."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [value for state in step.optimizer.state.values() for value in state.values() if hasattr(value, 'numel')]
    if type(model).__name__ == 'DistributedDataParallel':
        tensors += [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2 ** 20


def measure(args: argparse.Namespace, batch: int, device: Any) -> dict[str, dict[str, float]]:
    """{precision: medians} of one batch size, the precisions taking turns."""
    _, batches, sides = build(args, batch, device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0.0)
    for round_ in range(args.rounds + 2):
        for name, (model, step) in sides.items():
            with peak_memory(device) as peak:
                seconds = one_step(model, step, batches, device)
            others = sum(held(*sides[other]) for other in sides if other != name)
            peaks[name] = max(peaks[name], peak['memory'] - others)
            if round_ >= 2:
                times[name].append(seconds)
    return {name: dict(step=statistics.median(s for s, _ in found), wait=statistics.median(w for _, w in found),
                       memory=peaks[name]) for name, found in times.items()}


def rank(args: argparse.Namespace) -> None:
    """One of the processes: measure every batch size; the first writes the figures to --json."""
    import torch

    from boxdet.engine.distributed import all_gather_objects, init_dist, is_main, shut_down
    from boxdet.engine.environment import choose_device
    torch.set_num_threads(args.threads or max(len(os.sched_getaffinity(0)) // args.rank_of, 1))
    if args.rank_of > 1:
        init_dist('pytorch', device=args.device if args.device == 'cpu' else None)
    device = choose_device(None if args.device == 'cuda' and args.rank_of > 1 else args.device)
    figures = []
    for batch in args.batches:
        every = all_gather_objects(measure(args, batch, device))
        for name in PRECISIONS:
            slowest = {key: max(one[name][key] for one in every) for key in ('step', 'wait', 'memory')}
            figures.append(dict(processes=args.rank_of, batch=batch, precision=name, **slowest))
    if is_main():
        args.json.write_text(json.dumps(figures))
    shut_down()


# --- the whole ---

def run_processes(args: argparse.Namespace, count: int, folder: Path) -> list[dict[str, Any]]:
    """Start ``count`` ranks of this script; their figures.

    Raises:
        ConfigError: they failed.
    """
    out = folder / f'{count}.json'
    own = [str(Path(__file__).resolve()), '--rank-of', str(count), '--json', str(out), '--config', args.config,
           '--device', args.device, '--data', str(args.data), '--rounds', str(args.rounds), '--workers',
           str(args.workers), '--threads', str(args.threads or 0), '--scale', *map(str, args.scale), '--batches',
           *map(str, args.batches)]
    launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}'] if count > 1 else []
    if subprocess.run([sys.executable, *launch, *own]).returncode:
        raise ConfigError(f'the measurement with {count} processes failed; what it said stands above')
    return json.loads(out.read_text())


def report(figures: list[dict[str, Any]]) -> None:
    """Print the table."""
    print('| processes | images each | precision | step, ms | wait for data, ms | images/s | peak memory, MB |')
    print('|---|---|---|---|---|---|---|')
    for one in figures:
        images = one['processes'] * one['batch'] / (one['step'] + one['wait'])
        print(f"| {one['processes']} | {one['batch']} | {one['precision']} | {1e3 * one['step']:.1f} | "
              f"{1e3 * one['wait']:.1f} | {images:.2f} | {one['memory']:.0f} |")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.rank_of:
        rank(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            args.data = Path(folder) / 'shapes'
            draw = [sys.executable, str(ROOT / 'tools/make_shapes.py'), '--out', str(args.data), '--train', '24']
            subprocess.run([*draw, '--val', '1'], check=True, stdout=subprocess.DEVNULL)
        figures = [one for count in args.processes for one in run_processes(args, count, Path(folder))]
    report(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == '__main__':
    run_command(main)
