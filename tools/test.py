"""Test a detector on a data set: evaluate it, save its results, draw them, or write them for a server.

    python tools/test.py CONFIG CHECKPOINT --eval bbox segm
    python tools/test.py CONFIG CHECKPOINT --out results.pkl --eval bbox --eval-options classwise=True
    python tools/test.py CONFIG CHECKPOINT --show-dir pictures --show-score-thr 0.5
    python tools/test.py CONFIG CHECKPOINT --format-only --eval-options jsonfile_prefix=./submission
"""
from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from boxdet.errors import ConfigError, run_command  # noqa: E402  (everything heavier is imported in main)

# Keys of config.evaluation that steer the evaluation during training; the others are options of evaluate().
_TRAINING_ONLY = ('interval', 'start', 'by_epoch', 'save_best', 'rule', 'out_dir', 'tmpdir', 'gpu_collect',
                  'type', 'dynamic_intervals', 'progress', 'priority', 'greater_keys', 'less_keys',
                  'broadcast_bn_buffer')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Test a detector on data.test of its config.', epilog=__doc__.partition('\n\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    what = parser.add_argument_group('what to do (one at least)')
    what.add_argument('--eval', nargs='+', metavar='METRIC',
                      help='evaluate: bbox, segm, proposal, proposal_fast')
    what.add_argument('--out', metavar='FILE', help='save the results as .pkl or .json')
    what.add_argument(
        '--format-only', action='store_true',
        help='only write the predictions as COCO JSON, for a server: needs no annotations; --eval-options '
        'jsonfile_prefix=PREFIX names the files PREFIX.bbox.json, PREFIX.segm.json')
    what.add_argument('--show', action='store_true', help='show each picture in a window; any key goes on')
    what.add_argument('--show-dir', metavar='DIR', help='write the pictures with the detections drawn')
    parser.add_argument('--show-score-thr', type=float, default=0.3, metavar='SCORE',
                        help='draw detections above this score (default: %(default)s)')
    parser.add_argument('--work-dir', metavar='DIR', help='write the metrics there, as eval_TIME.json')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE',
                        help='change the config: a.b.c=value, a.b=[1,2]')
    parser.add_argument(
        '--eval-options', nargs='+', metavar='KEY=VALUE',
        help='options of the evaluation or of --format-only: classwise=True, jsonfile_prefix=PREFIX, ...')
    parser.add_argument('--options', nargs='+', metavar='KEY=VALUE', help='the old name of --eval-options')
    parser.add_argument('--device', help="cpu, cuda:0, ... (default: a GPU if there is one, else the CPU)")
    parser.add_argument('--gpu-id', type=int, help='number of the GPU: --gpu-id 1 is --device cuda:1')
    parser.add_argument('--batch-size', type=int, metavar='N',
                        help='images at a time (default: data.test.samples_per_gpu, 1)')
    parser.add_argument('--fuse-conv-bn', action='store_true',
                        help='fold batch norms into the convolutions: faster')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes were started (default: %(default)s)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    parser.add_argument('--tmpdir', help='not needed any more: results are gathered directly (says so)')
    parser.add_argument('--gpu-collect', action='store_true', help='not needed any more, likewise')
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse combinations that cannot be meant, before anything is loaded."""
    if not (args.out or args.eval or args.format_only or args.show or args.show_dir):
        raise ConfigError('nothing to do: give --eval, --out, --format-only, --show or --show-dir')
    if args.eval and args.format_only:
        raise ConfigError(
            '--eval and --format-only exclude each other: the latter is for data without annotations')
    if args.options and args.eval_options:
        raise ConfigError('--options is the old name of --eval-options: give one of them')
    if args.device and args.gpu_id is not None:
        raise ConfigError('--device and --gpu-id both choose the device: give one of them')
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError(f'--batch-size {args.batch_size}: it is 1 at least')
    if args.out:
        from boxdet.evaluation.predictions import check_results_path
        check_results_path(args.out)
    if args.launcher != 'none' and (args.show or args.show_dir):
        raise ConfigError('--show and --show-dir work with one process only')


def evaluation_options(args: argparse.Namespace, cfg: Any) -> dict[str, Any]:
    """The keywords for evaluate(), or for format_results() with --format-only."""
    from boxdet.engine.config import parse_options
    from boxdet.evaluation.evaluate import evaluate
    from boxdet.registry import check_keywords

    given = parse_options(args.eval_options or args.options or [])
    flag = '--eval-options' if args.eval_options else '--options'
    if args.format_only:
        folder = args.work_dir or '.'
        options = {'jsonfile_prefix': os.path.join(folder, 'results'), **given}
        for key in given:
            if key != 'jsonfile_prefix':
                raise ConfigError(f"{flag}: --format-only takes jsonfile_prefix=PREFIX, not '{key}'")
        return options
    if not args.eval:
        if given:
            raise ConfigError(f'{flag} are options of --eval or --format-only: give one of them too')
        return {}
    configured = {k: v for k, v in (cfg.get('evaluation') or {}).items() if k not in _TRAINING_ONLY}
    check_keywords(evaluate, configured, 'evaluation')
    check_keywords(evaluate, given, flag)
    return {**configured, **given, 'metric': args.eval}


def build_test_data(args: argparse.Namespace, cfg: Any) -> tuple[Any, Any]:
    """The data set of data.test, and its loader."""
    from boxdet.datasets import build_dataloader, build_dataset, replace_ImageToTensor

    data = cfg.get('data') or {}
    if not data.get('test'):
        raise ConfigError(f'{args.config} has no data.test')
    # 2.x: data.test.samples_per_gpu (which the data set does not take), or data.test_dataloader.
    several = isinstance(data['test'], (list, tuple))
    settings = [dict(part) for part in (data['test'] if several else [data['test']])]
    batch_size = max(part.pop('samples_per_gpu', 1) for part in settings)
    options = {'workers_per_gpu': data.get('workers_per_gpu', 2), **(data.get('test_dataloader') or {})}
    batch_size = args.batch_size or options.pop('samples_per_gpu', batch_size)
    options.pop('samples_per_gpu', None)
    if batch_size > 1:
        for part in settings:
            part['pipeline'] = replace_ImageToTensor(part.get('pipeline', []))
    settings = settings if several else settings[0]
    dataset = build_dataset(settings, dict(test_mode=True))
    loader = build_dataloader(dataset, samples_per_gpu=batch_size, dist=args.launcher != 'none',
                              shuffle=False, **options)
    return dataset, loader


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_args(args)
    from boxdet.apis.inference import build_for_inference, fuse_conv_bn, load_into
    from boxdet.apis.test import multi_gpu_test, single_gpu_test
    from boxdet.engine.config import check_config, load_config
    from boxdet.engine.distributed import get_dist_info, init_dist, shut_down
    from boxdet.engine.environment import choose_device, setup_processes
    from boxdet.engine.preflight import check_files, check_metrics, check_num_classes, parts_of
    from boxdet.evaluation.evaluate import require_annotations

    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg)
    options = evaluation_options(args, cfg)
    setup_processes(cfg)
    init_dist(args.launcher, cfg.get('dist_params'))
    device = choose_device(args.device if args.gpu_id is None else f'cuda:{args.gpu_id}')
    dataset, loader = build_test_data(args, cfg)
    if (args.eval or args.format_only) and not hasattr(dataset, 'coco'):
        raise ConfigError(
            f'data.test is a {type(dataset).__name__}: evaluate its data sets one at a time, in COCO format')
    # What would end in an error is told before the hours of inference.
    if args.eval:
        require_annotations(dataset)
    for part in parts_of(dataset):
        check_files(part, 'data.test')
    model = build_for_inference(cfg)
    if args.eval or args.format_only:
        check_num_classes(model, dataset, 'test')
    check_metrics(model, args.eval or [])
    load_into(model, args.checkpoint, dataset.CLASSES)
    if args.fuse_conv_bn:
        model = fuse_conv_bn(model.eval())
    model = model.to(device)
    if args.launcher == 'none':
        if args.tmpdir or args.gpu_collect:
            warnings.warn(
                '--tmpdir and --gpu-collect are for --launcher; with one process they have no effect')
        results = single_gpu_test(model, loader, args.show, args.show_dir, args.show_score_thr)
    else:
        results = multi_gpu_test(model, loader, args.tmpdir, args.gpu_collect)
    if get_dist_info()[0] == 0:
        report(args, dataset, results, options, proposals=not getattr(model, 'with_roi_head', True))
    shut_down()


def report(args: argparse.Namespace, dataset: Any, results: list, options: dict[str, Any],
           proposals: bool) -> None:
    """Write and print what was asked for; ``proposals``: an RPN made the results."""
    from boxdet.evaluation import evaluate, format_results, save_results
    from boxdet.evaluation.predictions import write_json

    if args.out:
        save_results(results, args.out, proposals)
        print(f'results: {args.out}')
    if args.show_dir:
        print(f'pictures: {args.show_dir}')
    if args.format_only:
        for path in dict.fromkeys(format_results(dataset, results, proposals=proposals, **options).values()):
            print(f'predictions: {path}')
    if args.eval:
        metrics = evaluate(dataset, results, **options)
        # The values of single classes stand in the table of classwise=True.
        line = {key: value for key, value in metrics.items() if not key.endswith('_precision')}
        print(', '.join(f'{k}: {v:.4f}' if isinstance(v, float) else f'{k}: {v}' for k, v in line.items()))
        if args.work_dir:
            path = os.path.join(args.work_dir, f'eval_{time.strftime("%Y%m%d_%H%M%S")}.json')
            write_json(path, dict(config=args.config, checkpoint=args.checkpoint, metric=metrics))
            print(f'metrics: {path}')


if __name__ == '__main__':
    run_command(main)
