"""Semantic maps (gt_semantic_seg): loaded, moved with the image, made smaller, a field of the batch."""
import json

import cv2
import mmcv
import numpy as np
import pytest
import torch

from boxdet.datasets import build_dataset
from boxdet.datasets.collate import collate
from boxdet.datasets.pipelines.geometric import SegRescale
from boxdet.engine.config import load_config
from boxdet.errors import ConfigError, DataError
from boxdet.models import build_detector

BASE = 'configs/_base_/datasets/coco_instance_semantic.py'


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('factor', [1 / 8, 0.3, 1, 2])
def test_rescaled_maps_are_mmcvs(factor, backend):
    classes = np.random.default_rng(0).integers(0, 256, (61, 87), dtype=np.uint8)
    results = dict(gt_semantic_seg=classes, other=classes, seg_fields=['gt_semantic_seg'], img=np.zeros((61, 87, 3)))
    found = SegRescale(factor, backend)(dict(results))
    expected = mmcv.imrescale(classes, factor, interpolation='nearest', backend=backend)
    assert np.array_equal(found['gt_semantic_seg'], expected)
    assert found['other'] is classes and found['img'] is results['img']
    assert SegRescale(factor, backend)(dict(img=results['img'])).keys() == {'img'}


def test_what_cannot_be_meant():
    with pytest.raises(ConfigError, match='SegRescale.scale_factor 0 is not above 0'):
        SegRescale(0)
    with pytest.raises(ConfigError, match="SegRescale.backend 'cv3' is neither"):
        SegRescale(1, 'cv3')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two images of discs on stuff, with annotations and semantic maps: 21 and 22 for stuff, 16 or 17 for a disc."""
    folder = tmp_path_factory.mktemp('stuff')
    (folder / 'images').mkdir()
    (folder / 'maps').mkdir()
    images, rows = [], []
    for number, (height, width) in enumerate([(150, 220), (260, 160)]):
        classes = np.full((height, width), 21, np.uint8)
        classes[height // 2:] = 22
        for k, (x, y, radius) in enumerate([(50, 60, 24), (110, 100, 30)]):
            cv2.circle(classes, (x, y), radius, 16 + k, -1)
            x0, y0, d = x - radius, y - radius, 2 * radius + 1
            outline = cv2.ellipse2Poly((x, y), (radius, radius), 0, 0, 360, 10).ravel().tolist()
            rows.append(dict(id=len(rows) + 1, image_id=number, category_id=k + 1, bbox=[x0, y0, d, d], area=d * d,
                             iscrowd=0, segmentation=[outline]))
        cv2.imwrite(str(folder / f'maps/{number}.png'), classes)
        cv2.imwrite(str(folder / f'images/{number}.jpg'), np.repeat(classes[..., None] * 10, 3, axis=2))
        images.append(dict(id=number, file_name=f'{number}.jpg', width=width, height=height))
    (folder / 'ann.json').write_text(json.dumps(dict(
        images=images, annotations=rows, categories=[dict(id=1, name='person'), dict(id=2, name='car')])))
    return folder


def settings(repo_root, folder, **more):
    """data.train of the shipped config, on ``folder``."""
    cfg = load_config(repo_root / BASE).to_dict()['data']['train']
    assert cfg['pipeline'][6] == dict(type='SegRescale', scale_factor=1 / 8)
    return {**cfg, 'ann_file': str(folder / 'ann.json'), 'img_prefix': str(folder / 'images'),
            'seg_prefix': str(folder / 'maps'), 'classes': ('person', 'car'), **more}


@pytest.mark.parametrize('compact', [False, True])
def test_the_shipped_pipeline_moves_map_and_masks_together(repo_root, folder, compact):
    dataset = build_dataset(settings(repo_root, folder))
    flips = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = dataset.sample(seed % 2, compact)
        meta, classes = sample['img_metas'], sample['gt_semantic_seg']
        height, width = meta['pad_shape'][:2]
        assert classes.dtype == torch.uint8 and classes.shape == (1, height // 8, width // 8)
        assert (height % 32, width % 32) == (0, 0)
        flips.add(meta['flip'])
        classes = classes[0].numpy()
        inside = np.zeros(classes.shape, bool)
        inside[:meta['img_shape'][0] // 8, :meta['img_shape'][1] // 8] = True
        assert set(np.unique(classes[inside])) == {16, 17, 21, 22}
        assert set(np.unique(classes[~inside])) <= {16, 17, 21, 22, 255}
        for mask, label in zip(sample['gt_masks'].to_bitmaps(), sample['gt_labels'].tolist()):
            small = cv2.resize(mask, classes.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
            assert (classes[small] == 16 + label).mean() > 0.93 and (classes[~small] == 16 + label).mean() < 0.02
    assert flips == {True, False}


def test_the_batch_carries_maps_and_a_two_stage_model_does_not_read_them(repo_root, folder):
    """The loss with the maps is the loss without them."""
    losses = []
    for keys in (['img', 'gt_bboxes', 'gt_labels', 'gt_semantic_seg'], ['img', 'gt_bboxes', 'gt_labels']):
        cfg = settings(repo_root, folder)
        cfg['pipeline'][-1]['keys'] = keys
        cfg['pipeline'][2]['img_scale'] = (200, 160)
        assert cfg['pipeline'][-2] == dict(type='DefaultFormatBundle')
        cfg['pipeline'][-2]['pad_val'] = dict(img=0, masks=0, seg=19)
        dataset = build_dataset(cfg)
        np.random.seed(1)
        batch = collate([dataset.sample(i, compact=True) for i in (0, 1)]).to('cpu')
        if 'gt_semantic_seg' in keys:
            maps, (height, width) = batch.semantic_seg, (size // 8 for size in batch.images.shape[2:])
            assert maps.dtype == torch.uint8 and maps.shape == (2, 1, height, width)
            for one, meta in zip(maps, batch.metas):
                inside = one[0, :meta.img_shape[0] // 8, :meta.img_shape[1] // 8]
                assert set(inside.unique().tolist()) == {16, 17, 21, 22}
                beyond = one[0, -(-meta.pad_shape[0] // 8):], one[0, :, -(-meta.pad_shape[1] // 8):]
                assert all((part == 19).all() for part in beyond) and sum(part.numel() for part in beyond)
        else:
            assert batch.semantic_seg is None
        torch.manual_seed(0)
        model = build_detector(load_config(repo_root / 'configs/shapes/faster_rcnn_r18_fpn_shapes.py', {
            'model.roi_head.bbox_head.num_classes': 2, 'model.backbone.init_cfg': None}).model).train()
        torch.manual_seed(0)
        losses.append({key: (sum(value) if isinstance(value, list) else value).detach().item()
                       for key, value in model.loss(batch).items()})
    assert losses[0] == losses[1] and all(np.isfinite(list(losses[0].values())))


def test_a_missing_map_is_named(repo_root, folder, tmp_path):
    dataset = build_dataset(settings(repo_root, folder, seg_prefix=str(tmp_path)))
    with pytest.raises(DataError, match=r'0.png: no such file'):
        dataset[0]
    (tmp_path / '0.png').write_bytes((folder / 'maps/0.png').read_bytes()[:60])
    with pytest.raises(DataError, match=r'0.png: the image file is truncated'):
        dataset[0]
