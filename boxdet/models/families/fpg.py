"""Feature pyramid grids (Chen et al. 2020, "Feature Pyramid Grids").

B images, L levels, C channels, P pathways: bottom-up or top-down walks over all levels.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from boxdet.errors import ConfigError, nearest
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.registry import NECKS, Cfg

_INIT = [dict(type='Caffe2Xavier', layer='Conv2d'),
         dict(type='Constant', val=1.0, layer=['_BatchNorm', '_InstanceNorm', 'GroupNorm', 'LayerNorm'])]

# 2.x's defaults of the transitions
_SAME_UP = {'type': 'conv', 'kernel_size': 3, 'stride': 2, 'padding': 1}
_LATERAL, _DOWN = {'type': 'conv', 'kernel_size': 1}, {'type': 'conv', 'kernel_size': 3}
_SKIP, _LAST = {'type': 'identity'}, {'type': 'last_conv', 'kernel_size': 3}


class UpsampledConv(nn.Module):
    """Interpolation and a convolution behind it; key ``conv``."""

    def __init__(self, in_channels: int, out_channels: int, scale_factor: float = 2, mode: str = 'nearest',
                 align_corners: bool | None = None, kernel_size: int = 3, **layers: Any):
        super().__init__()
        self.interpolate = partial(F.interpolate, scale_factor=scale_factor, mode=mode, align_corners=align_corners)
        self.conv = ConvModule(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, **layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h * scale_factor, w * scale_factor)."""
        return self.conv(self.interpolate(x))


class LastConv(nn.Module):
    """A convolution; key ``conv_out``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, **layers: Any):
        super().__init__()
        self.conv_out = ConvModule(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, **layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        return self.conv_out(x)


def _identity(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Identity()


_TRANSITIONS: Mapping[str, Callable[..., nn.Module]] = {
    'conv': ConvModule, 'interpolation_conv': UpsampledConv, 'last_conv': LastConv, 'identity': _identity}


def _transition(cfg: Mapping, in_channels: int, out_channels: int) -> nn.Module:
    options = dict(cfg)
    kind = options.pop('type', None)
    if kind not in _TRANSITIONS:
        raise ConfigError(f"FPG: there is no transition '{kind}'{nearest(str(kind), _TRANSITIONS)}")
    return _TRANSITIONS[kind](in_channels, out_channels, **options)


@NECKS.register_module()
class FPG(nn.Module):
    """P pathways over L levels, each of which reads its own last step, the pathway before it, and the backbone.

    A transition is None, for none, or a dict: 'conv' (keywords of ConvModule), 'interpolation_conv', 'last_conv' or
    'identity'.

    Args:
        in_channels: of each backbone level.
        out_channels: of every output level.
        num_outs: L.
        stack_times: P.
        paths: 'bu' (bottom-up) or 'td' (top-down) for each pathway.
        inter_channels: of each level inside; a number for all; ``out_channels`` by default.
        same_down_trans: from the coarser level of the same pathway, in top-down ones.
        same_up_trans: from the finer level of the same pathway, in bottom-up ones.
        across_lateral_trans: from the level itself, one pathway before.
        across_down_trans: from the coarser level, one pathway before.
        across_up_trans: from the finer level, one pathway before.
        across_skip_trans: from the level itself, before all pathways.
        output_trans: from the last pathway to the output.
        start_level: first backbone level used.
        end_level: last one used; -1 the topmost. With another one there are no extra levels.
        add_extra_convs: make the levels above the backbone's by convolutions, and not by taking every second pixel.
        norm_cfg: accepted as 2.x has it; each transition has its own.
        skip_inds: for each level, the pathways that leave it as it is.
        init_cfg: initial weights; Caffe2's for convolutions and 1 for norms by default.

    Raises:
        ConfigError: levels or pathways that do not add up, or an unknown transition.
    """

    own_types = ('same_down_trans', 'same_up_trans', 'across_lateral_trans', 'across_down_trans', 'across_up_trans',
                 'across_skip_trans', 'output_trans')

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, stack_times: int,
                 paths: Sequence[str], inter_channels: int | Sequence[int] | None = None,
                 same_down_trans: Cfg | None = None,
                 same_up_trans: Cfg | None = _SAME_UP,
                 across_lateral_trans: Cfg | None = _LATERAL,
                 across_down_trans: Cfg | None = _DOWN,
                 across_up_trans: Cfg | None = None, across_skip_trans: Cfg | None = _SKIP,
                 output_trans: Cfg = _LAST, start_level: int = 0,
                 end_level: int = -1, add_extra_convs: bool = False, norm_cfg: Cfg | None = None,
                 skip_inds: Sequence[Sequence[int]] | None = None, init_cfg: InitCfg = None):
        super().__init__()
        last = len(in_channels) - 1 if end_level == -1 else end_level
        if not 0 <= start_level <= last < len(in_channels):
            raise ConfigError(f'FPG: start_level={start_level}, end_level={end_level} do not name levels of the '
                              f'{len(in_channels)} in in_channels')
        used = list(in_channels[start_level:last + 1])
        if num_outs < len(used) or (last != len(in_channels) - 1 and num_outs != len(used)):
            raise ConfigError(f'FPG: num_outs={num_outs}, but levels {start_level} to {last} make {len(used)}')
        if len(paths) != stack_times or not set(paths) <= {'bu', 'td'}:
            raise ConfigError(f"FPG: paths has 'bu' or 'td' for each of {stack_times} pathways, not {list(paths)}")
        if skip_inds is None or len(skip_inds) != num_outs:
            raise ConfigError(f'FPG: skip_inds says for each of {num_outs} levels which pathways leave it out; () for '
                              'none')
        inner = [inter_channels or out_channels] * num_outs if inter_channels is None or isinstance(
            inter_channels, int) else list(inter_channels)
        if len(inner) != num_outs:
            raise ConfigError(f'FPG: inter_channels={inner} needs a number for each of {num_outs} levels')
        self.in_channels, self.start_level, self.num_outs = list(in_channels), start_level, num_outs
        self.paths, self.skip_inds = tuple(paths), [tuple(ones) for ones in skip_inds]
        self.lateral_convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(used, inner))
        self.extra_downsamples = nn.ModuleList(
            nn.Conv2d(inner[i - 1], inner[i], 3, stride=2, padding=1) if add_extra_convs else nn.MaxPool2d(1, stride=2)
            for i in range(len(used), num_outs))
        self.fpn_transitions = nn.ModuleList()
        for step in range(stack_times):
            levels = nn.ModuleList()
            for i in range(num_outs):
                if step in self.skip_inds[i]:
                    levels.append(nn.ModuleDict())
                    continue
                finer = None if i == 0 else inner[i - 1]
                coarser = None if i == num_outs - 1 else inner[i + 1]
                sources = dict(same_up=(same_up_trans, finer), same_down=(same_down_trans, coarser),
                               across_lateral=(across_lateral_trans, inner[i]),
                               across_down=(across_down_trans, coarser), across_up=(across_up_trans, finer),
                               across_skip=(across_skip_trans, inner[i]))
                levels.append(nn.ModuleDict({
                    name: _transition(cfg, channels, inner[i]) for name, (cfg, channels) in sources.items()
                    if cfg is not None and channels is not None}))
            self.fpn_transitions.append(levels)
        self.output_transition = nn.ModuleList(_transition(output_trans, c, out_channels) for c in inner)
        self.init_cfg = init_cfg or _INIT

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map backbone levels (B, in_channels[l], h, w) to L levels (B, out_channels, h, w), finest first."""
        if len(inputs) != len(self.in_channels):
            raise ConfigError(f'FPG: in_channels has {len(self.in_channels)} levels, the backbone gives {len(inputs)}')
        first = [conv(x) for conv, x in zip(self.lateral_convs, inputs[self.start_level:])]
        for downsample in self.extra_downsamples:
            first.append(downsample(first[-1]))
        levels = first
        for step, path in enumerate(self.paths):
            levels = self._pathway(step, path, levels, first)
        return tuple(conv(x) for conv, x in zip(self.output_transition, levels))

    def _pathway(self, step: int, path: str, before: Sequence[Tensor], first: Sequence[Tensor]) -> list[Tensor]:
        """The levels of a pathway from those ``before`` it and the ``first`` ones."""
        levels: dict[int, Tensor] = {}
        back = 1 if path == 'td' else -1  # where the pathway comes from
        order, transitions = range(self.num_outs), list(self.fpn_transitions[step].children())
        for i in reversed(order) if path == 'td' else order:
            if step in self.skip_inds[i]:
                levels[i] = before[i]
                continue
            sources = dict(across_lateral=before[i], across_skip=first[i])
            if i + back in order:
                sources['same_down' if path == 'td' else 'same_up'] = levels[i + back]
            if i > 0:
                sources['across_up'] = before[i - 1]
            if i < self.num_outs - 1:
                sources['across_down'] = before[i + 1]
            layers = dict(transitions[i].named_children())
            names = ('same_up', 'same_down', 'across_lateral', 'across_up', 'across_down', 'across_skip')
            levels[i] = sum(layers[name](sources[name]) for name in names if name in layers and name in sources)
        return [levels[i] for i in order]
