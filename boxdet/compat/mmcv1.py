"""The parts of mmcv 1.x that scripts and plug-ins use and mmcv 2 moved to mmengine, in 1.x's form."""
from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import nn
from torch.utils.data.dataloader import default_collate

from boxdet.checkpoints import io
from boxdet.checkpoints.loading import load_weights
from boxdet.engine.config import Config as _Config
from boxdet.engine.config import load_config
from boxdet.engine.distributed import get_dist_info, unwrap
from boxdet.errors import ConfigError

__all__ = ['BaseModule', 'ModuleList', 'Sequential', 'get_dist_info']


class Config(_Config):
    """``mmcv.Config``: of a dict, or ``fromfile`` of a file."""

    @staticmethod
    def fromfile(  # type: ignore[override]  # 1.x's order of arguments
            filename: str | os.PathLike, use_predefined_variables: bool = True,
            import_custom_modules: bool = True) -> _Config:
        """Read a config file."""
        return load_config(str(filename), import_custom_modules=import_custom_modules)

    @staticmethod
    def fromstring(cfg_str: str, file_format: str = '.py') -> _Config:
        """Read a config from a text."""
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, f'config{file_format}')
            with open(path, 'w', encoding='utf-8') as file:
                file.write(cfg_str)
            return load_config(path)


# ---------------------------------------------------------------------------------------------- parallel


class DataContainer:
    """A value with a note on how a batch of such values is made: stacked, padded, or left on the CPU."""

    def __init__(self, data: Any, stack: bool = False, padding_value: float = 0, cpu_only: bool = False,
                 pad_dims: int | None = 2):
        self._data, self._stack, self._padding_value = data, stack, padding_value
        self._cpu_only, self._pad_dims = cpu_only, pad_dims

    @property
    def data(self) -> Any:
        """The value."""
        return self._data

    @property
    def datatype(self) -> Any:
        """Type of the value."""
        return self._data.type() if isinstance(self._data, torch.Tensor) else type(self._data)

    @property
    def stack(self) -> bool:
        """Whether a batch is one tensor."""
        return self._stack

    @property
    def padding_value(self) -> float:
        """What fills smaller tensors of a batch."""
        return self._padding_value

    @property
    def cpu_only(self) -> bool:
        """Whether it stays on the CPU."""
        return self._cpu_only

    @property
    def pad_dims(self) -> int | None:
        """How many of the last dimensions are padded."""
        return self._pad_dims

    def size(self, *args: Any) -> Any:
        """Of the tensor."""
        return self._data.size(*args)

    def dim(self) -> int:
        """Of the tensor."""
        return self._data.dim()

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f'DataContainer({self._data!r})'


def collate(batch: Sequence[Any], samples_per_gpu: int = 1) -> Any:
    """1.x's batch of samples: DataContainers become one of lists, one for each GPU."""
    first = batch[0]
    if isinstance(first, DataContainer):
        groups = [[one.data for one in batch[i:i + samples_per_gpu]] for i in range(0, len(batch), samples_per_gpu)]
        if first.cpu_only or not first.stack:
            return DataContainer(groups, first.stack, first.padding_value, cpu_only=first.cpu_only)
        return DataContainer([torch.stack(_padded(group, first)) for group in groups], True, first.padding_value)
    if isinstance(first, (str, bytes)):
        return list(batch)
    if isinstance(first, Mapping):
        return {key: collate([one[key] for one in batch], samples_per_gpu) for key in first}
    if isinstance(first, Sequence):
        return [collate(values, samples_per_gpu) for values in zip(*batch)]
    return default_collate(list(batch))


def _padded(tensors: Sequence[torch.Tensor], like: DataContainer) -> list[torch.Tensor]:
    dims = like.pad_dims or 0
    most = [max(t.shape[-d] for t in tensors) for d in range(1, dims + 1)]
    return [nn.functional.pad(t, [v for d in range(1, dims + 1) for v in (0, most[d - 1] - t.shape[-d])],
                              value=like.padding_value) for t in tensors]


def scatter(inputs: Any, target_gpus: Sequence[Any], dim: int = 0) -> list[Any]:
    """What each device is given: tensors moved there, DataContainers opened."""
    device = torch.device(target_gpus[0]) if not isinstance(target_gpus[0], int) else torch.device(
        'cpu' if target_gpus[0] < 0 or not torch.cuda.is_available() else f'cuda:{target_gpus[0]}')
    return [_on(inputs, device)]


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, DataContainer):
        return value.data[0] if value.cpu_only else _on(value.data[0], device)
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _on(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on(one, device) for one in value)
    return value


class MMDataParallel(nn.Module):
    """One model on one device, whose inputs are scattered there."""

    def __init__(self, module: nn.Module, device_ids: Sequence[int] | None = None, dim: int = 0, **options: Any):
        super().__init__()
        self.module, self.device_ids, self.dim = module, list(device_ids or [-1]), dim

    def _scattered(self, value: Any) -> Any:
        return scatter(value, [next(self.module.parameters()).device])[0]

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The model's."""
        return self.module(*self._scattered(inputs), **self._scattered(kwargs))

    def train_step(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's."""
        return self.module.train_step(self._scattered(data), *args, **kwargs)

    val_step = train_step


class MMDistributedDataParallel(nn.parallel.DistributedDataParallel):
    """torch's, whose inputs are scattered to the device."""

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The model's."""
        device = next(self.module.parameters()).device
        return super().forward(*scatter(inputs, [device])[0], **scatter(kwargs, [device])[0])


def is_module_wrapper(module: nn.Module) -> bool:
    """Whether it wraps a model for several devices."""
    return isinstance(module, (MMDataParallel, nn.DataParallel, nn.parallel.DistributedDataParallel))


def bare(model: nn.Module) -> nn.Module:
    """The model without what wraps it for devices."""
    return model.module if is_module_wrapper(model) else unwrap(model)


# ---------------------------------------------------------------------------------------------- runner


def load_checkpoint(model: nn.Module, filename: str, map_location: Any = None, strict: bool = False, logger: Any = None,
                    revise_keys: Sequence[tuple[str, str]] = ((r'^module\.', ''),)) -> dict[str, Any]:
    """Load a file or an address into the model; its content is returned.

    ``revise_keys`` are pairs (pattern, replacement) for the names of the weights, one after the other.
    """
    content = io.load_checkpoint(filename, map_location or 'cpu')
    state = content['state_dict']
    for pattern, replacement in revise_keys:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    report = load_weights(bare(model), {**content, 'state_dict': state}, str(filename))
    if strict and (report.missing or report.unexpected or report.mismatched):
        raise RuntimeError(f'{filename} does not fit: {report}')
    return content


def load_state_dict(module: nn.Module, state_dict: Mapping[str, torch.Tensor], strict: bool = False,
                    logger: Any = None) -> None:
    """torch's, not strict by default."""
    module.load_state_dict(state_dict, strict=strict)


def save_checkpoint(model: nn.Module, filename: str, optimizer: Any = None, meta: Mapping | None = None,
                    file_client_args: Any = None) -> None:
    """Write ``state_dict``, ``meta`` and the optimizer's state, whole or not at all."""
    module = bare(model)
    note = dict(meta or {})
    if getattr(module, 'CLASSES', None) is not None:
        note.setdefault('CLASSES', tuple(module.CLASSES))
    content = dict(meta=note, state_dict={key: value.cpu() for key, value in module.state_dict().items()})
    if optimizer is not None:
        content['optimizer'] = optimizer.state_dict() if hasattr(optimizer, 'state_dict') else {
            name: one.state_dict() for name, one in optimizer.items()}
    os.makedirs(os.path.dirname(os.path.abspath(filename)), exist_ok=True)
    io.save_checkpoint(content, filename)


def weights_to_cpu(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU."""
    return {key: value.cpu() for key, value in state_dict.items()}


def _precision(to: torch.dtype, apply_to: Sequence[str] | None, back: torch.dtype | None,
               kinds: tuple[type, ...] = (nn.Module,)) -> Callable:
    """A method whose tensors are turned into ``to`` where its object is in mixed precision (``fp16_enabled``)."""
    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(self, kinds):
                raise TypeError(f'{function.__name__} of a {type(self).__name__}: auto_fp16 and force_fp32 decorate '
                                f"methods of {', '.join(kind.__name__ for kind in kinds)}")
            if not getattr(self, 'fp16_enabled', False):
                return function(self, *args, **kwargs)
            bound = signature.bind(self, *args, **kwargs)
            for name, value in bound.arguments.items():
                if name != 'self' and (apply_to is None or name in apply_to):
                    bound.arguments[name] = cast_tensor_type(value, None, to)
            found = function(*bound.args, **bound.kwargs)
            return found if back is None else cast_tensor_type(found, to, back)
        return method
    return decorate


def auto_fp16(apply_to: Sequence[str] | None = None, out_fp32: bool = False,
              supported_types: tuple[type, ...] = (nn.Module,)) -> Callable:
    """Decorator: the arguments in half precision where ``self.fp16_enabled``."""
    return _precision(torch.half, apply_to, torch.float32 if out_fp32 else None, supported_types)


def force_fp32(apply_to: Sequence[str] | None = None, out_fp16: bool = False) -> Callable:
    """Decorator: the arguments in single precision where ``self.fp16_enabled``."""
    return _precision(torch.float32, apply_to, torch.half if out_fp16 else None)


def cast_tensor_type(inputs: Any, src_type: Any, dst_type: Any) -> Any:
    """Floating-point tensors, in containers too, as ``dst_type``."""
    if isinstance(inputs, torch.Tensor):
        fits = inputs.is_floating_point() if not isinstance(src_type, torch.dtype) else inputs.dtype == src_type
        return inputs.to(dst_type) if fits else inputs
    kind: Any = type(inputs)
    if isinstance(inputs, Mapping):
        return kind({key: cast_tensor_type(value, src_type, dst_type) for key, value in inputs.items()})
    if isinstance(inputs, (list, tuple)):
        return kind(cast_tensor_type(value, src_type, dst_type) for value in inputs)
    return inputs


def wrap_fp16_model(model: nn.Module) -> None:
    """Mixed precision is a setting of the config here (``fp16``): refused, as a model that is not in it would be."""
    raise ConfigError("wrap_fp16_model: boxdet reads fp16 = dict(loss_scale=...) of the config when it trains, and "
                      "init_detector(..., precision='fp16') when it detects")


# ---------------------------------------------------------------------------------------------- utils, cnn


def jit(func: Callable | None = None, *args: Any, **kwargs: Any) -> Callable:
    """Decorator without an effect, as mmcv's is without Parrots."""
    return func if callable(func) else lambda function: function


def build_from_cfg(cfg: Mapping[str, Any], registry: Any, default_args: Mapping[str, Any] | None = None) -> Any:
    """Build the object that ``cfg`` describes."""
    return registry.build(cfg, **(default_args or {}))


def assert_params_all_zeros(module: nn.Module) -> bool:
    """Whether weight and bias are all zero."""
    parts = [getattr(module, name, None) for name in ('weight', 'bias')]
    return all(part is None or bool((part == 0).all()) for part in parts)


def is_norm(layer: nn.Module, exclude: Any = None) -> bool:
    """Whether it is a norm."""
    if exclude is not None and isinstance(layer, exclude):
        return False
    return isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm,
                              nn.LayerNorm))


def nms(boxes: Any, scores: Any, iou_threshold: float, offset: int = 0, score_threshold: float = 0,
        max_num: int = -1) -> tuple[Any, Any]:
    """Rows (n, 5) that are kept, and their places; tensors or arrays as they come."""
    from boxdet.geometry.nms import batched_nms
    arrays = not isinstance(boxes, torch.Tensor)
    rows, values = (torch.as_tensor(v) for v in (boxes, scores))
    chosen = (values > score_threshold).nonzero().squeeze(1) if score_threshold > 0 else torch.arange(len(values))
    cfg = dict(type='nms', iou_threshold=iou_threshold)
    dets, keep = batched_nms(rows[chosen], values[chosen], torch.zeros_like(chosen), cfg)
    dets, keep = (dets[:max_num], keep[:max_num]) if max_num > 0 else (dets, keep)
    keep = chosen.to(keep.device)[keep]
    return (dets.numpy(), keep.numpy()) if arrays else (dets, keep)


def soft_nms(boxes: Any, scores: Any, iou_threshold: float = 0.3, sigma: float = 0.5, min_score: float = 1e-3,
             method: str = 'linear', offset: int = 0) -> tuple[Any, Any]:
    """The same with decayed scores."""
    from boxdet.geometry.nms import batched_nms
    arrays = not isinstance(boxes, torch.Tensor)
    rows, values = (torch.as_tensor(v) for v in (boxes, scores))
    cfg = dict(type='soft_nms', iou_threshold=iou_threshold, sigma=sigma, min_score=min_score, method=method)
    dets, keep = batched_nms(rows, values, torch.zeros(len(rows), dtype=torch.long), cfg)
    return (dets.numpy(), keep.numpy()) if arrays else (dets, keep)
