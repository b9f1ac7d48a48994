"""benchmarks/train_step.py measures both precisions, alone and with two processes."""
import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_train_step_benchmark(repo_root, shapes_dir, tmp_path):
    out = tmp_path / 'figures.json'
    command = [sys.executable, str(repo_root / 'benchmarks/train_step.py'), '--rounds', '1', '--batches', '1',
               '--scale',
               '96', '96', '--threads', '1', '--json', str(out)]
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/annotations').symlink_to(shapes_dir / 'annotations')
    (tmp_path / 'data/train').symlink_to(shapes_dir / 'train')
    done = subprocess.run([*command, '--data', str(tmp_path / 'data')], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert [(f['processes'], f['batch'], f['precision']) for f in figures] == [
        (1, 1, 'fp32'), (1, 1, 'bf16'), (2, 1, 'fp32'), (2, 1, 'bf16')]
    assert all(f['step'] > 0 and f['wait'] >= 0 and f['memory'] > 50 for f in figures)
    rows = [line for line in done.stdout.splitlines() if line.startswith('| ')]
    assert len(rows) == 5 and 'wait for data, ms' in rows[0] and 'peak memory, MB' in rows[0]
