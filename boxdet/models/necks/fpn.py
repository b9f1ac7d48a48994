"""Feature pyramid (Lin et al. 2017, "Feature Pyramid Networks for Object Detection").

B images, L backbone levels, C channels; level l + 1 has half the resolution of level l.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxdet.errors import ConfigError, nearest
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.registry import MODELS, Cfg

_EXTRA_SOURCES = ('on_input', 'on_lateral', 'on_output')


@MODELS.register_module()
class FPN(nn.Module):
    """1x1 lateral convolutions, a top-down sum, and a 3x3 convolution on every level.

    Args:
        in_channels: channels of each backbone level.
        out_channels: C of every output level.
        num_outs: output levels; those above the backbone's are made by ``add_extra_convs``. Fewer than the backbone's
            are the finest ones (1 is P2 alone, Detectron.pytorch's ``P2only``).
        start_level: first backbone level used.
        end_level: last one used; -1 the topmost. With another one there are no extra levels.
        add_extra_convs: False makes extra levels by taking every second pixel. 'on_input' (or True),
            'on_lateral', 'on_output' make them by 3x3 stride-2 convolutions, the first of which reads the
            topmost backbone level, lateral or output.
        relu_before_extra_convs: ReLU before every extra convolution but the first.
        no_norm_on_lateral: no norm after the lateral convolutions.
        upsample_cfg: keywords of F.interpolate; without scale_factor levels are brought to the size of the
            next finer one.

    Raises:
        ConfigError: levels that do not add up.
    """

    frees_levels = True

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, start_level: int = 0,
                 end_level: int = -1, add_extra_convs: bool | str = False,
                 relu_before_extra_convs: bool = False, no_norm_on_lateral: bool = False,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None,
                 act_cfg: Cfg | None = None, upsample_cfg: Mapping = {'mode': 'nearest'},
                 init_cfg: InitCfg = None):
        super().__init__()
        if not isinstance(in_channels, Sequence):
            raise ConfigError(f'FPN: in_channels is a list of one number a level, not {in_channels!r}')
        self.in_channels, self.out_channels, self.num_outs = list(in_channels), out_channels, num_outs
        self.start_level, self.end_level = start_level, end_level
        self.backbone_end_level = self._check_levels()
        self.add_extra_convs = self._check_extra(add_extra_convs)
        self.relu_before_extra_convs = relu_before_extra_convs
        self.upsample_cfg = dict(upsample_cfg)
        self.init_cfg = init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform')

        layer = partial(ConvModule, conv_cfg=conv_cfg, act_cfg=act_cfg, inplace=False)
        used = self.in_channels[start_level:self.backbone_end_level]
        lateral_norm = None if no_norm_on_lateral else norm_cfg
        self.lateral_convs = nn.ModuleList(
            layer(c, out_channels, 1, norm_cfg=lateral_norm) for c in used)
        self.fpn_convs = nn.ModuleList(
            layer(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg) for _ in used[:num_outs])
        if self.add_extra_convs:
            for i in range(num_outs - len(used)):
                source = used[-1] if i == 0 and self.add_extra_convs == 'on_input' else out_channels
                self.fpn_convs.append(
                    layer(source, out_channels, 3, stride=2, padding=1, norm_cfg=norm_cfg))

    def _check_levels(self) -> int:
        """Return the number of the first backbone level that is not used."""
        levels, start, end = len(self.in_channels), self.start_level, self.end_level
        last = levels - 1 if end == -1 else end
        if not 0 <= start <= last < levels:
            raise ConfigError(f'FPN: start_level={start}, end_level={end} do not name levels of the {levels} '
                              'in in_channels')
        used = last + 1 - start
        if self.num_outs < 1 or (last != levels - 1 and self.num_outs > used):
            raise ConfigError(f'FPN: num_outs={self.num_outs}, but levels {start} to {last} make {used}'
                              + ' or less' * (self.num_outs > used))
        return last + 1

    @staticmethod
    def _check_extra(add_extra_convs: bool | str) -> str:
        """Return where extra levels come from: '' for subsampling."""
        if isinstance(add_extra_convs, bool):
            return 'on_input' if add_extra_convs else ''
        if add_extra_convs not in _EXTRA_SOURCES:
            raise ConfigError(f"FPN: add_extra_convs='{add_extra_convs}'; it is False, True or one of "
                              f'{_EXTRA_SOURCES}{nearest(add_extra_convs, _EXTRA_SOURCES)}')
        return add_extra_convs

    def init_weights(self) -> None:
        """Start from ``init_cfg``; Xavier uniform by default."""
        initialize(self)

    def forward(self, inputs: Sequence[Tensor], keep: bool = True) -> tuple[Tensor, ...]:
        """Map L levels (B, in_channels[l], h_l, w_l) to num_outs levels (B, C, h, w), finest first.

        Args:
            inputs: the backbone's levels, a list where they are not kept.
            keep: False empties the list as it is read: nobody else needs the backbone's levels, which are the most
                memory of a detection.
        """
        if len(inputs) != len(self.in_channels):
            levels = len(self.in_channels)
            raise ConfigError(f'FPN: in_channels has {levels} levels, the backbone gives {len(inputs)}')
        last = inputs[self.backbone_end_level - 1] if self.add_extra_convs == 'on_input' else None
        # A list, where it need not be kept.
        laterals = self._top_down(list(inputs) if keep else inputs)  # type: ignore[arg-type]
        top = laterals[-1]
        outs = [conv(laterals.pop(0)) for conv in self.fpn_convs[:len(laterals)]]
        self._append_extra(outs, last, top)
        return tuple(outs)

    def _top_down(self, levels: list[Tensor]) -> list[Tensor]:
        """The laterals with the coarser ones added, finest first; ``levels`` is emptied on the way."""
        del levels[self.backbone_end_level:]
        laterals: list[Tensor] = []
        for conv in reversed(self.lateral_convs):
            lateral = conv(levels.pop())
            laterals.insert(0, self._add(laterals[0], lateral) if laterals else lateral)
        levels.clear()
        return laterals

    def _add(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """``coarse``, upsampled, plus ``fine``, which nobody else needs."""
        # A graph is for sizes that are not known yet, and TorchScript's exporter loses what is written into a view.
        in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        plain = in_graph or torch.is_grad_enabled() or self.upsample_cfg != {'mode': 'nearest'}
        height, width = coarse.shape[2:]
        if plain or fine.shape[2:] != (2 * height, 2 * width):
            # The sum lands in the fresh upsampled tensor: no third one is made.
            return self._upsample(coarse, fine).add_(fine)
        # Every pixel is added to its four: no upsampled tensor is made. (Autograd may hold on to a layer's output.)
        fine.unflatten(3, (width, 2)).unflatten(2, (height, 2)).add_(coarse[:, :, :, None, :, None])
        return fine

    def _upsample(self, coarse: Tensor, fine: Tensor) -> Tensor:
        if 'scale_factor' in self.upsample_cfg:
            return F.interpolate(coarse, **self.upsample_cfg)
        return F.interpolate(coarse, size=fine.shape[2:], **self.upsample_cfg)

    def _append_extra(self, outs: list[Tensor], last: Tensor | None, top: Tensor) -> None:
        """Add the levels above the backbone's, made from its ``last`` one, the ``top`` lateral or the last output."""
        if not self.add_extra_convs:
            while len(outs) < self.num_outs:
                outs.append(F.max_pool2d(outs[-1], 1, stride=2))
            return
        for i, conv in enumerate(self.fpn_convs[len(outs):]):
            if i == 0:
                source = {'on_input': last, 'on_lateral': top, 'on_output': outs[-1]}[self.add_extra_convs]
            else:
                source = F.relu(outs[-1]) if self.relu_before_extra_convs else outs[-1]
            outs.append(conv(source))
