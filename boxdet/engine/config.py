"""Config files with ``_base_`` inheritance -> Config, which knows where each of its values came from.

The format is mmdetection 2.x's: every top-level variable is a key; ``_base_`` names the files to start from; a dict
is merged into the base's dict of that name unless it holds ``_delete_=True``; ``{{_base_.key}}`` is a base's value;
``{{ fileDirname }}``, ``{{ fileBasename }}``, ``{{ fileBasenameNoExtension }}`` and ``{{ fileExtname }}`` stand for
the file's own name. mmengine's Config holds the result; its loader is not used, because it forgets which file set what.
Configs of mmdetection 3.x, mmengine's ``with read_base()`` files among them, are translated as they are read.

    cfg = load_config('configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py', ['model.backbone.depth=101'])
    check_config(cfg)                      # wrong keys are found before anything runs (config_check.py)
    cfg.explain('model.backbone.depth')    # who set it: a Setting for the base file's 50, one for the option's 101
"""
from __future__ import annotations

import ast
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config as _MMEngineConfig
from mmengine.config import ConfigDict
from mmengine.config.config import RESERVED_KEYS

from boxdet import idle_overrides
from boxdet.engine.config_sections import HABITS, SECTIONS
from boxdet.engine.config_source import (
    ABSENT,
    CONFIG_SUFFIXES,
    DELETE,
    ConfigWarning,
    Key,
    SourceFile,
    lookup,
    parse_data,
    plain,
    read_literal_python,
    read_source,
    run_pure_python,
    show_path,
    write_literal_python,
)
from boxdet.engine.dialects import mmdet3
from boxdet.engine.dialects.packages import find_config, package_config, package_module
from boxdet.engine.dialects.pure_python import Named, base_imports
from boxdet.errors import ConfigError, nearest

__all__ = ['ABSENT', 'Config', 'ConfigDict', 'ConfigWarning', 'Setting', 'check_config', 'load_config', 'parse_options',
           'parse_value']

OPTIONS = '--cfg-options'


@dataclass(frozen=True)
class Setting:
    """One assignment: ``source`` (a SourceFile, or '--cfg-options') gave ``key`` the ``value``; ABSENT removed it.

    ``written`` is the key as the source has it, where that is another: in a config of mmdetection 3.x.
    """
    source: SourceFile | str
    key: Key
    value: Any
    written: Key | None = None

    @property
    def place(self) -> str:
        """``file:line``, or the command-line option; then the key as it is written there, if it is another."""
        line = self.source.line_of(self.written or self.key) if isinstance(self.source, SourceFile) else None
        place = f'{self.source}:{line}' if line else str(self.source)
        return f'{place}, {_dotted(self.written)}' if self.written and self.written != self.key else place


class Config(_MMEngineConfig):
    """mmengine's Config (keys as attributes and items, ``pretty_text``, ``dump``), which also knows its origins."""

    def __init__(self, cfg_dict: dict | None = None, cfg_text: str | None = None, filename: str | None = None,
                 settings: list[Setting] | None = None, files: list[SourceFile] | None = None,
                 as_written: Config | None = None, **kwargs: Any):
        taken = next((key for key in RESERVED_KEYS if key in (cfg_dict or {})), None)
        if taken is not None:
            raise ConfigError(f"{show_path(filename) if filename else 'config'}: '{taken}' is a name that Config keeps "
                              'for itself; call the variable something else')
        super().__init__(cfg_dict, cfg_text=cfg_text, filename=filename, **kwargs)
        # object.__setattr__, as mmengine's turns every attribute into a config key.
        object.__setattr__(self, '_settings', settings or [])
        object.__setattr__(self, '_files', files or [])
        object.__setattr__(self, '_as_written', as_written)

    @staticmethod
    def fromfile(filename: str | Path, import_custom_modules: bool = True) -> Config:
        """``load_config`` under mmcv's name."""
        return load_config(filename, import_custom_modules=import_custom_modules)

    @staticmethod
    def fromstring(cfg_str: str, file_format: str = '.py') -> Config:
        """Read dumped config text (``pretty_text``, a checkpoint's ``meta['config']``) without executing it."""
        if file_format == '.py':
            return Config(read_literal_python(cfg_str), cfg_text=cfg_str)
        return Config(parse_data(cfg_str, f'<config text>{file_format}'), cfg_text=cfg_str)

    @property
    def pretty_text(self) -> str:
        """The config as the text of one config file without bases; ``fromstring`` and ``load_config`` read it."""
        return write_literal_python(self.to_dict())

    @property
    def files(self) -> list[SourceFile]:
        """Every file that took part, bases first."""
        return self._files

    @property
    def as_written(self) -> Config | None:
        """The config of mmdetection 3.x that this one is the translation of; None where it is none."""
        return self._as_written

    def explain(self, key: str) -> list[Setting]:
        """The assignments of 'model.backbone.depth' and of what is in or around it, oldest first.

        For a single value the last one holds and overrode the others.

        Raises:
            ConfigError: nothing ever set such a key.
        """
        path = self._resolve(key)
        found = list(self._history(path))
        if not found:
            around = lookup(self._cfg_dict, path[:-1])
            near = nearest(path[-1], around) if isinstance(around, Mapping) else ''
            raise ConfigError(f"{key}: nothing sets this key{near}")
        return found

    def origin(self, key: str) -> str:
        """``file:line`` of what last set ``key`` or the dict or list around it; '' when that is not known."""
        path = self._resolve(key)
        while path:
            history = list(self._history(path))
            if history:
                return history[-1].place
            path = path[:-1]
        return ''

    def merge_from_dict(self, options: Mapping[str, Any]) -> None:
        """Set dotted keys, ``{'data.train.pipeline.2.flip_ratio': 0}``: numbers are indices where lists are.

        Raises:
            ConfigError: the key leads into a value that has no parts, or beyond a list's end.
        """
        values, settings = plain(self._cfg_dict), list(self._settings)
        for key, value in options.items():
            _set_option(values, key, value, settings)
        object.__setattr__(self, '_cfg_dict', ConfigDict(values))
        object.__setattr__(self, '_settings', settings)

    def _resolve(self, key: str) -> Key:
        path: Key = ()
        for part in key.split('.'):
            is_index = part.isdigit() and isinstance(lookup(self._cfg_dict, path), (list, tuple))
            path += (int(part) if is_index else part,)
        return path

    def _history(self, path: Key) -> Iterator[Setting]:
        """The settings of ``path``: of the key itself, as a part of what was set around it, or of what is inside."""
        seen = False
        for setting in self._settings:
            if setting.key[:len(path)] == path and len(setting.key) > len(path):
                seen = True
                yield setting
            elif setting.key == path[:len(setting.key)]:
                value = lookup(setting.value, path[len(setting.key):])
                if value is not ABSENT or seen:
                    seen = True
                    written = setting.written and setting.written + path[len(setting.key):]
                    yield Setting(setting.source, path, value, written)

    def __getstate__(self) -> dict:
        return dict(self.__dict__)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)


def named_config(path: str | os.PathLike) -> str | os.PathLike:
    """``path`` itself, or the file of that short name (see ``find_config``).

    Raises:
        ConfigError: a short name that no config has.
    """
    text = str(path)
    is_name = text and os.path.basename(text) == text and os.path.splitext(text)[1] not in CONFIG_SUFFIXES
    return find_config(text) if is_name and not os.path.exists(text) else path


def load_config(path: str | os.PathLike, options: Mapping[str, Any] | Sequence[str] | None = None,
                import_custom_modules: bool = True, translate: bool = True) -> Config:
    """Read a config file and its bases, set ``options``, import its ``custom_imports``.

    A config of mmdetection 3.x is translated; its options may name 3.x's keys or, as ``data.samples_per_gpu``, ours.

    Args:
        path: a .py, .json, .yaml or .yml file; or the short name of one in ``configs/``.
        options: what ``--cfg-options`` holds: ``['a.b=1', ...]`` or ``{'a.b': 1}``.
        import_custom_modules: import the modules that ``custom_imports`` names, so that their classes register.
        translate: False leaves a config of mmdetection 3.x as it is written.

    Raises:
        ConfigError: a file that is missing, cannot be parsed or fails (with its line), bases that contradict each
            other, a merge that cannot be, an option that cannot be set, an import that fails, a key of 3.x that cannot
            be translated.
    """
    settings: list[Setting] = []
    files: list[SourceFile] = []
    chosen = dict(options or {}) if options is None or isinstance(options, Mapping) else parse_options(options)
    path = named_config(path)
    values = _load_file(os.path.abspath(os.path.expanduser(str(path))), (), settings, files, _Variables(chosen))
    text = '\n'.join(f'# {file.path}\n{file.text}' for file in files)
    values = {name: value for name, value in values.items() if not isinstance(value, Named)}
    cfg = Config(values, cfg_text=text, filename=str(path), settings=settings, files=files)
    if translate and mmdet3.is_mmdet3(values):
        ours = {key: value for key, value in chosen.items() if mmdet3.is_ours_alone(key)}
        cfg.merge_from_dict({key: value for key, value in chosen.items() if key not in ours})
        cfg, chosen = translated(cfg), ours
    cfg.merge_from_dict(chosen)
    idle_overrides.allow(cfg.get('allow_idle_overrides', False))
    if import_custom_modules and cfg.get('custom_imports'):
        _import_modules(cfg)
    return cfg


def translated(cfg: Any) -> Any:
    """A config of mmdetection 3.x in mmdetection 2.x's sections; another one is returned as it is.

    Every value keeps its origin: the file, the line and 3.x's key.

    Args:
        cfg: Config, or a config of mmengine's.

    Raises:
        ConfigError: a key that cannot be translated, named with its place.
    """
    if not mmdet3.is_mmdet3(cfg):
        return cfg
    if not isinstance(cfg, Config):
        cfg = Config(plain(cfg.to_dict()), filename=getattr(cfg, 'filename', None))
    found = mmdet3.translate(plain(cfg._cfg_dict), lambda key: cfg.origin(_dotted(key)),
                             used={name for file in cfg.files for name in file.names_read()})
    for note in found.notes:
        warnings.warn(note, ConfigWarning, stacklevel=3)
    settings = list(_Moves(cfg, found.origins).settings(found.value))
    return Config(found.value, cfg_text=cfg.text, filename=cfg.filename, settings=settings, files=cfg.files,
                  as_written=cfg)


class _Moves:
    """The settings of a config as those of its translation.

    Args:
        cfg: as it was written.
        origins: pairs (key of the translation, key of ``cfg``), the whole before its parts.
    """

    def __init__(self, cfg: Config, origins: Sequence[tuple[Key, Key]]):
        self.cfg = cfg
        self.origins = dict(origins)
        self.around = {new[:length] for new, _ in origins for length in range(len(new))}

    def settings(self, value: Any, at: Key = (), came: tuple[Key, Key] = ((), ())) -> Iterator[Setting]:
        """Those of ``value``, which stands at ``at``; ``came`` is the nearest pair of ``origins`` around it."""
        came = (at, self.origins[at]) if at in self.origins else came
        old = came[1] + at[len(came[0]):]
        before = lookup(self.cfg._cfg_dict, old)
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if at in self.around or isinstance(value, dict) and value and before != value:
            for key, part in parts:
                yield from self.settings(part, at + (key,), came)
            return
        if before == value:
            for one in self.cfg._history(old):
                yield Setting(one.source, (*at, *one.key[len(old):]), one.value, one.written or one.key)
            return
        history = list(self.cfg._history(came[1]))
        if history:  # made from it: what it overrode would be no value of this key
            yield Setting(history[-1].source, at, value, history[-1].written or came[1])


def check_config(cfg: Any, needed: Sequence[str] = ()) -> None:
    """Check every key and type of a Config (or dict) against what will read it; nothing is built.

    Variables of a file that look like misspelt keys, or that no longer reach anything, are ConfigWarnings; of the
    options they are errors: see ``refuse_misspelt_options``.

    Args:
        cfg: Config or dict; it is not changed.
        needed: sections without which the caller cannot work: 'model', 'data.train'.

    Raises:
        ConfigError: a needed section is missing; the first wrong key, type or section: its full path, the file that set
            it, the nearest valid name.
    """
    from boxdet.engine import config_check  # imports torch and the readers of all sections
    refuse_misspelt_options(cfg)
    config_check.check(cfg, needed)


def refuse_misspelt_options(cfg: Any) -> None:
    """Refuse variables that options alone set in the Config of a file, and whose names resemble others: ``modell.x=3``.

    Nothing can read them but code of the user's own, which a name unlike any other leaves alone.

    Raises:
        ConfigError: there is one; the message tells the nearest name.
    """
    if not getattr(cfg, 'files', ()):  # made from a dict: nobody knows what was in it before
        return
    added = [name for name in cfg if cfg.origin(name) == OPTIONS
             and all(setting.source == OPTIONS for setting in cfg.explain(name))]
    if not added:
        return
    known = {*SECTIONS, *HABITS, *(name for name in cfg if name not in added)}
    for name in added:
        near = '' if name in known else nearest(name, known)
        if near:
            raise ConfigError(f'{name} ({OPTIONS}): nothing reads this variable{near}')


class _Variables(dict):
    """By variable, what gives it the options' value.

    ``--cfg-options data_root=/my/coco/`` moves every path that a file makes from it. Sections (``model``,
    ``data``, …) get theirs at the end, when all files are merged.
    """

    def __init__(self, options: Mapping[str, Any]):
        super().__init__()
        self.originals: dict[str, Any] = {}
        for key, value in options.items():
            name = key.partition('.')[0]
            if name not in SECTIONS and name not in mmdet3.SECTIONS:
                self.setdefault(name, _Settled(name, self.originals)).options[key] = value

    def restored(self, settings: list[Setting], source: SourceFile) -> list[Setting]:
        """What ``source`` set, with its own values in the place of the options'."""
        kept = [one for one in settings if one.key[0] not in self.originals]
        for name, value in self.originals.items():
            _record(plain(value), source, kept, (name,))
        self.originals.clear()
        return kept


class _Settled:
    """Takes what a file gave a variable and returns what it is by the options."""

    def __init__(self, name: str, originals: dict[str, Any]):
        self.name, self.originals = name, originals
        self.options: dict[str, Any] = {}

    def __call__(self, value: Any) -> Any:
        self.originals[self.name] = value
        values = {self.name: plain(value)}
        for key, new in self.options.items():
            with contextlib.suppress(ConfigError):  # told when the option is set in the whole
                _set_option(values, key, new, [])
        return ConfigDict(values)[self.name] if isinstance(value, ConfigDict) else values[self.name]


def _load_file(path: str, chain: tuple[str, ...], settings: list[Setting], files: list[SourceFile],
               variables: _Variables) -> dict:
    """Return the file's keys with its bases merged in; append what it set to ``settings`` and itself to ``files``."""
    if path in chain:
        raise ConfigError(f"{show_path(chain[-1])}: '_base_' leads back to {show_path(path)}")
    source = read_source(path, chain[-1] if chain else '')
    if source.is_pure_python:
        return _load_pure_python(source, (*chain, path), settings, files, variables)
    merged: dict = {}
    owners: dict[str, str] = {}
    for name in source.base_names(variables):
        base = _load_file(_base_path(name, path), chain + (path,), settings, files, variables)
        twice = next((key for key in base if key in owners), None)
        if twice is not None:
            raise ConfigError(f"{source}: the bases {owners[twice]} and {name} both set '{twice}'")
        owners.update(dict.fromkeys(base, name))
        merged.update(base)
    files.append(source)
    own, changed = source.values(merged, variables)
    here: list[Setting] = []
    _record_changes(merged, changed, source, here)
    _merge(own, changed, source, here)
    settings += variables.restored(here, source)
    return changed


def _base_path(name: str, path: str) -> str:
    """The path of the base ``name`` of the file ``path``; ``mmdet::x.py`` is a file of the package mmdet."""
    package, separator, inside = name.partition('::')
    if separator:
        return package_config(package, inside)
    return os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(name)))


def _load_pure_python(source: SourceFile, chain: tuple[str, ...], settings: list[Setting],
                      files: list[SourceFile], variables: _Variables) -> dict:
    """As ``_load_file``: a file with ``read_base()`` works on its bases' variables in place of merging into them."""
    base: dict = {}
    assert source.tree is not None  # it is Python
    for one in base_imports(source.tree):
        if one.level:
            folder = os.path.normpath(os.path.join(os.path.dirname(source.path), *[os.pardir] * (one.level - 1)))
            path = os.path.join(folder, *one.module.split('.')) + '.py'
        else:
            path = package_module(one.module)
        base.update(one.choose(_load_file(path, chain, settings, files, variables)))
    files.append(source)
    values = run_pure_python(source, base, variables)
    here: list[Setting] = []
    _record_changes(base, values, source, here)
    settings += variables.restored(here, source)
    return values


def _record_changes(before: Mapping, after: Mapping, source: SourceFile, settings: list[Setting], at: Key = ()) -> None:
    """Append what a file that ran made of the variables ``before`` to ``settings``."""
    for key, value in after.items():
        here, old = at + (key,), before.get(key, ABSENT)
        if isinstance(value, Named) or value == old and type(value) is type(old):
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            _record_changes(old, value, source, settings, here)
        else:
            settings.extend(Setting(source, gone, ABSENT) for gone in _leaves(old, here) if gone != here)
            _record(value, source, settings, here)
    for key in before:
        if key not in after and not isinstance(before[key], Named):
            settings.extend(Setting(source, gone, ABSENT) for gone in _leaves(before[key], at + (key,)))


# mmdetection's configs import these for backbones that boxdet has itself; any other type of theirs is an error that
# names it when the model is built.
_OUR_OWN = ('mmcls.models', 'mmpretrain.models')


def _import_modules(cfg: Config) -> None:
    wanted = cfg.custom_imports
    if not isinstance(wanted, Mapping):
        wanted = dict(imports=wanted)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python tools/train.py` looks for modules in tools/ only
    names = wanted.get('imports', [])
    for name in [names] if isinstance(names, str) else names:
        if name in _OUR_OWN:
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            message = (f"custom_imports ({cfg.origin('custom_imports')}): cannot import '{name}': {error}; "
                       'modules are looked for in the working directory and on PYTHONPATH')
            if not wanted.get('allow_failed_imports'):
                raise ConfigError(message) from error
            warnings.warn(message, ConfigWarning, stacklevel=3)


# ------------------------------------------------------------------------------------------------ merging


def _merge(new: dict, into: dict, source: SourceFile | str, settings: list[Setting], at: Key = ()) -> None:
    """Merge ``new`` into ``into``, in place, as 2.x does; append to ``settings`` what was set."""
    for key, value in new.items():
        if key == DELETE:
            continue
        here, old = at + (key,), into.get(key, ABSENT)
        if isinstance(value, dict) and not value.get(DELETE):
            if isinstance(old, dict):
                _merge(value, old, source, settings, here)
                continue
            if old is not ABSENT and old is not None:
                place = Setting(source, here, value).place
                raise ConfigError(f"{_dotted(here)} ({place}): a dict cannot be merged into the base's "
                                  f"{type(old).__name__}; dict({DELETE}=True, ...) replaces it")
        elif isinstance(value, dict):
            settings.extend(Setting(source, gone, ABSENT) for gone in _leaves(old, here))
        into[key] = _without_delete(value)
        _record(into[key], source, settings, here)


def _without_delete(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_delete(item) for key, item in value.items() if key != DELETE}
    if type(value) in (list, tuple):
        return type(value)(_without_delete(item) for item in value)
    return value


def _record(value: Any, source: SourceFile | str, settings: list[Setting], at: Key) -> None:
    # Dicts are taken apart, because later files merge into them key by key; lists are set as a whole.
    if isinstance(value, dict) and value:
        for key, item in value.items():
            _record(item, source, settings, at + (key,))
    else:
        settings.append(Setting(source, at, plain(value)))


def _leaves(value: Any, at: Key) -> Iterator[Key]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, at + (key,))
    elif value is not ABSENT:
        yield at


def _dotted(key: Key) -> str:
    return '.'.join(str(part) for part in key)


# ------------------------------------------------------------------------------------------------ options


def _set_option(values: dict, dotted: str, value: Any, settings: list[Setting]) -> None:
    """Set one dotted key in place; dicts on the way are made where they are absent, as in 2.x."""
    inside: Any = values
    path: Key = ()
    parts = dotted.split('.')
    part: int | str
    for part in parts:
        if isinstance(inside, list):
            part = _index(part, inside, path, dotted)
        elif not isinstance(inside, dict):
            raise ConfigError(f"{OPTIONS} {dotted}: '{_dotted(path)}' is {inside!r}, which has no '{part}'")
        path += (part,)
        if isinstance(inside, list) and part == len(inside):
            inside.append({})  # one more at the end
        if len(path) == len(parts):
            break
        if isinstance(inside, dict) and inside.get(part) is None:
            inside[part] = {}
        if isinstance(inside[part], tuple):
            inside[part] = list(inside[part])
        inside = inside[part]
    if isinstance(inside, dict):
        _merge({path[-1]: plain(value)}, inside, OPTIONS, settings, path[:-1])
    elif isinstance(value, Mapping) and isinstance(inside[path[-1]], dict) and not value.get(DELETE):
        _merge(plain(value), inside[path[-1]], OPTIONS, settings, path)
    else:
        inside[path[-1]] = _without_delete(plain(value))
        _record(inside[path[-1]], OPTIONS, settings, path)


def _index(part: str, inside: list, path: Key, dotted: str) -> int:
    where = f"{OPTIONS} {dotted}: '{_dotted(path)}'"
    if not part.isdigit():
        raise ConfigError(f'{where} is a list of {len(inside)}; name one by its index, {_dotted(path)}.0.{part}')
    if int(part) > len(inside):
        raise ConfigError(f'{where} has {len(inside)} items, 0 to {len(inside) - 1}; {len(inside)} adds one')
    return int(part)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read command-line pairs.

    >>> parse_options(['a.b=1', 'c=[1,x]', 'd="(1,2)"', 'e=1,2', 'f=None'])
    {'a.b': 1, 'c': [1, 'x'], 'd': (1, 2), 'e': [1, 2], 'f': None}

    Values are numbers, ``True``/``False``, ``None``, lists and tuples of values, Python literals such as dicts, or
    else text; quotes around the whole value are for the shell and are taken off.

    Raises:
        ConfigError: a pair without ``=``, or without a key.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key.strip():
            raise ConfigError(f"options are written KEY=VALUE, not '{pair}'")
        options[key.strip()] = parse_value(value)
    return options


def parse_value(text: str) -> Any:
    """Read one option value; see ``parse_options``."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in '\'"' and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    parts = _split(text)
    if len(parts) > 1:
        return [parse_value(part) for part in parts if part.strip()]
    if text[:1] + text[-1:] in ('()', '[]'):
        items = [parse_value(part) for part in _split(text[1:-1]) if part.strip()]
        return items if text[0] == '[' else tuple(items)
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    for read in (ast.literal_eval, float):  # float for inf and nan
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes."""
    parts, depth, quote, start = [], 0, '', 0
    for i, letter in enumerate(text):
        if quote:
            quote = '' if letter == quote else quote
        elif letter in '\'"':
            quote = letter
        elif letter in '([{':
            depth += 1
        elif letter in ')]}':
            depth -= 1
        elif letter == ',' and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return parts + [text[start:]]
