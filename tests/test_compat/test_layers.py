"""Layers of mmdet.models.utils: against boxdet's own, and against their formulas."""
from functools import partial

import pytest
import torch

from boxdet.compat import layers
from boxdet.errors import ConfigError
from boxdet.models import patches
from boxdet.models.families import mobilenet_v2, swin
from boxdet.models.layers import ConvModule

LN = dict(type='LN')


@pytest.mark.parametrize('padding, corner', [('corner', 0), ('same', 1)])
def test_padding_covers_the_map(padding, corner):
    pad = layers.AdaptivePadding(kernel_size=(4, 5), stride=(3, 4), dilation=2, padding=padding)
    found = pad(torch.ones(1, 1, 11, 13))
    assert found.shape == (1, 1, 16, 21) and found.sum() == 11 * 13  # windows of 7 x 9, four in each direction
    assert found[0, 0, 2 * corner, 4 * corner] == 1 and found[0, 0, -1, -1] == 0
    with pytest.raises(ConfigError, match="'same' or 'corner', not 'all'"):
        layers.AdaptivePadding(padding='all')


def test_patches_are_those_of_the_backbones_here():
    image = torch.rand(2, 3, 15, 18)
    own = patches.PatchEmbed(3, 8, kernel_size=4, stride=4, norm_cfg=LN)
    other = layers.PatchEmbed(3, 8, kernel_size=4, stride=4, norm_cfg=LN, input_size=(15, 18))
    other.load_state_dict(own.state_dict())
    tokens, size = own(image)
    assert torch.equal(tokens, other(image)[0]) and size == other(image)[1] == other.init_out_size == (4, 5)
    merge, other = swin.PatchMerging(8, 16, 2, LN), layers.PatchMerging(8, 16)
    other.load_state_dict(merge.state_dict())
    assert torch.equal(merge(tokens, size)[0], other(tokens, size)[0]) and other(tokens, size)[1] == (2, 3)
    dilated = layers.PatchMerging(8, 16, kernel_size=2, stride=1, padding=1, dilation=2)
    found, size = dilated(tokens, (4, 5))
    assert size == (4, 5) and found.shape == (2, 20, 16)
    with pytest.raises(ConfigError, match='20 tokens for a map of'):
        other(tokens, (5, 5))


def test_channels_are_weighted_by_their_means():
    x, layer = torch.rand(2, 32, 4, 4), layers.SELayer(32)
    assert set(layer.state_dict()) == {f'conv{i}.conv.{name}' for i in (1, 2) for name in ('weight', 'bias')}
    means = x.mean(dim=(2, 3))
    hidden = (means @ layer.conv1.conv.weight[:, :, 0, 0].T + layer.conv1.conv.bias).relu()
    weights = (hidden @ layer.conv2.conv.weight[:, :, 0, 0].T + layer.conv2.conv.bias).sigmoid()
    assert torch.allclose(layer(x), x * weights[:, :, None, None], atol=1e-6)
    for wrong in ([dict(type='ReLU')] * 2, (dict(type='ReLU'),), ('ReLU', 'ReLU')):
        with pytest.raises(ConfigError, match='SELayer: act_cfg is a layer config, or a tuple of two'):
            layers.SELayer(32, act_cfg=wrong)


def test_the_larger_of_two_lines():
    x, layer = torch.randn(1, 8, 3, 3), layers.DyReLU(8)
    torch.nn.init.zeros_(layer.conv2.conv.weight)
    assert torch.equal(layer(x), x.relu())
    with torch.no_grad():
        layer.conv2.conv.bias.copy_(torch.tensor([3., 0, 0, -3]).repeat_interleave(8))  # HSigmoid: 1, .5, .5, 0
    assert torch.equal(layer(x), torch.maximum(2 * x, torch.full_like(x, -0.5)))


def test_inverted_residuals_are_those_of_mobilenet():
    act = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU6'))
    own = mobilenet_v2.InvertedResidual(8, 8, 4, 1, False, partial(ConvModule, **act))
    other = layers.InvertedResidual(8, 8, 32, **act)
    other.load_state_dict(own.state_dict())
    x = torch.rand(2, 8, 6, 6, requires_grad=True)
    assert other.with_res_shortcut and torch.equal(own(x), other(x))
    whole = layers.InvertedResidual(8, 12, 8, stride=2, with_expand_conv=False, se_cfg=dict(channels=8, ratio=4),
                                    with_cp=True)
    whole(x).sum().backward()
    assert whole(x).shape == (2, 12, 3, 3) and x.grad.abs().sum() > 0 and not hasattr(whole, 'expand_conv')


@pytest.mark.parametrize('wrong, said', [
    (dict(stride=3), 'stride is 1 or 2'), (dict(se_cfg=[]), 'se_cfg is a dict or None'),
    (dict(with_expand_conv=False), 'mid_channels is in_channels=16, not 32')])
def test_what_cannot_be_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        layers.InvertedResidual(16, 16, 32, **wrong)


def test_convolutions_are_followed_by_an_upsampling():
    layer = layers.ConvUpsample(4, 2, num_layers=3, num_upsample=2)
    assert layer(torch.rand(1, 4, 5, 6)).shape == (1, 2, 20, 24)
    with pytest.raises(ConfigError, match='num_upsample=2 of num_layers=1'):
        layers.ConvUpsample(4, 2, num_layers=1, num_upsample=2)
