#!/usr/bin/env python
"""Count a model's parameters and its multiplications on one image, part by part; no weights and no data are needed.

python tools/analysis_tools/get_flops.py configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py --shape 1280 800
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, ConfigError, run_command

WHAT = """
Counted, at inference: convolutions (deformable ones too) and matrix products, for as many rois as test_cfg lets
through: rpn.max_per_img proposals in the box heads, rcnn.max_per_img detections in the mask and keypoint heads. A
multiplication with its addition counts as one, as in the published tables of mmdetection. Not counted: norms,
activations, roi pooling, NMS.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__, epilog=WHAT,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('--shape', nargs='+', type=int, default=[1280, 800], metavar='PX',
                        help='width and height of the network input, or one number for both (default: 1280 800)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    args = parser.parse_args(argv)
    if len(args.shape) > 2 or min(args.shape) < 1:
        raise ConfigError(f'--shape {" ".join(map(str, args.shape))}: it is WIDTH HEIGHT, or one number for both')
    args.width, args.height = args.shape if len(args.shape) == 2 else args.shape * 2
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import torch

    from boxdet.engine.config import check_config, load_config
    from boxdet.models import build_detector
    from boxdet.models.complexity import count_operations, count_parameters

    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg)
    with torch.device('meta'):
        model = build_detector(cfg.model)
    counts = count_operations(model, args.height, args.width)
    for part, count in counts.items():
        print(f'{part:14} {count / 1e9:10.2f} GFLOPs')
    size = f'{args.width} x {args.height}'
    print(f'{"all":14} {sum(counts.values()) / 1e9:10.2f} GFLOPs at {size} (a multiply-add counts as one)')
    print(f'{"parameters":14} {count_parameters(model) / 1e6:10.2f} M')


if __name__ == '__main__':
    run_command(main)
