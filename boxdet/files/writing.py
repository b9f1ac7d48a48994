"""Files replaced whole: whoever reads a path finds the old content or the new, also after a power cut."""
from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from boxdet.errors import DataError, UserError

_numbers = itertools.count()  # two threads may write beside one path


class Replacement:
    """A file in the making, beside the one that it is going to replace.

    Args:
        path: the file to replace; its folder is made.
        error: the class of the error.

    Attributes:
        part: where to write; it has the ending of ``path``.

    Raises:
        error: the folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike, error: type[UserError] = DataError):
        self.path, self._error = Path(path), error
        self.part = self.path.with_name(f'.{os.getpid()}-{next(_numbers)}.partial.{self.path.name}')
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise self.failed(problem) from problem

    def commit(self) -> Path:
        """Force what another program wrote to the disk and give it its name; returns that.

        Raises:
            error: the disk or the folder does not take it.
        """
        try:
            with open(self.part, 'rb+') as file:
                os.fsync(file.fileno())
        except OSError as problem:
            raise self.failed(problem) from problem
        return self.rename()

    def rename(self) -> Path:
        """As ``commit``, of what is on the disk already, or a link.

        Raises:
            error: the folder does not take it.
        """
        try:
            os.replace(self.part, self.path)
            _sync_folder(self.path.parent)
        except OSError as problem:
            raise self.failed(problem) from problem
        finally:
            self.discard()
        return self.path

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self.part.unlink(missing_ok=True)

    def failed(self, problem: BaseException) -> UserError:
        """The error that says why the file cannot be written."""
        untouched = '; an older file of that name is untouched' if self.path.is_file() else ''
        cause = _system_error(problem) or problem
        reason = getattr(cause, 'strerror', None) or str(cause).strip() or type(cause).__name__
        return self._error(f'cannot write {self.path}: {reason}{untouched}')


def write_whole(path: str | os.PathLike, content: str | bytes | Callable[[BinaryIO], Any],
                check: Callable[[Path], Any] | None = None, error: type[UserError] = DataError) -> Path:
    """Replace the file at ``path``, or make it; its folder, too. A pipe or device is written to as it is.

    Args:
        path: the file.
        content: text (in UTF-8), bytes, or a function that writes into the binary file it gets
            (``lambda file: torch.save(weights, file)``).
        check: reads the new file back before it takes the place of the old one, and raises where it is no good.
        error: the class of the error.

    Returns:
        ``path``.

    Raises:
        error: the folder or the disk does not take it; an older file at ``path`` is as it was.
    """
    new = Replacement(path, error)
    try:
        if _is_stream(new.path):
            with open(new.path, 'wb') as file:
                _fill(file, content)
            return new.path
        with open(new.part, 'wb') as file:
            _fill(file, content)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(new.part)
    except (OSError, RuntimeError) as problem:
        if _system_error(problem) is None:
            raise  # not the disk's
        raise new.failed(problem) from problem
    else:
        return new.rename()
    finally:
        new.discard()


def _fill(file: BinaryIO, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def _is_stream(path: Path) -> bool:
    """Whether what stands at ``path`` is a pipe or a device (``/dev/stdout``), which nothing may replace."""
    return str(path.parent) in ('/dev', '/dev/fd', '/proc/self/fd') or (
        path.exists() and not path.is_file() and not path.is_dir())


def _system_error(problem: BaseException) -> OSError | None:
    # torch's archive writer wraps a failed write(2); the chain still holds the operating system's word for it.
    seen: BaseException | None = problem
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk; not every file system lets a folder be synced.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_partial_files(folder: str | Path) -> None:
    """Delete what killed writers left in ``folder``."""
    for pattern in ('.*.partial.*', '.*.partial'):  # the second one is of boxdet 0.1
        for path in Path(folder).glob(pattern):
            path.unlink(missing_ok=True)


# --- JSON ---

def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all; numpy's numbers and arrays become numbers and lists.

    Raises:
        DataError: as ``write_whole``.
    """
    write_whole(path, json.dumps(value, default=json_value))


def write_json_list(path: str | Path, rows: Iterable[Any]) -> None:
    """Write ``rows`` as a JSON list, one a line, whole or not at all; they are asked for one at a time.

    Raises:
        DataError: as ``write_whole``.
    """
    def write(file: BinaryIO) -> None:
        file.write(b'[')
        for number, row in enumerate(rows):
            file.write((b',' if number else b'') + b'\n' + json.dumps(row, default=json_value).encode())
        file.write(b'\n]\n')
    write_whole(path, write)


def json_value(value: Any) -> Any:
    """What JSON has in the place of numpy's numbers and arrays, and of bytes that are text."""
    if isinstance(value, bytes):
        return value.decode('ascii')
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} has no JSON form')
