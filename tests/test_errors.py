"""run_command: what every command line does with errors, warnings, Ctrl-C and a reader that goes away."""
import os
import subprocess
import sys

import pytest

from boxdet.errors import CommandParser, nearest

PROGRAM = '''
import sys, warnings
from boxdet.errors import DataError, run_command
def main():
    {body}
run_command(main, 'stopped')
'''


def run(body, **environment):
    return subprocess.run([sys.executable, '-c', PROGRAM.format(body=body)], capture_output=True, text=True,
                          env={**os.environ, **environment})


@pytest.mark.parametrize('body, status, said', [
    ('pass', 0, ''),
    ('return 3', 3, ''),
    ("raise DataError('a.jpg: empty file')", 2, 'error: a.jpg: empty file\n'),
    ("warnings.warn('old key', DeprecationWarning, stacklevel=1)", 0, 'warning: old key\n'),
    ('raise KeyboardInterrupt', 130, 'stopped\n')])
def test_what_the_user_sees(body, status, said):
    done = run(body)
    assert (done.returncode, done.stderr) == (status, said)


def test_of_several_processes_one_warns():
    assert run("warnings.warn('x')", RANK='0').stderr == 'warning: x\n'
    assert run("warnings.warn('x')", RANK='1').stderr == ''


def test_letters_that_the_console_does_not_have():
    done = run("print('\u732b', 'gr\u00f6\u00dfe')", PYTHONIOENCODING='ascii', PYTHONUTF8='0')
    assert (done.returncode, done.stdout, done.stderr) == (0, '\\u732b gr\\xf6\\xdfe\n', '')


def test_our_own_mistakes_keep_their_traceback():
    done = run('1 / 0')
    assert done.returncode == 1 and 'Traceback' in done.stderr and 'ZeroDivisionError' in done.stderr


def test_a_reader_that_goes_away_ends_it_in_silence():
    writer = subprocess.Popen([sys.executable, '-c', PROGRAM.format(body="print('line ' * 100_000)")],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.close()
    assert (writer.stderr.read(), writer.wait()) == (b'', 1)


@pytest.mark.parametrize('arguments, said', [
    (['-format-only'], "error: unrecognized arguments: -format-only; did you mean '--format-only'?\n"),
    (['--formt_only'], "error: unrecognized arguments: --formt_only; did you mean '--format-only'?\n"),
    (['--banana', '3'], 'error: unrecognized arguments: --banana 3; test.py --help lists what there is\n'),
    (['--interval'], 'error: argument --interval: expected one argument; test.py --help lists what there is\n')])
def test_wrong_arguments_get_the_nearest_right_form(arguments, said, capsys):
    parser = CommandParser('test.py')
    parser.add_argument('--format-only', action='store_true')
    parser.add_argument('--interval')
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    assert end.value.code == 2 and capsys.readouterr().err == said


def test_every_command_answers_so(repo_root):
    for path in (*(repo_root / 'tools').rglob('*.py'), *(repo_root / 'demo').glob('*.py')):
        # make_shapes.py runs before boxdet is installed
        assert 'argparse.ArgumentParser(' not in path.read_text() or path.name == 'make_shapes.py', path


def test_nearest_name():
    assert nearest('score_thresh', ['nms', 'score_thr']) == "; did you mean 'score_thr'?"
    assert nearest('banana', ['score_thr']) == ''
