"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s"), under the names that mmcls' weights have.

B images, C channels.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from boxdet.errors import ConfigError, nearest
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import build_activation_layer, build_norm_layer
from boxdet.registry import BACKBONES, LAYERS, Cfg

_LN2D, _GELU = {'type': 'LN2d', 'eps': 1e-6}, {'type': 'GELU'}
_INIT = [dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02)]
# name -> blocks and channels of each stage
ARCHITECTURES = {
    'tiny': ((3, 3, 9, 3), (96, 192, 384, 768)), 'small': ((3, 3, 27, 3), (96, 192, 384, 768)),
    'base': ((3, 3, 27, 3), (128, 256, 512, 1024)), 'large': ((3, 3, 27, 3), (192, 384, 768, 1536)),
    'xlarge': ((3, 3, 27, 3), (256, 512, 1024, 2048))}


@LAYERS.register_module(name='LN2d')
class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """A 7x7 depthwise convolution, a norm, and two pointwise layers with four times the channels between them.

    Args:
        channels: C.
        norm_cfg: of the norm.
        act_cfg: of the activation between the pointwise layers.
        linear_pw_conv: those are linear layers, else 1x1 convolutions.
        drop_path_rate: stochastic depth.
        layer_scale_init_value: where the factor of each channel starts; 0 for no factors.
        with_cp: recompute the block in the backward pass instead of keeping its activations.
    """

    def __init__(self, channels: int, norm_cfg: Cfg, act_cfg: Cfg, linear_pw_conv: bool, drop_path_rate: float,
                 layer_scale_init_value: float, with_cp: bool):
        super().__init__()
        self.with_cp, self.linear = with_cp, linear_pw_conv
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        wide = 4 * channels
        pointwise: Callable[[int, int], nn.Module] = nn.Linear if linear_pw_conv else partial(nn.Conv2d, kernel_size=1)
        self.pointwise_conv1, self.pointwise_conv2 = pointwise(channels, wide), pointwise(wide, channels)
        self.act = build_activation_layer(act_cfg)
        scaled = layer_scale_init_value > 0
        self.gamma = nn.Parameter(layer_scale_init_value * torch.ones(channels)) if scaled else None
        self.drop_path = StochasticDepth(drop_path_rate, 'row')

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        if self.with_cp and x.requires_grad:
            return torch.utils.checkpoint.checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise_conv(x))
        out = out.permute(0, 2, 3, 1) if self.linear else out
        out = self.pointwise_conv2(self.act(self.pointwise_conv1(out)))
        out = out.permute(0, 3, 1, 2) if self.linear else out
        if self.gamma is not None:
            out = out * self.gamma[:, None, None]
        return x + self.drop_path(out)


@BACKBONES.register_module()
class ConvNeXt(nn.Module):
    """ConvNeXt, the levels of ``out_indices`` at strides 4, 8, 16 and 32; ``mmcls.ConvNeXt`` in mmdetection's configs.

    Args:
        arch: 'tiny', 'small', 'base', 'large' or 'xlarge'; or a dict with ``depths`` and ``channels``.
        in_channels: of the image.
        stem_patch_size: side and stride of the first convolution.
        norm_cfg: of all norms.
        act_cfg: of the activations.
        linear_pw_conv: pointwise layers are linear ones, else 1x1 convolutions.
        drop_path_rate: stochastic depth of the last block; it grows with depth from 0.
        layer_scale_init_value: where the factor of each channel starts; 0 for no factors.
        out_indices: stages put out, from 0; negative ones count from the end.
        frozen_stages: this many stages, and what leads to them, are not trained.
        gap_before_final_norm: must be False: a classifier averages each level to one pixel, a detector cannot.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        init_cfg: initial weights; by default as in the paper's repository.

    Raises:
        ConfigError: an unknown ``arch``, or values that do not fit one another.
    """

    def __init__(self, arch: str | Mapping = 'tiny', in_channels: int = 3, stem_patch_size: int = 4,
                 norm_cfg: Cfg = _LN2D, act_cfg: Cfg = _GELU, linear_pw_conv: bool = True,
                 drop_path_rate: float = 0.0, layer_scale_init_value: float = 1e-6,
                 out_indices: int | Sequence[int] = -1, frozen_stages: int = 0, gap_before_final_norm: bool = True,
                 with_cp: bool = False, init_cfg: InitCfg = None):
        super().__init__()
        depths, channels = _architecture(arch)
        out_indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        self.out_indices = tuple(i + len(depths) if i < 0 else i for i in out_indices)
        self.frozen_stages = frozen_stages
        if gap_before_final_norm:
            raise ConfigError('ConvNeXt: gap_before_final_norm=False is needed: a detector reads maps, and this '
                              'averages them to one pixel')
        if not self.out_indices or not all(0 <= i < len(depths) for i in self.out_indices):
            raise ConfigError(f'ConvNeXt: out_indices={out_indices} do not name stages 0 to {len(depths) - 1}')
        if not 0 <= frozen_stages <= len(depths):
            raise ConfigError(f'ConvNeXt: frozen_stages={frozen_stages}; it is 0 to {len(depths)}')
        self.init_cfg = init_cfg or _INIT
        stem = nn.Conv2d(in_channels, channels[0], stem_patch_size, stride=stem_patch_size)
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, build_norm_layer(norm_cfg, channels[0])[1])])
        for fine, coarse in zip(channels, channels[1:]):
            self.downsample_layers.append(
                nn.Sequential(build_norm_layer(norm_cfg, fine)[1], nn.Conv2d(fine, coarse, 2, stride=2)))
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.stages = nn.ModuleList(nn.Sequential(*(
            ConvNeXtBlock(width, norm_cfg, act_cfg, linear_pw_conv, next(rates), layer_scale_init_value, with_cp)
            for _ in range(depth))) for depth, width in zip(depths, channels))
        for i in self.out_indices:
            self.add_module(f'norm{i}', build_norm_layer(norm_cfg, channels[i])[1])
        self._freeze()

    def init_weights(self) -> None:
        """Start from ``init_cfg``: pretrained weights, or random ones."""
        initialize(self)

    def _freeze(self) -> None:
        for i in range(self.frozen_stages):
            for module in (self.downsample_layers[i], self.stages[i]):
                module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ConvNeXt:
        """As usual, but frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to the levels of ``out_indices``: (B, C_i, h_i, w_i)."""
        outs = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(downsample(x))
            if i in self.out_indices:
                outs.append(getattr(self, f'norm{i}')(x).contiguous())
        return tuple(outs)


def _architecture(arch: str | Mapping) -> tuple[Sequence[int], Sequence[int]]:
    """Blocks and channels of each stage."""
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ConfigError(f"ConvNeXt: there is no arch '{arch}'{nearest(arch, ARCHITECTURES)}")
        return ARCHITECTURES[arch]
    if set(arch) != {'depths', 'channels'} or len(arch['depths']) != len(arch['channels']):
        raise ConfigError(f"ConvNeXt: arch is a name, or a dict with as many 'depths' as 'channels', not {dict(arch)}")
    return arch['depths'], arch['channels']
