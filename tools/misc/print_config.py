#!/usr/bin/env python3
"""Print a config as it stands after its bases and options, or tell where one of its values comes from."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, run_command

EXAMPLES = """
examples:
  the whole config, every base merged in
    python tools/misc/print_config.py configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py
  which file sets a value, and what it overrode
    python tools/misc/print_config.py configs/mask_rcnn/mask_rcnn_r101_fpn_1x_coco.py --explain model.backbone.depth
  what an option would change; numbers reach into lists
    python tools/misc/print_config.py CONFIG --cfg-options data.train.pipeline.2.img_scale="(640, 480)" \\
        --explain data.train.pipeline.2
  a config of mmdetection 3.x as boxdet reads it
    python tools/misc/print_config.py my_mmdet3_config.py --to 2.x > mine.py
  is every key one that something reads?
    python tools/misc/print_config.py CONFIG --check
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__, epilog=EXAMPLES,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file: .py, .json or .yaml')
    parser.add_argument('--cfg-options', '--options', nargs='+', default=[], metavar='KEY=VALUE', dest='options',
                        help='set these keys first, as the other tools do (--options is the older name)')
    parser.add_argument('--explain', metavar='KEY', help='only this key, such as model.roi_head.bbox_head.num_classes: '
                        'its value, the file and line that set it, and what was overridden; of a config of mmdetection '
                        '3.x by its key there or here')
    parser.add_argument('--to', choices=['2.x'], help="a config of mmdetection 3.x in mmdetection 2.x's sections; "
                        'without it such a config is printed as it is written')
    parser.add_argument('--check', action='store_true', help='only look for wrong keys and unknown types')
    return parser.parse_args(arguments)


def explanation(cfg: Any, key: str) -> str:
    """The value of ``key`` and, for each value in it, who set it and what that overrode."""
    last: dict[tuple, list] = {}
    for setting in cfg.explain(key):
        last.setdefault(setting.key, []).append(setting)
    lines = []
    for path, settings in last.items():
        lines.append(f"{'.'.join(map(str, path))} = {settings[-1].value!r}")
        lines.append(f'    set by {settings[-1].place}')
        lines += [f'    overrides {old.value!r} ({old.place})' for old in reversed(settings[:-1])]
    return '\n'.join(lines)


def explained(cfg: Any, key: str) -> str:
    """``explanation``; a key that only mmdetection 3.x's form of the config has is looked up there."""
    from boxdet.errors import ConfigError
    try:
        return explanation(cfg, key)
    except ConfigError:
        if cfg.as_written is None:
            raise
        return explanation(cfg.as_written, key)


def main() -> None:
    args = parse_args()
    from boxdet.engine.config import check_config, load_config, refuse_misspelt_options  # here, so that --help is quick
    translate = bool(args.to or args.explain or args.check)
    cfg = load_config(args.config, args.options, import_custom_modules=args.check, translate=translate)
    if args.check:
        check_config(cfg)
        print(f'{args.config}: every key and type is known')
        return
    refuse_misspelt_options(cfg)
    print(explained(cfg, args.explain) if args.explain else cfg.pretty_text, end='\n' if args.explain else '')


if __name__ == '__main__':
    run_command(main)
