import pytest
import torch
from torchvision import ops

from boxdet.geometry import boxes as B


def random_boxes(n, seed=0, size=100.0):
    g = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 4, generator=g) * size
    return torch.cat([torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])], 1)


def slow_overlap(a, b, mode):
    iw = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    ih = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    inter = iw * ih
    union = max(area_a if mode == 'iof' else area_a + area_b - inter, 1e-6)
    if mode != 'giou':
        return inter / union
    hull = max((max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1])), 1e-6)
    return inter / union - (hull - union) / hull


def test_overlap_by_hand():
    a = torch.tensor([[0., 0, 10, 10]])
    b = torch.tensor([[5., 0, 15, 10], [0, 0, 5, 5], [20, 20, 30, 30]])
    assert torch.allclose(B.box_overlaps(a, b), torch.tensor([[1 / 3, 0.25, 0.0]]))
    assert torch.allclose(B.box_overlaps(a, b, 'iof'), torch.tensor([[0.5, 0.25, 0.0]]))
    assert torch.allclose(B.box_overlaps(b, a, 'iof'), torch.tensor([[0.5], [1.0], [0.0]]))
    assert torch.allclose(B.box_overlaps(a, b, 'giou')[0, 2], torch.tensor(-(900 - 200) / 900))


@pytest.mark.parametrize('mode', ['iou', 'iof', 'giou'])
def test_overlap_equals_slow_loop(mode):
    a, b = random_boxes(7, 1), random_boxes(9, 2)
    slow = torch.tensor([[slow_overlap(x, y, mode) for y in b.double().tolist()] for x in a.double().tolist()])
    assert torch.allclose(B.box_overlaps(a, b, mode), slow.float(), atol=1e-6)
    assert torch.allclose(B.box_overlaps(a, b[:7], mode, is_aligned=True), slow.diagonal().float(), atol=1e-6)


def test_overlap_of_nothing_and_of_points():
    empty, some = torch.zeros(0, 4), random_boxes(3)
    assert B.box_overlaps(empty, some).shape == (0, 3)
    assert B.box_overlaps(some, empty).shape == (3, 0)
    assert B.box_overlaps(empty, empty, is_aligned=True).shape == (0,)
    point = torch.ones(1, 4)
    assert B.box_overlaps(point, point).item() == 0 and B.box_overlaps(point, point, 'giou').item() == 0


@pytest.mark.parametrize('mode', ['iou', 'iof', 'giou'])
@pytest.mark.parametrize('is_aligned', [True, False])
def test_overlap_gradient(mode, is_aligned):
    a, b = (random_boxes(4, seed).double().requires_grad_() for seed in (3, 4))
    assert torch.autograd.gradcheck(lambda x, y: B.box_overlaps(x, y, mode, is_aligned), (a, b))


def test_overlap_errors():
    with pytest.raises(ValueError, match='iuo'):
        B.box_overlaps(torch.zeros(1, 4), torch.zeros(1, 4), 'iuo')
    with pytest.raises(ValueError, match='shapes'):
        B.box_overlaps(torch.zeros(1, 4), torch.zeros(2, 4), is_aligned=True)


def test_inputs_are_not_written_to():
    a, b = random_boxes(4), random_boxes(5, 1)
    before = a.clone(), b.clone()
    for mode in ('iou', 'iof', 'giou'):
        B.box_overlaps(a, b, mode)
    B.clip_boxes(a, (10, 10)), B.flip_boxes(a, (10, 10)), B.scale_boxes(a, 2.0)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


def test_flip_by_hand():
    box = torch.tensor([[10., 20, 30, 50]])
    assert B.flip_boxes(box, (100, 200)).tolist() == [[170, 20, 190, 50]]
    assert B.flip_boxes(box, (100, 200), 'vertical').tolist() == [[10, 50, 30, 80]]
    assert B.flip_boxes(box, (100, 200), 'diagonal').tolist() == [[170, 50, 190, 80]]
    with pytest.raises(ValueError, match='sideways'):
        B.flip_boxes(box, (100, 200), 'sideways')


@pytest.mark.parametrize('direction', B.FLIP_DIRECTIONS)
def test_flip_twice_is_nothing(direction):
    boxes = torch.arange(24.0).reshape(3, 8)                    # (N, 4K)
    once = B.flip_boxes(boxes, (60, 80, 3), direction)
    assert torch.equal(B.flip_boxes(once, (60, 80, 3), direction), boxes)
    assert torch.equal(once[:, 4:], B.flip_boxes(boxes[:, 4:], (60, 80), direction))
    assert B.flip_boxes(torch.zeros(0, 4), (6, 8), direction).shape == (0, 4)


def test_clip_scale_area():
    box = torch.tensor([[-5., 3, 30, 50]])
    assert B.clip_boxes(box, (40, 20)).tolist() == [[0, 3, 20, 40]]
    assert B.scale_boxes(box, 2.0).tolist() == [[-10, 6, 60, 100]]
    assert B.scale_boxes(box, (2.0, 0.5)).tolist() == [[-10, 1.5, 60, 25]]
    assert B.scale_boxes(torch.cat([box, box], 1), torch.tensor([1., 2, 3, 4])).tolist() == [[-5, 6, 90, 200] * 2]
    assert B.box_area(box).tolist() == [35 * 47]


def test_formats_against_torchvision():
    boxes = random_boxes(6)
    for name, to, back in (('xywh', B.xyxy_to_xywh, B.xywh_to_xyxy), ('cxcywh', B.xyxy_to_cxcywh, B.cxcywh_to_xyxy)):
        assert torch.allclose(to(boxes), ops.box_convert(boxes, 'xyxy', name))
        assert torch.allclose(back(to(boxes)), boxes, atol=1e-5)
        assert to(torch.zeros(0, 4)).shape == (0, 4)


def test_clipping_by_hand_in_one_image_and_in_its_own_each():
    boxes = torch.tensor([[-1., -2, 90, 70], [-0.5, 3, 5, 6], [70, 50, 95, 99]])
    expected = [[0, 0, 80, 60], [0, 3, 5, 6], [70, 50, 80, 60]]
    assert B.clip_boxes(boxes, (60, 80, 3)).tolist() == expected
    assert B.clip_boxes(boxes, torch.tensor([60, 80])).tolist() == expected
    assert B.clip_boxes(boxes, torch.tensor([[60, 80], [4, 2], [55, 90]])).tolist() == [
        [0, 0, 80, 60], [0, 3, 2, 4], [70, 50, 90, 55]]
