"""The mask head (He et al. 2017, section 3): a small fully convolutional network on each roi.

The heads of Detectron and Detectron.pytorch, ``mask_rcnn_fcn_head_NAME``, as options of ``FCNMaskHead``:

v1up4convs      the default; v1up4convs_gn: ``norm_cfg``
v1up            ``num_convs=2``
v0upshare       ``num_convs=0`` behind the roi head's ``shared_head``
v0up            ``num_convs=0`` behind a ``res_layer`` of its own
MRCNN.DILATION  ``dilation``; MRCNN.UPSAMPLE_RATIO: ``upsample_ratio``

Letters: B images, R rois, P positive rois, K classes, C channels, h, w height and width of the output.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from boxdet.errors import ConfigError, nearest
from boxdet.geometry.boxes import at_least_float32
from boxdet.models.bbox_head import RoITrainSettings
from boxdet.models.initialization import InitCfg, initialize, kaiming_init
from boxdet.models.layers import ConvModule, build_conv_layer, build_upsample_layer
from boxdet.registry import HEADS, LOSSES, SHARED_HEADS, Cfg
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances

_UPSAMPLE = ('deconv', 'nearest', 'bilinear', 'carafe', None)
_ROIS_AT_ONCE = 8  # enlarged features in work: 6 MB of 28x28 pixels and 256 channels stay in the processor's cache


@HEADS.register_module()
class FCNMaskHead(nn.Module):
    """Convolutions, an enlargement, and a mask for each class.

    Args:
        num_convs: convolutions before the enlargement.
        roi_feat_size: side of the features.
        in_channels: C of the features.
        conv_kernel_size: of the convolutions.
        conv_out_channels: of the convolutions.
        num_classes: K.
        class_agnostic: one mask a roi, and not one for each class.
        upsample_cfg: type 'deconv', 'nearest', 'bilinear', 'carafe' or None, and scale_factor.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of their norms.
        predictor_cfg: layer config of the last one, 1x1.
        loss_mask: config of the loss.
        init_cfg: initial weights; by default He's for every layer.
        dilation: of the convolutions.
        upsample_ratio: enlarge the logits so many times more, bilinearly; ``mask_size`` grows with it.
        res_layer: config of a ``ResLayer`` that comes first, in place of the roi head's ``shared_head``.

    Raises:
        ConfigError: another kind of enlargement.
    """

    def __init__(self, num_convs: int = 4, roi_feat_size: int | tuple[int, int] = 14, in_channels: int = 256,
                 conv_kernel_size: int = 3, conv_out_channels: int = 256, num_classes: int = 80,
                 class_agnostic: bool = False, upsample_cfg: Cfg | None = None, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg | None = None, predictor_cfg: Cfg | None = None,
                 loss_mask: Cfg | nn.Module | None = None, init_cfg: InitCfg = None, dilation: int = 1,
                 upsample_ratio: int = 1, res_layer: Cfg | nn.Module | None = None):
        super().__init__()
        upsample = dict(upsample_cfg or dict(type='deconv', scale_factor=2))
        if upsample.get('type') not in _UPSAMPLE:
            names = [u for u in _UPSAMPLE if u]
            raise ConfigError(
                f"mask_head.upsample_cfg.type is '{upsample.get('type')}'{nearest(upsample['type'], names)}"
                f' (it is one of {names}, or None)')
        self.num_convs, self.roi_feat_size = num_convs, _pair(roi_feat_size)
        self.in_channels, self.conv_out_channels = in_channels, conv_out_channels
        self.num_classes, self.class_agnostic = num_classes, class_agnostic
        self.loss_mask = LOSSES.build(loss_mask
                                      or dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))
        self.upsample_ratio = upsample_ratio
        self.res_layer = None if res_layer is None else SHARED_HEADS.build(res_layer)
        self.convs = nn.ModuleList(
            ConvModule(in_channels if i == 0 else conv_out_channels, conv_out_channels, conv_kernel_size,
                       padding=(conv_kernel_size - 1) // 2 * dilation, dilation=dilation, conv_cfg=conv_cfg,
                       norm_cfg=norm_cfg)
            for i in range(num_convs))
        channels = conv_out_channels if num_convs else in_channels
        self.upsample, self.relu_after_upsample = _upsample_layer(upsample, channels, conv_out_channels)
        channels = conv_out_channels if self.relu_after_upsample else channels
        self.conv_logits = build_conv_layer(predictor_cfg or dict(type='Conv'), channels,
                                            1 if class_agnostic else num_classes, 1)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Run ``init_cfg``; without one, He's initialisation of the last layers, as the convolutions have it."""
        initialize(self)
        if self.init_cfg is None:
            for layer in (self.upsample, self.conv_logits):
                if layer is not None and getattr(layer, 'weight', None) is not None:
                    kaiming_init(layer)

    def convolved(self, x: torch.Tensor) -> torch.Tensor:
        """Map roi features (R, C, ., .) to those before the enlargement, (R, conv_out_channels, ., .)."""
        if self.res_layer is not None:
            x = self.res_layer(x)
        for conv in self.convs:
            x = conv(x)
        return x

    def _upsampled(self, x: torch.Tensor) -> torch.Tensor:
        if self.upsample is not None:
            x = self.upsample(x)
            if self.relu_after_upsample:
                x = F.relu(x, inplace=True)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map roi features (R, C, ., .) to mask logits (R, K, h, w), (R, 1, h, w) if class-agnostic."""
        return self._every_class(self.convolved(x))

    def _every_class(self, x: torch.Tensor) -> torch.Tensor:
        return self._enlarged(self.conv_logits(self._upsampled(x)))

    def _enlarged(self, logits: torch.Tensor) -> torch.Tensor:
        if self.upsample_ratio == 1:
            return logits
        return F.interpolate(logits, scale_factor=self.upsample_ratio, mode='bilinear', align_corners=False)

    def forward_labels(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The logits of each roi's own class only, (R, h, w): for K classes a K-th of the work of ``forward``.

        Args:
            x: roi features (R, C, ., .).
            labels: (R,) int64 in [0, K).
        """
        return self.logits(self.convolved(x), labels)

    def logits(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The same from what ``convolved`` gave: mask logits (R, h, w) of the labels (R,)."""
        last = self.conv_logits
        if self.class_agnostic:
            return self._every_class(x)[:, 0]
        if type(last) is not nn.Conv2d:
            return self._every_class(x)[torch.arange(labels.shape[0], device=labels.device), labels]
        weight = last.weight[labels].flatten(1)                                          # (R, C)
        layer = self._in_parts(x)
        if layer is not None:
            return self._with_bias(_OwnLogits.apply(x, layer.weight, layer.bias, weight), labels)
        x = self._upsampled(x)                                                            # (R, C, h, w)
        # Either way the gradient comes in the memory format of the features, and is not turned.
        if x.is_contiguous(memory_format=torch.channels_last):
            logits = torch.bmm(x.flatten(2).transpose(1, 2), weight[:, :, None])         # (R, h * w, 1)
        else:
            logits = torch.bmm(weight[:, None], x.flatten(2))                            # (R, 1, h * w)
        return self._with_bias(logits.view(x.shape[0], *x.shape[2:]), labels)

    def _with_bias(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (R, h, w) of the labels (R,), with the last layer's bias, enlarged."""
        bias = self.conv_logits.bias
        logits = logits if bias is None else logits + bias[labels, None, None]
        return self._enlarged(logits[:, None])[:, 0]

    def _in_parts(self, x: torch.Tensor) -> nn.ConvTranspose2d | None:
        """The layer that enlarges x (R, C, ., .) a few rois at a time: in training on the CPU in full precision."""
        layer = self.upsample
        if type(layer) is not nn.ConvTranspose2d or layer._forward_hooks or layer._forward_pre_hooks:
            return None
        no_overlap = (layer.stride == layer.kernel_size and layer.padding == layer.output_padding == (0, 0)
                      and layer.dilation == (1, 1) and layer.groups == 1)
        suits = (no_overlap and torch.is_grad_enabled() and x.device.type == 'cpu' and x.dtype == layer.weight.dtype
                 and x.dtype == at_least_float32(x).dtype and not torch.is_autocast_enabled('cpu')
                 and not torch.compiler.is_compiling())
        return layer if suits else None

    # ------------------------------------------------------------------------------------------ training

    def targets(self, samples: Sequence[SampledRois], gt: Sequence[Instances],
                settings: RoITrainSettings) -> torch.Tensor:
        """The masks (P, h, w) float in {0, 1} that the positives of B images should have predicted, images in order.

        Args:
            samples: B images' rois.
            gt: B objects with ``masks``.
            settings: its ``mask_size`` is (h, w), or the side.
        """
        size = _pair(settings.mask_size)
        device = samples[0].pos_boxes.device
        masks = [objects.masks.roi_targets(drawn.pos_boxes, size, drawn.pos_gt_index, device)
                 for drawn, objects in zip(samples, gt) if len(drawn.pos_boxes)]
        if not masks:
            return samples[0].pos_boxes.new_zeros((0, *size))
        return torch.cat(masks)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``loss_mask`` from the logits (P, h, w) of each positive's class and its target mask (P, h, w)."""
        logits = at_least_float32(logits)
        if len(logits) == 0:
            return dict(loss_mask=logits.sum())
        channel = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return dict(loss_mask=self.loss_mask(logits[:, None], targets, channel))

    # ------------------------------------------------------------------------------------------ results

    @torch.no_grad()
    def predict(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Probabilities (R, h, w) of each roi's class."""
        return at_least_float32(self.forward_labels(x, labels)).sigmoid()


class _OwnLogits(torch.autograd.Function):
    """Transposed convolution without overlap, ReLU, and a product with a vector of its own for each roi.

    The enlarged features and their gradient would be most of the memory of a training step, four times what the
    convolutions before them hold. They are made for a few rois at a time; kept is where they are positive.

    Letters: O channels of the enlarged features, s their pixels for each one of x, n rois at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                own: torch.Tensor) -> torch.Tensor:
        """Logits (R, h, w) of x (R, C, ., .) by a layer of weight (C, O, ., .) and bias (O,), and vectors (R, O)."""
        (rois, _, rows, columns), (down, across) = x.shape, weight.shape[2:]
        table = _as_table(weight)
        shift = table.new_zeros(table.shape[1]) if bias is None else bias.repeat(down * across)
        positive = torch.empty(rois, rows * columns * down * across, weight.shape[1], dtype=torch.bool)
        logits = x.new_empty(rois, rows * columns * down * across)
        for part in _parts(rois):
            enlarged = torch.addmm(shift, _pixels(x[part]).flatten(0, 1), table).view_as(positive[part])
            positive[part] = enlarged.relu_()  # a copy into bool; a comparison takes eight times as long
            torch.bmm(enlarged, own[part, :, None], out=logits[part, :, None])
        ctx.save_for_backward(x, weight, bias, own, positive)
        logits = logits.view(rois, rows, columns, down, across).transpose(2, 3)
        return logits.reshape(rois, rows * down, columns * across)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, own, positive = ctx.saved_tensors
        (rois, channels, rows, columns), (_, outputs, down, across) = x.shape, weight.shape
        table, cells = _as_table(weight), down * across
        by_cell = table.view(channels, cells, outputs)
        grad = grad.reshape(rois, rows, down, columns, across).transpose(2, 3).flatten(1)[:, :, None]
        grad_x, grad_own = torch.empty_like(x), torch.zeros_like(own)
        grad_table = torch.zeros_like(by_cell)
        grad_shift = grad_table.new_zeros(outputs)
        for part in _parts(rois):
            pixels, vector = _pixels(x[part]), own[part]
            # Cast first: a product of float and bool goes number by number.
            back = positive[part].to(grad.dtype).mul_(grad[part])                        # (n, pixels * s, O)
            # The products of features and gradient serve both gradients: of the layer's weight, and of the vectors,
            # which would ask for the enlarged features.
            products = torch.bmm(pixels.transpose(1, 2), back.view(len(pixels), -1, cells * outputs))
            products = products.view(-1, channels, cells, outputs)                       # (n, C, s, O)
            grad_own[part] = (products * by_cell).sum(dim=(1, 2))
            if bias is not None:
                sums = back.sum(dim=1)                                                   # (n, O)
                grad_own[part] += sums * bias
                grad_shift += (sums * vector).sum(dim=0)
            grad_table += products.mul_(vector[:, None, None]).sum(dim=0)
            back = back.mul_(vector[:, None]).view(-1, cells * outputs)
            grad_x[part] = (back @ table.T).view(-1, rows, columns, channels).permute(0, 3, 1, 2)
        grad_weight = grad_table.view(channels, down, across, outputs).permute(0, 3, 1, 2)
        return grad_x, grad_weight, None if bias is None else grad_shift, grad_own


def _parts(rois: int) -> list[slice]:
    return [slice(start, start + _ROIS_AT_ONCE) for start in range(0, rois, _ROIS_AT_ONCE)]


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """(n, C, h, w) as (n, h * w, C); a view in channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _as_table(weight: torch.Tensor) -> torch.Tensor:
    """The weight (C, O, ., .) of a transposed convolution as (C, s * O)."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _upsample_layer(cfg: dict, channels: int, out_channels: int) -> tuple[nn.Module | None, bool]:
    """The enlargement, and whether it is learnt: then a ReLU follows, and it sets the channels."""
    kind, scale = cfg.get('type'), cfg.pop('scale_factor', 2)
    if kind is None:
        return None, False
    if kind == 'deconv':
        shape = dict(in_channels=channels, out_channels=out_channels, kernel_size=scale, stride=scale)
        return build_upsample_layer({**shape, **cfg}), True
    own = dict(channels=channels) if kind == 'carafe' else {}
    return build_upsample_layer({'scale_factor': scale, **own, **cfg}), False
