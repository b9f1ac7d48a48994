"""Weights of other projects, recognised by the names of their entries and given boxdet's.

One module a format, with ``NAME``, ``recognises(names)``, ``LEFT_OUT`` (a pattern of the names that are passed over:
what a training leaves, constants), and a function each way: ``to_boxdet(state)`` and ``from_boxdet(state)``, which
refuses a model that the project has not; a further format is a module and its line in ``_MODULES``. ``classes`` has
the order of classes, ``architecture`` what the names of entries say of a model.
"""
from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

from boxdet.errors import CheckpointError, nearest

_MODULES = {'torchvision': 'torchvision', 'detectron2': 'detectron2', 'detectron': 'detectron',
            'maskrcnn-benchmark': 'maskrcnn_benchmark', 'Detectron.pytorch': 'detectron_pytorch',
            'tensorpack': 'tensorpack'}


def formats() -> list[str]:
    """The names of the formats that can be converted."""
    return list(_MODULES)


def format_named(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        CheckpointError: there is no such format.
    """
    if name not in _MODULES:
        raise CheckpointError(f"no weights called '{name}' can be converted{nearest(name, _MODULES)} "
                              f"(there are {', '.join(_MODULES)})")
    return importlib.import_module(f'{__name__}.{_MODULES[name]}')


def recognise(names: Iterable[str]) -> ModuleType | None:
    """The module of the format whose state dicts name their entries so; None for boxdet's own or no known project's."""
    names = list(names)
    return next((module for module in map(format_named, _MODULES) if module.recognises(names)), None)
