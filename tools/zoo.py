#!/usr/bin/env python3
"""Published weights by name: list them, download them.

    python tools/zoo.py list                           # every config with published weights, and what they reached
    python tools/zoo.py list 'mask_rcnn_r50*'
    python tools/zoo.py download mask_rcnn_r50_fpn_1x_coco

The word zoo also stands in place of a checkpoint's path: init_detector('mask_rcnn_r50_fpn_1x_coco', 'zoo'), or
tools/test.py CONFIG zoo. Files are kept under $BOXDET_HOME/checkpoints, or in torch.hub's folder; their content is
checked against the digits in their names, and what broke off goes on.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout also works when it is not installed

from boxdet.errors import CheckpointError, CommandParser, run_command  # noqa: E402

# Weights that are in no metafile: torchvision's own (torchvision.models.detection), tensorpack's (its README).
_OTHERS = {
    'torchvision/fasterrcnn_resnet50_fpn_coco_v1.py': (
        'https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth', 'torchvision', dict(box=37.0)),
    'torchvision/maskrcnn_resnet50_fpn_coco_v1.py': (
        'https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth', 'torchvision',
        dict(box=37.9, mask=34.6)),
    'torchvision/keypointrcnn_resnet50_fpn_coco_v1.py': (
        'https://download.pytorch.org/models/keypointrcnn_resnet50_fpn_coco-fc266e95.pth', 'torchvision',
        dict(box=54.6, keypoint=65.0)),
    'torchvision/fasterrcnn_resnet50_fpn_v2.py': (
        'https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth', 'torchvision',
        dict(box=46.7)),
    'torchvision/maskrcnn_resnet50_fpn_v2.py': (
        'https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth', 'torchvision',
        dict(box=47.4, mask=41.8)),
} | {f'tensorpack/{config}.py': (f'http://models.tensorpack.com/FasterRCNN/COCO-MaskRCNN-{file}.npz', 'tensorpack',
                                 dict(box=box, mask=mask)) for config, file, box, mask in (
    ('mask_rcnn_R50_C4_1x', 'R50C41x', 36.2, 31.8), ('mask_rcnn_R50_FPN_2x', 'R50FPN2x', 38.9, 35.4),
    ('mask_rcnn_R50_FPN_GN_2x', 'R50FPN2xGN', 40.4, 36.3), ('cascade_mask_rcnn_R50_FPN_1x', 'R50FPN1xCas', 41.7, 36.2),
    ('cascade_mask_rcnn_R50_FPN_GN_4x', 'R50FPN4xGNCasAug', 46.1, 40.1),
    ('mask_rcnn_R101_C4_1x', 'R101C41x', 40.1, 34.6), ('mask_rcnn_R101_FPN_1x', 'R101FPN1x', 40.7, 36.8),
    ('cascade_mask_rcnn_R101_FPN_3x', 'R101FPN3xCasAug', 46.6, 40.3),
    ('cascade_mask_rcnn_R101_FPN_GN_scratch_9x', 'R101FPN9xGNCasAugScratch', 47.7, 41.7))}
_METRICS = {'box AP': 'box', 'mask AP': 'mask', 'AR@1000': 'AR@1000', 'keypoint AP': 'keypoint'}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = CommandParser(description=summary, epilog=details,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, text in (('list', 'print the names, figures and addresses'), ('download', 'download the weights')):
        command = commands.add_parser(name, help=text)
        command.add_argument('patterns', nargs='+' if name == 'download' else '*', metavar='PATTERN',
                             help="a name, a part of one, or a pattern such as 'mask_rcnn_r50*'")
    collect = commands.add_parser('collect', help="write boxdet/zoo.json anew from mmdetection's metafiles")
    collect.add_argument('metafiles', type=Path, help='folder with */metafile.yml, as the wheel of mmdetection has it')
    return parser.parse_args(argv)


def collect(folder: Path) -> dict[str, Any]:
    """Entries of every shipped config that a metafile, or the table above, has weights for."""
    import yaml

    shipped = {path.stem: path.relative_to(ROOT / 'configs').as_posix() for path in (ROOT / 'configs').rglob('*.py')
               if '_base_' not in path.parts}
    found: dict[str, Any] = {}
    for path in sorted(folder.glob('*/metafile.yml')):
        content = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
        for model in content.get('Models', []) if isinstance(content, dict) else content:
            short = Path(model.get('Config', '')).stem
            if short in shipped and model.get('Weights'):
                metrics = {_METRICS[key]: value for result in model.get('Results') or []
                           for key, value in (result.get('Metrics') or {}).items() if key in _METRICS}
                found[short] = dict(config=shipped[short], weights=model['Weights'], project='mmdetection',
                                    metrics=metrics)
    for config, (weights, project, metrics) in _OTHERS.items():
        found[Path(config).stem] = dict(config=config, weights=weights, project=project, metrics=metrics)
    return dict(sorted(found.items()))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.checkpoints import zoo

    if args.command == 'collect':
        from boxdet.files.writing import write_whole
        found = collect(args.metafiles)
        if not found:
            raise CheckpointError(f'{args.metafiles}: no metafile.yml in its folders')
        write_whole(ROOT / 'boxdet/zoo.json', json.dumps(found, indent=1) + '\n')
        print(f'boxdet/zoo.json: {len(found)} entries')
        return
    chosen = zoo.matching(args.patterns)
    if not chosen:
        zoo.entry(args.patterns[0])  # says what is near
    if args.command == 'list':
        for name, entry in chosen.items():
            figures = ', '.join(f'{key} {value}' for key, value in entry['metrics'].items())
            print(f"{name:60s} {entry['project']:12s} {figures:22s} {entry['weights']}")
        print(f'{len(chosen)} of {len(zoo.entries())}', file=sys.stderr)
        return
    from boxdet.checkpoints.io import find_checkpoint
    for name in chosen:
        print(f"{name}: {find_checkpoint(zoo.SCHEME + name)}")


if __name__ == '__main__':
    run_command(main)
