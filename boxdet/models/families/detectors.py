"""DetectoRS (Qiao et al. 2020): a pyramid that is gone through twice, and switchable atrous convolution.

B images, C channels.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from boxdet.errors import ConfigError
from boxdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from boxdet.models.initialization import constant_init, initialize, xavier_init
from boxdet.models.necks.fpn import FPN
from boxdet.registry import BACKBONES, LAYERS, NECKS, Cfg

_EPS = 1e-5


@LAYERS.register_module(name='ConvAWS')
class ConvAWS2d(nn.Conv2d):
    """Convolution with standardised weights, scaled and shifted by buffers ``weight_gamma`` and ``weight_beta``.

    Weights of a plain convolution may be loaded: the two buffers become their deviation and mean, so that the
    convolution is the same at first.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], **kwargs: Any):
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        self.register_buffer('weight_gamma', torch.ones(out_channels, 1, 1, 1))
        self.register_buffer('weight_beta', torch.zeros(out_channels, 1, 1, 1))

    def _standardised(self) -> Tensor:
        deviation, mean = _statistics(self.weight)
        return (self.weight - mean) / deviation * self.weight_gamma + self.weight_beta

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h', w')."""
        return self._conv_forward(x, self._standardised(), self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A copy: what is added here is no entry of the caller's dict.
        weight = state_dict.get(f'{prefix}weight')
        own = (f'{prefix}weight_gamma', f'{prefix}weight_beta')
        if weight is not None and weight.shape == self.weight.shape and not any(name in state_dict for name in own):
            state_dict = {**state_dict, **dict(zip(own, _statistics(weight)))}
        super()._load_from_state_dict(state_dict, prefix, *args)


def _statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each filter, (C, 1, 1, 1)."""
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True)
    return (variance + _EPS).sqrt(), mean


@LAYERS.register_module(name='SAC')
class SwitchableAtrousConv2d(ConvAWS2d):
    """Switchable atrous convolution (section 4): a learned switch mixes two dilations at each pixel.

    The second convolution has three times the dilation, and the weights of the first plus ``weight_diff``. The context
    of the whole map, its mean, is added before and after.

    Args:
        use_deform: both are deformable, with offsets of their own.
        kwargs: those of ``nn.Conv2d``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 use_deform: bool = False, **kwargs: Any):
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        self.use_deform = use_deform
        stride = kwargs.get('stride', 1)
        self.switch = nn.Conv2d(in_channels, 1, 1, stride=stride)
        self.weight_diff = nn.Parameter(torch.zeros_like(self.weight))
        self.pre_context = nn.Conv2d(in_channels, in_channels, 1)
        self.post_context = nn.Conv2d(out_channels, out_channels, 1)
        if use_deform:
            self.offset_s = nn.Conv2d(in_channels, 18, 3, padding=1, stride=stride)
            self.offset_l = nn.Conv2d(in_channels, 18, 3, padding=1, stride=stride)
        self.init_weights()

    def init_weights(self) -> None:
        """Start as the plain convolution: the switch closed, no context, no offsets."""
        constant_init(self.switch, 0, bias=1)
        nn.init.zeros_(self.weight_diff)
        offsets = (self.offset_s, self.offset_l) if self.use_deform else ()
        for layer in (self.pre_context, self.post_context, *offsets):
            constant_init(layer, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h', w')."""
        x = x + self.pre_context(x.mean(dim=(2, 3), keepdim=True))
        around = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode='reflect'), 5, stride=1)
        switch = self.switch(around)
        weight = self._standardised()
        near = self._convolve(x, around, weight, 1)
        far = self._convolve(x, around, weight + self.weight_diff, 3)
        out = switch * near + (1 - switch) * far
        return out + self.post_context(out.mean(dim=(2, 3), keepdim=True))

    def _convolve(self, x: Tensor, around: Tensor, weight: Tensor, factor: int) -> Tensor:
        padding = tuple(factor * int(side) for side in self.padding)
        dilation = tuple(factor * side for side in self.dilation)
        if self.use_deform:
            offset = (self.offset_s if factor == 1 else self.offset_l)(around)
            return deform_conv2d(x, offset, weight, None, stride=self.stride, padding=padding, dilation=dilation)
        return F.conv2d(x, weight, self.bias, self.stride, padding, dilation, self.groups)


class _Bottleneck(Bottleneck):
    """A bottleneck that may add a map of the recursive pyramid before its last ReLU.

    Args:
        sac: layer config of the 3x3 convolution.

    Attributes:
        rfp_conv: brings that map to the block's channels; None in a block that adds none.
    """

    def __init__(self, in_channels: int, channels: int, sac: Cfg | None = None, **kwargs: Any):
        self.sac = sac
        super().__init__(in_channels, channels, **kwargs)
        self.rfp_conv: nn.Module | None = None

    def _add_middle(self, width: int, stride: int, dilation: int, groups: int, conv_cfg: Cfg | None,
                    norm_cfg: Cfg) -> None:
        super()._add_middle(width, stride, dilation, groups, self.sac or conv_cfg, norm_cfg)

    def forward(self, x: Tensor, pyramid: Tensor | None = None) -> Tensor:
        """Map (B, C_in, h, w) to (B, C, h', w'); ``pyramid`` (B, rfp_inplanes, h', w') is added."""
        out = self._sum(x)
        if pyramid is not None and self.rfp_conv is not None:
            out = out + self.rfp_conv(pyramid)
        return self.relu(out)

    def init_weights(self) -> None:
        """Start as the block of a ResNet: nothing of the pyramid is added."""
        initialize(self)
        if self.rfp_conv is not None:
            constant_init(self.rfp_conv, 0)


@BACKBONES.register_module()
class DetectoRS_ResNet(ResNet):
    """ResNet-50, 101 or 152 with switchable atrous convolutions, and an entry for the recursive pyramid.

    Args:
        sac: layer config of the 3x3 convolutions, ``dict(type='SAC', use_deform=True)``.
        stage_with_sac: one bool a stage.
        rfp_inplanes: channels of the pyramid's maps that the first block of each stage but the first adds.
        output_img: put out the image before the levels, for the neck RFP.
        kwargs: those of ResNet.

    Raises:
        ConfigError: a list that is not one entry a stage.
    """

    arch_settings: Mapping[int, tuple[type[_Bottleneck], tuple[int, ...]]] = {
        50: (_Bottleneck, (3, 4, 6, 3)), 101: (_Bottleneck, (3, 4, 23, 3)), 152: (_Bottleneck, (3, 8, 36, 3))}

    def __init__(self, sac: Cfg | None = None, stage_with_sac: Sequence[bool] = (False, False, False, False),
                 rfp_inplanes: int | None = None, output_img: bool = False, **kwargs: Any):
        stages = kwargs.get('num_stages', 4)
        if sac is not None and len(stage_with_sac) != stages:
            raise ConfigError(f'{type(self).__name__}: stage_with_sac={tuple(stage_with_sac)}: one entry a stage '
                              f'({stages})')
        # Read while the stages are made.
        self.sac, self.stage_with_sac, self.rfp_inplanes = sac, tuple(stage_with_sac), rfp_inplanes
        self.output_img = output_img
        super().__init__(**kwargs)

    def _block_options(self, stage: int) -> Cfg:
        return {'sac': self.sac if self.sac is not None and self.stage_with_sac[stage] else None}

    def _make_layer(self, block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int,
                    num_blocks: int, **options: Any) -> nn.Sequential:
        layer = super()._make_layer(block, in_channels, channels, num_blocks, **options)
        if self.rfp_inplanes and channels != self._stage_channels(0):
            layer[0].rfp_conv = nn.Conv2d(self.rfp_inplanes, channels * block.expansion, 1)
        return layer

    def forward(self, x: Tensor, pyramid: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to the levels of ``out_indices``, the images first with ``output_img``.

        Args:
            x: images.
            pyramid: a map a stage, (B, rfp_inplanes, h, w), that the second and later walks of the pyramid add; the
                images are then not put out.
        """
        outs = [x] if self.output_img and pyramid is None else []
        x = self._stem(x)
        for i, name in enumerate(self.res_layers):
            for j, block in enumerate(getattr(self, name)):
                x = block(x, pyramid[i] if pyramid is not None and i and not j else None)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


@BACKBONES.register_module()
class DetectoRS_ResNeXt(DetectoRS_ResNet):
    """``DetectoRS_ResNet`` with grouped 3x3 convolutions.

    Args:
        groups: of the 3x3 convolutions.
        base_width: channels of each group in the first stage; each stage doubles them.
        kwargs: those of ``DetectoRS_ResNet``.
    """

    def __init__(self, groups: int = 1, base_width: int = 4, **kwargs: Any):
        self.groups, self.base_width = groups, base_width  # read while the stages are made
        super().__init__(**kwargs)

    def _block_options(self, stage: int) -> Cfg:
        options = dict(super()._block_options(stage))
        if self.groups > 1:
            width = self._stage_channels(stage) * self.base_width // self.base_channels * self.groups
            options.update(groups=self.groups, width=width)
        return options


class ASPP(nn.Module):
    """Convolutions of several dilations side by side; the last one reads the mean of the whole map.

    Args:
        in_channels: C.
        out_channels: of each.
        dilations: of each; 1 stands for a 1x1 convolution, and the last is 1.
    """

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int]):
        super().__init__()
        if dilations[-1] != 1:
            raise ConfigError(f'RFP: the last of aspp_dilations={tuple(dilations)} is 1')
        self.aspp = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 3 if dilation > 1 else 1, dilation=dilation,
                      padding=dilation if dilation > 1 else 0) for dilation in dilations)
        self.init_cfg = dict(type='Kaiming', layer='Conv2d')

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, D * out_channels, h, w) of D dilations."""
        *local, last = self.aspp
        outs = [F.relu(conv(x)) for conv in local]
        mean = F.relu(last(x.mean(dim=(2, 3), keepdim=True)))
        return torch.cat([*outs, mean.expand(-1, -1, *x.shape[2:])], dim=1)


@NECKS.register_module()
class RFP(FPN):
    """Recursive feature pyramid (section 3): each step feeds the pyramid back into a backbone.

    Every further step has a backbone of its own, whose stages read the pyramid of the step before. The new pyramid and
    the one before are mixed pixel by pixel with learned weights. The detector's backbone puts out the images first
    (``output_img=True``).

    Args:
        rfp_steps: walks through the pyramid.
        rfp_backbone: config of the backbone of the second and later ones, each with weights of its own.
        aspp_out_channels: of each dilation of the layer between pyramid and backbone.
        aspp_dilations: of that layer.
        kwargs: those of FPN.

    Raises:
        ConfigError: an ``init_cfg``: the parts start in ways of their own.
    """

    reads_images = True

    def __init__(self, rfp_steps: int, rfp_backbone: Cfg, aspp_out_channels: int,
                 aspp_dilations: Sequence[int] = (1, 3, 6, 1), init_cfg: None = None, **kwargs: Any):
        if init_cfg is not None:
            raise ConfigError('RFP takes no init_cfg: give rfp_backbone one')
        super().__init__(**kwargs)
        self.rfp_modules = nn.ModuleList(BACKBONES.build(rfp_backbone) for _ in range(1, rfp_steps))
        self.rfp_aspp = ASPP(self.out_channels, aspp_out_channels, aspp_dilations)
        self.rfp_weight = nn.Conv2d(self.out_channels, 1, 1)

    def init_weights(self) -> None:
        """Xavier's for the pyramid, the backbones their own; nothing of later walks is mixed in unevenly at first."""
        for convs in (self.lateral_convs, self.fpn_convs):
            for module in convs.modules():
                if isinstance(module, nn.Conv2d):
                    xavier_init(module, distribution='uniform')
        for part in self.rfp_modules:
            part.init_weights()
        constant_init(self.rfp_weight, 0)

    def forward(self, inputs: Sequence[Tensor], keep: bool = True) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) and L levels to num_outs levels (B, C, h, w), finest first.

        The backbone's levels are kept in any case.
        """
        if len(inputs) != len(self.in_channels) + 1:
            raise ConfigError(f'RFP: the backbone gives {len(inputs)} maps; it needs the image and '
                              f'{len(self.in_channels)} levels (output_img=True)')
        image, levels = inputs[0], list(inputs[1:])
        outs = super().forward(levels)
        for backbone in self.rfp_modules:
            pyramid = [outs[0], *(self.rfp_aspp(x) for x in outs[1:])]
            news = super().forward(backbone(image, pyramid))
            shares = [self.rfp_weight(new).sigmoid() for new in news]
            outs = tuple(share * new + (1 - share) * old for share, new, old in zip(shares, news, outs))
        return outs
