"""Work on results in threads, while the network goes on with the next images."""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import nn

from boxdet.abilities import ability

_MOST_THREADS = 4  # drawing and writing of more images at once outruns any network


class Behind:
    """Calls in threads, of whose end the caller hears in its own thread and in order; a context manager.

    Leaving it waits for all of them; after an exception those that have not begun are left out.

    Args:
        threads: how many work at once; twice as many calls wait, and ``put`` when there are more. 0 calls at once.

    >>> from functools import partial
    >>> with Behind() as behind:
    ...     for text in 'a', 'b':
    ...         behind.put(text.upper, partial(print, text, 'is done'))
    a is done
    b is done
    """

    def __init__(self, threads: int | None = None):
        threads = min(os.cpu_count() or 1, _MOST_THREADS) if threads is None else threads
        self._pool = ThreadPoolExecutor(threads, 'boxdet-behind') if threads else None
        self._most = 2 * threads
        self._waiting: deque[tuple[Future[None], Callable[[], object]]] = deque()

    def __enter__(self) -> Behind:
        return self

    def put(self, work: Callable[[], object], then: Callable[[], object] = lambda: None) -> None:
        """Have ``work`` called in a thread, and ``then`` in this one when it is done, after those before it.

        Raises:
            what an earlier ``work`` or ``then`` raised.
        """
        if self._pool is None:
            work()
            then()
            return
        self._waiting.append((self._pool.submit(_without_value, work), then))
        while self._waiting and (len(self._waiting) > self._most or self._waiting[0][0].done()):
            self._finish_first()

    def _finish_first(self) -> None:
        future, then = self._waiting.popleft()
        future.result()
        then()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._waiting:
                self._finish_first()
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)


def drawing_behind(model: nn.Module) -> Behind:
    """Threads for the drawings of ``model.show_result``; none where it does not say that it draws in threads."""
    return Behind(None if ability(model, 'draws_in_threads') else 0)


def _without_value(work: Callable[[], object]) -> None:
    """Call ``work``: a drawing that nobody asks for is not kept until its turn."""
    work()
