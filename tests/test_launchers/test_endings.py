"""However a rank ends, all end soon, with the cause in one line: under tools/torchrun.py, and on their own."""
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name('ending_ranks.py')


def launch(repo_root, *arguments, gpus=2, **environment):
    command = [sys.executable, str(repo_root / 'tools/torchrun.py'), str(gpus), str(PROGRAM), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1', **environment})


@pytest.mark.slow
@pytest.mark.parametrize('what, status, said', [
    ('config', 2, 'error: model.tpye is unknown'),
    ('everyone', 2, 'error: train.json: no such file'),
    ('error', 2, 'error: b.jpg: empty file'),
    ('killed', 137, 'error: rank 1 (process PID) was killed by SIGKILL; if nobody did, the machine ran out of memory '
                    '(dmesg tells)')])
def test_one_line_and_a_status(repo_root, what, status, said):
    process = launch(repo_root, what)
    out, err = process.communicate(timeout=120)
    pids = dict(re.findall(r'(rank \d) is process (\d+)', out))  # two ranks may write on one line
    assert err.strip() == said.replace('PID', pids.get('rank 1', '')) and process.returncode == status, err
    assert out.count('registered for the end') == 1 or what != 'error'  # of rank 1; the other one is told to end


@pytest.mark.slow
def test_a_crash_keeps_its_traceback_and_no_other(repo_root):
    process = launch(repo_root, 'crash')
    _, err = process.communicate(timeout=120)
    lines = err.splitlines()
    assert process.returncode == 1 and err.count('Traceback') == 1
    assert lines[-1] == 'error: rank 1 failed: ValueError: a mistake of ours (its traceback stands above)'
    assert all(line.startswith('[rank1]:') or line == 'of ours' for line in lines[:-1])


@pytest.mark.slow
def test_signals_reach_the_ranks_and_their_status_comes_back(repo_root):
    process = launch(repo_root, 'wait')
    for _ in range(2):
        process.stdout.readline()  # both ranks have joined
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (75, 'saved iter_3.pth\n')


@pytest.mark.slow
@pytest.mark.parametrize('what, victim', [('busy', 1), ('killed', 0), ('crash', 0)])
def test_without_a_launcher_the_others_notice(repo_root, what, victim):
    """The ranks of other machines, of Slurm and of MPI have nobody who would end them."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(probe.getsockname()[1]), WORLD_SIZE='2', LOCAL_RANK='0',
                     OMP_NUM_THREADS='1')
    ranks = [subprocess.Popen([sys.executable, str(PROGRAM), what, str(victim)], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.PIPE, env={**os.environ, **place, 'RANK': str(rank)})
             for rank in range(2)]
    ranks[victim].communicate(timeout=120)
    _, err = ranks[1 - victim].communicate(timeout=120)
    who = f'rank {victim} ({socket.gethostname()}, process {ranks[victim].pid})'
    why = 'failed: ValueError: a mistake of ours' if what == 'crash' else \
        'ended without a word: it was killed, or its machine ran out of memory; see docs/troubleshooting.md#it-hangs'
    assert (err, ranks[1 - victim].returncode) == (f'error: {who} {why}\n', 1)


@pytest.mark.parametrize('gpus, environment, message', [
    ('two', {}, "GPUS, the number of processes on this machine, is 'two'"), ('0', {}, 'it must be a whole number, 1'),
    ('1', dict(PORT='http'), "PORT is 'http'"), ('1', dict(NNODES='2'), 'NNODES=2 needs MASTER_ADDR'),
    ('1', dict(NNODES='2', NODE_RANK='2', MASTER_ADDR='a'), 'NODE_RANK=2: 2 nodes are numbered from 0 to 1')])
def test_wrong_places_teach(repo_root, gpus, environment, message):
    process = launch(repo_root, gpus=gpus, **environment)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and message in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_port_that_is_taken(repo_root):
    with socket.create_server(('', 0)) as other:
        port = other.getsockname()[1]
        process = launch(repo_root, 'nothing', PORT=str(port))
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err == f'error: PORT {port} of this machine is taken, perhaps by another training: choose another\n'


@pytest.mark.parametrize('script, arguments', [
    ('dist_train.sh', []), ('dist_train.sh', ['config.py']), ('dist_train.sh', ['8', 'config.py']),
    ('dist_test.sh', ['config.py', 'a.pth']), ('dist_test.sh', ['config.py', 'a.pth', '--eval']),
    ('slurm_train.sh', ['dev', 'job', 'config.py']), ('slurm_test.sh', ['dev', 'job', 'config.py'])])
def test_scripts_say_how_they_are_used(repo_root, script, arguments):
    done = subprocess.run([repo_root / 'tools' / script, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('usage: ') and len(done.stderr.splitlines()) == 1
