"""Swin Transformer (Liu et al. 2021, "Hierarchical Vision Transformer using Shifted Windows").

B images, C channels, N tokens of an image (h * w, row by row), W windows of an image, T tokens of a window (the square
of its side), A attention heads.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg, initialize, pretrained_or_default
from boxdet.models.layers import build_activation_layer, build_norm_layer
from boxdet.models.patches import PatchEmbed, Size, fill_up, image_size, to_map
from boxdet.registry import BACKBONES, Cfg

_LN, _GELU = {'type': 'LN'}, {'type': 'GELU'}
_APART = -100.0  # added to the attention of two tokens that lie side by side only since the map was rolled
_INIT = [dict(type='TruncNormal', layer='Linear', std=0.02), dict(type='Constant', layer='LayerNorm', val=1)]


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a bias learned for each distance between two of them.

    Args:
        embed_dims: C.
        num_heads: A.
        window_size: side of a window.
        qkv_bias: queries, keys and values have a bias.
        qk_scale: factor of the queries; by default 1 over the root of C / A.
        attn_drop_rate: dropout of the attention.
        drop_rate: dropout of the output.
    """

    def __init__(self, embed_dims: int, num_heads: int, window_size: int, qkv_bias: bool, qk_scale: float | None,
                 attn_drop_rate: float, drop_rate: float):
        super().__init__()
        self.num_heads, self.tokens = num_heads, window_size ** 2
        self.scale = qk_scale or (embed_dims // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        side = torch.arange(window_size)
        place = torch.stack(torch.meshgrid(side, side, indexing='ij'), dim=-1).reshape(-1, 2)          # (T, 2)
        away = place[:, None] - place[None] + window_size - 1                                          # (T, T, 2)
        self.register_buffer('relative_position_index', away[..., 0] * (2 * window_size - 1) + away[..., 1])
        self.qkv = nn.Linear(embed_dims, embed_dims * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """Map windows (B * W, T, C) to the same shape; ``apart`` (W, T, T) is added to the attention."""
        windows, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]               # (T * T, A)
        attention = (q * self.scale) @ k.transpose(-2, -1) + bias.view(tokens, tokens, -1).permute(2, 0, 1)
        if apart is not None:
            attention = attention.view(-1, len(apart), self.num_heads, tokens, tokens) + apart[:, None].to(x.dtype)
            attention = attention.view(windows, self.num_heads, tokens, tokens)
        attention = self.attn_drop(attention.softmax(dim=-1))
        return self.proj_drop(self.proj((attention @ v).transpose(1, 2).reshape(windows, tokens, channels)))


class ShiftedWindowAttention(nn.Module):
    """Attention within the windows of a map, which ``shift`` moves by so many pixels; key ``w_msa``."""

    def __init__(self, window_size: int, shift: int, drop_path_rate: float, **attention: Any):
        super().__init__()
        self.window_size, self.shift = window_size, shift
        self.w_msa = WindowAttention(window_size=window_size, **attention)
        self.drop = StochasticDepth(drop_path_rate, 'row')

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Map tokens (B, N, C) of a map (h, w) to the same shape."""
        side, (height, width) = self.window_size, size
        batch, _, channels = tokens.shape
        x = tokens.view(batch, height, width, channels)
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        apart = self._apart(rows, columns, x.device) if self.shift else None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        x = x.view(batch, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side ** 2, channels)
        x = self.w_msa(x, apart)
        x = x.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        x = x.reshape(batch, rows * side, columns * side, channels)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return self.drop(x[:, :height, :width].reshape(batch, -1, channels))

    def _apart(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """What is added to the attention of two tokens (W, T, T): 0 where they lie in one part of the map."""
        side = self.window_size
        part = [torch.zeros(count * side, dtype=torch.long, device=device) for count in (rows, columns)]
        for along in part:  # before the last window, its front, and what was rolled from the other end
            along[-side:] = 1
            along[-self.shift:] = 2
        parts = part[0][:, None] * 3 + part[1]
        parts = parts.view(rows, side, columns, side).transpose(1, 2).reshape(-1, side ** 2)            # (W, T)
        return (parts[:, None] != parts[:, :, None]) * _APART


class FeedForward(nn.Module):
    """Two linear layers around an activation; keys ``layers.0.0`` and ``layers.1`` as mmcv's FFN."""

    def __init__(self, embed_dims: int, channels: int, drop_rate: float, act_cfg: Cfg):
        super().__init__()
        self.embed_dims, self.feedforward_channels = embed_dims, channels
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(embed_dims, channels), build_activation_layer(act_cfg), nn.Dropout(drop_rate)),
            nn.Linear(channels, embed_dims), nn.Dropout(drop_rate))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, C) to the same shape."""
        return self.layers(tokens)


class SwinBlock(nn.Module):
    """Attention and feed-forward network, each behind a norm and beside a shortcut."""

    def __init__(self, embed_dims: int, channels: int, drop_rate: float, drop_path_rate: float, act_cfg: Cfg,
                 norm_cfg: Cfg, with_cp: bool, **attention: Any):
        super().__init__()
        self.with_cp = with_cp
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = ShiftedWindowAttention(embed_dims=embed_dims, drop_rate=drop_rate, drop_path_rate=drop_path_rate,
                                           **attention)
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = FeedForward(embed_dims, channels, drop_rate, act_cfg)
        self.drop = StochasticDepth(drop_path_rate, 'row')

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Map tokens (B, N, C) of a map (h, w) to the same shape."""
        if self.with_cp and tokens.requires_grad:
            return torch.utils.checkpoint.checkpoint(self._run, tokens, size, use_reentrant=False)
        return self._run(tokens, size)

    def _run(self, tokens: Tensor, size: Size) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), size)
        return tokens + self.drop(self.ffn(self.norm2(tokens)))


class PatchMerging(nn.Module):
    """Windows of 2 x 2 tokens become one of ``out_channels``; keys ``norm`` and ``reduction``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm_cfg: Cfg | None):
        super().__init__()
        self.stride = stride
        self.norm = nn.Identity() if norm_cfg is None else build_norm_layer(norm_cfg, 4 * in_channels)[1]
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, tokens: Tensor, size: Size) -> tuple[Tensor, Size]:
        """Map tokens (B, N, C) of a map (h, w) to tokens (B, N', out_channels) and their (h', w')."""
        x = fill_up(to_map(tokens, size), 2, self.stride)
        height, width = ((side - 2) // self.stride + 1 for side in x.shape[2:])
        tokens = F.unfold(x, 2, stride=self.stride).transpose(1, 2)
        return self.reduction(self.norm(tokens)), (height, width)


class SwinStage(nn.Module):
    """Blocks of one resolution, and what leads to the next."""

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


@BACKBONES.register_module()
class SwinTransformer(nn.Module):
    """Swin-T, S, B or L, the levels of ``out_indices`` at strides 4, 8, 16 and 32.

    Args:
        pretrain_img_size: input size of the pretrained weights, for the absolute position embedding.
        in_channels: of the image.
        embed_dims: channels of the first stage; each stage doubles them.
        patch_size: side of a patch, as the first of ``strides``.
        window_size: side of the windows, in tokens.
        mlp_ratio: channels inside of the feed-forward networks, in those of the stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        strides: of the patches, then of what leads to each further stage.
        out_indices: stages put out, from 0.
        qkv_bias: queries, keys and values have a bias.
        qk_scale: factor of the queries; by default 1 over the root of a head's channels.
        patch_norm: a norm behind the patches and before each reduction.
        drop_rate: dropout of tokens and of the linear layers.
        attn_drop_rate: dropout of the attention.
        drop_path_rate: stochastic depth of the last block; it grows with depth from 0.
        use_abs_pos_embed: add a learned embedding of the place to the patches.
        act_cfg: activation of the feed-forward networks.
        norm_cfg: of all norms.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        pretrained: 2.x's older way to say ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``.
        convert_weights: the pretrained weights have the names of Microsoft's repository.
        frozen_stages: -1 freezes nothing, 0 the patches, i also stages 1 to i.
        init_cfg: initial weights; by default as in the paper's repository.

    Raises:
        ConfigError: values that do not fit one another.
    """

    def __init__(self, pretrain_img_size: int | Sequence[int] = 224, in_channels: int = 3, embed_dims: int = 96,
                 patch_size: int = 4, window_size: int = 7, mlp_ratio: float = 4, depths: Sequence[int] = (2, 2, 6, 2),
                 num_heads: Sequence[int] = (3, 6, 12, 24), strides: Sequence[int] = (4, 2, 2, 2),
                 out_indices: Sequence[int] = (0, 1, 2, 3), qkv_bias: bool = True, qk_scale: float | None = None,
                 patch_norm: bool = True, drop_rate: float = 0.0, attn_drop_rate: float = 0.0,
                 drop_path_rate: float = 0.1, use_abs_pos_embed: bool = False, act_cfg: Cfg = _GELU,
                 norm_cfg: Cfg = _LN, with_cp: bool = False, pretrained: str | None = None,
                 convert_weights: bool = False, frozen_stages: int = -1, init_cfg: InitCfg = None):
        super().__init__()
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages
        self.convert_weights = convert_weights
        self._check(depths, num_heads, strides, patch_size, embed_dims)
        pretrain_size = image_size(pretrain_img_size)
        self.init_cfg = pretrained_or_default(init_cfg, pretrained, _INIT)
        between = norm_cfg if patch_norm else None
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, strides[0], norm_cfg=between)
        self.absolute_pos_embed = None
        if use_abs_pos_embed:
            side = [pixels // patch_size for pixels in pretrain_size]
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dims, *side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.drop_after_pos = nn.Dropout(drop_rate)
        rates = _growing(drop_path_rate, sum(depths))
        self.stages = nn.ModuleList()
        self.num_features = [embed_dims * 2 ** i for i in range(len(depths))]
        for i, (depth, channels) in enumerate(zip(depths, self.num_features)):
            blocks = [SwinBlock(
                channels, int(mlp_ratio * channels), drop_rate, next(rates), act_cfg, norm_cfg, with_cp,
                num_heads=num_heads[i], window_size=window_size, shift=window_size // 2 if j % 2 else 0,
                qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop_rate=attn_drop_rate) for j in range(depth)]
            last = i == len(depths) - 1
            self.stages.append(SwinStage(blocks, None if last else PatchMerging(
                channels, 2 * channels, strides[i + 1], between)))
        for i in self.out_indices:
            self.add_module(f'norm{i}', build_norm_layer(norm_cfg, self.num_features[i])[1])
        self._freeze()

    def _check(self, depths: Sequence[int], num_heads: Sequence[int], strides: Sequence[int], patch_size: int,
               embed_dims: int) -> None:
        stages = len(depths)
        if not len(num_heads) == len(strides) == stages:
            raise ConfigError(f'SwinTransformer: depths has {stages} stages, num_heads {len(num_heads)} and strides '
                              f'{len(strides)}')
        if strides[0] != patch_size:
            raise ConfigError(f'SwinTransformer: patch_size={patch_size} and strides[0]={strides[0]} are one number')
        if not self.out_indices or not all(0 <= i < stages for i in self.out_indices):
            raise ConfigError(f'SwinTransformer: out_indices={self.out_indices} do not name stages 0 to {stages - 1}')
        if not -1 <= self.frozen_stages <= stages:
            raise ConfigError(f'SwinTransformer: frozen_stages={self.frozen_stages}; it is -1 to {stages}')
        for i, heads in enumerate(num_heads):
            if embed_dims * 2 ** i % heads:
                raise ConfigError(f'SwinTransformer: num_heads[{i}]={heads} does not divide {embed_dims * 2 ** i} '
                                  'channels')

    def init_weights(self) -> None:
        """Start from ``init_cfg``: pretrained weights, or random ones."""
        initialize(self)

    def adapt_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring pretrained weights to this model's names and sizes, as ``initialization`` asks.

        With ``convert_weights`` names and orders are those of Microsoft's repository. Biases of other window sizes are
        interpolated.
        """
        state = {name.removeprefix('backbone.'): value for name, value in state.items()}
        if self.convert_weights:
            state = convert_official(state)
        own = self.state_dict()
        for name, value in state.items():
            if name not in own or value.shape == own[name].shape:
                continue
            if name.endswith('relative_position_bias_table') and value.shape[1] == own[name].shape[1]:
                state[name] = _resized(value, own[name].shape[0])
            elif name == 'absolute_pos_embed' and value.dim() == 3 and value.numel() == own[name].numel():
                state[name] = value.transpose(1, 2).reshape(own[name].shape)
        # The index follows from the window's size: that of another one would undo the interpolation.
        return {name: value for name, value in state.items() if not name.endswith('relative_position_index')
                or value.shape == own.get(name, value).shape}

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, self.drop_after_pos, *self.stages[:self.frozen_stages]]
        frozen += [getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages]
        for module in frozen:
            module.eval().requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> SwinTransformer:
        """As usual, but frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to the levels of ``out_indices``: (B, C_i, h_i, w_i)."""
        x, size = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            place: Tensor = self.absolute_pos_embed
            if tuple(place.shape[2:]) != size:
                place = F.interpolate(place, size=size, mode='bicubic', align_corners=False)
            x = x + place.flatten(2).transpose(1, 2)
        x = self.drop_after_pos(x)
        outs = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = block(x, size)
            if i in self.out_indices:
                outs.append(to_map(getattr(self, f'norm{i}')(x), size).contiguous())
            if stage.downsample is not None:
                x, size = stage.downsample(x, size)
        return tuple(outs)


def convert_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Microsoft's repository under 2.x's names.

    What joins four tokens there lists them column by column, and here channel by channel and row by row.
    """
    names = ((r'^layers\.', 'stages.'), (r'\.attn\.', '.attn.w_msa.'), (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
             (r'\.mlp\.fc2\.', '.ffn.layers.1.'), (r'^patch_embed\.proj\.', 'patch_embed.projection.'))
    converted = {}
    for name, value in state.items():
        if name.startswith(('head.', 'norm.')) or name.endswith('attn_mask'):  # of the classifier, or computed here
            continue
        if '.downsample.' in name:
            rows = value.view(*value.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
            value = rows.transpose(-1, -2).reshape(value.shape)
        for pattern, new in names:
            name = re.sub(pattern, new, name)
        converted[name] = value
    return converted


def _resized(table: Tensor, length: int) -> Tensor:
    """A table of biases (L, A) for windows of another size: (length, A)."""
    old, new = round(len(table) ** 0.5), round(length ** 0.5)
    grid = F.interpolate(table.T.reshape(1, -1, old, old), size=(new, new), mode='bicubic', align_corners=False)
    return grid.reshape(-1, length).T.contiguous()


def _growing(highest: float, count: int) -> Iterator[float]:
    """``count`` rates from 0 to ``highest``, in equal steps."""
    return iter(torch.linspace(0, highest, count, device='cpu').tolist())
