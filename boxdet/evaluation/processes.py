"""Parts of one piece of work in several processes: copies of this one, made by the system's fork.

Neither the COCO code in C nor small numpy calls let other threads run, so that threads gain nothing. Processes that are
started anew (spawn, forkserver) import torch for seconds and need every result and annotation sent; a fork takes
milliseconds and has all of them. What a copy may do is what a loader's worker may: numpy, pycocotools, and torch on the
CPU with one thread; never a GPU.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from boxdet.errors import ConfigError, DataError

T = TypeVar('T')
_LONGEST_WAIT = 1.  # seconds; a Ctrl-C just before the system's wait begins is seen behind it
_AHEAD = 2  # parts that a process has been given and not delivered: it need not wait for the next one


def usable_processes(nproc: int | None = None) -> int:
    """How many processes may share the work: ``nproc``, or as many as this process has processors.

    Those are the ones that the system lets it run on (``taskset``, Slurm), and no more than its control group has time
    of (containers). ``OMP_NUM_THREADS`` does not count: launchers set it to 1 for each of their ranks, of which one
    evaluates while the others wait. 1 where the system has no safe fork (Windows, macOS), inside a process that may
    have no children (a loader's worker), and where ``mp_start_method`` asks for another way.
    """
    if sys.platform != 'linux' or not hasattr(os, 'fork') or multiprocessing.current_process().daemon:
        return 1
    if multiprocessing.get_start_method(allow_none=True) not in (None, 'fork'):
        return 1
    if nproc is not None:
        return nproc
    return max(min(len(os.sched_getaffinity(0)), _granted_processors()), 1)


def checked_nproc(nproc: int | None) -> int | None:
    """The option ``nproc`` of evaluators.

    Raises:
        ConfigError: no number of processes.
    """
    if nproc is not None and (not isinstance(nproc, int) or isinstance(nproc, bool) or nproc < 1):
        raise ConfigError(f'nproc={nproc!r}: the number of processes that evaluate, 1 at least; without it there are '
                          'as many as processors')
    return nproc


def _granted_processors(root: Path = Path('/sys/fs/cgroup'), own: Path = Path('/proc/self/cgroup')) -> int:
    """The processors that the control groups (version 2) of this process have time of, rounded up; many without."""
    least = sys.maxsize
    with contextlib.suppress(OSError):
        group = Path(own.read_text().rpartition('::')[2].strip())
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or 'max': no limit
                quota, period = (root / folder.relative_to('/') / 'cpu.max').read_text().split()
                least = min(least, -(-int(quota) // int(period)))
    return least


def in_processes(work: Callable[[int], T], parts: int, processes: int) -> Iterator[T]:
    """``work(0)``, ..., ``work(parts - 1)``, in order; with one process in this one.

    The copies end with the iterator, also when it is closed early, and when this process ends.

    Args:
        work: may use whatever it finds in this process; what it returns is pickled.
        parts: P.
        processes: copies of this process.

    Raises:
        DataError: a copy was ended from outside, as the system does when memory runs out. What ``work`` raises is
            raised here, that of the first part first.
    """
    if processes <= 1 or parts <= 1:
        yield from map(work, range(parts))
        return
    workers: list[_Worker] = []
    try:
        for _ in range(min(processes, parts)):
            workers.append(_Worker(work, [worker.connection for worker in workers]))
        given, arrived = 0, dict[int, Any]()
        for worker in workers * _AHEAD:
            if given < parts:
                worker.give(given)
                given += 1
        for part in range(parts):
            while part not in arrived:
                for ready in wait([worker.connection for worker in workers], _LONGEST_WAIT):
                    worker = next(worker for worker in workers if worker.connection is ready)
                    number, outcome = worker.receive()
                    arrived[number] = outcome
                    if given < parts:
                        worker.give(given)
                        given += 1
            yield _opened(arrived.pop(part))
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A copy of this process that does the parts whose numbers it is sent.

    Args:
        work: see ``in_processes``.
        others: connections of this process to earlier copies, which a copy must not keep open.
    """

    def __init__(self, work: Callable[[int], Any], others: list[Connection]):
        context = multiprocessing.get_context('fork')
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(work, theirs, [*others, self.connection]), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads; see the top of this file for what a copy may do.
            warnings.simplefilter('ignore', DeprecationWarning)
            self._process.start()
        theirs.close()  # now its end is seen here

    def give(self, part: int) -> None:
        """One more part to do."""
        with self._alive():
            self.connection.send(part)

    def receive(self) -> tuple[int, Any]:
        """The number of a part and what came of it."""
        with self._alive():
            return self.connection.recv()

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            self._process.join()
            raise DataError(f'a process of the evaluation ended ({_how(self._process.exitcode)}), as happens when '
                            'memory runs out: nproc=1 evaluates in one process') from error

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _how(status: int | None) -> str:
    if status is None or status >= 0:
        return f'exit status {status}'
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f'signal {-status}'


def _serve(work: Callable[[int], Any], connection: Connection, others: list[Connection]) -> None:
    """What a copy does, until its parent is gone."""
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what a training does with it
    torch.set_num_threads(1)  # OpenMP's threads are not in the copy
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            part = connection.recv()
            try:
                outcome = work(part)
            except Exception as error:
                outcome = _Failed(error)
            connection.send((part, outcome))


class _Failed:
    """An error on its way out of a copy, with its traceback as text."""

    def __init__(self, error: Exception):
        self.error, self.text = error, ''.join(traceback.format_exception(error))


class _Traceback(Exception):
    """The traceback of an error in another process, to stand above ours."""


def _opened(outcome: Any) -> Any:
    if isinstance(outcome, _Failed):
        raise outcome.error from _Traceback(f'\n{outcome.text}')
    return outcome
