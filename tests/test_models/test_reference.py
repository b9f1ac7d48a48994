"""The numbers of mmdetection itself, from shared/reference: parameter names, inference, training losses.

Weights are filled by name on both sides; the configs and pipelines are boxdet's own. A comparison passes by
the rule of the reference's README.
"""
from __future__ import annotations

import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from boxdet.datasets.collate import collate
from boxdet.datasets.pipelines.compose import Compose
from boxdet.datasets.wrappers import build_dataset
from boxdet.engine.config import load_config
from boxdet.geometry.nms_rounds import IN_ROUNDS
from boxdet.models import build_detector
from boxdet.models.detectors import RPN
from tests.test_models.tiny_models import draw_everything

# Which folder of configs/ holds each config of the reference.
FOLDERS = {
    'cascade_mask': 'cascade_rcnn', 'cascade': 'cascade_rcnn', 'faster': 'faster_rcnn', 'mask': 'mask_rcnn',
    'rpn': 'rpn'
}
INFERENCE = [
    'faster_rcnn_r50_fpn_1x_coco', 'mask_rcnn_r50_fpn_1x_coco', 'rpn_r50_fpn_1x_coco',
    'cascade_rcnn_r50_fpn_1x_coco', 'cascade_mask_rcnn_r50_fpn_1x_coco', 'faster_rcnn_r50_caffe_c4_1x_coco',
    'faster_rcnn_r50_caffe_dc5_1x_coco', 'faster_rcnn_x101_32x4d_fpn_1x_coco',
    'mask_rcnn_r50_fpn_gn-all_2x_coco'
]
LOSSES = ['faster_rcnn_r50_fpn_1x_coco', 'mask_rcnn_r50_fpn_1x_coco', 'cascade_mask_rcnn_r50_fpn_1x_coco',
          'faster_rcnn_r50_caffe_c4_1x_coco']


@pytest.fixture(scope='module')
def filling(reference):
    """The reference's fill.py."""
    spec = importlib.util.spec_from_file_location('reference_fill', reference / 'fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module', autouse=True)
def several_threads():
    """These are whole detectors at full size: they take the cores that the tests beside them leave."""
    before = torch.get_num_threads()
    torch.set_num_threads(max((os.cpu_count() or 1) // int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1)), 1))
    yield
    torch.set_num_threads(before)


def config_of(name: str, repo_root):
    folder = 'gn' if 'gn-all' in name else FOLDERS[name.split('_rcnn_')[0] if '_rcnn_' in name else 'rpn']
    return load_config(repo_root / 'configs' / folder / f'{name}.py')


def filled_model(cfg, filling, salt: str = '', cls_gain: float = 0.5):
    model = build_detector(cfg.model)
    own = {}
    for key, value in model.state_dict().items():
        # mmdetection 3.3, which made these numbers, calls the head of the lone RPN 'bbox_head'.
        name = key.replace('rpn_head.', 'bbox_head.') if isinstance(model, RPN) else key
        own[key] = torch.from_numpy(filling.fill(name, value.shape, salt, cls_gain)).to(value.dtype)
    model.load_state_dict(own)
    return model


# ---------------------------------------------------------------------------------------------- parameter
# names


def test_parameter_names_and_shapes(reference, repo_root):
    """Every config of the list, built without memory for its weights."""
    golden = json.loads((reference / 'state_dict_keys.json').read_text())
    assert len(golden) >= 11
    for path, expected in golden.items():
        cfg = load_config(repo_root / 'configs' / path)
        with torch.device('meta'):
            model = build_detector(cfg.model)
        assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected, path


# ---------------------------------------------------------------------------------------------- inference


def pairs(found, ref: dict) -> list[tuple[int, int]]:
    """Reference detections and their counterparts: the same label, a box within 0.05 pixel, a score within 5e-4.

    Each detection is the counterpart of one only.
    """
    boxes, scores, labels = found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()
    free, result = np.ones(len(boxes), dtype=bool), []
    for i in range(len(ref['bboxes'])):
        off = np.abs(boxes - ref['bboxes'][i]).max(axis=1)
        alike = (labels == ref['labels'][i]) & (np.abs(scores - ref['scores'][i]) <= 5e-4)
        near = free & alike & (off <= 0.05)
        if near.any():
            best = int(np.where(near, off, np.inf).argmin())
            free[best] = False
            result.append((i, best))
    return result


def same_mask(own: dict, counts: str) -> bool:
    """IoU of at least 0.995; two masks without a pixel are the same."""
    other = dict(size=own['size'], counts=str(counts).encode('ascii'))
    if not coco_mask.area(own) and not coco_mask.area(other):
        return True
    return coco_mask.iou([own], [other], [0])[0, 0] >= 0.995


def case_of(name, reference, shared_data, repo_root, filling):
    """The model of a case, and its batch."""
    case = json.loads((reference / 'manifest.json').read_text())[f'mmdet/{name}']
    cfg = config_of(name, repo_root)
    model = filled_model(cfg, filling, case['salt'], case['cls_gain']).eval()
    image = shared_data.parent / case['image']
    sample = Compose(cfg.data.test.pipeline)(dict(img_info=dict(filename=str(image)), img_prefix=None))
    return model, collate([sample])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mask_rcnn_r50_fpn_1x_coco', 'faster_rcnn_r50_caffe_c4_1x_coco'])
def test_the_way_of_a_gpu_finds_the_same(name, reference, shared_data, repo_root, filling):
    """Tensors of a fixed size and suppression in rounds, at full size."""
    model, batch = case_of(name, reference, shared_data, repo_root, filling)
    batch = batch.to('cpu')
    with torch.no_grad():
        feats = model.extract_feat(batch.images)
        usual, = model.roi_head.predict(feats, model.rpn_head.predict(*model.rpn_head(feats), batch.metas), batch.metas)
        padded = model.detect_padded(feats, batch, IN_ROUNDS)
    assert padded.settled
    found, = padded.instances([batch.metas[0].img_shape[:2]])
    assert set(found.fields) == set(usual.fields) and torch.equal(found.labels, usual.labels)
    for field in set(found.fields) - {'labels'}:
        torch.testing.assert_close(found.fields[field], usual.fields[field], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', INFERENCE)
def test_inference(name, reference, shared_data, repo_root, filling):
    model, batch = case_of(name, reference, shared_data, repo_root, filling)
    found = model.predict(batch)[0]
    ref = dict(np.load(reference / 'mmdet' / f'{name}.npz'))
    matched = pairs(found, ref)
    if 'mask_counts' in ref:
        matched = [(i, j) for i, j in matched if same_mask(found.masks[j], ref['mask_counts'][i])]
    assert len(found) == len(ref['bboxes'])
    assert len(matched) >= 0.97 * len(ref['bboxes'])
    assert found.image_size == (425, 640)


# ---------------------------------------------------------------------------------------------- losses


def training_batch(cfg, shared_data):
    """Images 785 and 2299 by the config's train pipeline, unflipped."""
    pipeline = [{**t, 'flip_ratio': 0.0} if t['type'] == 'RandomFlip' else t for t in cfg.data.train.pipeline]
    root = shared_data / 'coco_mini'
    data = build_dataset(dict(type='CocoDataset', ann_file=str(root / 'annotations/instances_val2017.json'),
                              img_prefix=str(root / 'val2017'), pipeline=pipeline))
    places = {data.img_info(i)['id']: i for i in range(len(data))}
    return collate([data[places[image]] for image in (785, 2299)])


def in_parts(pool, size: int = 256):
    """``pool(feats, rois)`` a few rois at a time: C4's layers on thousands at once would take gigabytes."""
    def pool_in_parts(feats, rois):
        result = None
        for start, part in zip(range(0, len(rois), size), rois.split(size)):
            pooled = pool(feats, part)
            result = pooled.new_empty(len(rois), *pooled.shape[1:]) if result is None else result
            result[start:start + size] = pooled
        return result
    return pool_in_parts


@pytest.mark.slow
@pytest.mark.parametrize('name', LOSSES)
def test_losses(name, reference, shared_data, repo_root, filling, monkeypatch):
    cfg = config_of(name, repo_root)
    cfg.model.train_cfg = draw_everything(cfg.model.train_cfg)
    model = filled_model(cfg, filling).train()
    if model.roi_head.with_shared_head:  # its norms are frozen, so that no roi knows of another
        monkeypatch.setattr(model.roi_head, 'box_features', in_parts(model.roi_head.box_features))
    batch = training_batch(cfg, shared_data)
    expected = json.loads((reference / 'mmdet' / f'{name}.losses.json').read_text())
    assert list(batch.images.shape) == expected.pop('_input_shape')
    assert [len(gt) for gt in batch.gt] == expected.pop('_num_gt')
    with torch.no_grad():  # thousands of rois: the graph would not fit into small machines
        losses = model.loss(batch)
    assert set(losses) == set(expected)
    for key, value in expected.items():
        own = [v.item() for v in losses[key]] if isinstance(value, list) else losses[key].item()
        assert own == pytest.approx(value, rel=1e-3, abs=1e-9), key
