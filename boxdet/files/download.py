"""An address becomes a local file: downloaded once for all ranks, resumed, checked; a part is never taken for it."""
from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch.distributed as dist
from torch.hub import tqdm

from boxdet.errors import DataError, UserError, nearest

_PIECE = 1 << 20
_SILENCE = 60  # seconds in which a server must send something


def fetch(url: str, folder: str | Path, error: type[UserError] = DataError, md5: str = '') -> Path:
    """Return the local file behind ``url``.

    What is remote is downloaded into ``folder`` where it is not there yet, with a progress bar. With several ranks, all
    of which call this, rank 0 downloads and the others wait; those on a machine that does not see rank 0's folder get
    a copy of their own, one a machine. ``file://`` is read where it is.

    A file name that ends in eight or more hexadecimal digits (``resnet50-0676ba61.pth``) tells how the file's SHA-256
    begins; the content is checked against it, and a download that broke off goes on where it ended.

    Args:
        url: ``http://``, ``https://`` or ``file://``.
        folder: of the downloads.
        error: the class of the error.
        md5: how the file's MD5 begins; for a file whose name tells no SHA-256.

    Raises:
        error: there is nothing at that address, the download broke off, or the content is not what the name says.
    """
    if urlparse(url).scheme == 'file':
        return _local_file(url, error)
    target = Path(folder) / _local_name(url)
    digest = hash_in_name(target.name) or (md5 and f'md5:{md5}')
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return _fetch_here(url, target, error, digest)
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            _fetch_here(url, target, error, digest)
        except UserError as problem:
            outcome = [str(problem)]
    dist.broadcast_object_list(outcome, src=0, group=_group())
    if outcome[0] is not None:
        raise error(outcome[0])
    return _fetch_here(url, target, error, digest)


_groups: dict[str, Any] = {}


def _group() -> Any:
    """A gloo group in which ranks may wait for as long as a download takes. All ranks ask at the same point."""
    if _groups.get('of') is not dist.group.WORLD:  # the first time, or the processes have met anew since
        _groups.update(of=dist.group.WORLD, group=dist.new_group(backend='gloo', timeout=datetime.timedelta(days=7)))
    return _groups['group']


def _local_file(url: str, error: type[UserError]) -> Path:
    parts = urlparse(url)
    path = Path(urllib.request.url2pathname(parts.path))
    if not path.is_file() and parts.netloc not in ('', 'localhost'):
        raise error(f"{url}: no such file; a whole path follows file://, as in file:///a.pth: write "
                    f"'{parts.netloc}{parts.path}' without file://")
    if not path.is_file():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise error(f'{url}: no such file{nearest(path.name, siblings)}')
    problem = _hash_problem(path, hash_in_name(path.name))
    if problem:
        raise error(f'{url}: {problem}; if that is meant, name the path without file://')
    return path


def hash_in_name(name: str) -> str:
    """The beginning of the SHA-256 that a file name carries (``a-0676ba61.pth``); '' without one."""
    found = re.search(r'-([0-9a-f]{8,64})\.\w+$', name)
    is_date = found and re.fullmatch(r'20\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])', found.group(1))
    return found.group(1) if found and not is_date else ''


def _local_name(url: str) -> str:
    """The file's name; without a hash 'model_final.3f2a9c1b.pth', as half the world's are called model_final.pth."""
    name = os.path.basename(urlparse(url).path) or 'download'
    if hash_in_name(name):
        return name
    stem, suffix = os.path.splitext(name)
    return f'{stem}.{hashlib.sha256(url.encode()).hexdigest()[:8]}{suffix}'


def _fetch_here(url: str, target: Path, error: type[UserError], digest: str) -> Path:
    """``target``, downloaded if it is not there; processes of this machine that want it at once download it once."""
    if target.is_file():
        return target
    try:
        with _locked(target.with_name(f'.{target.name}.download')) as part:
            if not target.is_file():  # another process was faster
                _download(url, part, digest)
                _give_name(part, target)
    except (OSError, ValueError, http.client.HTTPException) as problem:
        advice = (f'{target.parent} cannot be written to; set BOXDET_HOME to a folder that can be'
                  if isinstance(problem, _Unwritable) else f'fetch it elsewhere, put it at {target} and start again')
        raise error(f'cannot download {url}: {_reason(problem)}; {advice}') from problem
    return target


def _reason(problem: Exception) -> str:
    if isinstance(problem, urllib.error.URLError) and not isinstance(problem, urllib.error.HTTPError):
        problem = problem.reason if isinstance(problem.reason, Exception) else problem
    return str(getattr(problem, 'strerror', None) or problem or type(problem).__name__)


class _Unwritable(OSError):
    """The folder of the downloads takes no file."""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The partial file, open and this process's alone; who waits for it gets it when the other one ends, however."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, 'ab+')  # noqa: SIM115 - closed below, and here where the path names another file by now
        except OSError as problem:
            raise _Unwritable(problem.errno, problem.strerror) from problem
        _lock(file)
        if path.is_file() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    try:
        yield file
    finally:
        if not file.closed and path.is_file() and file.seek(0, os.SEEK_END) == 0:
            path.unlink()
        file.close()


def _lock(file: BinaryIO) -> None:
    # Windows has no fcntl, some file systems no locks: at worst a file is downloaded twice there.
    with contextlib.suppress(ImportError, OSError):
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX)


def _download(url: str, part: BinaryIO, digest: str) -> None:
    """Fill ``part``; what it holds of a file with a known hash is kept, also when this fails.

    Raises:
        OSError: no connection, no such file, a full disk, another length or hash than promised.
    """
    if not digest:  # who knows whether the file there is still the one that this is a part of
        part.truncate(0)
    begin = part.seek(0, os.SEEK_END)
    _receive(url, part, begin)
    problem = _hash_problem(Path(part.name), digest)
    if problem:
        part.truncate(0)
        if not begin:
            raise OSError(problem)
        _download(url, part, digest)  # the part was of another file


def _receive(url: str, part: BinaryIO, begin: int) -> None:
    """Append what comes from ``url`` behind its first ``begin`` bytes."""
    headers = {'User-Agent': 'boxdet', **({'Range': f'bytes={begin}-'} if begin else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SILENCE)
    except urllib.error.HTTPError as problem:
        if problem.code != 416:
            raise
        return  # nothing is missing behind what is there; its hash will tell
    with response:
        if begin and response.status != 206:  # the server sends all of it
            part.truncate(0)
            begin = 0
        length = response.headers.get('Content-Length')
        total = begin + int(length) if length is not None else None
        name = os.path.basename(urlparse(url).path)
        with tqdm(total=total, initial=begin, unit='B', unit_scale=True, desc=name) as bar:
            while piece := response.read(_PIECE):
                part.write(piece)
                bar.update(len(piece))
    part.flush()
    received = part.seek(0, os.SEEK_END)
    if total is not None and received < total:
        raise OSError(f'it broke off after {received} of {total} bytes')


def _hash_problem(path: Path, digest: str) -> str:
    """How the file contradicts ``digest``, the beginning of its SHA-256 or of another hash ('md5:0676ba'); or ''."""
    if not digest:
        return ''
    kind, _, begin = digest.rpartition(':')
    whole = hashlib.new(kind or 'sha256', usedforsecurity=False)
    with open(path, 'rb') as file:
        while piece := file.read(_PIECE):
            whole.update(piece)
    found = whole.hexdigest()
    return '' if found.startswith(begin) else (
        f"its {kind.upper() or 'SHA-256'} begins with {found[:len(begin)]}, and its name says {begin}: it is damaged "
        'or was changed')


def _give_name(part: BinaryIO, target: Path) -> None:
    os.fsync(part.fileno())
    if os.name == 'nt':  # an open file cannot be renamed there
        part.close()
    os.replace(part.name, target)
