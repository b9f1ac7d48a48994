"""CARAFE and a pyramid that upsamples by it (Wang et al. 2019, "CARAFE: Content-Aware ReAssembly of FEatures").

B images, C channels, F factor of the upsampling, S side of the window that a pixel is assembled from, G groups of
channels that share a window's weights.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.models.initialization import normal_init, xavier_init
from boxdet.models.layers import ConvModule, build_upsample_layer
from boxdet.registry import LAYERS, NECKS, Cfg

_CARAFE = {'type': 'carafe', 'up_kernel': 5, 'up_group': 1, 'encoder_kernel': 3, 'encoder_dilation': 1}


def reassemble(x: Tensor, weights: Tensor, window: int, groups: int, factor: int) -> Tensor:
    """Upsample maps: each pixel is a weighted sum over a window around the pixel that it comes from.

    Outside of the map there is nothing (zeros). The windows are gone through one pixel after the other, so that no more
    than the output is held.

    Args:
        x: (B, C, h, w).
        weights: (B, G * S * S, F * h, F * w), the window of each output pixel row by row.
        window: S.
        groups: G.
        factor: F.

    Returns:
        (B, C, F * h, F * w).
    """
    batch, channels, height, width = x.shape
    padded = F.pad(x, (window // 2,) * 4)
    # Output pixels (y, x) as (h, F, w, F): all F * F of a source pixel read the same window.
    weights = weights.view(batch, groups, 1, window ** 2, height, factor, width, factor)
    out = x.new_zeros(batch, groups, channels // groups, height, factor, width, factor)
    for place in range(window ** 2):
        down, across = divmod(place, window)
        source = padded[:, :, down:down + height, across:across + width]
        source = source.reshape(batch, groups, channels // groups, height, 1, width, 1)
        out = torch.addcmul(out, source, weights[:, :, :, place])
    return out.view(batch, channels, height * factor, width * factor)


@LAYERS.register_module(name='carafe')
class CARAFE(nn.Module):
    """Upsampling whose weights two convolutions predict at each pixel.

    Args:
        channels: C.
        scale_factor: F.
        up_kernel: S.
        up_group: G.
        encoder_kernel: of the convolution that predicts the weights.
        encoder_dilation: of that convolution.
        compressed_channels: before it.

    Raises:
        ConfigError: groups that do not divide the channels, or an even window.
    """

    def __init__(self, channels: int, scale_factor: int, up_kernel: int = 5, up_group: int = 1,
                 encoder_kernel: int = 3, encoder_dilation: int = 1, compressed_channels: int = 64):
        super().__init__()
        if channels % up_group or not up_kernel % 2:
            raise ConfigError(f'carafe: up_group={up_group} divides {channels} channels, and up_kernel={up_kernel} is '
                              'odd')
        self.scale_factor, self.up_kernel, self.up_group = scale_factor, up_kernel, up_group
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels, up_kernel ** 2 * up_group * scale_factor ** 2, encoder_kernel,
            padding=(encoder_kernel - 1) * encoder_dilation // 2, dilation=encoder_dilation)
        self.init_weights()

    def init_weights(self) -> None:
        """Start close to a mean over the window."""
        xavier_init(self.channel_compressor, distribution='uniform')
        normal_init(self.content_encoder, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, F * h, F * w)."""
        weights = F.pixel_shuffle(self.content_encoder(self.channel_compressor(x)), self.scale_factor)
        weights = weights.unflatten(1, (self.up_group, -1)).softmax(dim=2).flatten(1, 2)
        return reassemble(x, weights, self.up_kernel, self.up_group, self.scale_factor)


@LAYERS.register_module(name='pixel_shuffle')
class PixelShufflePack(nn.Module):
    """A convolution to F * F times the channels, which become pixels; key ``upsample_conv``.

    Args:
        in_channels: of the convolution.
        out_channels: C of the output.
        scale_factor: F.
        upsample_kernel: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, scale_factor: int, upsample_kernel: int):
        super().__init__()
        self.scale_factor = scale_factor
        self.upsample_conv = nn.Conv2d(in_channels, out_channels * scale_factor ** 2, upsample_kernel,
                                       padding=(upsample_kernel - 1) // 2)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier's."""
        xavier_init(self.upsample_conv, distribution='uniform')

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, C, F * h, F * w)."""
        return F.pixel_shuffle(self.upsample_conv(x), self.scale_factor)


@NECKS.register_module()
class FPN_CARAFE(nn.Module):
    """FPN that goes top-down through learned upsampling, over all output levels.

    Args:
        in_channels: of each backbone level.
        out_channels: C of every output level.
        num_outs: output levels; those above the backbone's come from convolutions of stride 2.
        start_level: first backbone level used.
        end_level: last one used; -1 the topmost. With another one there are no extra levels.
        norm_cfg: of the norms.
        act_cfg: of the activations.
        order: ('conv', 'norm', 'act') or ('act', 'conv', 'norm').
        upsample_cfg: 'carafe', 'nearest', 'bilinear', 'deconv' or 'pixel_shuffle' (these two with
            ``upsample_kernel``), always by a factor of 2.
        init_cfg: None: the parts start in ways of their own.

    Raises:
        ConfigError: levels that do not add up, or an ``init_cfg``.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, start_level: int = 0,
                 end_level: int = -1, norm_cfg: Cfg | None = None, act_cfg: Cfg | None = None,
                 order: Sequence[str] = ('conv', 'norm', 'act'),
                 upsample_cfg: Mapping = _CARAFE,
                 init_cfg: None = None):
        super().__init__()
        if init_cfg is not None:
            raise ConfigError('FPN_CARAFE takes no init_cfg: its parts start in ways of their own')
        last = len(in_channels) - 1 if end_level == -1 else end_level
        if not 0 <= start_level <= last < len(in_channels):
            raise ConfigError(f'FPN_CARAFE: start_level={start_level}, end_level={end_level} do not name levels of the '
                              f'{len(in_channels)} in in_channels')
        used = list(in_channels[start_level:last + 1])
        if num_outs < len(used) or (last != len(in_channels) - 1 and num_outs != len(used)):
            raise ConfigError(f'FPN_CARAFE: num_outs={num_outs}, but levels {start_level} to {last} make {len(used)}')
        self.in_channels, self.start_level, self.used = list(in_channels), start_level, len(used)
        conv = partial(ConvModule, norm_cfg=norm_cfg, act_cfg=act_cfg, bias=norm_cfg is None, inplace=False,
                       order=tuple(order))
        self.lateral_convs = nn.ModuleList(conv(c, out_channels, 1) for c in used)
        for i in range(len(used), num_outs):
            source = used[-1] if i == len(used) else out_channels
            self.lateral_convs.append(conv(source, out_channels, 3, stride=2, padding=1))
        self.fpn_convs = nn.ModuleList(
            conv(out_channels, out_channels, 3, padding=1) for _ in range(num_outs))
        self.upsample_modules = nn.ModuleList(
            _upsample(upsample_cfg, out_channels) for _ in range(num_outs - 1))

    def init_weights(self) -> None:
        """Xavier's for every convolution; the upsampling starts in its own way."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                xavier_init(module, distribution='uniform')
        for module in self.upsample_modules:
            if isinstance(module, CARAFE):
                module.init_weights()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map L levels (B, in_channels[l], h_l, w_l) to num_outs levels (B, C, h, w), finest first."""
        if len(inputs) != len(self.in_channels):
            raise ConfigError(f'FPN_CARAFE: in_channels has {len(self.in_channels)} levels, the backbone gives '
                              f'{len(inputs)}')
        levels = list(inputs[self.start_level:self.start_level + self.used])
        laterals: list[Tensor] = []
        for i, conv in enumerate(self.lateral_convs):
            source = levels[min(i, self.used - 1)] if i <= self.used else laterals[-1]
            laterals.append(conv(source))
        for i in reversed(range(len(laterals) - 1)):
            height, width = laterals[i].shape[2:]
            laterals[i] = laterals[i] + self.upsample_modules[i](laterals[i + 1])[:, :, :height, :width]
        return tuple(conv(x) for conv, x in zip(self.fpn_convs, laterals))


def _upsample(cfg: Mapping, channels: int) -> nn.Module:
    """The module that doubles a level (B, channels, h, w)."""
    options = dict(cfg)
    kind, kernel = options.get('type'), options.pop('upsample_kernel', None)
    if kind in ('deconv', 'pixel_shuffle') and not kernel:
        raise ConfigError(f"FPN_CARAFE: upsample_cfg of type '{kind}' needs 'upsample_kernel'")
    defaults: dict[str, object] = dict(scale_factor=2)
    if kind == 'carafe':
        defaults.update(channels=channels)
    elif kind == 'pixel_shuffle':
        defaults.update(in_channels=channels, out_channels=channels, upsample_kernel=kernel)
    elif kind == 'deconv':
        half = (kernel - 1) // 2
        defaults = dict(in_channels=channels, out_channels=channels, kernel_size=kernel, stride=2, padding=half,
                        output_padding=half)
    elif kind == 'bilinear':
        defaults.update(align_corners=False)
    elif kind != 'nearest':
        raise ConfigError(f"FPN_CARAFE: there is no upsample_cfg of type '{kind}'")
    return build_upsample_layer(options, **defaults)
