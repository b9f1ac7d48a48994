"""Test a detector on a data set: evaluate it, save its results, draw them, or write them for a server.

python tools/test.py CONFIG CHECKPOINT --eval bbox segm
python tools/test.py CONFIG CHECKPOINT --out results.pkl --eval bbox --eval-options classwise=True
python tools/test.py CONFIG CHECKPOINT --show-dir images --show-score-thr 0.5
python tools/test.py CONFIG CHECKPOINT --format-only --eval-options jsonfile_prefix=./submission
python tools/test.py CONFIG CHECKPOINT --tta           with test-time augmentation; without more words a config of
                                                       mmdetection 3.x is evaluated as its test_evaluator says

--out, --show-dir and --report without a name, and --format-only without a prefix, write to the folder 'test' beside
the checkpoint. data.test.classes may name some of the model's classes: results of the others are left out.
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

from boxdet.errors import CommandParser, ConfigError, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        description='Test a detector on data.test of its config.', epilog=__doc__.partition('\n\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help="checkpoint file or address, or 'zoo' for the published weights")
    what = parser.add_argument_group('what to do (one at least)')
    what.add_argument('--eval', nargs='+', metavar='METRIC',
                      help='evaluate; COCO: bbox, segm, keypoints, proposal, proposal_fast; VOC: mAP, recall; ...')
    what.add_argument('--out', metavar='FILE', nargs='?', const='',
                      help="save the results, a list of one entry an image. A .pkl holds mmdetection 2.x's: an array "
                      "(n, 5) of x1, y1, x2, y2, score for each class; with masks a pair of that and a list of COCO "
                      "RLEs for each class; with keypoints a dict. A .json holds dicts (docs/evaluation.md). (default: "
                      "'results.pkl' in 'test' beside the checkpoint)")
    what.add_argument(
        '--format-only', action='store_true',
        help='only write the predictions as COCO JSON, for a server: needs no annotations; --eval-options '
        'jsonfile_prefix=PREFIX names the files PREFIX.bbox.json, PREFIX.segm.json')
    what.add_argument('--report', metavar='DIR', nargs='?', const='',
                      help="evaluate and write DIR/index.html: curves, classes, confusion, the worst errors with their "
                      "images (metrics: those of --eval, else the config's)")
    what.add_argument('--show', action='store_true', help='show each image in a window; any key goes on')
    what.add_argument('--show-dir', metavar='DIR', nargs='?', const='',
                      help='write the images with the detections drawn')
    parser.add_argument('--tta', action='store_true',
                        help="test-time augmentation: the config's tta_pipeline, else flipped views too")
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
    parser.add_argument('--precision', choices=['fp32', 'bf16', 'fp16', 'int8'], default='fp32',
                        help="bf16, fp16: half precision; int8: products of eight bits on a processor that has them, "
                        'with --calibration (default: %(default)s)')
    parser.add_argument('--calibration', metavar='DIR',
                        help="for --precision int8: a folder of images like the test data's, and not those")
    parser.add_argument('--gpu-id', type=int, help='number of the GPU: --gpu-id 1 is --device cuda:1')
    parser.add_argument('--batch-size', type=int, metavar='N',
                        help='images at a time (default: data.test.samples_per_gpu, 1)')
    parser.add_argument('--fuse-conv-bn', action='store_true',
                        help='no effect, which it says: batch norms are always folded into the convolutions')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes were started (default: %(default)s)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    parser.add_argument('--tmpdir', metavar='DIR',
                        help='bring the results of several processes together through files in this folder, which all '
                             'machines see (default: through their connections)')
    parser.add_argument('--gpu-collect', action='store_true',
                        help='no effect, which it says: results need no GPU to travel')
    args = parser.parse_args(argv)
    set_default_outputs(args)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def set_default_outputs(args: argparse.Namespace) -> None:
    """What is to be written and has no name goes to ``args.default_dir``: 'test' beside the checkpoint."""
    local = '://' not in args.checkpoint and args.checkpoint != 'zoo'
    args.default_dir = os.path.join(os.path.dirname(args.checkpoint) if local else '', 'test')
    for name, usual in (('out', 'results.pkl'), ('show_dir', 'images'), ('report', 'report')):
        if getattr(args, name) == '':
            setattr(args, name, os.path.join(args.default_dir, usual))


def check_args(args: argparse.Namespace) -> None:
    """Refuse combinations that cannot be meant, before anything is loaded."""
    if (args.eval or args.report) and args.format_only:
        raise ConfigError(
            f'{"--eval" if args.eval else "--report"} and --format-only exclude each other: the latter is for data '
            'without annotations')
    if args.options and args.eval_options:
        raise ConfigError('--options is the old name of --eval-options: give one of them')
    if args.device and args.gpu_id is not None:
        raise ConfigError('--device and --gpu-id both choose the device: give one of them')
    if args.precision == 'int8' and not args.calibration:
        raise ConfigError("--precision int8 needs --calibration DIR, a folder of images like the test data's, to find "
                          'the ranges of activations on')
    if args.calibration and args.precision != 'int8':
        raise ConfigError(f'--calibration is for --precision int8, not for {args.precision}')
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError(f'--batch-size {args.batch_size}: it is 1 at least')
    if args.out:
        from boxdet.evaluation.predictions import check_results_path
        check_results_path(args.out)
    if args.launcher != 'none' and (args.show or args.show_dir):
        raise ConfigError('--show and --show-dir work with one process only: run tools/test.py CONFIG CHECKPOINT with '
                          'them and without --launcher; several processes make results with --out, which '
                          'tools/analysis_tools/analyze_results.py draws')


def settle_actions(args: argparse.Namespace, cfg: Any) -> None:
    """A config of mmdetection 3.x is evaluated in any case, as its ``test_evaluator`` says; one of 2.x if asked to.

    Raises:
        ConfigError: there is nothing to do.
    """
    if cfg.as_written is not None and not (args.eval or args.report or args.format_only):
        wanted = evaluation_section(cfg)
        args.format_only = bool(wanted.get('format_only'))
        metric = wanted.get('metric')
        if metric and not args.format_only:
            args.eval = list(metric) if isinstance(metric, (list, tuple)) else [metric]
    if not (args.out or args.eval or args.report or args.format_only or args.show or args.show_dir):
        raise ConfigError('nothing to do: give --eval, --report, --out, --format-only, --show or --show-dir')
    if args.tta:
        augment(cfg)


def evaluation_section(cfg: Any) -> Any:
    """What the config says of evaluation; in mmdetection 3.x tests may have a section of their own."""
    return cfg.get('test_evaluation') or cfg.get('evaluation') or {}


def augment(cfg: Any) -> None:
    """Put the config's ``tta_pipeline`` in the place of the test pipeline; without one, add flipped views to that.

    Raises:
        ConfigError: the test pipeline has no MultiScaleFlipAug.
    """
    views = cfg.get('tta_pipeline')
    datasets = [cfg.data.test]
    while datasets:
        one = datasets.pop()
        inner = one if isinstance(one, (list, tuple)) else one.get('datasets') or one.get('dataset') or []
        datasets += inner if isinstance(inner, (list, tuple)) else [inner]
        if isinstance(one, (list, tuple)) or not one.get('pipeline'):
            continue
        if views:
            one['pipeline'] = views
            continue
        step = next((step for step in one['pipeline'] if step.get('type') == 'MultiScaleFlipAug'), None)
        if step is None:
            raise ConfigError('--tta: the config has no tta_pipeline, and data.test.pipeline no MultiScaleFlipAug')
        step['flip'] = True
    rcnn = (cfg.model.get('test_cfg') or {}).get('rcnn')
    if rcnn is not None:
        rcnn.update(cfg.get('tta_model') or {})


def evaluation_options(args: argparse.Namespace, cfg: Any, dataset: Any) -> dict[str, Any]:
    """The keywords for evaluate(), or for format_results() with --format-only."""
    from boxdet.engine.config import parse_options
    from boxdet.evaluation.evaluate import configured_options, writing_options

    given = parse_options(args.eval_options or args.options or [])
    flag = '--eval-options' if args.eval_options else '--options'
    if args.format_only:
        return writing_options(dataset, given, args.work_dir or args.default_dir, flag)
    if not args.eval:
        if given:
            raise ConfigError(f'{flag} are options of --eval or --format-only: give one of them too')
        return {}
    section = {key: value for key, value in evaluation_section(cfg).items() if key != 'format_only'}
    return configured_options(dataset, args.eval, section, given, flag)


def build_test_data(args: argparse.Namespace, cfg: Any) -> tuple[Any, Any]:
    """The data set of data.test, and its loader."""
    from boxdet.datasets import build_dataloader, build_dataset, inference_settings

    data = cfg.data
    options = {'workers_per_gpu': data.get('workers_per_gpu', 2), **(data.get('test_dataloader') or {})}
    configured = options.pop('samples_per_gpu', None)
    settings, batch_size = inference_settings(data['test'], args.batch_size or configured)
    dataset = build_dataset(settings, dict(test_mode=True))
    loader = build_dataloader(dataset, samples_per_gpu=batch_size, dist=args.launcher != 'none',
                              shuffle=False, **options)
    return dataset, loader


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_args(args)
    from boxdet.apis.inference import build_for_inference, place_for_inference
    from boxdet.apis.test import load_for_test, multi_gpu_test, single_gpu_test
    from boxdet.checkpoints import zoo
    from boxdet.engine.config import check_config, load_config
    from boxdet.engine.distributed import get_dist_info, init_dist, shut_down
    from boxdet.engine.environment import choose_device, setup_processes
    from boxdet.engine.findings import ignored_codes
    from boxdet.engine.part_times import PartTimes, told
    from boxdet.engine.preflight import check_evaluation, check_metrics
    from boxdet.evaluation.report import check_reportable, default_metrics

    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg, needed=('model', 'data.test'))
    settle_actions(args, cfg)
    setup_processes(cfg)
    init_dist(args.launcher, cfg.get('dist_params'), args.device)
    device = choose_device(args.device if args.gpu_id is None else f'cuda:{args.gpu_id}')
    dataset, loader = build_test_data(args, cfg)
    if args.report:
        check_reportable(dataset)
        args.eval = args.eval or default_metrics(cfg, dataset)
    options = evaluation_options(args, cfg, dataset)
    # What would end in an error is told before the hours of inference.
    model = build_for_inference(cfg)
    check_evaluation(dataset, ignored_codes(cfg), args.eval)
    if args.report and not getattr(model, 'with_roi_head', True):
        raise ConfigError('--report shows detections by class; an RPN gives proposals: use --eval proposal_fast')
    measured = args.eval or args.format_only
    if measured:
        check_metrics(model, args.eval, dataset, writing=args.format_only)
    load_for_test(model, zoo.address(args.checkpoint, args.config), dataset, strict=bool(measured))
    if args.fuse_conv_bn:
        warnings.warn('--fuse-conv-bn has no effect: batch norms are always folded into the convolutions',
                      stacklevel=2)
    model.cfg = cfg  # calibration prepares images as it says
    model = place_for_inference(model, device, args.precision, args.calibration or ())
    if args.launcher == 'none':
        if args.tmpdir or args.gpu_collect:
            warnings.warn(
                '--tmpdir and --gpu-collect are for --launcher; with one process they have no effect', stacklevel=2)
        def test(times: PartTimes) -> Any:
            return single_gpu_test(model, loader, args.show, args.show_dir, args.show_score_thr, times=times)
    else:
        def test(times: PartTimes) -> Any:
            return multi_gpu_test(model, loader, args.tmpdir, args.gpu_collect, times=times)
    with PartTimes(model, device) as times:
        results = test(times)
    rank, world = get_dist_info()
    if rank == 0:
        print(told(times.seconds, -(-len(dataset) // world)) + (f', of rank 0 of {world}' if world > 1 else ''))
        report(args, dataset, results, options, times.seconds, proposals=not getattr(model, 'with_roi_head', True))
    shut_down()


def report(args: argparse.Namespace, dataset: Any, results: list, options: dict[str, Any], seconds: dict[str, float],
           proposals: bool) -> None:
    """Write and print what was asked for; ``seconds`` of each part, ``proposals``: an RPN made the results."""
    from boxdet.evaluation import evaluate, format_results, save_results
    from boxdet.evaluation.report import write_report
    from boxdet.files.writing import write_json

    if args.out:
        save_results(results, args.out, proposals, num_classes=len(getattr(dataset, 'CLASSES', None) or ()) or None)
        print(f'results: {args.out}')
    if args.show_dir:
        print(f'images: {args.show_dir}')
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
            write_json(path, dict(config=args.config, checkpoint=args.checkpoint, metric=metrics, seconds=seconds))
            print(f'metrics: {path}')
        if args.report:
            meta = [args.config, args.checkpoint, dataset.ann_file, time.strftime('%Y-%m-%d %H:%M')]
            page = write_report(args.report, dataset, results, metrics, Path(args.config).stem, meta)
            print(f'report: {page}')


if __name__ == '__main__':
    run_command(main)
