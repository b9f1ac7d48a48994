"""Notices within half a minute that another rank is gone, and ends this one with the cause in one line.

A collective waits for a rank that was killed, or whose network was cut, until its time limit: ten minutes with NCCL,
thirty with gloo, because an honest rank may take that long over an evaluation. So every rank also keeps one connection
to rank 0 open. Nothing travels on it while all is well. The kernel asks whether the other machine still answers
(TCP keepalive), which no busy interpreter can delay; a process that dies closes it, whatever killed it. Rank 0 tells
the others whom it lost and why.

What is sent, one line each: ``bye`` (an orderly end), ``failed STATUS TEXT`` (to rank 0), ``lost STATUS TEXT`` (from
rank 0); STATUS is the exit status that fits.
"""
from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from boxdet.errors import UserError, last_words, say_last

SILENCE = 30   # seconds without an answer from the other machine's kernel
_JOINING = 30  # seconds for every rank to call rank 0, after the process group has met

# How a collective speaks of a rank that is no longer there.
_BROKEN = re.compile(r'gloo|nccl|process ?group|socket|connection|broken pipe|timed out|c10d|peer', re.IGNORECASE)


class PeerWatch:
    """This rank's line to rank 0, or on rank 0 the lines to all others.

    Args:
        rank, world, local_rank: this process's place. master: the name or address of rank 0's machine.
        share: ``share(value)`` gives rank 0's value on every rank.
    """

    def __init__(self, rank: int, world: int, local_rank: int, master: str, share: Callable[[Any], Any]):
        self.rank, self.local_rank = rank, local_rank
        self._over = False
        self._ending = False  # the watch is about to end this process
        self._heard = threading.Event()  # there is nobody left to listen to
        self._lines: dict[socket.socket, tuple[int, str]] = {}  # line -> (rank, who it is)
        if rank == 0:
            self._answer(world, share)
        else:
            self._call(master, share(None))
        self._hook = sys.excepthook
        sys.excepthook = self._on_exception
        last_words.append(self.last_words)
        atexit.register(self.close)
        if hasattr(os, 'register_at_fork'):  # Windows has no fork
            os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._listen, daemon=True, name='peer watch').start()

    # --- connecting ---

    def _answer(self, world: int, share: Callable[[Any], Any]) -> None:
        try:
            server = _listening_socket(world)
        except OSError:
            share(None)  # no watch then
            return
        with server:
            password = secrets.token_hex(16)  # whoever else finds the port has no say here
            share((server.getsockname()[1], password, _who_am_i()))
            until = time.monotonic() + _JOINING
            while len(self._lines) < world - 1 and time.monotonic() < until:
                server.settimeout(max(until - time.monotonic(), 0.01))
                try:
                    line, _ = server.accept()
                    line.settimeout(5)
                    said, rank, who = (_read_line(line)[0] or '').split(' ', 2)
                except (OSError, ValueError):
                    continue
                if said == password:
                    self._lines[_kept_alive(line)] = (int(rank), who)
        silent = set(range(1, world)) - {rank for rank, _ in self._lines.values()}
        if silent:
            print(f'warning: ranks {sorted(silent)} did not reach rank 0 on a port of its choice (a firewall?): their '
                  'end will be noticed only by the time limit of the collectives', file=sys.stderr)

    def _call(self, master: str, place: tuple[int, str, str] | None) -> None:
        if place is None:
            return
        port, password, who = place
        try:
            line = socket.create_connection((master, port), timeout=_JOINING)
            line.sendall(f'{password} {self.rank} {_who_am_i()}\n'.encode())
        except OSError:
            return  # rank 0 says so
        self._lines[_kept_alive(line)] = (0, who)

    def _forget(self) -> None:
        """In a forked child (a data-loading process): the lines are the parent's, and end with it."""
        self._over = True
        for line in self._lines:
            line.close()

    # --- listening ---

    def _listen(self) -> None:
        """Wait for a word on any line, or for its end."""
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                selector.register(line, selectors.EVENT_READ)
            while selector.get_map() and not self._over:
                for key, _ in selector.select():
                    line = cast(socket.socket, key.fileobj)
                    said, problem = _read_line(line)
                    selector.unregister(line)
                    if said != 'bye' and not self._over:
                        self._end(*self._lines[line], said, problem)
        self._heard.set()

    def _end(self, rank: int, who: str, said: str | None, problem: OSError | None) -> None:
        """Say once a machine why, tell the other ranks, and leave at once: a collective may never return."""
        self._over = self._ending = True
        if said is None:
            status, text = 1, f'error: {_farewell(rank, who, problem)}'
        else:
            _, number, text = said.split(' ', 2)
            status = int(number)
        if self.rank == 0:
            self._send(f'lost {status} {text}')
        _log(text)
        first_here = self.local_rank == 0 or (said is None and rank == 0 and self.rank == 1)
        say_last(text, status, kind='lost', aloud=first_here)
        sys.stdout.flush()
        os._exit(status)

    # --- the end of this rank ---

    def last_words(self, error: BaseException) -> None:
        """Tell the others that ``error`` ends this rank.

        Does not return when ``error`` is a collective's that speaks of a rank which is gone: the watch then ends this
        process with the cause.
        """
        if self._ending:  # the watch knew first, and is saying so: its exit ends this wait
            self._heard.wait(SILENCE)
        if self._over:
            return
        if isinstance(error, RuntimeError) and _BROKEN.search(str(error)):
            self._heard.wait(SILENCE + 10)
        text = ' '.join(str(error).split())
        if isinstance(error, UserError) and error.status != UserError.status:
            self.close()  # every rank has agreed to end (a signal): no alarm
        elif isinstance(error, UserError):
            self._leave(error.status, error.heading + text)
        else:
            named = 'it was interrupted' if isinstance(error, KeyboardInterrupt) else f'{type(error).__name__}: {text}'
            self._leave(1, f'error: rank {self.rank} ({_who_am_i()}) failed: {named}')

    def close(self) -> None:
        """Leave in order: nobody is alarmed."""
        self._leave(0, '')

    def _leave(self, status: int, text: str) -> None:
        if self._over:
            return
        self._over = True
        sys.excepthook = self._hook
        last_words.remove(self.last_words)
        atexit.unregister(self.close)
        self._send(f'{"lost" if self.rank == 0 else "failed"} {status} {text}' if status else 'bye')
        for line in self._lines:
            _shut(line)

    def _send(self, message: str) -> None:
        for line in self._lines:
            with contextlib.suppress(OSError):  # it is gone as well
                line.settimeout(1)
                line.sendall(message.encode() + b'\n')

    def _on_exception(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        hook = self._hook
        self.last_words(error)
        hook(kind, error, trace)


def _log(text: str) -> None:
    """Into the log file, where there is one; the console hears it anyway."""
    logger = logging.getLogger('boxdet')
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))


def _who_am_i() -> str:
    return f'{socket.gethostname()}, process {os.getpid()}'


def _farewell(rank: int, who: str, problem: OSError | None) -> str:
    if problem is None or isinstance(problem, ConnectionResetError):
        return (f'rank {rank} ({who}) ended without a word: it was killed, or its machine ran out of memory; see '
                'docs/troubleshooting.md#it-hangs')
    return (f'rank {rank} ({who}) has not answered for {SILENCE} s: its machine or the network between is gone '
            f'({problem.strerror or problem})')


def _listening_socket(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(('', 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(('', 0), backlog=backlog)


def _kept_alive(line: socket.socket) -> socket.socket:
    """Let the kernel ask every 5 s whether the other side is there, and give up after SILENCE."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('TCP_KEEPIDLE', 5), ('TCP_KEEPINTVL', 5), ('TCP_KEEPCNT', SILENCE // 5 - 1),
                        ('TCP_USER_TIMEOUT', SILENCE * 1000)):
        if hasattr(socket, name):  # macOS has not all of them
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return line


def _read_line(line: socket.socket) -> tuple[str | None, OSError | None]:
    """(what was said, None at the end of the line; what broke it, None if it ended in order)."""
    said = b''
    try:
        while not said.endswith(b'\n'):
            byte = line.recv(1)  # no more: what follows is another message
            if not byte:
                return None, None
            said += byte
    except OSError as problem:
        return None, problem
    return said.decode(errors='replace').strip(), None


def _shut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
