"""``boxdet NAME …`` runs the program of that name: the file that ``python tools/NAME.py …`` runs, as that runs it.

Nothing but the program itself is imported for it, so that ``--help`` is there at once.
"""
from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path
from typing import NoReturn

from boxdet import errors
from boxdet.cli.completion import candidates, script
from boxdet.cli.programs import PROGRAMS
from boxdet.errors import ConfigError, nearest
from boxdet.files.shipped import ROOT
from boxdet.version import __version__

_AS_PROGRAM = re.compile(r'(?:python |bash )?\b((?:tools|demo)/[\w/]+\.(?:py|sh))\b')


def main() -> NoReturn:
    """Run what the command line says, and leave the process with its status."""
    errors.spelling = as_commands
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else '--help'), sys.argv[2:]
    if name.replace('-', '_') in PROGRAMS:
        run_program(name.replace('-', '_'), arguments)
    errors.run_command(lambda: _own(name, arguments))
    raise AssertionError('run_command leaves the process')


def run_program(name: str, arguments: list[str]) -> None:
    """Become the program ``name``: its file is executed as ``__main__``; a shell's script takes over the process."""
    path = ROOT / PROGRAMS[name]
    if path.suffix == '.sh':
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', ['bash', str(path), *arguments])
    sys.argv = [f'boxdet {name}', *arguments]
    program = types.ModuleType('__main__')
    program.__file__ = str(path)
    sys.modules['__main__'] = program  # where processes that it starts look for its functions
    exec(compile(path.read_bytes(), str(path), 'exec'), program.__dict__)


def as_commands(text: str) -> str:
    """``python tools/train.py`` in a text of a program's as ``boxdet train``; what has no command stays."""
    names = {path: name for name, path in PROGRAMS.items()}
    return _AS_PROGRAM.sub(lambda found: f'boxdet {names[found[1]]}' if found[1] in names else found[0], text)


def _own(name: str, arguments: list[str]) -> None:
    """What is no program: help, version, completion.

    Raises:
        ConfigError: there is no such command.
    """
    if name in ('-h', '--help', 'help'):
        print(help_text())
    elif name in ('-V', '--version', 'version'):
        print(f'boxdet {__version__}')
    elif name == 'completion':
        if arguments[:1] == ['--']:  # asked by the shell, at each key
            print('\n'.join(candidates(arguments[1:])))
        else:
            print(script(arguments), end='')
    else:
        raise ConfigError(f"there is no command '{name}'{nearest(name, [*PROGRAMS, 'completion'])} (boxdet --help "
                          'lists all)')


def help_text() -> str:
    """The commands with what each is for."""
    width = max(map(len, PROGRAMS)) + 2
    lines = [f'  {name:{width}}{summary(ROOT / path)}' for name, path in PROGRAMS.items()]
    return '\n'.join([
        'usage: boxdet COMMAND [its arguments]      boxdet COMMAND --help tells of one', '', *lines,
        f'  {"completion":{width}}Print what makes the TAB key complete commands: completion bash, zsh or fish.', '',
        'A config is a file, or the name of one in ./configs or among those that boxdet comes with:',
        '  boxdet train faster_rcnn_r50_fpn_1x_coco --data my.json'])


def summary(path: Path) -> str:
    """The first line of what a program says about itself; in a shell's script, of its comment."""
    text = path.read_text(encoding='utf-8')
    found = re.search(r'^# (.+)$' if path.suffix == '.sh' else r'"""(.+?)(?:"""|$)', text, re.MULTILINE)
    return as_commands(found.group(1).rstrip(':')) if found else ''
