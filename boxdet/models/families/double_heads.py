"""Double-Head R-CNN (Wu et al. 2020): linear layers classify, convolutions move the boxes.

Letters: R rois, K classes, C channels, h, w of a roi's features.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.models.backbones.resnet import Bottleneck
from boxdet.models.bbox_head import BBoxHead
from boxdet.models.initialization import InitCfg
from boxdet.models.layers import ConvModule
from boxdet.models.standard_roi_head import StandardRoIHead
from boxdet.registry import HEADS

_INIT = dict(type='Normal', override=[
    dict(type='Normal', name='fc_cls', std=0.01), dict(type='Normal', name='fc_reg', std=0.001),
    dict(type='Xavier', name='fc_branch', distribution='uniform')])


@HEADS.register_module()
class DoubleHeadRoIHead(StandardRoIHead):
    """A RoI head that regresses boxes on enlarged RoIs and classifies them on the RoIs themselves.

    Args:
        reg_roi_scale_factor: how many times the RoI is enlarged for the regression.
        **kwargs: as in ``StandardRoIHead``; the ``bbox_head`` is a ``DoubleConvFCBBoxHead``.
    """

    def __init__(self, reg_roi_scale_factor: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.reg_roi_scale_factor = reg_roi_scale_factor

    def box_forward(self, feats: Sequence[torch.Tensor],
                    rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``StandardRoIHead``; the features are those of the classification."""
        around = self.bbox_roi_extractor(feats, rois, roi_scale_factor=self.reg_roi_scale_factor)
        around = self.shared_head(around) if self.with_shared_head else around
        pooled = self.box_features(feats, rois)
        return *self.bbox_head(pooled, around), pooled


@HEADS.register_module()
class DoubleConvFCBBoxHead(BBoxHead):
    """Linear layers for the scores, a residual block and bottlenecks for the boxes.

    Args:
        num_convs: bottlenecks after the residual block.
        num_fcs: linear layers.
        conv_out_channels: channels of the convolutional branch.
        fc_out_channels: width of the linear layers.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of their norms.
        init_cfg: initial weights.
        **kwargs: as in ``BBoxHead``.
    """

    def __init__(self, num_convs: int = 0, num_fcs: int = 0, conv_out_channels: int = 1024,
                 fc_out_channels: int = 1024, conv_cfg: Mapping | None = None,
                 norm_cfg: Mapping | None = None, init_cfg: InitCfg = None, **kwargs: Any):
        kwargs.setdefault('with_avg_pool', True)
        super().__init__(init_cfg=init_cfg or _INIT, **kwargs)
        layers: dict[str, Any] = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg or dict(type='BN'))
        boxes = 4 if self.reg_class_agnostic else 4 * self.num_classes
        size = self.roi_feat_size[0] * self.roi_feat_size[1] * self.in_channels
        self.fc_cls = nn.Linear(fc_out_channels, self.num_classes + 1)
        self.fc_reg = nn.Linear(conv_out_channels, boxes)
        self.res_block = _ResidualBlock(self.in_channels, conv_out_channels, **layers)
        self.conv_branch = nn.ModuleList(
            Bottleneck(conv_out_channels, conv_out_channels // Bottleneck.expansion, **layers)
            for _ in range(num_convs))
        self.fc_branch = nn.ModuleList(
            nn.Linear(size if i == 0 else fc_out_channels, fc_out_channels) for i in range(num_fcs))

    # Two features of a roi, from DoubleHeadRoIHead.
    def forward(self, x_cls: torch.Tensor,  # type: ignore[override]
                x_reg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (R, K + 1) and deltas (R, 4 or K * 4) from features (R, C, h, w) of a roi and of its surrounding."""
        x_reg = self.res_block(x_reg)
        for conv in self.conv_branch:
            x_reg = conv(x_reg)
        x_cls = x_cls.flatten(1)
        for fc in self.fc_branch:
            x_cls = F.relu(fc(x_cls))
        return self.fc_cls(x_cls), self.fc_reg(x_reg.mean(dim=(2, 3)))


class _ResidualBlock(nn.Module):
    """A 3x3 and a 1x1 convolution beside a 1x1 one, which brings the features to the branch's channels."""

    def __init__(self, in_channels: int, out_channels: int, **layers: Any):
        super().__init__()
        self.conv1 = ConvModule(in_channels, in_channels, 3, padding=1, bias=False, **layers)
        self.conv2 = ConvModule(in_channels, out_channels, 1, bias=False, act_cfg=None, **layers)
        self.conv_identity = ConvModule(in_channels, out_channels, 1, act_cfg=None, **layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(R, C, h, w) to (R, C', h, w)."""
        return F.relu(self.conv2(self.conv1(x)) + self.conv_identity(x))
