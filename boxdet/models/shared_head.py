"""The last stage of a ResNet as the first part of both RoI heads: the C4 models (He et al. 2016, appendix A).

R rois, C channels, h, w height and width of a roi's features.
"""
from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxdet.errors import ConfigError
from boxdet.models.backbones.resnet import ARCHITECTURES, make_res_layer
from boxdet.models.initialization import InitCfg, initialize, pretrained_or_default
from boxdet.registry import SHARED_HEADS, Cfg


@SHARED_HEADS.register_module()
class ResLayer(nn.Module):
    """Stage ``stage`` of a ResNet, run on every roi; its parameters are named ``layer<stage + 1>``.

    Args:
        depth: of the ResNet.
        stage: 0 to 3.
        stride: of its first block.
        dilation: of its blocks.
        style: as in ``ResNet``.
        norm_cfg: as in ``ResNet``.
        norm_eval: batch norms stay in evaluation mode while training.
        with_cp: as in ``ResNet``.
        dcn: as in ``ResNet``, for this stage.
        pretrained: 2.x's older way to say ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``.
        init_cfg: initial weights; He's for convolutions and 1 for norms by default.

    Raises:
        ConfigError: no ResNet of that depth, or no such stage.
    """

    def __init__(self, depth: int, stage: int = 3, stride: int = 2, dilation: int = 1, style: str = 'pytorch',
                 norm_cfg: Cfg | None = None, norm_eval: bool = True, with_cp: bool = False, dcn: Cfg | None = None,
                 pretrained: str | None = None, init_cfg: InitCfg = None):
        super().__init__()
        if depth not in ARCHITECTURES or stage not in range(4):
            raise ConfigError(
                f'ResLayer: depth {depth}, stage {stage}: there are depths {sorted(ARCHITECTURES)} and '
                'stages 0 to 3')
        block, num_blocks = ARCHITECTURES[depth]
        channels = 64 * 2 ** stage
        in_channels = 64 if stage == 0 else channels // 2 * block.expansion
        self.norm_eval, self.stage = norm_eval, stage
        self.add_module(f'layer{stage + 1}', make_res_layer(
            block, in_channels, channels, num_blocks[stage], stride=stride, dilation=dilation, style=style,
            with_cp=with_cp, norm_cfg=norm_cfg or dict(type='BN', requires_grad=True), dcn=dcn))
        self.init_cfg = pretrained_or_default(init_cfg, pretrained, [
            dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer='_BatchNorm')])

    def init_weights(self) -> None:
        """Run ``init_cfg``."""
        initialize(self)

    def train(self, mode: bool = True) -> ResLayer:
        """As usual, but with ``norm_eval`` every batch norm stays in evaluation mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map roi features (R, C, h, w) to (R, C', h / stride, w / stride)."""
        return getattr(self, f'layer{self.stage + 1}')(x)
