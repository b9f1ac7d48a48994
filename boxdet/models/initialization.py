"""Initial weights: mmdetection 2.x's ``init_cfg`` dialect as functions over any ``nn.Module``.

A module declares ``init_cfg`` (one dict or a list) and its ``init_weights()`` is ``initialize(self)``; a
module that only declares ``init_cfg`` needs no method at all. Random values come from torch's global generator, in the
order of ``module.modules()``: a seed fixes them.

Dialect, as in ``init_cfg=dict(type='Normal', std=0.01, layer=['Conv2d', 'Linear'],
override=dict(name='fc_cls'))``:

* ``layer``     class names (of the module or of one of its base classes) that the initialiser touches
* ``override``  one dict or a list: ``name`` is an attribute of the module; with ``type`` it has an
  initialiser of its own, without it shares this one. Without ``layer`` the overrides alone are initialised
"""
from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from boxdet.checkpoints.io import load_state
from boxdet.checkpoints.loading import LEAST_OF_PRETRAINED, LoadReport, load_fitting
from boxdet.errors import CheckpointError, ConfigError, nearest
from boxdet.registry import Cfg

logger = logging.getLogger('boxdet')
InitCfg = Cfg | Sequence[Cfg] | None  # one way of initialisation, or several in a row


# --- initialisers of one layer: module with `weight` and `bias` -> new values in place ---

def bias_from_prob(prob: float) -> float:
    """Return the bias with which a classifier starts at ``prob`` (Lin et al. 2017, section 4.1)."""
    return -math.log((1 - prob) / prob)


def _fill_bias(module: nn.Module, bias: float, bias_prob: float | None) -> None:
    if getattr(module, 'bias', None) is not None:
        nn.init.constant_(module.bias, bias if bias_prob is None else bias_from_prob(bias_prob))


def constant_init(module: nn.Module, val: float, bias: float = 0, bias_prob: float | None = None) -> None:
    """Fill the weight with ``val``."""
    nn.init.constant_(module.weight, val)
    _fill_bias(module, bias, bias_prob)


def normal_init(module: nn.Module, mean: float = 0, std: float = 1, bias: float = 0,
                bias_prob: float | None = None) -> None:
    """Draw the weight from a normal distribution."""
    nn.init.normal_(module.weight, mean, std)
    _fill_bias(module, bias, bias_prob)


def trunc_normal_init(module: nn.Module, mean: float = 0, std: float = 1, a: float = -2, b: float = 2,
                      bias: float = 0, bias_prob: float | None = None) -> None:
    """Draw the weight from a normal distribution cut to the absolute values [a, b]."""
    nn.init.trunc_normal_(module.weight, mean, std, a, b)
    _fill_bias(module, bias, bias_prob)


def uniform_init(module: nn.Module, a: float = 0, b: float = 1, bias: float = 0,
                 bias_prob: float | None = None) -> None:
    """Draw the weight uniformly from [a, b]."""
    nn.init.uniform_(module.weight, a, b)
    _fill_bias(module, bias, bias_prob)


def xavier_init(module: nn.Module, gain: float = 1, bias: float = 0, bias_prob: float | None = None,
                distribution: str = 'normal') -> None:
    """Glorot and Bengio 2010. A weight of one dimension (a norm's scale) has no fan and keeps its value."""
    draw = _by_distribution(distribution, nn.init.xavier_uniform_, nn.init.xavier_normal_)
    if module.weight.dim() > 1:
        draw(module.weight, gain=gain)
    _fill_bias(module, bias, bias_prob)


def kaiming_init(module: nn.Module, a: float = 0, mode: str = 'fan_out', nonlinearity: str = 'relu',
                 bias: float = 0, bias_prob: float | None = None, distribution: str = 'normal') -> None:
    """He et al. 2015. A weight of one dimension (a norm's scale) has no fan and keeps its value."""
    draw = _by_distribution(distribution, nn.init.kaiming_uniform_, nn.init.kaiming_normal_)
    if module.weight.dim() > 1:
        draw(module.weight, a=a, mode=mode, nonlinearity=nonlinearity)
    _fill_bias(module, bias, bias_prob)


def caffe2_xavier_init(module: nn.Module, bias: float = 0, bias_prob: float | None = None) -> None:
    """Caffe2's XavierFill: uniform with variance 1 / fan_in (what Detectron's heads and FPN start from)."""
    kaiming_init(module, a=1, mode='fan_in', nonlinearity='leaky_relu', bias=bias, bias_prob=bias_prob,
                 distribution='uniform')


def _by_distribution(name: str, uniform: Callable, normal: Callable) -> Callable:
    if name not in ('uniform', 'normal'):
        raise ConfigError(f"init_cfg.distribution is '{name}'; it is 'uniform' or 'normal'")
    return uniform if name == 'uniform' else normal


_INITIALISERS: dict[str, Callable] = {
    'Constant': constant_init, 'Normal': normal_init, 'TruncNormal': trunc_normal_init,
    'Uniform': uniform_init, 'Xavier': xavier_init, 'Kaiming': kaiming_init,
    'Caffe2Xavier': caffe2_xavier_init}
_PRETRAINED = ('checkpoint', 'prefix', 'map_location')


def init_cfg_keywords() -> dict[str, tuple[str, ...]]:
    """Return the keywords of each ``type`` of an init_cfg, besides ``type``, ``layer`` and ``override``."""
    keywords = {kind: tuple(inspect.signature(f).parameters)[1:] for kind, f in _INITIALISERS.items()}
    return {**keywords, 'Pretrained': _PRETRAINED}


# --- the dialect ---

def initialize(module: nn.Module, init_cfg: Mapping | Sequence[Mapping] | None = None) -> None:
    """Give ``module`` its initial weights, then its parts theirs.

    ``init_cfg`` (by default ``module.init_cfg``) is applied to the whole module first. Then each part inside
    that has an ``init_weights()`` of its own is asked to run it, and each part that only declares
    ``init_cfg`` is initialised by that. After a ``Pretrained`` the parts are left alone: their weights were
    just loaded.

    Raises:
        ConfigError: an unknown type, keyword or override name.
        CheckpointError: pretrained weights that cannot be read or do not fit.
    """
    configs = _as_list(getattr(module, 'init_cfg', None) if init_cfg is None else init_cfg)
    for cfg in configs:
        _apply(module, cfg)
    if not any(cfg['type'] == 'Pretrained' for cfg in configs):
        for part in _own_parts(module):
            if hasattr(part, 'init_weights'):
                part.init_weights()
            else:
                initialize(part)


def _own_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The nearest modules below that care for their own weights; those inside them are theirs to reach."""
    for child in module.children():
        if hasattr(child, 'init_weights') or getattr(child, 'init_cfg', None):
            yield child
        else:
            yield from _own_parts(child)


def _as_list(cfg: InitCfg) -> list[Cfg]:
    if cfg is None:
        return []
    configs: list[Cfg] = []
    for one in [cfg] if isinstance(cfg, Mapping) else cfg:
        if not isinstance(one, Mapping):
            raise ConfigError(f'init_cfg is a dict or a list of dicts, not {one!r}')
        if 'type' not in one and 'checkpoint' not in one:
            raise ConfigError(f"init_cfg needs a 'type': {dict(one)}")
        configs.append({'type': 'Pretrained', **one})  # 2.x's RF-Next configs give the checkpoint alone
    return configs


def _check_type(kind: str) -> None:
    if kind not in _INITIALISERS and kind != 'Pretrained':
        raise ConfigError(f"unknown init_cfg type '{kind}'{nearest(kind, init_cfg_keywords())}")


def _apply(module: nn.Module, cfg: Mapping) -> None:
    options = dict(cfg)
    kind, override = options.pop('type'), options.pop('override', None)
    if kind == 'Pretrained':
        _load_pretrained(module, options)
        return
    layers = options.pop('layer', None)
    if layers is None and override is None:
        raise ConfigError(f"init_cfg of {type(module).__name__} needs 'layer' (class names such as 'Conv2d') "
                          f"or 'override': {dict(cfg)}")
    if layers is not None:
        _fill(module, kind, options, layers)
    for one in [override] if isinstance(override, Mapping) else override or []:
        _apply_override(module, kind, options, dict(one))


def _apply_override(module: nn.Module, kind: str, options: dict, override: dict) -> None:
    name = override.pop('name', None)
    target = getattr(module, name, None) if isinstance(name, str) else None
    if not isinstance(target, nn.Module):
        parts = [part for part, _ in module.named_children()]
        raise ConfigError(f'init_cfg.override.name is {name!r}, and {type(module).__name__} has no such part'
                          f'{nearest(str(name), parts)}')
    if override and 'type' not in override:
        raise ConfigError(f"init_cfg.override of '{name}' sets {sorted(override)}: it needs a 'type' of its "
                          'own')
    kind = override.pop('type', kind)
    options = override or options
    if kind == 'Pretrained':
        _load_pretrained(target, options)
    else:
        layers = options.get('layer')
        _fill(target, kind, {k: v for k, v in options.items() if k != 'layer'}, layers)


def _fill(module: nn.Module, kind: str, options: Mapping, layers: str | Sequence[str] | None) -> None:
    """Run one initialiser over the layers of the named classes; over every layer with a weight when None."""
    _check_type(kind)
    function = _INITIALISERS[kind]
    known = init_cfg_keywords()[kind]
    for key in options:
        if key not in known:
            near = nearest(key, [*known, 'layer', 'override'])
            raise ConfigError(f"init_cfg: {kind} takes no '{key}'{near}")
    if kind == 'Constant' and 'val' not in options:
        raise ConfigError("init_cfg: Constant needs 'val'")
    wanted = None if layers is None else {layers} if isinstance(layers, str) else set(layers)
    for part in module.modules():
        has_weight = isinstance(getattr(part, 'weight', None), torch.Tensor)
        if has_weight and (wanted is None or not wanted.isdisjoint(c.__name__ for c in type(part).__mro__)):
            function(part, **options)


# --- pretrained weights ---

def load_backbone_weights(module: nn.Module, checkpoint: str, prefix: str | None = None,
                          map_location: str | None = None) -> LoadReport:
    """Load what fits of a checkpoint into ``module``, and log a report of the rest.

    A module with a method ``adapt_pretrained(state)`` is given the entries first and returns them under its own names:
    weights of other projects, tables of other sizes.

    Args:
        module: the part that is initialised.
        checkpoint: path, URL, ``torchvision://`` or ``open-mmlab://`` name.
        prefix: take only the entries below this name ('backbone'), without it.
        map_location: where the weights are read to, as in torch.load; the CPU if None.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds less than half of the module's entries.
    """
    state = load_state(checkpoint, map_location or 'cpu')
    if prefix:
        head = prefix.rstrip('.') + '.'
        found = {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
        if not found:
            prefixes = {k.rpartition('.')[0] for k in state} | {k.partition('.')[0] for k in state}
            raise CheckpointError(f"{checkpoint}: no entry begins with the prefix '{prefix}'"
                                  f'{nearest(prefix, prefixes)}')
        state = found
    if hasattr(module, 'adapt_pretrained'):
        state = module.adapt_pretrained(state)
    report = load_fitting(module, state, str(checkpoint), LEAST_OF_PRETRAINED)
    children = {name for name, _ in module.named_children()}
    deeper = any(name.partition('.')[0] in children for name in report.unexpected)  # ResNet-101's in a ResNet-50
    level = logging.WARNING if report.missing or report.mismatched or deeper else logging.INFO
    logger.log(level, '%s <- %s', type(module).__name__, report)
    return report


def _load_pretrained(module: nn.Module, options: Mapping) -> None:
    for key in options:
        if key not in _PRETRAINED:
            raise ConfigError(f"init_cfg: Pretrained takes no '{key}'{nearest(key, _PRETRAINED)}")
    if not options.get('checkpoint'):
        raise ConfigError("init_cfg: Pretrained needs 'checkpoint'")
    load_backbone_weights(module, **options)


def pretrained_or_default(init_cfg: InitCfg, pretrained: str | None, default: InitCfg) -> InitCfg:
    """Return the init_cfg of a module that also takes 2.x's older ``pretrained=``, or ``default``.

    Raises:
        ConfigError: both are given, ``pretrained`` is no text, or ``init_cfg`` is no dict or list of dicts with a known
            'type'.
    """
    if pretrained is not None and init_cfg is not None:
        raise ConfigError("'pretrained' and 'init_cfg' say the same thing: give one of them")
    if pretrained is not None:
        if not isinstance(pretrained, (str, os.PathLike)):
            raise ConfigError(f"'pretrained' is a path, URL or name of weights, not {pretrained!r}")
        return dict(type='Pretrained', checkpoint=pretrained)
    for cfg in _as_list(init_cfg):
        _check_type(cfg['type'])
    return default if init_cfg is None else init_cfg
