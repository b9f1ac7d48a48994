#!/usr/bin/env python
"""Write docs/model_zoo.md: every config with its parameters, GFLOPs, the published AP that it aims at, and weights.

    python tools/analysis_tools/model_zoo.py                      the whole table anew, about a minute
    python tools/analysis_tools/model_zoo.py --check              only say which configs the table lacks
    python tools/analysis_tools/model_zoo.py --metafiles FOLDER   first read mmdetection's configs/*/metafile.yml

The published figures stand in docs/published_ap.json, by source.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from boxdet.checkpoints import zoo  # noqa: E402
from boxdet.errors import CommandParser, DataError, run_command  # noqa: E402

CONFIGS, TABLE, PUBLISHED = ROOT / 'configs', ROOT / 'docs/model_zoo.md', ROOT / 'docs/published_ap.json'
METRICS = {'box AP': 'box', 'mask AP': 'mask'}  # of metafile.yml
SHOWN = ('box', 'mask', 'keypoint', 'AR@1000')
HEAD = """# Model zoo

Every config of `configs/`, written by `tools/analysis_tools/model_zoo.py`.

**These are aims, not results.** *Published* is the figure of the project whose training the config repeats: what a
training with it aims at, on the data set of its folder (COCO val2017 unless the name says otherwise), in percent. Where
it is empty no source was at hand. [results.md](results.md) has what was trained and measured with boxdet.

*M*: millions of parameters. *GFLOPs*: `tools/analysis_tools/get_flops.py` at the size given, a multiplication with its
addition counted as one; convolutions and matrix products for as many rois as `test_cfg` lets through (for COCO 1,000
proposals and 100 detections).

*Weights*: the published file, by what its SHA-256 begins with where its name tells that (or its MD5, where the project
tells that); `zoo://NAME` loads it ([weights.md](weights.md)).

[families.md](families.md) says what each family is. One-stage detectors, DETR and its kin, Sparse R-CNN and QueryInst,
panoptic segmentation and tracking are out of scope.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__.partition('\n\n')[0], epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true',
                        help='write nothing; status 2 where configs are missing in the table')
    parser.add_argument('--metafiles', metavar='FOLDER', help="mmdetection's configs folder, with metafile.yml files")
    return parser.parse_args(argv)


def config_names() -> list[str]:
    """Configs that train a model, relative to configs/, sorted."""
    names = (path.relative_to(CONFIGS) for path in CONFIGS.rglob('*.py'))
    return sorted(str(name) for name in names if name.parts[0] not in ('_base_', 'common'))


def listed_names(text: str) -> set[str]:
    """The configs that the table lists."""
    rows = (line.split('|')[1].strip() for line in text.splitlines() if line.startswith('| ['))
    return {row.partition('](../configs/')[2].rstrip(')') for row in rows}


# ---------------------------------------------------------------------------------------------- published figures


def read_metafiles(folder: Path) -> dict[str, dict[str, float]]:
    """Box AP and mask AP by config from mmdetection's metafile.yml files, for configs that are here.

    Raises:
        DataError: there are none in ``folder``.
    """
    import yaml

    paths, known, found = sorted(folder.glob('*/metafile.yml')), set(config_names()), {}
    if not paths:
        raise DataError(f'{folder}: no */metafile.yml in it')
    for path in paths:
        content = yaml.safe_load(path.read_text())
        for model in content.get('Models', []) if isinstance(content, dict) else content:
            name = (model.get('Config') or '').removeprefix('configs/')
            for result in model.get('Results') or [] if name in known else []:
                found.setdefault(name, {}).update({METRICS[key]: value for key, value in result['Metrics'].items()
                                                   if key in METRICS})
    for name, figures in found.items():
        if 'faster_rcnn' in name:
            figures.pop('mask', None)  # CARAFE's metafile has one
    return {name: figures for name, figures in sorted(found.items()) if figures}  # of an RPN recalls alone are known


def published_figures() -> dict[str, tuple[dict[str, float], str]]:
    """Figures and source by config."""
    sources = json.loads(PUBLISHED.read_text())
    return {name: (figures, source['source']) for source in sources for name, figures in source['figures'].items()}


# ---------------------------------------------------------------------------------------------- measured figures


def input_size(cfg: Any) -> tuple[int, int]:
    """(width, height) to count at: 1280 x 800, as all tables do, for the usual scale; otherwise the config's own."""
    scale = next(step['img_scale'] for step in cfg.data.test.pipeline if 'img_scale' in step)
    scale = scale[0] if isinstance(scale, list) else scale
    if tuple(scale) == (1333, 800):
        return 1280, 800
    return tuple(-(-side // 32) * 32 for side in scale)


def measure(names: list[str]) -> dict[str, tuple[float, float, tuple[int, int]]]:
    """(millions of parameters, GFLOPs, size) by config; models that several configs share are counted once."""
    import torch

    from boxdet.engine.config import load_config
    from boxdet.models import build_detector
    from boxdet.models.complexity import count_operations, count_parameters

    counted, figures = {}, {}
    for name in names:
        cfg = load_config(CONFIGS / name)
        size = input_size(cfg)
        key = (repr(cfg.model), size)
        if key not in counted:
            with torch.device('meta'):
                model = build_detector(cfg.model)
            counts = count_operations(model, size[1], size[0])
            counted[key] = count_parameters(model) / 1e6, sum(counts.values()) / 1e9
        figures[name] = (*counted[key], size)
    return figures


def link_to(entry: zoo.Entry) -> str:
    """A link to published weights that shows how their hash begins."""
    digits = re.search(r'-([0-9a-f]{8,})\.\w+$', entry['weights'])
    shown = digits[1] if digits else f'MD5 {entry["md5"]}' if 'md5' in entry else 'no hash'
    return f'[{shown}]({entry["weights"]})'


def table(names: list[str], figures: dict, published: dict[str, tuple[dict[str, float], str]]) -> str:
    """The markdown, one section a folder."""
    sources = list(dict.fromkeys(source for _, source in published.values()))
    weights = {entry['config']: link_to(entry) for entry in zoo.entries().values()}
    parts = [HEAD, 'Sources of the published figures:\n', *(f'{i}. {source}' for i, source in enumerate(sources, 1))]
    for folder in dict.fromkeys(name.split('/')[0] for name in names):
        parts += [f'\n## {folder}\n', '| config | M | GFLOPs | size | published | source | weights |', '|---' * 7 + '|']
        for name in (name for name in names if name.split('/')[0] == folder):
            millions, gflops, (width, height) = figures[name]
            aims, source = published.get(name, ({}, ''))
            aim = ', '.join(f'{metric} {aims[metric]:.1f}' for metric in SHOWN if metric in aims)
            number = sources.index(source) + 1 if source else ''
            parts.append(f'| [{Path(name).stem}](../configs/{name}) | {millions:.1f} | {gflops:.1f} | '
                         f'{width} x {height} | {aim} | {number} | {weights.get(name, "")} |')
    return '\n'.join(parts) + '\n'


def main(argv: list[str] | None = None) -> None:
    args, names = parse_args(argv), config_names()
    if args.check:
        missing = [name for name in names if name not in listed_names(TABLE.read_text())]
        if missing:
            raise DataError(f'{TABLE.name} lacks {", ".join(missing)}: run tools/analysis_tools/model_zoo.py')
        return
    if args.metafiles:
        sources = json.loads(PUBLISHED.read_text())
        sources[0]['figures'] = read_metafiles(Path(args.metafiles))
        PUBLISHED.write_text(json.dumps(sources, indent=1) + '\n')
    TABLE.write_text(table(names, measure(names), published_figures()))
    print(f'{TABLE}: {len(names)} configs')


if __name__ == '__main__':
    run_command(main)
