"""The same function with less work, for inference: batch norms inside their convolutions, memory layout, half precision.

A norm belongs to a convolution when it is registered right after it in the same module, as in the ResNets and ConvModules
here.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxdet.errors import ConfigError, nearest
from boxdet.models.winograd import WinogradConv2d

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
# Scores and deltas: half precision makes equal scores of different ones, and moves boxes by pixels.
_OUTPUT_LAYERS = ('rpn_cls', 'rpn_reg', 'fc_cls', 'fc_reg')


def ready_for_inference(model: nn.Module, precision: str = 'fp32') -> nn.Module:
    """Fold batch norms, lay weights out channels last and cast them; the model is changed and returned.

    With 'fp32' the parameters stay what they were (the state dict too, and training goes on as before): the norms are
    multiplied into the weights at each call. With 'bf16' or 'fp16' the weights hold the norms and are cast; the layers that
    put out scores and box deltas stay in float32. Large 3x3 convolutions go Winograd's way (``models.winograd``).

    Raises:
        ConfigError: another precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}' is none of {', '.join(PRECISIONS)}{nearest(precision, PRECISIONS)}")
    if precision == 'fp32':
        for _, conv, _, norm in list(_pairs(model)):
            _lend(norm, conv)
    else:
        fuse_conv_bn(model).to(PRECISIONS[precision])
        for name, module in model.named_modules():
            if name.rpartition('.')[2] in _OUTPUT_LAYERS:
                module.float().register_forward_pre_hook(_as_float)
    for module in model.modules():
        if WinogradConv2d.suits(module):
            module.__class__ = WinogradConv2d
    return model.to(memory_format=torch.channels_last)


def _as_float(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)


@torch.no_grad()
def fuse_conv_bn(model: nn.Module) -> nn.Module:
    """Fold each batch norm that directly follows a convolution into its weights: the same function, less work.

    Only for inference: the model is changed and no longer matches checkpoints.
    """
    for parent, conv, name, norm in list(_pairs(model)):
        _take_back(norm, conv)
        place = next(key for key, child in parent.named_children() if child is conv)
        setattr(parent, place, nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval()))
        setattr(parent, name, nn.Identity())
    return model


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Conv2d, str, nn.Module]]:
    """(parent, convolution, name of the norm, norm); of plain convolutions only: others do more with their weights."""
    for parent in model.modules():
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and type(before) in (nn.Conv2d, _NormedConv2d) \
                    and before.out_channels == child.num_features and child.track_running_stats:
                yield parent, before, name, child
            before = child


# --- norms that their convolutions carry out ---

class _NormedConv2d(nn.Conv2d):
    """A convolution that carries out its norm, too, while that is in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.__dict__['norm_lent'][0]
        if norm.training:
            return super().forward(x)
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        shift = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
        weight = self.weight * scale[:, None, None, None]
        if self.padding_mode != 'zeros':
            return self._conv_forward(x, weight, shift)
        return F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)


class _LentNorm:
    """What a norm does whose convolution carries it out: nothing, while in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


class _LentBatchNorm2d(_LentNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` under ``_LentNorm``."""


def _lend(norm: nn.Module, conv: nn.Conv2d) -> None:
    """Let ``conv`` carry out ``norm``. Parameters, names and modes stay as they are."""
    if type(norm) is not nn.BatchNorm2d:
        return
    conv.__class__, norm.__class__ = _NormedConv2d, _LentBatchNorm2d
    conv.__dict__['norm_lent'] = (norm,)  # in a tuple: not a child of the convolution


def _take_back(norm: nn.Module, conv: nn.Conv2d) -> None:
    """The opposite of ``_lend``."""
    if type(conv) is _NormedConv2d:
        conv.__class__, norm.__class__ = nn.Conv2d, nn.BatchNorm2d
        del conv.__dict__['norm_lent']
