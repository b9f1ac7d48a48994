"""Schedules and pipelines of the zoo: the tutorial's linear scaling rule, 90k iterations, polygons."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxdet.engine.config import load_config
from boxdet.structures.masks import BitmapMasks, PolygonMasks

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
BASE_LR, BASE_STEPS, BASE_ITERS = 0.0025, (30000, 40000), 60000  # Detectron's tutorial_1gpu_e2e_faster_rcnn_R-50-FPN


def tutorial(gpus: int):
    return load_config(CONFIGS / f'tutorial/faster_rcnn_r50_fpn_{gpus}gpu_coco.py')


@pytest.mark.parametrize('gpus', [1, 2, 4, 8])
def test_the_schedule_follows_the_linear_scaling_rule(gpus):
    cfg = tutorial(gpus)
    images = gpus * cfg.data.samples_per_gpu
    assert cfg.auto_scale_lr.base_batch_size == images == 2 * gpus
    assert cfg.optimizer.lr == BASE_LR * gpus
    assert cfg.optimizer.lr / images == BASE_LR / 2
    assert cfg.runner == dict(type='IterBasedRunner', max_iters=BASE_ITERS // gpus)
    assert cfg.runner.max_iters * images == BASE_ITERS * 2  # every one sees as many images
    assert cfg.lr_config.step == [step // gpus for step in BASE_STEPS]
    assert cfg.evaluation.interval == cfg.runner.max_iters
    assert cfg.runner.max_iters % cfg.checkpoint_config.interval == 0


def test_they_differ_in_nothing_else():
    schedule = ('optimizer', 'lr_config', 'runner', 'evaluation', 'checkpoint_config', 'auto_scale_lr')
    one = {k: v for k, v in tutorial(1).to_dict().items() if k not in schedule}
    for gpus in (2, 4, 8):
        assert {k: v for k, v in tutorial(gpus).to_dict().items() if k not in schedule} == one
    scales = [one['data'][part]['pipeline'][step]['img_scale'] for part,
              step in (('train', 2), ('val', 1), ('test', 1))]
    assert scales == [(833, 500)] * 3


def test_the_rule_of_the_tutorials_is_that_of_auto_scale_lr():
    """What --auto-scale-lr makes of the first file on 8 GPUs is the learning rate of the last one."""
    from boxdet.engine.preflight import learning_rate_scale

    one, eight = tutorial(1), tutorial(8)
    scale = learning_rate_scale(one.data.samples_per_gpu, 8, 1, one.optimizer.lr, dict(one.auto_scale_lr, enable=True))
    assert one.optimizer.lr * scale == eight.optimizer.lr
    assert learning_rate_scale(2, 8, 1, eight.optimizer.lr, dict(eight.auto_scale_lr, enable=True)) == 1


@pytest.mark.parametrize('name', ['faster_rcnn_r50_caffe_fpn_90k_coco', 'faster_rcnn_r50_caffe_fpn_mstrain_90k_coco'])
def test_90k_iterations_are_detectrons_1x(name):
    """90,000 steps of 16 images, a tenth of the rate after 60,000 of them and again after 80,000."""
    from boxdet.engine.learning_rate import LrSchedule, Progress

    cfg = load_config(CONFIGS / f'faster_rcnn/{name}.py')
    assert cfg.runner == dict(type='IterBasedRunner', max_iters=90000) and 90000 % cfg.evaluation.interval == 0
    assert cfg.data.samples_per_gpu * 8 == cfg.auto_scale_lr.base_batch_size == 16
    schedule = LrSchedule(**{'by_epoch': False, **cfg.lr_config})
    rates = [schedule.rate(cfg.optimizer.lr, Progress(i, 0, 90000, 13)) for i in (0, 500, 59999, 60000, 80000)]
    assert rates == pytest.approx([0.02 * 0.001, 0.02, 0.02, 0.002, 0.0002])


@pytest.fixture
def polygon_file(shapes_dir, tmp_path):
    """The drawn annotations without the objects whose mask is no polygon: rings, and crowds."""
    content = json.loads((shapes_dir / 'annotations/instances_train.json').read_text())
    content['annotations'] = [a for a in content['annotations'] if isinstance(a['segmentation'], list)]
    path = tmp_path / 'polygons.json'
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize('name, kind', [('mask_rcnn_r50_fpn_poly_1x_coco', PolygonMasks),
                                        ('mask_rcnn_r50_fpn_1x_coco', BitmapMasks),
                                        ('mask_rcnn_r50_fpn_mstrain-poly_3x_coco', PolygonMasks)])
def test_poly_configs_keep_polygons(name, kind, shapes_dir, polygon_file):
    from boxdet.datasets import build_dataset

    data = load_config(CONFIGS / f'mask_rcnn/{name}.py').data.train
    while 'dataset' in data:
        data = data.dataset
    kept = ('LoadImageFromFile', 'LoadAnnotations', 'RandomFlip')
    pipeline = [step for step in data.pipeline if step['type'] in kept]
    dataset = build_dataset({**data, 'ann_file': str(polygon_file), 'img_prefix': str(shapes_dir / 'train'),
                             'classes': ('circle', 'square', 'triangle', 'star', 'stickman'), 'pipeline': pipeline})
    masks = [dataset[i]['gt_masks'] for i in range(len(dataset))]
    assert {type(m) for m in masks} == {kind} and sum(map(len, masks)) > 10
