"""One config file: read, parsed, executed, searched for the line that sets a key. Its bases are config.py's work."""
from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import io
import json
import keyword
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from mmengine.config import ConfigDict

from boxdet.engine.dialects import pure_python
from boxdet.errors import ConfigError

_WEIGHTS = ('.pth', '.pt', '.pkl', '.ckpt', '.bin', '.safetensors', '.caffemodel')  # endings of checkpoints
_MOST_FOLDERS = 500  # looked into for a file that is not where it was said to be
BASE, DELETE = '_base_', '_delete_'

Settle = Mapping[str, Callable[[Any], Any]]  # by variable, see ``SourceFile.values``
Key = tuple[Any, ...]  # ('data', 'train', 'pipeline', 2, 'flip_ratio'): str for dicts, int for lists

CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


class ConfigWarning(UserWarning):
    """A config that runs, but hardly as it was meant."""


class _Absent:
    def __repr__(self) -> str:
        return '(removed)'


ABSENT = _Absent()  # the value of a key that is not there


def lookup(value: Any, key: Key) -> Any:
    """The part of nested dicts and lists that ``key`` leads to, or ABSENT."""
    for part in key:
        inside = isinstance(value, Mapping) and part in value
        inside |= isinstance(value, (list, tuple)) and isinstance(part, int) and 0 <= part < len(value)
        if not inside:
            return ABSENT
        value = value[part]
    return value


def plain(value: Any) -> Any:
    """A copy in plain dicts, lists and tuples, paths as texts, that shares no container.

    One variable is often used in many places.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in dict.items(cast(dict, value))}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def show_path(path: str) -> str:
    """``path`` from the working directory, where it lies below that; else as it is."""
    relative = os.path.relpath(path)
    return path if relative.startswith('..') else relative


@dataclass(frozen=True)
class SourceFile:
    """A config file as it was read: its text, and its syntax tree where it is Python (None for JSON and YAML)."""
    path: str
    text: str
    tree: ast.Module | None

    def __str__(self) -> str:
        return show_path(self.path)

    def line_of(self, key: Key) -> int | None:
        """The line (from 1) that sets ``key``, or the nearest one around it in the nesting; None when not found."""
        return _line_in_tree(self.tree, key) if self.tree is not None else None

    @property
    def is_pure_python(self) -> bool:
        """Whether it is mmengine's newer kind, with ``read_base()`` in place of ``_base_``."""
        return self.tree is not None and pure_python.is_pure_python(self.tree)

    def names_read(self) -> set[str]:
        """The variables that the file's own expressions use, ``{{_base_.name}}`` included."""
        nodes = list(ast.walk(self.tree)) if self.tree is not None else []
        names = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        return names | {n.attr for n in nodes if isinstance(n, ast.Attribute)} | set(_BASE_VALUE.findall(self.text))

    def base_names(self, settle: Settle | None = None) -> list[str]:
        """What ``_base_`` names. An expression is computed, and with it the statements before it.

        Args:
            settle: as in ``values``.

        Raises:
            ConfigError: it is neither a file name nor a list of them.
        """
        if self.tree is None:
            return _base_names_in_data(self.text)
        node = _last_base_statement(self.tree)
        if node is None:
            return []
        value = _value_of_base(self.tree, node, self.path, settle or {})
        names = [value] if isinstance(value, (str, os.PathLike)) else value
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, os.PathLike)) for name in names):
            raise ConfigError(f"{self}:{node.lineno}: '{BASE}' must be a file name or a list of them")
        return [str(name) for name in names]

    def values(self, base: dict, settle: Settle | None = None) -> tuple[dict, dict]:
        """The keys that the file itself sets, with ``_delete_`` marks inside, and its bases' keys as it left them.

        ``_base_.model.backbone.depth = 101`` changes those in place.

        Args:
            base: the keys of its bases.
            settle: by variable, what is made of its value before others are computed from it.

        Raises:
            ConfigError: the file fails, names the line.
        """
        if self.tree is not None:
            return _run_python(self.tree, self.path, base, settle or {})
        own = parse_data(_substitute_base_values(self.text, self.path, base), self.path)
        return {name: (settle or {}).get(name, plain)(value) for name, value in own.items()}, base


def read_source(path: str, asked_by: str = '') -> SourceFile:
    """Read and parse a config file.

    Args:
        path: absolute.
        asked_by: the file whose ``_base_`` names it, for the message.

    Raises:
        ConfigError: the file is missing (names the most similar one) or is not valid Python (names the line).
    """
    extension = os.path.splitext(path)[1]
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        if extension in _WEIGHTS and isinstance(error, UnicodeDecodeError):
            raise ConfigError(f'{show_path(path)} is no config; it looks like a checkpoint: a command line takes the '
                              'config first') from None
        asked = f" (a '{BASE}' of {show_path(asked_by)})" if asked_by else ''
        reason = 'no such config file' if isinstance(error, FileNotFoundError) else error
        raise ConfigError(f'{show_path(path)}: {reason}{asked}{_nearest_file(*os.path.split(path))}') from None
    if extension not in CONFIG_SUFFIXES:
        raise ConfigError(f'{show_path(path)}: a config is a .py, .json, .yaml or .yml file')
    text = _substitute_file_names(text, path)
    return SourceFile(path, text, parse_python(text, path) if extension == '.py' else None)


def _nearest_file(folder: str, name: str) -> str:
    """The file of that name in a folder nearby, or else the one in the same folder whose name is the most similar."""
    nearby = folder
    while not os.path.isdir(nearby) and os.path.dirname(nearby) != nearby:
        nearby = os.path.dirname(nearby)
    for root in dict.fromkeys((nearby, os.path.dirname(nearby))):
        found = _below(root, name)
        if found:
            return f'; did you mean {show_path(found)}?'
    if nearby != folder:
        return f'; there is no folder {show_path(folder)}'
    close = difflib.get_close_matches(name, os.listdir(folder), n=1, cutoff=0.5)
    return f'; did you mean {show_path(os.path.join(folder, close[0]))}?' if close and close[0] != name else ''


def _below(root: str, name: str) -> str | None:
    """The path of the file ``name`` in ``root`` or two folders below it, where there are not too many."""
    folders = [root]
    for _ in range(3):
        inside = []
        for folder in folders[:_MOST_FOLDERS]:
            if os.path.isfile(os.path.join(folder, name)):
                return os.path.join(folder, name)
            with contextlib.suppress(OSError):
                inside += sorted(one.path for one in os.scandir(folder) if one.is_dir() and one.name[0] != '.')
        folders = inside
    return None


def _substitute_file_names(text: str, path: str) -> str:
    name, extension = os.path.splitext(os.path.basename(path))
    known = dict(fileDirname=os.path.dirname(path).replace('\\', '/'), fileBasename=name + extension,
                 fileBasenameNoExtension=name, fileExtname=extension)
    return re.sub(r'\{\{\s*(' + '|'.join(known) + r')\s*\}\}', lambda match: known[match.group(1)], text)


# ------------------------------------------------------------------------------------------------ Python files


def parse_python(text: str, path: str) -> ast.Module:
    """The syntax tree of a config; ConfigError names file, line and text where there is none."""
    try:
        tree = ast.parse(text, filename=path)
    except (SyntaxError, ValueError) as error:
        line = (getattr(error, 'text', '') or '').strip()
        raise ConfigError(f'{show_path(path)}:{getattr(error, "lineno", 1)}: {getattr(error, "msg", error)}'
                          f'{f": {line}" if line else ""}') from None
    return tree


def _last_base_statement(tree: ast.Module) -> ast.stmt | None:
    """The last statement at the top of a file in which ``_base_`` is set, be it within an ``if``."""
    return next((node for node in reversed(tree.body) if BASE in _stored([node])), None)


def _stored(nodes: Iterable[ast.AST]) -> list[str]:
    """The variables that are set within ``nodes``."""
    return [one.id for node in nodes for one in ast.walk(node)
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]


def _value_of_base(tree: ast.Module, node: ast.stmt, path: str, settle: Settle) -> Any:
    """What ``_base_`` is after ``node``; a literal is read without running the file."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        with contextlib.suppress(ValueError):
            return ast.literal_eval(node.value)
    before = copy.deepcopy(tree.body[:tree.body.index(node) + 1])
    namespace = {'__file__': path, '__name__': '__config__', '__settle__': settle}
    return _execute(_prepared(before, settle, keep_base=True), path, namespace).get(BASE, [])


class _Prepared(ast.NodeTransformer):
    """Settles a variable behind each statement that sets it; ``_base_`` stays what it is, the bases' values."""

    def __init__(self, names: Iterable[str], keep_base: bool):
        self._names, self._keep_base = set(names), keep_base

    def _settled(self, node: ast.stmt, targets: Iterable[ast.expr]) -> Any:
        found = _stored(targets)
        for target in targets:
            if isinstance(target, ast.Name) and target.id == BASE and not self._keep_base:
                target.id = '__bases__'
        more = [ast.parse(f"{name} = __settle__[{name!r}]({name})").body[0] for name in found if name in self._names]
        return [node, *(ast.fix_missing_locations(ast.copy_location(one, node)) for one in more)] if more else node

    def visit_Assign(self, node: ast.Assign) -> Any:
        return self._settled(node, node.targets)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        return self._settled(node, [node.target]) if node.value is not None else node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        return self._settled(node, [node.target])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return node

    # One reader for the three kinds.
    visit_ClassDef = visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]


def _prepared(body: list[ast.stmt], settle: Settle, keep_base: bool = False) -> list[ast.stmt]:
    return _Prepared(settle, keep_base).visit(ast.Module(body=body, type_ignores=[])).body


class _BaseValues(ast.NodeTransformer):
    """Turn ``{{_base_.key}}``, which Python reads as a set in a set, into a copy of the base's value."""

    def visit_Set(self, node: ast.Set) -> ast.AST:
        inner = node.elts[0]
        value = inner.elts[0] if isinstance(inner, ast.Set) and len(inner.elts) == len(node.elts) == 1 else None
        root = value
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            root = root.value
        if value is None or not isinstance(root, ast.Name) or root.id != BASE:
            return self.generic_visit(node)
        call = ast.Call(func=ast.Name(id='__plain__', ctx=ast.Load()), args=[value], keywords=[])
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _run_python(tree: ast.Module, path: str, base: dict, settle: Settle) -> tuple[dict, dict]:
    """Execute a config file; its public variables, without modules, functions and classes, are its keys.

    Returns them, and ``base`` as the file left it.
    """
    body = _prepared([_BaseValues().visit(node) for node in copy.deepcopy(tree.body)], settle)
    namespace = {'__file__': path, '__name__': '__config__', '__plain__': plain, '__settle__': settle,
                 BASE: ConfigDict(plain(base))}
    own = _public(_execute(body, path, namespace))
    return own, plain(namespace[BASE])


def run_pure_python(source: SourceFile, base: Mapping[str, Any], settle: Settle | None = None) -> dict:
    """Execute a file with ``read_base()``; ``base`` holds what that imports. Returns all of its variables.

    Classes that it imports are ``pure_python.Named``; in the values there are their names.

    Raises:
        ConfigError: the file fails, names the line.
    """
    namespace = {'__file__': source.path, '__name__': '__config__', '__named__': pure_python.Named, '__plain__': plain,
                 '__settle__': settle or {}, BASE: ConfigDict(plain(base)), **ConfigDict(plain(base))}
    assert source.tree is not None  # it is Python
    statements = copy.deepcopy(pure_python.runnable(source.tree))
    body = _prepared([_BaseValues().visit(node) for node in statements], settle or {})
    modules: list[str] = []
    values = pure_python.without_names(_public(_execute(body, source.path, namespace)), modules)
    if modules:
        wanted = values.get('custom_imports') or {}
        wanted = wanted if isinstance(wanted, Mapping) else dict(imports=wanted)
        named = wanted.get('imports') or []
        named = [named] if isinstance(named, str) else list(named)
        values['custom_imports'] = {**wanted, 'imports': named + [name for name in modules if name not in named]}
    return values


def _execute(body: list[ast.stmt], path: str, namespace: dict) -> dict:
    try:
        exec(compile(ast.Module(body=body, type_ignores=[]), path, 'exec'), namespace)
    except Exception as error:  # whatever the file raises is the user's to mend
        raise ConfigError(f'{show_path(path)}{_line_of_error(error, path)}: {type(error).__name__}: {error}') from error
    return namespace


def _public(namespace: Mapping[str, Any]) -> dict:
    skipped = (types.ModuleType, types.FunctionType, type, io.IOBase)
    return {name: plain(value) for name, value in namespace.items()
            if not name.startswith('__') and name != BASE and not isinstance(value, skipped)}


def _line_of_error(error: Exception, path: str) -> str:
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f':{line}' if line else ''


def _line_in_tree(tree: ast.Module, key: Key) -> int | None:
    assigned = {t.id: node for node in tree.body if isinstance(node, ast.Assign)
                for t in node.targets if isinstance(t, ast.Name)}
    deepest, line = -1, None
    for path, node, at in _assignments(tree):
        if key[:len(path)] != path:
            continue
        value, here, depth = node, at, len(path)
        for part in key[len(path):]:
            if isinstance(value, ast.Name) and value.id in assigned:
                value = assigned[value.id].value  # data = dict(train=dict(pipeline=train_pipeline))
            inner = _child(value, part)
            if inner is None:
                break
            value, here, depth = inner, getattr(inner, 'lineno', here), depth + 1
        if depth >= deepest:
            deepest, line = depth, here
    return line


def _assignments(tree: ast.Module) -> Iterator[tuple[Key, ast.AST, int]]:
    """(key, value, line) of ``a = …``, ``a.b = …``, ``a['b'] = …`` and ``a.b.update(…)`` at the top of a file."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                path = _path_of(target)
                path = path[1:] if path[:1] == (BASE,) else path
                if path:
                    yield path, node.value, node.lineno
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if not isinstance(call.func, ast.Attribute):
                continue
            path = _path_of(call.func.value)
            path = path[1:] if path[:1] == (BASE,) else path
            if path and call.func.attr in ('update', 'merge'):
                yield path, call.args[0] if call.args else call, node.lineno


def _path_of(node: ast.AST) -> Key:
    """The key that ``a.b['c'][0]`` names; () for anything else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        inner = _path_of(node.value)
        return (*inner, node.attr) if inner else ()
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        inner = _path_of(node.value)
        return (*inner, node.slice.value) if inner else ()
    return ()


def _child(node: ast.AST, part: Any) -> ast.AST | None:
    """The expression that gives ``part`` inside ``dict(...)``, ``{...}``, ``[...]`` or ``(...)``."""
    if isinstance(node, ast.Call):
        return next((k.value for k in node.keywords if k.arg == part), None)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values)
        return next((value for key, value in pairs if isinstance(key, ast.Constant) and key.value == part), None)
    if isinstance(node, (ast.List, ast.Tuple)) and isinstance(part, int) and part < len(node.elts):
        return node.elts[part]
    return None


# ------------------------------------------------------------------------------------------------ stored text


def write_literal_python(values: Mapping, width: int = 110) -> str:
    """The text of a config file that holds ``values``: keys in their order, lines of ``width`` where they break."""
    return ''.join(f'{name} = {_format(value, len(name) + 3, 0, width)}\n' for name, value in values.items())


def _format(value: Any, column: int, indent: int, width: int) -> str:
    """``value`` as Python, starting at ``column`` of a line that is indented by ``indent``."""
    if not isinstance(value, (Mapping, list, tuple)):
        return f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else repr(value)
    left, right, items = _brackets(value)
    one_line = left + ', '.join(f'{head}{_format(item, 0, 0, 10 ** 9)}' for head, item in items)
    one_line += ',)' if isinstance(value, tuple) and len(value) == 1 else right
    if column + len(one_line) <= width:
        return one_line
    inner = ' ' * (indent + 4)
    lines = [f'{inner}{head}{_format(item, len(inner) + len(head) + 1, indent + 4, width)},' for head, item in items]
    return '\n'.join([left, *lines, ' ' * indent + right])


def _brackets(value: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    """The brackets of a container, and its items with what stands before each."""
    if not isinstance(value, Mapping):
        return *('[]' if isinstance(value, list) else '()'), [('', item) for item in value]
    if all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value):
        return 'dict(', ')', [(f'{key}=', item) for key, item in value.items()]
    return '{', '}', [(f'{key!r}: ', item) for key, item in value.items()]


def read_literal_python(text: str) -> dict:
    """Evaluate assignments of literals and ``dict(...)`` calls: all that dumped config text holds.

    Nothing is executed, so that text from a checkpoint is as safe to read as its weights.

    Raises:
        ConfigError: a statement or expression of another kind; names the line.
    """
    values = {}
    for node in parse_python(text, '<config text>').body:
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise ConfigError(f'<config text>:{node.lineno}: only assignments are read from stored config text')
        values[node.targets[0].id] = _literal(node.value)
    return values


def _literal(node: ast.AST) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {k.arg: _literal(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [key for key in node.keys if key is not None]
        if len(keys) == len(node.keys):  # else there is a **mapping
            return {_literal(k): _literal(v) for k, v in zip(keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Call) and ast.unparse(node) in ("float('inf')", "float('-inf')", "float('nan')"):
        return float(ast.literal_eval(node.args[0]))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(node.operand)
    try:
        return ast.literal_eval(node)
    except ValueError:
        line = getattr(node, 'lineno', 0)
        raise ConfigError(f'<config text>:{line}: {ast.unparse(node)} is not a plain value') from None


# ------------------------------------------------------------------------------------------------ JSON and YAML


_BASE_VALUE = re.compile(r'["\']?\{\{\s*' + BASE + r'\.([\w.]+)\s*\}\}["\']?')


def _base_names_in_data(text: str) -> list[str]:
    # By pattern: a file that uses {{_base_.key}} is not valid JSON before its bases are known.
    found = re.search(r'["\']?' + BASE + r'["\']?\s*:\s*(\[[^\]]*\]|[^\n,}]+)', text)
    return [name for name in re.split(r'[\s,\[\]"\']+', found.group(1)) if name] if found else []


def _substitute_base_values(text: str, path: str, base: dict) -> str:
    """Put a base's value in place of ``{{_base_.key}}``, written as JSON (which YAML contains)."""
    def value_of(match: re.Match) -> str:
        value = lookup(base, tuple(match.group(1).split('.')))
        if value is ABSENT:
            raise ConfigError(f"{show_path(path)}: its bases set no '{match.group(1)}'")
        return json.dumps(value)
    return _BASE_VALUE.sub(value_of, text)


def parse_data(text: str, path: str) -> dict:
    """The keys of a JSON or YAML config without ``_base_``; ConfigError names file and line where it is not valid."""
    import yaml  # needed by few configs
    try:
        values = json.loads(text) if path.endswith('.json') else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, 'problem_mark', None)
        line = error.lineno if isinstance(error, json.JSONDecodeError) else mark.line + 1 if mark else 1
        raise ConfigError(f'{show_path(path)}:{line}: {str(error).splitlines()[0]}') from None
    if not isinstance(values, dict):
        raise ConfigError(f'{show_path(path)}: a config holds keys and values, not a {type(values).__name__}')
    values.pop(BASE, None)
    return values
