"""Published weights by the name of their config: ``zoo.json`` says where they are, whose, and what they reached."""
from __future__ import annotations

import fnmatch
import functools
import json
import os
from pathlib import Path
from typing import TypedDict

from boxdet.errors import CheckpointError, near_names

SCHEME = 'zoo://'


class _Checked(TypedDict, total=False):
    md5: str


class Entry(_Checked):
    """A line of ``zoo.json``.

    Args:
        config: path of the config within ``configs/``.
        weights: address; eight or more digits at the end of the file's name begin its SHA-256.
        project: whose weights they are; they are converted while they are loaded.
        metrics: published figures in percent, 'box', 'mask', ...
        md5: how the file's MD5 begins, where the project tells that.
    """
    config: str
    weights: str
    project: str
    metrics: dict[str, float]


@functools.cache
def entries() -> dict[str, Entry]:
    """Every entry by the short name of its config."""
    return json.loads((Path(__file__).resolve().parent.parent / 'zoo.json').read_text(encoding='utf-8'))


def entry(name: str) -> Entry:
    """The entry of a config's short name.

    Raises:
        CheckpointError: there is none; the message has the nearest three names.
    """
    known = entries()
    short = Path(name).name.removesuffix('.py')
    if short not in known:
        raise CheckpointError(f"no published weights are known for '{short}'{near_names(short, known)} "
                              '(tools/zoo.py list shows all)')
    return known[short]


def matching(patterns: list[str]) -> dict[str, Entry]:
    """The entries that match one of the patterns (``*``, ``?``, or a part of a name); all without any pattern."""
    if not patterns:
        return dict(entries())
    return {name: found for name, found in entries().items()
            if any(fnmatch.fnmatch(name, pattern) or pattern in name for pattern in patterns)}


def address(checkpoint: str | os.PathLike, config: str | os.PathLike | None) -> str | os.PathLike:
    """``checkpoint`` itself, or for 'zoo' the address of the weights of ``config``.

    Raises:
        CheckpointError: 'zoo', and there are none for that config.
    """
    if str(checkpoint) != 'zoo' or Path('zoo').is_file():
        return checkpoint
    if config is None:
        raise CheckpointError("checkpoint 'zoo': this config has no file whose name could be looked up")
    return SCHEME + Path(config).name.removesuffix('.py') if entry(str(config)) else checkpoint


def download_folder() -> Path:
    """Where downloads are kept: ``$BOXDET_HOME/checkpoints``, else torch.hub's ``checkpoints``."""
    home = os.environ.get('BOXDET_HOME')
    if home:
        return Path(home).expanduser() / 'checkpoints'
    import torch

    return Path(torch.hub.get_dir()) / 'checkpoints'
