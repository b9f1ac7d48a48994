"""Errors that are the user's to mend: the command lines print them as one line and exit with status 2.

Each message names the culprit: the file, the annotation id, the config key, and the nearest valid name.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base of everything a user can mend without reading our code."""


class ConfigError(UserError):
    """A config key, value or registry type that cannot be right."""


class DataError(UserError):
    """An image, annotation or data set that cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read, trusted, written, or that belongs to another model."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar of ``names``, or ``''`` when none is near.

    >>> nearest('score_thresh', ['score_thr', 'nms', 'max_per_img'])
    "; did you mean 'score_thr'?"
    >>> nearest('banana', ['score_thr'])
    ''
    """
    candidates = [str(n) for n in names]
    by_lower = {c.lower(): c for c in candidates}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ''
