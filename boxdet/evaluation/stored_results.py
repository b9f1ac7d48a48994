"""Results of a whole data set that take little memory: packed as they come, on disk beyond a limit.

A packed result is a JSON line (sizes, and name, type and shape of each field) followed by the raw numbers; masks are
their run-length codes end to end. A hundred boxes and masks take some 15 kB, a fifth of what the same objects take in
Python.
"""
from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast, overload

import numpy as np
import torch

from boxdet.errors import DataError
from boxdet.structures.instances import Fields, Instances
from boxdet.structures.masks import RleMasks

MEMORY_LIMIT = 32 << 20  # bytes


class StoredResults(Sequence):
    """A sequence of Instances, one an image, which are packed when they are put and unpacked when they are read.

    Beyond ``memory_limit`` bytes what comes goes to an unnamed temporary file (in ``$TMPDIR``), which is gone with the
    object or the process. Each access makes a new Instances; changing that does not change what is stored.

    Args:
        total: number of images.
        memory_limit: bytes of packed results that stay in memory.

    >>> stored = StoredResults.of([Instances(bboxes=torch.zeros(3, 4), scores=torch.ones(3))])
    >>> len(stored), len(stored[0])
    (1, 3)
    """

    def __init__(self, total: int, memory_limit: int = MEMORY_LIMIT):
        self._limit, self._held, self._written = memory_limit, 0, 0
        # Bytes in memory, or (offset, length) in the file.
        self._parts: list[bytes | tuple[int, int] | None] = [None] * total
        self._labels: dict[int, np.ndarray | None] = {}
        self._file: _Spill | None = None
        self._skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, results: Iterable[Instances], memory_limit: int = MEMORY_LIMIT) -> StoredResults:
        """Pack ``results`` one after the other; a generator is never held as a whole."""
        stored = cls(0, memory_limit)
        for index, result in enumerate(results):
            stored._parts.append(None)
            stored.put(index, result)
        return stored

    def put(self, index: int, result: Instances) -> None:
        """Store the result of image ``index``; a second one takes the place of the first.

        Raises:
            DataError: the disk does not take it.
        """
        self.put_packed(index, pack(result))

    def put_packed(self, index: int, data: bytes) -> None:
        """As ``put``, of what ``packed`` gave."""
        part = self._parts[index]
        self._labels.pop(index, None)
        if isinstance(part, bytes):
            self._held -= len(part)
        if self._held + len(data) <= self._limit:
            self._held += len(data)
            self._parts[index] = data
            return
        try:
            if self._file is None:
                self._file = _Spill()
            self._file.write(self._written, data)
        except OSError as error:
            raise DataError(f'results of more than {self._limit >> 20} MiB are kept in {tempfile.gettempdir()}: '
                            f'{error.strerror or error} (choose another folder with TMPDIR)') from error
        self._parts[index] = (self._written, len(data))
        self._written += len(data)

    def packed(self, index: int) -> bytes | None:
        """The bytes of image ``index``, to send to another process; None when it has not been put."""
        part = self._parts[index]
        if part is None or isinstance(part, bytes):
            return part
        assert self._file is not None  # it was made for this part
        offset, length = part
        return self._file.read(offset, length)

    def arrays(self, wanted: Callable[[str], bool], indices: Iterable[int] | None = None) -> Iterator[Fields]:
        """Of each image the ``wanted`` fields as ``Instances.numpy()`` gives them; they may not be written to.

        Args:
            wanted: whether a field is read, by its name.
            indices: of the images; None for all.
        """
        return (_fields(self._present(index), lambda name: wanted(name) and name not in self._skipped)[2]
                for index in (range(len(self)) if indices is None else indices))

    def labels(self) -> Iterator[np.ndarray | None]:
        """The labels (N,) of each image, None where it has none; kept once they are read, for many ask for them."""
        for index in range(len(self)):
            if index not in self._labels:
                found = _fields(self._present(index), lambda name: name == 'labels')[2].get('labels')
                self._labels[index] = None if found is None else found.copy()  # not the rest of the result, too
            yield self._labels[index]

    def without(self, *names: str) -> StoredResults:
        """The same results, not copied, read without the fields ``names``: boxes without masks are read much faster."""
        view = copy.copy(self)
        view._skipped = (*self._skipped, *names)
        return view

    def missing(self) -> list[int]:
        """The images whose result has not been put."""
        return [index for index, part in enumerate(self._parts) if part is None]

    @property
    def on_disk(self) -> int:
        """Bytes that lie in the temporary file."""
        return self._written

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Instances: ...

    @overload
    def __getitem__(self, index: slice) -> list[Instances]: ...

    def __getitem__(self, index: int | slice) -> Instances | list[Instances]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return unpack(self._present(index), self._skipped)

    def _present(self, index: int) -> bytes:
        data = self.packed(index)
        if data is None:
            raise DataError(f'the result of image {index} of {len(self)} is missing: the run did not end')
        return data

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f'StoredResults({len(self)} images, {self._held} bytes in memory, {self._written} on disk)'


class _Spill:
    """An unnamed temporary file, which views of the same results share; it is closed with the last of them."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix='boxdet-results-')  # noqa: SIM115  lives as long as this

    def write(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        self._file.write(data)
        self._file.flush()  # at once: a forked copy of this process would write it, too

    def read(self, offset: int, length: int) -> bytes:
        if hasattr(os, 'pread'):  # threads may read at once; not on Windows
            return os.pread(self._file.fileno(), length, offset)
        self._file.seek(offset)
        return self._file.read(length)

    def __del__(self) -> None:
        if hasattr(self, '_file'):
            self._file.close()


def arrays_of(results: Iterable[Instances], *without: str) -> Iterator[Fields]:
    """Of each image ``Instances.numpy()`` less the fields ``without``, not to be written to.

    Of those that are stored these fields are not read, and no tensor is made.
    """
    if isinstance(results, StoredResults):
        return results.arrays(lambda name: name not in without)
    return ({name: value for name, value in result.numpy().items() if name not in without} for result in results)


def labels_of(results: Iterable[Instances]) -> Iterator[np.ndarray]:
    """The labels (N,) of each image; of results that are stored nothing else is read."""
    if isinstance(results, StoredResults):
        return cast('Iterator[np.ndarray]', results.labels())
    return (row['labels'] for row in arrays_of(results))


def without_masks(results: Sequence[Instances]) -> Sequence[Instances]:
    """``results``; those that are stored are read without masks and keypoints, which takes a fraction of the time."""
    return results.without('masks', 'keypoints') if isinstance(results, StoredResults) else results


def pack(result: Instances) -> bytes:
    """One image's result as bytes; device tensors come to the CPU, masks become RLE.

    Raises:
        TypeError: a field that is neither numbers nor masks.
    """
    return pack_fields(result.image_size, result.num_classes, result.numpy())


def pack_fields(image_size: tuple[int, int] | None, num_classes: int | None, values: Fields) -> bytes:
    """``pack`` of what an Instances is made of, its fields as ``Instances.numpy()`` gives them."""
    fields, parts = [], []
    for name, value in values.items():
        if hasattr(value, 'to_rle'):
            masks = value.to_rle()
            counts = [rle['counts'] for rle in masks.rles]
            lengths = np.array([len(c) for c in counts], np.int32)
            fields.append((name, 'rle', (masks.height, masks.width, len(counts))))
            parts += [lengths.tobytes(), b''.join(counts)]
            continue
        array = np.ascontiguousarray(value)
        if array.dtype.kind not in 'biuf':
            raise TypeError(f"field '{name}' of a result holds {array.dtype}, not numbers or masks")
        fields.append((name, array.dtype.str, np.shape(value)))
        parts.append(array.tobytes())
    size = None if image_size is None else [int(v) for v in image_size]
    head = json.dumps([size, num_classes, fields], separators=(',', ':')).encode()
    return b'\n'.join([head, b''.join(parts)])


def unpack(data: bytes, without: Sequence[str] = ()) -> Instances:
    """The Instances of ``pack``, less the fields ``without``."""
    size, num_classes, fields = _fields(data, lambda name: name not in without)
    return Instances(size, num_classes, **{
        name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        for name, value in fields.items()})


def _fields(data: bytes, wanted: Callable[[str], bool]) -> tuple[tuple[int, int] | None, int | None, Fields]:
    """Image size, number of classes and the wanted fields of ``pack``: views of ``data``, or masks."""
    end = data.index(b'\n')
    size, num_classes, described = json.loads(data[:end].decode())
    place, fields = end + 1, {}
    for name, kind, shape in described:
        if kind == 'rle':
            height, width, count = shape
            lengths = np.frombuffer(data, np.int32, count, place)
            place += lengths.nbytes
            stop = place + int(lengths.sum(dtype=np.int64))
            if wanted(name):
                bounds = [place, *(place + np.cumsum(lengths, dtype=np.int64)).tolist()]
                masks = RleMasks([], height, width)
                # Straight into place: these codes went through the checks of the constructor before they were packed.
                masks.rles = [{'size': [height, width], 'counts': data[a:b]} for a, b in zip(bounds, bounds[1:])]
                fields[name] = masks
            place = stop
            continue
        array = np.frombuffer(data, kind, math.prod(shape), place)
        place += array.nbytes
        if wanted(name):
            fields[name] = array.reshape(shape)
    return None if size is None else tuple(size), num_classes, fields
