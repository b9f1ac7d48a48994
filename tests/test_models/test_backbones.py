"""Backbones against 2.28's keys, torchvision's networks with the same weights, and their own promises."""
import json
import logging

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxdet.errors import ConfigError
from boxdet.models.backbones.resnet import Bottleneck, ResNet, ResNetV1c, ResNetV1d, make_res_layer
from boxdet.models.backbones.resnext import ResNeXt
from boxdet.models.backbones.vgg import VGG
from boxdet.registry import LAYERS

GN = dict(type='GN', num_groups=32, requires_grad=True)
FROZEN_BN = dict(type='BN', requires_grad=False)
R50 = dict(depth=50, frozen_stages=1)
CONFIGS = {
    'faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py': (ResNet, R50),
    'mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py': (ResNet, R50),
    'cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py': (ResNet, R50),
    'cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco.py': (ResNet, R50),
    'rpn/rpn_r50_fpn_1x_coco.py': (ResNet, R50),
    'fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py': (ResNet, R50),
    'faster_rcnn/faster_rcnn_r50_caffe_c4_1x_coco.py': (
        ResNet, dict(depth=50, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,),
                     frozen_stages=1, norm_cfg=FROZEN_BN, style='caffe')),
    'faster_rcnn/faster_rcnn_r50_caffe_dc5_1x_coco.py': (
        ResNet, dict(depth=50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(3,),
                     frozen_stages=1, norm_cfg=FROZEN_BN, style='caffe')),
    'faster_rcnn/faster_rcnn_x101_32x4d_fpn_1x_coco.py': (
        ResNeXt, dict(depth=101, groups=32, base_width=4, frozen_stages=1)),
    'gn/mask_rcnn_r50_fpn_gn-all_2x_coco.py': (ResNet, dict(depth=50, frozen_stages=1, norm_cfg=GN)),
    'gn+ws/faster_rcnn_r50_fpn_gn_ws-all_1x_coco.py': (
        ResNet, dict(depth=50, frozen_stages=1, norm_cfg=GN, conv_cfg=dict(type='ConvWS')))}


@pytest.mark.parametrize('config', CONFIGS)
def test_state_dict_keys_shapes_and_order_are_those_of_mmdetection(config, reference):
    golden = json.loads((reference / 'state_dict_keys.json').read_text())[config]
    wanted = [(k.removeprefix('backbone.'), shape) for k, shape in golden.items()
              if k.startswith('backbone.')]
    cls, options = CONFIGS[config]
    with torch.device('meta'):
        network = cls(**options)
    assert [(k, list(v.shape)) for k, v in network.state_dict().items()] == wanted


def test_every_reference_config_is_covered(reference):
    assert set(CONFIGS) == set(json.loads((reference / 'state_dict_keys.json').read_text()))


# --- numbers: torchvision's networks are an independent implementation with the same names ---

def _randomise(module, seed=0):
    torch.manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith('running_var') or (value.dim() == 1 and name.endswith('weight')):
            value.uniform_(0.5, 1.5)
        elif value.dim() == 1:
            value.normal_(0, 0.1)
    return module


def _torchvision_levels(peer, x):
    x = peer.maxpool(peer.relu(peer.bn1(peer.conv1(x))))
    levels = []
    for layer in (peer.layer1, peer.layer2, peer.layer3, peer.layer4):
        x = layer(x)
        levels.append(x)
    return levels


def _assert_same_levels(network, peer, size=64):
    network.load_state_dict({k: v for k, v in peer.state_dict().items() if not k.startswith('fc.')})
    x = torch.randn(2, 3, size, size - 7)
    with torch.inference_mode():
        outs, wanted = network.eval()(x), _torchvision_levels(peer.eval(), x)
    assert len(outs) == 4
    for out, want in zip(outs, wanted):
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_resnet_equals_torchvision(depth):
    _assert_same_levels(ResNet(depth), _randomise(getattr(torchvision.models, f'resnet{depth}')()))


@pytest.mark.parametrize('depth, width, name', [(50, 4, 'resnext50_32x4d'), (101, 8, 'resnext101_32x8d')])
def test_resnext_equals_torchvision(depth, width, name):
    network = ResNeXt(depth=depth, groups=32, base_width=width)
    _assert_same_levels(network, _randomise(getattr(torchvision.models, name)()))


def test_resnext_64x4d_equals_torchvision():
    network = ResNeXt(depth=101, groups=64, base_width=4)
    _assert_same_levels(network, _randomise(torchvision.models.resnext101_64x4d()))


def test_resnext_of_one_group_is_resnet():
    assert {k: v.shape for k, v in ResNeXt(depth=50).state_dict().items()} == {
        k: v.shape for k, v in ResNet(50).state_dict().items()}


def test_caffe_style_strides_in_the_first_convolution():
    peer = _randomise(torchvision.models.resnet50())
    for layer in (peer.layer2, peer.layer3, peer.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    _assert_same_levels(ResNet(50, style='caffe'), peer)


def test_dc5_dilates_the_last_stage():
    peer = _randomise(torchvision.models.resnet50())
    peer.layer4[0].downsample[0].stride = (1, 1)
    for block in peer.layer4:
        block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1, 1), (2, 2), (2, 2)
    network = ResNet(50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    _assert_same_levels(network, peer)
    assert [o.shape[-1] for o in network(torch.zeros(1, 3, 64, 64))] == [16, 8, 4, 4]


def test_res_layer_is_the_fourth_stage_of_the_network():
    network = ResNet(50, style='caffe').eval()
    layer = make_res_layer(Bottleneck, 1024, 512, 3, stride=2, style='caffe').eval()
    layer.load_state_dict(network.layer4.state_dict())
    outs = network(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(layer(outs[2]), outs[3])


def test_v1c_and_v1d_stem_and_shortcut():
    for network, is_d in ((ResNetV1c(depth=50), False), (ResNetV1d(depth=50), True)):
        keys = network.state_dict()
        assert {'stem.0.weight', 'stem.1.weight', 'stem.3.weight', 'stem.6.weight', 'stem.7.bias'} <= {*keys}
        assert keys['stem.0.weight'].shape == (32, 3, 3, 3) and keys['stem.6.weight'].shape == (64, 32, 3, 3)
        assert keys['layer2.0.downsample.1.weight'].dim() == (4 if is_d else 1)
        assert [o.shape[-2:] for o in network.eval()(torch.zeros(1, 3, 65, 64))] == [
            (17, 16), (9, 8), (5, 4), (3, 2)]
    pool = ResNetV1d(depth=18).layer2[0].downsample[0]
    torch.testing.assert_close(pool(torch.tensor([[[[1., 2., 4.]]]])), torch.tensor([[[[1.5, 4.]]]]))


def test_vgg_equals_torchvision():
    peer = torchvision.models.vgg16()
    network = VGG(16, out_indices=(2, 4), with_last_pool=False)
    network.load_state_dict({k: v for k, v in peer.state_dict().items() if k.startswith('features.')})
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        third, fifth = network.eval()(x)
        torch.testing.assert_close(third, peer.features[:17](x))
        torch.testing.assert_close(fifth, peer.features[:30](x))
    assert fifth.shape == (1, 512, 4, 4)


def test_vgg_with_bn_freezes_stages():
    network = VGG(16, with_bn=True, frozen_stages=2).train()
    assert set(network.state_dict()) == {
        k for k in torchvision.models.vgg16_bn().state_dict() if k.startswith('features.')}
    frozen = {int(k.split('.')[1]) for k, p in network.named_parameters() if not p.requires_grad}
    trained = {int(k.split('.')[1]) for k, p in network.named_parameters() if p.requires_grad}
    assert max(frozen) == 11 and min(trained) == 14
    assert not any(m.training for m in network.modules() if isinstance(m, _BatchNorm))
    with pytest.raises(ConfigError, match='depth=17'):
        VGG(17)


# --- training state ---

def test_frozen_stages_have_no_gradient_and_fixed_statistics():
    network = ResNet(18, frozen_stages=2, norm_eval=False).train()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == name.startswith(('layer3', 'layer4')), name
    before = {k: v.clone() for k, v in network.state_dict().items()}
    sum(o.sum() for o in network(torch.randn(2, 3, 64, 64))).backward()
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(('layer3', 'layer4')) for k in changed)
    assert network.conv1.weight.grad is None and network.layer3[0].conv1.weight.grad is not None


def test_frozen_stages_of_a_deep_stem():
    network = ResNetV1d(depth=18, frozen_stages=0).train()
    assert not any(p.requires_grad for p in network.stem.parameters()) and not network.stem[1].training
    assert network.layer1[0].conv1.weight.requires_grad


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval_keeps_batch_norms_in_evaluation_mode(norm_eval):
    network = ResNet(18, norm_eval=norm_eval).eval().train()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    assert norms and all(m.training != norm_eval for m in norms)
    assert network.training and network.layer4.training
    assert not any(m.training for m in network.eval().modules())


def test_norm_without_gradients():
    network = ResNet(18, norm_cfg=FROZEN_BN)
    assert all(p.requires_grad == (p.dim() == 4) for p in network.parameters())


@pytest.mark.parametrize('depth', [18, 50])
def test_checkpointed_blocks_give_the_same_gradients_and_statistics(depth):
    plain, saving = (ResNet(depth, norm_eval=False, zero_init_residual=False, with_cp=cp)
                     for cp in (False, True))
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for network in (plain, saving):
        network.train()(x.clone().requires_grad_())[-1].square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), saving.buffers()):
        torch.testing.assert_close(a, b, msg=name)
    assert all(m.momentum == 0.1 for m in saving.modules() if isinstance(m, _BatchNorm))


def test_checkpointing_recomputes_the_blocks():
    network, calls = ResNet(18, with_cp=True).train(), []
    network.layer2[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    network(torch.randn(1, 3, 64, 64, requires_grad=True))[-1].sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize('options', [
    dict(), dict(norm_cfg=GN), dict(norm_cfg=GN, conv_cfg=dict(type='ConvWS'))])
def test_memory_format_goes_through(options):
    network = ResNet(18, **options).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        plain, last = network(x), network(x.to(memory_format=torch.channels_last))
    for a, b in zip(plain, last):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert a.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)


# --- options ---

def test_deformable_stages():
    dcn = dict(type='DCNv2', deform_groups=2, fallback_on_stride=False)
    network = ResNet(50, dcn=dcn, stage_with_dcn=(False, True, True, True))
    assert dcn == dict(type='DCNv2', deform_groups=2, fallback_on_stride=False)
    keys = network.state_dict()
    assert 'layer1.0.conv2.conv_offset.weight' not in keys and 'layer2.0.conv2.bias' not in keys
    assert keys['layer2.0.conv2.conv_offset.weight'].shape == (2 * 27, 128, 3, 3)
    network.init_weights()
    assert network.layer4[2].conv2.conv_offset.weight.count_nonzero() == 0
    network.train()(torch.randn(1, 3, 64, 64))[-1].sum().backward()
    assert network.layer4[2].conv2.conv_offset.bias.grad is not None


def test_deformable_stages_fall_back_on_stride():
    network = ResNet(50, dcn=dict(type='DCN', fallback_on_stride=True),
                     stage_with_dcn=(False, False, False, True))
    kinds = [type(block.conv2).__name__ for block in network.layer4]
    assert kinds == ['Conv2d', 'DeformConv2d', 'DeformConv2d']


def test_deformable_resnext_has_groups():
    with torch.device('meta'):
        network = ResNeXt(depth=101, groups=32, base_width=4, dcn=dict(type='DCN', deform_groups=1),
                          stage_with_dcn=(False, True, True, True))
    assert network.layer2[0].conv2.weight.shape == (256, 8, 3, 3)


def test_plugins_from_a_users_own_layer():
    @LAYERS.register_module(force=True)
    class HalfScale(nn.Module):
        def __init__(self, in_channels, factor=0.5):
            super().__init__()
            self.factor, self.in_channels = nn.Parameter(torch.tensor(factor)), in_channels

        def forward(self, x):
            return x * self.factor

    plugins = [dict(cfg=dict(type='HalfScale', factor=0.25, postfix='_a'), stages=(False, True, False, False),
                    position='after_conv2'), dict(cfg=dict(type='HalfScale'), position='after_conv3')]
    network = ResNet(50, plugins=plugins).eval()
    assert {k for k in network.state_dict() if 'half' in k and 'r2.0' in k} == {
        'layer2.0.half_scale_a.factor', 'layer2.0.half_scale.factor'}
    assert network.layer2[0].half_scale_a.in_channels == 128
    assert network.layer1[0].half_scale.in_channels == 256
    block = network.layer2[1]
    x = torch.randn(1, 512, 4, 4)
    inner = block.relu(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))) * 0.25
    torch.testing.assert_close(block(x), (block.bn3(block.conv3(inner)) * 0.5 + x).relu())


def test_widths_and_stages_can_be_changed():
    network = ResNet(18, in_channels=4, stem_channels=8, base_channels=16, num_stages=2, strides=(1, 2),
                     dilations=(1, 1), out_indices=(1, 0))
    assert [o.shape for o in network.eval()(torch.zeros(1, 4, 32, 32))] == [(1, 16, 8, 8), (1, 32, 4, 4)]
    assert network.conv1.weight.shape == (8, 4, 7, 7) and network.feat_dim == 32


@pytest.mark.parametrize('options, message', [
    (dict(depth=51), r'depth=51; there are \[18, 34'), (dict(depth=50, style='cafe'), "style='cafe'"),
    (dict(depth=50, strides=(1, 2)), 'strides'), (dict(depth=50, num_stages=5), 'num_stages=5'),
    (dict(depth=50, out_indices=(4,)), 'out_indices'), (dict(depth=50, frozen_stages=5), 'frozen_stages=5'),
    (dict(depth=18, dcn=dict(type='DCN'), stage_with_dcn=(True,) * 4), 'bottleneck'),
    (dict(depth=50, dcn=dict(type='DCN'), stage_with_dcn=(True,)), 'stage_with_dcn'),
    (dict(depth=50, dcn=dict(type='DCN'), stage_with_dcn=(True,) * 4, conv_cfg=dict(type='ConvWS')),
     'ConvWS'),
    (dict(depth=50, plugins=[dict(cfg=dict(type='ReLU'), position='after_conv4')]), 'position'),
    (dict(depth=50, plugins=[dict(cfg=dict(type='ReLU'), position='after_conv1', stages=(True,))]),
     'one entry'),
    (dict(depth=50, norm_cfg=dict(type='BNN')), "'BNN'; did you mean 'BN'"),
    (dict(depth=50, pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')), 'pretrained')])
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ResNet(**options)


# --- initial weights ---

def test_default_initialisation():
    network = ResNet(50)
    torch.manual_seed(3)
    network.init_weights()
    weight = network.layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)  # He, fan-out
    assert all(block.bn3.weight.count_nonzero() == 0 for block in network.layer1)
    assert (network.bn1.weight == 1).all() and (network.layer1[0].downsample[1].weight == 1).all()
    first = network.state_dict()['layer4.2.conv3.weight'].clone()
    torch.manual_seed(3)
    network.init_weights()
    assert torch.equal(first, network.layer4[2].conv3.weight)


def test_basic_blocks_start_with_zero_residual_only_if_asked():
    for zero in (True, False):
        network = ResNet(18, zero_init_residual=zero, norm_cfg=GN)
        network.init_weights()
        block = network.layer1[0]
        assert (block.gn2.weight == (0 if zero else 1)).all() and (block.gn1.weight == 1).all()


@pytest.mark.parametrize('options', [
    dict(pretrained='torchvision://resnet18'),
    dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'))])
def test_pretrained_weights(options, caplog, tmp_path, monkeypatch):
    peer = _randomise(torchvision.models.resnet18())
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    torch.save(peer.state_dict(), tmp_path / 'hub/checkpoints/resnet18-f37072fd.pth')  # downloaded before
    network = ResNet(18, frozen_stages=1, **options)
    with caplog.at_level(logging.INFO, 'boxdet'):
        network.init_weights()
    for name, value in network.state_dict().items():
        assert torch.equal(value, peer.state_dict()[name]), name
    report = 'torchvision://resnet18: loaded 120 entries, unused 2 (fc.weight, fc.bias)'
    assert f'ResNet <- {report}' in caplog.text
    assert not network.conv1.weight.requires_grad
