"""Results that ``tools/test.py --out`` saved, beside their data set: what every tool for them begins with."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from boxdet.apis.output_names import located
from boxdet.datasets import build_dataset, inference_settings
from boxdet.datasets.contracts import Dataset
from boxdet.datasets.custom import CustomDataset
from boxdet.engine.config import Config, load_config
from boxdet.errors import ConfigError
from boxdet.evaluation import load_results
from boxdet.evaluation.evaluate import aligned
from boxdet.structures.instances import Fields, Instances
from boxdet.structures.masks import BitmapMasks
from boxdet.visualization.draw import read_image


def open_results(config: str | os.PathLike, results_file: str | os.PathLike,
                 cfg_options: Sequence[str] | None = None) -> tuple[Config, CustomDataset, Sequence[Instances]]:
    """The config, the data set of its ``data.test``, and the results, checked against it.

    Raises:
        ConfigError: no ``data.test``. DataError: results that do not fit the data set, or no results file.
    """
    cfg = load_config(config, cfg_options)
    test = (cfg.get('data') or {}).get('test')
    if not test:
        raise ConfigError(f'{config} has no data.test')
    results = load_results(results_file)
    dataset = build_dataset(inference_settings(test, 1)[0], dict(test_mode=True))
    return cfg, dataset, aligned(dataset, results)


def ground_truth(dataset: Dataset, index: int) -> Instances:
    """The objects of image ``index`` to draw, with their masks where the annotations have some."""
    info, entry = dataset.get_ann_info(index), dataset.img_info(index)
    fields: Fields = dict(
        bboxes=np.asarray(info['bboxes'], np.float32).reshape(-1, 4),
        labels=np.asarray(info['labels'], np.int64))
    masks = info.get('masks')
    if masks and all(masks) and entry.get('height'):
        fields['masks'] = BitmapMasks.from_coco(masks, entry['height'], entry['width'], info.get('names'))
    return Instances(**fields)


def image_of(dataset: Dataset, index: int, image_hw: tuple[int, int] | None = None) -> tuple[str, np.ndarray]:
    """The name of image ``index`` in the data set, and the image (H, W, 3) uint8 in BGR order.

    Args:
        dataset: wrappers included.
        index: place in it.
        image_hw: it is read as it was for a result of this size (see ``read_image``).
    """
    part, index = located(dataset, index)
    name = part.img_info(index)['filename']
    return name, read_image(Path(getattr(part, 'img_prefix', None) or '') / name, image_hw)
