"""mmdetection 2.x's ``optimizer``, ``optimizer_config`` and ``fp16`` as objects; ``lr_config`` is elsewhere."""
from __future__ import annotations

import contextlib
import fnmatch
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.optim import Optimizer

from boxdet.engine.environment import slow_in
from boxdet.errors import ConfigError, nearest
from boxdet.registry import OPTIMIZERS, check_keywords

logger = logging.getLogger('boxdet')


# --- optimizer ---

def _register_torch_optimizers() -> None:
    for name, cls in inspect.getmembers(torch.optim, inspect.isclass):
        if issubclass(cls, Optimizer) and cls is not Optimizer and name not in OPTIMIZERS.module_dict:
            OPTIMIZERS.register_module(name=name, module=cls)


_register_torch_optimizers()

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
CONSTRUCTORS = ('DefaultOptimizerConstructor', 'LearningRateDecayOptimizerConstructor')
LAYER_KEYS = ('decay_rate', 'decay_type', 'num_layers')  # paramwise_cfg of the second one
_PARAMWISE = ('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult',
              'dcn_offset_lr_mult', 'bypass_duplicate')


def build_optimizer(model: nn.Module, cfg: Mapping[str, Any], lr_scale: float = 1.) -> Optimizer:
    """Build 2.x's ``optimizer``: any of torch.optim's, with ``paramwise_cfg``.

    ``paramwise_cfg`` multiplies the rate and the decay of single parameters: ``custom_keys`` (a part of the
    parameter's name -> ``dict(lr_mult=, decay_mult=)``; the longest match wins), ``bias_lr_mult``, ``bias_decay_mult``,
    ``norm_decay_mult``, ``dwconv_decay_mult``, ``dcn_offset_lr_mult``; ``bypass_duplicate`` skips a parameter that
    appears twice.

    Args:
        model: its parameters are optimised.
        cfg: 2.x's ``optimizer`` section.
        lr_scale: multiplies ``lr`` (linear scaling rule).

    Raises:
        ConfigError: an unknown type or keyword.
    """
    options = dict(cfg)
    if 'type' not in options:
        raise ConfigError("optimizer needs a 'type', such as SGD or AdamW")
    cls = OPTIMIZERS.get(options.pop('type'))
    constructor = options.pop('constructor', 'DefaultOptimizerConstructor')
    if constructor not in CONSTRUCTORS:
        raise ConfigError(f"optimizer.constructor '{constructor}' is unknown{nearest(str(constructor), CONSTRUCTORS)}")
    paramwise = options.pop('paramwise_cfg', None)
    check_keywords(cls, options, 'optimizer')
    if 'lr' in options:
        options['lr'] = options['lr'] * lr_scale
    if _can_be_fused(cls, options, model):
        options['fused'] = True
    if constructor == 'LearningRateDecayOptimizerConstructor':
        return cls(_layer_groups(model, options, dict(paramwise or {})), **options)
    if not paramwise:
        return cls(model.parameters(), **options)
    return cls(_parameter_groups(model, options, dict(paramwise)), **options)


def _layer_groups(model: nn.Module, options: Mapping, paramwise: Mapping) -> list[dict]:
    """Groups whose rate falls from the head down to the stem; vectors, biases among them, have no weight decay.

    Layer-wise decay (Clark et al. 2020), for ConvNeXt (Liu et al. 2022, appendix A.2).

    Args:
        model: with a ``backbone`` that has ``downsample_layers`` and ``stages``.
        options: ``lr`` and ``weight_decay`` of the optimizer.
        paramwise: ``decay_rate``, ``decay_type`` ('layer_wise', 'stage_wise') and ``num_layers``.

    Raises:
        ConfigError: a key that is missing or unknown, or a backbone of another kind.
    """
    for key in LAYER_KEYS:
        if key not in paramwise and key != 'decay_type':
            raise ConfigError(f"optimizer.paramwise_cfg needs '{key}' for LearningRateDecayOptimizerConstructor")
    kind = paramwise.get('decay_type', 'layer_wise')
    if kind not in ('layer_wise', 'stage_wise'):
        raise ConfigError(f"optimizer.paramwise_cfg.decay_type is 'layer_wise' or 'stage_wise', not {kind!r}")
    if not all(hasattr(model.backbone, part) for part in ('downsample_layers', 'stages')):
        raise ConfigError('LearningRateDecayOptimizerConstructor knows the layers of ConvNeXt only, not of '
                          f'{type(model.backbone).__name__}; use paramwise_cfg.custom_keys')
    depth, rate = int(paramwise['num_layers']) + 2, float(paramwise['decay_rate'])
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.dim() > 1 and not name.endswith('.bias')
            layer = _layer_of(name, depth) if kind == 'layer_wise' else _stage_of(name, depth)
            groups.setdefault((layer, decayed), []).append(parameter)
    return [dict(params=parameters, lr=options['lr'] * rate ** (depth - layer - 1),
                 weight_decay=options.get('weight_decay', 0.0) if decayed else 0.0)
            for (layer, decayed), parameters in groups.items()]


def _layer_of(name: str, depth: int) -> int:
    """The layer, from 0, of a parameter of ConvNeXt; what stands behind the backbone is the last one."""
    last, parts = depth - 2, name.split('.')
    if name.startswith('backbone.downsample_layers'):
        return {0: 0, 1: 2, 2: 3}.get(int(parts[2]), last)
    if name.startswith('backbone.stages'):
        stage, block = int(parts[2]), int(parts[3])
        return {0: 1, 1: 2, 2: 3 + block // 3}.get(stage, last)
    return last + 1


def _stage_of(name: str, depth: int) -> int:
    """The stage, from 0, of a parameter of ConvNeXt."""
    if name.startswith('backbone.downsample_layers'):
        return 0
    if name.startswith('backbone.stages'):
        return int(name.split('.')[2]) + 1
    return depth - 1


def _can_be_fused(cls: type[Optimizer], options: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether torch has a fused step of this optimizer, which passes over each number once, for all parameters."""
    if cls.__module__.partition('.')[0] != 'torch' or 'fused' not in inspect.signature(cls).parameters:
        return False
    if any(options.get(name) is not None for name in ('fused', 'foreach')) or options.get('differentiable'):
        return False
    return all(p.device.type in ('cpu', 'cuda') and p.dtype in (torch.float32, torch.float64)
               for p in model.parameters())


def _parameter_groups(model: nn.Module, options: Mapping, paramwise: Mapping) -> list[dict]:
    """Groups of parameters that share rate and decay; fewer groups mean fewer, larger update kernels."""
    for key in paramwise:
        if key not in _PARAMWISE:
            raise ConfigError(f"optimizer.paramwise_cfg takes no '{key}'{nearest(key, _PARAMWISE)}")
    base_lr, base_decay = options.get('lr'), options.get('weight_decay')
    _check_multipliers(paramwise, base_lr, base_decay)
    groups: dict[tuple, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                if not paramwise.get('bypass_duplicate'):
                    raise ConfigError(f"parameter '{prefix}.{name}' appears twice in the model; "
                                      'optimizer.paramwise_cfg.bypass_duplicate=True skips it')
                continue
            seen.add(id(parameter))
            multipliers = _multipliers(prefix, name, module, paramwise) if parameter.requires_grad else (1., 1.)
            groups.setdefault(multipliers, []).append(parameter)
    result = []
    for (lr_mult, decay_mult), parameters in groups.items():
        group: dict[str, Any] = dict(params=parameters)
        if base_lr is not None:
            group['lr'] = base_lr * lr_mult
        if base_decay is not None:
            group['weight_decay'] = base_decay * decay_mult
        result.append(group)
    return result


def _check_multipliers(paramwise: Mapping, base_lr: float | None, base_decay: float | None) -> None:
    custom = paramwise.get('custom_keys') or {}
    for key, values in custom.items():
        for name in values:
            if name not in ('lr_mult', 'decay_mult'):
                raise ConfigError(f"optimizer.paramwise_cfg.custom_keys['{key}'] takes no '{name}'"
                                  f"{nearest(name, ['lr_mult', 'decay_mult'])}")
    decays = [k for k in paramwise if k.endswith('decay_mult')]
    decays += [f"custom_keys['{k}'].decay_mult" for k, v in custom.items() if 'decay_mult' in v]
    if decays and base_decay is None:
        raise ConfigError(f'optimizer.paramwise_cfg.{decays[0]} needs optimizer.weight_decay')
    if base_lr is None and ('bias_lr_mult' in paramwise or any('lr_mult' in v for v in custom.values())):
        raise ConfigError('optimizer.paramwise_cfg: an lr_mult needs optimizer.lr')


def _multipliers(prefix: str, name: str, module: nn.Module, paramwise: Mapping) -> tuple[float, float]:
    """(rate, decay) multipliers of parameter ``name`` of ``module``, which is ``prefix`` in the model."""
    custom = paramwise.get('custom_keys') or {}
    for key in sorted(sorted(custom), key=len, reverse=True):
        if key in f'{prefix}.{name}':
            return custom[key].get('lr_mult', 1.), custom[key].get('decay_mult', 1.)
    is_norm = isinstance(module, _NORMS)
    is_depthwise = isinstance(module, nn.Conv2d) and module.in_channels == module.groups
    deformable = 'conv_offset' in prefix and isinstance(module, nn.Conv2d)
    rate = decay = 1.
    if name == 'bias' and not is_norm and not deformable:
        rate = paramwise.get('bias_lr_mult', 1.)
    if deformable:
        rate = paramwise.get('dcn_offset_lr_mult', 1.)
    if is_norm:
        decay = paramwise.get('norm_decay_mult', 1.)
    elif is_depthwise:
        decay = paramwise.get('dwconv_decay_mult', 1.)
    elif name == 'bias' and not deformable:
        decay = paramwise.get('bias_decay_mult', 1.)
    return rate, decay


# --- frozen parts ---

def freeze(model: nn.Module, patterns: str | Sequence[str]) -> list[nn.Module]:
    """Take what ``patterns`` name out of the training: its weights get no gradient.

    Args:
        model: it is changed in place.
        patterns: names of modules, with all that is in them, or of parameters; ``*``, ``?`` and ``[12]`` as in file
            names: 'backbone.layer[12]', 'roi_head.*.fc_reg', '*.bias'.

    Returns:
        the modules, which are to stay in evaluation mode (BN statistics, dropout).

    Raises:
        ConfigError: a pattern that fits nothing, or no weight is left to train.
    """
    frozen = []
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [modules[name] for name in fnmatch.filter(modules, pattern) if name]
        single = [parameters[name] for name in fnmatch.filter(parameters, pattern)]
        if not found and not single:
            raise ConfigError(f"frozen_modules: '{pattern}' fits no module or parameter of {type(model).__name__}"
                              f'{nearest(pattern, [*modules, *parameters])}')
        for parameter in (*single, *(p for module in found for p in module.parameters())):
            parameter.requires_grad_(False)
        frozen += found
    left = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    if not left:
        raise ConfigError(f'frozen_modules {patterns}: no weight is left to train')
    logger.info('frozen_modules: %d modules stand still; %.2f of %.2f million weights are trained', len(frozen),
                left / 1e6, sum(parameter.numel() for parameter in parameters.values()) / 1e6)
    return frozen


# --- one update ---

class UpdateStep(OptimWrapper):
    """Backward, clip, update: 2.x's ``optimizer_config`` and ``fp16``.

    The weights, their gradients and the optimizer's state are float32 throughout: autocast rounds copies of them for
    convolutions and products only, and the heads compute their losses in float32.

    Args:
        optimizer: what updates.
        grad_clip: ``dict(max_norm=, norm_type=)`` of torch's clip_grad_norm_, or None.
        accumulation: so many batches make one update; the caller runs ``backward`` on each.
        amp_dtype: None for float32, else torch.float16 or torch.bfloat16 for autocast.
        loss_scale: 'dynamic', a number that stays, or GradScaler's arguments; used with float16.
        device_type: 'cpu' or 'cuda'.
    """

    def __init__(self, optimizer: Optimizer, grad_clip: Mapping | None = None, accumulation: int = 1,
                 amp_dtype: torch.dtype | None = None, loss_scale: Any = 'dynamic', device_type: str = 'cpu'):
        super().__init__(optimizer, clip_grad=dict(grad_clip) if grad_clip else None)
        self.accumulation, self.amp_dtype, self.device_type = accumulation, amp_dtype, device_type
        self.scaler = _grad_scaler(loss_scale, device_type) if amp_dtype is torch.float16 else None
        if self.scaler is not None and device_type == 'cpu':
            _take_plain_steps(self.optimizer)
        self._fixed_scale = None if loss_scale == 'dynamic' or isinstance(loss_scale, Mapping) else float(loss_scale)
        self.grad_norm: torch.Tensor | None = None  # of the last update, on the device: reading it is the log's choice

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module, completes: bool = True) -> Iterator[None]:
        """Around the forward: autocast, and no exchange of gradients before the batch that ``completes`` an update."""
        alone = contextlib.nullcontext() if completes or not hasattr(model, 'no_sync') else model.no_sync()
        with alone, torch.autocast(self.device_type, self.amp_dtype or torch.bfloat16,
                                   enabled=self.amp_dtype is not None):
            yield

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Add the gradients of ``loss``."""
        super().backward(loss if self.scaler is None else self.scaler.scale(loss), **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Clip and update the parameters; with a loss scale not when a gradient overflowed."""
        if self.scaler is None:
            super().step(**kwargs)
            return
        if self.clip_grad_kwargs:
            self.scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.scaler.step(self.optimizer, **kwargs)
        self.scaler.update(self._fixed_scale)

    def _clip_grad(self) -> None:
        # mmengine's reads the norm back at once, which waits for the GPU at every iteration.
        parameters = [p for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
        norm = self.clip_func(parameters, **self.clip_grad_kwargs)
        self.grad_norm = None if norm is None else norm.detach()


def _take_plain_steps(optimizer: Optimizer) -> None:
    """No fused step: the scaler leaves infinite gradients to it, and on the CPU it takes them for numbers."""
    for group in optimizer.param_groups:
        if group.get('fused'):
            group['fused'] = False
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # what torch's scaler asks for


def _grad_scaler(loss_scale: Any, device_type: str) -> torch.amp.GradScaler:
    if loss_scale == 'dynamic':
        return torch.amp.GradScaler(device_type)
    if isinstance(loss_scale, Mapping):
        check_keywords(torch.amp.GradScaler, loss_scale, 'fp16.loss_scale')
        return torch.amp.GradScaler(device_type, **loss_scale)
    return torch.amp.GradScaler(device_type, init_scale=float(loss_scale))


def build_update_step(optimizer: Optimizer, optimizer_config: Mapping | None = None, fp16: Mapping | None = None,
                      device_type: str = 'cpu') -> UpdateStep:
    """Translate 2.x's ``optimizer_config`` (grad_clip, cumulative_iters) and ``fp16`` (loss_scale, dtype).

    Raises:
        ConfigError: an unknown key or value.
    """
    options = dict(optimizer_config or {})
    kind = options.pop('type', 'OptimizerHook')
    known_types = ('OptimizerHook', 'DistOptimizerHook', 'Fp16OptimizerHook', 'GradientCumulativeOptimizerHook',
                   'GradientCumulativeFp16OptimizerHook')
    if kind not in known_types:
        raise ConfigError(f"optimizer_config.type '{kind}' is unknown{nearest(kind, known_types)}")
    precision = dict(fp16 or {})
    if 'Fp16' in kind:
        precision.setdefault('loss_scale', options.pop('loss_scale', 512.))
    for key in options:
        if key not in ('grad_clip', 'cumulative_iters'):
            raise ConfigError(f"optimizer_config takes no '{key}'{nearest(key, ['grad_clip', 'cumulative_iters'])}")
    for key in precision:
        if key not in ('loss_scale', 'dtype'):
            raise ConfigError(f"fp16 takes no '{key}'{nearest(key, ['loss_scale', 'dtype'])}")
    dtype = _amp_dtype(precision.get('dtype'), device_type) if precision else None
    if dtype is not None and slow_in(dtype, device_type):
        logger.warning('fp16: this processor has no instructions for %s: training takes many times as long as in '
                       'float32, '
                       'which it is without fp16 in the config', str(dtype).removeprefix('torch.'))
    accumulation = options.get('cumulative_iters', 1)
    if not isinstance(accumulation, int) or accumulation < 1:
        raise ConfigError(f'optimizer_config.cumulative_iters must be a whole number, 1 at least, not {accumulation!r}')
    return UpdateStep(optimizer, options.get('grad_clip'), accumulation, dtype,
                      precision.get('loss_scale', 'dynamic'), device_type)


def _amp_dtype(name: str | None, device_type: str) -> torch.dtype:
    dtypes = {'float16': torch.float16, 'fp16': torch.float16, 'bfloat16': torch.bfloat16, 'bf16': torch.bfloat16}
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix('torch.')
    if name is None:
        if device_type == 'cpu':
            logger.info("fp16: this CPU training uses bfloat16, which needs no loss scale (fp16.dtype='float16' "
                        'insists on the other)')
        return torch.bfloat16 if device_type == 'cpu' else torch.float16
    if name not in dtypes:
        raise ConfigError(f"fp16.dtype '{name}'{nearest(name, dtypes)}")
    return dtypes[name]
