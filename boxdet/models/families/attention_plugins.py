"""Layers that let each pixel read from all others, for ``plugins`` of ResNet.

B images, C channels, N pixels of a map, A attention heads, D channels of a head.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.models.initialization import constant_init, kaiming_init, normal_init
from boxdet.models.layers import ConvModule
from boxdet.registry import LAYERS, Cfg

_FUSIONS = ('channel_add', 'channel_mul')
_MODES = ('embedded_gaussian', 'dot_product', 'gaussian', 'concatenation')


@LAYERS.register_module()
class ContextBlock(nn.Module):
    """Every pixel gets the same context of the whole map (Cao et al. 2019, "GCNet").

    Args:
        in_channels: C.
        ratio: channels inside of the transform, in C.
        pooling_type: 'att', pixels are weighed by a learned attention; or 'avg', all alike.
        fusion_types: 'channel_add', 'channel_mul' or both.

    Raises:
        ConfigError: another pooling or fusion.
    """

    def __init__(self, in_channels: int, ratio: float, pooling_type: str = 'att',
                 fusion_types: Sequence[str] = ('channel_add',)):
        super().__init__()
        self.in_channels = in_channels
        if pooling_type not in ('att', 'avg'):
            raise ConfigError(f"ContextBlock: pooling_type is 'att' or 'avg', not '{pooling_type}'")
        if isinstance(fusion_types, str) or not fusion_types or not set(fusion_types) <= set(_FUSIONS):
            raise ConfigError(f'ContextBlock: fusion_types are of {_FUSIONS}, not {fusion_types!r}')
        inner = int(in_channels * ratio)
        self.conv_mask = nn.Conv2d(in_channels, 1, 1) if pooling_type == 'att' else None
        self.channel_add_conv, self.channel_mul_conv = (nn.Sequential(
            nn.Conv2d(in_channels, inner, 1), nn.LayerNorm([inner, 1, 1]), nn.ReLU(inplace=True),
            nn.Conv2d(inner, in_channels, 1)) if kind in fusion_types else None for kind in _FUSIONS)
        self.init_weights()

    def init_weights(self) -> None:
        """Start without any effect: whatever was done to every Conv2d before."""
        if self.conv_mask is not None:
            kaiming_init(self.conv_mask, mode='fan_in')
        for transform in (self.channel_add_conv, self.channel_mul_conv):
            if transform is not None:
                constant_init(transform[-1], 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        if self.conv_mask is None:
            context = x.mean(dim=(2, 3), keepdim=True)
        else:
            weights = self.conv_mask(x).flatten(2).softmax(dim=2)                          # (B, 1, N)
            context = (x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)               # (B, C, 1, 1)
        out = x
        if self.channel_mul_conv is not None:
            out = out * self.channel_mul_conv(context).sigmoid()
        if self.channel_add_conv is not None:
            out = out + self.channel_add_conv(context)
        return out


@LAYERS.register_module()
class NonLocal2d(nn.Module):
    """Each pixel gets a weighted mean of all others (Wang et al. 2018, "Non-local Neural Networks").

    Args:
        in_channels: C.
        reduction: by which channels are fewer inside.
        use_scale: divide similarities by the root of the inner channels, in the mode 'embedded_gaussian'.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of the norm behind the last one.
        mode: how similarity is measured: 'embedded_gaussian', 'dot_product', 'gaussian' or 'concatenation'.
        sub_sample: the other pixels are pooled, four to one.
        std: of the initial weights.
        zeros_init: the block starts without any effect.

    Raises:
        ConfigError: another mode.
    """

    _abbr_ = 'nonlocal_block'

    def __init__(self, in_channels: int, reduction: int = 2, use_scale: bool = True, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg | None = None, mode: str = 'embedded_gaussian', sub_sample: bool = False,
                 std: float = 0.01, zeros_init: bool = True):
        super().__init__()
        self.in_channels = in_channels
        if mode not in _MODES:
            raise ConfigError(f"NonLocal2d: mode is one of {_MODES}, not '{mode}'")
        self.mode, self.std, self.zeros_init, self.sub_sample = mode, std, zeros_init, sub_sample
        inner = max(in_channels // reduction, 1)
        self.scale = inner ** -0.5 if use_scale and mode == 'embedded_gaussian' else 1.0

        def conv(source: int, target: int, norm: Cfg | None = None) -> ConvModule:
            return ConvModule(source, target, 1, conv_cfg=conv_cfg, norm_cfg=norm, act_cfg=None)

        pool = [nn.MaxPool2d(2)] if sub_sample else []  # as the keys of 2.x: 'g.0.conv' where there is pooling
        self.g = nn.Sequential(conv(in_channels, inner), *pool) if sub_sample else conv(in_channels, inner)
        self.conv_out = conv(inner, in_channels, norm_cfg)
        if mode == 'gaussian':
            self.phi: nn.Module | None = pool[0] if sub_sample else None
        else:
            self.theta = conv(in_channels, inner)
            self.phi = nn.Sequential(conv(in_channels, inner), *pool) if sub_sample else conv(in_channels, inner)
        if mode == 'concatenation':
            self.concat_project = ConvModule(inner * 2, 1, 1, bias=False, act_cfg=dict(type='ReLU'))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw ``g``, ``theta`` and ``phi``; the last layer starts at 0 with ``zeros_init``."""
        for name, part in self.named_modules():
            if name.partition('.')[0] in ('g', 'theta', 'phi') and isinstance(part, ConvModule):
                normal_init(part.conv, std=self.std)
        last = self.conv_out.conv if self.conv_out.norm is None else self.conv_out.norm
        if self.zeros_init:
            constant_init(last, 0)
        else:
            normal_init(last, std=self.std)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        values = self.g(x).flatten(2).transpose(1, 2)                                     # (B, N, c)
        theta = (x if self.mode == 'gaussian' else self.theta(x)).flatten(2)              # (B, c, N)
        phi = (x if self.phi is None else self.phi(x)).flatten(2)
        if self.mode == 'concatenation':
            pairs = torch.cat([theta[..., None].expand(-1, -1, -1, phi.shape[2]),
                               phi[:, :, None].expand(-1, -1, theta.shape[2], -1)], dim=1)
            weights = self.concat_project(pairs).squeeze(1) / phi.shape[2]                # (B, N, N)
        else:
            weights = theta.transpose(1, 2) @ phi * self.scale
            weights = weights / phi.shape[2] if self.mode == 'dot_product' else weights.softmax(dim=-1)
        out = (weights @ values).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        return x + self.conv_out(out)


@LAYERS.register_module()
class GeneralizedAttention(nn.Module):
    """Attention by four kinds of evidence (Zhu et al. 2019, "An Empirical Study of Spatial Attention Mechanisms").

    Args:
        in_channels: C.
        spatial_range: pixels further away than this are not read; -1 for no limit.
        num_heads: A.
        position_embedding_dim: channels of the embedding of distances; C by default.
        position_magnitude: factor of the distances.
        kv_stride: every so many pixels are read, a side.
        q_stride: every so many pixels read, a side; the output is interpolated.
        attention_type: four digits 0 or 1: query and key content, query content and distance, key content alone,
            distance alone.

    Raises:
        ConfigError: an ``attention_type`` that is not that, or a ``spatial_range`` on maps of other than 256 or 512
            channels, for which 2.x has no size.
    """

    _abbr_ = 'gen_attention_block'

    def __init__(self, in_channels: int, spatial_range: int = -1, num_heads: int = 9,
                 position_embedding_dim: int = -1, position_magnitude: int = 1, kv_stride: int = 2,
                 q_stride: int = 1, attention_type: str = '1111'):
        super().__init__()
        self.in_channels = in_channels
        if len(attention_type) != 4 or not set(attention_type) <= {'0', '1'} or '1' not in attention_type:
            raise ConfigError(f"GeneralizedAttention: attention_type is four digits 0 or 1 with a 1, not "
                              f"'{attention_type}'")
        self.num_heads, self.spatial_range = num_heads, spatial_range
        self.position_magnitude, self.q_stride, self.kv_stride = position_magnitude, q_stride, kv_stride
        self.content, self.distance, self.key_alone, self.distance_alone = (c == '1' for c in attention_type)
        self.embedding_dim = position_embedding_dim if position_embedding_dim > 0 else in_channels
        width = in_channels // num_heads * num_heads
        bound = 1 / math.sqrt(width // num_heads * 2)
        if self.content or self.distance:
            self.query_conv = nn.Conv2d(in_channels, width, 1, bias=False)
        if self.content or self.key_alone:
            self.key_conv = nn.Conv2d(in_channels, width, 1, bias=False)
        self.value_conv = nn.Conv2d(in_channels, width, 1, bias=False)
        if self.distance or self.distance_alone:
            self.appr_geom_fc_x = nn.Linear(self.embedding_dim // 2, width, bias=False)
            self.appr_geom_fc_y = nn.Linear(self.embedding_dim // 2, width, bias=False)
        if self.key_alone:
            self.appr_bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        if self.distance_alone:
            self.geom_bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        self.proj_conv = nn.Conv2d(width, in_channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        if spatial_range >= 0:
            self.local_constraint_map = nn.Parameter(self._out_of_range(in_channels), requires_grad=False)
        self.init_weights()

    def _out_of_range(self, in_channels: int) -> Tensor:
        """2.x's parameter: which (y, x) does not read which (y, x) of the keys, uint8."""
        side = {256: 84, 512: 42}.get(in_channels)
        if side is None:
            raise ConfigError(f'GeneralizedAttention: spatial_range={self.spatial_range} is for maps of 256 or 512 '
                              f'channels, not {in_channels}; -1 has no limit')
        keys = int((side - 1) / self.kv_stride + 1)
        place, key = torch.arange(side)[:, None], torch.arange(keys)
        first = ((place - self.spatial_range) // self.kv_stride).clamp(min=0)
        end = ((place + self.spatial_range + 1) // self.kv_stride + 1).clamp(max=side)
        near = (key >= first) & (key < end)                                               # (side, keys)
        return (~(near[:, None, :, None] & near[None, :, None, :])).byte()

    def init_weights(self) -> None:
        """Caffe2's initialisation; ``gamma`` starts at 0, so that the layer has no effect at first."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                kaiming_init(module, a=1, mode='fan_in', nonlinearity='leaky_relu', distribution='uniform')

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        queries = F.avg_pool2d(x, 1, stride=self.q_stride) if self.q_stride > 1 else x
        keys = F.avg_pool2d(x, 1, stride=self.kv_stride) if self.kv_stride > 1 else x
        attention = self._energy(queries, keys).softmax(dim=-1)                           # (B, A, N or 1, N')
        values = self.value_conv(keys).unflatten(1, (self.num_heads, -1)).flatten(3)      # (B, A, D, N')
        out = (values @ attention.transpose(-2, -1)).flatten(1, 2)                        # (B, A * D, N or 1)
        size = (1, 1) if out.shape[-1] == 1 else tuple(queries.shape[2:])
        out = self.proj_conv(out.unflatten(2, size))
        if self.q_stride > 1:
            out = F.interpolate(out, size=x.shape[2:], mode='bilinear', align_corners=False)
        return self.gamma * out + x

    def _energy(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention before its softmax (B, A, N, N'); (B, A, 1, N') where all queries have the same."""
        batch, size, key_size = len(queries), queries.shape[2:], keys.shape[2:]
        heads = (self.num_heads, -1)
        terms: list[Tensor] = []
        query = None
        if self.content or self.distance:
            query = self.query_conv(queries).unflatten(1, heads).flatten(3).transpose(-2, -1)    # (B, A, N, D)
        if self.content or self.key_alone:
            key = self.key_conv(keys).unflatten(1, heads).flatten(3)                              # (B, A, D, N')
            asks = self._asks(query if self.content else None, self.appr_bias if self.key_alone else None, batch, 1)
            terms.append(asks @ key)
        if self.distance or self.distance_alone:
            asks = self._asks(query if self.distance else None, self.geom_bias if self.distance_alone else None,
                              batch, math.prod(size))
            asks = asks.unflatten(2, tuple(size))                                                 # (B, A, h, w, D)
            across = self._distances(size[1], key_size[1], self.appr_geom_fc_x, queries)          # (A, w, w', D)
            down = self._distances(size[0], key_size[0], self.appr_geom_fc_y, queries)            # (A, h, h', D)
            by_x = torch.einsum('bahwd,awkd->bahwk', asks, across)[..., None, :]
            # Where distances come without a bias of their own, mmcv takes the query of row j, column i for the rows'
            # distances of row i, column j. Weights are learnt with it; on maps that are not square it fails.
            turned = not self.distance_alone and size[0] == size[1]
            by_y = torch.einsum('bahwd,ahkd->bahwk', asks.transpose(2, 3) if turned else asks, down)[..., None]
            terms.append((by_x + by_y).flatten(4).flatten(2, 3))
        energy = sum(terms[1:], start=terms[0])
        if self.spatial_range >= 0:
            far = self.local_constraint_map[:size[0], :size[1], :key_size[0], :key_size[1]]
            energy = energy.masked_fill(far.reshape(1, 1, math.prod(size), -1).bool(), -math.inf)
        return energy

    def _asks(self, query: Tensor | None, bias: Tensor | None, batch: int, count: int) -> Tensor:
        """What meets the keys, (B, A, N, D): the queries, a bias (A * D,) that all ``count`` share, or their sum."""
        if bias is None:
            assert query is not None  # a term has one of the two
            return query
        by_head = bias.view(1, self.num_heads, 1, -1)
        return by_head.expand(batch, -1, count, -1) if query is None else query + by_head

    def _distances(self, count: int, key_count: int, layer: nn.Linear, like: Tensor) -> Tensor:
        """Embedded distances (A, count, key_count, D) along one side."""
        place = torch.arange(count, device=like.device, dtype=like.dtype) * self.q_stride
        key = torch.arange(key_count, device=like.device, dtype=like.dtype) * self.kv_stride
        away = (place[:, None] - key)[..., None] * self.position_magnitude                        # (count, keys, 1)
        order = torch.arange(self.embedding_dim // 4, device=like.device, dtype=like.dtype)
        angle = away / 1000 ** (order * 4 / self.embedding_dim)
        waves = layer(torch.cat([angle.sin(), angle.cos()], dim=-1)) / math.sqrt(2)
        return waves.unflatten(-1, (self.num_heads, -1)).permute(2, 0, 1, 3)
