"""What a training goes on from in a checkpoint of mmdetection: 2.x's and 3.x's, as boxdet's own would hold it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from boxdet.errors import CheckpointError

# Of mmengine, and of no use here: its log, and what its schedulers count (rates follow from the progress).
_LEFT = ('message_hub', 'param_schedulers')


def is_foreign(checkpoint: Mapping[str, Any]) -> bool:
    """Whether another program wrote it."""
    return 'boxdet_version' not in (checkpoint.get('meta') or {})


def for_resume(checkpoint: Mapping[str, Any], model: nn.Module, optimizer: Optimizer,
               source: str) -> tuple[dict[str, Any], str]:
    """The checkpoint as boxdet's own, and a sentence on what is not taken over.

    mmdetection's optimizers number the weights in the order of its modules, and 3.x's have a group for each weight: the
    order is read off the names of the weights. 3.x's averaged weights (EMAHook) are told from those that it trains.

    Args:
        checkpoint: as ``load_checkpoint`` reads it.
        model: with its weights.
        optimizer: of the model, as the config has it.
        source: what to call the checkpoint.

    Raises:
        CheckpointError: the optimizer's state cannot be told from the names.
    """
    found = dict(checkpoint)
    state = dict(found['optimizer'])
    scaler = state.pop('loss_scaler', None)
    for extra in ('base_param_settings',):
        state.pop(extra, None)
    names = [name.removeprefix('module.') for name in found['state_dict']]
    found['optimizer'] = _in_our_order(state, names, model, optimizer, source)
    if scaler is not None:
        found['loss_scaler'] = scaler
    trained = found.pop('ema_state_dict', None)
    if isinstance(trained, Mapping):
        found['online_state_dict'] = {name.removeprefix('module.'): value for name, value in trained.items()
                                      if name.startswith('module.')}
    left = [name for name in _LEFT if name in found]
    text = f'{source} is of mmdetection: its weights, optimizer and progress are taken over'
    if left:
        text += f"; {' and '.join(left)} {'are' if len(left) > 1 else 'is'} not, as rates follow from the progress"
    return found, text + '; it holds no random numbers, so that the order of the images is a new one'


def _in_our_order(state: Mapping[str, Any], names: list[str], model: nn.Module, optimizer: Optimizer,
                  source: str) -> dict[str, Any]:
    """The state of their optimizer with its entries and groups as ``optimizer`` has them."""
    ours = {id(parameter): name for name, parameter in model.named_parameters()}
    weights = dict(model.named_parameters())
    numbers = _numbers(state, [name for name in names if name in weights], source)
    groups, entries, count = [], {}, 0
    group_of = {number: group for group in state['param_groups'] for number in group['params']}
    for group in optimizer.param_groups:
        mine = [ours[id(parameter)] for parameter in group['params']]
        theirs = next((group_of[numbers[name]] for name in mine if name in numbers), None)
        if theirs is None:
            raise CheckpointError(f'cannot resume from {source}: its optimizer knows none of {", ".join(mine[:3])}')
        kept = {key: value for key, value in theirs.items() if key not in ('params', 'param_names')}
        groups.append({**{k: v for k, v in group.items() if k != 'params'}, **kept,
                       'params': list(range(count, count + len(mine)))})
        for name in mine:
            entry = state['state'].get(numbers.get(name))
            if entry is not None:
                _check_shapes(entry, name, weights[name], source)
                entries[count] = entry
            count += 1
    return dict(state=entries, param_groups=groups)


def _numbers(state: Mapping[str, Any], names: list[str], source: str) -> dict[str, int]:
    """The number of each weight in their optimizer."""
    groups = state['param_groups']
    order = [number for group in groups for number in group['params']]
    if all('param_names' in group for group in groups):
        names = [name for group in groups for name in group['param_names']]
    if len(names) != len(order):
        raise CheckpointError(f'cannot resume from {source}: its optimizer has {len(order)} weights, the model '
                              f'{len(names)} of its names; --load-from takes the weights alone')
    return dict(zip(names, order))


def _check_shapes(entry: Mapping[str, Any], name: str, weight: nn.Parameter, source: str) -> None:
    for key, value in entry.items():
        if hasattr(value, 'shape') and value.ndim and value.shape != weight.shape:
            raise CheckpointError(f"cannot resume from {source}: {key} of its optimizer has the shape "
                                  f'{tuple(value.shape)}, the weight {name} {tuple(weight.shape)}; --load-from takes '
                                  'the weights alone')
