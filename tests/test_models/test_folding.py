"""Batch norms in their convolutions and half precision: the same function, and what stays as it was."""

import copy
import pickle

import pytest
import torch
from torch import nn

from boxdet.errors import ConfigError
from boxdet.models import winograd
from boxdet.models.backbones.resnet import ResNet
from boxdet.models.folding import (
    CarriedBatchNorm2d,
    FastConv2d,
    cast_weights,
    fold_batch_norms,
    fuse_conv_bn,
    lay_out,
    ready_for_inference,
    use_fast_convolutions,
)
from boxdet.models.layers import ConvModule


def trained(model: nn.Module) -> nn.Module:
    """Norms as after a training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5), module.bias.data.normal_(0, 0.1)
    return model.eval()


@pytest.fixture()
def backbone():
    return trained(ResNet(18, norm_eval=False))


def close(found, expected) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-4 * float(b.abs().max())) for a, b in zip(found, expected))


def test_folding_is_exact_and_leaves_the_parameters_alone(backbone):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, state = backbone(images), copy.deepcopy(backbone.state_dict())
        called = []
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda m, inputs, output: called.append(inputs[0] is output))
        ready = ready_for_inference(backbone)
        assert ready is backbone and close(ready(images), expected)
        assert len(called) == 20 and all(called)  # every norm hands on what it is given
    assert list(state) == list(ready.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in ready.state_dict().items())


def test_loading_other_weights_afterwards_counts(backbone):
    images, ready = torch.randn(1, 3, 64, 64), ready_for_inference(backbone)
    torch.manual_seed(1)
    other = trained(ResNet(18, norm_eval=False))
    with torch.no_grad():
        other.conv1.weight.mul_(2)
        ready.load_state_dict(other.state_dict())
        assert close(ready(images), other(images))


def test_training_goes_on_as_before(backbone):
    plain, images = copy.deepcopy(backbone).train(), torch.randn(2, 3, 64, 64)
    ready = ready_for_inference(backbone).train()
    for model in (plain, ready):
        sum(level.square().mean() for level in model(images)).backward()
    for (name, one), other in zip(plain.named_parameters(), ready.parameters()):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name
    assert torch.allclose(plain.bn1.running_mean, ready.bn1.running_mean, atol=1e-6)


def test_copies_and_pickles_work(backbone):
    images, ready = torch.randn(1, 3, 64, 64), ready_for_inference(backbone)
    with torch.no_grad():
        for twin in (copy.deepcopy(ready), pickle.loads(pickle.dumps(ready))):
            twin.bn1.running_mean.add_(1)
            assert not close(twin(images), ready(images))  # its own norms, not those of the first


def test_conv_with_bias_and_padding_mode():
    module = trained(ConvModule(3, 4, 3, padding=1, bias=True, norm_cfg=dict(type='BN'), padding_mode='reflect'))
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = module(images)
        assert torch.allclose(ready_for_inference(module)(images), expected, atol=1e-5)
        assert torch.allclose(fuse_conv_bn(module)(images), expected, atol=1e-5)


@pytest.mark.parametrize('order', [('norm', 'conv', 'act'), ('conv', 'act', 'norm'), ('act', 'conv', 'norm')])
def test_a_norm_that_does_not_follow_its_convolution_stays(order):
    module = trained(ConvModule(4, 4, 3, norm_cfg=dict(type='BN'), order=order))
    images = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = module(images)
        assert torch.allclose(fold_batch_norms(module)(images), expected, atol=1e-5)
        assert torch.allclose(fuse_conv_bn(module)(images), expected, atol=1e-5)


def test_a_folded_norm_can_be_left_out():
    module = trained(ConvModule(3, 4, 3, norm_cfg=dict(type='BN')))
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = module(images, norm=False)
        assert torch.equal(fold_batch_norms(module)(images, norm=False), expected)


def test_folding_replaces_modules_and_changes_no_class(backbone):
    conv, norm = backbone.conv1, backbone.bn1
    fold_batch_norms(backbone)
    assert type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d  # those of the model before
    assert type(backbone.conv1) is FastConv2d and type(backbone.bn1) is CarriedBatchNorm2d
    assert backbone.conv1.weight is conv.weight and backbone.bn1.running_var is norm.running_var


def test_a_convolution_shared_by_two_modules_carries_out_the_norm_of_each():
    first, second = (trained(ConvModule(3, 4, 3, norm_cfg=dict(type='BN'))) for _ in range(2))
    second.conv = first.conv
    second.bn.running_mean.add_(1)
    model, images = nn.ModuleList([first, second]), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = [module(images) for module in model]
        assert close([module(images) for module in fold_batch_norms(model)], expected)
    assert model[0].conv.weight is model[1].conv.weight


def test_folding_trains_with_the_same_gradients_where_norms_stand_still():
    plain = trained(ResNet(18, norm_eval=True, frozen_stages=1))
    folded, images = fold_batch_norms(copy.deepcopy(plain)), torch.randn(2, 3, 64, 64)
    for model in (plain.double().train(), folded.double().train()):
        sum(level.square().mean() for level in model(images.double())).backward()
    for (name, one), other in zip(plain.named_parameters(), folded.parameters()):
        assert (one.grad is None and other.grad is None) or torch.allclose(one.grad, other.grad, rtol=1e-9), name


def test_fast_convolutions_are_chosen_by_shape_and_shared_ones_stay_shared():
    shared = nn.Conv2d(128, 128, 3, padding=1)
    other = nn.Conv2d(64, 128, 3, padding=1)
    model = nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared), nn.Sequential(other)])
    use_fast_convolutions(model)
    assert type(model[0][0]) is FastConv2d and model[0][0].fast and model[0][0] is model[1][0]
    assert model[0][0].weight is shared.weight and type(model[2][0]) is nn.Conv2d
    large = torch.randn(1, 128, 55, 56)
    with torch.no_grad():
        assert winograd.pays(large, shared.weight) and torch.allclose(model[0](large), shared(large), atol=1e-4)


def test_layout_of_the_weights(backbone):
    weight = backbone.layer1[0].conv1.weight
    assert lay_out(backbone, torch.channels_last) is backbone
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert lay_out(backbone, torch.contiguous_format).layer1[0].conv1.weight.is_contiguous()


def test_cast_weights_leaves_outputs_alone():
    head = cast_weights(Head(), torch.bfloat16)
    assert head.conv.weight.dtype == torch.bfloat16 and head.rpn_cls.weight.dtype == torch.float32
    with torch.no_grad():
        assert head.rpn_cls(torch.randn(1, 8, 4, 4).bfloat16()).dtype == torch.float32


def test_other_convolutions_keep_their_norms():
    module = trained(ConvModule(3, 4, 3, conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='BN')))
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = module(images)
        assert torch.allclose(ready_for_inference(module)(images), expected, atol=1e-5)
        assert torch.allclose(fuse_conv_bn(module)(images), expected, atol=1e-5)
    assert type(module.bn) is nn.BatchNorm2d


class Head(nn.Module):
    """A norm, and an output layer by its name."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.rpn_cls = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return self.rpn_cls(self.bn(self.conv(x)))


def test_half_precision_keeps_outputs_in_float32():
    head, images = trained(Head()), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = head(images)
        found = ready_for_inference(head, 'bf16')(images.bfloat16())
    assert head.conv.weight.dtype == torch.bfloat16 and head.rpn_cls.weight.dtype == found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.05)
    pickle.loads(pickle.dumps(head))
    with pytest.raises(ConfigError, match="'bf17' is none of.*did you mean 'bf16'"):
        ready_for_inference(head, 'bf17')
