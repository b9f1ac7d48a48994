"""The numbers of mmdetection in float64, from shared/reference/float64: no last bit decides there: the judge.

The rule is that of the reference's README: nearly every detection has its counterpart, and losses agree to 1e-5.
"""
from __future__ import annotations

import fcntl
import importlib.util
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from boxdet.datasets.collate import collate
from boxdet.datasets.pipelines.compose import Compose
from boxdet.datasets.wrappers import build_dataset
from boxdet.engine.config import load_config
from boxdet.models import build_detector
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances
from tests.test_models.tiny_models import draw_everything

# Cases of the reference whose config boxdet ships; ``test_no_case_is_left_out`` asks for the others.
CASES = {
    'cascade_mask_rcnn_convnext-t_p4_w7_fpn_giou_4conv1f_fp16_ms-crop_3x_coco': 'convnext',
    'cascade_mask_rcnn_r50_fpn_1x_coco': 'cascade_rcnn',
    'cascade_rcnn_r2_101_fpn_20e_coco': 'res2net',
    'crpn_faster_rcnn_r50_caffe_fpn_1x_coco': 'cascade_rpn',
    'dh_faster_rcnn_r50_fpn_1x_coco': 'double_heads',
    'dynamic_rcnn_r50_fpn_1x_coco': 'dynamic_rcnn',
    'faster_rcnn_r50_fpg_crop640_50e_coco': 'fpg',
    'faster_rcnn_r50_fpn_1x_coco': 'faster_rcnn',
    'faster_rcnn_r50_fpn_attention_0010_1x_coco': 'empirical_attention',
    'faster_rcnn_r50_fpn_dpool_1x_coco': 'dcn',
    'faster_rcnn_r50_pafpn_1x_coco': 'pafpn',
    'faster_rcnn_regnetx-3.2GF_fpn_1x_coco': 'regnet',
    'ga_faster_r50_fpn_1x_coco': 'guided_anchoring',
    'grid_rcnn_r50_fpn_gn-head_2x_coco': 'grid_rcnn',
    'htc_r50_fpn_1x_coco': 'htc',
    'htc_r50_sac_1x_coco': 'detectors',
    'libra_faster_rcnn_r101_fpn_1x_coco': 'libra_rcnn',
    'mask_rcnn_hrnetv2p_w18_1x_coco': 'hrnet',
    'mask_rcnn_r50_fpn_1x_coco': 'mask_rcnn',
    'mask_rcnn_r50_fpn_groie_1x_coco': 'groie',
    'mask_rcnn_r50_fpn_r4_gcb_c3-c5_1x_coco': 'gcnet',
    'mask_rcnn_s50_fpn_syncbn-backbone+head_mstrain_1x_coco': 'resnest',
    'mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco': 'swin',
    'mask_rcnn_r50_fpn_random_seesaw_loss_mstrain_2x_lvis_v1': 'seesaw_loss',
    'ms_rcnn_r50_caffe_fpn_2x_coco': 'ms_rcnn',
    'pisa_mask_rcnn_r50_fpn_1x_coco': 'pisa',
    'point_rend_r50_caffe_fpn_mstrain_1x_coco': 'point_rend',
    'sabl_cascade_rcnn_r50_fpn_1x_coco': 'sabl',
    'scnet_r50_fpn_1x_coco': 'scnet',
    'tridentnet_r50_caffe_1x_coco': 'tridentnet',
}
# No losses are given where a training draws at random.
WITHOUT_LOSSES = {
    'grid_rcnn_r50_fpn_gn-head_2x_coco', 'point_rend_r50_caffe_fpn_mstrain_1x_coco',
    'cascade_mask_rcnn_convnext-t_p4_w7_fpn_giou_4conv1f_fp16_ms-crop_3x_coco', 'cascade_rcnn_r2_101_fpn_20e_coco',
    'faster_rcnn_r50_fpg_crop640_50e_coco', 'faster_rcnn_r50_fpn_dpool_1x_coco', 'htc_r50_sac_1x_coco',
    'mask_rcnn_s50_fpn_syncbn-backbone+head_mstrain_1x_coco', 'mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco'}
# Drawn at random all the same: five negatives for a positive, of thousands (neg_pos_ub).
DRAWN = {'libra_faster_rcnn_r101_fpn_1x_coco': {'loss_rpn_cls'}}
# What draws at random or changes the scale; the reference was made without.
_LEFT_OUT = ('AutoAugment', 'RandomCrop', 'MinIoURandomCrop', 'Expand', 'PhotoMetricDistortion')


@pytest.fixture(scope='module')
def filling(reference):
    """The reference's fill.py."""
    spec = importlib.util.spec_from_file_location('reference_fill', reference / 'fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module', autouse=True)
def several_threads():
    """Whole detectors: they take the cores that the tests beside them leave."""
    before = torch.get_num_threads()
    torch.set_num_threads(max((os.cpu_count() or 1) // int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1)), 1))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def alone(tmp_path_factory):
    """One test of this file at a time, in whichever process of the run: dilated convolutions take 14 GB in float64."""
    with open(tmp_path_factory.getbasetemp().parent / 'float64.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def model_of(cfg, filling, salt: str, cls_gain: float) -> torch.nn.Module:
    model = build_detector(cfg.model)
    model.load_state_dict(filling.fill_state_dict(model.state_dict(), salt, cls_gain))
    return model.double()


def doubled(batch: Batch) -> Batch:
    """Every floating tensor in float64."""
    def wide(value):
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    batch = batch.to('cpu')
    gt = batch.gt and [Instances(g.image_size, g.num_classes, **{k: wide(v) for k, v in g.fields.items()})
                       for g in batch.gt]
    ignored = batch.ignored and [wide(boxes) for boxes in batch.ignored]
    return replace(batch, images=batch.images.double(), gt=gt, ignored=ignored)


def test_no_case_is_left_out(reference, repo_root):
    shipped = {path.stem for path in (repo_root / 'configs').rglob('*.py')}
    assert set(json.loads((reference / 'float64/manifest.json').read_text())) & shipped == set(CASES)


def counterparts(found: Instances, ref: dict) -> int:
    """Detections of the reference that were found: label, box, score and mask; each found one counts once."""
    boxes, scores, labels = found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()
    free, count = np.ones(len(boxes), dtype=bool), 0
    for i, box in enumerate(ref['bboxes']):
        off = np.abs(boxes - box).max(axis=1)
        near = free & (labels == ref['labels'][i]) & (off <= 0.01)
        near &= np.abs(scores - ref['scores'][i]) <= 1e-5 * max(abs(ref['scores'][i]), 1)
        if not near.any():
            continue
        best = int(np.where(near, off, np.inf).argmin())
        free[best] = False
        count += 'mask_counts' not in ref or same_mask(found.masks[best], ref['mask_counts'][i])
    return count


def same_mask(own: dict, counts: str) -> bool:
    """IoU of at least 0.995; two masks without a pixel are the same."""
    other = dict(size=own['size'], counts=str(counts).encode('ascii'))
    if not coco_mask.area(own) and not coco_mask.area(other):
        return True
    return coco_mask.iou([own], [other], [0])[0, 0] >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_inference(name, reference, shared_data, repo_root, filling):
    case = json.loads((reference / 'float64/manifest.json').read_text())[name]
    cfg = load_config(repo_root / 'configs' / CASES[name] / f'{name}.py')
    model = model_of(cfg, filling, case['salt'], case['cls_gain']).eval()
    pipeline = [{**t, 'img_scale': tuple(case['scale'])} if 'img_scale' in t else t for t in cfg.data.test.pipeline]
    image = shared_data.parent / case['image']
    batch = collate([Compose(pipeline)(dict(img_info=dict(filename=str(image)), img_prefix=None))])
    found = model.predict(doubled(batch))[0]
    ref = dict(np.load(reference / f'float64/{name}.npz'))
    assert found.bboxes.dtype == found.scores.dtype == torch.float64
    assert len(found) == len(ref['bboxes'])
    assert counterparts(found, ref) >= 0.99 * len(ref['bboxes'])


def training_pipeline(steps, scale) -> list:
    """Without what draws at random or pads to a fixed size."""
    steps = [{**step} for step in steps if step['type'] not in _LEFT_OUT]
    for step in steps:
        if step['type'] == 'Resize':
            step.clear()
            step.update(type='Resize', img_scale=scale, keep_ratio=True)
        elif step['type'] == 'RandomFlip':
            step['flip_ratio'] = 0.0
        elif step['type'] == 'Pad':
            step.clear()
            step.update(type='Pad', size_divisor=32)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(CASES) - WITHOUT_LOSSES))
def test_losses(name, reference, shared_data, repo_root, filling):
    case = json.loads((reference / 'float64/manifest.json').read_text())[name]
    expected = json.loads((reference / f'float64/{name}.losses.json').read_text())
    cfg = load_config(repo_root / 'configs' / CASES[name] / f'{name}.py')
    cfg.model.train_cfg = draw_everything(cfg.model.train_cfg)
    model = model_of(cfg, filling, expected.pop('_salt', ''), expected.pop('_cls_gain', 0.5)).train()
    root = shared_data / 'coco_mini'
    data = build_dataset(dict(type='CocoDataset', ann_file=str(root / 'annotations/instances_val2017.json'),
                              img_prefix=str(root / 'val2017'), seg_prefix=str(root / 'stuffthingmaps/val2017'),
                              pipeline=training_pipeline(cfg.data.train.pipeline, tuple(case['scale']))))
    places = {data.img_info(i)['id']: i for i in range(len(data))}
    batch = doubled(collate([data[places[image]] for image in (785, 2299)]))
    assert list(batch.images.shape) == expected.pop('_input_shape')
    assert [len(gt) for gt in batch.gt] == expected.pop('_num_gt')
    with torch.no_grad():  # thousands of rois: the graph would not fit into small machines
        losses = model.loss(batch)
    assert set(losses) == set(expected)
    for key, value in expected.items():
        if key in DRAWN.get(name, ()):
            continue
        own = [v.item() for v in losses[key]] if isinstance(value, list) else losses[key].item()
        assert own == pytest.approx(value, rel=1e-5, abs=1e-9), key
