"""ResNeSt (Zhang et al. 2020, "ResNeSt: Split-Attention Networks").

B images, C channels, S splits (the radix).
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from boxdet.models.backbones.resnet import Bottleneck, ResNetV1d
from boxdet.models.layers import build_conv_layer, build_norm_layer
from boxdet.registry import BACKBONES, Cfg


class SplitAttention(nn.Module):
    """A 3x3 convolution to S maps, which are added up with attention weights (section 3.1).

    The weights come from the mean over the sum of the maps.

    Args:
        channels: C, in and out.
        stride: of the convolution.
        dilation: of the convolution.
        groups: of the convolution and of the layers that give the weights.
        radix: S.
        reduction_factor: of the channels between those layers.
        conv_cfg: of the convolution.
        norm_cfg: of the norms.
    """

    def __init__(self, channels: int, stride: int, dilation: int, groups: int, radix: int, reduction_factor: int,
                 conv_cfg: Cfg | None, norm_cfg: Cfg):
        super().__init__()
        self.channels, self.radix, self.groups = channels, radix, groups
        inner = max(channels * radix // reduction_factor, 32)
        self.conv = build_conv_layer(conv_cfg, channels, channels * radix, 3, stride=stride, padding=dilation,
                                     dilation=dilation, groups=groups * radix, bias=False)
        self.norm0_name, norm0 = build_norm_layer(norm_cfg, channels * radix, postfix=0)
        self.add_module(self.norm0_name, norm0)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(channels, inner, 1, groups=groups)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, inner, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.fc2 = nn.Conv2d(inner, channels * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h / stride, w / stride)."""
        x = self.relu(getattr(self, self.norm0_name)(self.conv(x)))
        splits = x.unflatten(1, (self.radix, -1))                                        # (B, S, C, h, w)
        mean = splits.sum(dim=1).mean(dim=(2, 3), keepdim=True)                          # (B, C, 1, 1)
        weights = self.fc2(self.relu(getattr(self, self.norm1_name)(self.fc1(mean))))    # (B, S * C, 1, 1)
        if self.radix == 1:
            return x * weights.sigmoid()
        # Outputs are listed group by group, and in each split by split.
        weights = weights.reshape(len(x), self.groups, self.radix, -1).transpose(1, 2).softmax(dim=1)
        return (splits * weights.reshape(len(x), self.radix, -1, 1, 1)).sum(dim=1)


class _Bottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution is split-attention; average pooling strides where ``avg_down_stride``."""

    def __init__(self, in_channels: int, channels: int, radix: int, reduction_factor: int, avg_down_stride: bool,
                 **kwargs: Any):
        self.radix, self.reduction_factor, self.pools = radix, reduction_factor, avg_down_stride
        super().__init__(in_channels, channels, **kwargs)

    def _add_middle(self, width: int, stride: int, dilation: int, groups: int, conv_cfg: Cfg | None,
                    norm_cfg: Cfg) -> None:
        pools = self.pools and stride > 1
        self.conv2 = SplitAttention(width, 1 if pools else stride, dilation, groups, self.radix,
                                    self.reduction_factor, conv_cfg, norm_cfg)
        self.avd_layer = nn.AvgPool2d(3, stride, padding=1) if pools else nn.Identity()

    def _middle(self, x: Tensor) -> Tensor:
        return self.avd_layer(self.conv2(x))


@BACKBONES.register_module()
class ResNeSt(ResNetV1d):
    """ResNeSt-50, 101, 152 or 200.

    Args:
        groups: of the 3x3 convolutions, each of ``radix`` splits.
        base_width: channels of a group in the first stage; each stage doubles them.
        radix: splits.
        reduction_factor: of the channels between the layers that give the splits' weights.
        avg_down_stride: average pooling strides, and not the 3x3 convolution.
        kwargs: those of ResNet.
    """

    arch_settings: Mapping[int, tuple[type[_Bottleneck], tuple[int, ...]]] = {
        50: (_Bottleneck, (3, 4, 6, 3)), 101: (_Bottleneck, (3, 4, 23, 3)), 152: (_Bottleneck, (3, 8, 36, 3)),
        200: (_Bottleneck, (3, 24, 36, 3))}

    def __init__(self, groups: int = 1, base_width: int = 4, radix: int = 2, reduction_factor: int = 4,
                 avg_down_stride: bool = True, **kwargs: Any):
        self.groups, self.base_width = groups, base_width  # read while the stages are made
        self.radix, self.reduction_factor, self.avg_down_stride = radix, reduction_factor, avg_down_stride
        super().__init__(**kwargs)

    def _block_options(self, stage: int) -> Cfg:
        channels = self._stage_channels(stage)
        width = channels if self.groups == 1 else channels * self.base_width // self.base_channels * self.groups
        return {'groups': self.groups, 'width': width, 'radix': self.radix,
                'reduction_factor': self.reduction_factor, 'avg_down_stride': self.avg_down_stride}
