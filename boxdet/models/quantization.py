"""Products of eight bits for the CPU, made of a trained detector without training it again.

Weights are int8 with a scale for each output channel, activations uint8 with one scale for each layer, found on images
of the user's (post-training static quantisation; Krishnamoorthi 2018, "Quantizing deep convolutional networks for
efficient inference", section 3). Backbone, neck, the RPN's shared convolution and the hidden layers of the heads are
quantised; what puts out scores, deltas, masks and heatmaps is not, nor is the backbone's first convolution, which reads
three channels and whose errors would be everyone's. A stage of plain residual blocks stays in eight bits from its first
convolution to its last sum (``QuantizedStage``); every other layer reads and gives float32.

Letters: B images, C channels read, O written, H, W of the map; N rows of a linear layer.
"""
from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from boxdet.errors import ConfigError
from boxdet.models.backbones.resnet import BasicBlock, Bottleneck
from boxdet.models.folding import fuse_conv_bn
from boxdet.models.layers import FastConv2d

_PARTS = re.compile(r'(backbone|neck|rpn_head\.rpn_conv)(\.|$)'
                    r'|roi_head\.(bbox|mask|keypoint)_head(\.\d+)?\.(shared_|cls_|reg_)?(convs|fcs)\.')
_CHAINS = {BasicBlock: ('conv1', 'conv2'), Bottleneck: ('conv1', 'conv2', 'conv3')}  # with a ReLU after each
_LEAST_CHANNELS = 4           # of an input; below, there is nothing to gain
_NUMBERS_AT_ONCE = 1 << 18    # that are rounded while they lie in the processor's cache
_SUM: tuple[str, float, str, list[float], str] = ('sum', 1.0, 'none', [], '')  # oneDNN's words for it


class Steps(NamedTuple):
    """The 256 values of an activation in eight bits: ``(i - zero) * size``.

    Attributes:
        size: from one value to the next.
        zero: the i that stands for 0.
    """

    size: float
    zero: int

    @classmethod
    def between(cls, low: float, high: float) -> Steps:
        """The steps from ``low`` to ``high``, both moved to hold 0, which pads and must be a value of its own."""
        low, high = min(low, 0.0), max(high, 0.0)
        size = max(high - low, 1e-8) / 255
        return cls(size, round(-low / size))

    def rounded(self, x: Tensor) -> Tensor:
        """``x``, float32, as uint8: maps in channels-last memory. Values beyond the range are clipped."""
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
        out = torch.empty_like(x, dtype=torch.uint8)
        half = torch.tensor(self.zero + 0.5)  # conversion cuts off what is behind the point
        # Both are views of one row, in the order in which they lie in memory.
        for source, target in zip(*(_row(m).split(_NUMBERS_AT_ONCE) for m in (x, out))):
            target.copy_(torch.add(half, source, alpha=1 / self.size).clamp_(0, 255))
        return out

    def restored(self, x: Tensor) -> Tensor:
        """``x``, uint8, as float32."""
        return x.float().sub_(self.zero).mul_(self.size) if self.zero else x * self.size


def _row(x: Tensor) -> Tensor:
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).view(-1)


class _Quantized(nn.Module, ABC):
    """What layers in eight bits share.

    Args:
        layer: the layer in float32.
        reads: the steps of its input.
    """

    weight: Tensor
    scale: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, reads: Steps):
        super().__init__()
        self.reads = reads
        weight = layer.weight.detach().float()
        scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-8) / 127
        self.register_buffer('weight', (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8))
        self.register_buffer('scale', scale)
        self.register_buffer('zeros', torch.zeros_like(scale, dtype=torch.long), persistent=False)
        self.register_buffer('bias', None if layer.bias is None else layer.bias.detach().float())
        self._packed: Tensor | None = None  # the weight in the processor's own layout, which no file holds

    def forward(self, x: Tensor) -> Tensor:
        """The layer from float32 to float32, in the shapes of the one it was made of."""
        return self.multiply(self.reads.rounded(x))

    @abstractmethod
    def multiply(self, x: Tensor, gives: Steps | None = None, added: tuple[Tensor, Steps] | None = None) -> Tensor:
        """The layer on uint8.

        Args:
            x: of the steps ``reads``.
            gives: the steps of the result, which is uint8; None for float32. Steps whose zero is 0 are a ReLU, too:
                what is below it is clipped.
            added: uint8 of the result's shape and its steps, added to the result, which takes its memory.
        """

    def _rows(self, x: Tensor, gives: Steps | None, added: tuple[Tensor, Steps] | None) -> Tensor:
        """``multiply`` of rows (N, C) by a weight (O, C)."""
        op = torch.ops.onednn
        if self._packed is None:
            self._packed = op.qlinear_prepack(self.weight.flatten(1), None)
        mine = (x, *self.reads, self._packed, self.scale, self.zeros)
        if added is None:
            return op.qlinear_pointwise(*mine, self.bias, *_result(gives), 'none', [], '')
        return op.qlinear_pointwise.binary(*mine, added[0], self.bias, *_result(gives), *added[1], *_SUM)


class QuantizedLinear(_Quantized):
    """A linear layer that multiplies in eight bits."""

    def multiply(self, x: Tensor, gives: Steps | None = None, added: tuple[Tensor, Steps] | None = None) -> Tensor:
        """(N, C) to (N, O); see the class above."""
        return self._rows(x, gives, added)


class QuantizedConv2d(_Quantized):
    """A convolution that multiplies in eight bits."""

    def __init__(self, layer: nn.Conv2d, reads: Steps):
        super().__init__(layer, reads)
        self._stride = list(layer.stride)
        self._shape = self._stride, list(layer.padding), list(layer.dilation), layer.groups
        # As a linear layer: its layout of the weight is the same for maps of every size.
        self._pointwise = layer.kernel_size == (1, 1) and layer.padding == (0, 0) and layer.groups == 1

    def multiply(self, x: Tensor, gives: Steps | None = None, added: tuple[Tensor, Steps] | None = None) -> Tensor:
        """(B, C, H, W) to (B, O, H', W'), both in channels-last memory; see the class above."""
        if self._pointwise:
            down, right = self._stride
            x = x[:, :, ::down, ::right].permute(0, 2, 3, 1)
            rows = self._rows(x.flatten(0, 2), gives, added and (added[0].permute(0, 2, 3, 1).flatten(0, 2), added[1]))
            return rows.unflatten(0, x.shape[:3]).permute(0, 3, 1, 2)
        op = torch.ops.onednn
        if self._packed is None:  # as the processor wants it for maps of this size, and of most others
            self._packed = op.qconv_prepack(self.weight, self.scale, *self.reads, *self._shape, list(x.shape))
        mine = (x, *self.reads, self._packed, self.scale, self.zeros)
        if added is None:
            return op.qconv2d_pointwise(*mine, self.bias, *self._shape, *_result(gives), 'none', [], '')
        return op.qconv2d_pointwise.binary(*mine, added[0], self.bias, *self._shape, *_result(gives), *added[1], *_SUM)


def _result(gives: Steps | None) -> tuple[float, int, torch.dtype]:
    return (1.0, 0, torch.float32) if gives is None else (*gives, torch.uint8)


class _QuantizedBlock(nn.Module):
    """A residual block (He et al. 2016) between maps of uint8.

    Args:
        convs: its convolutions by name, the last of which is added to the shortcut.
        downsample: the shortcut's convolution; None: the block's input is the shortcut.
        shortcut: the steps of the shortcut.
        gives: the steps of the output.
    """

    def __init__(self, convs: Mapping[str, QuantizedConv2d], downsample: QuantizedConv2d | None, shortcut: Steps,
                 gives: Steps):
        super().__init__()
        self.chain = list(convs.values())
        for name, conv in convs.items():
            self.add_module(name, conv)
        self.downsample, self._shortcut, self._gives = downsample, shortcut, gives

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) uint8 to (B, O, H', W') uint8; ``x`` is overwritten."""
        shortcut = x if self.downsample is None else self.downsample.multiply(x, self._shortcut)
        *convs, last = self.chain
        for conv, following in zip(convs, self.chain[1:]):
            x = conv.multiply(x, following.reads)
        return last.multiply(x, self._gives, (shortcut, self._shortcut))


class QuantizedStage(nn.Sequential):
    """A stage of residual blocks that stays in eight bits from its first convolution to its last sum.

    Args:
        blocks: one after another; each reads the steps that the one before gives.
        reads: the steps of the first one's input.
        gives: those of the last one's output.
    """

    def __init__(self, blocks: Sequence[_QuantizedBlock], reads: Steps, gives: Steps):
        super().__init__(*blocks)
        self._reads, self._gives = reads, gives

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W'), both float32."""
        return self._gives.restored(super().forward(self._reads.rounded(x)))


def fast_in_int8(device: torch.device | str) -> bool:
    """Whether ``device`` is a processor with instructions for products of eight bits (VNNI, AMX)."""
    known = getattr(torch.cpu, 'get_capabilities', dict[str, bool])()
    return torch.device(device).type == 'cpu' and any(
        known.get(name) for name in ('avx512_vnni', 'avx_vnni', 'amx_int8'))


@torch.no_grad()
def quantize(model: nn.Module, runs: Iterable[Callable[[], object]]) -> nn.Module:
    """Replace layers and stages by those that multiply in eight bits; the model is changed and returned.

    The range of an activation is the mean, over the images, of its least and of its greatest value.

    Args:
        model: a detector in eval mode, in float32, on the CPU.
        runs: detects on one image each.

    Raises:
        ConfigError: no image, or a model without such layers.
    """
    fuse_conv_bn(model)
    own = {name: module for name, module in model.named_modules() if _PARTS.match(name)}
    layers = {name: module for name, module in own.items() if _is_plain(module)}
    stages = {name: module for name, module in own.items() if type(module) is nn.Sequential and len(module)
              and all(_is_plain_block(block) for block in module)}
    if not layers:
        raise ConfigError("precision='int8': this model has no plain convolutions in its backbone, neck or RPN")
    sums = [f'{stage}.{name}' for stage, blocks in stages.items() for name, module in blocks.named_modules()
            if type(module) in _CHAINS or name.endswith('.downsample')]
    ranges = [_ranges(layers, {name: own[name] for name in sums}, run) for run in runs]
    if not ranges:
        raise ConfigError("precision='int8' needs images to find the ranges of activations on: "
                          "init_detector(..., calibration='photos/'), tools/test.py --calibration photos/")
    steps = _steps(ranges)
    for name, layer in layers.items():
        if name in steps:  # else the model never calls it
            kind = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
            _put(model, name, kind(layer, steps[name]))
    for name, blocks in stages.items():
        if f'{name}.0.conv1' in steps:
            _put(model, name, _quantized_stage(blocks, {key[len(name) + 1:]: value for key, value in steps.items()
                                                        if key.startswith(f'{name}.')}))
    return model


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a layer as torch has it that is worth eight bits."""
    return type(module) is nn.Linear or (type(module) in (nn.Conv2d, FastConv2d)
                                         and module.in_channels >= _LEAST_CHANNELS)


def _is_plain_block(block: nn.Module) -> bool:
    """Whether it is a residual block of convolutions and ReLUs alone: no plugin, no pooling in the shortcut."""
    convs = (*_CHAINS.get(type(block), ()), 'downsample.0')
    return type(block) in _CHAINS and all(
        name in convs if _is_plain(module) else type(module) in (nn.Sequential, nn.Identity, nn.ReLU)
        for name, module in block.named_modules() if name)


def _quantized_stage(blocks: nn.Sequential, steps: Mapping[str, Steps]) -> QuantizedStage:
    """The stage of blocks whose convolutions are quantised already; ``steps`` by names within it."""
    quantized = []
    for i, block in enumerate(blocks):
        convs = {name: getattr(block, name) for name in _CHAINS[type(block)]}
        shortcut = f'{i}.conv1' if block.downsample is None else f'{i}.downsample{_OUTPUT}'
        quantized.append(_QuantizedBlock(convs, block.downsample and block.downsample[0], steps[shortcut],
                                         steps[f'{i}{_OUTPUT}']))
    return QuantizedStage(quantized, steps['0.conv1'], steps[f'{len(blocks) - 1}{_OUTPUT}'])


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition('.')
    setattr(model.get_submodule(parent), own, module)


_OUTPUT = ' output'  # behind the name of a module whose output is meant, not its input


def _ranges(inputs: Mapping[str, nn.Module], outputs: Mapping[str, nn.Module],
            run: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """The least and the greatest value that modules read, or give, during ``run``."""
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, values: Tensor) -> None:
        if values.numel():  # a head without boxes reads nothing
            low, high = (end.item() for end in values.aminmax())
            before = found.get(name, (low, high))  # of another level of the pyramid
            found[name] = min(low, before[0]), max(high, before[1])

    def note_input(name: str, _: nn.Module, read: tuple[Tensor, ...]) -> None:
        note(name, read[0])

    def note_output(name: str, _: nn.Module, read: tuple[Tensor, ...], given: Tensor) -> None:
        note(name + _OUTPUT, given)

    handles = [*(module.register_forward_pre_hook(partial(note_input, name)) for name, module in inputs.items()),
               *(module.register_forward_hook(partial(note_output, name)) for name, module in outputs.items())]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _steps(ranges: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, Steps]:
    """The steps of each name, from the mean of its ranges on the images where it has one."""
    ends: dict[str, list[tuple[float, float]]] = {}
    for found in ranges:
        for name, low_high in found.items():
            ends.setdefault(name, []).append(low_high)
    return {name: Steps.between(*(sum(end) / len(end) for end in zip(*of_images))) for name, of_images in ends.items()}
