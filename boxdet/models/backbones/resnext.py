"""ResNeXt (Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks")."""
from __future__ import annotations

from typing import Any

from boxdet.models.backbones.resnet import ARCHITECTURES, ResNet
from boxdet.registry import MODELS, Cfg


@MODELS.register_module()
class ResNeXt(ResNet):
    """ResNet-50, 101 or 152 with grouped 3x3 convolutions: 32x4d is ``groups=32, base_width=4``.

    Args:
        groups: of the 3x3 convolutions.
        base_width: channels of each group in the first stage; each stage doubles them.
        kwargs: those of ResNet.
    """

    arch_settings = {depth: ARCHITECTURES[depth] for depth in (50, 101, 152)}

    def __init__(self, groups: int = 1, base_width: int = 4, **kwargs: Any):
        self.groups, self.base_width = groups, base_width  # read while the stages are made
        super().__init__(**kwargs)

    def _block_options(self, stage: int) -> Cfg:
        if self.groups == 1:
            return {}
        return {'groups': self.groups,
                'width': self._stage_channels(stage) * self.base_width // self.base_channels * self.groups}
