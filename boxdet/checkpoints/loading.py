"""A checkpoint's weights into a model: found under the names that the model has, with a report of the rest."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from boxdet.errors import CheckpointError, nearest

# --- the weights inside a checkpoint ---

# What DataParallel puts before all names, and torch.compile before those of the module that it compiled.
_WRAPPERS = re.compile(r'^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.')


def state_dict_of(checkpoint: Mapping, source: str = 'checkpoint') -> dict[str, torch.Tensor]:
    """The weights inside a checkpoint dict, or the state dict itself, without ``module.`` and ``_orig_mod.``.

    Args:
        checkpoint: either of them.
        source: what to call it in errors.

    Raises:
        CheckpointError: an entry without a name, or one that is no array of numbers.
    """
    try:
        return {name: as_tensor(name, value) for name, value in named_values(checkpoint, source).items()}
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None


def named_values(checkpoint: Mapping, source: str) -> dict[str, Any]:
    """The entries of the state dict as they are, without ``module.`` and ``_orig_mod.``."""
    state = checkpoint['state_dict'] if isinstance(checkpoint.get('state_dict'), Mapping) else checkpoint
    for name in state:
        if not isinstance(name, str):
            raise CheckpointError(f'{source} holds no weights: {name!r} is not the name of an entry')
    return {_WRAPPERS.sub('', name): value for name, value in state.items() if not name.startswith('__')}


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """Return the value of a state dict's entry: a tensor as it is, arrays and numbers as tensors.

    Raises:
        CheckpointError: it is anything else; ``name`` is the entry's.
    """
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise CheckpointError(f'{name} is of type {type(value).__name__}, and weights are arrays of numbers') from None


# --- into a model ---

@dataclass
class LoadReport:
    """What became of a checkpoint's entries; names are the module's own."""

    checkpoint: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)  # 'name: checkpoint (64, 3), model (64, 4)'

    def __str__(self) -> str:
        parts = [f'{self.checkpoint}: loaded {len(self.loaded)} entries']
        if self.missing:
            parts.append(f'missing {len(self.missing)} ({_by_prefix(self.missing)})')
        if self.unexpected:
            parts.append(f'unused {len(self.unexpected)} ({_by_prefix(self.unexpected)})')
        if self.mismatched:
            parts.append(f'another shape {len(self.mismatched)} ({"; ".join(self.mismatched[:5])})')
        return ', '.join(parts)


def _by_prefix(names: Sequence[str]) -> str:
    """'fc.weight, fc.bias' for a few names, 'layer4 60, fc 2' for many."""
    if len(names) <= 4:
        return ', '.join(names)
    return ', '.join(f'{prefix} {count}' for prefix, count in Counter(n.split('.')[0] for n in names).items())


def load_fitting(module: nn.Module, state: Mapping[str, torch.Tensor], checkpoint: str,
                 least: float = 0.) -> LoadReport:
    """Load the entries of ``state`` that fit by name and shape.

    Args:
        module: gets them.
        state: its entries under the module's names.
        checkpoint: what to call it in the report and in errors.
        least: the share of the module's entries that must be filled.

    Raises:
        CheckpointError: nothing fits, or less than ``least``; the module is as it was.
    """
    own = module.state_dict()
    odd = {k for k, v in state.items() if k in own and own[k].shape != v.shape}
    # A batch counter is bookkeeping that old checkpoints lack; nothing reads it while momentum is set.
    counted = [k for k in own if not k.endswith('num_batches_tracked')]
    filled = sum(k in state and k not in odd for k in counted)
    if not filled or filled < least * len(counted):
        raise CheckpointError(_why_little_fits(type(module).__name__, own, state, checkpoint, filled, len(counted)))
    keys = module.load_state_dict({k: v for k, v in state.items() if k not in odd}, strict=False)
    absent = set(keys.missing_keys)
    missing = [k for k in counted if k in absent - odd]
    loaded = [k for k in own if k in state and k not in odd]
    shapes = [f'{k}: checkpoint {tuple(state[k].shape)}, model {tuple(own[k].shape)}' for k in sorted(odd)]
    return LoadReport(checkpoint, loaded, missing, list(keys.unexpected_keys), shapes)


def _why_little_fits(name: str, own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], checkpoint: str,
                     filled: int, of: int) -> str:
    how_many = f'only {filled} of the {of} entries of {name} are in it' if filled else f'no entry fits {name}'
    prefix = prefix_of(own, state)
    advice = (f"; its names begin with '{prefix}.': write init_cfg=dict(type='Pretrained', checkpoint='{checkpoint}', "
              f"prefix='{prefix}')" if prefix else '; it is of another architecture')
    return f'{checkpoint}: {how_many}; it holds {_some(state)}, the model {_some(own)}{advice}'


def prefix_of(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """What stands before the entries of a module in a checkpoint ('backbone'), where that fits better than nothing."""
    fits: Counter[str] = Counter()
    for name, value in state.items():
        parts = name.split('.')
        for cut in range(len(parts)):
            inner = own.get('.'.join(parts[cut:]))
            if inner is not None and inner.shape == value.shape:
                fits['.'.join(parts[:cut])] += 1
    best = max(fits, key=lambda prefix: fits[prefix], default='')
    return best if fits[best] >= LEAST_OF_PRETRAINED * len(own) else ''


# Of a part that is initialised by a checkpoint: below this it would in truth stay random.
LEAST_OF_PRETRAINED = 0.5
# Deformable convolutions or plugins add some entries to a backbone; another depth or kind changes most.
_LEAST_OF_BACKBONE = 0.75


def load_weights(model: nn.Module, checkpoint: Mapping, source: str = 'checkpoint') -> LoadReport:
    """Load what fits of a checkpoint (or of a bare state dict) into ``model``.

    Args:
        model: gets the weights.
        checkpoint: the dict, with names as boxdet has them.
        source: what to call it in the report and in errors.

    Raises:
        CheckpointError: the checkpoint is of another architecture: nothing fits, or of the backbone too little.
    """
    own = model.state_dict()
    state = _in_their_place(state_dict_of(checkpoint, source), own)
    fitting = {name for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise CheckpointError(
            f'{source} is a checkpoint of another architecture: none of its {len(state)} entries fits '
            f"{type(model).__name__} (it holds {_some(state)}; the model {_some(own)})")
    # Heads are exchanged for other classes every day; a backbone of which a good part stays random is nobody's wish.
    theirs, ours, common = (sum(name.startswith('backbone.') for name in names) for names in (state, own, fitting))
    if theirs and ours and common < _LEAST_OF_BACKBONE * max(theirs, ours):
        raise CheckpointError(f'{source} is a checkpoint of another architecture: its backbone has {theirs} entries, '
                              f'that of the model {ours}, and only {common} are the same in both')
    return load_fitting(model, state, source)


# Stage 4 on every roi (C4) is of the same pretrained backbone as the stages before it.
_PLACES_OF_BACKBONES = ('backbone.', 'roi_head.shared_head.')


def _in_their_place(state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a backbone alone under the names that a detector with the entries ``own`` has for them."""
    if any(name in own for name in state):
        return state
    return {next((place + name for place in _PLACES_OF_BACKBONES if place + name in own), name): value
            for name, value in state.items()}


def describe(report: LoadReport, limit: int = 10) -> str:
    """The report as text for people: a line of counts, then the odd entries with the nearest name of the other side."""
    lines = [f'{report.checkpoint}: {len(report.loaded)} entries loaded, {len(report.missing)} missing, '
             f'{len(report.unexpected)} unused, {len(report.mismatched)} of another shape']
    for title, names, others in (('missing in the checkpoint', report.missing, report.unexpected),
                                 ('unused', report.unexpected, report.missing),
                                 ('another shape', report.mismatched, [])):
        for name in names[:limit]:
            lines.append(f'  {title}: {name}{nearest(name, others)}')
        if len(names) > limit:
            lines.append(f'  {title}: … and {len(names) - limit} more')
    return '\n'.join(lines)


def classes_of(checkpoint: Mapping) -> tuple[str, ...] | None:
    """The class names in a checkpoint's meta (boxdet's and 2.x's ``CLASSES``, 3.x's ``dataset_meta``), if any."""
    meta = checkpoint.get('meta') or {}
    newer = meta.get('dataset_meta') or {}
    names = meta.get('CLASSES') or newer.get('classes') or newer.get('CLASSES')
    return tuple(names) if names else None


def compare_classes(checkpoint: Mapping, classes: Sequence[str] | None, source: str = 'checkpoint') -> str:
    """A sentence on how a checkpoint's class names differ from ``classes``; '' when they do not or are not known."""
    held = classes_of(checkpoint)
    if held is None or classes is None or held == tuple(classes):
        return ''
    if sorted(held) == sorted(classes):
        return f'{source} has the same {len(held)} classes in another order: its labels mean other things'
    only_there, only_here = [c for c in held if c not in classes], [c for c in classes if c not in held]
    parts = [f'{source} was trained on {len(held)} classes, the config names {len(classes)}']
    if only_there:
        parts.append(f'only in the checkpoint: {_some(only_there)}')
    if only_here:
        parts.append(f'only in the config: {_some(only_here)}')
    return '; '.join(parts)


def _some(names: Any, limit: int = 3) -> str:
    names = list(names)
    return ', '.join(names[:limit]) + (', …' if len(names) > limit else '') or 'nothing'


