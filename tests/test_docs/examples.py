"""The examples of README.md and docs/: every command, script and block of code, and how a test takes one.

An example is a line of a block of commands, with the lines that it goes on in, or a whole block of anything else. A
test says by ``runs`` which ones it runs; tests/test_docs/test_examples.py fails where an example belongs to no test.
"""
from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from boxdet.cli.programs import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ('shell', 'sh', 'bash')

# What stands for something in the documents, and the smallest that is the same: one table for all pages.
PLACES = {
    # what a reader puts in
    'CONFIG': 'config.py', 'CHECKPOINT': 'latest.pth', '--work-dir DIR': '--work-dir work', 'WORK_DIR': 'work',
    'DIR': 'images', 'IMAGE': 'test.jpg', "'folder/*.jpg'": "'images/*.png'", 'images/*.jpg': 'images/*.png',
    'VIDEO': 'clip.mp4', '--camera-id 0': '--camera-id clip.mp4', 'SOURCE OUT': 'my_labels converted',
    'PARTITION': 'dev', '--partition=gpu': '--partition=dev', 'JOB_NAME': 'job', 'JOB': 'job',
    '[options of tools/train.py]': '--seed 0', '[options of tools/test.py]': '--tmpdir exchange',
    '[--quick] [--device cuda]': '--quick', '[--images 500]': '--images 500',
    # a device
    'cuda:0': 'cpu',
    # numbers of processes, cores, hosts and epochs
    'CONFIG 8': 'config.py 4', 'CHECKPOINT 8': 'latest.pth 3', 'GPUS=16': 'GPUS=2', 'GPUS=8': 'GPUS=2',
    'PORT=29500 tools/dist_train.sh CONFIG 8': 'PORT=29500 tools/dist_train.sh config.py 1', '10.0.0.1': '10.77.0.1',
    '--ntasks=8': '--ntasks=2', '--ntasks-per-node=8': '--ntasks-per-node=2', '--gres=gpu:8': '--gres=gpu:2',
    '--cpus-per-task=5': '--cpus-per-task=1', 'max_epochs=12': 'max_epochs=1',
    # images, their number and sizes
    'coco_mini/val2017': 'images', '--count 40': '--count 2',
    'benchmarks/export.py data/shapes/val': 'benchmarks/export.py images',
    '--size 333 200': '--size 128 96', '--size 160 128': '--size 128 96', '--size 1333 800': '--size 128 96',
}
_PLACE = re.compile('|'.join(rf'(?<![\w/]){re.escape(name)}(?!\w)' for name in sorted(PLACES, key=len, reverse=True)))


@dataclass(frozen=True)
class Example:
    """``text`` of a page, from its ``line`` on; ``language`` is the fence's, 'shell' for an indented block."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.page}:{self.line}: {self.text.splitlines()[0]}'

    @property
    def filled(self) -> str:
        """The text with everything of PLACES in its place; of commands, without the comment behind."""
        text = _PLACE.sub(lambda found: PLACES[found[0]], self.text)
        return re.sub(r'\s+#\s.*', '', text) if self.language in SHELLS and '\n' not in text else text

    def exec(self, names: dict) -> dict:
        """Run the code among ``names``, which it changes and which are returned."""
        exec(compile(self.filled, f'{self.page}:{self.line}', 'exec'), names)
        return names


def pages() -> list[str]:
    """README.md and what is in docs/, from the root."""
    return ['README.md', *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').rglob('*.md'))]


def examples_of(page: str) -> list[Example]:
    """The examples of a page, in its order."""
    found = []
    for line, language, text in _blocks((ROOT / page).read_text()):
        parts = _commands(text) if language in SHELLS else [(0, text)]
        found += [Example(page, line + offset, language, part) for offset, part in parts]
    return found


def _blocks(text: str):
    """(number of its first line, language, text) of every block, fenced or indented."""
    lines, i, in_list = text.splitlines(), 0, False
    while i < len(lines):
        fence = re.fullmatch(r'\s*(```+|~~~+)\s*(.*)', lines[i])
        if fence:
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == fence[1])
            yield i + 2, fence[2], '\n'.join(lines[i + 1:end]) + '\n'
            i = end
        elif lines[i].startswith('    ') and not lines[i - 1].strip() and not in_list:
            end = next((j for j in range(i, len(lines)) if not lines[j].startswith('    ')), len(lines))
            yield i + 1, 'shell', ''.join(line[4:] + '\n' for line in lines[i:end])
            i = end
        elif lines[i].strip():
            in_list = bool(re.match(r'\s*([*-]|\d+\.|::: )', lines[i])) or in_list and lines[i].startswith(' ')
        i += 1


def _commands(text: str) -> list[tuple[int, str]]:
    """(offset, command) of every line; a script, whose lines need each other, stays whole."""
    if re.search(r'^(#|\w+=\S*$|\w+="|\w+=[^ ]*;)', text, re.MULTILINE):
        return [(0, text)]
    found, line = [], 0
    for command in re.split(r'(?<!\\)\n', text.rstrip('\n')):
        shlex.split(command, comments=True)  # a line of its own
        found.append((line, command.replace('\\\n', ' ')))
        line += command.count('\n') + 1
    return found


def chosen(claim: str) -> list[Example]:
    """The examples of a claim: all of ``'docs/labels.md'``; of ``'README.md: boxdet t'`` those that begin so."""
    page, _, beginning = claim.partition(': ')
    found = [one for one in examples_of(page) if one.text.startswith(beginning)]
    assert found, f'{page} has no example that begins with {beginning!r}'
    return found


def runs(*claims: str):
    """The test runs the examples of these claims: it gets them as ``examples``, in the order of the claims."""
    return pytest.mark.parametrize('examples', [[one for claim in claims for one in chosen(claim)]], ids=['documents'])


def expanded(text: str) -> list[list[str]]:
    """The words of each ``python …``, ``boxdet …`` and ``srun …`` of a line or a script, as bash makes them here."""
    told = '() { printf "%s\\0" NAME "$@"; printf "\\n\\0"; }; '
    functions = ''.join(name + told.replace('NAME', name) for name in ('python', 'boxdet', 'pip'))
    done = subprocess.run(['bash', '-ec', f'{functions}srun() {{ python "${{@:2}}"; }}; {text}'], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return [command.strip('\0').split('\0') for command in done.stdout.split('\n\0')[:-1]]


def run(line: str | list[str], *more: str) -> str:
    """Do a command line ``python PATH …`` or ``boxdet NAME …``, or its words, in this process; what it printed."""
    (name, path, *arguments), = expanded(line) if isinstance(line, str) else [line]
    assert name in ('python', 'boxdet'), line
    path = PROGRAMS[path] if name == 'boxdet' else path
    spec = importlib.util.spec_from_file_location('boxdet_documented_program', ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look it up
    before, printed = sys.argv, io.StringIO()
    sys.argv = [str(ROOT / path), *arguments, *more]
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            spec.loader.exec_module(module)
            assert not module.main(), line
    finally:
        sys.argv = before
    return printed.getvalue()


def launched(line: str, instead: dict[str, object]) -> tuple[str, list[str], dict[str, str]]:
    """(script below tools/, arguments, variables) of ``NAME=… tools/….sh …``; ``instead`` has other words for some."""
    words = [str(instead.get(word, word)) for word in shlex.split(line, comments=True) if word != 'bash']
    variables = dict(word.split('=', 1) for word in words if re.match(r'[A-Z_]+=', word))
    script, *arguments = words[len(variables):]
    return script.removeprefix('tools/'), arguments, variables
