"""Blocks of backbones under mmdetection 2.x's names and arguments, for plug-ins that build theirs from them.

Each is one of boxdet's with another constructor: ``inplanes`` channels in, ``planes`` the width of the 3x3 convolution.
B images, C channels, N tokens of an image.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boxdet.errors import ConfigError
from boxdet.models.backbones import resnet
from boxdet.models.families import hrnet, pvt, res2net, resnest, scnet, swin, tridentnet
from boxdet.models.initialization import InitCfg
from boxdet.registry import Cfg

_BN, _LN, _GELU = {'type': 'BN'}, {'type': 'LN'}, {'type': 'GELU'}


def _grouped_width(planes: int, groups: int, base_width: int, base_channels: int) -> int:
    return planes if groups == 1 else planes * base_width // base_channels * groups


class ResNeXtBottleneck(resnet.Bottleneck):
    """``mmdet.models.backbones.resnext.Bottleneck``.

    Args:
        inplanes: channels in.
        planes: width of a ResNet's 3x3 convolution at this stage.
        groups: of the 3x3 convolution.
        base_width: channels of a group in the first stage.
        base_channels: ``planes`` of the first stage.
        **kwargs: those of ``Bottleneck``.
    """

    def __init__(self, inplanes: int, planes: int, groups: int = 1, base_width: int = 4, base_channels: int = 64,
                 **kwargs: Any):
        width = _grouped_width(planes, groups, base_width, base_channels)
        super().__init__(inplanes, planes, groups=groups, width=width, **kwargs)


class ResNeStBottleneck(resnest._Bottleneck):
    """``mmdet.models.backbones.resnest.Bottleneck``; arguments as in ``ResNeSt`` and ``ResNeXtBottleneck``."""

    def __init__(self, inplanes: int, planes: int, groups: int = 1, base_width: int = 4, base_channels: int = 64,
                 radix: int = 2, reduction_factor: int = 4, avg_down_stride: bool = True, **kwargs: Any):
        width = _grouped_width(planes, groups, base_width, base_channels)
        super().__init__(inplanes, planes, radix=radix, reduction_factor=reduction_factor,
                         avg_down_stride=avg_down_stride, groups=groups, width=width, **kwargs)


class Bottle2neck(res2net.Bottle2neck):
    """``mmdet.models.backbones.res2net.Bottle2neck``.

    Args:
        inplanes: channels in.
        planes: width of a ResNet's 3x3 convolution at this stage.
        scales: parts that the channels are split into.
        base_width: channels of a part in the first stage.
        base_channels: ``planes`` of the first stage.
        stage_type: 'stage' where the first block has a shortcut convolution; 'normal' for the others.
        **kwargs: those of ``Bottleneck``.

    Raises:
        ConfigError: one scale.
    """

    def __init__(self, inplanes: int, planes: int, scales: int = 4, base_width: int = 26, base_channels: int = 64,
                 stage_type: str = 'normal', **kwargs: Any):
        if scales < 2:
            raise ConfigError(f'Bottle2neck: scales={scales}; with fewer than 2 it is a Bottleneck')
        super().__init__(inplanes, planes, scales=scales, width=planes * base_width // base_channels * scales, **kwargs)
        self.stage_type = stage_type


class TridentBottleneck(tridentnet.TridentBottleneck):
    """``mmdet.models.backbones.trident_resnet.TridentBottleneck``: it runs all branches itself.

    Args:
        trident_dilations: of the branches.
        test_branch_idx: the only branch outside of training, or -1 for all.
        concat_output: whether branches are images of one batch in the end; a list otherwise.
        inplanes: channels in.
        planes: width of the 3x3 convolution.
        **kwargs: those of ``Bottleneck``.
    """

    def __init__(self, trident_dilations: Sequence[int], test_branch_idx: int, concat_output: bool, inplanes: int,
                 planes: int, **kwargs: Any):
        super().__init__(inplanes, planes, **kwargs)
        self.trident_dilations, self.num_branch = tuple(trident_dilations), len(trident_dilations)
        self.test_branch_idx, self.concat_output = test_branch_idx, concat_output

    def forward(self, x: Tensor | Sequence[Tensor]) -> Any:
        """Map (B, C, h, w), or one such a branch, to (n * B, C', h', w') or a list of n (B, C', h', w')."""
        every = self.training or self.test_branch_idx == tridentnet.ALL_BRANCHES
        dilations = self.trident_dilations if every else [self.trident_dilations[self.test_branch_idx]]
        inputs = [x] * len(dilations) if isinstance(x, Tensor) else x
        outs = [super(TridentBottleneck, self).forward(one, dilation) for one, dilation in zip(inputs, dilations)]
        return torch.cat(outs) if self.concat_output else outs


class SimplifiedBasicBlock(scnet._SimplifiedBlock):
    """``mmdet.models.utils.SimplifiedBasicBlock``: a BasicBlock without its last ReLU; without norms if they are None.

    Raises:
        ConfigError: ``dcn``, ``plugins``, ``with_cp``, a stride or a dilation.
    """

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1, dilation: int = 1,
                 downsample: nn.Module | None = None, style: str = 'pytorch', with_cp: bool = False,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = _BN, dcn: Cfg | None = None,
                 plugins: Sequence[Cfg] | None = None, init_cfg: InitCfg = None):
        if dcn is not None or plugins or with_cp or (stride, dilation) != (1, 1):
            raise ConfigError('SimplifiedBasicBlock takes neither dcn, plugins, with_cp nor a stride or dilation')
        super().__init__(inplanes, planes, conv_cfg, norm_cfg)
        self.init_cfg = init_cfg
        if downsample is not None:
            self.downsample = downsample

    def _norm(self, index: int) -> nn.Module | None:
        return getattr(self, self.norm_names[index]) if self.norm_names else None

    @property
    def norm1(self) -> nn.Module | None:
        """The norm behind the first convolution."""
        return self._norm(0)

    @property
    def norm2(self) -> nn.Module | None:
        """The norm behind the second convolution."""
        return self._norm(1)


class ResLayer(nn.Sequential):
    """``mmdet.models.utils.ResLayer``: a stage of blocks, made by ``make_res_layer``.

    Args:
        block: class of the blocks.
        inplanes: channels in.
        planes: width of the blocks.
        num_blocks: how many.
        stride: of the block that has the shortcut convolution.
        avg_down: average pooling strides in the shortcut.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        downsample_first: whether that block is the first or (in Hourglass) the last one.
        **kwargs: what every block gets.
    """

    def __init__(self, block: Any, inplanes: int, planes: int, num_blocks: int, stride: int = 1, avg_down: bool = False,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = _BN, downsample_first: bool = True, **kwargs: Any):
        options = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, **kwargs)
        before = [] if downsample_first else [block(inplanes, inplanes, **options) for _ in range(num_blocks - 1)]
        count = num_blocks if downsample_first else 1
        super().__init__(*before, *resnet.make_res_layer(block, inplanes, planes, count, stride=stride,
                                                         avg_down=avg_down, **options))
        self.block = block


class HRModule(hrnet.HRModule):
    """``mmdet.models.backbones.hrnet.HRModule``.

    Args:
        num_branches: as many as all lists have entries.
        blocks: class of the blocks.
        in_channels: of each branch.
        num_blocks: of each branch.
        num_channels: width of each branch's blocks.
        multiscale_output: False puts out the finest branch alone.
        with_cp: recompute blocks in the backward pass.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        block_init_cfg: init_cfg of the blocks.
        init_cfg: of the module.

    Raises:
        ConfigError: lists of other lengths.
    """

    def __init__(self, num_branches: int, blocks: Any, num_blocks: Sequence[int], in_channels: Sequence[int],
                 num_channels: Sequence[int], multiscale_output: bool = True, with_cp: bool = False,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = _BN, block_init_cfg: InitCfg = None,
                 init_cfg: InitCfg = None):
        lists: Mapping[str, Sequence[int]] = dict(num_blocks=num_blocks, in_channels=in_channels,
                                                  num_channels=num_channels)
        for name, values in lists.items():
            if len(values) != num_branches:
                raise ConfigError(f'HRModule: {name}={tuple(values)} needs one number a branch ({num_branches})')
        super().__init__(blocks, num_blocks, in_channels, num_channels, num_branches if multiscale_output else 1,
                         conv_cfg, norm_cfg, with_cp, block_init_cfg)
        self.num_branches, self.multiscale_output, self.init_cfg = num_branches, multiscale_output, init_cfg


class PVTEncoderLayer(pvt.PVTBlock):
    """``mmdet.models.backbones.pvt.PVTEncoderLayer``; ``feedforward_channels`` are those inside of the FFN."""

    def __init__(self, embed_dims: int, num_heads: int, feedforward_channels: int, drop_rate: float = 0.0,
                 attn_drop_rate: float = 0.0, drop_path_rate: float = 0.0, qkv_bias: bool = True, act_cfg: Cfg = _GELU,
                 norm_cfg: Cfg = _LN, sr_ratio: int = 1, use_conv_ffn: bool = False, init_cfg: InitCfg = None):
        super().__init__(embed_dims, num_heads, feedforward_channels, drop_rate, attn_drop_rate, drop_path_rate,
                         qkv_bias, act_cfg, norm_cfg, sr_ratio, use_conv_ffn)
        self.init_cfg = init_cfg


class SwinBlock(swin.SwinBlock):
    """``mmdet.models.backbones.swin.SwinBlock``; with ``shift`` the windows move by half their side."""

    def __init__(self, embed_dims: int, num_heads: int, feedforward_channels: int, window_size: int = 7,
                 shift: bool = False, qkv_bias: bool = True, qk_scale: float | None = None, drop_rate: float = 0.0,
                 attn_drop_rate: float = 0.0, drop_path_rate: float = 0.0, act_cfg: Cfg = _GELU, norm_cfg: Cfg = _LN,
                 with_cp: bool = False, init_cfg: InitCfg = None):
        super().__init__(embed_dims, feedforward_channels, drop_rate, drop_path_rate, act_cfg, norm_cfg, with_cp,
                         num_heads=num_heads, window_size=window_size, shift=window_size // 2 if shift else 0,
                         qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop_rate=attn_drop_rate)
        self.init_cfg = init_cfg
