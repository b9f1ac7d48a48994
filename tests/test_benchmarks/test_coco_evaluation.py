"""benchmarks/coco_evaluation.py compares every number of each kind with the reference evaluator's."""
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize('kind, reference', [('masks', 'pycocotools'), ('keypoints', 'pycocotools'), ('lvis', 'lvis')])
def test_coco_evaluation_benchmark(repo_root, shared_data, kind, reference):
    pytest.importorskip(reference)
    program, data = repo_root / 'benchmarks/coco_evaluation.py', shared_data / 'coco_mini'
    command = [sys.executable, program, '--data', data, '--kind', kind, '--images', '30', '--detections', '20']
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    head, *rows = [line for line in done.stdout.splitlines() if ': AP' not in line]
    assert head.split()[0] == kind and [row[:20].strip() for row in rows[:3]] == [
        reference, 'boxdet, one process', 'boxdet']
    assert all(float(row.split()[-1]) <= 1e-9 for row in rows[:3])
    assert all(float(row[20:].split()[6]) > 10 for row in rows)  # megabytes
