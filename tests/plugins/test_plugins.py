"""Parts as a user writes them, each in a file of its own: a config names it, trains two steps and predicts."""
from __future__ import annotations

import logging
import math
import sys

import pytest
import torch

from boxdet.apis import inference_detector, init_detector
from boxdet.apis.train import train_detector
from boxdet.datasets import build_dataset
from boxdet.engine.config import check_config, load_config
from boxdet.errors import ConfigError
from boxdet.models import build_detector
from tests.test_models import tiny_models

PACKAGE = 'tests.plugins'
NORM = dict(mean=[127.] * 3, std=[50.] * 3, to_rgb=True)
CLASSES = ('circle', 'square', 'triangle', 'star', 'ring', 'stickman')
NUM_VAL = 6


def pipeline(*more: dict) -> list[dict]:
    return [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', img_scale=(96, 64), keep_ratio=True), *more, dict(type='Normalize', **NORM),
            dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]


def views() -> list[dict]:
    return [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(96, 64), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='Normalize', **NORM), dict(type='Pad', size_divisor=32),
        dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])])]


def config(shapes) -> dict:
    def split(name: str, steps: list) -> dict:
        return dict(type='CocoDataset', classes=CLASSES, ann_file=f'{shapes}/annotations/instances_{name}.json',
                    img_prefix=f'{shapes}/{name}/', pipeline=steps)

    model = tiny_models.faster_rcnn()
    model['roi_head']['bbox_head']['num_classes'] = len(CLASSES)
    return dict(
        model=model, optimizer=dict(type='SGD', lr=0.001), runner=dict(type='IterBasedRunner', max_iters=2),
        data=dict(samples_per_gpu=2, workers_per_gpu=0, train=split('train', pipeline()), val=split('val', views()),
                  test=split('val', views())),
        evaluation=dict(interval=2, metric='bbox'), log_config=dict(interval=1, hooks=[dict(type='TextLoggerHook')]),
        custom_hooks=[dict(type='SinkHook', sink=dict(type='s3', parts=[dict(type='Resize', height=3)]))])


class Run:
    """What came of a training: the model, its config, what the hook saw (iteration, losses, labels), the log."""

    def __init__(self, cfg: dict, plugins: list[str], folder, shapes, caplog):
        path = folder / 'config.py'
        imports = [f'{PACKAGE}.{name}' for name in ('sink_hook', *plugins)]
        lines = [f'{key} = {value!r}' for key, value in cfg.items()]
        path.write_text('\n'.join([f'custom_imports = dict(imports={imports!r})', *lines]))
        self.cfg = load_config(path)
        check_config(self.cfg)
        self.cfg.work_dir, self.cfg.device, self.cfg.seed = str(folder / 'work'), 'cpu', 0
        seen = sys.modules[f'{PACKAGE}.sink_hook'].SEEN
        seen.clear()
        torch.manual_seed(0)
        self.model = build_detector(self.cfg.model)
        self.model.init_weights()
        with caplog.at_level(logging.INFO, logger='boxdet'):
            train_detector(self.model, build_dataset(self.cfg.data.train), self.cfg, validate=True)
        self.log = caplog.text
        self.steps = list(seen)
        assert [step for step, _, _ in self.steps] == [0, 1]
        assert all(math.isfinite(value) for _, losses, _ in self.steps for value in losses.values())
        self.result = inference_detector(init_detector(self.cfg, device='cpu'), str(next((shapes / 'val').iterdir())))
        assert self.result.bboxes.shape == (len(self.result), 4)


@pytest.fixture
def run(tmp_path, shapes_dir, caplog):
    logging.getLogger('boxdet').propagate = True
    return lambda cfg, *plugins: Run(cfg, list(plugins), tmp_path, shapes_dir, caplog)


@pytest.fixture
def cfg(shapes_dir):
    return config(shapes_dir)


def test_roi_head(run, cfg):
    cfg['model']['roi_head'] |= dict(type='LargeRoIHead', shape=dict(type='FPN', wide=True))
    cfg['model']['test_cfg']['rcnn'] |= dict(score_thr=0.0, least_area=200.)
    done = run(cfg, 'large_roi_head')
    assert done.model.roi_head.shape == dict(type='FPN', wide=True)
    areas = (done.result.bboxes[:, 2:] - done.result.bboxes[:, :2]).prod(dim=1)
    scale = 96 / done.result.image_size[1]
    assert len(areas) and (areas * scale ** 2 >= 199).all()
    done.cfg.model.test_cfg.rcnn = dict(least_are=1.)
    with pytest.raises(ConfigError, match=r"model\.test_cfg\.rcnn\.least_are\b.*did you mean 'least_area'"):
        check_config(done.cfg)


def test_rpn(run, cfg):
    cfg['model']['rpn_head'] = dict(type='GridRPN', in_channels=16, stride=4)
    cfg['model']['train_cfg'] |= dict(rpn=dict(certainty=0.9), rpn_proposal=dict(count=40, side=24))
    cfg['model']['test_cfg'] |= dict(rpn=dict(count=30, side=24))
    done = run(cfg, 'grid_rpn')
    assert 'loss_grid' in done.steps[0][1] and 'loss_rpn_cls' not in done.steps[0][1]
    assert done.model.rpn_head.test_cfg == dict(count=30, side=24)


def test_backbone(run, cfg):
    stem = dict(type='ResNet', patch=4, channels=8)
    cfg['model']['backbone'] = dict(type='PatchNet', stem=stem, one=8, two=16, three=32, four=64)
    done = run(cfg, 'patch_backbone')
    assert [step[0].out_channels for step in done.model.backbone.steps] == [8, 16, 32, 64]


def test_neck(run, cfg):
    cfg['model']['neck'] = dict(type='FlatNeck', in_channels=[8, 16, 32, 64], out_channels=16)
    assert len(run(cfg, 'flat_neck').model.neck.convs) == 4


def test_loss(run, cfg):
    cfg['model']['roi_head']['bbox_head']['loss_bbox'] = dict(type='CharbonnierLoss', eps=0.01, loss_weight=0.)
    cfg['model']['rpn_head']['loss_bbox'] = dict(type='CharbonnierLoss')
    steps = run(cfg, 'charbonnier_loss').steps
    assert all(losses['loss_bbox'] == 0 < losses['loss_rpn_bbox'] for _, losses, _ in steps)


def test_sampler(run, cfg):
    for section, num in (('rpn', 32), ('rcnn', 8)):
        cfg['model']['train_cfg'][section]['sampler'] = dict(type='FirstSampler', num=num, nested=dict(type='mine'))
    done = run(cfg, 'first_sampler')
    assert done.model.roi_head.sampler.options == dict(nested=dict(type='mine'))
    assert (done.model.rpn_head.sampler.num, done.model.roi_head.sampler.num) == (32, 8)


def test_transform(run, cfg):
    own = dict(type='Recipe', transforms=[dict(type='Invert'), dict(type='Resize', height=3)], note='seen')
    steps = pipeline(own)
    steps[-1]['meta_keys'] = ('filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip',
                              'flip_direction', 'img_norm_cfg', 'inverted')
    cfg['data']['train']['pipeline'] = steps
    done = run(cfg, 'recipe_transform')
    plain = dict(cfg['data']['train'], pipeline=pipeline())
    inverted, usual = build_dataset(done.cfg.data.train)[0]['img'], build_dataset(plain)[0]['img']
    inside = usual[:, 4:-36, 4:-36]
    assert torch.allclose(inverted[:, 4:-36, 4:-36], 255 / 50 - 2 * 127 / 50 - inside, atol=1e-4)


@pytest.mark.parametrize('wrapped', [False, True])
def test_data_set(run, cfg, wrapped):
    own = cfg['data']['train'] | dict(type='OneClassDataset', label=4, source=dict(type='s3', bucket='mine'))
    cfg['data']['train'] = dict(type='RepeatDataset', times=2, dataset=own) if wrapped else own
    labels = {label for _, _, batch in run(cfg, 'one_class_dataset').steps for image in batch for label in image}
    assert labels == {4}


def test_hook(run, cfg):
    assert {'loss', 'loss_cls', 'loss_rpn_cls'} <= set(run(cfg).steps[0][1])


def test_evaluator(run, cfg):
    cfg['evaluation'] = dict(interval=2, metric=['bbox', dict(type='CountEvaluator', limit=7)])
    log = run(cfg, 'count_evaluator').log
    assert f'images: {NUM_VAL}' in log and 'limit: 7' in log and 'bbox_mAP' in log
