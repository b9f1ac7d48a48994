"""Convolutions in eight bits for the CPU, made of a trained detector without training it again.

Weights are int8 with a scale for each output channel, activations uint8 with one scale for each convolution, found on
images of the user's (post-training static quantisation; Krishnamoorthi 2018, "Quantizing deep convolutional networks
for efficient inference", section 3). Sums are kept in int32 and given out in float32, so that norms, additions and
everything behind the pyramid stay as they were. Backbone, neck and the RPN's shared convolution are quantised; the
backbone's first one is not: it reads three channels, and its errors would be everyone's.

Letters: B images, C channels read, O written, H, W of the map.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from boxdet.errors import ConfigError
from boxdet.models.folding import fuse_conv_bn
from boxdet.models.layers import InferenceConv2d

_PARTS = ('backbone', 'neck', 'rpn_head.rpn_conv')
_LEAST_CHANNELS = 4           # of an input; below, there is nothing to gain
_NUMBERS_AT_ONCE = 1 << 18    # that are rounded while they lie in the processor's cache


class QuantizedConv2d(nn.Module):
    """A convolution of float32 maps that multiplies in eight bits.

    Args:
        conv: the convolution in float32.
        low: of its input, where the range begins; values beyond the range are clipped.
        high: where it ends.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, low: float, high: float):
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)  # 0, which pads, is a value of its own
        self.input_scale = max(high - low, 1e-8) / 255
        self.zero_point = round(-low / self.input_scale)
        weight = conv.weight.detach().float()
        scale = weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-8) / 127
        self.register_buffer('weight', (weight / scale[:, None, None, None]).round().to(torch.int8))
        self.register_buffer('scale', scale)
        self.register_buffer('bias', None if conv.bias is None else conv.bias.detach().float())
        self._shape = [list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups]
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W'), both float32."""
        if self._packed is None:  # in the processor's own layout, which no file holds
            self._packed = torch.ops.onednn.qconv_prepack(self.weight, self.scale, self.input_scale, self.zero_point,
                                                          *self._shape, None)
        zeros = torch.zeros_like(self.scale, dtype=torch.long)
        return torch.ops.onednn.qconv2d_pointwise(
            self._rounded(x), self.input_scale, self.zero_point, self._packed, self.scale, zeros, self.bias,
            *self._shape, 1.0, 0, torch.float32, 'none', [], '')

    def _rounded(self, x: Tensor) -> Tensor:
        """``x`` as uint8, in channels-last memory."""
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, dtype=torch.uint8)
        # Both are views of one row, in the order in which they lie in memory.
        for source, target in zip(*(m.permute(0, 2, 3, 1).view(-1).split(_NUMBERS_AT_ONCE) for m in (x, out))):
            target.copy_((source * (1 / self.input_scale)).add_(self.zero_point + 0.5).clamp_(0, 255))
        return out


def fast_in_int8(device: torch.device | str) -> bool:
    """Whether ``device`` is a processor with instructions for products of eight bits (VNNI, AMX)."""
    known = getattr(torch.cpu, 'get_capabilities', dict[str, bool])()
    return torch.device(device).type == 'cpu' and any(
        known.get(name) for name in ('avx512_vnni', 'avx_vnni', 'amx_int8'))


@torch.no_grad()
def quantize(model: nn.Module, runs: Iterable[Callable[[], object]]) -> nn.Module:
    """Replace the convolutions of backbone, neck and RPN by ``QuantizedConv2d``; the model is changed and returned.

    The range of an input is the mean, over the images, of its least and of its greatest value.

    Args:
        model: a detector in eval mode, in float32, on the CPU.
        runs: detects on one image each.

    Raises:
        ConfigError: no image, or a model without such convolutions.
    """
    fuse_conv_bn(model)
    convs = {name: module for name, module in model.named_modules()
             if type(module) in (nn.Conv2d, InferenceConv2d) and module.in_channels >= _LEAST_CHANNELS
             and any(name == part or name.startswith(f'{part}.') for part in _PARTS)}
    if not convs:
        raise ConfigError("precision='int8': this model has no plain convolutions in its backbone, neck or RPN")
    ranges = [_ranges(convs, run) for run in runs]
    if not ranges:
        raise ConfigError("precision='int8' needs images to find the ranges of activations on: "
                          "init_detector(..., calibration='photos/')")
    for name, conv in convs.items():
        of_images = [found[name] for found in ranges if name in found]
        if of_images:  # else the model never calls it
            parent, _, own = name.rpartition('.')
            setattr(model.get_submodule(parent), own,
                    QuantizedConv2d(conv, *(sum(ends) / len(ends) for ends in zip(*of_images))))
    return model


def _ranges(convs: Mapping[str, nn.Conv2d], run: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """The least and the greatest value that each convolution reads during ``run``."""
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = (end.item() for end in inputs[0].aminmax())
        before = found.get(name, (low, high))  # of another level of the pyramid
        found[name] = min(low, before[0]), max(high, before[1])

    handles = [conv.register_forward_pre_hook(partial(note, name)) for name, conv in convs.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found
