"""How many images a second a model detects, and how much memory that takes.

    python tools/analysis_tools/benchmark.py CONFIG CHECKPOINT [--max-iter 200] [--repeat-num 3] [--fuse-conv-bn]

The data set of data.test is read, prepared and detected one image at a time, as in testing. The first images do not
count. Both the network alone (with its preparation on the device and its results brought back) and the whole way are
told, and the seconds of each part: data, backbone, RPN, boxes, masks, keypoints, output.
"""
from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boxdet.errors import CommandParser, ConfigError, run_command

_WARM_UP = 5  # images that do not count


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Measure images a second and memory of a detector.',
                           epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file (default: random weights, which detect less)')
    parser.add_argument('--repeat-num', type=int, default=1, help='measure so often (default: %(default)s)')
    parser.add_argument('--max-iter', type=int, default=2000, help='images at most (default: %(default)s)')
    parser.add_argument('--log-interval', type=int, default=50, help='tell the rate every so many images '
                        '(default: %(default)s)')
    parser.add_argument('--fuse-conv-bn', action='store_true', help='measure the model as init_detector prepares it: '
                        'batch norms folded into the convolutions, the fastest memory format')
    parser.add_argument('--device', help='cpu, cuda:0, ... (default: a GPU if there is one, else the CPU)')
    parser.add_argument('--out', metavar='FILE', help='also write the figures to this JSON file')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    args = parser.parse_args(argv)
    for name in ('repeat_num', 'max_iter', 'log_interval'):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)}: it is 1 at least")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.apis.inference import build_for_inference, load_into, place_for_inference
    from boxdet.datasets import build_dataset
    from boxdet.engine.config import check_config, load_config
    from boxdet.engine.environment import choose_device, setup_processes
    from boxdet.engine.loggers import peak_memory
    from boxdet.engine.part_times import told as told_parts
    from boxdet.files.writing import write_json

    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg)
    setup_processes(cfg)
    test = (cfg.get('data') or {}).get('test')
    if not isinstance(test, dict):
        raise ConfigError(f'{args.config}: data.test is not one data set')
    dataset = build_dataset({k: v for k, v in test.items() if k != 'samples_per_gpu'}, dict(test_mode=True))
    device = choose_device(args.device)
    model = build_for_inference(cfg)
    if args.checkpoint:
        load_into(model, args.checkpoint, dataset.CLASSES)
    model = place_for_inference(model, device) if args.fuse_conv_bn else model.to(device).eval()
    runs = [measure(model, dataset, cfg, device, args) for _ in range(args.repeat_num)]
    told = dict(summary(runs), device=str(device), memory_mb=peak_memory(device), images=runs[0]['images'])
    print(f"network: {told['network_fps']:.2f} images/s ({1000 / told['network_fps']:.1f} ms an image); with reading "
          f"and preparing: {told['whole_fps']:.2f} images/s; peak memory {told['memory_mb']} MB "
          f"({'of the GPU' if device.type == 'cuda' else 'of the process'}), {device}")
    print(told_parts(told['seconds_an_image'], 1))
    if args.repeat_num > 1:
        rates = ', '.join(f'{fps:.2f}' for fps in told['network_fps_each'])
        print(f'{args.repeat_num} times: network {rates} images/s')
    if args.out:
        write_json(args.out, told)


def measure(model: Any, dataset: Any, cfg: Any, device: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the network and of the whole way, over up to --max-iter images."""
    import torch

    from boxdet.datasets import build_dataloader
    from boxdet.engine.part_times import PartTimes

    loader = build_dataloader(dataset, samples_per_gpu=1, workers_per_gpu=(cfg.data or {}).get('workers_per_gpu', 2),
                              dist=False, shuffle=False)
    warm, network, counted = min(_WARM_UP, (min(len(dataset), args.max_iter) - 1) // 2), 0., 0
    batches = itertools.islice(iter(loader), args.max_iter)
    with torch.no_grad():
        for batch in itertools.islice(batches, warm):
            detect(model, batch, device)
        begin = time.perf_counter()
        with PartTimes(model, device) as times:
            for batch in times.waiting(batches):
                start = time.perf_counter()
                detect(model, batch, device, times)
                network, counted = network + time.perf_counter() - start, counted + 1
                if counted % args.log_interval == 0:
                    print(f'{counted} images, network {counted / network:.2f} images/s', flush=True)
    parts = {part: seconds / counted for part, seconds in times.seconds.items()}
    return dict(network=network, whole=time.perf_counter() - begin, images=counted, parts=parts)


def detect(model: Any, batch: Any, device: Any, times: Any = None) -> None:
    """The results of a batch, brought to the CPU."""
    views = [view.to(device) for view in batch] if isinstance(batch, list) else batch.to(device)
    found = model(views, mode='predict', rescale=True)
    if times is not None:
        times.begin('output')
    for result in found:
        result.to('cpu')  # waits for the GPU


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates of the median run, and of each; the seconds an image of the parts, the median of the runs."""
    network, whole = ([run['images'] / run[key] for run in runs] for key in ('network', 'whole'))
    parts = {part: statistics.median(run['parts'][part] for run in runs) for part in runs[0]['parts']}
    return dict(network_fps=statistics.median(network), whole_fps=statistics.median(whole), network_fps_each=network,
                seconds_an_image=parts)


if __name__ == '__main__':
    run_command(main)
