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
import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, run_command  # noqa: E402

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
# Of the tables of Detectron and detectron2: where the name of a config stands in an address, and the columns' figures.
# detectron2's file names end in the first six digits of the file's MD5.
_TABLES = {
    'Detectron': re.compile(r'/(e2e_\w+_rcnn_[\w-]+?)(?:\.yaml\.|_\d{4}\.)\d\d_'),
    'detectron2': re.compile(r'/(?:COCO-\w+|Misc)/(\w+_rcnn_\w+)/\d+/model_final_(?P<md5>[0-9a-f]{6})\.pkl$')}
_COLUMNS = {'boxAP': 'box', 'maskAP': 'mask', 'kpAP': 'keypoint', 'kp.AP': 'keypoint'}
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
    collect = commands.add_parser('collect', help='write boxdet/zoo.json anew: entries that no source has stay')
    collect.add_argument('--metafiles', type=Path, metavar='DIR', help="mmdetection's configs, with */metafile.yml")
    collect.add_argument('--tables', type=Path, nargs='+', default=[], metavar='FILE',
                         help='MODEL_ZOO.md of Detectron and detectron2, projects/GN/README.md of Detectron')
    return parser.parse_args(argv)


def collect(metafiles: Path | None, tables: Sequence[Path]) -> dict[str, Any]:
    """Entries of every shipped config that a source, or the table above, has weights for."""
    from boxdet.checkpoints import zoo

    shipped = {path.stem: path.relative_to(ROOT / 'configs').as_posix() for path in (ROOT / 'configs').rglob('*.py')
               if '_base_' not in path.parts}
    found: dict[str, Any] = {name: entry for name, entry in zoo.entries().items() if name in shipped}
    for path in sorted(metafiles.glob('*/metafile.yml')) if metafiles else ():
        found.update(_of_metafile(path, shipped))
    for path in tables:
        found.update(_of_table(path.read_text(encoding='utf-8'), shipped))
    for config, (weights, project, metrics) in _OTHERS.items():
        found[Path(config).stem] = dict(config=config, weights=weights, project=project, metrics=metrics)
    return dict(sorted(found.items()))


def _of_metafile(path: Path, shipped: dict[str, str]) -> dict[str, Any]:
    import yaml

    content = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    found = {}
    for model in content.get('Models', []) if isinstance(content, dict) else content:
        short = Path(model.get('Config', '')).stem
        if short in shipped and model.get('Weights'):
            metrics = {_METRICS[key]: value for result in model.get('Results') or []
                       for key, value in (result.get('Metrics') or {}).items() if key in _METRICS}
            found[short] = dict(config=shipped[short], weights=model['Weights'], project='mmdetection', metrics=metrics)
    return found


def _of_table(text: str, shipped: dict[str, str]) -> dict[str, Any]:
    """The rows of the tables (HTML) in a page whose link is to the weights of a shipped config."""
    found = {}
    for table in re.findall(r'<table.*?</table>', text, re.DOTALL):
        heads = [_plain(cell) for cell in re.findall(r'<th\b.*?</th>', table, re.DOTALL)]
        for row in re.findall(r'<tr>.*?</tr>', table, re.DOTALL):
            link = re.search(r'href="(\S+?)">\s*model', row)
            for project, pattern in _TABLES.items() if link else ():
                match = pattern.search(link[1])  # type: ignore[index]  # there is one
                if match and match[1] in shipped:
                    cells = [_plain(cell) for cell in re.findall(r'<td\b.*?</td>', row, re.DOTALL)]
                    metrics = {_COLUMNS[head]: float(cell) for head, cell in zip(heads, cells)
                               if head in _COLUMNS and re.fullmatch(r'[\d.]+', cell)}
                    found[match[1]] = dict(config=shipped[match[1]], weights=link[1], project=project, metrics=metrics,
                                           **match.groupdict())  # type: ignore[index]
    return found


def _plain(cell: str) -> str:
    return ''.join(html.unescape(re.sub(r'<[^>]*>', '', cell)).split())


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.checkpoints import zoo

    if args.command == 'collect':
        from boxdet.files.writing import write_whole
        found = collect(args.metafiles, args.tables)
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
