"""RegNet (Radosavovic et al. 2020, "Designing Network Design Spaces"), kind X."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from boxdet.errors import ConfigError, nearest
from boxdet.models.backbones.resnet import Bottleneck, ResNet
from boxdet.models.layers import build_conv_layer, build_norm_layer
from boxdet.registry import BACKBONES, Cfg

_KEYS = ('w0', 'wa', 'wm', 'group_w', 'depth', 'bot_mul')
_DIVISOR = 8  # all widths are multiples of it
# name -> w0, wa, wm, group_w, depth, bot_mul of the paper's appendix
ARCHITECTURES = {name: dict(zip(_KEYS, values)) for name, values in {
    'regnetx_400mf': (24, 24.48, 2.54, 16, 22, 1.0), 'regnetx_800mf': (56, 35.73, 2.28, 16, 16, 1.0),
    'regnetx_1.6gf': (80, 34.01, 2.25, 24, 18, 1.0), 'regnetx_3.2gf': (88, 26.31, 2.25, 48, 25, 1.0),
    'regnetx_4.0gf': (96, 38.65, 2.43, 40, 23, 1.0), 'regnetx_6.4gf': (184, 60.83, 2.07, 56, 17, 1.0),
    'regnetx_8.0gf': (80, 49.56, 2.88, 120, 23, 1.0), 'regnetx_12gf': (168, 73.36, 2.37, 112, 19, 1.0)}.items()}


class _Bottleneck(Bottleneck):
    """The residual block of RegNet: its output is no wider than its inside."""

    expansion = 1


@BACKBONES.register_module()
class RegNet(ResNet):
    """RegNetX, the levels of ``out_indices`` at strides 4, 8, 16 and 32.

    Args:
        arch: a name such as 'regnetx_3.2gf'; or a dict with ``w0`` (first width), ``wa`` (its slope), ``wm`` (by which
            widths are quantised), ``group_w`` (channels of a group), ``depth`` and ``bot_mul`` (inner to outer width).
        stem_channels: of the stem's output.
        base_channels: accepted as 2.x has it; the widths follow from ``arch``.
        strides: of each stage.
        kwargs: those of ResNet but ``depth``, ``num_stages`` and ``deep_stem``.

    Raises:
        ConfigError: an unknown ``arch``, or values that do not fit one another.
    """

    def __init__(self, arch: str | Mapping, stem_channels: int = 32, base_channels: int = 32,
                 strides: Sequence[int] = (2, 2, 2, 2), deep_stem: bool = False, **kwargs: Any):
        if deep_stem:
            raise ConfigError('RegNet: its stem is one 3x3 convolution; deep_stem has no meaning')
        for key in ('depth', 'num_stages'):
            if key in kwargs:
                raise ConfigError(f"RegNet: {key} follows from 'arch'")
        self.stage_widths, depths, self.group_widths, self.bottleneck_ratio = stages(arch)
        total = sum(depths)
        self.arch_settings = {total: (_Bottleneck, tuple(depths))}
        super().__init__(total, stem_channels=stem_channels, base_channels=base_channels, num_stages=len(depths),
                         strides=strides, **kwargs)

    def _make_stem(self, in_channels: int, channels: int) -> None:
        self.conv1 = build_conv_layer(self.conv_cfg, in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.norm1_name, norm = build_norm_layer(self.norm_cfg, channels, postfix=1)
        self.add_module(self.norm1_name, norm)
        self.relu = nn.ReLU(inplace=True)

    def _stem(self, x: Tensor) -> Tensor:
        return self.relu(self.norm1(self.conv1(x)))

    def _stage_channels(self, stage: int) -> int:
        return self.stage_widths[stage]

    def _block_options(self, stage: int) -> Cfg:
        width = round(self.stage_widths[stage] * self.bottleneck_ratio)
        return {'width': width, 'groups': width // self.group_widths[stage]}


def stages(arch: str | Mapping) -> tuple[list[int], list[int], list[int], float]:
    """Widths, depths and group widths of the stages, and ``bot_mul``.

    Raises:
        ConfigError: an unknown name, missing numbers, or more than four stages.
    """
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ConfigError(f"RegNet: there is no arch '{arch}'{nearest(arch, ARCHITECTURES)}")
        arch = ARCHITECTURES[arch]
    missing = [key for key in _KEYS if key not in arch]
    if missing:
        raise ConfigError(f"RegNet: arch needs {', '.join(missing)} too: {dict(arch)}")
    first, slope, step, ratio = arch['w0'], arch['wa'], arch['wm'], arch['bot_mul']
    if slope < 0 or first <= 0 or first % _DIVISOR or step <= 1:
        raise ConfigError(f'RegNet: w0 is a multiple of {_DIVISOR}, wa at least 0 and wm above 1: {dict(arch)}')
    blocks = torch.arange(arch['depth'], dtype=torch.float64, device='cpu') * slope + first
    powers = ((blocks / first).log() / torch.tensor(step, dtype=torch.float64, device='cpu').log()).round()
    blocks = (first * step ** powers / _DIVISOR).round() * _DIVISOR
    runs = [(int(width), len(list(same))) for width, same in groupby(blocks.tolist())]
    if len(runs) > 4:
        raise ConfigError(f'RegNet: these numbers make {len(runs)} stages, and there are up to 4: {dict(arch)}')
    groups = [int(min(arch['group_w'], width * ratio)) for width, _ in runs]
    inner = [round(int(width * ratio) / group) * group for (width, _), group in zip(runs, groups)]
    return [int(width / ratio) for width in inner], [depth for _, depth in runs], groups, ratio
