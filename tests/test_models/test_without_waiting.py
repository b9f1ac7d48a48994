"""Detection on a GPU hands out all of its work without asking for a number, and copies the results once.

What would stop the host there is found here without a GPU, too: PyTorch's fake tensors of a 'cuda' device run every
operator's shape rules only, and raise where a shape or a number depends on the data.
"""
from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from boxdet.geometry.nms_rounds import IN_ROUNDS, SuppressionInRounds
from boxdet.models import build_detector, detectors
from boxdet.models.bbox_head import BBoxHead
from boxdet.structures import instances
from tests.test_models import tiny_models
from tests.test_models.test_families import FAMILIES, mixed_batch

# soft_nms works on the CPU; without a sampling_ratio the number of a deformable pooling's points is asked for;
# TridentNet's branches are joined by their number of boxes.
WAITING = {'soft_nms', 'dpool', 'mdpool', 'trident_all'}
aten = torch.ops.aten


class Transfers(TorchDispatchMode):
    """Collects copies between host and device for which the host would wait."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default and args[0].device != result.device and not (kwargs or {}).get('non_blocking'):
            self.found.append(f'{func}: {args[0].device} to {result.device}')
        if func is aten.copy_.default and args[0].device != args[1].device and not (len(args) > 2 and args[2]):
            self.found.append(f'{func}: {args[1].device} to {args[0].device}')
        if func in (aten.index.Tensor, aten.index_put_.default,
                    aten.index_put.default) and args[0].device.type == 'cuda':
            self.found += [f'{func} by an index on the CPU' for i in args[1] if i is not None
                           and i.device.type == 'cpu']
        return result


def on_fake_gpu(cfg: dict, work) -> list[str]:
    """Run ``work(model, batch)`` on a fake GPU; returns the transfers that the host waits for."""
    model, batch = build_detector(cfg).eval(), mixed_batch((0, 2, 30), (0, 3, 2), cfg)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model, batch = model.to('cuda'), batch.to('cuda')
        with Transfers() as transfers:
            work(model, batch)
    return transfers.found


def detect(model, batch):
    found = model.detect_padded(model.extract_feat(batch.images), batch, IN_ROUNDS)
    assert found.valid.device.type == 'cuda' and ('mask_probs' in found.fields) == model.with_mask
    found.to_host()


def propose(model, batch):
    outs = model.rpn_head(model.extract_feat(batch.images))
    model.rpn_head.predict_padded(*outs, batch.metas, model.test_cfg.rpn, IN_ROUNDS).to_host()


@pytest.mark.parametrize('family', sorted(set(FAMILIES) - WAITING))
def test_nothing_is_asked_of_the_device(family, monkeypatch):
    waits = []
    monkeypatch.setattr(instances, 'wait_for', waits.append)
    assert on_fake_gpu(FAMILIES[family](), propose if family == 'rpn' else detect) == []
    assert len(waits) == 1


def test_the_fake_gpu_notices_questions():
    with pytest.raises(Exception, match='nonzero|data-dependent|Dynamic'):
        on_fake_gpu(tiny_models.faster_rcnn(), lambda model, batch: model.rpn_head.predict(
            *model.rpn_head(model.extract_feat(batch.images)), batch.metas))
    assert on_fake_gpu(tiny_models.faster_rcnn(), lambda model, batch: batch.images.cpu()) != []
    assert on_fake_gpu(tiny_models.faster_rcnn(), lambda model, batch: batch.images.new_tensor([1.0])) != []
    assert on_fake_gpu(tiny_models.faster_rcnn(), lambda model, batch: batch.images[torch.tensor([0])]) != []


def settings(**changes) -> dict:
    """tiny_models' test_cfg with keys of its sections changed: ``rpn__nms_post=5``."""
    cfg = tiny_models.test_cfg(score_thr=0.2)
    for path, value in changes.items():
        section, key = path.split('__')
        cfg[section][key] = value
    return cfg


VARIANTS = {
    'plain': settings(), 'few': settings(rcnn__max_per_img=3), 'all_proposals': settings(rpn__max_per_img=-1),
    'least_size': settings(rpn__min_bbox_size=12, rcnn__min_bbox_size=8), 'every_box': settings(rpn__min_bbox_size=-1),
    'across_levels': settings(rpn__nms_across_levels=True), 'nms_post': settings(rpn__nms_post=4),
    'per_batch': settings(rpn__max_per_batch=30), 'agnostic': settings(
        rpn__nms=dict(type='nms', iou_threshold=0.6, class_agnostic=True),
        rcnn__nms=dict(type='nms', iou_threshold=0.4, class_agnostic=True)),
    'without_area': settings(rcnn__keep_empty=False), 'nothing': settings(rcnn__score_thr=1.0),
}


@torch.no_grad()
def drawn_model(cfg: dict) -> torch.nn.Module:
    """Weights that give many results of all sizes and classes."""
    torch.manual_seed(3)
    model = build_detector(cfg).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    for name, weight in model.named_parameters():  # boxes stay about where they are, no class is certain
        if 'reg' in name or 'fc_cls' in name:
            weight.mul_(0.1)
    return model


def same_results(one, other) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other):
        assert len(mine) == len(theirs) and mine.image_size == theirs.image_size
        assert set(mine.fields) == set(theirs.fields) and mine.num_classes == theirs.num_classes
        for name in set(mine.fields) - {'masks'}:
            torch.testing.assert_close(mine.fields[name], theirs.fields[name], rtol=1e-4, atol=1e-4)
        if 'masks' in mine.fields and len(mine):
            differing = (mine.masks_bitmaps() != theirs.masks_bitmaps()).sum()
            assert differing <= 2 * len(mine)


def ask_for_fixed_size(model) -> None:
    """As if the config said so."""
    model.test_cfg = replace(model.test_cfg, fixed_size=True)


def both_ways(model, batch, monkeypatch) -> tuple[list, list]:
    usual = model.predict(batch)
    ask_for_fixed_size(model)
    heads = {type(head) for head in (getattr(model, 'rpn_head', None), getattr(model, 'roi_head', None)) if head}
    asked = []
    for head in heads:
        monkeypatch.setattr(head, 'predict_padded', noted(head.predict_padded, asked))
        monkeypatch.setattr(head, 'predict', head.predict)  # beside it, as before
    found = model.predict(batch)
    assert asked.count(detectors.IN_ROUNDS) == len(heads)
    return usual, found


def noted(method, asked: list):
    def call(*args, **kwargs):
        asked.append(args[-1])  # the suppression
        return method(*args, **kwargs)
    return call


@pytest.mark.parametrize('variant', VARIANTS)
def test_settings_mean_the_same(variant, monkeypatch):
    model = drawn_model(tiny_models.mask_rcnn(test_cfg=VARIANTS[variant]))
    usual, found = both_ways(model, tiny_models.batch((2, 1, 0)), monkeypatch)
    same_results(usual, found)
    assert any(len(r) for r in usual) == (variant != 'nothing')


@pytest.mark.parametrize('family', ['rpn', 'fast', 'faster', 'cascade', 'cascade_mask', 'keypoint', 'c4', 'dc5'])
def test_families_find_the_same(family, monkeypatch):
    cfg = FAMILIES[family]()
    model, batch = drawn_model(cfg), mixed_batch((0, 2, 30), (0, 3, 2), cfg)
    usual, found = both_ways(model, batch, monkeypatch)
    same_results(usual, found)
    assert any(len(r) for r in usual)


def test_images_without_a_proposal(monkeypatch):
    cfg = FAMILIES['fast']()
    usual, found = both_ways(drawn_model(cfg), mixed_batch((0, 0), (0, 0), cfg), monkeypatch)
    same_results(usual, found)
    assert not any(len(r) for r in found)


@pytest.mark.parametrize('part', ['rounds', 'candidates'])
def test_what_was_not_settled_is_done_the_usual_way(part, monkeypatch):
    model, batch = drawn_model(tiny_models.mask_rcnn(test_cfg=settings())), tiny_models.batch()
    if part == 'rounds':
        few = SuppressionInRounds(rounds=1)
    else:
        few = SuppressionInRounds(least_candidates=4, candidates_a_result=1)
    monkeypatch.setattr(detectors, 'IN_ROUNDS', few)
    assert not model.detect_padded(model.extract_feat(batch.images), batch, few).settled
    usual, found = both_ways(model, batch, monkeypatch)
    same_results(usual, found)


def test_a_head_of_ones_own_is_asked_in_its_way():
    class Nothing(BBoxHead):
        def predict(self, *args):
            found = super().predict(*args)
            return found[:0]

    model = drawn_model(tiny_models.faster_rcnn(test_cfg=settings()))
    ask_for_fixed_size(model)
    assert any(len(r) for r in model.predict(tiny_models.batch()))
    model.roi_head.bbox_head.__class__ = Nothing
    with pytest.warns(UserWarning, match='fixed_size=True has no effect: Nothing declares no fixed_size_prediction'):
        assert not any(len(r) for r in model.predict(tiny_models.batch()))
    model.predict(tiny_models.batch())  # told once: a second warning would fail this test


@pytest.mark.parametrize('changes, problem', [
    (dict(rpn__nms_pre=-1), 'rpn.nms_pre sets no limit'),
    (dict(rcnn__max_per_img=-1), 'rcnn.max_per_img sets no limit'),
    (dict(rcnn__nms=dict(type='soft_nms', iou_threshold=0.5)), "rcnn.nms is .* needs type='nms'")])
def test_settings_without_a_fixed_size_are_told(changes, problem):
    model = drawn_model(tiny_models.faster_rcnn(test_cfg=settings(**changes)))
    usual = model.predict(tiny_models.batch())
    ask_for_fixed_size(model)
    with pytest.warns(UserWarning, match=problem):
        same_results(usual, model.predict(tiny_models.batch()))


def test_the_usual_way_is_the_default_and_a_config_asks_for_the_other(monkeypatch):
    assert not build_detector(tiny_models.faster_rcnn()).test_cfg.fixed_size
    model = drawn_model(tiny_models.faster_rcnn(test_cfg=settings() | dict(fixed_size=True)))
    asked = []
    monkeypatch.setattr(model, 'detect_padded', noted(model.detect_padded, asked))
    model.predict(tiny_models.batch())
    assert asked == [IN_ROUNDS]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
@pytest.mark.parametrize('family', ['rpn', 'fast', 'faster', 'mask', 'cascade_mask', 'c4'])
def test_one_synchronisation_on_a_real_gpu(family):
    cfg = FAMILIES[family]()
    model, batch = drawn_model(cfg).cuda(), mixed_batch((0, 2, 30), (0, 3, 2), cfg).to('cuda')
    ask_for_fixed_size(model)
    usual = drawn_model(cfg).predict(mixed_batch((0, 2, 30), (0, 3, 2), cfg))
    model.predict(batch)  # libraries choose their ways in the first call
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            found = model.predict(batch)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert len([w for w in caught if 'synchroniz' in str(w.message)]) <= 1
    assert [len(r) for r in found] == [len(r) for r in usual]
