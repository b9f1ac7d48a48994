"""Res2Net (Gao et al. 2019, "Res2Net: A New Multi-scale Backbone Architecture"), with the stem of V1b.

B images, S scales.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from boxdet.errors import ConfigError
from boxdet.models.backbones.resnet import Bottleneck, ResNet
from boxdet.models.layers import build_conv_layer, build_norm_layer
from boxdet.registry import BACKBONES, Cfg


class Bottle2neck(Bottleneck):
    """A bottleneck whose channels are split into S parts; each but the last goes through a 3x3 convolution of its own.

    A part is added to the next one before its convolution, except in the first block of a stage, whose last part is
    pooled where it strides.

    Args:
        scales: S.
        width: channels of all S parts together.
    """

    def __init__(self, in_channels: int, channels: int, scales: int, width: int, **kwargs: Any):
        self.scales = scales
        super().__init__(in_channels, channels, width=width, **kwargs)
        self.first_of_stage = self.downsample is not None
        part, stride, dilation, conv_cfg, norm_cfg = self._parts
        self.pool = nn.AvgPool2d(3, stride=stride, padding=1) if self.first_of_stage and stride != 1 else None
        self.convs = nn.ModuleList(
            build_conv_layer(conv_cfg, part, part, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
            for _ in range(scales - 1))
        self.bns = nn.ModuleList(build_norm_layer(norm_cfg, part)[1] for _ in range(scales - 1))
        del self._parts

    def _add_middle(self, width: int, stride: int, dilation: int, groups: int, conv_cfg: Cfg | None,
                    norm_cfg: Cfg) -> None:
        # They come last in the block, as 2.x's optimizer states count the parameters.
        self._parts = (width // self.scales, stride, dilation, conv_cfg, norm_cfg)

    def _middle(self, x: Tensor) -> Tensor:
        parts = x.chunk(self.scales, dim=1)
        outs: list[Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.bns):
            adds = outs and not self.first_of_stage
            outs.append(self.relu(norm(conv(outs[-1] + part if adds else part.contiguous()))))
        last = parts[-1] if self.pool is None else self.pool(parts[-1])
        return torch.cat([*outs, last], dim=1)


@BACKBONES.register_module()
class Res2Net(ResNet):
    """Res2Net-50, 101 or 152; its stem is deep and its shortcuts stride by average pooling.

    Args:
        scales: parts that the channels of a block are split into.
        base_width: channels of a part in the first stage; each stage doubles them.
        style: accepted as 2.x has it: blocks stride in their 3x3 convolutions, as 'pytorch' says.
        deep_stem: must be True.
        avg_down: must be True.
        kwargs: those of ResNet.

    Raises:
        ConfigError: fewer than two scales, or another stem, style or shortcut.
    """

    arch_settings: Mapping[int, tuple[type[Bottle2neck], tuple[int, ...]]] = {
        50: (Bottle2neck, (3, 4, 6, 3)), 101: (Bottle2neck, (3, 4, 23, 3)), 152: (Bottle2neck, (3, 8, 36, 3))}

    def __init__(self, scales: int = 4, base_width: int = 26, style: str = 'pytorch', deep_stem: bool = True,
                 avg_down: bool = True, **kwargs: Any):
        if scales < 2:
            raise ConfigError(f'Res2Net: scales={scales}; with fewer than 2 it is a ResNet')
        if (style, deep_stem, avg_down) != ('pytorch', True, True):
            raise ConfigError(f"Res2Net: style='{style}', deep_stem={deep_stem}, avg_down={avg_down}: it has only "
                              "style='pytorch', a deep stem, and shortcuts that stride by average pooling")
        self.scales, self.base_width = scales, base_width  # read while the stages are made
        super().__init__(style='pytorch', deep_stem=True, avg_down=True, **kwargs)

    def _block_options(self, stage: int) -> Cfg:
        part = self._stage_channels(stage) * self.base_width // self.base_channels
        return {'scales': self.scales, 'width': part * self.scales}
