"""Networks between the backbone and the heads. Each name is imported when it is asked for."""
from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    'FPN': 'fpn',
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f'{__name__}.{_WHERE[name]}'), name)
