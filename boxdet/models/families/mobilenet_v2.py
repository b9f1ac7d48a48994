"""MobileNetV2 (Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks").

B images, C channels.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg, initialize, pretrained_or_default
from boxdet.models.layers import ConvModule
from boxdet.registry import BACKBONES, Cfg

# expansion, channels, blocks and stride of each layer
_LAYERS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_LAST = 1280
_BN, _RELU6 = {'type': 'BN'}, {'type': 'ReLU6'}
_INIT: Sequence[Cfg] = [
    dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])]


class InvertedResidual(nn.Module):
    """A depthwise 3x3 convolution between two 1x1 ones, the first of which is left out where nothing expands."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, with_cp: bool,
                 conv: Callable[..., ConvModule]):
        super().__init__()
        self.with_cp = with_cp
        self.adds = stride == 1 and in_channels == out_channels
        inner = in_channels * expansion
        self.expand_conv = conv(in_channels, inner, 1) if expansion != 1 else None
        self.depthwise_conv = conv(inner, inner, 3, stride=stride, padding=1, groups=inner)
        self.linear_conv = conv(inner, out_channels, 1, act_cfg=None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h / stride, w / stride)."""
        if self.with_cp and x.requires_grad:
            return torch.utils.checkpoint.checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        out = x if self.expand_conv is None else self.expand_conv(x)
        out = self.linear_conv(self.depthwise_conv(out))
        return x + out if self.adds else out


@BACKBONES.register_module()
class MobileNetV2(nn.Module):
    """MobileNetV2, the outputs of the layers ``out_indices``: by default at strides 4, 8, 16 and 32.

    Args:
        widen_factor: factor of all channels.
        out_indices: layers put out: 0 to 6, and 7 for the last convolution (1280 channels).
        frozen_stages: -1 freezes nothing, 0 the first convolution, i also layers 1 to i.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        act_cfg: of the activations.
        norm_eval: batch norms stay in evaluation mode while training.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        pretrained: 2.x's older way to say ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``.
        init_cfg: initial weights; He's for convolutions and 1 for norms by default.

    Raises:
        ConfigError: layers that there are not.
    """

    def __init__(self, widen_factor: float = 1.0, out_indices: Sequence[int] = (1, 2, 4, 7), frozen_stages: int = -1,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = _BN, act_cfg: Cfg = _RELU6,
                 norm_eval: bool = False, with_cp: bool = False, pretrained: str | None = None,
                 init_cfg: InitCfg = None):
        super().__init__()
        if not out_indices or not set(out_indices) <= set(range(len(_LAYERS) + 1)):
            raise ConfigError(f'MobileNetV2: out_indices={tuple(out_indices)} do not name layers 0 to {len(_LAYERS)}')
        if not -1 <= frozen_stages <= len(_LAYERS):
            raise ConfigError(f'MobileNetV2: frozen_stages={frozen_stages}; it is -1 to {len(_LAYERS)}')
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval
        self.init_cfg = pretrained_or_default(init_cfg, pretrained, _INIT)
        conv = partial(ConvModule, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        channels = make_divisible(32 * widen_factor)
        self.conv1 = conv(3, channels, 3, stride=2, padding=1)
        self.layers = []
        for i, (expansion, base, blocks, stride) in enumerate(_LAYERS, 1):
            wanted, parts = make_divisible(base * widen_factor), []
            for j in range(blocks):
                parts.append(InvertedResidual(channels, wanted, expansion, 1 if j else stride, with_cp, conv))
                channels = wanted
            self.layers.append(f'layer{i}')
            self.add_module(f'layer{i}', nn.Sequential(*parts))
        self.conv2 = conv(channels, int(_LAST * max(widen_factor, 1.0)), 1)
        self.layers.append('conv2')
        self._freeze()

    def init_weights(self) -> None:
        """Start from ``init_cfg``: pretrained weights, or random ones."""
        initialize(self)

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            for name in ['conv1', *self.layers[:self.frozen_stages]]:
                getattr(self, name).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> MobileNetV2:
        """As usual, but frozen layers (and, with ``norm_eval``, every batch norm) stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to the outputs of ``out_indices``: (B, C_i, h_i, w_i)."""
        x = self.conv1(x)
        outs = []
        for i, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, one higher where that is below nine tenths of ``channels``."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest
