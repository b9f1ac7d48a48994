"""Look at what the pipeline makes of a training set: images with the boxes, masks and keypoints that the model gets.

    python tools/misc/browse_dataset.py CONFIG                                  # a window; any key goes on, Esc ends
    python tools/misc/browse_dataset.py CONFIG --output-dir out --not-show --number 20

Steps of --skip-type (normalisation and formatting) are left out, so that colours are the stored ones; --original
leaves out everything after the annotations are loaded. Wrappers (RepeatDataset, ConcatDataset, MultiImageMixDataset,
...) are walked as in training. The number at the end of a file's name is the place in the data set.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boxdet.errors import CommandParser, ConfigError, DataError, run_command

_LOADING = ('LoadImageFromFile', 'LoadAnnotations', 'FilterAnnotations')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Draw what the pipeline makes of a data set.',
                           epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train',
                        help='data.SPLIT; val and test are read with the train pipeline of their own annotations only '
                             'when '
                        'they have one (default: %(default)s)')
    parser.add_argument('--skip-type', nargs='+', default=['DefaultFormatBundle', 'Normalize', 'Collect'],
                        metavar='TYPE',
                        help='steps of the pipeline to leave out (default: %(default)s)')
    parser.add_argument('--original', action='store_true', help='show the images as they are stored')
    parser.add_argument('--output-dir', metavar='DIR', help='write the images there')
    parser.add_argument('--not-show', action='store_true', help='open no window')
    parser.add_argument('--show-interval', type=float, default=0, metavar='SECONDS',
                        help='go on after so many seconds (default: at a key)')
    parser.add_argument('--number', type=int, metavar='N', help='the first N images (default: all)')
    parser.add_argument('--seed', type=int, default=0, help='of the random steps (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    args = parser.parse_args(argv)
    if args.not_show and not args.output_dir:
        raise ConfigError('nothing to do: --not-show without --output-dir DIR')
    if args.number is not None and args.number < 1:
        raise ConfigError(f'--number {args.number}: it is 1 at least')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.datasets import build_dataset
    from boxdet.engine.config import load_config
    from boxdet.engine.environment import set_random_seed
    from boxdet.visualization.draw import show, write_image

    cfg = load_config(args.config, args.cfg_options)
    data = (cfg.get('data') or {}).get(args.split)
    if not data:
        raise ConfigError(f'{args.config} has no data.{args.split}')
    keep = (lambda kind: kind in _LOADING) if args.original else (lambda kind: kind not in args.skip_type)
    dataset = build_dataset(without_steps(data, keep))
    set_random_seed(args.seed)
    count = min(len(dataset), args.number or len(dataset))
    for index in range(count):
        sample = dataset[index]
        image = drawn(sample, dataset)
        name = Path(sample.get('ori_filename') or sample.get('filename') or f'{index}.jpg')
        if args.output_dir:
            write_image(image, Path(args.output_dir) / f'{name.stem}_{index}{name.suffix or ".jpg"}')
        if not args.not_show and show(image, 'browse_dataset', args.show_interval) == 27:
            break
    if args.output_dir:
        print(f'{count} images: {args.output_dir}')


def without_steps(data: Any, keep: Any) -> Any:
    """A copy of a data-set config, wrappers and lists included, with the steps of its pipelines that ``keep`` names."""
    if isinstance(data, (list, tuple)):
        return [without_steps(part, keep) for part in data]
    if not isinstance(data, Mapping):
        return data
    return {key: [step for step in value if keep(step.get('type'))] if key == 'pipeline'
            and isinstance(value, (list, tuple))
            else without_steps(value, keep) if key in ('dataset', 'datasets') else value for key, value in data.items()}


def drawn(sample: Mapping[str, Any], dataset: Any) -> Any:
    """The image of a sample with its objects, and regions to ignore in grey."""
    import numpy as np

    from boxdet.structures.instances import Instances
    from boxdet.visualization.draw import draw_instances

    for key in ('img', 'gt_bboxes', 'gt_labels'):
        if key not in sample:
            raise DataError(f"the sample has no '{key}': leave steps that gather the sample out with --skip-type, and "
                            f"keep "
                            'LoadAnnotations(with_bbox=True) in the pipeline')
    image = np.ascontiguousarray(np.clip(sample['img'], 0, 255).astype(np.uint8))
    ignored = np.asarray(sample.get('gt_bboxes_ignore', ()), np.float32).reshape(-1, 4)
    if len(ignored):
        regions = Instances(bboxes=ignored, labels=np.zeros(len(ignored), np.int64))
        image = draw_instances(image, regions, ['ignored'], bbox_color='gray')
    fields = dict(bboxes=np.asarray(sample['gt_bboxes']), labels=np.asarray(sample['gt_labels']))
    for key, name in (('gt_masks', 'masks'), ('gt_keypoints', 'keypoints')):
        if key in sample:
            fields[name] = sample[key]
    info = info_of(dataset)
    return draw_instances(image, Instances(**fields), info.CLASSES, palette=getattr(info, 'PALETTE', None),
                          skeleton=getattr(info, 'SKELETON', ()))


def info_of(dataset: Any) -> Any:
    """The (first) data set inside wrappers, which knows what its keypoints are."""
    while hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets'):
        dataset = dataset.dataset if hasattr(dataset, 'dataset') else dataset.datasets[0]
    return dataset


if __name__ == '__main__':
    run_command(main)
