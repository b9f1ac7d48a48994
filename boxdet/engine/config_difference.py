"""What changed between two configs: for a training that goes on with another one than it began with."""
from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from boxdet.engine.config_source import read_literal_python
from boxdet.errors import ConfigError

# Differ in every resumed training and say nothing about it.
_OF_THE_START = ('resume_from', 'load_from', 'auto_resume', 'work_dir', 'requeue')


def differences(before: str, now: str) -> list[str]:
    """One line for each value that differs between two configs' texts: ``optimizer.lr: 0.02 -> 0.01``.

    Args:
        before: ``Config.pretty_text``; nothing differs from an empty one. A text that is no plain assignments, as
            foreign checkpoints may hold, is compared by lines.
        now: another such text.
    """
    if not before or not now:
        return []
    try:
        old, new = (_flat(read_literal_python(text)) for text in (before, now))
    except ConfigError:
        lines = difflib.unified_diff(before.splitlines(), now.splitlines(), lineterm='', n=0)
        return [line for line in lines if not line.startswith(('---', '+++', '@@'))]
    names = [name for name in {**old, **new} if name.partition('.')[0] not in _OF_THE_START]
    return [f'  {name}: {_shown(old, name)} -> {_shown(new, name)}' for name in names
            if _shown(old, name) != _shown(new, name)]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else '(absent)'


def _flat(value: Any, path: str = '') -> dict[str, Any]:
    """Every value by its dotted path; lists of plain values stay whole."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        items = list(enumerate(value))
    else:
        return {path: value}
    if not items:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flat(item, f'{path}.{key}' if path else str(key)))
    return flat
