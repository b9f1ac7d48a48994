#!/usr/bin/env python
"""Time the stock train pipelines on real images, in one process with one thread.

    python benchmarks/data_pipeline.py --data ../shared/data/coco_mini [--rounds 7] [--rois 128] [--json out.json]

Prints milliseconds per image and the ratio to the floor: the file's bytes, cv2 decode and cv2 resize to the same size.
Every image goes through all parts one after the other before the next; each image's figure is its median over the
rounds, and the mean over the images is printed.

'boxes' and 'masks' are the pipelines of faster_rcnn_r50_fpn_1x_coco and mask_rcnn_r50_fpn_1x_coco as the loader runs
them. What they leave for later is timed apart, and added in the lines with a +:
    masks        drawing the polygons and cutting a 28x28 target for every ground-truth box
    normalise    making float32 of the uint8 batch and filling up its padding (on a GPU this is the GPU's work)
    collate      turning BGR into RGB and copying the image into the batch
    targets      cutting --rois targets an image, as many as a training step samples at most; every toolbox does this
                 in the training step, so it belongs to no pipeline
'dataset[i]' is the same pipeline when a user indexes the data set: normalised and padded float32 images.
"""
import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from boxdet.datasets import build_dataset  # noqa: E402
from boxdet.datasets.collate import collate  # noqa: E402
from boxdet.engine.config import load_config  # noqa: E402
from boxdet.geometry.masks import rescaled_hw  # noqa: E402

CONFIGS = {'boxes': 'configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py',
           'masks': 'configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'}


def open_dataset(config: str, data: Path):
    """The config's training set with its own pipeline, on the images in ``data``."""
    train = load_config(ROOT / config).data.train
    return build_dataset({**train, 'ann_file': str(data / 'annotations/instances_train2017.json'),
                          'img_prefix': str(data / 'train2017')})


def floor(path: str) -> tuple[int, ...]:
    """Decode and resize, nothing else."""
    image = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)
    height, width = rescaled_hw(image.shape[:2], (1333, 800))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).shape


def rois_of(sample: dict, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` boxes around the objects, as positives of a trained RPN lie, and the object of each."""
    rng = np.random.default_rng(0)
    boxes = sample['gt_bboxes'].numpy()
    if not len(boxes):
        return np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    index = np.arange(count) % len(boxes)
    size = np.tile(boxes[index, 2:] - boxes[index, :2], 2)
    return (boxes[index] + rng.normal(0, 0.08, (count, 4)) * size).astype(np.float32), index


def targets_of_boxes(sample: dict) -> torch.Tensor:
    """One target for every ground-truth box; draws the masks."""
    return sample['gt_masks'].roi_targets(sample['gt_bboxes'], (28, 28), np.arange(len(sample['gt_bboxes'])))


def measure(datasets: dict, path: str, index: int, rois: int) -> dict[str, float]:
    """Every part once on one image: seconds by part."""
    times, sample, batch = {}, None, None

    def timed(name: str, function: Callable) -> Any:
        start = time.perf_counter()
        result = function()
        times[name] = time.perf_counter() - start
        return result

    timed('floor', lambda: floor(path))
    for name, dataset in datasets.items():
        sample = timed(name, functools.partial(dataset.sample, index, compact=True))
    batch = timed('collate', lambda: collate([sample]))
    timed('normalise', lambda: batch.to('cpu'))
    timed('masks, put off', lambda: targets_of_boxes(sample))
    boxes, owners = rois_of(sample, rois)
    timed('targets', lambda: sample['gt_masks'].roi_targets(boxes, (28, 28), owners))
    for name, dataset in datasets.items():
        timed(f'dataset[i], {name}', functools.partial(dataset.__getitem__, index))
    return times


def report(times: dict[str, float]) -> dict[str, float]:
    """Add the sums and print all; milliseconds by part."""
    times['masks + masks, put off'] = times['masks'] + times['masks, put off']
    times['boxes + collate + normalise'] = times['boxes'] + times['collate'] + times['normalise']
    times['masks + all put off'] = times['masks + masks, put off'] + times['collate'] + times['normalise']
    goals = {'boxes': 1.4, 'masks + masks, put off': 1.8}
    for name, value in times.items():
        goal = f'   (goal {goals[name]}x)' if name in goals else ''
        print(f'{name:28s} {value:7.2f} ms {value / times["floor"]:6.2f}x{goal}')
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared/data/coco_mini')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--rois', type=int, default=128, help='sampled positives of an image')
    parser.add_argument('--json', type=Path, help='also write the medians there')
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    datasets = {name: open_dataset(config, args.data) for name, config in CONFIGS.items()}
    first = datasets['boxes']
    paths = [str(args.data / 'train2017' / first.img_info(i)['filename']) for i in range(len(first))]
    rounds = [[measure(datasets, path, i, args.rois) for i, path in enumerate(paths)]
              for _ in range(args.rounds + 1)][1:]  # the first one warms the file cache
    print(f'{len(paths)} images, {args.rounds} rounds, OpenCV {cv2.__version__}, torch {torch.__version__}, '
          f'numpy {np.__version__}')
    medians = {name: statistics.fmean(statistics.median(r[i][name] for r in rounds) for i in range(len(paths))) * 1e3
               for name in rounds[0][0]}
    medians = report(medians)
    if args.json:
        args.json.write_text(json.dumps(medians, indent=1))


if __name__ == '__main__':
    main()
