"""JSON whose errors have a place: the line, and the entry that it belongs to."""
from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from boxdet.errors import DataError, UserError, nearest

JsonObject = dict[str, Any]


def read_json(path: str | os.PathLike, object_hook: Callable[[dict], Any] | None = None,
              error: type[UserError] = DataError) -> Any:
    """Parse a JSON file.

    Args:
        path: the file, in UTF-8, UTF-16 or UTF-32.
        object_hook: takes each object as soon as it is parsed, and returns what is to stand in its place.
        error: the class of the error.

    Raises:
        error: missing, empty, or not JSON; the message holds the line and the entry, as in
            ``ann.json:7: not valid JSON (Expecting ',' delimiter: column 9) in annotations[3] (id 12).bbox``.
    """
    text = _read_text(Path(path), error)
    try:
        with without_garbage_search():
            return json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as problem:
        entry = entry_at_fault(text)
        raise error(f'{path}:{problem.lineno}: not valid JSON ({problem.msg}: column {problem.colno})'
                    f'{f" in {entry}" if entry else ""}') from None
    except RecursionError:
        raise error(f'{path}: not valid JSON (lists inside lists without an end)') from None


@contextlib.contextmanager
def without_garbage_search() -> Iterator[None]:
    """Without Python's cyclic garbage collection: among many new objects it takes up to a quarter of the time.

    For work that makes no cycles, where it would find nothing.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_text(path: Path, error: type[UserError]) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        near = nearest(path.name, (one.name for one in folder.iterdir())) if folder.is_dir() \
            else f" (nor the folder '{folder}')"
        raise error(f'{path}: no such file{near}') from None
    except OSError as problem:
        raise error(f'{path}: cannot be read ({problem.strerror or problem})') from problem
    if not content.strip():
        raise error(f'{path}: empty file')
    if content[:2] == b'\x1f\x8b':
        raise error(f'{path}: compressed by gzip: unpack it (gunzip)')
    try:
        # The bytes go with this function's end: annotation files of half a gigabyte are held once while parsed.
        return content.decode(json.detect_encoding(content[:4]), 'surrogatepass')
    except UnicodeDecodeError as problem:
        raise error(f'{path}: not valid JSON (not {problem.encoding} text: {problem.reason} at byte {problem.start})'
                    ) from None


_DECODER = json.JSONDecoder()


def entry_at_fault(text: str) -> str:
    """The entry of a broken JSON text in which its first error lies: ``annotations[3] (id 12).bbox``; '' at the top.

    What is whole before it is parsed by Python's fast decoder, so that half a gigabyte takes seconds.
    """
    path, at = '', _skip(text, 0)
    while text[at:at + 1] in ('[', '{'):
        step, at = _child_at_fault(text, at)
        path += step
        if at < 0:
            break
    return path.removeprefix('.')


def _child_at_fault(text: str, at: int) -> tuple[str, int]:
    """The child of the list or object at ``at`` that is not whole: the step to it, and where it begins.

    Where the error lies behind a child that is whole, the step to that one and -1.
    """
    is_list, identity, step, count = text[at] == '[', '', '', 0
    at = _skip(text, at + 1)
    while at < len(text) and text[at] not in ']}':
        try:
            key, begin = (count, at) if is_list else _key(text, at)
            step = f'[{key}]' if is_list else f'{identity}.{key}'
        except json.JSONDecodeError:
            return step or identity, -1
        try:
            value, at = _DECODER.raw_decode(text, begin)
        except (json.JSONDecodeError, RecursionError):
            return step, begin
        if not is_list and key == 'id' and isinstance(value, (int, str)):
            identity = f' (id {value})'
            step = f'{identity}.id'
        at, count = _skip(text, at), count + 1
        if text[at:at + 1] != ',':
            break
        at = _skip(text, at + 1)
    return step, -1


def _key(text: str, at: int) -> tuple[str, int]:
    """The key at ``at``, and where its value begins."""
    key, end = _DECODER.raw_decode(text, at)
    end = _skip(text, end)
    if not isinstance(key, str) or text[end:end + 1] != ':':
        raise json.JSONDecodeError('no key', text, end)
    return key, _skip(text, end + 1)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in ' \t\r\n':
        at += 1
    return at
