"""Blocks of backbones under 2.x's names and arguments, as plug-ins build theirs from them (run by test_parts.py)."""
import pytest
import torch

import boxdet.compat

boxdet.compat.install()
from mmdet.core.bbox.iou_calculators.iou2d_calculator import BboxOverlaps2D  # noqa: E402
from mmdet.models.backbones.hrnet import HRModule  # noqa: E402
from mmdet.models.backbones.pvt import PVTEncoderLayer  # noqa: E402
from mmdet.models.backbones.res2net import Bottle2neck  # noqa: E402
from mmdet.models.backbones.resnest import Bottleneck as ResNeStBottleneck  # noqa: E402
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck  # noqa: E402
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck  # noqa: E402
from mmdet.models.backbones.swin import SwinBlock  # noqa: E402
from mmdet.models.backbones.trident_resnet import TridentBottleneck  # noqa: E402
from mmdet.models.utils import ResLayer, SimplifiedBasicBlock  # noqa: E402

from boxdet.errors import ConfigError  # noqa: E402

MAP = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(0))


def refused(said, make, *args, **kwargs):
    with pytest.raises(ConfigError, match=said):
        make(*args, **kwargs)


# ResNeXt 32x4d: 32 groups of 4 channels at the first stage, whose planes are 64; ResNeSt and Res2Net by the same rule.
block = ResNeXtBottleneck(64, 16, groups=32, base_width=4, stride=2)
assert (block.conv2.groups, block.conv2.out_channels, block.conv2.stride) == (32, 32, (2, 2))
assert ResNeXtBottleneck(64, 64, groups=32, base_width=4).conv2.out_channels == 128
assert ResNeXtBottleneck(64, 16)(MAP).shape == MAP.shape
assert ResNeStBottleneck(64, 16).conv2.channels == 16 and ResNeStBottleneck(64, 16).eval()(MAP).shape == MAP.shape
assert Bottle2neck(64, 16, base_width=26, scales=4).convs[0].in_channels == 6  # 16 * 26 / 64
assert Bottle2neck(64, 16)(MAP).shape == MAP.shape
refused('scales=1', Bottle2neck, 64, 16, scales=1)
refused("style='tensorflow'", Bottleneck, 64, 64, style='tensorflow')
refused('after_conv4', Bottleneck, 64, 16, plugins=[dict(cfg=dict(type='NonLocal2d'), position='after_conv4')])
attentive = Bottleneck(64, 16, plugins=[dict(cfg=dict(type='NonLocal2d'), position='after_conv2')])
assert attentive.nonlocal_block.in_channels == 16

# A branch of TridentNet is the block at one dilation; one branch alone is run outside of training.
trident = TridentBottleneck((1, 2, 3), 1, True, inplanes=64, planes=16, norm_cfg=dict(type='GN', num_groups=4))
plain = Bottleneck(64, 16, dilation=2, norm_cfg=dict(type='GN', num_groups=4))
plain.load_state_dict(trident.state_dict())
assert trident(MAP).shape == (3, 64, 8, 8)
torch.testing.assert_close(trident(MAP)[1:2], plain(MAP))
torch.testing.assert_close(trident.eval()(MAP), plain(MAP))
apart = TridentBottleneck((1, 2, 3), -1, False, inplanes=64, planes=16)
assert [one.shape for one in apart([MAP] * 3)] == [MAP.shape] * 3

# A stage: its first block has the shortcut, or in Hourglass its last.
layer = ResLayer(Bottleneck, 64, 64, 3, stride=2, avg_down=True)
assert [type(part) for part in layer[0].downsample][:2] == [torch.nn.AvgPool2d, torch.nn.Conv2d]
assert layer(MAP).shape == (1, 256, 4, 4) and layer[1].downsample is None
late = ResLayer(BasicBlock, 64, 64, 3, stride=2, downsample_first=False)
assert [one.downsample is None for one in late] == [True, True, False] and late(MAP).shape == (1, 64, 4, 4)

simple = SimplifiedBasicBlock(64, 64, norm_cfg=None)
assert simple.norm1 is None and simple.norm2 is None
torch.testing.assert_close(simple(MAP), MAP + simple.conv2(simple.conv1(MAP).relu()))
assert isinstance(SimplifiedBasicBlock(64, 64).norm1, torch.nn.BatchNorm2d)
refused('neither dcn', SimplifiedBasicBlock, 64, 64, with_cp=True)

levels = [torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)]
several = dict(num_branches=2, blocks=BasicBlock, num_blocks=(1, 1), in_channels=(8, 16), num_channels=(8, 16))
assert [one.shape for one in HRModule(**several)(levels)] == [one.shape for one in levels]
assert [one.shape for one in HRModule(**several, multiscale_output=False)(levels)] == [levels[0].shape]
refused('one number a branch', HRModule, **{**several, 'num_blocks': (1,)})

tokens = MAP.flatten(2).transpose(1, 2)
for layer in (PVTEncoderLayer(64, 4, 128), SwinBlock(64, 4, 128, shift=True), SwinBlock(64, 4, 128, with_cp=True)):
    assert layer(tokens, (8, 8)).shape == tokens.shape
    assert (layer.ffn.embed_dims, layer.ffn.feedforward_channels) == (64, 128)
assert SwinBlock(64, 4, 128, shift=True).attn.shift == 3
corners = torch.tensor([[0., 0, 4, 4], [2, 0, 6, 4]])
torch.testing.assert_close(BboxOverlaps2D()(corners, corners), torch.tensor([[1, 1 / 3], [1 / 3, 1]]))
print('blocks')
