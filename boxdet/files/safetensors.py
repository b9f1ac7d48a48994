"""The safetensors format: named tensors and texts, nothing that could run.

A file is the length of its header (8 bytes, little-endian), the header (JSON), and the tensors' bytes. For every tensor
the header has ``dtype``, ``shape`` and ``data_offsets``, the beginning and end behind the header; its
``__metadata__`` maps texts to texts.
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

_DTYPES = {
    'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16, 'I64': torch.int64,
    'I32': torch.int32, 'I16': torch.int16, 'I8': torch.int8, 'U8': torch.uint8, 'BOOL': torch.bool,
    'C64': torch.complex64, 'F8_E4M3': torch.float8_e4m3fn, 'F8_E5M2': torch.float8_e5m2}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_METADATA = '__metadata__'
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


def read(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file, in its order, and its metadata.

    Raises:
        OSError: it cannot be read. ValueError: it is no such file, or a damaged one; the message says where.
    """
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _header(file, size)
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError(f'{_METADATA} does not map texts to texts')
        end, places = 0, {name: _place(name, entry) for name, entry in header.items()}
        for name, (_, _, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
            if begin != end:
                raise ValueError(f'{name} begins at byte {begin}, and what is before it ends at {end}')
            end = stop
        if start + end != size:
            raise ValueError(f'its tensors end at byte {start + end}, and the file at {size}')
        return {name: _tensor(file, start, *place) for name, place in places.items()}, metadata


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError(f'a header of {length} bytes in a file of {size}')
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'its header is no JSON: {error}') from error
    if not isinstance(header, dict):
        raise ValueError(f'its header is a {type(header).__name__}')
    return header, 8 + length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError('a name stands twice in its header')
    return found


def _place(name: str, entry: Any) -> tuple[torch.dtype, list[int], int, int]:
    """Type, shape, beginning and end of a tensor."""
    try:
        code, shape, (begin, end) = entry['dtype'], entry['shape'], entry['data_offsets']
    except (TypeError, KeyError, ValueError):
        raise ValueError(f'{name} has no dtype, shape and data_offsets') from None
    if code not in _DTYPES:
        raise ValueError(f'{name} is of the unknown type {code}')
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f'{name} has the shape {shape} and the place {begin} to {end}')
    if end - begin != math.prod(shape) * _DTYPES[code].itemsize:
        raise ValueError(f'{name} has {end - begin} bytes for the shape {tuple(shape)} of {code}')
    return _DTYPES[code], shape, begin, end


def _tensor(file: BinaryIO, start: int, dtype: torch.dtype, shape: list[int], begin: int, end: int) -> torch.Tensor:
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    raw = bytearray(end - begin)
    file.seek(start + begin)
    if file.readinto(raw) != len(raw):  # type: ignore[attr-defined]  # every file of bytes has it
        raise ValueError('it ended while it was read')
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def write(file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata into an open file; the same content makes the same bytes.

    Raises:
        ValueError: a tensor is of a type that the format lacks.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise ValueError(f'{name} is of the type {tensor.dtype}, which the format lacks')
    # The largest numbers first: then all are where their size divides the place.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.dtype.itemsize
        header[name] = dict(dtype=_CODES[tensor.dtype], shape=list(tensor.shape), data_offsets=[begin, end])
    raw = json.dumps(header, separators=(',', ':')).encode()
    raw += b' ' * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, 'little') + raw)
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().flatten()
        file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b'')
