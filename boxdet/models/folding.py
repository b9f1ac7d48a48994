"""The same function with less work: folded batch norms, half precision, memory format, fast convolutions.

``ready_for_inference`` takes four steps, each of which is a function of its own: ``fold_batch_norms``,
``cast_weights``, ``use_fast_convolutions`` and ``lay_out``. Convolutions and norms are replaced by modules that share
their parameters, buffers and hooks, under the same names: the state dict stays as it was, other weights may be loaded
afterwards, and training goes on.

A norm belongs to a convolution when it is registered right after it in the same module, as in the ResNets and
ConvModules here.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxdet.errors import ConfigError, nearest
from boxdet.models import winograd
from boxdet.models.layers import CarriedBatchNorm2d, FastConv2d

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
# Scores and deltas: half precision makes equal scores of different ones, and moves boxes by pixels.
_OUTPUT_LAYERS = ('rpn_cls', 'rpn_reg', 'fc_cls', 'fc_reg')


def ready_for_inference(model: nn.Module, precision: str = 'fp32',
                        memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    """Fold batch norms, cast weights, choose convolutions and lay the weights out; the model is changed and returned.

    With 'fp32' the parameters stay what they were: the norms are multiplied into the weights at each call. With 'bf16'
    or 'fp16' the weights hold the norms and are cast; the layers that put out scores and box deltas stay in float32.

    Args:
        model: a detector or a part of one, in eval mode.
        precision: 'fp32', 'bf16' or 'fp16'.
        memory_format: of the weights of the convolutions.

    Raises:
        ConfigError: another precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}' is none of {', '.join(PRECISIONS)}{nearest(precision, PRECISIONS)}")
    if precision == 'fp32':
        fold_batch_norms(model)
    else:
        cast_weights(fuse_conv_bn(model), PRECISIONS[precision])
    return lay_out(use_fast_convolutions(model), memory_format)


_Module = TypeVar('_Module', bound=nn.Module)


# --- the four steps ---

def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Let each batch norm be carried out by the convolution before it while it is in eval mode, in training too.

    The same numbers up to rounding, and the same gradients; the output of the convolution, which a norm would keep for
    its gradient, is never made. The model is changed and returned.
    """
    for parent, name, conv, norm_name, norm in list(_pairs(model)):
        if type(norm) is nn.BatchNorm2d:
            folded, carried = _with_state_of(conv, FastConv2d), _with_state_of(norm, CarriedBatchNorm2d)
            folded.norm_after = (carried,)
            setattr(parent, name, folded)
            setattr(parent, norm_name, carried)
    return model


def cast_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast weights and buffers; the layers of scores and box deltas stay in float32, and cast what they read."""
    model.to(dtype)
    for name, module in model.named_modules():
        if name.rpartition('.')[2] in _OUTPUT_LAYERS and dtype != torch.float32:
            module.float().register_forward_pre_hook(_as_float)
    return model


def use_fast_convolutions(model: nn.Module) -> nn.Module:
    """Let 3x3 convolutions go Winograd's way (``models.winograd``) where it pays; the model is changed."""
    replaced: dict[nn.Module, FastConv2d] = {}  # a convolution that several modules share stays one
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) not in (nn.Conv2d, FastConv2d) or not winograd.suits(cast(nn.Conv2d, conv)):
                continue
            fast = conv if isinstance(conv, FastConv2d) else replaced.get(conv) or _with_state_of(conv, FastConv2d)
            fast.fast = True
            replaced[conv] = fast
            setattr(parent, name, fast)
    return model


def lay_out(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Store the weights of the convolutions in ``memory_format``; a detector then brings images into it, too."""
    model.memory_format = memory_format  # type: ignore[assignment]  # torch types it as Tensor | Module
    return model.to(memory_format=memory_format)


@torch.no_grad()
def fuse_conv_bn(model: nn.Module) -> nn.Module:
    """Multiply each batch norm that directly follows a convolution into its weights: the same function, less work.

    Only for inference: the model is changed and no longer matches checkpoints.
    """
    for parent, name, conv, norm_name, norm in list(_pairs(model)):
        plain = _with_state_of(conv, nn.Conv2d)
        for own in ('norm_after', 'fast'):
            plain.__dict__.pop(own, None)
        setattr(parent, name, nn.utils.fuse_conv_bn_eval(plain.eval(), norm.eval()))
        setattr(parent, norm_name, nn.Identity())
    return model


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv2d, str, _BatchNorm]]:
    """(parent, name, convolution, name of the norm, norm); plain convolutions only: others change their weights."""
    for parent in model.modules():
        if not getattr(parent, 'norm_follows_conv', True):
            continue
        before: nn.Module | None = None
        before_name = ''
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and before is not None \
                    and type(before) in (nn.Conv2d, FastConv2d) \
                    and before.out_channels == child.num_features and child.track_running_stats:
                yield parent, before_name, cast(nn.Conv2d, before), name, child
            before, before_name = child, name


def _with_state_of(module: nn.Module, cls: type[_Module]) -> _Module:
    """A ``cls`` with the parameters, buffers, hooks and attributes of ``module``, which the two share."""
    new = cls.__new__(cls)
    new.__dict__.update(module.__dict__)
    return new


def _as_float(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)
