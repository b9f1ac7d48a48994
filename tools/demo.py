#!/usr/bin/env python
"""Train a Mask R-CNN from scratch on a data set that is drawn for it, and show what it learned: `make demo`.

    python tools/demo.py                            all of it; everything goes to work_dirs/demo
    python tools/demo.py --data DIR --work-dir DIR  another folder for the images, another one for the results
    python tools/demo.py --cfg-options runner.max_epochs=2

It draws the data set when it is not there, trains (a line with losses, learning rate and the time that is left every
few seconds), evaluates boxes and masks on the val split now and then and at the end, and draws predictions beside the
ground truth and the curves of the training. A rerun starts afresh: what an earlier run left in the work_dir is deleted
first.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the checkout also works when it is not installed

from boxdet.errors import CommandParser, UserError, run_command  # noqa: E402 - after the path is set

CONFIG = ROOT / 'configs/shapes/mask_rcnn_r18w32_fpn_shapes.py'
# What a run writes into its work_dir, and a rerun deletes; anything else in there is left alone.
OWN_FILES = ('epoch_*.pth', 'latest.pth', '*.log', '*.log.json', 'mask_rcnn_r18*_fpn_shapes.py', 'metrics.json',
             'predictions.png', 'curves.png')
SHOWN_IMAGES, ENLARGED = 12, 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Draw a data set, train Mask R-CNN on it, evaluate and show it.',
                           epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=str(CONFIG), metavar='FILE',
                        help='config to train (default: the shapes one)')
    parser.add_argument('--data', default='data/shapes', metavar='DIR', help='the data set (default: %(default)s)')
    parser.add_argument('--work-dir', default='work_dirs/demo', metavar='DIR',
                        help='where everything goes (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of weights and order (default: %(default)s)')
    parser.add_argument('--device', help='cpu, cuda:0, ... (default: a GPU if there is one, else the CPU)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    return parser.parse_args(argv)


def draw_data_set(folder: Path) -> None:
    """Have tools/make_shapes.py draw the data set where it is not there yet, whatever its settings.

    Raises:
        UserError: the folder cannot be written.
    """
    if all((folder / 'annotations' / f'instances_{split}.json').is_file() for split in ('train', 'val')):
        return
    spec = importlib.util.spec_from_file_location('make_shapes', Path(__file__).with_name('make_shapes.py'))
    make_shapes = sys.modules['make_shapes'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_shapes)
    if make_shapes.main(['--out', str(folder)]) != 0:
        raise UserError(f'the data set could not be drawn into {folder}')


def read_config(args: argparse.Namespace) -> Any:
    """The config with this run's folders and seed in it, checked."""
    from boxdet.engine.config import check_config, load_config

    options = [f'data.{split}.{key}={args.data}/{path}' for split, folder in (('train', 'train'), ('val', 'val'),
                                                                              ('test', 'val'))
               for key, path in (('ann_file', f'annotations/instances_{folder}.json'), ('img_prefix', f'{folder}/'))]
    cfg = load_config(args.config, options + (args.cfg_options or []))
    cfg.work_dir, cfg.seed = args.work_dir, args.seed
    if cfg.runner.max_epochs % cfg.evaluation.interval:  # other numbers given: the end is evaluated all the same
        cfg.evaluation.interval = cfg.runner.max_epochs
    if args.device:
        cfg.device = args.device
    check_config(cfg)
    return cfg


def start_afresh(work_dir: Path) -> None:
    """Make the work_dir, without what an earlier run left in it."""
    work_dir.mkdir(parents=True, exist_ok=True)
    for pattern in OWN_FILES:
        for path in work_dir.glob(pattern):
            path.unlink()


def train(cfg: Any, timestamp: str) -> None:
    """Train and evaluate as ``cfg`` says; logs and checkpoints go to its work_dir."""
    from boxdet.apis import set_random_seed, train_detector
    from boxdet.datasets import build_dataset
    from boxdet.engine.environment import setup_logger, setup_processes
    from boxdet.models import build_detector

    setup_processes(cfg)
    setup_logger(Path(cfg.work_dir) / f'{timestamp}.log', cfg.log_level)
    cfg.dump(str(Path(cfg.work_dir) / CONFIG.name))
    set_random_seed(cfg.seed)
    model = build_detector(cfg.model)
    model.init_weights()
    train_detector(model, build_dataset(cfg.data.train), cfg, validate=True, timestamp=timestamp)


def write_metrics(log: Path, out_file: Path) -> dict[str, float]:
    """Write the last epoch's box and mask AP, those of latest.pth, from the JSON log."""
    from boxdet.visualization.figures import read_log

    last = read_log(log)[1][-1]
    metrics = {key: last[key] for key in ('bbox_mAP', 'segm_mAP')}
    out_file.write_text(json.dumps(metrics) + '\n')
    return metrics


def draw_predictions(cfg: Any, checkpoint: Path, out_file: Path) -> None:
    """A sheet of val images that have objects: what is there beside what the detector finds, enlarged."""
    import numpy as np

    from boxdet.apis import inference_detector, init_detector
    from boxdet.datasets import build_dataset
    from boxdet.structures.instances import Instances
    from boxdet.structures.masks import BitmapMasks
    from boxdet.visualization.draw import read_image, write_image
    from boxdet.visualization.figures import image_grid

    dataset = build_dataset(cfg.data.val, dict(test_mode=True))
    model = init_detector(cfg, str(checkpoint), device=cfg.get('device') or 'cpu')
    images = []
    for index in range(len(dataset)):
        found, info = dataset.get_ann_info(index), dataset.img_info(index)
        if len(images) == 2 * SHOWN_IMAGES or not len(found['bboxes']):
            continue
        image = read_image(Path(dataset.img_prefix) / info['filename'])
        truth = Instances(bboxes=found['bboxes'], labels=np.asarray(found['labels']),
                          masks=BitmapMasks.from_coco(found['masks'], *image.shape[:2]))
        for instances in (truth, inference_detector(model, image)):
            images.append(draw_enlarged(image, instances, dataset.CLASSES))
    titles = ['ground truth', 'predicted'] * (len(images) // 2)
    write_image(image_grid(images, columns=6, titles=titles), out_file)


def draw_enlarged(image: Any, instances: Any, classes: Any) -> Any:
    """The image with its instances at ENLARGED times its size, so that names and scores can be read."""
    import cv2

    from boxdet.visualization.draw import draw_instances

    height, width = (ENLARGED * side for side in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    instances = instances.replace(bboxes=instances.bboxes * ENLARGED, masks=instances.masks.resize((height, width)))
    return draw_instances(image, instances, classes, score_thr=0.6)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    began, work_dir, timestamp = time.monotonic(), Path(args.work_dir), time.strftime('%Y%m%d_%H%M%S')
    print('1 of 3: the data set', flush=True)
    draw_data_set(Path(args.data))
    cfg = read_config(args)
    start_afresh(work_dir)
    print('2 of 3: training; "eta" at the head of each line is the time that is left, h:mm:ss', flush=True)
    train(cfg, timestamp)

    print('3 of 3: predictions and curves', flush=True)
    from boxdet.visualization.figures import training_curves

    log, checkpoint = work_dir / f'{timestamp}.log', work_dir / 'latest.pth'
    metrics = write_metrics(work_dir / f'{timestamp}.log.json', work_dir / 'metrics.json')
    draw_predictions(cfg, checkpoint, work_dir / 'predictions.png')
    training_curves(work_dir / f'{timestamp}.log.json', work_dir / 'curves.png', 'Mask R-CNN R18-FPN on shapes')
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f'\nbox mAP {metrics["bbox_mAP"]:.3f}, mask mAP {metrics["segm_mAP"]:.3f} on val '
          f'after {minutes} min {seconds} s\n'
          f'  images    {work_dir / "predictions.png"}\n'
          f'  curves      {work_dir / "curves.png"}\n'
          f'  log         {log}\n'
          f'  checkpoint  {checkpoint}\n'
          f'  metrics     {work_dir / "metrics.json"}')


if __name__ == '__main__':
    run_command(main, 'interrupted; a rerun starts afresh')
