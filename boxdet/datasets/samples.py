"""How a sample is asked for."""
from __future__ import annotations

from typing import Any

from boxdet.abilities import ability


def take(dataset: Any, index: int, compact: bool = False) -> dict:
    """Sample ``index`` of any data set, wrapped or not, with a ``__getitem__`` of a user's own heard.

    Args:
        dataset: a data set of boxdet's or of a user's.
        index: number of the image.
        compact: for ``datasets.collate``: the image may stay uint8 (see ``pipelines.compose``) where nobody overrides
            ``__getitem__``, whose author expects the finished image.
    """
    return dataset.sample(index, compact=True) if compact and ability(dataset, 'gives_compact') else dataset[index]
