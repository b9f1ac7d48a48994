"""A function over many items, in several processes, with a progress bar: what the converters have in common."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from boxdet.engine.evaluation_loop import Progress

_LARGEST_CHUNK = 16  # items that a process takes at a time: the bar still moves


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any], processes: int = 1,
                unit: str = 'images') -> Iterator[Any]:
    """``function`` of each item, in order.

    Args:
        function: of a module, so that other processes find it. An error it raises ends the whole.
        items: what it is given, one at a time.
        processes: 1 works in this one.
        unit: what the bar counts.
    """
    progress = Progress(len(items), unit=unit)
    if processes <= 1 or len(items) < 2:
        for item in items:
            yield function(item)
            progress.advance(1)
    else:
        pool = ProcessPoolExecutor(min(processes, len(items)))
        try:
            chunk = max(1, min(_LARGEST_CHUNK, len(items) // (4 * processes)))
            for result in pool.map(function, items, chunksize=chunk):
                yield result
                progress.advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
    progress.close()
