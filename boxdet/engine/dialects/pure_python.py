"""mmengine's pure-Python configs: ``with read_base(): from .x import *``, and ``type=SomeClass``.

What such a file imports from packages is not imported: a name stands in for it (``Named``), so that a config of
mmdetection 3.x is read where mmdetection is not installed. In the config that comes out the name alone is left, which
is what the registries know: ``type=ResNet`` becomes ``type='ResNet'``. A module of the user's own is imported later, by
``custom_imports``.
"""
from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from boxdet.errors import ConfigError

# Packages whose classes boxdet has under their names; modules of others are imported, so that their classes register.
OPENMMLAB = ('mmdet', 'mmengine', 'mmcv', 'mmpretrain', 'mmcls')
_KNOWN = (*OPENMMLAB, 'torch', 'torchvision', 'numpy', 'boxdet')

# Classes that are registered under another name than their own.
_REGISTERED = {
    'PretrainedInit': 'Pretrained', 'ConstantInit': 'Constant', 'XavierInit': 'Xavier', 'NormalInit': 'Normal',
    'TruncNormalInit': 'TruncNormal', 'UniformInit': 'Uniform', 'KaimingInit': 'Kaiming',
    'Caffe2XavierInit': 'Caffe2Xavier', 'BatchNorm1d': 'BN1d', 'BatchNorm2d': 'BN', 'BatchNorm3d': 'BN3d',
    'SyncBatchNorm': 'SyncBN', 'GroupNorm': 'GN', 'LayerNorm': 'LN', 'InstanceNorm2d': 'IN',
    'DeformConv2dPack': 'DCN', 'ModulatedDeformConv2dPack': 'DCNv2', 'ConvWS2d': 'ConvWS', 'ConvAWS2d': 'ConvAWS',
    'CARAFEPack': 'carafe', 'DeformRoIPoolPack': 'DeformRoIPoolPack'}


class Named:
    """What an import of a config would give, by its dotted name; imported for real only when the file calls it."""

    def __init__(self, path: str):
        self._path = path

    def __getattr__(self, name: str) -> Named:
        if name.startswith('__'):
            raise AttributeError(name)
        return Named(f'{self._path}.{name}')

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object itself."""
        return self.imported()(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> Named:
        return self

    def __repr__(self) -> str:
        return self._path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self._path == other._path

    def __hash__(self) -> int:
        return hash(self._path)

    @property
    def registered_name(self) -> str:
        """The name that registries know it by."""
        name = self._path.rpartition('.')[2]
        return _REGISTERED.get(name, name)

    @property
    def own_module(self) -> str:
        """The module to import for it to register; '' for classes that are known here."""
        module = self._path.rpartition('.')[0]
        return '' if self._path.partition('.')[0] in _KNOWN else module

    def imported(self) -> Any:
        """The object itself.

        Raises:
            ImportError: its module is not installed.
        """
        parts = self._path.split('.')
        for end in range(len(parts), 0, -1):
            try:
                found = importlib.import_module('.'.join(parts[:end]))
            except ModuleNotFoundError:
                continue
            for part in parts[end:]:
                found = getattr(found, part)
            return found
        raise ImportError(f'{self._path} is not installed, and the config calls it')


@dataclass(frozen=True)
class BaseImport:
    """One import statement of ``with read_base()``.

    Attributes:
        module: dotted, without the leading dots. level: their number. names: (name, name here), None for ``*``.
    """
    module: str
    level: int
    names: tuple[tuple[str, str], ...] | None

    def choose(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """What it takes of the base's variables.

        Raises:
            ConfigError: the base has no variable of that name.
        """
        if self.names is None:
            return dict(base)
        for name, _ in self.names:
            if name not in base:
                raise ConfigError(f"read_base(): {'.' * self.level}{self.module} has no '{name}'")
        return {here: base[name] for name, here in self.names}


def is_pure_python(tree: ast.Module) -> bool:
    """Whether a file is of this kind: it uses read_base(), or has no ``_base_`` and imports classes to name."""
    if any(_is_read_base(node) for node in ast.walk(tree)):
        return True
    names = {target.id for node in tree.body if isinstance(node, ast.Assign)
             for target in node.targets if isinstance(target, ast.Name)}
    return '_base_' not in names and any(
        isinstance(node, ast.ImportFrom) and not node.level
        and (node.module or '').partition('.')[0] in (*OPENMMLAB, 'torch') for node in tree.body)


def base_imports(tree: ast.Module) -> Iterator[BaseImport]:
    """The imports inside ``with read_base()``, in order."""
    for node in tree.body:
        if not _is_read_base(node):
            continue
        for statement in cast(ast.With, node).body:
            if isinstance(statement, ast.ImportFrom):
                star = any(alias.name == '*' for alias in statement.names)
                names = None if star else tuple((a.name, a.asname or a.name) for a in statement.names)
                yield BaseImport(statement.module or '', statement.level, names)
            elif not isinstance(statement, ast.Pass):
                raise ConfigError(f"line {statement.lineno}: only 'from … import …' stands in 'with read_base()'")


def runnable(tree: ast.Module) -> list[ast.stmt]:
    """The statements of the file without its bases, and with names in place of what it imports from packages."""
    body: list[ast.stmt] = []
    for node in tree.body:
        if _is_read_base(node):
            continue
        body += list(_named_imports(node)) if isinstance(node, (ast.Import, ast.ImportFrom)) else [node]
    return body


def without_names(values: Mapping[str, Any], found: list[str]) -> dict[str, Any]:
    """A copy of a file's variables in which every Named inside them is its registered name.

    Names that are variables themselves stay: files that import this one may use them.

    Args:
        values: the file's variables.
        found: gets the modules that have to be imported for these names.
    """
    return {key: value if isinstance(value, Named) else _spelt(value, found) for key, value in values.items()}


def _spelt(value: Any, found: list[str]) -> Any:
    if isinstance(value, Named):
        if value.own_module and value.own_module not in found:
            found.append(value.own_module)
        return value.registered_name
    if isinstance(value, Mapping):
        return {key: _spelt(item, found) for key, item in dict.items(cast(dict, value))}
    if type(value) in (list, tuple):
        return type(value)(_spelt(item, found) for item in value)
    return value


def _is_read_base(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and any(
        isinstance(item.context_expr, ast.Call) and ast.unparse(item.context_expr.func).endswith('read_base')
        for item in node.items)


def _named_imports(node: ast.Import | ast.ImportFrom) -> Iterator[ast.stmt]:
    """The statement as it is for Python's own modules, else assignments of Named."""
    if isinstance(node, ast.ImportFrom):
        pairs = [(alias.asname or alias.name, f'{node.module}.{alias.name}') for alias in node.names]
    else:
        pairs = [(alias.asname or alias.name.partition('.')[0], alias.name if alias.asname
                  else alias.name.partition('.')[0]) for alias in node.names]
    roots = {path.partition('.')[0] for _, path in pairs}
    if roots <= set(sys.stdlib_module_names) or isinstance(node, ast.ImportFrom) and node.level:
        yield node
        return
    for name, path in pairs:
        text = ast.parse(f'{name} = __named__({path!r})').body[0]
        for part in ast.walk(text):
            ast.copy_location(part, node)
        yield text
