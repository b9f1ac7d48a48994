"""Path aggregation (Liu et al. 2018, "Path Aggregation Network for Instance Segmentation")."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg
from boxdet.models.layers import ConvModule
from boxdet.models.necks.fpn import FPN
from boxdet.registry import NECKS, Cfg


@NECKS.register_module()
class PAFPN(FPN):
    """FPN with a bottom-up path behind it (section 3.1); arguments as in FPN, without ``upsample_cfg``."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, start_level: int = 0,
                 end_level: int = -1, add_extra_convs: bool | str = False, relu_before_extra_convs: bool = False,
                 no_norm_on_lateral: bool = False, conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None,
                 act_cfg: Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__(in_channels, out_channels, num_outs, start_level, end_level, add_extra_convs,
                         relu_before_extra_convs, no_norm_on_lateral, conv_cfg, norm_cfg, act_cfg, init_cfg=init_cfg)
        steps = len(self.lateral_convs) - 1
        if num_outs <= steps:
            raise ConfigError(f'PAFPN: num_outs={num_outs}, and the levels used are {steps + 1}')
        conv = partial(ConvModule, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        self.downsample_convs = nn.ModuleList(
            conv(out_channels, out_channels, 3, stride=2) for _ in range(steps))
        self.pafpn_convs = nn.ModuleList(conv(out_channels, out_channels, 3) for _ in range(steps))

    def forward(self, inputs: Sequence[Tensor], keep: bool = True) -> tuple[Tensor, ...]:
        """See ``FPN``; the backbone's levels are kept in any case."""
        if len(inputs) != len(self.in_channels):
            raise ConfigError(f'PAFPN: in_channels has {len(self.in_channels)} levels, the backbone gives '
                              f'{len(inputs)}')
        laterals = self._top_down(list(inputs))
        inner = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        for i, down in enumerate(self.downsample_convs):
            inner[i + 1] = inner[i + 1] + down(inner[i])
        outs = inner[:1] + [conv(x) for conv, x in zip(self.pafpn_convs, inner[1:])]
        last = inputs[self.backbone_end_level - 1] if self.add_extra_convs == 'on_input' else None
        self._append_extra(outs, last, laterals[-1])
        return tuple(outs)
