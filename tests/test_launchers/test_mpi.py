"""Open MPI's mpirun starts a training of two processes."""
import os
import subprocess
import sys
from pathlib import Path

from boxdet.checkpoints.io import load_checkpoint


def test_two_processes_of_mpirun_train(toy_config, repo_root, tmp_path, need):
    need('mpirun', package='openmpi-bin')
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])  # for mishaps.py
    done = subprocess.run(
        ['mpirun', '--allow-run-as-root', '--oversubscribe', '-np', '2', '-x', 'PYTHONPATH', sys.executable,
         str(repo_root / 'tools/train.py'), str(toy_config), '--launcher', 'mpi', '--device', 'cpu', '--seed', '0',
         '--work-dir', str(tmp_path), '--no-validate', '--cfg-options',
         f'dist_params.port={20000 + os.getpid() % 12000}'],
        capture_output=True, text=True, timeout=300, env={**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    assert '2 processes x 1 images' in done.stdout + done.stderr and len(list(tmp_path.glob('*.log.json'))) == 1
    meta = load_checkpoint(tmp_path / 'epoch_1.pth')['meta']
    assert (meta['world_size'], meta['iter']) == (2, 6)  # 12 images
