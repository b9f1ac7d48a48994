"""Errors that are the user's to mend: the command lines print them as one line and exit with status 2.

Each message names the culprit: the file, the annotation id, the config key, and the nearest valid name.
"""
from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Iterable


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


def run_command(main: Callable[[], int | None], interrupted: str = 'interrupted') -> None:
    """Run a command line and leave the process: the one way in which all of them talk to the user.

    A UserError is one line ``error: …`` and status 2, every warning one ``warning: …`` without our file and line (of
    rank 0 where a launcher started several processes), Ctrl-C the line ``interrupted`` and status 130, a reader that
    went away (``… | head``) status 1 in silence.

    Args:
        main: returns the exit status; None is 0.
    """
    warnings.showwarning = _show_warning
    try:
        status = main()
        sys.stdout.flush()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        status = 1
    sys.exit(status)


def _show_warning(message: Warning | str, *_: object) -> None:
    if os.environ.get('RANK', '0') == '0':  # the others would say the same again
        print(f'warning: {message}', file=sys.stderr)
