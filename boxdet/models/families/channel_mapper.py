"""A neck that only brings all levels to the same channels."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.registry import NECKS, Cfg

_RELU = {'type': 'ReLU'}


@NECKS.register_module()
class ChannelMapper(nn.Module):
    """One convolution on each level; convolutions of stride 2 make levels above the backbone's.

    Args:
        in_channels: of each level.
        out_channels: C of every output level.
        kernel_size: of the convolutions.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        act_cfg: of the activations.
        num_outs: output levels; as many as the backbone's by default.
        init_cfg: initial weights; Xavier uniform by default.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, kernel_size: int = 3,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None, act_cfg: Cfg | None = _RELU,
                 num_outs: int | None = None, init_cfg: InitCfg = None):
        super().__init__()
        if not isinstance(in_channels, Sequence):
            raise ConfigError(f'ChannelMapper.in_channels is one number a level, not {in_channels!r}')
        conv = partial(ConvModule, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.convs = nn.ModuleList(conv(channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2)
                                   for channels in in_channels)
        extra = (num_outs or len(in_channels)) - len(in_channels)
        if extra < 0:
            raise ConfigError(f'ChannelMapper: num_outs={num_outs} for {len(in_channels)} levels')
        self.extra_convs = nn.ModuleList(
            conv(out_channels if i else in_channels[-1], out_channels, 3, stride=2, padding=1)
            for i in range(extra)) if extra else None
        self.init_cfg = init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform')

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map L levels (B, in_channels[l], h, w) to num_outs levels (B, C, h, w), finest first."""
        if len(inputs) != len(self.convs):
            raise ConfigError(f'ChannelMapper: in_channels has {len(self.convs)} levels, the backbone gives '
                              f'{len(inputs)}')
        outs = [conv(x) for conv, x in zip(self.convs, inputs)]
        for i, conv in enumerate(self.extra_convs or ()):
            outs.append(conv(outs[-1] if i else inputs[-1]))
        return tuple(outs)
