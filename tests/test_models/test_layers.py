"""Layers against plain arithmetic written out here, and the config dialect that builds them."""
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from boxdet.errors import ConfigError
from boxdet.models.layers import (
    ConvModule,
    build_activation_layer,
    build_conv_layer,
    build_norm_layer,
    build_upsample_layer,
)
from boxdet.registry import LAYERS

# --- convolutions ---

@pytest.mark.parametrize('cfg', [None, dict(type='Conv'), dict(type='Conv2d')])
def test_plain_convolution(cfg):
    conv = build_conv_layer(cfg, 4, 6, 3, stride=2, padding=1, bias=False)
    assert type(conv) is nn.Conv2d and conv.stride == (2, 2) and conv.bias is None


def test_weight_standardisation():
    conv = build_conv_layer(dict(type='ConvWS'), 4, 6, 3, padding=1, groups=2)
    assert set(conv.state_dict()) == {'weight', 'bias'}
    standard = torch.empty_like(conv.weight)
    for i, kernel in enumerate(conv.weight.detach()):
        values = kernel.flatten()
        spread = ((values - values.mean()) ** 2).sum().div(len(values) - 1).sqrt()
        standard[i] = (kernel - values.mean()) / (spread + 1e-5)
    x = torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(conv(x), F.conv2d(x, standard, conv.bias, padding=1, groups=2))


def _sample(image, y, x):
    """Bilinear value of (h, w) ``image`` at a point, zero outside."""
    h, w = image.shape
    y0, x0 = int(torch.floor(y)), int(torch.floor(x))
    value = torch.zeros(())
    for yy in (y0, y0 + 1):
        for xx in (x0, x0 + 1):
            if 0 <= yy < h and 0 <= xx < w:
                value = value + image[yy, xx] * (1 - (y - yy).abs()) * (1 - (x - xx).abs())
    return value


def _slow_deform_conv(conv, x, offset, mask, stride=2):
    """Dai et al. 2017, equation 2, tap by tap; kernel 3, padding 1."""
    _, c, _, _ = x.shape
    out_channels, per_group = conv.weight.shape[:2]
    h, w = offset.shape[2:]
    out = torch.zeros(1, out_channels, h, w)
    for o in range(out_channels):
        first = o // (out_channels // conv.groups) * per_group
        for i in range(per_group):
            deform_group = (first + i) // (c // conv.deform_groups)
            for tap in range(9):
                k = deform_group * 9 + tap
                for r in range(h):
                    for s in range(w):
                        y = r * stride - 1 + tap // 3 + offset[0, 2 * k, r, s]
                        z = s * stride - 1 + tap % 3 + offset[0, 2 * k + 1, r, s]
                        weight = 1 if mask is None else mask[0, k, r, s]
                        value = _sample(x[0, first + i], y, z)
                        out[0, o, r, s] += conv.weight[o, i, tap // 3, tap % 3] * value * weight
    return out if conv.bias is None else out + conv.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize('kind, deform_groups, groups', [
    ('DCN', 1, 1), ('DCN', 2, 2), ('DCNv2', 1, 1), ('DCNv2', 2, 1)])
def test_deformable_convolution_equals_the_formula(kind, deform_groups, groups):
    torch.manual_seed(0)
    cfg = dict(type=kind, deform_groups=deform_groups)
    conv = build_conv_layer(cfg, 4, 2, 3, stride=2, padding=1, groups=groups)
    keys = {'weight', 'conv_offset.weight', 'conv_offset.bias'} | ({'bias'} if kind == 'DCNv2' else set())
    assert set(conv.state_dict()) == keys
    nn.init.normal_(conv.conv_offset.weight, std=0.3)
    nn.init.normal_(conv.conv_offset.bias, std=0.5)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    x = torch.randn(1, 4, 5, 4)
    with torch.no_grad():
        raw = F.conv2d(x, conv.conv_offset.weight, conv.conv_offset.bias, stride=2, padding=1)
        taps = 9 * deform_groups
        mask = raw[:, 2 * taps:].sigmoid() if kind == 'DCNv2' else None
        wanted = _slow_deform_conv(conv, x, raw[:, :2 * taps], mask)
        torch.testing.assert_close(conv(x), wanted, rtol=1e-4, atol=1e-5)


def test_deformable_convolution_starts_as_a_plain_one():
    conv = build_conv_layer(dict(type='DCN'), 4, 6, 3, padding=2, dilation=2, bias=False)
    x = torch.randn(2, 4, 7, 9)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, padding=2, dilation=2), rtol=1e-4, atol=1e-5)


def test_users_own_convolution_and_norm():
    @LAYERS.register_module(name='MyConv', force=True)
    class MyConv(nn.Conv2d):
        def __init__(self, *args, gain=1.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.gain = gain

    @LAYERS.register_module(name='MyGroupedNorm', force=True)
    class MyGroupedNorm(nn.Module):
        def __init__(self, channels, parts):
            super().__init__()
            self.scale, self.parts = nn.Parameter(torch.ones(channels)), parts

        def forward(self, x):
            return x * self.scale.view(1, -1, 1, 1)

    module = ConvModule(3, 4, 1, conv_cfg=dict(type='MyConv', gain=2.0),
                        norm_cfg=dict(type='MyGroupedNorm', parts=2, requires_grad=False))
    assert set(module.state_dict()) == {'conv.weight', 'gn.scale'} and module.conv.gain == 2.0
    assert not module.gn.scale.requires_grad and module(torch.zeros(1, 3, 2, 2)).shape == (1, 4, 2, 2)


# --- norms ---

@pytest.mark.parametrize('kind, cls, name', [('BN', nn.BatchNorm2d, 'bn1'), ('BN2d', nn.BatchNorm2d, 'bn1'),
                                             ('SyncBN', nn.SyncBatchNorm, 'bn1'),
                                             ('IN', nn.InstanceNorm2d, 'in1')])
def test_norms_by_type(kind, cls, name):
    cfg = dict(type=kind, eps=1e-3, requires_grad=False)
    got, layer = build_norm_layer(cfg, 8, postfix=1)
    assert got == name and isinstance(layer, cls) and layer.eps == 1e-3 and layer.num_features == 8
    assert not any(p.requires_grad for p in layer.parameters())
    assert cfg == dict(type=kind, eps=1e-3, requires_grad=False)


def test_group_norm():
    name, layer = build_norm_layer(dict(type='GN', num_groups=4, requires_grad=True), 8)
    assert name == 'gn' and layer.num_groups == 4 and layer.num_channels == 8
    assert all(p.requires_grad for p in layer.parameters())
    for broken in (dict(type='GN', num_groups=3), dict(type='GN')):
        with pytest.raises(ConfigError, match='num_groups'):
            build_norm_layer(broken, 8)


def test_sync_bn_alone_on_the_cpu_is_batch_norm():
    torch.manual_seed(0)
    sync, plain = (build_norm_layer(dict(type=kind), 5)[1].train() for kind in ('SyncBN', 'BN'))
    for _ in range(2):
        x = torch.randn(3, 5, 4, 4)
        torch.testing.assert_close(sync(x), plain(x))
    assert list(sync.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(sync.running_var, plain.running_var)
    torch.testing.assert_close(sync.eval()(x), plain.eval()(x))


TWO_RANKS = '''
    import os, sys, torch, torch.distributed as dist
    from boxdet.models.layers import build_norm_layer
    torch.set_num_threads(1)
    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group('gloo', init_method='file://' + store, rank=rank, world_size=2)
    torch.manual_seed(0)
    x = (torch.randn(5, 3, 4, 6) * 2 + 3).requires_grad_()
    sync, plain = build_norm_layer(dict(type='SyncBN'), 3)[1], build_norm_layer(dict(type='BN'), 3)[1]
    for layer in (sync, plain):
        torch.nn.init.constant_(layer.weight, 0.7)
        torch.nn.init.constant_(layer.bias, 0.2)
    target = torch.randn(5, 3, 4, 6)
    part = slice(0, 2) if rank == 0 else slice(2, 5)  # the ranks hold 2 and 3 images
    mine = x[part].detach().requires_grad_()
    ((sync(mine) - target[part]) ** 2).sum().backward()
    ((plain(x) - target) ** 2).sum().backward()
    weight_grad = sync.weight.grad.clone()
    dist.all_reduce(weight_grad)
    torch.testing.assert_close(mine.grad, x.grad[part], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight_grad, plain.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sync.running_mean, plain.running_mean)
    torch.testing.assert_close(sync.running_var, plain.running_var)
    assert sync.num_batches_tracked == 1
    dist.destroy_process_group()
    os._exit(0)  # all is checked; on a busy machine torch's own threads may abort a process while it winds up
'''


@pytest.mark.slow
def test_sync_bn_of_two_cpu_processes_is_batch_norm_of_the_whole_batch(tmp_path, repo_root):
    code = textwrap.dedent(TWO_RANKS)
    ranks = [subprocess.Popen([sys.executable, '-c', code, str(rank), str(tmp_path / 'store')], cwd=repo_root,
                              stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


# --- activations, upsampling ---

def test_activations():
    assert build_activation_layer(dict(type='ReLU')).inplace
    assert not build_activation_layer(dict(type='ReLU', inplace=False)).inplace
    assert build_activation_layer(dict(type='LeakyReLU', negative_slope=0.1)).negative_slope == 0.1
    assert isinstance(build_activation_layer(dict(type='Tanh')), nn.Tanh)
    with pytest.raises(ConfigError, match="'negative_slop'; did you mean 'negative_slope'"):
        build_activation_layer(dict(type='LeakyReLU', negative_slop=0.1))


def test_upsampling():
    x = torch.tensor([[[[1., 3.]]]])
    assert build_upsample_layer(dict(type='nearest', scale_factor=2))(x).tolist() == [[[[1, 1, 3, 3]] * 2]]
    smooth = build_upsample_layer(dict(type='bilinear'), scale_factor=2, align_corners=False)(x)
    assert smooth[0, 0, 0].tolist() == [1, 1.5, 2.5, 3]
    cfg = dict(type='deconv')
    deconv = build_upsample_layer(cfg, in_channels=3, out_channels=2, kernel_size=2, stride=2)
    assert deconv(torch.zeros(1, 3, 7, 7)).shape == (1, 2, 14, 14) and cfg == dict(type='deconv')
    carafe = build_upsample_layer(dict(type='carafe'), channels=4, scale_factor=2)
    assert carafe(torch.zeros(1, 4, 3, 5)).shape == (1, 4, 6, 10)


@pytest.mark.parametrize('build', [
    lambda: build_conv_layer(dict(type='ConvWSS'), 3, 3, 1),
    lambda: build_conv_layer(dict(type='DCN', deform_group=2), 4, 4, 3),
    lambda: build_norm_layer(dict(type='BN', momentun=0.1), 4),
    lambda: build_upsample_layer(dict(type='nearst', scale_factor=2))])
def test_misspelt_layer_configs_name_the_nearest(build):
    with pytest.raises(ConfigError, match='did you mean'):
        build()


@pytest.mark.parametrize('cfg', [dict(num_groups=2), 'GN', None])
def test_a_layer_config_needs_a_type(cfg):
    with pytest.raises(ConfigError, match="norm_cfg is a dict with a 'type'"):
        build_norm_layer(cfg, 4)


# --- ConvModule ---

def test_conv_module_keys_and_bias():
    assert set(ConvModule(3, 4, 1).state_dict()) == {'conv.weight', 'conv.bias'}
    with_norm = ConvModule(3, 4, 1, norm_cfg=dict(type='GN', num_groups=2))
    assert set(with_norm.state_dict()) == {'conv.weight', 'gn.weight', 'gn.bias'}
    assert with_norm.norm is with_norm.gn
    assert 'conv.bias' in ConvModule(3, 4, 1, norm_cfg=dict(type='BN'), bias=True).state_dict()
    assert 'conv.bias' not in ConvModule(3, 4, 1, bias=False).state_dict()
    assert ConvModule(3, 4, 1).norm is None


def test_conv_module_runs_in_its_order():
    x = torch.randn(2, 4, 6, 6)
    module = ConvModule(4, 6, 3, padding=1, norm_cfg=dict(type='BN')).eval()
    nn.init.normal_(module.bn.running_mean)
    torch.testing.assert_close(module(x), module.bn(module.conv(x)).relu())
    torch.testing.assert_close(module(x, activate=False), module.bn(module.conv(x)))
    torch.testing.assert_close(module(x, norm=False), module.conv(x).relu())
    before = ConvModule(4, 6, 3, padding=1, norm_cfg=dict(type='BN'), inplace=False,
                        order=('norm', 'act', 'conv')).eval()
    assert before.bn.num_features == 4
    torch.testing.assert_close(before(x), before.conv(before.bn(x).relu()))
    bare = ConvModule(4, 6, 3, act_cfg=None)
    torch.testing.assert_close(bare(x), bare.conv(x))
    with pytest.raises(ConfigError, match='order'):
        ConvModule(3, 3, 1, order=('conv', 'norm'))


def test_conv_module_padding_mode_and_spectral_norm():
    x = torch.randn(1, 3, 5, 5)
    module = ConvModule(3, 3, 3, padding=1, padding_mode='reflect', act_cfg=None)
    torch.testing.assert_close(
        module(x), F.conv2d(F.pad(x, (1, 1, 1, 1), mode='reflect'), module.conv.weight, module.conv.bias))
    module = ConvModule(3, 8, 1, with_spectral_norm=True)
    for _ in range(50):
        module(x)
    assert torch.linalg.matrix_norm(module.conv.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_conv_module_starts_from_he_initialisation():
    torch.manual_seed(0)
    conv = ConvModule(64, 64, 3, conv_cfg=dict(type='ConvWS')).conv
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03) and not conv.bias.any()


@pytest.mark.slow
def test_layers_leave_backend_settings_alone():
    code = ('import torch, torch.backends.cudnn as c;'
            'now = lambda: (c.benchmark, c.deterministic, c.enabled, c.allow_tf32,'
            'torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision());'
            'before = now();'
            'import boxdet.models.layers, boxdet.models.backbones.resnet as r, boxdet.models.necks.fpn;'
            'r.ResNet(18).init_weights();'
            'assert before == now()')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
