"""Look at a config, its model and its data as a training does before the first step; nothing is trained or written.

    python tools/check.py CONFIG
    python tools/check.py CONFIG --data my.json

What is found stands in docs/checks.md with its code: warnings are printed; an error ends the check with status 2.
"""
from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Everything heavier is imported in main.
from boxdet.errors import CommandParser, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = CommandParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one')
    parser.add_argument('--data', nargs='+', metavar='FILE', help='COCO files, as in tools/train.py')
    parser.add_argument('--images', nargs='+', metavar='DIR', default=(), help='the folders of their images')
    parser.add_argument('--no-validate', action='store_true', help='without data.val')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.apis.train import check_before_training, runner_config
    from boxdet.datasets import build_dataset
    from boxdet.engine.config import check_config, load_config
    from boxdet.engine.environment import setup_logger
    from boxdet.engine.own_data import use_data
    from boxdet.engine.preflight import check_schedule
    from boxdet.models import build_detector

    logger = setup_logger(level='WARNING')
    cfg = load_config(args.config, args.cfg_options)
    for line in use_data(cfg, args.data, args.images) if args.data else ():
        print(line)
    check_config(cfg, needed=('model', 'data.train', 'optimizer'))
    model = build_detector(cfg.model, train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))
    dataset = build_dataset(cfg.data.train)
    validation, _ = check_before_training(model, dataset, cfg, not args.no_validate)
    length, options = runner_config(cfg), {**cfg.data, **(cfg.data.get('train_dataloader') or {})}
    # images of an update, in one process
    images = options.get('samples_per_gpu', 1) * (cfg.get('optimizer_config') or {}).get('cumulative_iters', 1)
    evaluation = None if validation is None else cfg.get('evaluation') or {}
    check_schedule(model, cfg, length, cfg.get('lr_config'), evaluation,
                   math.ceil(len(dataset) / images) if 'max_epochs' in length else None)
    logger.handlers[0].flush()
    print(f'{args.config}: a training can begin ({len(dataset)} images'
          f'{"" if validation is None else f", {len(validation)} to evaluate on"})')


if __name__ == '__main__':
    run_command(main)
