"""A job of a real Slurm: SIGUSR1 ends the training, tools/train.py --requeue has it started again, and it goes on."""
import importlib.util
import os
import subprocess
import sys
import time

import pytest

from boxdet.checkpoints.io import load_checkpoint

JOB = '''#!/bin/bash
#SBATCH --job-name=requeued --ntasks=1 --requeue --open-mode=append --output={folder}/output.txt
cd {folder}
srun {python} {root}/tools/train.py tiny.py --work-dir {folder}/run --device cpu --launcher slurm \\
    --auto-resume --requeue
echo "ended with $?"
'''


@pytest.mark.slow
def test_a_job_is_started_again_and_goes_on(slurm, shapes_dir, repo_root, tmp_path):
    spec = importlib.util.spec_from_file_location('tiny_training', repo_root / 'tests/test_tools/tiny_training.py')
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.write(tmp_path, shapes_dir)
    text = config.read_text()
    config.write_text(text.replace('max_epochs=3', 'max_epochs=5000'))
    (tmp_path / 'job.sh').write_text(JOB.format(folder=tmp_path, root=repo_root, python=sys.executable))
    environment = {**os.environ, **slurm, 'PATH': f"{os.environ['PATH']}:/usr/sbin:/sbin", 'OMP_NUM_THREADS': '1'}

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

    job = ask('sbatch', '--parsable', '--partition=dev', str(tmp_path / 'job.sh')).strip()
    latest = tmp_path / 'run' / 'latest.pth'
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
    assert load_checkpoint(latest)['meta']['iter'] == 6 * (stopped['epoch'] + 2)
