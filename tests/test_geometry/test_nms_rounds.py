"""Suppression in rounds keeps what ``batched_nms`` keeps, or says that it is not done."""

import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.geometry.nms import EXACT, batched_nms, best_in_order
from boxdet.geometry.nms_rounds import IN_ROUNDS, nms_in_rounds


def sorted_sets(batch: int, count: int, groups: int = 1, seed: int = 0, size: float = 60.0):
    """Random boxes of ``batch`` sets, best first; some scores are equal, as are some boxes."""
    g = torch.Generator().manual_seed(seed)
    center, half = torch.rand(batch, count, 2, generator=g) * size, torch.rand(batch, count, 2, generator=g) * 15 + 1
    boxes = torch.cat([center - half, center + half], dim=2)
    boxes[:, 1::7] = boxes[:, :1]
    scores = (torch.rand(batch, count, generator=g) * 50).round().div(50).sort(dim=1, descending=True).values
    return boxes, scores, torch.randint(groups, (batch, count), generator=g)


@pytest.mark.parametrize('cfg', [dict(iou_threshold=0.5), dict(type='nms', iou_threshold=0.0), dict(iou_thr=0.7),
                                 dict(iou_threshold=0.3, class_agnostic=True), dict(iou_threshold=0.5, offset=1),
                                 dict(iou_threshold=0.5, score_threshold=0.4), None], ids=str)
@pytest.mark.parametrize('count', [0, 1, 250])
def test_keeps_what_the_usual_suppression_keeps(cfg, count):
    boxes, scores, groups = sorted_sets(3, count, groups=4)
    valid = torch.rand(3, count, generator=torch.Generator().manual_seed(1)) < 0.8
    keep, settled = nms_in_rounds(boxes, scores, valid, cfg, groups)
    assert settled and keep.dtype == torch.bool
    for own, score, group, present, kept in zip(boxes, scores, groups, valid, keep):
        places = present.nonzero().squeeze(1)
        _, expected = batched_nms(own[places], score[places], group[places], cfg)
        assert kept.nonzero().squeeze(1).tolist() == sorted(places[expected].tolist())


def test_blocks_of_rows_change_nothing(monkeypatch):
    boxes, scores, groups = sorted_sets(2, 120, groups=2)
    valid = torch.ones(2, 120, dtype=torch.bool)
    whole, _ = nms_in_rounds(boxes, scores, valid, dict(iou_threshold=0.4), groups)
    monkeypatch.setattr('boxdet.geometry.nms_rounds._PAIRS_AT_ONCE', 1000)
    assert torch.equal(nms_in_rounds(boxes, scores, valid, dict(iou_threshold=0.4), groups)[0], whole)


def chain(links: int) -> torch.Tensor:
    """Boxes of which each overlaps the one before and the one after, and no other: every second one stays."""
    left = torch.arange(links) * 6.0
    return torch.stack([left, torch.zeros(links), left + 10, torch.full((links,), 10.0)], dim=1)[None]


@pytest.mark.parametrize('links, rounds, done', [(10, 11, True), (10, 4, False), (40, 32, False)])
def test_a_chain_longer_than_the_rounds_is_not_settled(links, rounds, done):
    keep, settled = nms_in_rounds(chain(links), torch.linspace(1, 0, links)[None],
                                  torch.ones(1, links, dtype=torch.bool),
                                  dict(iou_threshold=0.2), rounds=rounds)
    assert bool(settled) == done
    if done:
        assert keep[0].tolist() == [i % 2 == 0 for i in range(links)]


def test_boxes_without_area_suppress_nothing():
    boxes = torch.tensor([[[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]]])
    keep, settled = nms_in_rounds(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.ones(1, 3, dtype=torch.bool),
                                  dict(iou_threshold=0.0))
    assert settled and keep.all()


def test_which_configs_have_rounds():
    assert IN_ROUNDS.supports(None) and IN_ROUNDS.supports(dict(iou_threshold=0.5))
    assert not IN_ROUNDS.supports(dict(type='soft_nms'))
    assert not IN_ROUNDS.supports(dict(iou_threshold=0.5, max_num=5))
    with pytest.raises(ConfigError, match='iou_threshold'):
        IN_ROUNDS.supports(dict(iou_treshold=0.5))


@pytest.mark.parametrize('parts', [None, [40, 7, 3], [50]], ids=str)
@pytest.mark.parametrize('cfg', [dict(iou_threshold=0.4), dict(iou_threshold=0.4, class_agnostic=True), None], ids=str)
def test_both_suppressions_keep_the_same(cfg, parts):
    boxes, scores, groups = sorted_sets(2, 50, groups=4)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    boxes, scores, groups = boxes[:, order], scores[:, order], None if parts else groups[:, order]
    scores = scores + torch.arange(50) * 1e-4  # none are equal: their order is another matter
    valid = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)) < 0.8
    one, other = (kind.keep(boxes, scores, valid, cfg, groups, parts) for kind in (EXACT, IN_ROUNDS))
    assert one[0].any() and not (one[0] & ~valid).any() and other[2]
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize('count', [0, 3, 60, 1000])
def test_the_best_come_in_order(count):
    scores = (torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) * 9).round()
    values, place = best_in_order(scores, count)
    expected, order = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :count])
    assert torch.equal(scores.gather(1, place), values)
    inside = values > (values[:, -1:] if count else 0)  # of those that equal the last any may be taken
    assert torch.equal(place[inside], order[:, :count][inside])


def test_how_many_candidates_are_looked_at():
    present = torch.zeros(2, 5000, dtype=torch.bool)
    assert [IN_ROUNDS.room(present, wanted) for wanted in (-1, 100, 256, 257, 1000, 2000)] == [
        1024, 1024, 1024, 1028, 4000, 5000]
    assert IN_ROUNDS.room(present[:, :9], 100) == 9
