"""Suppression in rounds keeps what ``batched_nms`` keeps, or says that it is not done."""

import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.geometry.nms import batched_nms
from boxdet.geometry.nms_rounds import has_rounds, nms_in_rounds


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
    keep, settled = nms_in_rounds(chain(links), torch.linspace(1, 0, links)[None], torch.ones(1, links, dtype=torch.bool),
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
    assert has_rounds(None) and has_rounds(dict(iou_threshold=0.5))
    assert not has_rounds(dict(type='soft_nms')) and not has_rounds(dict(iou_threshold=0.5, max_num=5))
    with pytest.raises(ConfigError, match='iou_threshold'):
        has_rounds(dict(iou_treshold=0.5))
