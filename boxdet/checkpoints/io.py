"""Checkpoints in and out: found by path or address, read without running their code, written all or nothing.

A checkpoint is a dict: ``meta`` (boxdet_version, epoch, iter, CLASSES, PALETTE, config, seed, …), ``state_dict``,
``optimizer`` and what else the runner needs to go on. mmdetection 2.x's files have the same first three.
"""
from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from boxdet.checkpoints.convert import recognise
from boxdet.checkpoints.unpickling import as_tensor, read_pickle, stand_ins_allowed, thaw
from boxdet.errors import CheckpointError, nearest
from boxdet.models.initialization import LoadReport, load_fitting

# Backbone weights that 2.x's configs ask for by name, in the public model zoo that defined the names.
_MODEL_ZOO = 'https://download.openmmlab.com/pretrain/third_party/'
OPEN_MMLAB = {
    'vgg16_caffe': 'vgg16_caffe-292e1171.pth',
    'detectron/resnet50_caffe': 'resnet50_caffe-788b5fa3.pth',
    'detectron/resnet101_caffe': 'resnet101_caffe-3ad79236.pth',
    'detectron2/resnet50_caffe': 'resnet50_msra-5891d200.pth',
    'detectron2/resnet101_caffe': 'resnet101_msra-6cc46731.pth',
    'detectron2/resnext101_32x8d': 'resnext101_32x8d-1516f1aa.pth',
    'resnext50_32x4d': 'resnext50-32x4d-0ab1a123.pth',
    'resnext101_32x4d': 'resnext101_32x4d-a5af3160.pth',
    'resnext101_64x4d': 'resnext101_64x4d-ee2c6f71.pth',
    'contrib/resnet50_gn': 'resnet50_gn_thangvubk-ad1730dd.pth',
    'detectron/resnet50_gn': 'resnet50_gn-9186a21c.pth',
    'detectron/resnet101_gn': 'resnet101_gn-cac0ab98.pth',
    'jhu/resnet50_gn_ws': 'resnet50_gn_ws-15beedd8.pth',
    'jhu/resnet101_gn_ws': 'resnet101_gn_ws-3e3c308c.pth',
    'jhu/resnext50_32x4d_gn_ws': 'resnext50_32x4d_gn_ws-0d87ac85.pth',
    'jhu/resnext101_32x4d_gn_ws': 'resnext101_32x4d_gn_ws-34ac1a9e.pth',
    'resnet18_v1c': 'resnet18_v1c-b5776b93.pth',
    'resnet50_v1c': 'resnet50_v1c-2cccc1ad.pth',
    'resnet101_v1c': 'resnet101_v1c-e67eebb6.pth',
}


# --- where a checkpoint is ---

def find_checkpoint(address: str | Path) -> Path:
    """Return the local file behind a path, a URL or a ``torchvision://`` or ``open-mmlab://`` name.

    What is remote is downloaded once into torch.hub's cache, with a progress bar, and checked against the hash that
    its file name carries.

    Raises:
        CheckpointError: there is no such file or name, or the download failed.
    """
    text = str(address)
    scheme, separator, name = text.partition('://')
    if not separator:
        return _local_file(Path(text).expanduser())
    if scheme in ('torchvision', 'modelzoo'):
        return _download(_torchvision_url(name))
    if scheme in ('open-mmlab', 'openmmlab'):
        if name not in OPEN_MMLAB:
            raise CheckpointError(f"{text}: no model of that name is known{nearest(name, OPEN_MMLAB)}")
        return _download(_MODEL_ZOO + OPEN_MMLAB[name])
    if scheme in ('http', 'https'):
        return _download(text)
    raise CheckpointError(f"{text}: '{scheme}://' is not understood; use a path, http(s)://, torchvision:// or "
                          'open-mmlab://')


def _local_file(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder, not a checkpoint file')
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise CheckpointError(f'no checkpoint file {path}{nearest(path.name, siblings)}')


def _torchvision_url(name: str) -> str:
    from torchvision import models
    names = models.list_models(module=models)
    if name not in names:
        raise CheckpointError(f"torchvision://{name}: torchvision has no such model{nearest(name, names)}")
    # The first weights that torchvision published are the ones that torchvision:// meant when configs were written.
    return next(iter(models.get_model_weights(name))).url


def _download(url: str) -> Path:
    name = os.path.basename(urlparse(url).path)
    digest = re.search(r'-([0-9a-f]{8,})\.', name)
    target = Path(torch.hub.get_dir()) / 'checkpoints' / (name if digest else _name_of_its_own(name, url))
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(target), hash_prefix=digest and digest.group(1), progress=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'cannot download {url}: {error}; fetch it elsewhere, put it at {target} and start '
                              'again') from error
    return target


def _name_of_its_own(name: str, url: str) -> str:
    """'model_final.3f2a9c1b.pth': half the world's checkpoints are called model_final.pth."""
    stem, suffix = os.path.splitext(name)
    return f'{stem}.{hashlib.sha256(url.encode()).hexdigest()[:8]}{suffix}'


# --- reading ---

def load_checkpoint(address: str | Path, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint without running code from it.

    Args:
        address: path, URL, ``torchvision://`` or ``open-mmlab://`` name. ``.pkl`` is read as a plain pickle.
        map_location: where tensors go, as in torch.load.

    Returns:
        the dict in the file; a bare state dict comes as ``{'meta': {}, 'state_dict': …}``. Weights of torchvision,
        detectron2, Detectron or maskrcnn-benchmark are converted.

    Raises:
        CheckpointError: not found, damaged, or it holds objects that are not allowed.
    """
    return _in_boxdets_names(read_as_written(address, map_location), str(address))


def read_as_written(address: str | Path, map_location: Any = 'cpu') -> dict:
    """As ``load_checkpoint``, but the weights of other projects keep their names."""
    path = find_checkpoint(address)
    content = read_pickle(path) if path.suffix == '.pkl' else _read(path, map_location)
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
    values = _named_values(checkpoint, source)
    other = recognise(values)
    if other is None:
        return checkpoint
    try:
        state = other.to_boxdet(values)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None
    logging.getLogger('boxdet').info('%s: converted %d entries from %s', source, len(state), other.NAME)
    return {**checkpoint, 'meta': {**(checkpoint.get('meta') or {}), 'converted_from': other.NAME}, 'state_dict': state}


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


# What DataParallel puts before all names, and torch.compile before those of the module that it compiled.
_WRAPPERS = re.compile(r'^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.')


def state_dict_of(checkpoint: Mapping, source: str = 'checkpoint') -> dict[str, torch.Tensor]:
    """The weights inside a checkpoint dict, or the state dict itself, without ``module.`` and ``_orig_mod.``.

    Args:
        source: what to call the checkpoint in errors.

    Raises:
        CheckpointError: an entry without a name, or one that is no array of numbers.
    """
    try:
        return {name: as_tensor(name, value) for name, value in _named_values(checkpoint, source).items()}
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None


def _named_values(checkpoint: Mapping, source: str) -> dict[str, Any]:
    """The entries of the state dict as they are, without ``module.`` and ``_orig_mod.``."""
    state = checkpoint['state_dict'] if isinstance(checkpoint.get('state_dict'), Mapping) else checkpoint
    for name in state:
        if not isinstance(name, str):
            raise CheckpointError(f'{source} holds no weights: {name!r} is not the name of an entry')
    return {_WRAPPERS.sub('', name): value for name, value in state.items() if not name.startswith('__')}


# --- into a model ---

# Deformable convolutions or plugins add some entries to a backbone; another depth or kind changes most.
_LEAST_OF_BACKBONE = 0.75


def load_weights(model: nn.Module, checkpoint: Mapping, source: str = 'checkpoint') -> LoadReport:
    """Load what fits of a checkpoint (or of a bare state dict) into ``model``.

    Args:
        source: what to call the checkpoint in the report and in errors.

    Raises:
        CheckpointError: the checkpoint is of another architecture: nothing fits, or of the backbone too little.
    """
    own = model.state_dict()
    state = _in_their_place(state_dict_of(checkpoint, source), own)
    fitting = {name for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise CheckpointError(
            f'{source} is a checkpoint of another architecture: none of its {len(state)} entries fits '
            f"{type(model).__name__} (it holds {_some(state)}; the model {_some(own)})")
    # Heads are exchanged for other classes every day; a backbone of which a good part stays random is nobody's wish.
    theirs, ours, common = (sum(name.startswith('backbone.') for name in names) for names in (state, own, fitting))
    if theirs and ours and common < _LEAST_OF_BACKBONE * max(theirs, ours):
        raise CheckpointError(f'{source} is a checkpoint of another architecture: its backbone has {theirs} entries, '
                              f'that of the model {ours}, and only {common} are the same in both')
    return load_fitting(model, state, source)


# Stage 4 on every roi (C4) is of the same pretrained backbone as the stages before it.
_PLACES_OF_BACKBONES = ('backbone.', 'roi_head.shared_head.')


def _in_their_place(state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a backbone alone under the names that a detector with the entries ``own`` has for them."""
    if any(name in own for name in state):
        return state
    return {next((place + name for place in _PLACES_OF_BACKBONES if place + name in own), name): value
            for name, value in state.items()}


def describe(report: LoadReport, limit: int = 10) -> str:
    """The report as text for people: a line of counts, then the odd entries with the nearest name of the other side."""
    lines = [f'{report.checkpoint}: {len(report.loaded)} entries loaded, {len(report.missing)} missing, '
             f'{len(report.unexpected)} unused, {len(report.mismatched)} of another shape']
    for title, names, others in (('missing in the checkpoint', report.missing, report.unexpected),
                                 ('unused', report.unexpected, report.missing),
                                 ('another shape', report.mismatched, [])):
        for name in names[:limit]:
            lines.append(f'  {title}: {name}{nearest(name, others)}')
        if len(names) > limit:
            lines.append(f'  {title}: … and {len(names) - limit} more')
    return '\n'.join(lines)


def classes_of(checkpoint: Mapping) -> tuple[str, ...] | None:
    """The class names in a checkpoint's meta (boxdet's and 2.x's ``CLASSES``, 3.x's ``dataset_meta``), if any."""
    meta = checkpoint.get('meta') or {}
    newer = meta.get('dataset_meta') or {}
    names = meta.get('CLASSES') or newer.get('classes') or newer.get('CLASSES')
    return tuple(names) if names else None


def compare_classes(checkpoint: Mapping, classes: Sequence[str] | None, source: str = 'checkpoint') -> str:
    """A sentence on how a checkpoint's class names differ from ``classes``; '' when they do not or are not known."""
    held = classes_of(checkpoint)
    if held is None or classes is None or held == tuple(classes):
        return ''
    if sorted(held) == sorted(classes):
        return f'{source} has the same {len(held)} classes in another order: its labels mean other things'
    only_there, only_here = [c for c in held if c not in classes], [c for c in classes if c not in held]
    parts = [f'{source} was trained on {len(held)} classes, the config names {len(classes)}']
    if only_there:
        parts.append(f'only in the checkpoint: {_some(only_there)}')
    if only_here:
        parts.append(f'only in the config: {_some(only_here)}')
    return '; '.join(parts)


def _some(names: Any, limit: int = 3) -> str:
    names = list(names)
    return ', '.join(names[:limit]) + (', …' if len(names) > limit else '') or 'nothing'


# --- writing ---

def save_checkpoint(checkpoint: Mapping, path: str | Path) -> Path:
    """Write a checkpoint so that ``path`` holds either the old file or the whole new one, also after a power cut.

    It goes to a temporary file beside ``path``, is forced to the disk, read back with its checksums, then renamed.

    Raises:
        CheckpointError: it cannot be written (a full disk, say); an older file at ``path`` is as it was.
    """
    return _write_whole(path, lambda file: torch.save(dict(checkpoint), file), _check_archive)


def save_pickle(raw: bytes, path: str | Path) -> Path:
    """As ``save_checkpoint``, a pickle that is made already.

    Raises:
        CheckpointError: it cannot be written; an older file at ``path`` is as it was.
    """
    return _write_whole(path, lambda file: file.write(raw), read_pickle)


def _write_whole(path: str | Path, write: Callable[[Any], Any], check: Callable[[Path], Any]) -> Path:
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        check(partial)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        reason = getattr(error, 'strerror', None) or _reason_behind(error)
        raise CheckpointError(f'cannot write checkpoint {path}: {reason}; an older file of that name is untouched'
                              ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _reason_behind(error: BaseException) -> str:
    # torch's archive writer wraps a failed write(2); the chain still holds the operating system's word for it.
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _check_archive(path: Path) -> None:
    """Every entry lies inside the file and has the bytes that its checksum is of.

    Raises:
        zipfile.BadZipFile: it does not.
    """
    with zipfile.ZipFile(path) as archive:
        entries, size = archive.infolist(), path.stat().st_size
        if not any(entry.filename.endswith('data.pkl') for entry in entries):
            raise zipfile.BadZipFile('the archive has no data.pkl')
        for entry in entries:
            if entry.header_offset + entry.compress_size > size:
                raise zipfile.BadZipFile(f'{entry.filename} ends beyond the file')
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f'{damaged} is not what was written')


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk; not every file system lets a folder be synced.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def remove_partial_files(folder: str | Path) -> None:
    """Delete what killed writers left in ``folder``."""
    for path in Path(folder).glob('.*.partial'):
        path.unlink(missing_ok=True)


def is_readable(path: str | Path) -> bool:
    """Whether ``path`` is a checkpoint archive that is complete: entries, extents and checksums."""
    try:
        _check_archive(Path(path))
        return True
    except (OSError, zipfile.BadZipFile, RuntimeError):
        return False


def newest_checkpoint(folder: str | Path, warn: Callable[[str], Any] | None = None) -> Path | None:
    """The checkpoint in ``folder`` that was written last and can be read, to go on from; None without one.

    Args:
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
