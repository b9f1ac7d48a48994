"""Train a detector.

    python tools/train.py CONFIG                                        everything goes to work_dirs/<config name>
    python tools/train.py CONFIG --work-dir runs/a --seed 0             repeatable
    python tools/train.py CONFIG --cfg-options data.samples_per_gpu=1 optimizer.lr=0.0025
    python tools/train.py CONFIG --auto-resume                          go on after an interruption
    python tools/train.py CONFIG --load-from coco.pth                   fine-tune: the weights only
    python tools/train.py CONFIG --data train.json val.json             your own data, in COCO's form
    python tools/train.py CONFIG --amp --resume                         mmdetection 3.x's words: half precision, go on
    python tools/train.py CONFIG --tensorboard                          curves, too
    kill -USR1 PID                                                      save after this iteration and end with status 75
    tools/dist_train.sh CONFIG 8                                        8 GPUs (without GPUs: 8 processes)

The work_dir then holds <time>.log, <time>.log.json, the config, epoch_N.pth, latest.pth and, with
evaluation.save_best, best_<metric>_epoch_N.pth.
"""
from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, ConfigError, UserError, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Train a detector as its config says.',
                           epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one in ./configs or among those of boxdet')
    parser.add_argument('--data', nargs='+', metavar='FILE',
                        help="train on this COCO file, in place of the config's data, and evaluate on a second one "
                        '(without it on the same); classes and num_classes are those of the file')
    parser.add_argument('--images', nargs='+', metavar='DIR', default=(),
                        help='the folders of the images of --data (default: looked for beside the files)')
    parser.add_argument('--work-dir', metavar='DIR', help='where everything goes (default: work_dirs/<config name>)')
    parser.add_argument('--resume-from', metavar='FILE',
                        help='go on from this checkpoint: weights, optimizer, epoch, random numbers')
    parser.add_argument('--auto-resume', action='store_true',
                        help='go on from the newest readable checkpoint in the work_dir, if there is one')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='FILE',
                        help="mmdetection 3.x's form: alone or 'auto' it is --auto-resume, with a file --resume-from")
    parser.add_argument('--amp', action='store_true',
                        help='train in half precision, as fp16 in the config: bfloat16 on the CPU, float16 on a '
                             'GPU (not measured)')
    parser.add_argument('--requeue', action='store_true',
                        help='in a Slurm job: when SIGUSR1 ended the training, have the job started again')
    parser.add_argument('--load-from', metavar='FILE', help='start from the weights of this checkpoint (fine-tuning)')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument('--seed', type=int, help='seed of all random numbers (default: a new one, which is logged)')
    parser.add_argument('--diff-seed', action='store_true', help='every process gets a seed of its own')
    parser.add_argument('--deterministic', action='store_true',
                        help='deterministic GPU algorithms (no GPU was at hand: not measured)')
    parser.add_argument('--device', help='cpu, cuda:0, ... (default: a GPU if there is one, else the CPU)')
    parser.add_argument('--gpu-id', type=int, metavar='N', help='number of the GPU: --gpu-id 1 is --device cuda:1')
    parser.add_argument('--gpu-ids', type=int, nargs='+', metavar='N',
                        help='the old form of --gpu-id; one GPU only, more need tools/dist_train.sh')
    parser.add_argument('--gpus', type=int, metavar='N',
                        help="mmdetection 2.x's: 1, which is the default; more need tools/dist_train.sh CONFIG N")
    parser.add_argument('--tensorboard', action='store_true',
                        help='also write curves for TensorBoard, to work_dir/tf_logs (pip install tensorboard)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help="scale the learning rate to the batch (the config's auto_scale_lr.base_batch_size)")
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE',
                        help='change the config: a.b.c=value, a.b=[1,2]')
    parser.add_argument('--options', nargs='+', metavar='KEY=VALUE', help='the old name of --cfg-options')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes were started (default: %(default)s)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse combinations that cannot be meant, before anything is loaded."""
    if args.options and args.cfg_options:
        raise ConfigError('--options is the old name of --cfg-options: give one of them')
    if args.images and not args.data:
        raise ConfigError('--images names folders for the files of --data, and there is none')
    if sum(bool(value) for value in (args.resume_from, args.auto_resume, args.resume, args.load_from)) > 1:
        raise ConfigError('--resume-from, --auto-resume, --resume and --load-from exclude each other')
    if args.resume == 'auto':
        args.auto_resume = True
    elif args.resume:
        args.resume_from = args.resume
    if args.gpu_ids and len(args.gpu_ids) > 1:
        raise ConfigError(f'--gpu-ids {" ".join(map(str, args.gpu_ids))}: one process uses one GPU; start '
                          f'tools/dist_train.sh CONFIG {len(args.gpu_ids)}')
    if args.gpus is not None and args.gpus != 1:
        raise ConfigError(f'--gpus {args.gpus}: one process uses one GPU; start ' + (
            f'tools/dist_train.sh CONFIG {args.gpus}' if args.gpus > 1 else 'it with --device cpu for none'))
    chosen = [value for value in (args.device, args.gpu_id, args.gpu_ids) if value is not None]
    if len(chosen) > 1:
        raise ConfigError('--device, --gpu-id and --gpu-ids all choose the device: give one of them')


def merge_args(args: argparse.Namespace, cfg: Any) -> None:
    """Write what the command line decides into the config, which is what the work_dir keeps."""
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(args.config).stem)
    if args.load_from:
        from boxdet.checkpoints import zoo
        cfg.load_from, cfg.resume_from = zoo.address(args.load_from, args.config), None
    if args.resume_from:
        cfg.resume_from = args.resume_from
    gpu = args.gpu_id if args.gpu_ids is None else args.gpu_ids[0]
    if args.device or gpu is not None:
        cfg.device = args.device or f'cuda:{gpu}'
    if args.amp and not cfg.get('fp16'):
        cfg.fp16 = dict(loss_scale='dynamic')
    if args.tensorboard:
        add_tensorboard(cfg)
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ConfigError(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True


def own_data(args: argparse.Namespace, cfg: Any) -> list[str]:
    """Put the files of --data into the config; returns what the log is to tell of it."""
    from boxdet.engine.own_data import use_data
    return use_data(cfg, args.data, args.images) if args.data else []


def add_tensorboard(cfg: Any) -> None:
    """Append TensorboardLoggerHook to ``log_config.hooks``, where it is not among them."""
    log = dict(cfg.get('log_config') or {})
    hooks = list(log.get('hooks') or [dict(type='TextLoggerHook')])
    if not any(isinstance(hook, Mapping) and hook.get('type') == 'TensorboardLoggerHook' for hook in hooks):
        cfg.log_config = {**log, 'hooks': [*hooks, dict(type='TensorboardLoggerHook')]}


def find_resume(args: argparse.Namespace, cfg: Any, logger: Any) -> None:
    """With --auto-resume (or ``auto_resume`` in the config) go on from the newest readable checkpoint."""
    if not args.auto_resume and (not cfg.get('auto_resume') or cfg.get('resume_from')):
        return
    from boxdet.checkpoints.io import newest_checkpoint
    from boxdet.engine.distributed import broadcast_object, is_main
    from boxdet.engine.hooks import output_folder
    folder = output_folder((cfg.get('checkpoint_config') or {}).get('out_dir'), cfg.work_dir)
    found = broadcast_object(newest_checkpoint(folder, logger.warning) if is_main() else None)
    if found is None:
        logger.info('auto-resume: no checkpoint in %s yet, starting from the beginning', folder)
    else:
        cfg.resume_from = str(found)


def prepare(args: argparse.Namespace, cfg: Any) -> tuple[Any, str]:
    """Join the other processes, open the log, seed; returns the logger and the time that names the log files."""
    from boxdet.engine.distributed import broadcast_object, get_dist_info, init_dist, is_main
    from boxdet.engine.environment import (
        choose_device,
        choose_seed,
        env_text,
        set_random_seed,
        setup_logger,
        setup_processes,
    )
    from boxdet.engine.preflight import check_writable
    setup_processes(cfg)
    init_dist(args.launcher, cfg.get('dist_params'), cfg.get('device'))
    choose_device(cfg.get('device'))  # before anything is written; and the log tells of the GPU
    timestamp = broadcast_object(time.strftime('%Y%m%d_%H%M%S'))
    if is_main():
        check_writable(cfg.work_dir, 'work_dir')
        cfg.dump(os.path.join(cfg.work_dir, Path(cfg.filename).name))
    logger = setup_logger(os.path.join(cfg.work_dir, f'{timestamp}.log'), cfg.get('log_level', 'INFO'))
    cfg.seed = choose_seed(cfg.get('seed') if args.seed is None else args.seed)
    set_random_seed(cfg.seed + (get_dist_info()[0] if args.diff_seed else 0),
                    args.deterministic or bool(cfg.get('deterministic')))
    logger.info('Environment:\n%s', env_text())
    logger.info('seed %d, deterministic %s, work_dir %s', cfg.seed, args.deterministic, cfg.work_dir)
    logger.info('Config:\n%s', cfg.pretty_text)
    return logger, timestamp


def train(args: argparse.Namespace, cfg: Any, logger: Any, timestamp: str) -> None:
    """Build model and data, and train."""
    from boxdet.apis.train import train_detector
    from boxdet.datasets import build_dataset, loss_settings
    from boxdet.models import build_detector
    find_resume(args, cfg, logger)
    model = build_detector(cfg.model, train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))
    if not cfg.get('resume_from'):
        model.init_weights()
    datasets = [build_dataset(cfg.data.train)]
    if any(mode == 'val' for mode, _ in cfg.get('workflow') or []):
        datasets.append(build_dataset(loss_settings(cfg.data.val, cfg.data.train)))
    train_detector(model, datasets, cfg, distributed=args.launcher != 'none', validate=not args.no_validate,
                   timestamp=timestamp, meta=dict(exp_name=Path(cfg.filename).name))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_args(args)
    from boxdet.engine.config import check_config, load_config
    from boxdet.engine.distributed import is_main, shut_down
    from boxdet.engine.interruption import Interrupted, request_requeue

    cfg = load_config(args.config, args.cfg_options or args.options)
    told = own_data(args, cfg)
    merge_args(args, cfg)
    validates_losses = any(mode == 'val' for mode, _ in cfg.get('workflow') or [])
    check_config(cfg, needed=('model', 'data.train', 'optimizer', *(['data.val'] if validates_losses else [])))
    logger, timestamp = prepare(args, cfg)
    for line in told:
        logger.info(line)
    try:
        train(args, cfg, logger, timestamp)
    except Interrupted as stop:
        logger.warning(str(stop))
        if args.requeue and is_main():
            request_requeue(stop.number)
        shut_down()
        raise
    except UserError as error:
        write_to_file(logger, f'error: {error}')
        raise
    except Exception:
        write_to_file(logger, traceback.format_exc())
        raise
    shut_down()


def write_to_file(logger: Any, text: str) -> None:
    """Into the log file only: the console gets to know what ended the training anyway."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))


if __name__ == '__main__':
    run_command(main, 'interrupted; --auto-resume goes on from the last checkpoint')
