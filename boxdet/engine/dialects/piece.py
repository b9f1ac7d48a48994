"""What the tables of a dialect are written in: values that know the key they came from, and rules for keys.

A table gives each key of a foreign section its rule:

* ``'name'``: the value under that name;
* ``Idle('why')``: nothing here has to be told of it;
* ``Only(False, None)``: no other value can be translated;
* a function ``rule(section, key) -> {name: Piece}`` for what takes more than a name.

A key that is in no table is an error: the section's path, the file and the line, and the nearest name.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from boxdet.errors import ConfigError, nearest

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Piece:
    """A part of the translation.

    Attributes:
        value: plain dicts, lists and values.
        origins: pairs (place in ``value``, key of the foreign config that it came from), the whole before its parts.
    """
    value: Any
    origins: tuple[tuple[Key, Key], ...] = ()

    @staticmethod
    def mapping(parts: Mapping[str, Piece], key: Key = ()) -> Piece:
        """A dict of ``parts``; ``key`` is where the dict as a whole came from."""
        inner = tuple(((name, *place), old) for name, part in parts.items() for place, old in part.origins)
        return Piece({name: part.value for name, part in parts.items()}, ((((), key),) if key else ()) + inner)

    @staticmethod
    def sequence(parts: Sequence[Piece], key: Key = ()) -> Piece:
        """A list of ``parts``; ``key`` is where the list as a whole came from."""
        inner = tuple(((i, *place), old) for i, part in enumerate(parts) for place, old in part.origins)
        return Piece([part.value for part in parts], ((((), key),) if key else ()) + inner)


@dataclass(frozen=True)
class Idle:
    """A key that boxdet has no use for; ``why`` is for the reader of the table."""
    why: str


class Only:
    """A key that may hold one of ``values``, which mean what boxdet does anyway.

    Args:
        advice: what to do where it holds another one; it ends the error's sentence.
    """

    def __init__(self, *values: Any, advice: str = 'boxdet has no other way'):
        self.values, self.advice = values, advice


Rule = Any  # str | Idle | Only | Callable[[Section, str], Mapping[str, Piece]]
Table = Mapping[str, Rule]


@dataclass
class Context:
    """What every section shares.

    Attributes:
        dialect: its name, for messages. place_of: key -> ``file:line``, '' when it is not known.
        notes: what the user is told once the whole is translated.
    """
    dialect: str
    place_of: Callable[[Key], str] = lambda key: ''
    notes: list[str] = field(default_factory=list)

    def where(self, key: Key) -> str:
        """``optim_wrapper.optimizer.lr (config.py:12)``."""
        place = self.place_of(key)
        return '.'.join(map(str, key)) + (f' ({place})' if place else '')

    def fail(self, key: Key, message: str) -> NoReturn:
        """Raise ConfigError about ``key``."""
        raise ConfigError(f'{self.where(key)}: {message}')

    def note(self, key: Key, message: str) -> None:
        """Tell the user, in one warning a message."""
        text = f'{self.where(key)}: {message}'
        if text not in self.notes:
            self.notes.append(text)


class Section:
    """A dict of the foreign config, read by a table."""

    def __init__(self, value: Any, key: Key, context: Context):
        if not isinstance(value, Mapping):
            context.fail(key, f'must be a dict, not {value!r}')
        self.value, self.key, self.context = value, key, context

    @property
    def kind(self) -> Any:
        """Its ``type`` without the scope of a package: 'mmdet.Resize' is 'Resize'."""
        kind = self.value.get('type')
        return kind.rpartition('.')[2] if isinstance(kind, str) else kind

    def get(self, name: str, default: Any = None) -> Any:
        """The value under ``name``."""
        return self.value.get(name, default)

    def piece(self, name: str) -> Piece:
        """The value of ``name`` as it is."""
        return Piece(self.value[name], (((), (*self.key, name)),))

    def made(self, value: Any, name: str | None = None) -> Piece:
        """``value``, which follows from that of ``name``, or from the whole section."""
        key = self.key if name is None or name not in self.value else (*self.key, name)
        return Piece(value, (((), key),))

    def inside(self, name: str) -> Section:
        """The dict under ``name``."""
        return Section(self.value[name], (*self.key, name), self.context)

    def sections(self, name: str) -> list[Section]:
        """The dicts of the list under ``name``; a dict alone counts as a list of one, None as none."""
        value = self.value.get(name)
        if value is None:
            return []
        if isinstance(value, Mapping):
            return [self.inside(name)]
        return [Section(one, (*self.key, name, i), self.context) for i, one in enumerate(value)]

    def fail(self, name: str | None, message: str) -> NoReturn:
        """Raise ConfigError about the key ``name``, or about the whole section."""
        self.context.fail(self.key if name is None else (*self.key, name), message)

    def note(self, name: str | None, message: str) -> None:
        """Tell the user something about the key ``name``, or about the whole section."""
        self.context.note(self.key if name is None else (*self.key, name), message)

    def read(self, table: Table, others: bool = False, leave: Iterable[str] = ('type',)) -> dict[str, Piece]:
        """Translate every key by its rule in ``table``.

        Args:
            table: the rule of each key.
            others: keys that are in no table stay as they are, as they may be a user's own; otherwise they are errors.
            leave: keys that the caller deals with.
        """
        found: dict[str, Piece] = {}
        for name, value in self.value.items():
            if name in leave:
                continue
            rule = table.get(name)
            if rule is None and others:
                found[name] = self.piece(name)
            elif rule is None:
                whose = f"'{self.kind}'" if isinstance(self.kind, str) else "this section"
                self.fail(name, f'{whose} of {self.context.dialect} has no such key that boxdet could translate'
                                f'{nearest(name, table)}')
            elif isinstance(rule, str):
                found[rule] = self.piece(name)
            elif isinstance(rule, Only):
                if value not in rule.values:
                    self.fail(name, f'{value!r} cannot be translated: {rule.advice}')
            elif not isinstance(rule, Idle):
                found.update(rule(self, name))
        return found


def same(*names: str) -> dict[str, Rule]:
    """Rules of keys that are called alike on both sides."""
    return {name: name for name in names}
