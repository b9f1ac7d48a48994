"""What a file may contain: tensors, plain Python values and numeric numpy arrays. No code of a file ever runs.

torch's ``weights_only`` unpickler decides what is allowed by name. mmdetection 2.x's and mmengine's checkpoints hold a
few things beyond its list (numpy scalars in ``meta``, mmengine's log buffers), so those names are bound to the inert
stand-ins below: they keep the bytes and never call numpy's or mmengine's own unpickling. ``thaw`` turns stand-ins into
values afterwards. Plain pickles (Detectron's ``.pkl``, ``results.pkl``) go through ``RestrictedUnpickler`` with the
same table.
"""
from __future__ import annotations

import contextlib
import io
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxdet.errors import CheckpointError

# Numeric and text kinds of numpy; objects ('O'), records ('V') and dates are what a checkpoint has no use for.
_SAFE_KINDS = 'biufcSU'


class _Dtype:
    """Stands in for ``numpy.dtype``: remembers the type code, and of the pickled state the byte order only."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 8 else None
        if dtype is None or dtype.kind not in _SAFE_KINDS:
            raise pickle.UnpicklingError(f'numpy data of type {code!r} is not allowed')
        self.dtype = dtype

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray``: keeps the raw bytes until ``thaw``."""

    def __init__(self, *_: Any):
        self.state: tuple | None = None

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def value(self) -> np.ndarray:
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, str)):
            raise pickle.UnpicklingError('a numpy array of Python objects is not allowed')
        flat = np.frombuffer(_as_bytes(raw), dtype=dtype.dtype)
        return flat.reshape(shape, order='F' if fortran else 'C').astype(dtype.dtype.newbyteorder('='))


class _Discarded:
    """Stands in for an object whose content is of no use to us: whatever it is given is dropped."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    @staticmethod
    def current(*_: Any) -> None:
        """Only a name: mmengine stores its buffer's methods, which we drop too."""


def _as_bytes(raw: bytes | str) -> bytes:
    return raw.encode('latin1') if isinstance(raw, str) else raw


def _scalar(dtype: _Dtype, raw: bytes | str) -> Any:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError('a numpy scalar that holds a Python object is not allowed')
    return np.frombuffer(_as_bytes(raw), dtype=dtype.dtype)[0].item()


def _reconstruct(*_: Any) -> _Array:
    return _STAND_INS['numpy.ndarray']()  # the class that the allow list knows by numpy's name


def _method_of_discarded(owner: Any, name: str) -> None:
    if getattr(owner, '__base__', None) is not _Discarded:
        raise pickle.UnpicklingError(f"getattr(…, '{name}') is not allowed")


def _latin1(text: str, encoding: str = 'latin1') -> bytes:
    if encoding not in ('latin1', 'latin-1', 'iso-8859-1'):
        raise pickle.UnpicklingError(f"encoding '{encoding}' is not allowed")
    return text.encode('latin1')


def _storage_from_bytes(raw: bytes) -> Any:
    # torch's own _load_from_bytes would unpickle anything.
    return torch.load(io.BytesIO(raw), map_location='cpu', weights_only=True)


def _named(path: str, stand_in: Any) -> Any:
    """A class or function that torch's allow list takes for ``path`` (it goes by ``__module__.__qualname__``)."""
    module, _, name = path.rpartition('.')
    if isinstance(stand_in, type):
        return type(name, (stand_in,), {'__module__': module, '__qualname__': name})

    def call(*args: Any) -> Any:
        return stand_in(*args)
    call.__module__, call.__qualname__, call.__name__ = module, name, name
    return call


_STAND_INS: dict[str, Any] = {path: _named(path, stand_in) for path, stand_in in {
    'numpy.dtype': _Dtype, 'numpy.ndarray': _Array,
    'numpy.core.multiarray._reconstruct': _reconstruct, 'numpy._core.multiarray._reconstruct': _reconstruct,
    'numpy.core.multiarray.scalar': _scalar, 'numpy._core.multiarray.scalar': _scalar,
    'mmengine.logging.history_buffer.HistoryBuffer': _Discarded, 'builtins.getattr': _method_of_discarded,
}.items()}

_PLAIN_GLOBALS: dict[str, Any] = {
    'collections.OrderedDict': OrderedDict, 'builtins.set': set, 'builtins.frozenset': frozenset,
    'builtins.complex': complex, 'builtins.bytearray': bytearray, '_codecs.encode': _latin1,
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch.storage._load_from_bytes': _storage_from_bytes}


def thaw(value: Any) -> Any:
    """Return ``value`` with every stand-in inside dicts, lists and tuples replaced by what it stands for."""
    if isinstance(value, _Array):
        return value.value()
    if isinstance(value, _Dtype):
        return str(value.dtype)
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = thaw(item)
        return value
    if isinstance(value, list):
        value[:] = [thaw(item) for item in value]
        return value
    if type(value) is tuple:
        return tuple(thaw(item) for item in value)
    return None if isinstance(value, _Discarded) else value


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """Return the value of a state dict's entry: a tensor as it is, arrays and numbers as tensors.

    Raises:
        CheckpointError: it is anything else; ``name`` is the entry's.
    """
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise CheckpointError(f'{name} is of type {type(value).__name__}, and weights are arrays of numbers') from None


_allow_list_lock = threading.Lock()


@contextlib.contextmanager
def stand_ins_allowed() -> Iterator[None]:
    """Let torch's ``weights_only`` unpickler use the stand-ins; its global allow list is put back afterwards."""
    with _allow_list_lock:
        before = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals(list(_STAND_INS.values()))
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


class RestrictedUnpickler(pickle.Unpickler):
    """Reads a plain pickle of dicts, lists, numbers, text, arrays and tensors; any other name is refused.

    Args:
        file: binary file. allowed: more classes by their full path.
    """

    def __init__(self, file: Any, allowed: Mapping[str, Any] | None = None):
        super().__init__(file, encoding='latin1')  # arrays pickled by Python 2 come as text
        self._allowed = {**_STAND_INS, **_PLAIN_GLOBALS, **(allowed or {})}

    def find_class(self, module: str, name: str) -> Any:
        path = f'{module}.{name}'
        if path not in self._allowed:
            raise pickle.UnpicklingError(f'it asks for {path}, which is not allowed')
        return self._allowed[path]


def read_pickle(path: str | Path, allowed: Mapping[str, Any] | None = None) -> Any:
    """Read a pickle file without running code from it.

    Args:
        path: the file. allowed: classes beyond the plain ones, by full path (``{'boxdet…Instances': Instances}``).

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything else.
    """
    try:
        with open(path, 'rb') as file:
            return thaw(RestrictedUnpickler(file, allowed).load())
    except OSError as error:
        raise CheckpointError(f'cannot read {path}: {error.strerror or error}') from error
    except Exception as error:  # a damaged pickle raises nearly any type
        raise CheckpointError(f'{path} is refused: {error or type(error).__name__}') from error
