"""Annotations in one block of bytes."""
from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class Records(Sequence):
    """A read-only sequence of plain objects, held as one array of bytes and unpickled when read.

    Workers are forked from the training process and share its memory until someone writes to it. Reading a Python
    object writes its reference count, so a list of a million dicts is slowly copied into every worker; an array of
    bytes is not. What is read is a copy: changing it changes nothing here.
    """

    def __init__(self, items: Iterable[Any]):
        pieces, ends = [], [0]
        for item in items:
            pieces.append(pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL))
            ends.append(ends[-1] + len(pieces[-1]))
        self._bytes = np.frombuffer(b''.join(pieces), dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f'record {index} of {len(self)}')
        index %= len(self)
        return pickle.loads(memoryview(self._bytes[self._ends[index]:self._ends[index + 1]]))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._bytes.nbytes + self._ends.nbytes
