"""HRNet and its pyramid (Sun et al. 2019, "High-Resolution Representations for Labeling Pixels and Regions").

B images, C channels. Branch i of a stage has a resolution of 1 / (4 * 2 ** i) of the image.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from boxdet.errors import ConfigError, nearest
from boxdet.models.backbones.resnet import BasicBlock, Bottleneck, make_res_layer
from boxdet.models.initialization import InitCfg, initialize, pretrained_or_default
from boxdet.models.layers import ConvModule, build_conv_layer, build_norm_layer
from boxdet.registry import BACKBONES, NECKS, Cfg

_BLOCKS: Mapping[str, type[BasicBlock] | type[Bottleneck]] = {'BASIC': BasicBlock, 'BOTTLENECK': Bottleneck}
_STAGE_KEYS = ('num_modules', 'num_branches', 'block', 'num_blocks', 'num_channels')
_STEM = 64
_BN = {'type': 'BN'}
_INIT: Sequence[Cfg] = [
    dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])]


def _conv_norm(source: int, target: int, kernel: int, stride: int, conv_cfg: Cfg | None, norm_cfg: Cfg
               ) -> list[nn.Module]:
    conv = build_conv_layer(conv_cfg, source, target, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [conv, build_norm_layer(norm_cfg, target)[1]]


class HRModule(nn.Module):
    """Blocks on each branch, then every branch is added to every other one.

    Args:
        block: of the branches.
        num_blocks: of each branch.
        in_channels: of each branch.
        num_channels: width of each branch's blocks.
        num_outs: branches put out, the finest first.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        with_cp: recompute blocks in the backward pass.
        block_init: init_cfg of the blocks.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], num_blocks: Sequence[int],
                 in_channels: Sequence[int], num_channels: Sequence[int], num_outs: int, conv_cfg: Cfg | None,
                 norm_cfg: Cfg, with_cp: bool, block_init: InitCfg):
        super().__init__()
        self.branches = nn.ModuleList(
            make_res_layer(block, source, width, depth, conv_cfg=conv_cfg, norm_cfg=norm_cfg, with_cp=with_cp,
                           init_cfg=block_init)
            for source, width, depth in zip(in_channels, num_channels, num_blocks))
        self.out_channels = [width * block.expansion for width in num_channels]
        self.fuse_layers = None
        if len(self.branches) > 1:
            self.fuse_layers = nn.ModuleList(
                nn.ModuleList(self._path(j, i, conv_cfg, norm_cfg) for j in range(len(self.branches)))
                for i in range(num_outs))
        self.relu = nn.ReLU()

    def _path(self, source: int, target: int, conv_cfg: Cfg | None, norm_cfg: Cfg) -> nn.Module:
        """From the resolution of one branch to that of another."""
        channels = self.out_channels
        if source == target:
            return nn.Identity()
        if source > target:
            return nn.Sequential(*_conv_norm(channels[source], channels[target], 1, 1, conv_cfg, norm_cfg),
                                 nn.Upsample(scale_factor=2 ** (source - target), mode='nearest'))
        steps = [nn.Sequential(*_conv_norm(channels[source], channels[source], 3, 2, conv_cfg, norm_cfg), nn.ReLU())
                 for _ in range(target - source - 1)]
        return nn.Sequential(*steps, nn.Sequential(
            *_conv_norm(channels[source], channels[target], 3, 2, conv_cfg, norm_cfg)))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Map a level (B, C, h, w) a branch to the levels that are put out."""
        levels = [branch(x) for branch, x in zip(self.branches, levels)]
        if self.fuse_layers is None:
            return levels
        return [self.relu(sum(path(x) for path, x in zip(paths.children(), levels)))
                for paths in self.fuse_layers]


@BACKBONES.register_module()
class HRNet(nn.Module):
    """HRNet, a level a branch of the last stage, at strides 4, 8, 16 and 32.

    Args:
        extra: ``stage1`` to ``stage4``, each with ``num_modules``, ``num_branches``, ``block`` ('BASIC' or
            'BOTTLENECK'), ``num_blocks`` and ``num_channels`` (a number a branch).
        in_channels: of the image.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        norm_eval: batch norms stay in evaluation mode while training.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        zero_init_residual: the last norm of each block starts at 0.
        multiscale_output: False puts out the finest level alone.
        pretrained: 2.x's older way to say ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``.
        init_cfg: initial weights; He's for convolutions and 1 for norms by default.

    Raises:
        ConfigError: a stage that is missing or does not add up.
    """

    def __init__(self, extra: Mapping[str, Mapping], in_channels: int = 3, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg = _BN, norm_eval: bool = True, with_cp: bool = False,
                 zero_init_residual: bool = False, multiscale_output: bool = True, pretrained: str | None = None,
                 init_cfg: InitCfg = None):
        super().__init__()
        self.stages = [_checked_stage(extra, f'stage{i}') for i in range(1, 5)]
        self.conv_cfg, self.norm_cfg, self.norm_eval, self.with_cp = conv_cfg, norm_cfg, norm_eval, with_cp
        self._zero_init = zero_init_residual and init_cfg is None and pretrained is None
        self.init_cfg = pretrained_or_default(init_cfg, pretrained, _INIT)
        for i, source in ((1, in_channels), (2, _STEM)):
            self.add_module(f'conv{i}', build_conv_layer(conv_cfg, source, _STEM, 3, stride=2, padding=1, bias=False))
            name, norm = build_norm_layer(norm_cfg, _STEM, postfix=i)
            setattr(self, f'norm{i}_name', name)
            self.add_module(name, norm)
        self.relu = nn.ReLU(inplace=True)
        first = self.stages[0]
        block, width = _BLOCKS[first['block']], first['num_channels'][0]
        self.layer1 = make_res_layer(block, _STEM, width, first['num_blocks'][0], conv_cfg=conv_cfg,
                                     norm_cfg=norm_cfg, with_cp=with_cp, init_cfg=self._block_init(block))
        channels = [width * block.expansion]
        for i, stage in enumerate(self.stages[1:], 1):
            block = _BLOCKS[stage['block']]
            wanted = [width * block.expansion for width in stage['num_channels']]
            self.add_module(f'transition{i}', self._transition(channels, wanted))
            single = i == len(self.stages) - 1 and not multiscale_output
            self.add_module(f'stage{i + 1}', self._stage(stage, wanted, 1 if single else len(wanted)))
            channels = wanted

    def _block_init(self, block: type[BasicBlock] | type[Bottleneck]) -> InitCfg:
        last = 'norm3' if block is Bottleneck else 'norm2'
        return dict(type='Constant', val=0, override=dict(name=last)) if self._zero_init else None

    def _transition(self, before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
        """From the branches of a stage to those of the next."""
        paths: list[nn.Module] = []
        for i, channels in enumerate(after):
            if i < len(before):
                same = channels == before[i]
                paths.append(nn.Identity() if same else nn.Sequential(
                    *_conv_norm(before[i], channels, 3, 1, self.conv_cfg, self.norm_cfg), nn.ReLU(inplace=True)))
                continue
            steps = [before[-1]] * (i - len(before) + 1) + [channels]
            paths.append(nn.Sequential(*(nn.Sequential(
                *_conv_norm(source, target, 3, 2, self.conv_cfg, self.norm_cfg), nn.ReLU(inplace=True))
                for source, target in zip(steps, steps[1:]))))
        return nn.ModuleList(paths)

    def _stage(self, cfg: Mapping, channels: Sequence[int], num_outs: int) -> nn.Sequential:
        block, count = _BLOCKS[cfg['block']], cfg['num_modules']
        return nn.Sequential(*(
            HRModule(block, cfg['num_blocks'], channels, cfg['num_channels'],
                     num_outs if i == count - 1 else len(channels), self.conv_cfg, self.norm_cfg, self.with_cp,
                     self._block_init(block)) for i in range(count)))

    @property
    def norm1(self) -> nn.Module:
        """The norm behind the first convolution."""
        return getattr(self, self.norm1_name)

    @property
    def norm2(self) -> nn.Module:
        """The norm behind the second convolution."""
        return getattr(self, self.norm2_name)

    def init_weights(self) -> None:
        """Start from ``init_cfg``: pretrained weights, or random ones."""
        initialize(self)

    def train(self, mode: bool = True) -> HRNet:
        """As usual, but with ``norm_eval`` every batch norm stays in evaluation mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to a level (B, C_i, H / s_i, W / s_i) a branch."""
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        levels = [self.layer1(x)]
        for i in range(1, len(self.stages)):
            paths = getattr(self, f'transition{i}')
            # A branch that is new starts from the coarsest one that there was.
            inputs = [path(levels[min(j, len(levels) - 1)]) for j, path in enumerate(paths)]
            levels = getattr(self, f'stage{i + 1}')(inputs)
        return tuple(levels)


def _checked_stage(extra: Mapping[str, Mapping], name: str) -> Mapping:
    if name not in extra:
        raise ConfigError(f"HRNet: extra needs '{name}'{nearest(name, extra)}")
    stage = extra[name]
    missing = [key for key in _STAGE_KEYS if key not in stage]
    if missing:
        raise ConfigError(f"HRNet: extra.{name} needs {', '.join(missing)}")
    if stage['block'] not in _BLOCKS:
        raise ConfigError(f"HRNet: extra.{name}.block is 'BASIC' or 'BOTTLENECK', not '{stage['block']}'")
    for key in ('num_blocks', 'num_channels'):
        if len(stage[key]) != stage['num_branches']:
            raise ConfigError(f"HRNet: extra.{name}.{key}={tuple(stage[key])} needs a number for each of "
                              f"{stage['num_branches']} branches")
    return stage


@NECKS.register_module()
class HRFPN(nn.Module):
    """All levels side by side at the finest resolution, reduced, and pooled to a pyramid.

    Args:
        in_channels: of each level.
        out_channels: of every output level.
        num_outs: output levels.
        pooling_type: 'AVG' or 'MAX'.
        conv_cfg: layer config of the convolutions.
        norm_cfg: accepted as 2.x has it; there are no norms.
        with_cp: recompute the convolutions in the backward pass.
        stride: of the 3x3 convolutions.
        init_cfg: initial weights; Caffe2's by default.

    Raises:
        ConfigError: another kind of pooling, or a norm.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int = 5, pooling_type: str = 'AVG',
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None, with_cp: bool = False, stride: int = 1,
                 init_cfg: InitCfg = None):
        super().__init__()
        if pooling_type not in ('AVG', 'MAX'):
            raise ConfigError(f"HRFPN: pooling_type is 'AVG' or 'MAX', not '{pooling_type}'")
        if norm_cfg is not None:
            raise ConfigError('HRFPN has no norms: leave norm_cfg out')
        self.in_channels, self.num_outs, self.with_cp = list(in_channels), num_outs, with_cp
        self.pooling = F.max_pool2d if pooling_type == 'MAX' else F.avg_pool2d
        self.reduction_conv = ConvModule(sum(in_channels), out_channels, 1, conv_cfg=conv_cfg, act_cfg=None)
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, stride=stride, conv_cfg=conv_cfg, act_cfg=None)
            for _ in range(num_outs))
        self.init_cfg = init_cfg or dict(type='Caffe2Xavier', layer='Conv2d')

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
        return module(x)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map L levels (B, in_channels[l], h_l, w_l), halved from one to the next, to num_outs levels."""
        if len(inputs) != len(self.in_channels):
            raise ConfigError(f'HRFPN: in_channels has {len(self.in_channels)} levels, the backbone gives '
                              f'{len(inputs)}')
        fine = [x if i == 0 else F.interpolate(x, scale_factor=2 ** i, mode='bilinear', align_corners=False)
                for i, x in enumerate(inputs)]
        merged = self._run(self.reduction_conv, torch.cat(fine, dim=1))
        return tuple(self._run(conv, merged if i == 0 else self.pooling(merged, kernel_size=2 ** i, stride=2 ** i))
                     for i, conv in enumerate(self.fpn_convs))
