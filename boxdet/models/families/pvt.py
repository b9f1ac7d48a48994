"""Pyramid vision transformers (Wang et al. 2021, "Pyramid Vision Transformer", and 2022, "PVT v2").

B images, C channels, N tokens of an image (h * w, row by row).
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg, initialize, pretrained_or_default
from boxdet.models.layers import build_activation_layer, build_norm_layer
from boxdet.models.patches import PatchEmbed, Size, image_size, to_map, to_tokens
from boxdet.registry import BACKBONES, Cfg

_LN, _GELU = {'type': 'LN', 'eps': 1e-6}, {'type': 'GELU'}


class SpatialReductionAttention(nn.Module):
    """Attention whose keys and values come from a map that is ``sr_ratio`` times smaller; key ``attn`` is torch's.

    Args:
        embed_dims: C.
        num_heads: attention heads.
        sr_ratio: side of what becomes one key and value.
        qkv_bias: projections have a bias.
        attn_drop_rate: dropout of the attention.
        drop_rate: dropout of the output.
        norm_cfg: of the smaller map.
    """

    def __init__(self, embed_dims: int, num_heads: int, sr_ratio: int, qkv_bias: bool, attn_drop_rate: float,
                 drop_rate: float, norm_cfg: Cfg):
        super().__init__()
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, attn_drop_rate, bias=qkv_bias, batch_first=True)
        self.proj_drop = nn.Dropout(drop_rate)
        self.sr = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, stride=sr_ratio)
            self.norm = build_norm_layer(norm_cfg, embed_dims)[1]

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Map tokens (B, N, C) of a map (h, w) to the same shape."""
        few = tokens if self.sr is None else self.norm(to_tokens(self.sr(to_map(tokens, size))))
        return self.proj_drop(self.attn(tokens, few, few, need_weights=False)[0])


class MixFeedForward(nn.Module):
    """Two 1x1 convolutions around an activation; with ``use_conv`` a 3x3 depthwise one before that."""

    def __init__(self, embed_dims: int, channels: int, act_cfg: Cfg, drop_rate: float, use_conv: bool):
        super().__init__()
        self.embed_dims, self.feedforward_channels = embed_dims, channels
        depthwise = [nn.Conv2d(channels, channels, 3, padding=1, groups=channels)] if use_conv else []
        drop = nn.Dropout(drop_rate)
        self.layers = nn.Sequential(nn.Conv2d(embed_dims, channels, 1), *depthwise, build_activation_layer(act_cfg),
                                    drop, nn.Conv2d(channels, embed_dims, 1), drop)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Map tokens (B, N, C) of a map (h, w) to the same shape."""
        return to_tokens(self.layers(to_map(tokens, size)))


class PVTBlock(nn.Module):
    """Attention and feed-forward network, each behind a norm and beside a shortcut."""

    def __init__(self, embed_dims: int, num_heads: int, channels: int, drop_rate: float, attn_drop_rate: float,
                 drop_path_rate: float, qkv_bias: bool, act_cfg: Cfg, norm_cfg: Cfg, sr_ratio: int,
                 use_conv_ffn: bool):
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = SpatialReductionAttention(embed_dims, num_heads, sr_ratio, qkv_bias, attn_drop_rate, drop_rate,
                                              norm_cfg)
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = MixFeedForward(embed_dims, channels, act_cfg, drop_rate, use_conv_ffn)
        self.drop = StochasticDepth(drop_path_rate, 'row')

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Map tokens (B, N, C) of a map (h, w) to the same shape."""
        tokens = tokens + self.drop(self.attn(self.norm1(tokens), size))
        return tokens + self.drop(self.ffn(self.norm2(tokens), size))


class PositionEmbedding(nn.Module):
    """A learned embedding of each place of a map of ``side``, resized to the map at hand."""

    def __init__(self, side: Size, embed_dims: int, drop_rate: float):
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(torch.zeros(1, side[0] * side[1], embed_dims))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Map tokens (B, N, C) of a map (h, w) to the same shape."""
        place = to_map(self.pos_embed, self.side)
        return self.drop(tokens + to_tokens(F.interpolate(place, size=size, mode='bilinear', align_corners=False)))


@BACKBONES.register_module()
class PyramidVisionTransformer(nn.Module):
    """PVT, the levels of ``out_indices`` at strides 4, 8, 16 and 32.

    Args:
        pretrain_img_size: input size of the pretrained weights, for the position embeddings.
        in_channels: of the image.
        embed_dims: channels of an attention head.
        num_stages: as long as all lists.
        num_layers: blocks of each stage.
        num_heads: attention heads of each stage.
        patch_sizes: side of each stage's patches.
        strides: of each stage's patches.
        paddings: of each stage's patches.
        sr_ratios: by which each stage's keys and values are fewer, a side.
        out_indices: stages put out, from 0.
        mlp_ratios: channels inside of the feed-forward networks, in those of the stage.
        qkv_bias: projections have a bias.
        drop_rate: dropout of embeddings and of the layers' outputs.
        attn_drop_rate: dropout of the attention.
        drop_path_rate: stochastic depth of the last block; it grows with depth from 0.
        use_abs_pos_embed: each stage adds a learned embedding of the place.
        norm_after_stage: a norm behind each stage.
        use_conv_ffn: feed-forward networks hold a depthwise convolution.
        act_cfg: activation of the feed-forward networks.
        norm_cfg: of all norms.
        pretrained: 2.x's older way to say ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``.
        convert_weights: the pretrained weights have the names of the authors' repository.
        init_cfg: initial weights; by default as in the paper's repository.

    Raises:
        ConfigError: lists of different lengths, or levels that there are not.
    """

    def __init__(self, pretrain_img_size: int | Sequence[int] = 224, in_channels: int = 3, embed_dims: int = 64,
                 num_stages: int = 4, num_layers: Sequence[int] = (3, 4, 6, 3),
                 num_heads: Sequence[int] = (1, 2, 5, 8), patch_sizes: Sequence[int] = (4, 2, 2, 2),
                 strides: Sequence[int] = (4, 2, 2, 2), paddings: Sequence[int] = (0, 0, 0, 0),
                 sr_ratios: Sequence[int] = (8, 4, 2, 1), out_indices: Sequence[int] = (0, 1, 2, 3),
                 mlp_ratios: Sequence[int] = (8, 8, 4, 4), qkv_bias: bool = True, drop_rate: float = 0.0,
                 attn_drop_rate: float = 0.0, drop_path_rate: float = 0.1, use_abs_pos_embed: bool = True,
                 norm_after_stage: bool = False, use_conv_ffn: bool = False, act_cfg: Cfg = _GELU,
                 norm_cfg: Cfg = _LN, pretrained: str | None = None, convert_weights: bool = True,
                 init_cfg: InitCfg = None):
        super().__init__()
        lists = dict(num_layers=num_layers, num_heads=num_heads, patch_sizes=patch_sizes, strides=strides,
                     paddings=paddings, sr_ratios=sr_ratios, mlp_ratios=mlp_ratios)
        for key, values in lists.items():
            if len(values) != num_stages:
                raise ConfigError(f'{type(self).__name__}: {key}={tuple(values)} needs one number a stage '
                                  f'({num_stages})')
        self.out_indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        if not self.out_indices or not all(0 <= i < num_stages for i in self.out_indices):
            raise ConfigError(f'{type(self).__name__}: out_indices={out_indices} do not name stages 0 to '
                              f'{num_stages - 1}')
        self.convert_weights = convert_weights
        self.init_cfg = pretrained_or_default(init_cfg, pretrained, None)
        rates = iter(torch.linspace(0, drop_path_rate, sum(num_layers), device='cpu').tolist())
        self.layers = nn.ModuleList()
        side = image_size(pretrain_img_size)
        for i in range(num_stages):
            channels = embed_dims * num_heads[i]
            side = side[0] // patch_sizes[i], side[1] // patch_sizes[i]
            place = [PositionEmbedding(side, channels, drop_rate)] if use_abs_pos_embed else []
            blocks = [PVTBlock(channels, num_heads[i], mlp_ratios[i] * channels, drop_rate, attn_drop_rate,
                               next(rates), qkv_bias, act_cfg, norm_cfg, sr_ratios[i], use_conv_ffn)
                      for _ in range(num_layers[i])]
            norm = build_norm_layer(norm_cfg, channels)[1] if norm_after_stage else nn.Identity()
            patches = PatchEmbed(in_channels, channels, patch_sizes[i], strides[i], paddings[i], norm_cfg)
            self.layers.append(nn.ModuleList([patches, nn.ModuleList([*place, *blocks]), norm]))
            in_channels = channels

    def init_weights(self) -> None:
        """Start from ``init_cfg``: pretrained weights; by default random ones."""
        if self.init_cfg is not None:
            initialize(self)
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def adapt_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With ``convert_weights``: the weights of the authors' repository under 2.x's names."""
        return convert_official(state) if self.convert_weights else dict(state)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to the levels of ``out_indices``: (B, C_i, h_i, w_i)."""
        outs = []
        for i, layer in enumerate(self.layers):
            patches, blocks, norm = layer.children()
            x, size = patches(x)
            for block in blocks.children():
                x = block(x, size)
            x = to_map(norm(x), size).contiguous()
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


@BACKBONES.register_module()
class PyramidVisionTransformerV2(PyramidVisionTransformer):
    """PVT v2: overlapping patches, convolutions in the feed-forward networks, and no position embeddings."""

    def __init__(self, **kwargs: Any):
        super().__init__(patch_sizes=(7, 3, 3, 3), paddings=(3, 1, 1, 1), use_abs_pos_embed=False,
                         norm_after_stage=True, use_conv_ffn=True, **kwargs)


def convert_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the authors' repository under 2.x's names; queries come before keys and values in one matrix."""
    placed = any(name.startswith('pos_embed') for name in state)
    last = 4 if any('dwconv' in name for name in state) else 3  # place of the second layer
    converted = {}
    for name, value in state.items():
        found = re.match(r'(pos_embed|patch_embed|block|norm)(\d)\.?(.*)', name)
        if found is None:
            if not name.startswith(('head', 'norm', 'cls_token')):  # of the classifier
                converted[name] = value
            continue
        kind, stage, rest = found[1], int(found[2]) - 1, found[3]
        if kind == 'pos_embed':
            side = math.isqrt(value.shape[1])
            converted[f'layers.{stage}.1.0.pos_embed'] = value[:, value.shape[1] - side ** 2:]  # no class token
        elif kind == 'patch_embed':
            converted[f"layers.{stage}.0.{rest.replace('proj.', 'projection.')}"] = value
        elif kind == 'norm':
            converted[f'layers.{stage}.2.{rest}'] = value
        else:
            number, _, rest = rest.partition('.')
            prefix = f'layers.{stage}.1.{int(number) + placed}.'
            if rest.startswith('attn.kv.'):
                continue
            if rest.startswith('attn.q.'):
                pair = state[name.replace('.q.', '.kv.')]
                rest, value = rest.replace('q.', 'in_proj_'), torch.cat([value, pair])
            elif rest in ('mlp.fc1.weight', 'mlp.fc2.weight'):
                value = value[:, :, None, None]
            for old, new in (('attn.proj.', 'attn.attn.out_proj.'), ('attn.in_proj_', 'attn.attn.in_proj_'),
                             ('mlp.fc1.', 'ffn.layers.0.'), ('mlp.dwconv.dwconv.', 'ffn.layers.1.'),
                             ('mlp.fc2.', f'ffn.layers.{last}.')):
                rest = rest.replace(old, new)
            converted[prefix + rest] = value
    return converted
