"""Residual networks (He et al. 2016, "Deep Residual Learning for Image Recognition"), V1c and V1d.

B images, C channels. ``channels`` of a block is the width of its 3x3 convolution (64, 128, 256, 512 by
stage); a Bottleneck puts out four times that. ``style``: 'pytorch' strides in the 3x3 convolution, 'caffe' in
the 1x1 before it.
"""
from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg, initialize, pretrained_or_default
from boxdet.models.layers import build_conv_layer, build_norm_layer
from boxdet.registry import LAYERS, MODELS, Cfg

_BN = {'type': 'BN', 'requires_grad': True}
_PLUGIN_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')


class _Block(nn.Module):
    """What BasicBlock and Bottleneck share: the shortcut, and recomputing for memory (``with_cp``)."""

    expansion = 1

    def __init__(self, with_cp: bool, init_cfg: InitCfg):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.with_cp = with_cp
        self.init_cfg = init_cfg

    def _add_norm(self, index: int, norm_cfg: Mapping, channels: int) -> None:
        # 2.x's key is 'bn1' or 'gn1'; `norm1` in an init_cfg override finds either.
        name, layer = build_norm_layer(norm_cfg, channels, postfix=index)
        self.add_module(name, layer)
        setattr(self, f'norm{index}_name', name)

    @property
    def norm1(self) -> nn.Module:
        """The norm behind the first convolution."""
        return getattr(self, self.norm1_name)

    @property
    def norm2(self) -> nn.Module:
        """The norm behind the second convolution."""
        return getattr(self, self.norm2_name)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Map (B, C_in, h, w) to (B, channels * expansion, h / stride, w / stride).

        ``context`` is handed on to ``_residual``, for kinds of blocks that read more than ``x``.
        """
        return self.relu(self._sum(x, *context))

    def _sum(self, x: Tensor, *context: Any) -> Tensor:
        """The block without its last ReLU, recomputed in the backward pass where ``with_cp`` says so."""
        if self.with_cp and x.requires_grad:
            return torch.utils.checkpoint.checkpoint(self._residual_sum, x, *context, use_reentrant=False,
                                                     context_fn=self._contexts)
        return self._residual_sum(x, *context)

    def _residual_sum(self, x: Tensor, *context: Any) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self._residual(x, *context)
        out += identity
        return out

    def _contexts(self) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        return contextlib.nullcontext(), self._statistics_kept()

    @contextlib.contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """The forward pass that backward repeats must not count a second time in the running statistics."""
        norms = [m for m in self.modules() if isinstance(m, _BatchNorm) and m.training
                 and m.track_running_stats]
        kept = [(m, m.momentum, m.num_batches_tracked) for m in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, momentum, count in kept:
                norm.momentum, norm.num_batches_tracked = momentum, count


class BasicBlock(_Block):
    """Two 3x3 convolutions, the first of which strides: ResNet-18 and 34."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1,
                 downsample: nn.Module | None = None, style: str = 'pytorch', with_cp: bool = False,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = _BN, dcn: Cfg | None = None,
                 plugins: Sequence[Cfg] | None = None, init_cfg: InitCfg = None):
        super().__init__(with_cp, init_cfg)
        if dcn is not None or plugins:
            raise ConfigError('ResNet-18 and 34 have no place for dcn or plugins: those need the bottleneck '
                              'blocks of depth 50 and more')
        self.conv1 = build_conv_layer(conv_cfg, in_channels, channels, 3, stride=stride, padding=dilation,
                                      dilation=dilation, bias=False)
        self._add_norm(1, norm_cfg, channels)
        self.conv2 = build_conv_layer(conv_cfg, channels, channels, 3, padding=1, bias=False)
        self._add_norm(2, norm_cfg, channels)
        self.downsample = downsample

    def _residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(out))


def _check_style_and_plugins(owner: str, style: str, plugins: Sequence[Cfg] | None) -> None:
    if style not in ('pytorch', 'caffe'):
        raise ConfigError(f"{owner}: style='{style}'; it is 'pytorch' or 'caffe'")
    for plugin in plugins or ():
        if plugin.get('position') not in _PLUGIN_POSITIONS or 'cfg' not in plugin:
            raise ConfigError(f"{owner}: a plugin needs 'cfg' and a 'position' of {_PLUGIN_POSITIONS}: {dict(plugin)}")


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions; with ``groups`` the aggregated block of ResNeXt.

    Args:
        width: channels of the 3x3 convolution; ``channels`` by default.
        dcn: config of the deformable convolution in place of the 3x3 one; its ``fallback_on_stride`` keeps
            the plain one in blocks that stride.
        plugins: [{'cfg': layer config, 'position': 'after_conv1' | 'after_conv2' | 'after_conv3'}].
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1,
                 downsample: nn.Module | None = None, style: str = 'pytorch', with_cp: bool = False,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = _BN, dcn: Cfg | None = None,
                 plugins: Sequence[Cfg] | None = None, init_cfg: InitCfg = None, groups: int = 1,
                 width: int | None = None):
        super().__init__(with_cp, init_cfg)
        _check_style_and_plugins(type(self).__name__, style, plugins)
        width = width or channels
        stride1, stride2 = (stride, 1) if style == 'caffe' else (1, stride)
        self.conv1 = build_conv_layer(conv_cfg, in_channels, width, 1, stride=stride1, bias=False)
        self._add_norm(1, norm_cfg, width)
        self._add_middle(width, stride2, dilation, groups, _middle_conv_cfg(conv_cfg, dcn, stride2), norm_cfg)
        self.conv3 = build_conv_layer(conv_cfg, width, channels * self.expansion, 1, bias=False)
        self._add_norm(3, norm_cfg, channels * self.expansion)
        self.downsample = downsample  # after the others, as 2.x's optimizer states count the parameters
        inner = dict(zip(_PLUGIN_POSITIONS, (width, width, channels * self.expansion)))
        self.plugin_names = {position: [self._add_plugin(p['cfg'], inner[position]) for p in plugins or ()
                                        if p['position'] == position] for position in _PLUGIN_POSITIONS}

    @property
    def norm3(self) -> nn.Module:
        """The norm behind the third convolution."""
        return getattr(self, self.norm3_name)

    def _add_plugin(self, cfg: Mapping, channels: int) -> str:
        """Add a plugin layer under 2.x's name: snake-case class name (or ``_abbr_``) and postfix."""
        cls = LAYERS.get(cfg['type'])
        snake = re.sub(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', '_', cls.__name__).lower()
        name = getattr(cls, '_abbr_', snake) + str(cfg.get('postfix', ''))
        if hasattr(self, name):
            raise ConfigError(f"plugins: two are called '{name}' in one block; give one a 'postfix'")
        self.add_module(name, LAYERS.build({k: v for k, v in cfg.items() if k != 'postfix'},
                                           in_channels=channels))
        return name

    def _run_plugins(self, x: Tensor, position: str) -> Tensor:
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x

    def _add_middle(self, width: int, stride: int, dilation: int, groups: int, conv_cfg: Cfg | None,
                    norm_cfg: Cfg) -> None:
        """Add what stands between the two 1x1 convolutions: a 3x3 one and its norm; kinds of ResNet override it."""
        self.conv2 = build_conv_layer(conv_cfg, width, width, 3, stride=stride, padding=dilation, dilation=dilation,
                                      groups=groups, bias=False)
        self._add_norm(2, norm_cfg, width)

    def _middle(self, x: Tensor, *context: Any) -> Tensor:
        """Map (B, width, h, w) to (B, width, h / stride, w / stride) by what ``_add_middle`` added."""
        return self.relu(self.norm2(self.conv2(x, *context)))

    def _residual(self, x: Tensor, *context: Any) -> Tensor:
        out = self._run_plugins(self.relu(self.norm1(self.conv1(x))), 'after_conv1')
        out = self._run_plugins(self._middle(out, *context), 'after_conv2')
        return self._run_plugins(self.norm3(self.conv3(out)), 'after_conv3')


def _middle_conv_cfg(conv_cfg: Cfg | None, dcn: Cfg | None, stride: int) -> Mapping | None:
    """Return the config of a bottleneck's 3x3 convolution: plain, or deformable where ``dcn`` asks for it."""
    if dcn is None:
        return conv_cfg
    options = dict(dcn)
    if options.pop('fallback_on_stride', False) and stride > 1:
        return conv_cfg
    if conv_cfg is not None:
        raise ConfigError(f'ResNet: dcn and conv_cfg={dict(conv_cfg)} both set the 3x3 convolution')
    return options


# depth -> block, blocks of each stage
ARCHITECTURES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)), 34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)), 101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3))}


def make_res_layer(block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, num_blocks: int,
                   stride: int = 1, avg_down: bool = False, conv_cfg: Cfg | None = None,
                   norm_cfg: Cfg = _BN, **block_options: Any) -> nn.Sequential:
    """Return one stage of blocks, of which the first strides and, where shapes change, has a shortcut convolution.

    Args:
        block: BasicBlock or Bottleneck (``block, depths = ARCHITECTURES[50]``), or one with their keywords.
        in_channels: of the stage's input; the output has ``channels * block.expansion``.
        channels: width of the 3x3 convolutions: 64 * 2**stage.
        num_blocks: how many.
        stride: of the first block.
        avg_down: average pooling strides in the shortcut (ResNet-D, He et al. 2019).
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        **block_options: what every block gets: dilation, style, with_cp, dcn, plugins, init_cfg; groups, width.

    The C4 shared head's ``layer4`` is ``make_res_layer(Bottleneck, 1024, 512, 3, stride=2, style='caffe')``.
    """
    out_channels = channels * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if avg_down else []
        conv = build_conv_layer(conv_cfg, in_channels, out_channels, 1, stride=1 if avg_down else stride,
                                bias=False)
        downsample = nn.Sequential(*pool, conv, build_norm_layer(norm_cfg, out_channels)[1])
    options = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, **block_options)
    first = block(in_channels, channels, stride=stride, downsample=downsample, **options)
    return nn.Sequential(first, *(block(out_channels, channels, **options) for _ in range(1, num_blocks)))


@MODELS.register_module()
class ResNet(nn.Module):
    """ResNet-18, 34, 50, 101 or 152, the levels of ``out_indices`` at strides 4, 8, 16 and 32.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: of the image.
        stem_channels: of the stem's output; ``base_channels`` by default.
        base_channels: width of the first stage.
        num_stages: stages built.
        strides: of each stage.
        dilations: of each stage.
        out_indices: stages put out, from 0.
        style: 'pytorch' or 'caffe' (see the top of the file).
        deep_stem: three 3x3 convolutions instead of one 7x7.
        avg_down: average pooling strides in the shortcuts.
        frozen_stages: -1 freezes nothing, 0 the stem, i also stages 1 to i: no gradients, norms in evaluation
            mode.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        norm_eval: batch norms stay in evaluation mode while training.
        dcn: config of a deformable 3x3 convolution, for the stages where ``stage_with_dcn`` is True.
        stage_with_dcn: one bool a stage.
        plugins: [{'cfg': layer config, 'stages': (bool, ...), 'position': 'after_conv1' | ...}], from LAYERS.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        zero_init_residual: the last norm of each block starts at 0 (Goyal et al. 2017).
        pretrained: 2.x's older way to say ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``.
        init_cfg: initial weights; He's for convolutions and 1 for norms by default.

    Raises:
        ConfigError: values that do not fit one another.
    """

    arch_settings: Mapping[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = ARCHITECTURES

    def __init__(self, depth: int, in_channels: int = 3, stem_channels: int | None = None,
                 base_channels: int = 64, num_stages: int = 4, strides: Sequence[int] = (1, 2, 2, 2),
                 dilations: Sequence[int] = (1, 1, 1, 1), out_indices: Sequence[int] = (0, 1, 2, 3),
                 style: str = 'pytorch', deep_stem: bool = False, avg_down: bool = False,
                 frozen_stages: int = -1, conv_cfg: Cfg | None = None, norm_cfg: Cfg = _BN,
                 norm_eval: bool = True, dcn: Cfg | None = None,
                 stage_with_dcn: Sequence[bool] = (False, False, False, False),
                 plugins: Sequence[Cfg] | None = None, with_cp: bool = False,
                 zero_init_residual: bool = True, pretrained: str | None = None, init_cfg: InitCfg = None):
        super().__init__()
        self.depth, self.base_channels, self.num_stages = depth, base_channels, num_stages
        self.strides, self.dilations, self.out_indices = tuple(strides), tuple(dilations), tuple(out_indices)
        self.style, self.deep_stem, self.avg_down = style, deep_stem, avg_down
        self.frozen_stages, self.norm_eval, self.with_cp = frozen_stages, norm_eval, with_cp
        self.conv_cfg, self.norm_cfg = conv_cfg, norm_cfg
        self.dcn, self.stage_with_dcn, self.plugins = dcn, tuple(stage_with_dcn), plugins
        self._check()
        self.block, depths = self.arch_settings[depth]
        self.init_cfg = pretrained_or_default(init_cfg, pretrained, [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])])
        by_default = init_cfg is None and pretrained is None
        last_norm = 'norm3' if issubclass(self.block, Bottleneck) else 'norm2'
        self._block_init = (dict(type='Constant', val=0, override=dict(name=last_norm))
                            if by_default and zero_init_residual else None)
        self.stem_channels = stem_channels or base_channels
        self._make_stem(in_channels, self.stem_channels)
        self.res_layers = self._make_stages(self.stem_channels, depths[:num_stages])
        self.feat_dim = self.block.expansion * self._stage_channels(num_stages - 1)
        self._freeze_stages()

    def _check(self) -> None:
        name, stages = type(self).__name__, self.num_stages
        if self.depth not in self.arch_settings:
            raise ConfigError(f'{name}: depth={self.depth}; there are {sorted(self.arch_settings)}')
        if not 1 <= stages <= 4:
            raise ConfigError(f'{name}: num_stages={stages}; it is 1 to 4')
        for key in ('strides', 'dilations'):
            if len(getattr(self, key)) != stages:
                raise ConfigError(f'{name}: {key}={getattr(self, key)} needs one number a stage ({stages})')
        if not self.out_indices or not all(0 <= i < stages for i in self.out_indices):
            raise ConfigError(f'{name}: out_indices={self.out_indices} do not name stages 0 to {stages - 1}')
        _check_style_and_plugins(name, self.style, self.plugins)
        if not -1 <= self.frozen_stages <= stages:
            raise ConfigError(f'{name}: frozen_stages={self.frozen_stages}; it is -1 to {stages}')
        if self.dcn is not None and len(self.stage_with_dcn) != stages:
            raise ConfigError(f'{name}: stage_with_dcn={self.stage_with_dcn}: one entry a stage ({stages})')
        for plugin in self.plugins or ():
            if plugin.get('stages') is not None and len(plugin['stages']) != stages:
                raise ConfigError(f"{name}: plugin stages={plugin['stages']}: one entry a stage ({stages})")

    def _make_stem(self, in_channels: int, channels: int) -> None:
        if self.deep_stem:
            half, layers = channels // 2, []
            for source, target, stride in ((in_channels, half, 2), (half, half, 1), (half, channels, 1)):
                layers += [build_conv_layer(self.conv_cfg, source, target, 3, stride=stride, padding=1,
                                            bias=False),
                           build_norm_layer(self.norm_cfg, target)[1], nn.ReLU(inplace=True)]
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1 = build_conv_layer(self.conv_cfg, in_channels, channels, 7, stride=2, padding=3,
                                          bias=False)
            self.norm1_name, norm = build_norm_layer(self.norm_cfg, channels, postfix=1)
            self.add_module(self.norm1_name, norm)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def _stem(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to what the first stage reads, (B, stem_channels, H / 4, W / 4)."""
        return self.maxpool(self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x))))

    def _make_stages(self, in_channels: int, depths: Sequence[int]) -> list[str]:
        """Add layer1, layer2, ... and return their names."""
        names = []
        for i, num_blocks in enumerate(depths):
            channels = self._stage_channels(i)
            plugins = [p for p in self.plugins or () if p.get('stages') is None or p['stages'][i]]
            dcn = self.dcn if self.dcn is not None and self.stage_with_dcn[i] else None
            layer = self._make_layer(
                self.block, in_channels, channels, num_blocks, stride=self.strides[i], avg_down=self.avg_down,
                conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, dilation=self.dilations[i], style=self.style,
                with_cp=self.with_cp, dcn=dcn, plugins=plugins, init_cfg=self._block_init,
                **self._block_options(i))
            names.append(f'layer{i + 1}')
            self.add_module(names[-1], layer)
            in_channels = channels * self.block.expansion
        return names

    # What makes a kind of ResNet; stages count from 0.

    def _make_layer(self, block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int,
                    num_blocks: int, **options: Any) -> nn.Sequential:
        """A stage; see ``make_res_layer``."""
        return make_res_layer(block, in_channels, channels, num_blocks, **options)

    def _stage_channels(self, stage: int) -> int:
        """Width of the 3x3 convolutions of a stage."""
        return self.base_channels * 2 ** stage

    def _block_options(self, stage: int) -> Cfg:
        """Keywords that the blocks of a stage are given beyond those that all kinds have."""
        return {}

    @property
    def norm1(self) -> nn.Module:
        """The stem's norm."""
        return getattr(self, self.norm1_name)

    def init_weights(self) -> None:
        """Start from ``init_cfg``: pretrained weights, or random ones."""
        initialize(self)

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        stem = [self.stem] if self.deep_stem else [self.conv1, self.norm1]
        for module in stem + [getattr(self, name) for name in self.res_layers[:self.frozen_stages]]:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ResNet:
        """As usual, but frozen stages (and, with ``norm_eval``, every batch norm) stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to the levels of ``out_indices``: (B, C_i, H / s_i, W / s_i)."""
        x = self._stem(x)
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


@MODELS.register_module()
class ResNetV1c(ResNet):
    """ResNet with three 3x3 convolutions as its stem (He et al. 2019, "Bag of Tricks", ResNet-C).

    What that paper calls ResNet-B, striding in the 3x3 convolution, is ResNet with style='pytorch'.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{'deep_stem': True, 'avg_down': False, **kwargs})


@MODELS.register_module()
class ResNetV1d(ResNet):
    """ResNetV1c whose shortcuts stride by average pooling (the same paper, ResNet-D)."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{'deep_stem': True, 'avg_down': True, **kwargs})
