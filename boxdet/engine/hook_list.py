"""The hooks of a training, in the order in which they run."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.hooks import Hook as _MMEngineHook
from mmengine.runner.priority import Priority, get_priority

from boxdet.engine.hook_stages import idle_methods, method_of
from boxdet.errors import ConfigError, nearest
from boxdet.registry import HOOKS, accepted_keywords


class HookList(list[_MMEngineHook]):
    """Hooks by priority: 'VERY_HIGH' before 'LOW', or a number from 0 (first) to 100; equal ones as they came."""

    def __init__(self) -> None:
        super().__init__()
        self._stages: dict[tuple[str, str, int], list[tuple[Callable, frozenset[str] | None]]] = {}

    def register(self, hook: _MMEngineHook | Mapping[str, Any],
                 priority: str | int | Priority | None = None) -> list[str]:
        """Put a hook into its place.

        Args:
            hook: the object, or the dict that describes it, which may hold a ``priority``.
            priority: instead of the hook's own.

        Returns:
            a line for each method that is named like a stage and that nothing will call.

        Raises:
            ConfigError: it is no hook, or there is no such priority.
        """
        if isinstance(hook, Mapping):
            described = dict(hook)
            own = described.pop('priority', None)
            hook, priority = HOOKS.build(described), own if priority is None else priority
        if not isinstance(hook, _MMEngineHook):
            if isinstance(hook, type):
                raise ConfigError(f'{hook.__name__} is a class: register an object of it, {hook.__name__}(…)')
            raise ConfigError(f'{type(hook).__name__} is no hook: it must derive from boxdet.engine.hooks.Hook')
        if priority is not None:
            hook.priority = priority
        place, rank = len(self), _rank(hook)
        while place and _rank(self[place - 1]) > rank:
            place -= 1
        self.insert(place, hook)
        return list(idle_methods(hook))

    def call(self, runner: Any, stage: str, mode: str, keywords: Mapping[str, Any]) -> None:
        """Call ``stage`` of every hook that has it; each method gets those of the ``keywords`` that it names."""
        key = stage, mode, len(self)
        if key not in self._stages:
            found = [method_of(hook, stage, shared=f'_{mode}_' in stage) for hook in self]
            self._stages[key] = [(method, _accepted(method)) for method in found if method is not None]
        for method, accepted in self._stages[key]:
            method(runner, **{name: value for name, value in keywords.items() if accepted is None or name in accepted})


def _rank(hook: _MMEngineHook) -> int:
    try:
        return get_priority(hook.priority)
    except (KeyError, ValueError, TypeError):
        names = [one.name for one in Priority]
        raise ConfigError(f'{type(hook).__name__}: priority {hook.priority!r} is neither a number from 0 to 100 nor '
                          f'one of {", ".join(names)}{nearest(str(hook.priority), names)}') from None


def _accepted(method: Callable) -> frozenset[str] | None:
    """The keywords beyond ``runner`` that ``method`` takes; None for any."""
    names, open_ended = accepted_keywords(method)
    return None if open_ended else frozenset(names)
