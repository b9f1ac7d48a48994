"""Whole detectors: building, modes, frames of results, images."""
from __future__ import annotations

import copy
import dataclasses

import cv2
import numpy as np
import pytest
import torch

from boxdet.errors import CheckpointError, ConfigError
from boxdet.models import DETECTORS, HEADS, build_detector
from boxdet.models.standard_roi_head import StandardRoIHead
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks
from tests.test_models import tiny_models

FAMILIES = [
    tiny_models.faster_rcnn, tiny_models.mask_rcnn, tiny_models.cascade_mask_rcnn, tiny_models.c4_mask_rcnn
]


def build(cfg: dict, seed: int = 0):
    torch.manual_seed(seed)
    model = build_detector(cfg)
    model.init_weights()
    # Boxes and classes that differ from roi to roi, unlike those of a fresh model.
    for name, parameter in model.named_parameters():
        if any(key in name for key in ('fc_cls', 'fc_reg', 'rpn_cls', 'rpn_reg', 'conv_logits')):
            torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.0)
    return model.eval()


def rpn() -> dict:
    cfg = tiny_models.faster_rcnn(type='RPN')
    cfg.pop('roi_head')
    cfg['train_cfg'] = dict(rpn=cfg['train_cfg']['rpn'])
    cfg['test_cfg'] = dict(rpn=cfg['test_cfg']['rpn'])
    return cfg


def fast_rcnn() -> dict:
    cfg = tiny_models.mask_rcnn(type='FastRCNN')
    cfg.pop('rpn_head')
    cfg['train_cfg'] = dict(rcnn=cfg['train_cfg']['rcnn'])
    cfg['test_cfg'] = dict(rcnn=cfg['test_cfg']['rcnn'])
    return cfg


def with_proposals(batch: Batch) -> Batch:
    given = [gt.bboxes + torch.tensor([3., -2, 5, 1]) for gt in batch.gt]
    return Batch(batch.images, batch.metas, batch.gt, batch.ignored,
                 [Instances(bboxes=b, scores=torch.ones(len(b))) for b in given])


# ---------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize('family', [*FAMILIES, rpn, fast_rcnn])
def test_building_needs_no_memory_and_leaves_the_config_alone(family):
    cfg = family()
    before = copy.deepcopy(cfg)
    with torch.device('meta'):
        model = build_detector(cfg)
    assert cfg == before
    assert all(p.is_meta for p in model.parameters())
    assert model.with_neck == ('neck' in cfg and cfg['neck'] is not None)
    assert (model.with_rpn, model.with_roi_head) == ('rpn_head' in cfg, 'roi_head' in cfg)
    assert model.with_mask == ('mask' in family.__name__ or family is fast_rcnn)
    buffers = {name.rpartition('.')[2] for name, _ in model.named_buffers()}
    assert buffers == {'running_mean', 'running_var', 'num_batches_tracked'}


@pytest.mark.parametrize(
    'change, message',
    [(lambda c: c['test_cfg']['rcnn'].update(score_thresh=0.1),
      r"model\.test_cfg\.rcnn\.score_thresh.*'score_thr'"),
     (lambda c: c['roi_head']['bbox_head'].update(num_clases=3), "'num_classes'"),
     (lambda c: c['roi_head']['bbox_head'].update(type='Shared2FCBoxHead'), "'Shared2FCBBoxHead'"),
     (lambda c: c.update(roi_head=None), 'needs a roi_head'),
     (lambda c: c['test_cfg'].pop('rpn'), "test_cfg needs 'rpn'"),
     (lambda c: c.update(test_cfg=None), "test_cfg needs 'rcnn'"),
     (lambda c: c.update(type='FasterRCN'), "'FasterRCNN'")])
def test_wrong_configs_name_the_nearest(change, message):
    cfg = tiny_models.faster_rcnn()
    change(cfg)
    with pytest.raises(ConfigError, match=message):
        build_detector(cfg)


def test_settings_beside_the_model_are_read_with_a_warning():
    cfg = tiny_models.faster_rcnn()
    train, test = cfg.pop('train_cfg'), cfg.pop('test_cfg')
    with (pytest.warns(DeprecationWarning, match='model.train_cfg'),
          pytest.warns(DeprecationWarning, match='model.test_cfg')):
        model = build_detector(cfg, train_cfg=train, test_cfg=test)
    assert model.test_cfg.rcnn.max_per_img == 20 and 'train_cfg' not in cfg
    with pytest.warns(DeprecationWarning), pytest.raises(
            ConfigError, match='test_cfg is given twice, .*: keep model.test_cfg and take the other one out'):
        build_detector(tiny_models.faster_rcnn(), test_cfg=test)


def test_testing_needs_no_training_settings():
    model = build(tiny_models.mask_rcnn(train_cfg=None))
    assert len(model.predict(tiny_models.batch((1, 1)))) == 2
    with pytest.raises(ConfigError, match="train_cfg needs 'rpn' for training"):
        model.loss(tiny_models.batch((1, 1)))
    with pytest.raises(ConfigError, match="train_cfg needs 'rcnn' for training"):
        build(fast_rcnn() | dict(train_cfg=None)).loss(with_proposals(tiny_models.batch((1, 1))))


def test_initial_weights_come_from_the_seed():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        model = build_detector(tiny_models.mask_rcnn())
        model.init_weights()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize('change', [
    lambda c: c.update(pretrained='weights.pth'),
    lambda c: c['backbone'].update(init_cfg=dict(type='Pretrained', checkpoint='weights.pth'))
])
def test_pretrained_backbones_are_loaded_by_init_weights(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = build(tiny_models.faster_rcnn(), seed=9).backbone.state_dict()
    cfg = tiny_models.cascade_mask_rcnn()
    change(cfg)
    model = build_detector(cfg)
    with pytest.raises(CheckpointError, match='no checkpoint file weights.pth'):
        model.init_weights()
    torch.save(source, 'weights.pth')
    model.init_weights()
    assert torch.equal(model.backbone.conv1.weight, source['conv1.weight'])


def test_an_own_head_needs_no_settings():
    @HEADS.register_module(name='OwnRoIHeadForTest')
    class OwnRoIHead(torch.nn.Module):
        with_bbox, with_mask = True, False

        def __init__(self, size):
            super().__init__()
            self.size = size

    try:
        model = build_detector(tiny_models.faster_rcnn(roi_head=dict(type='OwnRoIHeadForTest', size=3)))
    finally:
        HEADS.module_dict.pop('OwnRoIHeadForTest')
    assert model.roi_head.size == 3 and 'FasterRCNN' in DETECTORS


# ---------------------------------------------------------------------------------------------- modes


def test_forward_is_loss_or_predict():
    model, batch = build(tiny_models.faster_rcnn()), tiny_models.batch((2, 1))
    assert set(model.train()(batch)) == {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'acc', 'loss_bbox'}
    results = model.eval()(batch, mode='predict', rescale=False)
    assert isinstance(results[0], Instances) and not results[0].bboxes.requires_grad
    with pytest.raises(ValueError, match="'loss' or 'predict'"):
        model(batch, mode='test')


def test_losses_fall():
    torch.manual_seed(0)
    model, batch = build_detector(tiny_models.mask_rcnn()), tiny_models.batch((3, 2))
    model.init_weights()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.003)
    history = []
    for _ in range(35):
        loss = tiny_models.total(model(batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-5:]) < 0.6 * np.mean(history[:3])


def test_uint8_images_are_normalised_on_the_way_in():
    model = build(tiny_models.faster_rcnn())
    norm = dict(mean=[100., 110, 120], std=[50., 55, 60], to_rgb=True)
    batch = tiny_models.batch((1, 1))
    metas = [tiny_models.meta(img_norm_cfg=norm) for _ in range(2)]
    raw = torch.randint(0, 256, batch.images.shape, dtype=torch.uint8)
    ready = Batch(raw, metas).to('cpu')
    assert ready.images.dtype == torch.float32
    for one, other in zip(model.predict(Batch(raw, metas)), model.predict(ready)):
        assert torch.equal(one.bboxes, other.bboxes) and len(one)


@pytest.mark.parametrize('family', FAMILIES)
def test_half_precision_training_has_float32_losses(family):
    model, batch = build(family()).train(), tiny_models.batch((2, 0))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(batch)
    values = [v for entry in losses.values() for v in (entry if isinstance(entry, list) else [entry])]
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in values)
    tiny_models.total(losses).backward()


def test_training_and_testing_leave_backend_settings_alone():
    def settings() -> list:
        modules = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn
        names = 'enabled', 'benchmark', 'deterministic', 'allow_tf32'
        return [getattr(module, name, None) for module in modules for name in names] + [
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()]

    before = settings()
    model, batch = build(tiny_models.mask_rcnn()).train(), tiny_models.batch((2, 1))
    tiny_models.total(model.loss(batch)).backward()
    model.eval().predict([batch, batch])
    assert settings() == before


@pytest.mark.parametrize('family', FAMILIES)
def test_channels_last_gives_the_same(family):
    model, batch = build(family()), tiny_models.batch((1, 1))
    expected = model.predict(batch)
    model = model.to(memory_format=torch.channels_last)
    batch.images = batch.images.contiguous(memory_format=torch.channels_last)
    for one, other in zip(model.predict(batch), expected):
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-3, atol=1e-2)


# ---------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize('family', FAMILIES)
def test_a_batch_gives_what_single_images_give(family):
    model, batch = build(family()), tiny_models.batch((1, 1, 1))
    together = model.predict(batch)
    for i, found in enumerate(together):
        alone = model.predict(Batch(batch.images[i:i + 1], batch.metas[i:i + 1]))[0]
        assert len(found) == len(alone) > 0
        torch.testing.assert_close(found.bboxes, alone.bboxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(found.labels, alone.labels)


def test_results_in_the_frame_of_the_original():
    model, batch = build(tiny_models.mask_rcnn()), tiny_models.batch((1,), (0,))
    batch.metas = [
        tiny_models.meta(ori_shape=(48, 256, 3), scale_factor=np.array([0.5, 2, 0.5, 2], dtype=np.float32))
    ]
    network, original = model.predict(batch, rescale=False)[0], model.predict(batch)[0]
    assert network.image_size == (96, 128) and original.image_size == (48, 256)
    torch.testing.assert_close(original.bboxes, network.bboxes * torch.tensor([2, 0.5, 2, 0.5]))
    assert isinstance(original.masks, RleMasks)
    assert original.masks.to_bitmaps().shape == (len(original), 48, 256)
    assert network.masks.to_bitmaps().shape == (len(network), 96, 128)
    assert original.num_classes == tiny_models.CLASSES and len(original) > 0
    assert not any(v.is_cuda for v in (original.bboxes, original.scores, original.labels))


def test_masks_lie_in_their_boxes_and_follow_the_threshold():
    cfg = tiny_models.mask_rcnn()
    areas = []
    for threshold in (0.2, 0.8):
        cfg['test_cfg']['rcnn']['mask_thr_binary'] = threshold
        found = build(cfg).predict(tiny_models.batch((1,), (0,)))[0]
        areas.append(found.masks.areas.sum())
        for bitmap, (x0, y0, x1, y1) in zip(found.masks_bitmaps(), found.bboxes.tolist()):
            rows, columns = np.nonzero(bitmap)
            if len(rows):
                assert columns.min() >= x0 - 2 and columns.max() <= x1 + 2
                assert rows.min() >= y0 - 2 and rows.max() <= y1 + 2
    assert areas[0] > areas[1]


def test_proposals_are_the_results_of_the_lone_rpn():
    model, batch = build(rpn()), tiny_models.batch((1, 1))
    torch.manual_seed(0)
    losses = model.train()(batch)
    assert set(losses) == {'loss_rpn_cls', 'loss_rpn_bbox'}
    batch.gt = [objects.without('labels', 'masks') for objects in batch.gt]  # all that rpn/'s configs collect
    torch.manual_seed(0)
    assert tiny_models.total(model(batch)) == tiny_models.total(losses)
    found = model.eval().predict(batch)[0]
    assert found.num_classes == 1 and len(found) == 50 and not found.labels.any()
    assert (found.scores.diff() <= 0).all()


def test_fast_rcnn_takes_the_proposals_of_the_batch():
    model, batch = build(fast_rcnn()), tiny_models.batch((2, 3))
    assert set(model.train()(with_proposals(batch))) == {'loss_cls', 'acc', 'loss_bbox', 'loss_mask'}
    model.eval()
    results = model.predict(with_proposals(batch))
    assert len(results) == 2 and 'masks' in results[0]
    for call in (model.predict, model.loss):
        with pytest.raises(ConfigError, match='LoadProposals'):
            call(batch)


# ---------------------------------------------------------------------------------------------- images


def test_images_of_results(tmp_path):
    model, batch = build(tiny_models.mask_rcnn()), tiny_models.batch((1,), (0,))
    model.CLASSES = ('circle', 'square', 'star')
    image = np.full((96, 128, 3), 90, dtype=np.uint8)
    result = model.predict(batch)[0]
    out = tmp_path / 'result.png'
    drawn = model.show_result(image, result, score_thr=0.0, out_file=str(out))
    assert drawn.shape == image.shape and (drawn != image).any() and (image == 90).all()
    assert np.array_equal(cv2.imread(str(out)), drawn)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    assert np.array_equal(model.show_result(str(tmp_path / 'image.png'), result, score_thr=0.0), drawn)
    assert np.array_equal(model.show_result(image, result, score_thr=1.0), image)


def test_the_best_proposals_of_a_batch_reach_the_second_stage():
    """maskrcnn-benchmark's FPN_POST_NMS_PER_BATCH, from the settings of training and of testing."""
    cfg = tiny_models.faster_rcnn()
    cfg['train_cfg']['rpn_proposal'] |= dict(max_per_batch=7)
    cfg['test_cfg']['rpn'] |= dict(max_per_batch=5)
    model, batch, seen = build(cfg), tiny_models.batch((2, 1)), []
    roi_loss, roi_predict = model.roi_head.loss, model.roi_head.predict
    model.roi_head.loss = lambda feats, proposals, *rest: seen.append(proposals) or roi_loss(feats, proposals, *rest)
    model.roi_head.predict = lambda feats, proposals, *rest: seen.append(proposals) or roi_predict(
        feats, proposals, *rest)
    losses = model.train().loss(batch)
    assert all(torch.isfinite(value).all() for key in ('loss_cls', 'loss_bbox') for value in [losses[key]])
    model.eval().predict(batch)
    assert [sum(map(len, proposals)) for proposals in seen] == [7, 5]


def test_semantic_maps_reach_the_head_that_wants_them(monkeypatch):
    class Watching(StandardRoIHead):
        wants_semantic_seg = True

        def loss(self, *args, semantic_seg):
            return super().loss(*args) | dict(loss_seg=semantic_seg.float().mean())

    HEADS.names()
    monkeypatch.setitem(HEADS.module_dict, 'Watching', Watching)
    cfg = tiny_models.faster_rcnn()
    cfg['roi_head']['type'] = 'Watching'
    model = build_detector(cfg)
    batch = tiny_models.batch(masks=False)
    with pytest.raises(ConfigError, match=r'has none: the data set needs a seg_prefix, its pipeline LoadAnnotations'):
        model.loss(batch)
    maps = torch.full((2, 1, 12, 16), 3, dtype=torch.long)
    assert model.loss(dataclasses.replace(batch, semantic_seg=maps))['loss_seg'] == 3
    # A head that does not ask is not given any.
    assert 'loss_cls' in build_detector(tiny_models.faster_rcnn()).loss(dataclasses.replace(batch, semantic_seg=maps))
