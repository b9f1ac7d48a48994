"""A real Slurm of one node runs slurm_train.sh and slurm_test.sh."""
import json
import os
import subprocess
import sys

import pytest

from tests.test_docs.examples import launched, runs


@pytest.mark.slow
@runs('docs/distributed.md: GPUS=', 'README.md: GPUS=')
def test_slurm_trains_and_tests(examples, slurm, run, toy_config, tmp_path):
    train, test, without_options = (one.filled for one in examples)
    assert train.replace('tools/', 'bash tools/').startswith(without_options)
    names = {'config.py': toy_config, 'work': tmp_path, 'latest.pth': tmp_path / 'epoch_1.pth',
             'exchange': tmp_path / 'exchange'}
    script, arguments, variables = launched(train, names)
    assert variables == {'GPUS': '2'}
    two = dict(slurm, **variables, CPUS_PER_TASK='1', SRUN_ARGS='--immediate=60')
    trained = run(script, *arguments, **two)
    assert trained.status == 0, trained.err
    assert '2 processes x 1 images' in trained.out and len(list(tmp_path.glob('*.log.json'))) == 1
    entries = [json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()][1:]
    assert [entry['mode'] for entry in entries] == ['train'] * 6 + ['val']  # 12 images

    script, arguments, variables = launched(test, names)
    two.update(variables, PY_ARGS=f'--eval bbox segm --work-dir {tmp_path}/metrics')
    tested = run(script, *arguments, **two)
    assert tested.status == 0, tested.err
    metric = json.loads(next((tmp_path / 'metrics').glob('eval_*.json')).read_text())['metric']
    for key in ('bbox_mAP', 'segm_mAP', 'bbox_mAP_50'):
        assert metric[key] == entries[-1][key]


@pytest.mark.slow
def test_errors_under_slurm(slurm, run, toy_config, tmp_path):
    two = dict(slurm, GPUS='2', CPUS_PER_TASK='1')
    wrong = run('slurm_train.sh', 'dev', 'toy', toy_config, tmp_path / 'a', '--cfg-options', 'model.tpye=1', **two)
    assert wrong.status in (2, 143)  # 143: srun ended the second task before it came to the same error
    assert len([line for line in wrong.said if line.startswith('error: ')]) == 1, wrong.err
    config = tmp_path / 'killed.py'
    config.write_text(f"_base_ = ['{toy_config}']\ncustom_hooks = [dict(type='Mishap', what='killed')]")
    killed = run('slurm_train.sh', 'dev', 'toy', config, tmp_path / 'b', **two)
    assert killed.status != 0 and 'Traceback' not in killed.err
    assert sum('ended without a word' in line for line in killed.said) <= 1
    assert any('Killed' in line or 'ended without a word' in line for line in killed.said), killed.err


def test_a_partition_that_is_not_there(slurm, run):
    done = run('slurm_train.sh', 'gpu', 'toy', 'config.py', 'work', **slurm)
    assert (done.status, done.said) == (2, ["error: Slurm has no partition 'gpu'; it has dev"])


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """An srun that prints its arguments, and a sinfo that prints $RESOURCES; a config c.py in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c.py').write_text('')
    for name, body in (('srun', 'printf "%s\\n" "$@" "threads=$OMP_NUM_THREADS"'), ('sinfo', 'echo "$RESOURCES"')):
        (tmp_path / name).write_text(f'#!/bin/bash\n{body}\n')
        (tmp_path / name).chmod(0o755)
    return {'PATH': f"{tmp_path}:{os.environ['PATH']}", 'RESOURCES': '(null)'}


def test_what_srun_is_asked_for(run, pretended, repo_root):
    done = run('slurm_train.sh', 'dev', 'a job', 'c.py', 'w', '--seed', '1', **pretended | dict(
        RESOURCES='gpu:8', GPUS='16', SRUN_ARGS='--time 5 --qos=x', PY_ARGS='--auto-resume'))
    lines = done.out.splitlines()
    assert lines[:-1] == [
        '--partition=dev', '--job-name=a job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8',
        '--cpus-per-task=5', '--kill-on-bad-exit=1', '--time', '5', '--qos=x', sys.executable, '-u',
        f'{repo_root}/tools/train.py', 'c.py', '--work-dir', 'w', '--seed', '1', '--launcher', 'slurm', '--auto-resume']
    assert done.status == 0 and done.err == ''


def test_a_partition_without_gpus_computes_on_the_cpu(run, pretended):
    done = run('slurm_test.sh', 'dev', 'job', 'c.py', 'a.pth', '--eval', 'bbox', **pretended | dict(GPUS='2'))
    lines = done.out.splitlines()
    assert '--ntasks=2' in lines and '--ntasks-per-node=2' in lines and not any('gres' in line for line in lines)
    assert done.err == 'warning: partition dev offers no GPUs: 2 processes on the CPU\n'


def test_a_config_that_is_not_there_is_not_submitted(run, pretended):
    done = run('slurm_train.sh', 'dev', 'job', 'd.py', 'w', **pretended)
    assert (done.status, done.out, done.said) == (2, '', ["error: d.py: no such config file; did you mean 'c.py'?"])


def test_numbers_that_are_none(run, pretended):
    done = run('slurm_test.sh', 'dev', 'job', 'c.py', 'a.pth', **pretended | dict(GPUS='all'))
    assert (done.status, done.err) == (2, 'error: GPUS=all must be a whole number, 1 or more\n')


def test_without_slurm(run, tmp_path, repo_root):
    for name in ('bash', 'dirname'):
        (tmp_path / name).symlink_to(subprocess.run(['which', name], capture_output=True, text=True).stdout.strip())
    done = run('slurm_test.sh', 'dev', 'job', 'c.py', 'a.pth', PATH=str(tmp_path))
    assert done.status == 2 and done.err.startswith('error: there is no srun here') and 'dist_test.sh' in done.err
