import math

import pytest
import torch
from torchvision.ops import box_iou

from boxdet.errors import ConfigError
from boxdet.geometry import nms as N


def candidates(n, groups, seed=0, size=60.0):
    g = torch.Generator().manual_seed(seed)
    center, half = torch.rand(n, 2, generator=g) * size, torch.rand(n, 2, generator=g) * 15 + 1
    return (torch.cat([center - half, center + half], 1), torch.rand(n, generator=g),
            torch.randint(groups, (n,), generator=g))


def slow_nms(boxes, scores, idxs, threshold):
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        same = [k for k in kept if idxs[k] == idxs[i]]
        if not same or (box_iou(boxes[i:i + 1], boxes[same]) <= threshold).all():
            kept.append(i)
    return kept


def slow_soft_nms(boxes, scores, idxs, threshold=0.3, sigma=0.5, min_score=1e-3, method='linear'):
    """The sequential rule over all boxes, as mmcv runs it: take the best, decay, drop what fell below min_score."""
    left, current, result = list(range(len(boxes))), scores.tolist(), []
    while left:
        best = max(left, key=lambda i: (current[i], -i))
        left.remove(best)
        result.append((best, current[best]))
        for i in list(left):
            iou = box_iou(boxes[best:best + 1], boxes[i:i + 1]).item() if idxs[i] == idxs[best] else 0.0
            if method == 'gaussian':
                current[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                current[i] *= 1 - iou if method == 'linear' else 0
            if current[i] < min_score:
                left.remove(i)
    return result


def test_nms_by_hand():
    boxes = torch.tensor([[0., 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    scores = torch.tensor([0.6, 0.9, 0.8, 0.7])
    dets, keep = N.batched_nms(boxes, scores, torch.tensor([0, 0, 1, 0]), dict(type='nms', iou_threshold=0.5))
    assert keep.tolist() == [1, 2, 3]
    assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], 1))
    _, keep = N.batched_nms(boxes, scores, torch.tensor([0, 0, 1, 0]), dict(iou_thr=0.5), class_agnostic=True)
    assert keep.tolist() == [1, 3]


def test_overlap_equal_to_the_threshold_survives():
    boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 5]])
    assert len(N.batched_nms(boxes, torch.tensor([.9, .8]), torch.zeros(2), dict(iou_threshold=0.5))[1]) == 2
    assert len(N.batched_nms(boxes, torch.tensor([.9, .8]), torch.zeros(2), dict(iou_threshold=0.499))[1]) == 1


@pytest.mark.parametrize('n,groups,limits', [(300, 5, {}), (300, 5, dict(split_thr=10)), (1300, 20, {}), (40, 40, {})])
def test_nms_equals_slow_loop(n, groups, limits):
    boxes, scores, idxs = candidates(n, groups, seed=n)
    dets, keep = N.batched_nms(boxes, scores, idxs, dict(type='nms', iou_threshold=0.4, **limits))
    assert keep.tolist() == slow_nms(boxes, scores, idxs, 0.4)
    assert torch.equal(dets[:, 4], scores[keep])


def test_many_classes_of_a_large_image_do_not_touch():
    # In float32, shifting class 1200 by 1200 * 10001 moves its corners by up to half a pixel.
    boxes = torch.tensor([[0., 0, 1, 1], [0.26, 0, 1.26, 1]]).repeat(2, 1)
    boxes[2:] += 9999
    idxs, scores = torch.tensor([0, 0, 1200, 1200]), torch.tensor([.9, .8, .7, .6])
    assert len(N.batched_nms(boxes, scores, idxs, dict(iou_threshold=0.585))[1]) == 2
    assert len(N.batched_nms(boxes, scores, idxs, dict(iou_threshold=0.59))[1]) == 4


def test_negative_coordinates_do_not_reach_other_groups():
    boxes = torch.tensor([[-100., -100, 5, 5], [-94, -94, 11, 11]])
    idxs = torch.tensor([0, 1])
    assert len(N.batched_nms(boxes, torch.tensor([.9, .8]), idxs, dict(iou_threshold=0.1))[1]) == 2


def test_equal_scores_keep_their_order():
    boxes = torch.arange(6.0)[:, None] * 20 + torch.tensor([0., 0, 10, 10])
    for limits in ({}, dict(split_thr=1)):
        keep = N.batched_nms(boxes, torch.ones(6), torch.tensor([2, 1, 0] * 2), dict(iou_threshold=0.5, **limits))[1]
        assert keep.tolist() == list(range(6))


def test_options_max_num_score_threshold_offset_and_none():
    boxes, scores, idxs = candidates(50, 3)
    full = N.batched_nms(boxes, scores, idxs, dict(iou_threshold=0.5))[1]
    assert torch.equal(N.batched_nms(boxes, scores, idxs, dict(iou_threshold=0.5, max_num=7))[1], full[:7])
    above = N.batched_nms(boxes, scores, idxs, dict(iou_threshold=0.5, score_threshold=0.6))[1]
    assert torch.equal(above, full[scores[full] > 0.6])
    assert len(N.batched_nms(boxes, scores, idxs, dict(iou_threshold=0.5, score_threshold=2.0))[1]) == 0
    dets, keep = N.batched_nms(boxes, scores, idxs, None)
    assert torch.equal(keep, scores.argsort(descending=True)) and torch.equal(dets[:, :4], boxes[keep])
    pair = torch.tensor([[0., 0, 1, 1], [1, 0, 2, 1]])          # with "+1" they overlap by 2 of 6
    for offset, count in ((0, 2), (1, 1)):
        kept = N.batched_nms(pair, torch.tensor([.9, .8]), torch.zeros(2), dict(iou_threshold=0.3, offset=offset))[0]
        assert len(kept) == count and kept[0].tolist() == pytest.approx([0, 0, 1, 1, .9])
    agnostic = dict(iou_threshold=0.5, class_agnostic=True)
    assert N.batched_nms(boxes, scores, idxs, agnostic)[1].tolist() == slow_nms(boxes, scores, idxs * 0, 0.5)


@pytest.mark.parametrize('method', ['linear', 'gaussian', 'naive'])
@pytest.mark.parametrize('min_score', [1e-3, 0.2])
def test_soft_nms_equals_slow_loop(method, min_score):
    boxes, scores, idxs = candidates(80, 4, seed=5)
    cfg = dict(type='soft_nms', iou_threshold=0.3, min_score=min_score, method=method)
    dets, keep = N.batched_nms(boxes, scores, idxs, cfg)
    slow = slow_soft_nms(boxes, scores, idxs, min_score=min_score, method=method)
    assert keep.tolist() == [i for i, _ in slow]
    assert dets[:, 4].tolist() == pytest.approx([s for _, s in slow], rel=1e-5)
    assert torch.equal(dets[:, :4], boxes[keep])


def test_soft_nms_by_hand():
    boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]])
    dets, keep = N.batched_nms(boxes, torch.tensor([.9, .8, .7]), torch.tensor([0, 0, 1]),
                               dict(type='soft_nms', iou_threshold=0.3, min_score=0.05))
    assert keep.tolist() == [0, 2, 1]
    assert dets[:, 4].tolist() == pytest.approx([.9, .7, .4])


def test_soft_nms_below_min_score_keeps_the_best_only():
    boxes, _, idxs = candidates(5, 2)
    scores = torch.tensor([.01, .03, .02, .01, .01])
    assert N.batched_nms(boxes, scores, idxs, dict(type='soft_nms', min_score=0.05))[1].tolist() == [1]


@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_empty(kind):
    cfg = dict(type=kind, iou_threshold=0.5)
    empty = torch.zeros(0, dtype=torch.long)
    dets, keep = N.batched_nms(torch.zeros(0, 4), torch.zeros(0), empty, cfg)
    assert dets.shape == (0, 5) and keep.shape == (0,) and keep.dtype == torch.long
    for boxes in (torch.zeros(0, 4), torch.zeros(0, 12)):
        dets, labels, inds = N.multiclass_nms(boxes, torch.zeros(0, 4), 0.05, cfg, 100, return_inds=True)
        assert dets.shape == (0, 5) and labels.shape == (0,) and inds.shape == (0,)
    dets, labels = N.multiclass_nms(torch.rand(5, 4), torch.zeros(5, 4), 0.05, cfg, 100)
    assert dets.shape == (0, 5) and labels.shape == (0,)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_full(dtype):
    boxes, scores, idxs = candidates(200, 3)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        dets, keep = N.batched_nms(boxes, scores, idxs, dict(iou_threshold=0.5))
    assert dets.dtype == torch.float32
    assert keep.tolist() == slow_nms(boxes.float(), scores.float(), idxs, 0.5)


@pytest.mark.parametrize('per_class', [False, True])
def test_multiclass_nms_equals_slow_loop(per_class):
    num, classes = 40, 3
    boxes = torch.cat([candidates(num, 1, seed)[0] for seed in range(classes if per_class else 1)], dim=1)
    scores = torch.rand(num, classes + 1, generator=torch.Generator().manual_seed(9))
    dets, labels, inds = N.multiclass_nms(boxes, scores, 0.4, dict(iou_threshold=0.3), 25, return_inds=True)
    expected = []
    for k in range(classes):
        own = boxes[:, 4 * k:4 * k + 4] if per_class else boxes
        rows = (scores[:, k] > 0.4).nonzero().squeeze(1)
        kept = rows[slow_nms(own[rows], scores[rows, k], torch.zeros(len(rows)), 0.3)]
        expected += [(scores[i, k].item(), k, i * classes + k, own[i].tolist()) for i in kept.tolist()]
    expected = sorted(expected, reverse=True)[:25]
    assert labels.tolist() == [e[1] for e in expected] and inds.tolist() == [e[2] for e in expected]
    assert torch.equal(dets, torch.tensor([e[3] + [e[0]] for e in expected]))


def test_multiclass_nms_score_factors_act_after_the_threshold():
    boxes, scores = torch.tensor([[0., 0, 9, 9], [20, 20, 30, 30]]), torch.tensor([[.9, .1], [.3, .7]])
    dets, labels = N.multiclass_nms(boxes, scores, 0.2, dict(iou_threshold=0.5), score_factors=torch.tensor([.1, 1.]))
    assert dets[:, 4].tolist() == pytest.approx([.3, .09]) and labels.tolist() == [0, 0]


@pytest.mark.parametrize('cfg,message', [
    (dict(type='sofft_nms'), 'soft_nms'), (dict(type='nms'), 'iou_threshold'),
    (dict(type='nms', iou_treshold=0.5), "did you mean 'iou_threshold'"),
    (dict(type='soft_nms', method='gausian'), "did you mean 'gaussian'")])
def test_wrong_config(cfg, message):
    with pytest.raises(ConfigError, match=message):
        N.batched_nms(torch.rand(2, 4), torch.rand(2), torch.zeros(2), cfg)


def test_config_is_not_changed():
    cfg = dict(type='nms', iou_thr=0.5, split_thr=3, max_num=2, class_agnostic=True)
    before = dict(cfg)
    N.batched_nms(*candidates(10, 2), cfg)
    assert cfg == before


def test_devices_without_float64(monkeypatch):
    """Apple's GPUs have none: everything stays in float32 there, and finds the same but for the last bits."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + 5 + 30 * torch.rand(200, 2, generator=generator)], dim=1)
    scores, groups = torch.rand(200, generator=generator), torch.arange(200) % 3
    usual = N.batched_nms(boxes, scores, groups, dict(type='nms', iou_threshold=0.5))[1]
    monkeypatch.setattr(N, 'WITHOUT_FLOAT64', ('cpu',))
    monkeypatch.setattr(torch.Tensor, 'double', None)  # whoever asks for float64 fails
    assert torch.equal(N.batched_nms(boxes, scores, groups, dict(type='nms', iou_threshold=0.5))[1], usual)
    agnostic = dict(type='nms', iou_threshold=0.5, class_agnostic=True)
    assert len(N.batched_nms(boxes, scores, groups, agnostic)[1]) < len(usual)


def test_all_options_and_their_defaults():
    common = dict(iou_threshold=0.5, max_num=-1, class_agnostic=False, split_thr=10000, offset=0)
    assert N.read_nms_config(dict(type='nms', iou_thr=0.5)) == ('nms', dict(common, score_threshold=0.0))
    assert N.read_nms_config(dict(type='soft_nms'), True) == ('soft_nms', dict(
        common, class_agnostic=True, iou_threshold=0.3, sigma=0.5, min_score=1e-3, method='linear'))


@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_as_many_as_asked_for(kind):
    boxes, scores, groups = candidates(30, 3)
    every = N.batched_nms(boxes, scores, groups, dict(type=kind, iou_threshold=0.5))[0]
    for count in (1, 2, 30):
        found = N.batched_nms(boxes, scores, groups, dict(type=kind, iou_threshold=0.5, max_num=count))[0]
        assert torch.equal(found, every[:count])
    wide = torch.cat([1 - scores[:, None], torch.rand(30, 2) * 0.1, scores[:, None]], dim=1)
    every = N.multiclass_nms(boxes, wide, 0.05, dict(type=kind, iou_threshold=0.5))
    for count in (1, 3):
        dets, labels = N.multiclass_nms(boxes, wide, 0.05, dict(type=kind, iou_threshold=0.5), count)
        assert torch.equal(dets, every[0][:count]) and torch.equal(labels, every[1][:count])


@pytest.mark.parametrize('method', ['linear', 'naive', 'gaussian'])
def test_soft_suppression_of_boxes_smaller_than_a_pixel(method):
    boxes, scores, groups = candidates(40, 2)
    cfg = dict(type='soft_nms', method=method)
    large, small = (N.batched_nms(box, scores, groups, cfg) for box in (boxes, boxes / 64))
    assert torch.equal(large[1], small[1])
    torch.testing.assert_close(large[0][:, 4], small[0][:, 4], rtol=1e-4, atol=1e-6)


def test_the_best_of_many_keep_their_order():
    scores = torch.tensor([[1, 3, 2, 3, 0, 3, 2, 1, 3.], [0, 0, 5, 0, 0, 5, 0, 0, 0]])
    whole = scores.sort(dim=1, descending=True, stable=True)
    for count in (1, 2, 3, 4, 5, 9):
        found, place = N.best_in_order(scores, count)
        assert torch.equal(found, whole.values[:, :count])
        assert set(map(tuple, scores.gather(1, place).tolist())) == set(map(tuple, found.tolist()))
    assert N.best_in_order(scores, 4)[1].tolist()[0] == [1, 3, 5, 8]
    assert N.EXACT.pick(scores, 9)[1].tolist() == whole.indices.tolist()


def test_a_score_that_equals_the_threshold_is_no_candidate():
    boxes, scores = torch.tensor([[0., 0, 5, 5], [9, 9, 20, 20]]), torch.tensor([[0.25, 0.75], [0.26, 0.74]])
    assert len(N.multiclass_nms(boxes, scores, 0.25, dict(type='nms', iou_threshold=0.5))[0]) == 1
