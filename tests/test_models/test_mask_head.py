"""The mask head: layers, one class a roi, targets, loss."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.models.settings import RoITrainSettings
from boxdet.registry import HEADS
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances
from boxdet.structures.masks import BitmapMasks
from tests.test_models import tiny_models

K = tiny_models.CLASSES


def build(**changes):
    torch.manual_seed(0)
    head = HEADS.build(tiny_models.mask_head(**changes))
    torch.nn.init.normal_(head.conv_logits.bias)
    return head


def test_names_and_shapes():
    shapes = {k: tuple(v.shape) for k, v in build(num_convs=2, conv_out_channels=8).state_dict().items()}
    assert shapes == {
        'convs.0.conv.weight': (8, 16, 3, 3), 'convs.0.conv.bias': (8,), 'convs.1.conv.weight': (8, 8, 3, 3),
        'convs.1.conv.bias': (8,), 'upsample.weight': (8, 8, 2, 2), 'upsample.bias': (8,),
        'conv_logits.weight': (K, 8, 1, 1), 'conv_logits.bias': (K,)}


@pytest.mark.parametrize('changes', [{},
                                     dict(num_convs=0, in_channels=16),
                                     dict(class_agnostic=True),
                                     dict(upsample_cfg=dict(type='nearest', scale_factor=2)),
                                     dict(upsample_cfg=dict(type='bilinear', scale_factor=2)),
                                     dict(upsample_cfg=dict(type=None)),
                                     dict(norm_cfg=dict(type='GN', num_groups=4)),
                                     dict(predictor_cfg=dict(type='ConvWS'))])
def test_the_logits_of_one_class_are_those_of_all(changes):
    head, x, labels = build(**changes), torch.randn(5, 16, 14, 14), torch.tensor([2, 0, 1, 1, 2])
    every = head(x)
    size = 14 if changes.get('upsample_cfg', {}).get('type', 'deconv') is None else 28
    assert every.shape == (5, 1 if head.class_agnostic else K, size, size)
    expected = every[:, 0] if head.class_agnostic else every[torch.arange(5), labels]
    torch.testing.assert_close(head.forward_labels(x, labels), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.predict(x, labels), expected.sigmoid(), rtol=1e-4, atol=1e-5)


def test_gradients_of_one_class_are_those_of_all():
    head, x, labels = build(), torch.randn(4, 16, 14, 14), torch.tensor([0, 2, 2, 1])
    weights = torch.randn(4, 28, 28)
    (head(x)[torch.arange(4), labels] * weights).sum().backward()
    expected = {n: p.grad.clone() for n, p in head.named_parameters()}
    head.zero_grad()
    (head.forward_labels(x, labels) * weights).sum().backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-3)


def sampled(boxes, index) -> SampledRois:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    index = torch.tensor(index, dtype=torch.long)
    return SampledRois(boxes, torch.zeros(1, 4), index, index[:0], index, boxes, index % K, index.bool())


def test_targets_are_cut_from_the_objects_masks():
    bitmaps = np.zeros((2, 40, 60), dtype=np.uint8)
    bitmaps[0, 10:20, 10:30] = 1
    bitmaps[1, :, 30:] = 1
    gt = [Instances(bboxes=torch.zeros(2, 4), masks=BitmapMasks(bitmaps, 40, 60)),
          Instances(bboxes=torch.zeros(0, 4), masks=BitmapMasks(bitmaps[:0], 40, 60))]
    samples = [sampled([[10, 10, 30, 20], [20, 10, 40, 20], [20, 0, 40, 40]], [0, 0, 1]), sampled([], [])]
    targets = build().targets(samples, gt, RoITrainSettings(mask_size=(10, 20)))
    assert targets.shape == (3, 10, 20) and targets.dtype == torch.float32
    assert targets[0].all()
    assert targets[1, :, :10].all() and not targets[1, :, 10:].any()
    assert not targets[2, :, :10].any() and targets[2, :, 10:].all()
    assert build().targets([samples[1]], gt[1:], RoITrainSettings()).shape == (0, 28, 28)


@pytest.mark.parametrize('agnostic', [False, True])
def test_loss_is_the_mean_over_the_pixels_of_the_own_class(agnostic):
    head = build(class_agnostic=agnostic)
    logits, targets = torch.randn(3, 28, 28), (torch.rand(3, 28, 28) > 0.5).float()
    loss = head.loss(logits, targets)['loss_mask']
    torch.testing.assert_close(loss.squeeze(), F.binary_cross_entropy_with_logits(logits, targets))


def test_no_positives_give_a_zero_in_the_graph():
    for norm in (None, dict(type='GN', num_groups=4)):
        head = build(norm_cfg=norm)
        logits = head.forward_labels(torch.zeros(0, 16, 14, 14), torch.zeros(0, dtype=torch.long))
        loss = head.loss(logits, torch.zeros(0, 28, 28))['loss_mask']
        loss.backward()
        assert loss == 0 and all(p.grad is not None for p in head.parameters())


def test_half_precision_gives_a_float32_loss():
    head = build()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        x = torch.randn(3, 16, 14, 14)
        assert head.features(x).dtype == torch.bfloat16
        loss = head.loss(head.forward_labels(x, torch.tensor([0, 1, 2])), torch.zeros(3, 28, 28))['loss_mask']
    assert loss.dtype == torch.float32


def test_initial_weights():
    head = build(conv_out_channels=64)
    head.init_weights()
    assert not head.conv_logits.bias.any() and not head.upsample.bias.any()
    expected = (2 / (64 * 9)) ** 0.5
    assert abs(head.convs[0].conv.weight.std() / expected - 1) < 0.1


def test_an_unknown_enlargement_is_an_error():
    with pytest.raises(ConfigError, match="'carafe'"):
        build(upsample_cfg=dict(type='carafe', scale_factor=2))
