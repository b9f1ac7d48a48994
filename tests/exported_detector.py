"""A detector that is exported in seconds: the tiny one with a body of two stages, and results that stand apart."""
from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import torch

from boxdet.apis import init_detector
from boxdet.checkpoints.io import load_checkpoint, save_checkpoint

# Half of the operators to follow.
HALF = [('num_stages=4, out_indices=(0, 1, 2, 3)',
         'num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)'),
        ('in_channels=[64, 128, 256, 512]', 'in_channels=[64, 128]'), ('num_outs=5', 'num_outs=2'),
        ('strides=[4, 8, 16, 32, 64]', 'strides=[4, 8]'), ('featmap_strides=[4, 8, 16, 32]', 'featmap_strides=[4, 8]')]


def distinct(checkpoint: str | os.PathLike, path: str | os.PathLike) -> None:
    """The weights with larger last layers: fresh ones score all alike, and a last bit decides which results stay."""
    content = load_checkpoint(checkpoint)
    for name, value in content['state_dict'].items():
        if name.endswith(('rpn_cls.weight', 'fc_cls.weight', 'conv_logits.weight')):
            value *= 50
        if name.endswith(('rpn_reg.weight', 'fc_reg.weight')):  # boxes that are anchors overlap by round numbers
            value *= 30
    save_checkpoint(content, path)


def write_detector(tiny_detector: SimpleNamespace, folder: Path) -> None:
    """config.py, latest.pth, images, val.json (categories 5, 7, 9) and street.png in ``folder``."""
    config = tiny_detector.config.read_text()
    for whole, half in HALF:
        assert whole in config
        config = config.replace(whole, half)
    (folder / 'config.py').write_text(config)
    torch.manual_seed(0)
    model = init_detector(folder / 'config.py', device='cpu')
    save_checkpoint(dict(meta=dict(CLASSES=model.CLASSES), state_dict=model.state_dict()), folder / 'fresh.pth')
    distinct(folder / 'fresh.pth', folder / 'latest.pth')
    shutil.copytree(tiny_detector.folder / 'images', folder / 'images')
    shutil.copy(tiny_detector.ann_file, folder / 'val.json')
    shutil.copy(tiny_detector.images[0], folder / 'street.png')
