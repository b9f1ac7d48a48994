"""How a section of ``train_cfg`` / ``test_cfg`` (mmdetection 2.x's dialect) becomes a frozen dataclass.

The class that reads a section declares its keys: ``train_settings`` and ``test_settings`` of a head or detector name a
dataclass, whose fields are the keys and whose defaults are theirs. A subclass extends the dataclass of its parent to
have one key more. None, the default, hands the section over as a dict. A user's class that inherits a declaration of
boxdet's is given further keys unchecked (``Open``), unless one resembles a key that there is. A detector's dataclass
has fields that are sections themselves (``section``), and the class of the part that reads one is asked for the
dataclass.

An unknown key is an error with its full path and the nearest valid name; nothing is read from the caller's dicts after
this.
"""
from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, make_dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from boxdet.abilities import declaring_class
from boxdet.errors import ConfigError, nearest
from boxdet.geometry.nms import batched_nms
from boxdet.registry import HEADS

_RESEMBLES = 0.75  # an undeclared key at least this similar to a declared one is taken for a misspelling
# Says what a field may hold: called with the path and the value, raises ConfigError.
Check = Callable[[str, object], None]
OlderKey = Callable[[Any], tuple[str, Any]]  # the old value to the new key and value


class Section(dict):
    """A section that no dataclass describes: a dict whose keys can also be read as attributes, as in mmdetection."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no '{name}' in this section of the config; it has {sorted(self)}") from None


@dataclass(frozen=True)
class PerStage:
    """What a cascade declares: a list of sections, one a stage, is read into a tuple of ``settings``."""
    settings: type


@dataclass(frozen=True)
class Open:
    """``settings`` with keys that are not declared: of a user's class that inherits the declaration of boxdet's."""
    settings: type | PerStage


class Settings:
    """Base of boxdet's dataclasses: they can be read as dicts too, as mmdetection's own code does.

    Attributes:
        declared: the dataclass that this one extends by keys of one config.
    """
    declared: ClassVar[type | None] = None
    __dataclass_fields__: ClassVar[dict[str, Field]]  # of the dataclass that derives from this

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return any(f.name == key for f in fields(self))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where there is no such setting."""
        return getattr(self, key) if key in self else default

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _rebuilt, (self.declared or type(self), {f.name: getattr(self, f.name) for f in fields(self)})


# ---------------------------------------------------------------------------------------------- fields


def number(default: float, low: float | None = None, high: float | None = None) -> float:
    """A field that holds a number, from ``low`` to ``high`` where these are given."""
    return field(default=default, metadata=dict(check=partial(check_number, low=low, high=high)))


def integer(default: int) -> int:
    """A field that holds an integer."""
    return field(default=default, metadata=dict(check=check_integer))


def nms(**default: str | float) -> dict:
    """A field that holds the config of a suppression."""
    return field(default_factory=lambda: dict(default), metadata=dict(check=check_nms))


def section(part: str, declared: str) -> Any:
    """A field that is a section itself.

    Args:
        part: the key of the model's config whose class reads the section, such as 'roi_head'.
        declared: the attribute of that class that names the dataclass: 'train_settings' or 'test_settings'.
    """
    return field(default=None, metadata=dict(part=part, declared=declared))


def check_number(path: str, value: object, low: float | None = None, high: float | None = None) -> None:
    """Raise ConfigError unless ``value`` is a number from ``low`` to ``high``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f'{path} must be a number, not {value!r}')
    if low is not None and value < low or high is not None and value > high:
        raise ConfigError(f'{path} must {_range(low, high)}, not {value!r}')


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f'be at least {low}' if high is None else f'be at most {high}'
    return f'lie in [{low}, {high}]'


def check_integer(path: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is an integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f'{path} must be an integer, not {value!r}')


def check_nms(path: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is the config of a suppression."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} must be a dict such as dict(type='nms', iou_threshold=0.5), not {value!r}")
    try:
        batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), value)  # checks its config first
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from None
    for key in ('iou_threshold', 'iou_thr'):
        if key in value:
            check_number(f'{path}.{key}', value[key], 0, 1)


# ---------------------------------------------------------------------------------------------- parsing


def read_section(reader: object, name: str, cfg: object, where: str, parts: Mapping[str, object] | None = None) -> Any:
    """Read one section as ``reader`` (an object, its class or its config) declares it under ``name``."""
    return parse_section(declared_by(reader, name), cfg, where, parts)


def parse_section(settings: type | PerStage | Open | None, cfg: object, where: str,
                  parts: Mapping[str, object] | None = None) -> Any:
    """Read one section; None, or an object of the dataclass, is returned as it is.

    Args:
        settings: the dataclass of the section; None for one that is handed over as a ``Section``. Its
            ``older_keys``, if it has them, map an older spelling to a function from the old value to the new key and
            value.
        cfg: the section. It is not changed.
        where: its path in the config, for messages.
        parts: configs of the model's parts, or the parts, by the name that ``section`` fields use.

    Raises:
        ConfigError: an unknown or missing key, or a value that cannot be right.
    """
    further = isinstance(settings, Open)
    if isinstance(settings, Open):
        settings = settings.settings
    if isinstance(settings, PerStage):
        one = Open(settings.settings) if further else settings.settings
        if isinstance(cfg, Sequence) and not isinstance(cfg, str):
            return tuple(parse_section(one, stage, f'{where}.{i}') for i, stage in enumerate(cfg))
        settings = settings.settings
    assert not isinstance(settings, Open)  # there is one around it at most
    if settings is None and isinstance(cfg, (Mapping, list, tuple)):
        return _as_sections(cfg)
    if cfg is None or settings is not None and isinstance(cfg, settings):
        return cfg
    if not isinstance(cfg, Mapping):
        stages = '; a list, one a stage, is for CascadeRoIHead' if isinstance(cfg, (list, tuple)) else ''
        raise ConfigError(f'{where} must be a dict, not {type(cfg).__name__}{stages}')
    assert settings is not None  # without it a dict became a Section above
    if further:
        settings = _with_further(settings, cfg)
    return _fill(settings, cfg, where, parts or {})


def declared_by(part: object, name: str) -> type | PerStage | Open | None:
    """What the class of ``part`` declares as ``train_settings`` or ``test_settings``.

    Args:
        part: an object, its class or its config.
        name: of the attribute.
    """
    if isinstance(part, Mapping):
        part = HEADS.get(part['type']) if 'type' in part else None
    kind = part if isinstance(part, type) else type(part)
    settings, owner = getattr(part, name, None), declaring_class(kind, name)
    if settings is None or owner is None or not owner.__module__.startswith('boxdet.'):
        return settings
    return settings if kind.__module__.startswith('boxdet.') else Open(settings)


def _with_further(settings: type, cfg: Mapping[str, object]) -> type:
    """``settings`` with a field for each key of ``cfg`` that resembles none of its own."""
    known = [*(f.name for f in fields(settings)), *getattr(settings, 'older_keys', ())]
    further = [(key, Any, field(default=None)) for key in cfg if str(key).isidentifier() and key not in known
               and not difflib.get_close_matches(key, known, n=1, cutoff=_RESEMBLES)]
    if not further:
        return settings
    return make_dataclass(settings.__name__, further, bases=(settings,), frozen=True, namespace=dict(declared=settings))


def _rebuilt(settings: type, values: Mapping[str, object]) -> object:
    """A copy, or what a pickle held: classes with further keys have no name to find them by."""
    known = {f.name for f in fields(settings)}
    return _with_further(settings, {k: v for k, v in values.items() if k not in known})(**values)


def _fill(settings: type, cfg: Mapping[str, object], where: str, parts: Mapping[str, object]) -> Any:
    known = {f.name: f.metadata for f in fields(settings) if f.init}
    older = getattr(settings, 'older_keys', {})
    values: dict[str, Any] = {}
    for key, value in cfg.items():
        path = f'{where}.{key}'
        if key in known and 'part' in known[key]:
            values[key] = _inner_section(known[key], value, path, parts)
        elif key in known or key in older:
            if key in known and 'check' in known[key]:
                known[key]['check'](path, value)
            values[key] = copy.deepcopy(value)
        else:
            kind = 'section' if any('part' in metadata for metadata in known.values()) else 'setting'
            raise ConfigError(f'{path}: there is no such {kind}{nearest(key, [*known, *older])}')
    for key in [key for key in older if key in values]:
        _modernize(values, key, older[key], where)
    try:
        return settings(**values)
    except TypeError as error:  # fields without a default
        raise ConfigError(f'{where}: {error}') from error


def _inner_section(metadata: Mapping[str, str], value: object, path: str, parts: Mapping[str, object]) -> Any:
    part = parts.get(metadata['part'])
    if part is None and value:
        warnings.warn(f"{path} is read by nobody: the model has no {metadata['part']}", stacklevel=6)
    return parse_section(declared_by(part, metadata['declared']), value, path)


def _as_sections(value: object) -> object:
    """A copy of ``value`` whose dicts are ``Section``."""
    if isinstance(value, Mapping):
        return Section({key: _as_sections(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_as_sections(item) for item in value)
    return copy.deepcopy(value)


def _modernize(values: dict[str, Any], key: str, translate: OlderKey, where: str) -> None:
    """Put today's key in the place of an older one, in ``values``.

    Raises:
        ConfigError: both are there and disagree.
    """
    old = values.pop(key)
    new, value = translate(old)
    shown = f"{new}={value}" if isinstance(value, Mapping) else new
    warnings.warn(f'{where}.{key} is now {shown}', DeprecationWarning, stacklevel=6)
    values.setdefault(new, value)
    given = values[new]
    pairs = [(f'{new}.{name}', given.get(name, one), one) for name, one in value.items() if name != 'type'] \
        if isinstance(value, Mapping) else [(new, given, value)]
    for name, one, wanted in pairs:
        if one != wanted:
            raise ConfigError(f'{where}: {key}={old} and {name}={one} disagree')
