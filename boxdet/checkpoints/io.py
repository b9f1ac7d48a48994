"""Checkpoints in and out: found by path or address, read without running their code, written all or nothing.

A checkpoint is a dict: ``meta`` (boxdet_version, epoch, iter, CLASSES, PALETTE, config, seed, …), ``state_dict``,
``optimizer`` and what else the runner needs to go on. mmdetection 2.x's files have the same first three.
"""
from __future__ import annotations

import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from boxdet.checkpoints import backbones, zoo
from boxdet.checkpoints.convert import recognise
from boxdet.checkpoints.loading import named_values, state_dict_of
from boxdet.errors import CheckpointError, nearest
from boxdet.files import safetensors
from boxdet.files.download import fetch
from boxdet.files.pickles import CHECKPOINT, read_pickle, stand_ins_allowed, thaw
from boxdet.files.writing import json_value, write_whole

# --- where a checkpoint is ---

def find_checkpoint(address: str | os.PathLike) -> Path:
    """Return the local file behind a path, a URL or a name: ``zoo://``, or one of ``backbones.SCHEMES``.

    What is remote is downloaded once into torch.hub's cache, see ``boxdet.files.download.fetch``. With several ranks
    all of them call this.

    Raises:
        CheckpointError: there is no such file or name, or the download failed.
    """
    text = str(address)
    scheme, separator, name = text.partition('://')
    if not separator:
        return _local_file(Path(text).expanduser())
    if scheme in backbones.SCHEMES:
        return _fetch(backbones.url(scheme, name))
    if scheme == 'zoo':
        entry = zoo.entry(name)
        return _fetch(entry['weights'], entry.get('md5', ''))
    if scheme in ('http', 'https', 'file'):
        return _fetch(text)
    raise CheckpointError(f"{text}: '{scheme}://' is not understood; use a path, http(s)://, file://, zoo://, "
                          f"{', '.join(f'{known}://' for known in backbones.SCHEMES)}")


def _fetch(url: str, md5: str = '') -> Path:
    return fetch(url, zoo.download_folder(), CheckpointError, md5)


def _local_file(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder, not a checkpoint file')
    if path.is_symlink():
        raise CheckpointError(f'{path} is a link to {path.readlink()}, which is not there')
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise CheckpointError(f'no checkpoint file {path}{nearest(path.name, siblings)}')


# --- reading ---

def load_checkpoint(address: str | os.PathLike, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint without running code from it.

    Args:
        address: path, URL, ``torchvision://`` or ``open-mmlab://`` name. ``.pkl`` is read as a plain pickle, ``.npz``
            as numpy's archive, ``.safetensors`` with its metadata as ``meta``.
        map_location: where tensors go, as in torch.load.

    Returns:
        the dict in the file; a bare state dict comes as ``{'meta': {}, 'state_dict': …}``. Weights of torchvision,
        detectron2, Detectron, Detectron.pytorch, maskrcnn-benchmark or tensorpack are converted.

    Raises:
        CheckpointError: not found, damaged, or it holds objects that are not allowed.
    """
    return _in_boxdets_names(read_as_written(address, map_location), str(address))


def read_as_written(address: str | os.PathLike, map_location: Any = 'cpu') -> dict:
    """As ``load_checkpoint``, but the weights of other projects keep their names."""
    path = find_checkpoint(address)
    if path.suffix == '.safetensors':
        return _read_safetensors(path, map_location)
    if path.suffix == '.pkl':
        content = read_pickle(path, CHECKPOINT, CheckpointError)
    else:
        content = _read_arrays(path) if path.suffix == '.npz' else _read(path, map_location)
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not a checkpoint')
    if isinstance(content.get('state_dict'), Mapping):
        return dict(content)
    for name in ('model', 'blobs'):  # DETR, torchvision's references and detectron2 call it so, and Detectron so
        if isinstance(content.get(name), Mapping):
            return {'meta': {}, **{k: v for k, v in content.items() if k != name}, 'state_dict': content[name]}
    return {'meta': {}, 'state_dict': dict(content)}


def _in_boxdets_names(checkpoint: dict, source: str) -> dict:
    """The checkpoint itself, or what another project's weights are here; ``meta['converted_from']`` then names it."""
    values = named_values(checkpoint, source)
    other = recognise(values)
    if other is None:
        return checkpoint
    try:
        state = other.to_boxdet(values)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None
    over = [name for name in values if other.LEFT_OUT.match(name.removesuffix(':0'))]
    logging.getLogger('boxdet').info('%s: converted %d entries from %s%s', source, len(state), other.NAME, over and (
        f", and passed over {', '.join(over[:5])}" + f' and {len(over) - 5} more' * (len(over) > 5)) or '')
    return {**checkpoint, 'meta': {**(checkpoint.get('meta') or {}), 'converted_from': other.NAME}, 'state_dict': state}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged or no numpy archive of plain arrays: {error}") from error


def _read_safetensors(path: Path, map_location: Any = 'cpu') -> dict:
    try:
        state, metadata = safetensors.read(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} is damaged or no safetensors file: {error}') from error
    if isinstance(map_location, (str, torch.device)):
        state = {name: value.to(map_location) for name, value in state.items()}
    return {'meta': {key: _from_json(text) for key, text in metadata.items()}, 'state_dict': state}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # another program's, which wrote the text as it is
        return text


def _read(path: Path, map_location: Any) -> Any:
    try:
        with stand_ins_allowed():
            return thaw(torch.load(path, map_location=map_location, weights_only=True))
    except Exception as error:  # torch answers a damaged file with nearly any type
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused:
            raise CheckpointError(f'{path} is refused: it asks to run {refused.group(1)}, and a checkpoint may hold '
                                  'tensors and plain values only') from error
        # torch's own advice (load it unsafely) is not ours to repeat.
        reason = str(error).rpartition('WeightsUnpickler error:')[2].strip() or type(error).__name__
        first_sentence = reason.splitlines()[0].partition('. ')[0]
        raise CheckpointError(f'{path} is damaged or no checkpoint: {first_sentence}') from error


def load_state(address: str | Path, map_location: Any = 'cpu') -> dict[str, torch.Tensor]:
    """Return the state dict of a checkpoint, without what DataParallel and torch.compile put before its names.

    Raises:
        CheckpointError: as ``load_checkpoint``.
    """
    return state_dict_of(load_checkpoint(address, map_location), str(address))


# --- writing ---

def save_checkpoint(checkpoint: Mapping, path: str | Path) -> Path:
    """Write a checkpoint so that ``path`` holds either the old file or the whole new one, also after a power cut.

    It goes to a temporary file beside ``path``, is forced to the disk, read back with its checksums, then renamed.

    Args:
        checkpoint: the dict, or a bare state dict.
        path: the file. ``.safetensors`` holds the weights, and ``meta`` as JSON in its metadata.

    Raises:
        CheckpointError: it cannot be written (a full disk, say); an older file at ``path`` is as it was. Or it is for
            ``.safetensors`` and holds more than weights and ``meta``.
    """
    if Path(path).suffix == '.safetensors':
        return _save_safetensors(checkpoint, path)
    return write_whole(path, lambda file: torch.save(dict(checkpoint), file), _check_archive, CheckpointError)


def _save_safetensors(checkpoint: Mapping, path: str | Path) -> Path:
    whole = dict(checkpoint) if isinstance(checkpoint.get('state_dict'), Mapping) else {'state_dict': checkpoint}
    state, meta = state_dict_of(whole, str(path)), whole.pop('meta', None) or {}
    if len(whole) > 1:
        more = next(name for name in whole if name != 'state_dict')
        raise CheckpointError(f"{path}: .safetensors holds weights and their meta, and there is no place for '{more}' "
                              '(tools/model_converters/publish_model.py leaves out what training needs)')
    try:
        metadata = {'format': 'pt', **{str(key): json.dumps(value, default=json_value) for key, value in meta.items()}}
        return write_whole(path, lambda file: safetensors.write(file, state, metadata), _read_safetensors,
                           CheckpointError)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'cannot write {path}: {error}') from error


def save_arrays(arrays: Mapping[str, np.ndarray], path: str | Path) -> Path:
    """As ``save_checkpoint``, numpy's archive of arrays (``.npz``).

    Raises:
        CheckpointError: it cannot be written; an older file at ``path`` is as it was.
    """
    def save(file: BinaryIO) -> None:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # names of arrays, not of keywords

    return write_whole(path, save, _read_arrays, CheckpointError)


def save_pickle(raw: bytes, path: str | Path) -> Path:
    """As ``save_checkpoint``, a pickle that is made already.

    Raises:
        CheckpointError: it cannot be written; an older file at ``path`` is as it was.
    """
    return write_whole(path, raw, lambda part: read_pickle(part, CHECKPOINT, CheckpointError), CheckpointError)


def _check_archive(path: Path) -> None:
    """Every entry lies inside the file and has the bytes that its checksum is of.

    Raises:
        OSError: it does not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries, size = archive.infolist(), path.stat().st_size
            if not any(entry.filename.endswith('data.pkl') for entry in entries):
                raise OSError('the archive has no data.pkl')
            for entry in entries:
                if entry.header_offset + entry.compress_size > size:
                    raise OSError(f'{entry.filename} ends beyond the file')
            damaged = archive.testzip()
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise OSError(str(error)) from error
    if damaged is not None:
        raise OSError(f'{damaged} is not what was written')


def is_readable(path: str | Path) -> bool:
    """Whether ``path`` is a checkpoint archive that is complete: entries, extents and checksums."""
    try:
        _check_archive(Path(path))
        return True
    except OSError:
        return False


def newest_checkpoint(folder: str | Path, warn: Callable[[str], Any] | None = None) -> Path | None:
    """The checkpoint in ``folder`` that was written last and can be read, to go on from; None without one.

    Args:
        folder: the training's.
        warn: told of files that are damaged and were passed over.
    """
    found = [(path.stat().st_mtime_ns, int(match.group(1)), path) for path in Path(folder).glob('*.pth')
             if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name))]
    for _, _, path in sorted(found, reverse=True):
        if is_readable(path):
            return path
        if warn is not None:
            warn(f'{path} is damaged; trying the checkpoint before it')
    return None
