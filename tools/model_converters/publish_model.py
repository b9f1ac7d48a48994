#!/usr/bin/env python3
"""Make a checkpoint ready to be handed on: the weights and what describes them, under a name that holds its hash."""
from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.errors import CheckpointError, CommandParser, run_command

EXAMPLES = """
examples:
  python tools/model_converters/publish_model.py work_dirs/fruits/latest.pth fruits.pth
      writes fruits-1f2e3d4c.pth; the digits are the first eight of the file's SHA-256, which torch.hub can check
  python tools/model_converters/publish_model.py work_dirs/fruits/latest.pth fruits.safetensors
      the same as .safetensors, with the classes and the config as JSON in its metadata; boxdet loads both

Optimizer, random numbers and the rest of what --resume-from needs are left out, and of the meta the notes of hooks
(paths of your machine). The classes, the config and the epoch stay.
"""
_FORMATS = ('pth', 'safetensors')


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__, epilog=EXAMPLES,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN', help='the checkpoint, or its address')
    parser.add_argument('target', metavar='OUT', help='the file to write; its hash is put before its ending')
    parser.add_argument('--format', choices=_FORMATS, help='of the file (default: as its ending says, else pth)')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
    from boxdet.checkpoints.loading import state_dict_of
    from boxdet.files.writing import Replacement

    target = Path(args.target)
    if target.is_dir():
        raise CheckpointError(f'{target} is a folder: name the file to write')
    checkpoint = load_checkpoint(args.source)
    meta = {key: value for key, value in (checkpoint.get('meta') or {}).items() if key != 'hook_msgs'}
    ending = target.suffix.removeprefix('.')
    kind = args.format or (ending if ending in _FORMATS else 'pth')
    if ending in _FORMATS and ending != kind:
        raise CheckpointError(f'{target}: its ending says another format than --format {kind}')
    stem = target.stem if ending in _FORMATS else target.name
    # The hash is known when the file is there; OUT itself is never touched, it may be IN.
    new = Replacement(target.with_name(f'{stem}.{kind}'), CheckpointError)
    try:
        save_checkpoint(dict(meta=meta, state_dict=state_dict_of(checkpoint, args.source)), new.part)
        digest = hashlib.sha256(new.part.read_bytes()).hexdigest()
        new.path = target.with_name(f'{stem}-{digest[:8]}.{kind}')
        published = new.rename()
    finally:
        new.discard()
    print(f'{published}: {published.stat().st_size / 2 ** 20:.1f} MiB')


if __name__ == '__main__':
    run_command(main)
