import math

import pytest
import torch
from torch.nn import functional as F
from torchvision import ops

from boxdet.errors import ConfigError
from boxdet.models import losses as L
from boxdet.registry import LOSSES

BOX_LOSSES = ['IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'BoundedIoULoss']
ELEMENT_LOSSES = ['L1Loss', 'SmoothL1Loss', 'MSELoss', 'BalancedL1Loss']


def build(kind, **options):
    return LOSSES.build(dict(type=kind, **options))


def boxes(n=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * 20
    return torch.cat([corner, corner + 2 + torch.rand(n, 2, generator=g) * 20], 1)


# --------------------------------------------------------------------------------------------- reduction


def test_reduction_by_hand():
    loss, weight = torch.tensor([1., 2, 3, 4]), torch.tensor([1., 0, 1, 2])
    assert L.weight_reduce_loss(loss).item() == 2.5
    assert L.weight_reduce_loss(loss, weight).item() == 3
    assert L.weight_reduce_loss(loss, weight, 'sum').item() == 12
    assert L.weight_reduce_loss(loss, weight, 'none').tolist() == [1, 0, 3, 8]
    assert L.weight_reduce_loss(loss, weight, avg_factor=3).item() == pytest.approx(4)
    assert L.weight_reduce_loss(loss, weight, avg_factor=torch.tensor(3)).item() == pytest.approx(4)
    assert L.weight_reduce_loss(loss, weight * 0, avg_factor=0).item() == 0
    with pytest.raises(ValueError, match='avg_factor'):
        L.weight_reduce_loss(loss, weight, 'sum', 3)
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        build('L1Loss', reduction='meen')
    with pytest.raises(ConfigError):
        build('L1Loss')(loss, loss, reduction_override='average')


@pytest.mark.parametrize('kind', ELEMENT_LOSSES + BOX_LOSSES)
def test_common_arguments(kind):
    pred, target = boxes(seed=1), boxes(seed=2)
    loss, single = build(kind, loss_weight=3.0), build(kind)
    each = single(pred, target, reduction_override='none')
    assert len(each) == 9
    assert torch.allclose(loss(pred, target), 3 * each.mean())
    assert torch.allclose(build(kind, reduction='sum')(pred, target), each.sum())
    weight = torch.rand(9, 4, generator=torch.Generator().manual_seed(3))
    by_box = each if kind in ELEMENT_LOSSES or kind == 'BoundedIoULoss' else each[:, None].expand(9, 4) / 4
    assert torch.allclose(loss(pred, target, weight, avg_factor=5.0), 3 * (by_box * weight).sum() / 5)


@pytest.mark.parametrize('kind', ELEMENT_LOSSES + BOX_LOSSES)
@pytest.mark.parametrize('avg_factor', [None, 256])
def test_empty_is_a_zero_of_the_graph(kind, avg_factor):
    head = torch.ones(1, requires_grad=True)
    pred = torch.zeros(0, 4) * head
    for weight in (None, torch.zeros(0, 4)):
        loss = build(kind)(pred, torch.zeros(0, 4), weight, avg_factor=avg_factor)
        assert loss.shape == () and loss.item() == 0
        loss.backward(retain_graph=True)
        assert head.grad.item() == 0


@pytest.mark.parametrize('kind', ELEMENT_LOSSES + BOX_LOSSES)
def test_half_precision_and_gradient(kind):
    loss = build(kind)
    assert loss(boxes(seed=1).bfloat16(), boxes(seed=2)).dtype == torch.float32
    pred, target = boxes(4, 5).double().requires_grad_(), boxes(4, 6).double()
    if kind != 'CIoULoss':                                       # its trade-off is meant to be a constant
        assert torch.autograd.gradcheck(lambda p: loss(p, target, reduction_override='none'), pred)


# --------------------------------------------------------------------------------------------- regression


def test_regression_by_hand():
    pred, target = torch.tensor([0., 0.5, 3]), torch.tensor([0., 0, 0])
    assert build('L1Loss')(pred, target, reduction_override='none').tolist() == [0, 0.5, 3]
    assert build('MSELoss')(pred, target, reduction_override='none').tolist() == [0, 0.25, 9]
    assert build('SmoothL1Loss')(pred, target, reduction_override='none').tolist() == [0, 0.125, 2.5]
    narrow = build('SmoothL1Loss', beta=1 / 9)(pred, target, reduction_override='none')
    assert narrow.tolist() == pytest.approx([0, 0.5 - 1 / 18, 3 - 1 / 18])
    with pytest.raises(ValueError, match='target'):
        build('L1Loss')(pred, target[:2])
    with pytest.raises(ConfigError):
        build('SmoothL1Loss', beta=0)
    with pytest.raises(ConfigError):
        build('BalancedL1Loss', beta=0)


@pytest.mark.parametrize('beta', [1.0, 0.5])
def test_balanced_l1_equals_slow_formula(beta):
    alpha, gamma = 0.5, 1.5
    b = math.exp(gamma / alpha) - 1
    errors = [0.0, 0.1, 0.49, 0.51, 0.99, 1.01, 4.0]
    slow = [alpha / b * (b * x + 1) * math.log(b * x / beta + 1) - alpha * x if x < beta
            else gamma * x + gamma / b - alpha * beta for x in errors]
    found = build('BalancedL1Loss', beta=beta)(torch.tensor(errors), torch.zeros(7), reduction_override='none')
    assert found.tolist() == pytest.approx(slow, rel=1e-5)


# --------------------------------------------------------------------------------------------- boxes


def test_iou_losses_equal_torchvision():
    pred, target = boxes(30, 1), boxes(30, 2)
    for kind, peer in (('GIoULoss', ops.generalized_box_iou_loss), ('DIoULoss', ops.distance_box_iou_loss)):
        assert torch.allclose(build(kind)(pred, target, reduction_override='none'), peer(pred, target), atol=1e-5)
    # mmdetection drops the aspect term below an IoU of 0.5, torchvision does not.
    near = target + torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) * 0.6
    assert (ops.box_iou(near, target).diagonal() > 0.5).all()
    ours = build('CIoULoss')(near, target, reduction_override='none')
    assert torch.allclose(ours, ops.complete_box_iou_loss(near, target), atol=1e-5)
    far = ops.box_iou(pred, target).diagonal() <= 0.5
    ciou, diou = (build(kind)(pred, target, reduction_override='none') for kind in ('CIoULoss', 'DIoULoss'))
    assert far.any() and torch.equal(ciou[far], diou[far])


def test_ciou_of_large_equal_boxes_is_finite():
    box = torch.tensor([[0., 0, 4000, 3000], [10, 10, 10, 10]], requires_grad=True)
    loss = build('CIoULoss')(box, box.detach())
    loss.backward()
    assert math.isfinite(loss.item()) and box.grad.isfinite().all()


def test_iou_loss_modes():
    pred, target = torch.tensor([[0., 0, 10, 10], [0, 0, 1, 1]]), torch.tensor([[0., 0, 10, 5], [5, 5, 6, 6]])
    def each(**options):
        return build('IoULoss', **options)(pred, target, reduction_override='none').tolist()
    assert each() == pytest.approx([math.log(2), -math.log(1e-6)])
    assert each(mode='linear') == each(linear=True) == pytest.approx([0.5, 1 - 1e-6])
    assert each(mode='square') == pytest.approx([0.75, 1])
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        build('IoULoss', mode='liner')


def slow_bounded(p, t, beta=0.2, eps=1e-3):
    values = []
    for axis in (0, 1):
        size, gt = p[axis + 2] - p[axis], t[axis + 2] - t[axis]
        shift = abs((t[axis] + t[axis + 2]) / 2 - (p[axis] + p[axis + 2]) / 2)
        values.append((1 - max((gt - 2 * shift) / (gt + 2 * shift + eps), 0),
                       1 - min(gt / (size + eps), size / (gt + eps))))
    flat = [values[0][0], values[1][0], values[0][1], values[1][1]]
    return [0.5 * v * v / beta if v < beta else v - 0.5 * beta for v in flat]


def test_bounded_iou_equals_slow_formula():
    pred, target = boxes(6, 1), boxes(6, 2)
    found = build('BoundedIoULoss')(pred, target, reduction_override='none')
    slow = torch.tensor([slow_bounded(p, t) for p, t in zip(pred.tolist(), target.tolist())])
    assert torch.allclose(found, slow, atol=1e-5)
    weight = torch.rand(6)
    by_row = build('BoundedIoULoss')(pred, target, weight, avg_factor=2)
    assert torch.allclose(by_row, (slow * weight[:, None]).sum() / 2, atol=1e-5)
    with pytest.raises(ConfigError):
        build('BoundedIoULoss', beta=0)


# --------------------------------------------------------------------------------------------- classification


def test_softmax_cross_entropy_equals_slow_loop():
    g = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(8, 4, generator=g), torch.randint(4, (8,), generator=g)
    weight = torch.rand(8, generator=g)
    slow = [math.log(sum(math.exp(v) for v in row)) - row[k] for row, k in zip(scores.tolist(), labels.tolist())]
    loss = build('CrossEntropyLoss', loss_weight=2.0)
    assert loss(scores, labels).item() == pytest.approx(2 * sum(slow) / 8, rel=1e-5)
    weighed = sum(s * w for s, w in zip(slow, weight.tolist()))
    assert loss(scores, labels, weight, avg_factor=16).item() == pytest.approx(2 * weighed / 16, rel=1e-5)
    assert loss(scores, labels, weight).item() == pytest.approx(2 * weighed / 8, rel=1e-5)
    classes = [0.5, 1.0, 2.0, 3.0]
    by_class = sum(s * classes[k] for s, k in zip(slow, labels.tolist())) / 8
    assert build('CrossEntropyLoss', class_weight=classes)(scores, labels).item() == pytest.approx(by_class, rel=1e-5)


def test_cross_entropy_ignore_index():
    scores, labels = torch.randn(4, 3), torch.tensor([0, 255, 2, 255])
    kept = F.cross_entropy(scores[[0, 2]], labels[[0, 2]], reduction='sum')
    assert torch.allclose(build('CrossEntropyLoss', ignore_index=255)(scores, labels), kept / 4)
    assert torch.allclose(build('CrossEntropyLoss')(scores, labels, ignore_index=255), kept / 4)
    only = build('CrossEntropyLoss', ignore_index=255, avg_non_ignore=True)
    assert torch.allclose(only(scores, labels), kept / 2)
    assert torch.allclose(only(scores, labels, avg_factor=8), kept / 8)
    assert torch.allclose(only(scores, labels, reduction_override='sum'), kept)


def test_sigmoid_cross_entropy_by_class():
    scores, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 3, 1, -1])    # 3: none, -1: ignored
    answers = torch.tensor([[1., 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.float64)
    each = F.binary_cross_entropy_with_logits(scores, answers, reduction='none')
    each[4] = 0
    loss = build('CrossEntropyLoss', use_sigmoid=True)
    assert torch.allclose(loss(scores, labels), each.sum() / 15)
    weight = torch.tensor([1., 2, 0, 1, 5])
    assert torch.allclose(loss(scores, labels, weight, avg_factor=7.0), (each * weight[:, None]).sum() / 7)
    valid_only = build('CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True)
    assert torch.allclose(valid_only(scores, labels), each.sum() / 12)
    valid = build('CrossEntropyLoss', use_sigmoid=True, ignore_index=2)(scores, labels)
    assert torch.allclose(valid, each[[0, 2, 3]].sum() / 15)
    assert torch.allclose(loss(scores, answers, weight[:, None]), (F.binary_cross_entropy_with_logits(
        scores, answers, reduction='none') * weight[:, None]).mean())
    positive = build('CrossEntropyLoss', use_sigmoid=True, class_weight=[1., 2, 3])(scores[:4], labels[:4])
    assert torch.allclose(positive, F.binary_cross_entropy_with_logits(
        scores[:4], answers[:4], pos_weight=torch.tensor([1., 2, 3], dtype=torch.float64)))


def test_objectness_of_the_rpn():
    scores, labels = torch.tensor([[2.0], [-1.0]]), torch.tensor([0, 1])  # object, background
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 4
    found = build('CrossEntropyLoss', use_sigmoid=True)(scores, labels, torch.ones(2), avg_factor=4)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_mask_cross_entropy():
    g = torch.Generator().manual_seed(0)
    pred, masks = torch.randn(3, 4, 5, 5, generator=g), (torch.rand(3, 5, 5, generator=g) > 0.5).float()
    labels = torch.tensor([3, 0, 1])
    own = torch.stack([pred[i, k] for i, k in enumerate(labels.tolist())])
    loss = build('CrossEntropyLoss', use_mask=True, loss_weight=2.0)
    assert torch.allclose(loss(pred, masks, labels), 2 * F.binary_cross_entropy_with_logits(own, masks))
    assert loss(pred, masks, labels, reduction_override='none').shape == (3, 5, 5)
    with pytest.raises(ConfigError, match='exclude'):
        build('CrossEntropyLoss', use_mask=True, use_sigmoid=True)


@pytest.mark.parametrize('avg_factor', [None, 1.0])
def test_empty_classification(avg_factor):
    scores, labels = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.long)
    for options in ({}, dict(use_sigmoid=True), dict(avg_non_ignore=True)):
        loss = build('CrossEntropyLoss', **options)(scores, labels, torch.zeros(0), avg_factor=avg_factor)
        assert loss.shape == () and loss.item() == 0 and loss.requires_grad
    loss = build('FocalLoss')(scores, labels, torch.zeros(0), avg_factor=avg_factor)
    assert loss.item() == 0 and loss.requires_grad
    masks = torch.zeros(0, 4, 7, 7, requires_grad=True)
    loss = build('CrossEntropyLoss', use_mask=True)(masks, torch.zeros(0, 7, 7), labels)
    assert loss.item() == 0 and loss.requires_grad


def test_focal_loss_equals_torchvision():
    scores, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 1])
    answers = F.one_hot(labels, 4)[:, :3].float()
    each = ops.sigmoid_focal_loss(scores, answers, alpha=0.3, gamma=1.5)
    loss = build('FocalLoss', alpha=0.3, gamma=1.5)
    assert torch.allclose(loss(scores, labels, reduction_override='none'), each, atol=1e-6)
    assert torch.allclose(loss(scores, answers), each.mean())
    weight = torch.rand(6)
    assert torch.allclose(loss(scores, labels, weight, avg_factor=4.0), (each * weight[:, None]).sum() / 4)
    activated = build('FocalLoss', alpha=0.3, gamma=1.5, activated=True)
    assert torch.allclose(activated(scores.sigmoid(), labels), each.mean(), atol=1e-6)
    with pytest.raises(ConfigError):
        build('FocalLoss', use_sigmoid=False)


def test_losses_have_no_state():
    for kind in ['CrossEntropyLoss', 'FocalLoss', *ELEMENT_LOSSES, *BOX_LOSSES]:
        assert not build(kind).state_dict()
    assert not build('CrossEntropyLoss', class_weight=[1., 2]).state_dict()


def test_activated_focal_loss_under_autocast():
    prob, labels = torch.rand(5, 3), torch.tensor([0, 1, 2, 3, 3])
    loss = build('FocalLoss', activated=True)
    with torch.autocast('cpu', torch.bfloat16):
        found = loss(prob, labels)
    assert found.dtype == torch.float32 and torch.equal(found, loss(prob, labels))
    from tests.emulated_gpu import emulated_gpu
    torch.set_autocast_enabled('cuda', True)  # which refuses binary_cross_entropy
    try:
        with emulated_gpu():
            assert loss(torch.rand(4, 3, device='cuda'), torch.zeros(4, dtype=torch.long, device='cuda')).shape == ()
    finally:
        torch.set_autocast_enabled('cuda', False)


def test_class_weights_are_not_copied_to_the_gpu_in_each_step():
    from tests.emulated_gpu import emulated_gpu, watched_copies
    with emulated_gpu():
        loss = build('CrossEntropyLoss', class_weight=[1., 2., 3.]).to('cuda')
        scores, labels = torch.rand(4, 3, device='cuda'), torch.zeros(4, dtype=torch.long, device='cuda')
        with watched_copies() as copies:
            loss(scores, labels)
    assert copies.waited == copies.beside == []


def test_accuracy():
    scores = torch.tensor([[.1, .7, .2], [.5, .1, .4], [.35, .25, .4]])
    target = torch.tensor([1, 2, 0])
    assert L.accuracy(scores, target).item() == pytest.approx(100 / 3)
    assert [a.item() for a in L.accuracy(scores, target, topk=(1, 2, 3))] == pytest.approx([100 / 3, 100, 100])
    assert L.accuracy(scores, target, thresh=0.8).item() == 0
    assert L.accuracy(scores[:0], target[:0]).item() == 0 and len(L.accuracy(scores[:0], target[:0], (1, 2))) == 2
    with pytest.raises(ValueError, match='top 4'):
        L.accuracy(scores, target, topk=4)
