"""The mask head: layers, one class a roi, targets, loss."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.models.bbox_head import RoITrainSettings
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
                                     dict(predictor_cfg=dict(type='ConvWS')),
                                     dict(dilation=2),
                                     dict(upsample_ratio=2)])
def test_the_logits_of_one_class_are_those_of_all(changes):
    head, x, labels = build(**changes), torch.randn(5, 16, 14, 14), torch.tensor([2, 0, 1, 1, 2])
    every = head(x)
    size = 14 if changes.get('upsample_cfg', {}).get('type', 'deconv') is None else 28
    size *= changes.get('upsample_ratio', 1)
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


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('bias', [True, False])
def test_enlargement_in_parts_has_the_gradients_of_the_layers(memory_format, bias):
    head, labels = build(in_channels=3, num_convs=0).double().to(memory_format=memory_format), torch.arange(11) % K
    head.upsample = torch.nn.ConvTranspose2d(3, 4, (2, 3), (2, 3), bias=bias).double()
    head.conv_logits = torch.nn.Conv2d(4, K, 1).double()
    x = torch.randn(11, 3, 5, 4, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weights = torch.randn(11, 10, 12, dtype=torch.float64)
    found = []
    for hooks in (False, True):  # a layer with hooks is called as it is
        if hooks:
            head.upsample.register_forward_hook(lambda *_: None)
        assert (head._in_parts(x) is None) is hooks
        logits = head.logits(x, labels)
        parameters = dict(head.named_parameters())
        found.append([logits, *torch.autograd.grad((logits * weights).sum(), [x, *parameters.values()])])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_training_keeps_no_enlarged_features():
    head, x, labels, kept = build(), torch.randn(9, 16, 14, 14), torch.arange(9) % K, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        head.forward_labels(x, labels)
    enlarged = [t.dtype for t in kept if t.numel() >= 9 * head.conv_out_channels * 28 * 28]
    assert enlarged == [torch.bool]


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
        assert head.convolved(x).dtype == torch.bfloat16
        loss = head.loss(head.forward_labels(x, torch.tensor([0, 1, 2])), torch.zeros(3, 28, 28))['loss_mask']
    assert loss.dtype == torch.float32


def test_initial_weights():
    head = build(conv_out_channels=64)
    head.init_weights()
    assert not head.conv_logits.bias.any() and not head.upsample.bias.any()
    expected = (2 / (64 * 9)) ** 0.5
    assert abs(head.convs[0].conv.weight.std() / expected - 1) < 0.1


def test_an_unknown_enlargement_is_an_error():
    with pytest.raises(ConfigError, match="'caraffe'; did you mean 'carafe'"):
        build(upsample_cfg=dict(type='caraffe', scale_factor=2))


RES5 = dict(type='ResLayer', depth=50, stage=3, stride=2, style='caffe', norm_cfg=dict(type='BN', requires_grad=False))
# Detectron.pytorch's mask_rcnn_fcn_head_NAME: our options, channels and side of the features, side of the masks, layers
VARIANTS = {
    'v1up4convs': (dict(num_convs=4), 16, 14, 28, 4),
    'v1up4convs_gn': (dict(num_convs=4, norm_cfg=dict(type='GN', num_groups=4)), 16, 14, 28, 4),
    'v1up': (dict(num_convs=2), 16, 14, 28, 2),
    'v0upshare': (dict(num_convs=0, in_channels=2048), 2048, 7, 14, 0),
    'v0up': (dict(num_convs=0, in_channels=2048, res_layer=RES5), 1024, 14, 14, 0)}


@pytest.mark.parametrize('name', VARIANTS)
def test_mask_heads_of_detectron(name):
    options, channels, side, mask_side, convs = VARIANTS[name]
    head, x = build(**options), torch.randn(2, channels, side, side)
    assert head(x).shape == (2, K, mask_side, mask_side)
    keys = set(head.state_dict())
    assert {f'convs.{i}.conv.weight' for i in range(convs)} <= keys and f'convs.{convs}.conv.weight' not in keys
    assert ('res_layer.layer4.0.conv1.weight' in keys) == (name == 'v0up')
    assert tuple(head.upsample.weight.shape) == (2048 if 'v0' in name else 16, 16, 2, 2)
    head.loss(head.forward_labels(x, torch.tensor([0, 2])), torch.ones(2, mask_side, mask_side))['loss_mask'].backward()
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad)


def test_dilation_and_upsample_ratio():
    """MRCNN.DILATION and MRCNN.UPSAMPLE_RATIO of Detectron."""
    head = build(num_convs=2, dilation=2)
    assert [(c.conv.dilation, c.conv.padding) for c in head.convs] == [((2, 2), (2, 2))] * 2
    plain, twice, x = build(), build(upsample_ratio=2), torch.randn(3, 16, 14, 14)
    assert plain.state_dict().keys() == twice.state_dict().keys()
    expected = F.interpolate(plain(x), scale_factor=2, mode='bilinear', align_corners=False)
    torch.testing.assert_close(twice(x), expected)


def test_a_res_layer_of_its_own_takes_the_place_of_the_shared_head():
    from boxdet.models import build_detector

    cfg = tiny_models.c4_mask_rcnn()
    own = RES5 | dict(depth=18)
    cfg['roi_head']['mask_head'] = tiny_models.mask_head(num_convs=0, in_channels=512, res_layer=own)
    with pytest.raises(ConfigError, match='needs a mask_roi_extractor'):
        build_detector(cfg)
    cfg['roi_head']['mask_roi_extractor'] = tiny_models.extractor(14, [16], 256)
    torch.manual_seed(0)
    model = build_detector(cfg).train()
    seen = []
    model.roi_head.mask_head.res_layer.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1:]))
    losses = model.loss(tiny_models.batch((2, 1)))
    assert seen == [(256, 14, 14)]  # not what the shared head puts out, which has 512 channels
    losses['loss_mask'].sum().backward()
    assert model.roi_head.shared_head.layer4[0].conv1.weight.grad is None
    with torch.no_grad():
        assert 'masks' in model.eval().predict(tiny_models.batch((1,)))[0]


@pytest.mark.parametrize('kind', ['deconv', 'nearest', 'bilinear'])
def test_features_are_doubled_unless_the_config_says_otherwise(kind):
    x = torch.zeros(1, 16, 5, 5)
    assert build(upsample_cfg=dict(type=kind))(x).shape[-2:] == (10, 10)
    assert build(upsample_cfg=dict(type=kind, scale_factor=3))(x).shape[-2:] == (15, 15)
