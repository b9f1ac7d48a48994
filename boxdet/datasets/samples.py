"""How a sample is asked for: by the method that the data set's class brings."""
from __future__ import annotations

from typing import Any


def take(dataset: Any, index: int, compact: bool = False) -> dict:
    """Sample ``index`` of any data set, wrapped or not, with a ``__getitem__`` of a user's own heard.

    Args:
        dataset: a data set of boxdet's or of a user's.
        index: number of the image.
        compact: for ``datasets.collate``: the image may stay uint8 (see ``pipelines.compose``) where nobody overrides
            ``__getitem__``, whose author expects the finished image.
    """
    return dataset.sample(index, compact=True) if compact and gives_compact(dataset) else dataset[index]


def gives_compact(dataset: Any) -> bool:
    """Whether ``dataset.sample(index, compact=True)`` is what ``dataset[index]`` is but for the unfinished image.

    It is not for a class that overrides ``__getitem__`` without ``sample``.
    """
    for cls in type(dataset).__mro__:
        if 'sample' in cls.__dict__:
            return True
        if '__getitem__' in cls.__dict__:
            return False
    return False
