"""NAS-FPN (Ghiasi et al. 2019, "NAS-FPN: Learning Scalable Feature Pyramid Architecture for Object Detection").

B images, C channels.
"""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.registry import NECKS, Cfg

# The architecture that the search found, step by step: cell, the two levels it reads, the level it gives. 'new' is the
# intermediate level 4, 'tmp' what the next step reads.
_STEPS = (
    ('gp_64_4', 'p6', 'p4', 'new', 'p4'), ('sum_44_4', 'new', 'p4', 'new', 'p4'), ('sum_43_3', 'new', 'p3', 'p3', 'p3'),
    ('sum_34_4', 'p3', 'new', 'p4', 'p4'), ('gp_43_5', 'p4', 'p3', 'tmp', 'p5'), ('sum_55_5', 'p5', 'tmp', 'p5', 'p5'),
    ('gp_54_7', 'p5', 'new', 'tmp', 'p7'), ('sum_77_7', 'p7', 'tmp', 'p7', 'p7'), ('gp_75_6', 'p7', 'p5', 'p6', 'p6'))
_WITHOUT_CONV = ('gp_43_5', 'gp_54_7')


class MergeCell(nn.Module):
    """Two levels, resized to one size, are merged: by a sum, or by global attention.

    Global attention is ``second + sigmoid(mean(second)) * first``, with one mean a channel.

    Args:
        channels: C.
        attends: merge by global attention.
        with_conv: activation, convolution and norm follow.
        norm_cfg: of the norm.
    """

    def __init__(self, channels: int, attends: bool, with_conv: bool, norm_cfg: Cfg | None):
        super().__init__()
        self.attends = attends
        self.out_conv = ConvModule(channels, channels, 3, padding=1, bias=True, norm_cfg=norm_cfg, inplace=False,
                                   order=('act', 'conv', 'norm')) if with_conv else None

    def forward(self, first: Tensor, second: Tensor, size: tuple[int, ...]) -> Tensor:
        """Map two levels (B, C, ., .) to one (B, C, *size)."""
        first, second = resized(first, size), resized(second, size)
        if self.attends:
            first = second.mean(dim=(2, 3), keepdim=True).sigmoid() * first
        merged = second + first
        return merged if self.out_conv is None else self.out_conv(merged)


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize a level (B, C, h, w): a smaller one by its nearest pixels, a larger one by max pooling."""
    size, own = tuple(size), tuple(x.shape[2:])
    if own == size:
        return x
    if own < size:
        return F.interpolate(x, size=size, mode='nearest')
    missing = [-side % wanted for side, wanted in zip(own, size)]
    x = F.pad(x, (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2))
    windows = [side // wanted for side, wanted in zip(x.shape[2:], size)]
    return F.max_pool2d(x, windows, stride=windows)


@NECKS.register_module()
class NASFPN(nn.Module):
    """The pyramid P3 to P7 that the architecture search found, repeated ``stack_times``.

    Args:
        in_channels: of each backbone level.
        out_channels: C of every output level.
        num_outs: output levels: 5.
        stack_times: how often the pyramid is gone through.
        start_level: first backbone level used.
        end_level: last one used; -1 the topmost.
        add_extra_convs: accepted as 2.x has it; further levels are made by a 1x1 convolution and pooling.
        norm_cfg: of the norms.
        init_cfg: initial weights; Caffe2's by default.

    Raises:
        ConfigError: levels that do not add up to five.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, stack_times: int,
                 start_level: int = 0, end_level: int = -1, add_extra_convs: bool = False,
                 norm_cfg: Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__()
        last = len(in_channels) - 1 if end_level == -1 else end_level
        if not 0 <= start_level <= last < len(in_channels):
            raise ConfigError(f'NASFPN: start_level={start_level}, end_level={end_level} do not name levels of the '
                              f'{len(in_channels)} in in_channels')
        used = in_channels[start_level:last + 1]
        if num_outs != 5 or len(used) > 5 or (last != len(in_channels) - 1 and len(used) != 5):
            raise ConfigError(f'NASFPN: num_outs={num_outs} from {len(used)} levels; the pyramid has 5')
        self.in_channels, self.start_level = list(in_channels), start_level
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None) for channels in used)
        self.extra_downsamples = nn.ModuleList(
            nn.Sequential(ConvModule(out_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None),
                          nn.MaxPool2d(2, 2)) for _ in range(num_outs - len(used)))
        self.fpn_stages = nn.ModuleList(nn.ModuleDict({
            name: MergeCell(out_channels, name.startswith('gp'), name not in _WITHOUT_CONV, norm_cfg)
            for name, *_ in _STEPS}) for _ in range(stack_times))
        self.init_cfg = init_cfg or dict(type='Caffe2Xavier', layer='Conv2d')

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map L levels (B, in_channels[l], h, w) to five levels (B, C, h, w), finest first."""
        if len(inputs) != len(self.in_channels):
            raise ConfigError(f'NASFPN: in_channels has {len(self.in_channels)} levels, the backbone gives '
                              f'{len(inputs)}')
        feats = [conv(x) for conv, x in zip(self.lateral_convs, inputs[self.start_level:])]
        for downsample in self.extra_downsamples:
            feats.append(downsample(feats[-1]))
        levels = dict(zip(('p3', 'p4', 'p5', 'p6', 'p7'), feats))
        for stage in self.fpn_stages:
            cells = dict(stage.named_children())
            for name, first, second, target, like in _STEPS:
                levels[target] = cells[name](levels[first], levels[second], levels[like].shape[2:])
        return tuple(levels[name] for name in ('p3', 'p4', 'p5', 'p6', 'p7'))
