"""Libra R-CNN's neck (Pang et al. 2019, "Libra R-CNN: Towards Balanced Learning for Object Detection", section 3.2).

B images, L levels, C channels.
"""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.models.families.attention_plugins import NonLocal2d
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.layers import ConvModule
from boxdet.registry import NECKS, Cfg


@NECKS.register_module()
class BFP(nn.Module):
    """Balanced feature pyramid (section 3.2): the mean of all levels is refined and added to each level.

    Args:
        in_channels: C.
        num_levels: L.
        refine_level: the level at whose size they meet.
        refine_type: None, 'conv' or 'non_local'.
        conv_cfg: layer config of the refinement.
        norm_cfg: of the refinement.
        init_cfg: initial weights; Xavier uniform by default.

    Raises:
        ConfigError: another kind of refinement, or a level that there is not.
    """

    def __init__(self, in_channels: int, num_levels: int, refine_level: int = 2, refine_type: str | None = None,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None, init_cfg: InitCfg = None):
        super().__init__()
        if refine_type not in (None, 'conv', 'non_local'):
            raise ConfigError(f"BFP: refine_type is None, 'conv' or 'non_local', not '{refine_type}'")
        if not 0 <= refine_level < num_levels:
            raise ConfigError(f'BFP: refine_level={refine_level}; it is 0 to {num_levels - 1}')
        self.num_levels, self.refine_level = num_levels, refine_level
        self.refine: nn.Module | None = None
        if refine_type == 'conv':
            self.refine = ConvModule(in_channels, in_channels, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        elif refine_type == 'non_local':
            self.refine = NonLocal2d(in_channels, reduction=1, use_scale=False, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.init_cfg = init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform')

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map L levels (B, C, h, w) to L levels of the same shapes."""
        if len(inputs) != self.num_levels:
            raise ConfigError(f'BFP: num_levels={self.num_levels}, and it gets {len(inputs)} levels')
        size = inputs[self.refine_level].shape[2:]
        first, *others = (F.adaptive_max_pool2d(x, size) if i < self.refine_level else F.interpolate(x, size=size)
                          for i, x in enumerate(inputs))
        mean = sum(others, start=first) / len(inputs)
        mean = mean if self.refine is None else self.refine(mean)
        return tuple(x + (F.interpolate(mean, size=x.shape[2:]) if i < self.refine_level
                          else F.adaptive_max_pool2d(mean, x.shape[2:])) for i, x in enumerate(inputs))
