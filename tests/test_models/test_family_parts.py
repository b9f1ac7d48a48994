"""Losses, coders, anchors and samplers of families, by numbers that can be checked by hand or by the plain formula."""
from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.matching.assigner import AssignResult
from boxdet.registry import LAYERS, LOSSES, MATCHING

BOXES = torch.tensor([[10., 20., 50., 60.], [0., 0., 30., 90.]])
GT = torch.tensor([[12., 18., 55., 58.], [5., 2., 33., 80.]])


def test_a_bucket_and_its_shift_give_the_box_back():
    coder = MATCHING.build(dict(type='BucketingBBoxCoder', num_buckets=14, scale_factor=1.7))
    shifts, shift_weights, right, weights = coder.encode(BOXES, GT)
    assert shifts.shape == shift_weights.shape == right.shape == weights.shape == (2, 28)
    assert right.view(2, 4, 7).sum(dim=2).eq(1).all()
    torch.testing.assert_close(coder.decode(BOXES, torch.cat([right * 50, shifts], dim=1)), GT)
    assert coder.confidence(torch.cat([right * 50, shifts], dim=1)).allclose(torch.ones(2))
    clipped = coder.decode(BOXES, torch.cat([right * 50, shifts], dim=1), (40, 40))
    assert clipped.max() == 39  # the last pixel
    assert torch.equal(clipped, coder.decode(BOXES, (right * 50, shifts), torch.tensor([[40, 40], [40, 40]])))


def test_a_neighbouring_bucket_is_neither_right_nor_wrong():
    coder = MATCHING.build(dict(type='BucketingBBoxCoder', num_buckets=14, scale_factor=1.7))
    shifts, _, right, weights = coder.encode(BOXES, GT)
    ignored = weights == 0
    assert ignored.any() and (shifts[ignored].abs() < 1).all() and (right[ignored] == 0).all()


def test_legacy_boxes_are_a_pixel_wider():
    coder = MATCHING.build(dict(type='LegacyDeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]))
    deltas = coder.encode(BOXES, GT)
    width, gt_width = BOXES[:, 2] - BOXES[:, 0] + 1, GT[:, 2] - GT[:, 0] + 1
    torch.testing.assert_close(deltas[:, 2], (gt_width / width).log() / 0.2)
    torch.testing.assert_close(deltas[:, 0], (GT[:, 0] + GT[:, 2] - BOXES[:, 0] - BOXES[:, 2]) / 2 / width / 0.1)
    torch.testing.assert_close(coder.decode(BOXES, deltas), GT + torch.tensor([-0.5, -0.5, 0.5, 0.5]))
    assert coder.decode(BOXES, deltas, (40, 40)).max() == 39


def test_legacy_anchors_are_whole_pixels():
    make = MATCHING.get('LegacyAnchorGenerator')
    anchors = make(strides=[16], ratios=[1.], scales=[1.], base_sizes=[9], center_offset=0.5)
    assert anchors.grid_priors([(2, 2)], device='cpu')[0].tolist() == [
        [0, 0, 8, 8], [16, 0, 24, 8], [0, 16, 8, 24], [16, 16, 24, 24]]


def test_seesaw_is_cross_entropy_with_weighted_exponentials():
    loss = LOSSES.build(dict(type='SeesawLoss', num_classes=3))
    torch.manual_seed(0)
    scores, labels = torch.randn(6, 5), torch.tensor([0, 0, 0, 1, 2, 3])
    found = loss(scores, labels, torch.ones(6), avg_factor=6)
    counts = torch.tensor([3., 1., 1.])
    assert loss.cum_samples.tolist() == [3, 1, 1, 1]
    expected = 0
    for row, label in zip(scores[:5, :3], labels[:5]):
        probs = row.softmax(dim=0)
        terms = row.exp().clone()
        for other in range(3):
            if other != label:
                mitigation = min(1, (counts[other] / counts[label]).item()) ** 0.8
                compensation = max(1, (probs[other] / max(probs[label], 1e-2)).item()) ** 2
                terms[other] *= mitigation * compensation
        expected = expected - (terms[label] / terms.sum()).log() / 6
    torch.testing.assert_close(found['loss_cls_classes'], expected)
    torch.testing.assert_close(found['loss_cls_objectness'],
                               F.cross_entropy(scores[:, 3:], torch.tensor([0, 0, 0, 0, 0, 1])))
    probs = loss.get_activation(scores)
    assert probs.shape == (6, 4) and probs.sum(dim=1).allclose(torch.ones(6))
    assert set(loss.get_accuracy(scores, labels)) == {'acc_objectness', 'acc_classes'}
    with pytest.raises(ConfigError, match='num_classes=3'):
        loss.get_cls_channels(4)


def test_normalised_layers_give_a_cosine():
    x = torch.randn(3, 4)
    layer = LAYERS.build(dict(type='NormedLinear', in_features=4, out_features=2, tempearture=10))
    torch.testing.assert_close(layer(x), 10 * F.cosine_similarity(x[:, None], layer.weight[None], dim=2),
                               rtol=1e-3, atol=1e-4)
    conv = LAYERS.build(dict(type='NormedConv2d', in_channels=4, out_channels=2, kernel_size=1, tempearture=10))
    with torch.no_grad():
        conv.weight.copy_(layer.weight[:, :, None, None])
        conv.bias.zero_()
    torch.testing.assert_close(conv(x[:, :, None, None])[..., 0, 0], layer(x))


@pytest.mark.parametrize('momentum', [0, 0.75])
def test_harmonised_weights_share_a_range(momentum):
    loss = LOSSES.build(dict(type='GHMC', bins=2, momentum=momentum))
    pred, target = torch.tensor([[-4.], [-3.], [-5.], [4.]]), torch.tensor([0, 1, 1, 1])  # one positive, K = 1
    found = loss(pred, target, torch.ones(4))
    each = F.binary_cross_entropy_with_logits(pred, torch.tensor([[1.], [0.], [0.], [0.]]), reduction='none')[:, 0]
    # Two hard elements and two easy ones: of either range each counts as 4 / 2 / 2.
    counts = 2 * (1 - momentum)
    torch.testing.assert_close(found, (each * 4 / counts / 2).sum() / 4)
    assert LOSSES.build(dict(type='GHMR'))(torch.ones(3, 4), torch.ones(3, 4), torch.ones(3, 4)) == 0


def test_score_hlr_prefers_the_best_of_each_place():
    sampler = MATCHING.build(dict(type='ScoreHLRSampler', num=3, pos_fraction=0.25, add_gt_as_proposals=False))
    boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60], [80, 80, 90, 90]])
    assigned = AssignResult(1, torch.zeros(4, dtype=torch.long), torch.zeros(4), torch.full((4,), -1))
    probs = torch.tensor([[0.9], [0.8], [0.3], [0.01]])
    loss = torch.ones(4)
    drawn = sampler.sample(assigned, boxes, torch.zeros(1, 4), torch.zeros(1, dtype=torch.long),
                           predictions=lambda boxes: (probs, boxes, loss))
    assert drawn.neg_inds.tolist() == [0, 1, 2]
    first, second, third = drawn.neg_weights.tolist()
    assert first > third > second  # the second of a place comes after the first of another
    assert sum(drawn.neg_weights) == pytest.approx(3)  # as much as without weights
    with pytest.raises(ConfigError, match='PISARoIHead'):
        sampler.sample(assigned, boxes, torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))


def test_dice_loss_is_by_hand():
    pred, target = torch.tensor([[[.5, 1.], [0., 0.]], [[0., 0.], [0., 1.]]]), torch.tensor([[[1., 1.], [0., 0.]]] * 2)
    plain = LOSSES.build(dict(type='DiceLoss', activate=False, eps=0.5, reduction='none'))
    torch.testing.assert_close(plain(pred, target), torch.tensor([1 - 3 / 4.25, 1.]))
    naive = LOSSES.build(dict(type='DiceLoss', activate=False, naive_dice=True, eps=0.5, loss_weight=2.))
    torch.testing.assert_close(naive(pred, target, torch.tensor([1., 0])), torch.tensor(1 - 3.5 / 4))
    logits = LOSSES.build(dict(type='DiceLoss', eps=0.5, reduction='none'))
    torch.testing.assert_close(logits(torch.logit(pred), target), plain(pred, target))
    with pytest.raises(ConfigError, match='logits need use_sigmoid=True'):
        LOSSES.build(dict(type='DiceLoss', use_sigmoid=False))
    with pytest.raises(ValueError, match=r'weights \(2, 2\) of 2 masks'):
        plain(pred, target, torch.ones(2, 2))


def test_distillation_is_the_divergence_from_the_teacher():
    student = torch.randn(4, 5, requires_grad=True)
    teacher = torch.randn(4, 5, requires_grad=True)
    loss = LOSSES.build(dict(type='KnowledgeDistillationKLDivLoss', T=2, reduction='none'))
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    torch.testing.assert_close(loss(student, teacher), (p * (p / q).log()).sum(1) / 5 * 4)
    loss(student, teacher, torch.tensor([1., 0, 0, 0])).sum().backward()
    assert student.grad[0].abs().sum() > 0 and student.grad[1:].abs().sum() == 0 and teacher.grad is None
    with pytest.raises(ConfigError, match='T is 1 or higher, not 0.5'):
        LOSSES.build(dict(type='KnowledgeDistillationKLDivLoss', T=0.5))
    with pytest.raises(ValueError, match='soft_label'):
        loss(student, teacher[:2])
