"""Group norms (Wu and He 2018) as tensorpack places them: convolutions keep biases, and heads have the ReLU first."""
from __future__ import annotations

from typing import Any

from torch import nn

from boxdet.models.bbox_head import ConvFCBBoxHead
from boxdet.models.layers import ConvModule
from boxdet.models.mask_head import FCNMaskHead
from boxdet.models.necks.fpn import FPN
from boxdet.registry import HEADS, NECKS, Cfg

_GROUP_NORM = {'type': 'GN', 'num_groups': 32}


def _convs(in_channels: int, out_channels: int, count: int, norm_cfg: Cfg | None) -> nn.ModuleList:
    """3x3 convolutions with a bias, a ReLU and a norm each, in this order."""
    return nn.ModuleList(
        ConvModule(in_channels if i == 0 else out_channels, out_channels, 3, padding=1, bias=True, norm_cfg=norm_cfg,
                   order=('conv', 'act', 'norm')) for i in range(count))


@NECKS.register_module()
class TensorpackFPN(FPN):
    """``FPN`` with group norms after convolutions that have biases.

    Args:
        norm_cfg: of every convolution.
        **kwargs: as of ``FPN``.
    """

    def __init__(self, norm_cfg: Cfg = _GROUP_NORM, **kwargs: Any):
        super().__init__(norm_cfg=norm_cfg, **kwargs)
        for convs in (self.lateral_convs, self.fpn_convs):
            for i, old in enumerate(convs):
                convs[i] = ConvModule(old.in_channels, old.out_channels, old.conv.kernel_size, bias=True,
                                      padding=old.conv.padding, norm_cfg=norm_cfg, act_cfg=None)


@HEADS.register_module()
class TensorpackConvFCBBoxHead(ConvFCBBoxHead):
    """Four convolutions with group norms after their ReLUs, and a linear layer (``fastrcnn_4conv1fc_gn_head``).

    Args:
        num_shared_convs: convolutions.
        conv_out_channels: of each.
        norm_cfg: of each.
        **kwargs: as of ``ConvFCBBoxHead``.
    """

    def __init__(self, num_shared_convs: int = 4, num_shared_fcs: int = 1, conv_out_channels: int = 256,
                 norm_cfg: Cfg = _GROUP_NORM, **kwargs: Any):
        super().__init__(num_shared_convs=num_shared_convs, num_shared_fcs=num_shared_fcs,
                         conv_out_channels=conv_out_channels, **kwargs)
        self.shared_convs = _convs(self.in_channels, conv_out_channels, num_shared_convs, norm_cfg)


@HEADS.register_module()
class TensorpackFCNMaskHead(FCNMaskHead):
    """Convolutions with group norms after their ReLUs, and the enlargement (``maskrcnn_up4conv_gn_head``).

    Args:
        norm_cfg: of the convolutions.
        **kwargs: as of ``FCNMaskHead``.
    """

    def __init__(self, norm_cfg: Cfg = _GROUP_NORM, **kwargs: Any):
        super().__init__(**kwargs)
        self.convs = _convs(self.in_channels, self.conv_out_channels, self.num_convs, norm_cfg)
