"""Batch norms in their convolutions and half precision: the same function, and what stays as it was."""

import copy
import pickle

import pytest
import torch
from torch import nn

from boxdet.errors import ConfigError
from boxdet.models.backbones.resnet import ResNet
from boxdet.models.folding import fuse_conv_bn, ready_for_inference
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
