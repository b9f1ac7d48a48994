"""A toy detector, data set and loader that the engine's tests train: everything duck-typed, nothing of models/."""
from __future__ import annotations

import logging

import numpy as np
import torch
from torch import nn

from boxdet.datasets import build_dataloader
from boxdet.engine.schedule import build_optimizer, build_update_step
from boxdet.registry import RUNNERS
from boxdet.structures.instances import Instances


class ToyDetector(nn.Module):
    """A convolution, batch norm and dropout: weights, buffers and random numbers, as a real one has."""

    def __init__(self, drop: float = 0.5):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(4, 2)
        self.CLASSES = ('a', 'b')

    def forward(self, batch, mode='loss', rescale=True):
        features = self.drop(self.bn(self.conv(batch.images)).relu()).mean(dim=(2, 3))
        out = self.head(features)
        if mode == 'predict':
            return [Instances(num_classes=2, bboxes=torch.zeros(1, 4), scores=row.softmax(0).max()[None],
                              labels=row.argmax()[None]) for row in out]
        target = torch.stack([gt.labels[0] for gt in batch.gt])
        loss = nn.functional.cross_entropy(out, target)
        return dict(loss_cls=loss, loss_levels=[out.square().mean() * 0.1, out.abs().mean() * 0.1],
                    acc=(out.argmax(1) == target).float().mean())


class ToyDataset:
    """Random images whose class is the sign of their mean; the same at every index. Those in ``bad`` are all NaN."""
    CLASSES = ('a', 'b')

    def __init__(self, length=8, bad=()):
        self.length, self.bad = length, set(bad)
        self.flag = np.zeros(length, dtype=np.uint8)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        label = int(image.mean() > 0)
        image = image * float('nan') if index in self.bad else image + 0.01 * np.random.randn()
        meta = dict(filename=f'img_{index}.jpg', ori_shape=(8, 8, 3), img_shape=(8, 8, 3), pad_shape=(8, 8, 3))
        return dict(img=image.float(), img_metas=meta, gt_bboxes=np.zeros((1, 4), np.float32),
                    gt_labels=np.array([label]))


def toy_loader(length=8, batch=2, shuffle=True, bad=(), workers=0, seed=0, **kwargs):
    """The real loader and sampler over the toy images."""
    return build_dataloader(ToyDataset(length, bad), batch, workers, shuffle=shuffle, seed=seed, **kwargs)


def toy_runner(work_dir, max_epochs=2, max_iters=None, hooks=(), optimizer=None, optimizer_config=None, model=None,
               loader=None, seed=0, fp16=None, **kwargs):
    """A runner over the toy, seeded, with ``hooks``. Every rank may call it."""
    torch.manual_seed(seed)
    model = ToyDetector() if model is None else model
    optim = build_optimizer(model, optimizer or dict(type='SGD', lr=0.1, momentum=0.9))
    length = dict(type='EpochBasedRunner', max_epochs=max_epochs) if max_iters is None \
        else dict(type='IterBasedRunner', max_iters=max_iters)
    loader = loader or toy_loader(runner_type=length['type'])
    runner = RUNNERS.build(length, model=model, train_loader=loader, work_dir=work_dir,
                           update_step=build_update_step(optim, optimizer_config, fp16), timestamp='20200101_000000',
                           logger=logging.getLogger('boxdet'), meta=dict(CLASSES=('a', 'b'), seed=seed), **kwargs)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def weights(runner):
    """A copy of the runner's model's state."""
    return {k: v.clone() for k, v in runner.model.state_dict().items()}


def same(a, b):
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
