"""Layers of ``mmdet.models.utils`` that backbones, necks and heads of plug-ins are built from; 2.x's state-dict keys.

B images, C channels, N tokens of an image: the h * w pixels of a map, row by row.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils.checkpoint
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torchvision.ops import StochasticDepth

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg
from boxdet.models.layers import ConvModule, build_conv_layer, build_norm_layer
from boxdet.models.patches import Size, to_map, to_tokens
from boxdet.registry import Cfg

Sides = int | tuple[int, int]  # of a window, or steps: both, or vertical and horizontal
_BN, _LN, _RELU = {'type': 'BN'}, {'type': 'LN'}, {'type': 'ReLU'}


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """torch's, which takes empty batches by itself."""


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """torch's, which takes empty batches by itself."""
    return F.adaptive_avg_pool2d(input, output_size)


class AdaptivePadding(nn.Module):
    """Zeros around maps so that windows cover them.

    Args:
        kernel_size: of the windows.
        stride: from window to window.
        dilation: of the windows.
        padding: 'corner' pads at the bottom and right, 'same' on all sides.

    Raises:
        ConfigError: another ``padding``.
    """

    def __init__(self, kernel_size: Sides = 1, stride: Sides = 1, dilation: Sides = 1, padding: str = 'corner'):
        super().__init__()
        if padding not in ('same', 'corner'):
            raise ConfigError(f"AdaptivePadding: padding is 'same' or 'corner', not {padding!r}")
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding

    def get_pad_shape(self, input_shape: Size) -> Size:
        """Rows and columns that are missing on a map of this size."""
        missing = [max((-(-side // step) - 1) * step + (kernel - 1) * dilation + 1 - side, 0) for side, kernel, step,
                   dilation in zip(input_shape, self.kernel_size, self.stride, self.dilation)]
        return missing[0], missing[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h', w')."""
        height, width = self.get_pad_shape((x.shape[-2], x.shape[-1]))
        top, left = (height // 2, width // 2) if self.padding == 'same' else (0, 0)
        return F.pad(x, (left, width - left, top, height - top)) if height or width else x


class _Windows(BaseModule):
    """What PatchEmbed and PatchMerging share: padding, and how many windows a map has."""

    def __init__(self, kernel_size: Sides, stride: Sides, padding: str | Sides, dilation: Sides, init_cfg: InitCfg):
        super().__init__(init_cfg)
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.adaptive_padding = None
        if isinstance(padding, str):
            self.adaptive_padding = AdaptivePadding(kernel_size, stride, dilation, padding)
            padding = 0
        self.padding = _pair(padding)

    def padded(self, x: Tensor) -> Tensor:
        return x if self.adaptive_padding is None else self.adaptive_padding(x)

    def count(self, size: Size) -> Size:
        """Rows and columns of windows on a map of this size."""
        more = (0, 0) if self.adaptive_padding is None else self.adaptive_padding.get_pad_shape(size)
        found = [(side + extra + 2 * pad - dilation * (kernel - 1) - 1) // step + 1 for side, extra, pad, dilation,
                 kernel, step in zip(size, more, self.padding, self.dilation, self.kernel_size, self.stride)]
        return found[0], found[1]


class PatchEmbed(_Windows):
    """A strided convolution that makes a token of each patch; keys ``projection`` and ``norm``.

    Args:
        in_channels: of the map.
        embed_dims: of a token.
        conv_type: type of the convolution's layer config.
        kernel_size: of a patch.
        stride: from patch to patch.
        padding: as of a convolution, or ``AdaptivePadding``'s.
        dilation: of a patch.
        bias: of the convolution.
        norm_cfg: of the tokens; None for no norm.
        input_size: of the map that ``init_out_size``, the rows and columns of its patches, is asked for.
        init_cfg: initial weights.
    """

    def __init__(self, in_channels: int = 3, embed_dims: int = 768, conv_type: str = 'Conv2d', kernel_size: Sides = 16,
                 stride: Sides | None = 16, padding: str | Sides = 'corner', dilation: Sides = 1, bias: bool = True,
                 norm_cfg: Cfg | None = None, input_size: Sides | None = None, init_cfg: InitCfg = None):
        stride = kernel_size if stride is None else stride
        super().__init__(kernel_size, stride, padding, dilation, init_cfg)
        self.embed_dims = embed_dims
        self.projection = build_conv_layer({'type': conv_type}, in_channels, embed_dims, kernel_size=kernel_size,
                                           stride=stride, padding=self.padding, dilation=dilation, bias=bias)
        self.norm = None if norm_cfg is None else build_norm_layer(norm_cfg, embed_dims)[1]
        self.init_input_size = None if input_size is None else _pair(input_size)
        self.init_out_size = None if self.init_input_size is None else self.count(self.init_input_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Map (B, C, H, W) to tokens (B, N, embed_dims) and their (h, w)."""
        x = self.projection(self.padded(x))
        tokens = to_tokens(x)
        return tokens if self.norm is None else self.norm(tokens), (x.shape[2], x.shape[3])


class PatchMerging(_Windows):
    """Windows of tokens become one token each; keys ``norm`` and ``reduction``.

    Args:
        in_channels: of a token.
        out_channels: of a token that comes out.
        kernel_size: of a window.
        stride: from window to window; None for ``kernel_size``.
        padding: as of a convolution, or ``AdaptivePadding``'s.
        dilation: of a window.
        bias: of the linear layer.
        norm_cfg: of what the linear layer reads; None for no norm.
        init_cfg: initial weights.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sides = 2, stride: Sides | None = None,
                 padding: str | Sides = 'corner', dilation: Sides = 1, bias: bool = False, norm_cfg: Cfg | None = _LN,
                 init_cfg: InitCfg = None):
        super().__init__(kernel_size, kernel_size if stride is None else stride, padding, dilation, init_cfg)
        self.in_channels, self.out_channels = in_channels, out_channels
        channels = self.kernel_size[0] * self.kernel_size[1] * in_channels
        self.norm = None if norm_cfg is None else build_norm_layer(norm_cfg, channels)[1]
        self.reduction = nn.Linear(channels, out_channels, bias=bias)

    def forward(self, x: Tensor, input_size: Size) -> tuple[Tensor, Size]:
        """Map tokens (B, N, C) of a map (h, w) to tokens (B, N', out_channels) and their (h', w')."""
        if x.shape[1] != input_size[0] * input_size[1]:
            raise ConfigError(f'PatchMerging: {x.shape[1]} tokens for a map of {tuple(input_size)}')
        windows = F.unfold(self.padded(to_map(x, input_size)), self.kernel_size, self.dilation, self.padding,
                           self.stride).transpose(1, 2)
        return self.reduction(windows if self.norm is None else self.norm(windows)), self.count(input_size)


def _two_activations(act_cfg: Any, name: str) -> tuple[Cfg, Cfg]:
    """Of one config both, or two configs.

    Raises:
        ConfigError: anything else.
    """
    pair = (act_cfg, act_cfg) if isinstance(act_cfg, Mapping) else act_cfg
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(one, Mapping) for one in pair):
        raise ConfigError(f'{name}: act_cfg is a layer config, or a tuple of two, not {act_cfg!r}')
    return pair


class SELayer(BaseModule):
    """Channels weighted by what all pixels are (Hu et al. 2018, "Squeeze-and-Excitation Networks").

    Args:
        channels: C.
        ratio: of C to the channels between both convolutions.
        conv_cfg: layer config of the convolutions.
        act_cfg: of the activations: one config, or a tuple of two.
        init_cfg: initial weights.

    Raises:
        ConfigError: another ``act_cfg``.
    """

    def __init__(self, channels: int, ratio: int = 16, conv_cfg: Cfg | None = None,
                 act_cfg: Any = (_RELU, {'type': 'Sigmoid'}), init_cfg: InitCfg = None):
        super().__init__(init_cfg)
        first, second = _two_activations(act_cfg, type(self).__name__)
        self.conv1 = ConvModule(channels, channels // ratio, 1, conv_cfg=conv_cfg, act_cfg=first)
        self.conv2 = ConvModule(channels // ratio, channels, 1, conv_cfg=conv_cfg, act_cfg=second)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        return x * self.conv2(self.conv1(x.mean(dim=(2, 3), keepdim=True)))


class DyReLU(BaseModule):
    """The larger of two lines, whose slopes and offsets depend on all pixels (Chen et al. 2020, "Dynamic ReLU").

    Args:
        channels: C.
        ratio: of C to the channels between both convolutions.
        conv_cfg: layer config of the convolutions.
        act_cfg: of the activations: one config, or a tuple of two; the second one gives numbers from 0 to 1.
        init_cfg: initial weights.

    Raises:
        ConfigError: another ``act_cfg``.
    """

    def __init__(self, channels: int, ratio: int = 4, conv_cfg: Cfg | None = None,
                 act_cfg: Any = (_RELU, {'type': 'HSigmoid'}), init_cfg: InitCfg = None):
        super().__init__(init_cfg)
        first, second = _two_activations(act_cfg, type(self).__name__)
        self.channels = channels
        self.conv1 = ConvModule(channels, channels // ratio, 1, conv_cfg=conv_cfg, act_cfg=first)
        self.conv2 = ConvModule(channels // ratio, 4 * channels, 1, conv_cfg=conv_cfg, act_cfg=second)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        found = self.conv2(self.conv1(x.mean(dim=(2, 3), keepdim=True))) - 0.5
        slope, offset, other_slope, other_offset = found.split(self.channels, dim=1)
        return torch.maximum(x * (2 * slope + 1) + offset, x * (2 * other_slope) + other_offset)


class InvertedResidual(BaseModule):
    """A depthwise convolution between two 1x1 ones (Sandler et al. 2018, "MobileNetV2").

    Args:
        in_channels: of what comes in.
        out_channels: of what goes out.
        mid_channels: of the depthwise convolution.
        kernel_size: of the depthwise convolution.
        stride: 1 or 2.
        se_cfg: keywords of a ``SELayer`` behind the depthwise convolution; None for none.
        with_expand_conv: the first 1x1 convolution; without it ``mid_channels`` is ``in_channels``.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        act_cfg: of the activations.
        drop_path_rate: how often the block is left out of a sample in training.
        with_cp: recompute the block in the backward pass instead of keeping its activations.
        init_cfg: initial weights.

    Raises:
        ConfigError: another stride, an ``se_cfg`` that is no dict, channels that do not go together.
    """

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int, kernel_size: int = 3, stride: int = 1,
                 se_cfg: Cfg | None = None, with_expand_conv: bool = True, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg = _BN, act_cfg: Cfg = _RELU, drop_path_rate: float = 0., with_cp: bool = False,
                 init_cfg: InitCfg = None):
        super().__init__(init_cfg)
        if stride not in (1, 2):
            raise ConfigError(f'InvertedResidual: stride is 1 or 2, not {stride}')
        if se_cfg is not None and not isinstance(se_cfg, Mapping):
            raise ConfigError(f'InvertedResidual: se_cfg is a dict or None, not {se_cfg!r}')
        if not with_expand_conv and mid_channels != in_channels:
            raise ConfigError(f'InvertedResidual: without its first convolution mid_channels is in_channels='
                              f'{in_channels}, not {mid_channels}')
        self.with_res_shortcut = stride == 1 and in_channels == out_channels
        self.with_cp, self.with_se, self.with_expand_conv = with_cp, se_cfg is not None, with_expand_conv
        layers: dict[str, Any] = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        if with_expand_conv:
            self.expand_conv = ConvModule(in_channels, mid_channels, 1, act_cfg=act_cfg, **layers)
        self.depthwise_conv = ConvModule(mid_channels, mid_channels, kernel_size, stride=stride, act_cfg=act_cfg,
                                         padding=kernel_size // 2, groups=mid_channels, **layers)
        if se_cfg is not None:
            self.se = SELayer(**se_cfg)
        self.linear_conv = ConvModule(mid_channels, out_channels, 1, act_cfg=None, **layers)
        self.drop_path = StochasticDepth(drop_path_rate, mode='row')

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h / stride, w / stride)."""
        if self.with_cp and x.requires_grad:
            return torch.utils.checkpoint.checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        out = self.depthwise_conv(self.expand_conv(x) if self.with_expand_conv else x)
        out = self.linear_conv(self.se(out) if self.with_se else out)
        return x + self.drop_path(out) if self.with_res_shortcut else out


class ConvUpsample(BaseModule):
    """3x3 convolutions, each followed by an upsampling to twice the size.

    Args:
        in_channels: of what comes in.
        inner_channels: of the convolutions.
        num_layers: how many convolutions.
        num_upsample: the first so many are followed by it; None for all.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norms.
        init_cfg: initial weights.
        **kwargs: of ``ConvModule``.

    Raises:
        ConfigError: more upsamplings than convolutions.
    """

    def __init__(self, in_channels: int, inner_channels: int, num_layers: int = 1, num_upsample: int | None = None,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None, init_cfg: InitCfg = None, **kwargs: Any):
        super().__init__(init_cfg)
        self.num_layers, self.num_upsample = num_layers, num_layers if num_upsample is None else num_upsample
        if self.num_upsample > num_layers:
            raise ConfigError(f'ConvUpsample: num_upsample={num_upsample} of num_layers={num_layers}')
        channels = [in_channels] + [inner_channels] * num_layers
        self.conv = nn.ModuleList(ConvModule(before, after, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg,
                                             **kwargs) for before, after in zip(channels, channels[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, inner_channels, h', w')."""
        for i, conv in enumerate(self.conv):
            x = conv(x)
            if i < self.num_upsample:
                x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
        return x
