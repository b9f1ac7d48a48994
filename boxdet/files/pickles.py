"""Pickles that hold data: the one restricted unpickler. No code of a file ever runs.

What a pickle may name is listed in layers: ``PLAIN`` (numbers, text, containers, dates, paths, namespaces), ``ARRAYS``
(numpy), ``TORCH`` (tensors, and what checkpoints carry along). Annotations, proposals and results are read with
``DATA``, checkpoints with ``CHECKPOINT``. Most names are bound to inert stand-ins, which keep what they are given and
call nothing; ``thaw`` turns them into values. torch's ``weights_only`` unpickler, which reads ``.pth`` files, gets the
same stand-ins (``stand_ins_allowed``).
"""
from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import datetime
import io
import pathlib
import pickle
import threading
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch

from boxdet.errors import DataError, UserError


class _StandIn:
    """Takes the place of a class that a pickle names: keeps the state, runs none of the class's own code."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self, inside: _Thaw) -> Any:
        """What it stands for; ``inside`` thaws what it holds."""
        return None


# --- numbers and containers ---

def _plain_dict(*given: Any) -> dict:
    """In place of a dict with a class of its own: a defaultdict (its factory is dropped), mmengine's ConfigDict."""
    return dict(*(one for one in given if isinstance(one, dict)))


class _Namespace(_StandIn):
    """Stands in for argparse.Namespace, in which reference trainings keep their arguments."""

    def value(self, inside: _Thaw) -> argparse.Namespace:
        fields = inside(self.state) if isinstance(self.state, dict) else {}
        return argparse.Namespace(**{str(name): value for name, value in fields.items()})


def _path(*parts: Any) -> str:
    return str(pathlib.PurePosixPath(*map(str, parts)))


def _as_bytes(raw: bytes | bytearray | str) -> bytes:
    return raw.encode('latin1') if isinstance(raw, str) else bytes(raw)


def _bytes(raw: bytes | str = b'', encoding: str = 'latin1') -> bytes:
    """Protocol 2 writes bytes as ``_codecs.encode(text, 'latin1')`` or ``bytes()``, a bytearray with its encoding."""
    if encoding not in ('latin1', 'latin-1', 'iso-8859-1') or not isinstance(raw, (bytes, str)):
        raise pickle.UnpicklingError(f'bytes of a {type(raw).__name__} with the encoding {encoding!r} are not allowed')
    return _as_bytes(raw)


# --- numpy ---

class _Dtype:
    """Stands in for ``numpy.dtype``: remembers the type code, and of the pickled state the byte order only."""
    KINDS = 'biufcSU'  # numbers and text; records ('V') and dates ('M') are what no file of ours has a use for

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 8 else None
        if dtype is None or dtype.kind not in self.KINDS:
            raise pickle.UnpicklingError(f'numpy data of type {code!r} is not allowed')
        self.dtype = dtype

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(state[1])


class _DtypeOrObjects(_Dtype):
    """Also of arrays that hold the objects of this pickle, such as polygons of different lengths."""
    KINDS = _Dtype.KINDS + 'O'


class _Array(_StandIn):
    """Stands in for ``numpy.ndarray``: keeps the raw bytes until it is thawed."""

    def value(self, inside: _Thaw) -> np.ndarray:
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError('a numpy array of an unknown type is not allowed')
        order: Literal['F', 'C'] = 'F' if fortran else 'C'
        if dtype.dtype.kind == 'O':
            flat = np.empty(len(raw), object)
            flat[:] = inside(list(raw)) if len(raw) != 1 else [inside(raw[0])]
            return flat.reshape(shape, order=order)
        if not isinstance(raw, (bytes, bytearray, str)):
            raise pickle.UnpicklingError('a numpy array of Python objects is not allowed')
        flat = np.frombuffer(_as_bytes(raw), dtype=dtype.dtype)
        return flat.reshape(shape, order=order).astype(dtype.dtype.newbyteorder('='))


def _reconstruct(*_: Any) -> _Array:
    return _STAND_INS['numpy.ndarray']()  # the class that the allow list knows by numpy's name


def _frombuffer(raw: bytes, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    array = _reconstruct()
    array.state = 1, shape, dtype, order == 'F', raw
    return array


def _scalar(dtype: _Dtype, raw: bytes | str) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.dtype.kind == 'O':
        raise pickle.UnpicklingError('a numpy scalar that holds a Python object is not allowed')
    return np.frombuffer(_as_bytes(raw), dtype=dtype.dtype)[0].item()


# --- torch, and what checkpoints carry along ---

class _Discarded(_StandIn):
    """Stands in for an object whose content is of no use to us: whatever it is given is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass

    @staticmethod
    def current(*_: Any) -> None:
        """Only a name: mmengine stores its buffer's methods, which we drop too."""


def _method_of_discarded(owner: Any, name: str) -> None:
    if getattr(owner, '__base__', None) is not _Discarded:
        raise pickle.UnpicklingError(f"getattr(…, '{name}') is not allowed")


def _storage_from_bytes(raw: bytes) -> Any:
    # torch's own _load_from_bytes would unpickle anything.
    return torch.load(io.BytesIO(raw), map_location='cpu', weights_only=True)


# --- the allow list ---

def _named(path: str, stand_in: Any) -> Any:
    """A class or function that torch's allow list takes for ``path`` (it goes by ``__module__.__qualname__``)."""
    module, _, name = path.rpartition('.')
    if isinstance(stand_in, type) and issubclass(stand_in, (_StandIn, _Dtype)):
        return type(name, (stand_in,), {'__module__': module, '__qualname__': name})

    def call(*args: Any) -> Any:
        return stand_in(*args)
    call.__module__, call.__qualname__, call.__name__ = module, name, name
    return call


_PATHS = [f'{module}.{name}' for module in ('pathlib', 'pathlib._local')
          for name in ('PosixPath', 'WindowsPath', 'PurePosixPath', 'PureWindowsPath')]
_NUMPY_CORES = ('numpy.core', 'numpy._core')

_PLAIN_STAND_INS = {path: _named(path, stand_in) for path, stand_in in {
    'argparse.Namespace': _Namespace, 'types.SimpleNamespace': _Namespace, 'collections.defaultdict': _plain_dict,
    'mmengine.config.config.ConfigDict': _plain_dict, **dict.fromkeys(_PATHS, _path)}.items()}
_ARRAY_STAND_INS = {path: _named(path, stand_in) for path, stand_in in {
    'numpy.dtype': _Dtype, 'numpy.ndarray': _Array,
    **{f'{core}.multiarray._reconstruct': _reconstruct for core in _NUMPY_CORES},
    **{f'{core}.multiarray.scalar': _scalar for core in _NUMPY_CORES},
    **{f'{core}.numeric._frombuffer': _frombuffer for core in _NUMPY_CORES}}.items()}
_TORCH_STAND_INS = {path: _named(path, stand_in) for path, stand_in in {
    'mmengine.logging.history_buffer.HistoryBuffer': _Discarded, 'builtins.getattr': _method_of_discarded}.items()}
_STAND_INS = {**_PLAIN_STAND_INS, **_ARRAY_STAND_INS, **_TORCH_STAND_INS}

# Functions around what could be changed from within a pickle, whose BUILD sets attributes on whatever it is given.
_COUNTER = _named('collections.Counter', collections.Counter)
_TENSOR_PARTS = {f'torch._utils.{name}': _named(f'torch._utils.{name}', getattr(torch._utils, name))
                 for name in ('_rebuild_tensor_v2', '_rebuild_parameter')}

# Classes of Python's own that hold data and do nothing; the types are there as factories of a defaultdict.
_TYPES = {f'builtins.{name}': getattr(builtins, name)
          for name in ('set', 'frozenset', 'complex', 'list', 'tuple', 'dict', 'int', 'float', 'bool', 'str')}
_DATES = {f'datetime.{name}': getattr(datetime, name) for name in ('datetime', 'date', 'time', 'timedelta', 'timezone')}

PLAIN: dict[str, Any] = {**_PLAIN_STAND_INS, **_TYPES, **_DATES, 'collections.OrderedDict': collections.OrderedDict,
                         'collections.Counter': _COUNTER, '_codecs.encode': _bytes,
                         'builtins.bytes': _bytes, 'builtins.bytearray': _bytes}
ARRAYS: dict[str, Any] = _ARRAY_STAND_INS
TORCH: dict[str, Any] = {**_TORCH_STAND_INS, **_TENSOR_PARTS, 'torch.Size': torch.Size,
                         'torch.storage._load_from_bytes': _storage_from_bytes}
DATA: dict[str, Any] = {**PLAIN, **ARRAYS, 'numpy.dtype': _DtypeOrObjects}
CHECKPOINT: dict[str, Any] = {**PLAIN, **ARRAYS, **TORCH}


class _Thaw:
    """Replaces stand-ins inside dicts, lists and tuples; what a file holds once and names twice stays one object."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}  # id -> (the object, which must live on, and its value)

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, (_StandIn, _Dtype, dict, list, tuple)):
            return value
        known = self._done.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, (_StandIn, _Dtype)):
            thawed = str(value.dtype) if isinstance(value, _Dtype) else value.value(self)
        elif type(value) is tuple:
            thawed = tuple(map(self, value))
        elif isinstance(value, tuple):
            return value  # torch.Size
        else:
            return self._container(value)
        self._done[id(value)] = value, thawed
        return thawed

    def _container(self, value: dict | list) -> dict | list:
        self._done[id(value)] = value, value  # before its items: it may hold itself
        if isinstance(value, list):
            value[:] = [self(item) for item in value]
        else:
            for key, item in value.items():
                value[key] = self(item)
        return value


def thaw(value: Any) -> Any:
    """Return ``value`` with every stand-in inside dicts, lists and tuples replaced by what it stands for."""
    return _Thaw()(value)


# --- reading ---

class RestrictedUnpickler(pickle.Unpickler):
    """Reads a pickle that names nothing but what is ``allowed``.

    Args:
        file: binary file.
        allowed: what stands for each full name: ``DATA``, ``CHECKPOINT``, or either with more of one's own.
    """

    def __init__(self, file: BinaryIO, allowed: Mapping[str, Any]):
        super().__init__(file, encoding='latin1')  # arrays pickled by Python 2 come as text
        self._allowed = allowed

    def load(self) -> Any:
        """The content of the file."""
        return thaw(super().load())

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file.

        Raises:
            pickle.UnpicklingError: the name is not allowed.
        """
        # Protocols up to 2 have Python 2's names.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f'{module}.{name}'
        if path not in self._allowed:
            raise pickle.UnpicklingError(f'it asks for {path}, which is not allowed')
        return self._allowed[path]


def loads(raw: bytes, allowed: Mapping[str, Any] = DATA) -> Any:
    """As ``RestrictedUnpickler.load``, from bytes."""
    return RestrictedUnpickler(io.BytesIO(raw), allowed).load()


def read_pickle(path: str | Path, allowed: Mapping[str, Any] = DATA, error: type[UserError] = DataError) -> Any:
    """Read a pickle file without running code from it.

    Args:
        path: the file.
        allowed: see ``RestrictedUnpickler``.
        error: the class of the error.

    Raises:
        error: the file is missing, damaged, or holds anything else.
    """
    try:
        with open(path, 'rb') as file:
            return RestrictedUnpickler(file, allowed).load()
    except OSError as problem:
        raise error(f'cannot read {path}: {problem.strerror or problem}') from problem
    except Exception as problem:  # a damaged pickle raises nearly any type
        raise error(f'{path} is refused: {problem or type(problem).__name__}') from problem


_allow_list_lock = threading.Lock()


@contextlib.contextmanager
def stand_ins_allowed() -> Iterator[None]:
    """Let torch's ``weights_only`` unpickler use the stand-ins; its global allow list is put back afterwards."""
    with _allow_list_lock:
        before = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals([*_STAND_INS.values(), *_TYPES.values(), *_DATES.values()])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)
