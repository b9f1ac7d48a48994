"""Errors that are the user's to mend: the command lines print them as one line and exit with status 2.

Each message names the culprit: the file, the annotation id, the config key, and the nearest valid name.
"""
from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import io
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn


class UserError(Exception):
    """Base of everything a user can mend without reading our code.

    Attributes:
        status: exit status of a command that it ends. heading: what its line begins with.
    """
    status = 2
    heading = 'error: '
    __str__ = Exception.__str__  # also where boxdet.compat makes an error a KeyError, which quotes its text


class ConfigError(UserError):
    """A config key, value or registry type that cannot be right."""


class DataError(UserError):
    """An image, annotation or data set that cannot be used as it is."""


class ArgumentError(ValueError):
    """A value or a shape that a function cannot take: for the code that calls it to mend, not for the user."""


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


def near_names(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return ``'; near it are a, b, c'`` for the ``count`` most similar of ``names``, or ``''`` when none is near."""
    near = difflib.get_close_matches(name, list(names), n=count, cutoff=0.5)
    return f"; near it are {', '.join(near)}" if near else ''


# How a command line writes what a text calls tools/NAME.py: the command `boxdet` puts its own names there.
spelling: Callable[[str], str] = str


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line with the nearest valid form, and status 2."""

    def format_help(self) -> str:
        """Argparse's, with the names of commands as the user has them."""
        return spelling(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and leave."""
        unknown = re.match(r'unrecognized arguments: (.*)', message)
        option = next((word for word in unknown.group(1).split() if word.startswith('-')), '') if unknown else ''
        near = ''
        if option:
            by_name = {known.lstrip('-'): known for known in self._option_string_actions}
            near = nearest(option.lstrip('-').partition('=')[0].replace('_', '-'), by_name)
            near = re.sub(r"'(.+)'", lambda match: f"'{by_name[match.group(1)]}'", near)
        self.exit(2, f'error: {message}{near or f"; {self.prog} --help lists what there is"}\n')


# Called with the error that ends this process, before it is printed: a rank of several tells the others.
last_words: list[Callable[[BaseException], None]] = []

# Packages that only some of boxdet imports, and the extra that installs them: pip install 'boxdet[EXTRA]'.
EXTRAS = {'av': 'video', 'matplotlib': 'report', 'onnx': 'export', 'onnxruntime': 'export', 'onnxscript': 'export',
          'tensorboard': 'loggers', 'supervision': 'supervision', 'cityscapesscripts': 'cityscapes'}

# How ``run_command`` leaves the process; ``exit_at_once`` while it is a rank of several.
leave: Callable[[int], NoReturn] = sys.exit

EXIT_NOTES = 'BOXDET_EXIT_NOTES'  # environment: the folder where tools/torchrun.py reads why its ranks ended
_word = threading.Lock()  # taken once, by the thread that says why this process ends


def run_command(main: Callable[[], int | None], interrupted: str = 'interrupted') -> None:
    """Run a command line and leave the process: the one way in which all of them talk to the user.

    A UserError is one line with its heading and its status (``error: …`` and 2), every warning one ``warning: …``
    without our file and line (of rank 0 where a launcher started several processes), Ctrl-C the line ``interrupted``
    and status 130, a reader that went away (``… | head``) status 1 in silence. What several ranks would say alike, one
    of them says.

    Args:
        main: returns the exit status; None is 0.
        interrupted: the line after Ctrl-C.
    """
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # it takes whatever it is called with
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == 'strict':
        sys.stdout.reconfigure(errors='backslashreplace')  # names in letters that a console does not have
    try:
        status = main()
        sys.stdout.flush()
    except UserError as error:
        status = error.status
        _tell_others(error)
        say_last(f'{error.heading}{error}', status)
    except KeyboardInterrupt as error:
        status = 130
        _tell_others(error)
        say_last(interrupted, status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        status = 1
    except SystemExit as end:
        _leave_note('', end.code if isinstance(end.code, int) else int(end.code is not None), 'exit')
        raise
    except Exception as error:  # ours to mend: it keeps its traceback
        _tell_others(error)
        status = _say_what_is_missing(error)
        if not status:
            _leave_note(f'{type(error).__name__}: {" ".join(str(error).split())}', 1, 'crash')
            if leave is sys.exit:
                raise
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
    if status:
        _leave_note('', status, 'exit')
        _keep_status(signal.SIG_IGN)
    leave(status or 0)


def _say_what_is_missing(error: Exception) -> int:
    """One line and a status for a package or for memory; 0 for any other error."""
    missing = (getattr(error, 'name', None) or '').partition('.')[0]
    if isinstance(error, ModuleNotFoundError) and missing in EXTRAS:
        say_last(f"error: this needs {missing}, which is not installed: pip install 'boxdet[{EXTRAS[missing]}]'", 2)
        return 2
    if isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError':  # torch's
        first = (str(error).splitlines() or ['no more of it'])[0]
        say_last(f'error: out of memory: {first}; see docs/troubleshooting.md#out-of-memory', 1)
        return 1
    return 0


def exit_at_once(status: int) -> NoReturn:
    """Leave as ``sys.exit`` does, but without the end of the interpreter.

    A thread of gloo may still hold the tensor of the last collective. When it lets go of it while the interpreter ends,
    it aborts the process: "terminate called without an active exception", and status 134.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    os._exit(status)


def say_last(text: str, status: int, kind: str = 'error', aloud: bool = True) -> None:
    """Say why this process is about to end with ``status``: once, whichever thread comes first.

    Under tools/torchrun.py the line goes to its folder of notes, and it prints what matters. Otherwise it is printed
    here; ranks after the first wait a moment, in which rank 0 says the same and the launcher ends them.

    Args:
        text: the line.
        status: the exit status of this process.
        kind: 'error', or 'lost' when another rank's end is the cause.
        aloud: print it where there are no notes.
    """
    if not _word.acquire(blocking=False):
        time.sleep(5)  # the other thread ends the process
        return
    text = spelling(text)
    if _leave_note(text, status, kind) or not aloud:
        return
    if _rank() and kind == 'error':
        _keep_status(lambda *_: os._exit(status))
        time.sleep(10)
    print(text, file=sys.stderr, flush=True)


def _keep_status(on_sigterm: Any) -> None:
    """A launcher ends the ranks that follow the first one, and reports the highest status: let it be theirs."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def _tell_others(error: BaseException) -> None:
    if last_words:  # a launcher ends this rank once a rank that was told has ended: not before it has said why
        _keep_status(signal.SIG_IGN)
    for tell in list(last_words):
        tell(error)


def _leave_note(text: str, status: int, kind: str) -> bool:
    """Write for the launcher why this rank ends; False when none asks for it. The first note stays."""
    folder = os.environ.get(EXIT_NOTES)
    if not folder or not os.path.isdir(folder):
        return False
    note = Path(folder, f'{_rank()}.json')
    if not note.exists():
        part = note.with_suffix('.part')
        part.write_text(json.dumps(dict(text=text, status=status, kind=kind)), encoding='utf-8')
        os.replace(part, note)
    return True


def _rank() -> int:
    """This process among those that torchrun, Slurm or Open MPI started; 0 alone."""
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        if os.environ.get(name, '').isdigit():
            return int(os.environ[name])
    return 0


def _show_warning(message: Warning | str, *_: object) -> None:
    if _rank() == 0:  # the others would say the same again
        print(spelling(f'warning: {message}'), file=sys.stderr)
