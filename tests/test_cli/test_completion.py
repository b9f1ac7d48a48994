"""What the TAB key offers, and the three shells that ask for it."""
import os
import pty
import select
import subprocess
import sys

import pytest

from boxdet.cli.completion import candidates, script
from boxdet.errors import ConfigError


@pytest.mark.parametrize('words, offered', [
    (['tr'], ['train', 'translate_options']),
    (['completion', ''], ['bash', 'fish', 'zsh']),
    (['train', 'faster_rcnn_r50_fpn_2x'], ['faster_rcnn_r50_fpn_2x_coco']),
    (['train', 'x', '--laun'], ['--launcher']),
    (['train', 'x', '--launcher', ''], ['mpi', 'none', 'pytorch', 'slurm']),
    (['dist-train', 'x', '2', '--work'], ['--work-dir']),
    (['train', 'x', '--work-dir', ''], []),  # a file
    (['trian', ''], []),
])
def test_candidates(words, offered):
    assert candidates(words) == offered


def test_without_a_word_all_commands_and_an_unknown_shell():
    assert {'train', 'export', 'completion'} < set(candidates([]))
    with pytest.raises(ConfigError, match='takes the name of a shell'):
        script([])


@pytest.fixture
def environment(tmp_path):
    """One in which `boxdet` is a command."""
    (tmp_path / 'boxdet').write_text(f'#!/bin/sh\nexec {sys.executable} -m boxdet "$@"\n')
    (tmp_path / 'boxdet').chmod(0o755)
    return {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'HOME': str(tmp_path), 'TERM': 'dumb'}


def test_bash(environment):
    code = '''eval "$(boxdet completion bash)"; COMP_WORDS=(boxdet test mask_rcnn_r50_fpn_2x); COMP_CWORD=2; _boxdet
              echo "${COMPREPLY[@]}"; COMP_WORDS=(boxdet train x --la); COMP_CWORD=3; _boxdet; echo "${COMPREPLY[@]}"'''
    done = subprocess.run(['bash', '-c', code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ['mask_rcnn_r50_fpn_2x_coco', '--launcher'], done.stderr


def test_fish(need, environment):
    need('fish', package='fish')
    done = subprocess.run(['fish', '-c', 'boxdet completion fish | source; complete -C "boxdet translat"'],
                          capture_output=True, text=True, env=environment)
    assert done.stdout == 'translate_options\n', done.stderr


def test_zsh(need, environment):
    need('zsh', package='zsh')
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe('zsh', ['zsh', '-f', '-i'], environment)

    def read_until(text):
        seen = b''
        while text not in seen:
            assert select.select([terminal], [], [], 30)[0], seen
            seen += os.read(terminal, 4096)

    os.write(terminal, b'autoload -Uz compinit; compinit -u -D; eval "$(boxdet completion zsh)"\n')
    os.write(terminal, b'print READY-$((1+1))\n')
    read_until(b'READY-2\r\n')
    os.write(terminal, b'boxdet translat\t')
    read_until(b'e_options')
    os.write(terminal, b'\x15exit\n')  # the line is taken back
    os.waitpid(pid, 0)
    os.close(terminal)
