"""A job of a real Slurm: SIGUSR1 ends the training, tools/train.py --requeue has it started again, and it goes on."""
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boxdet.checkpoints.io import load_checkpoint
from tests.test_docs.examples import runs


@pytest.mark.slow
@runs('docs/distributed.md: #!/bin/bash', 'docs/reliability.md: #SBATCH')
def test_a_job_is_started_again_and_goes_on(examples, slurm, shapes_dir, repo_root, tmp_path):
    spec = importlib.util.spec_from_file_location('tiny_training', repo_root / 'tests/test_tools/tiny_training.py')
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.write(tmp_path, shapes_dir)
    text = config.read_text()
    config.write_text(text.replace('max_epochs=3', 'max_epochs=5000'))
    config.rename(tmp_path / 'config.py')
    config = tmp_path / 'config.py'
    (tmp_path / 'tools').symlink_to(repo_root / 'tools')
    for name, example in zip(('job.sh', 'other.sh'), examples):
        script = example.filled if example.text.startswith('#!') else f'#!/bin/bash\n{example.filled}'
        (tmp_path / name).write_text(f'{script}echo "ended with $?"\n')
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = {**os.environ, **slurm, 'PATH': path, 'OMP_NUM_THREADS': '1'}

    def ask(*command):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for(condition):
        until = time.monotonic() + 120
        while not condition():
            output = tmp_path / 'output.txt'
            assert time.monotonic() < until, output.read_text()[-3000:] if output.exists() else ask('squeue')
            time.sleep(0.2)

    submit = ('sbatch', '--parsable', f'--chdir={tmp_path}', f'--output={tmp_path}/output.txt')
    job = ask(*submit, tmp_path / 'job.sh').strip()
    latest = tmp_path / 'work/latest.pth'
    wait_for(latest.exists)
    ask('scancel', '--signal=USR1', job)  # as --signal=USR1@300 does before the time limit
    wait_for(lambda: 'stopped by SIGUSR1 at iteration' in (tmp_path / 'output.txt').read_text())
    wait_for(lambda: 'JobState=PENDING' in ask('scontrol', 'show', 'job', job))
    stopped = load_checkpoint(latest)['meta']
    config.write_text(text.replace('max_epochs=3', f"max_epochs={stopped['epoch'] + 2}"))
    ask('scontrol', 'update', f'JobId={job}', 'StartTime=now')  # Slurm leaves two minutes between
    wait_for(lambda: 'ended with 0' in (tmp_path / 'output.txt').read_text())
    assert f"iter_{stopped['iter']}.pth: epoch {stopped['epoch']}" in (tmp_path / 'output.txt').read_text()
    assert 'Restarts=1' in ask('scontrol', 'show', 'job', job)
    meta = load_checkpoint(latest)['meta']
    assert (meta['world_size'], meta['iter']) == (2, 3 * (stopped['epoch'] + 2))

    config.write_text(text)
    ask(*submit, '--wait', tmp_path / 'other.sh')
    assert load_checkpoint(tmp_path / 'work_dirs/config/latest.pth')['meta']['iter'] == 18
