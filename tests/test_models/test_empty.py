"""Images without objects, with nothing but crowds, and batches of nothing else: they train, and give empty results."""
from __future__ import annotations

import pytest
import torch

from boxdet.models import build_detector
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks
from tests.test_models import tiny_models

FAMILIES = [
    tiny_models.faster_rcnn, tiny_models.mask_rcnn, tiny_models.cascade_mask_rcnn, tiny_models.c4_mask_rcnn
]


def build(family):
    torch.manual_seed(0)
    model = build_detector(family())
    model.init_weights()
    return model


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('counts, crowds', [((2, 0), (0, 0)), ((0, 0), (0, 0)), ((0, 0), (1, 2)),
                                            ((0, 9), (1, 3))])
def test_every_loss_is_there_finite_and_in_the_graph(family, counts, crowds):
    model = build(family).train()
    usual = set(model.loss(tiny_models.batch((2, 1))))
    losses = model.loss(tiny_models.batch(counts, crowds))
    assert set(losses) == usual
    total = tiny_models.total(losses)
    assert total.isfinite()
    total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if not any(counts):
        boxes = [v for k, v in losses.items() if 'bbox' in k or 'mask' in k]
        assert all(v == 0 for entry in boxes for v in (entry if isinstance(entry, list) else [entry]))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('nothing', ['no detection', 'no proposal'])
def test_results_without_objects_have_the_same_fields(family, nothing):
    cfg = family()
    if nothing == 'no detection':
        cfg['test_cfg']['rcnn']['score_thr'] = 1.0
    else:
        cfg['test_cfg']['rpn'] |= dict(min_bbox_size=1e4, nms_post=10, max_per_batch=20)
    model = build_detector(cfg).eval()
    batch = tiny_models.batch((1, 1))
    results = model.predict(batch) + model.predict([batch, batch])
    for result in results:
        assert isinstance(result, Instances) and len(result) == 0
        assert result.bboxes.shape == (0, 4) and result.scores.shape == (0,)
        assert result.labels.dtype == torch.long
        assert ('masks' in result) == model.with_mask
        if model.with_mask:
            assert isinstance(result.masks, RleMasks) and result.masks.to_bitmaps().shape == (0, 96, 128)
        per_class = result.per_class()
        boxes = per_class[0] if model.with_mask else per_class
        assert [b.shape for b in boxes] == [(0, 5)] * tiny_models.CLASSES


def test_proposals_all_gone_still_train():
    """No proposal survives, and there is no ground truth to stand in."""
    cfg = tiny_models.mask_rcnn()
    cfg['train_cfg']['rpn_proposal']['min_bbox_size'] = 1e4
    model = build_detector(cfg).train()
    losses = model.loss(tiny_models.batch((0, 0)))
    tiny_models.total(losses).backward()
    assert losses['loss_cls'] == 0 and losses['loss_mask'] == 0
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad)
