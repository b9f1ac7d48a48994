"""The suppressions of exported graphs keep what the exact one keeps."""
import pytest
import torch

from boxdet.export.suppression import OnnxSuppression, ProgramSuppression
from boxdet.geometry.nms import EXACT

NMS = dict(type='nms', iou_threshold=0.5)


def candidates(batch: int, count: int, groups: int):
    random = torch.Generator().manual_seed(3)
    corner = torch.rand(batch, count, 2, generator=random) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(batch, count, 2, generator=random) * 40], dim=2)
    scores = torch.rand(batch, count, generator=random)
    return boxes, scores, scores > 0.2, torch.randint(groups, (batch, count), generator=random)


@pytest.mark.parametrize('kind', [OnnxSuppression, ProgramSuppression])
@pytest.mark.parametrize('changes', [{}, dict(class_agnostic=True), dict(offset=1), dict(score_threshold=0.5)])
def test_by_class_as_the_exact_one(kind, changes):
    boxes, scores, valid, labels = candidates(2, 60, 4)
    expected, _, _ = EXACT.keep(boxes, scores, valid, NMS | changes, groups=labels)
    kept, same, settled = kind(100, 4).keep(boxes, scores, valid, NMS | changes, groups=labels)
    assert torch.equal(kept, expected) and torch.equal(same, scores) and settled
    assert 0 < kept.sum() < valid.sum()


@pytest.mark.parametrize('kind', [OnnxSuppression, ProgramSuppression])
def test_by_level_as_the_exact_one(kind):
    boxes, scores, valid, _ = candidates(2, 60, 1)
    expected, _, _ = EXACT.keep(boxes, scores, valid, NMS, parts=[40, 15, 5])
    assert torch.equal(kind(100, 4).keep(boxes, scores, valid, NMS, parts=[40, 15, 5])[0], expected)


def test_nothing_to_keep():
    boxes, scores, valid, labels = candidates(2, 10, 3)
    for kind in (OnnxSuppression, ProgramSuppression):
        assert not kind(100, 3).keep(boxes, scores, torch.zeros_like(valid), NMS, groups=labels)[0].any()
        assert torch.equal(kind(100, 3).keep(boxes, scores, valid, None, groups=labels)[0], valid)


def test_the_best_are_filled_up_to_a_number():
    scores = torch.tensor([[0.3, 0.9, 0.5]])
    found, place = OnnxSuppression(9, 1).best(scores, 2)
    assert torch.equal(found, torch.tensor([[0.9, 0.5]])) and place.tolist() == [[1, 2]]
    found, place = OnnxSuppression(9, 1).best(scores, 5)
    assert torch.equal(found, torch.tensor([[0.9, 0.5, 0.3, -1, -1]])) and place[0, :3].tolist() == [1, 2, 0]
    assert place.max() < 3


def test_what_it_does_not_support():
    one = OnnxSuppression(9, 1)
    assert one.supports(NMS) and one.supports(None)
    assert not one.supports(dict(type='soft_nms', iou_threshold=0.3)) and not one.supports(NMS | dict(max_num=5))
