"""The import hook: modules under mmdetection 2.x's names whose attributes are looked up in ``names``."""
from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

from boxdet.compat.modules import MODULES
from boxdet.errors import ArgumentError, ConfigError, DataError, UserError, nearest

_finder: _Finder | None = None


class _Module(ModuleType):
    """A module without a file; its names are those of ``names.lookup``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') and name not in ('__all__', '__version__'):
            raise AttributeError(name)  # of the import system
        from boxdet.compat import names
        if name == '__all__':  # of ``from module import *``
            return names.known(self.__name__)
        found = names.lookup(self.__name__, name)
        if found is names.ABSENT:
            if f'{self.__name__}.{name}' in MODULES:
                raise AttributeError(name)  # a submodule is imported next
            message = _missing(self.__name__, name)
            # ``from module import name`` would put words of its own in the place of an AttributeError's.
            if sys._getframe(1).f_code.co_name == '_handle_fromlist':
                raise ImportError(message, name=self.__name__)
            raise AttributeError(message)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # mmcv.parallel.collate is a module and a function: the package has the function.
        if isinstance(value, _Module):
            from boxdet.compat import names
            if names.lookup(self.__name__, name) is not names.ABSENT:
                return
        super().__setattr__(name, value)


def _missing(module: str, name: str) -> str:
    from boxdet.compat import names
    instead = names.INSTEAD.get(name)
    said = f'; use {instead}' if instead else nearest(name, names.known(module))
    return f"{module} has no '{name}' in boxdet.compat{said} (docs/migrating.md says what there is)"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of ``MODULES``; before the others, as mmcv's parts may be installed in a newer version."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """The spec of a module of ours."""
        if fullname == 'mmdet' or fullname in MODULES and not _is_real(fullname):
            return importlib.machinery.ModuleSpec(fullname, self, origin='boxdet.compat', is_package=True)
        if fullname.startswith('mmdet.'):
            raise ModuleNotFoundError(f"No module named '{fullname}' in boxdet.compat, nor in mmdetection 2.28"
                                      f'{nearest(fullname, MODULES)}', name=fullname)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        """An empty module."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are looked up when they are asked for."""
        module.__path__ = []


def _is_real(name: str) -> bool:
    """Modules that the installed mmcv has, too: they are given the names that they lack."""
    return name in ('mmcv.utils',)


def is_installed() -> bool:
    """Whether the hook is there."""
    return _finder is not None


def install(prefer_installed: bool) -> bool | None:
    """See ``boxdet.compat.install``; None where there is nothing to do."""
    global _finder
    if _finder is not None:
        return None
    loaded = sys.modules.get('mmdet')
    if loaded is not None and not isinstance(loaded, _Module):
        if prefer_installed:
            return False
        raise UserError('boxdet.compat.install() comes before the first import of mmdet: one that is installed is '
                        'imported already')
    if prefer_installed and importlib.util.find_spec('mmdet') is not None:
        return False
    from boxdet.compat import models, names
    models.register_forms()
    _widen_errors()
    _finder = _Finder()
    sys.meta_path.insert(0, _finder)
    for name in [name for name in sys.modules if name.startswith(('mmcv.ops', 'mmcv.fileio', 'mmcv.runner'))]:
        del sys.modules[name]
    _complete_mmcv(names)
    return True


def _widen_errors() -> None:
    """What code for 2.x catches: a wrong value is there an AssertionError, a TypeError, a KeyError or others."""
    ConfigError.__bases__ = (UserError, AssertionError, TypeError, ValueError, KeyError, NotImplementedError)
    # No KeyError: what walks over samples takes that for a key that a transform has not found.
    DataError.__bases__ = (UserError, AssertionError, TypeError, ValueError)
    ArgumentError.__bases__ = (AssertionError, TypeError, ValueError, NotImplementedError)


def _complete_mmcv(names: Any) -> None:
    """Give the installed mmcv, which is 2.x, the names of 1.x that it lacks."""
    for module_name, table in names.MMCV.items():
        if module_name in MODULES and not _is_real(module_name):
            continue
        module = importlib.import_module(module_name)
        for name in table:
            if not hasattr(module, name):
                setattr(module, name, names.lookup(module_name, name))
    import mmcv
    for name in ('runner', 'parallel', 'fileio', 'ops', 'engine'):
        if not hasattr(mmcv, name):
            importlib.import_module(f'mmcv.{name}')
