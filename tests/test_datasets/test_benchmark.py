"""benchmarks/data_pipeline.py runs and prints every part."""
import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_data_pipeline_benchmark(repo_root, shared_data, tmp_path):
    out = tmp_path / 'times.json'
    command = [sys.executable, str(repo_root / 'benchmarks/data_pipeline.py'), '--data', str(shared_data / 'coco_mini'),
               '--rounds', '1', '--rois', '16', '--json', str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    times = json.loads(out.read_text())
    assert all(value > 0 for value in times.values())
    # Generous: the machine may be busy. The goals are 1.4 and 1.8.
    assert times['boxes'] < 2 * times['floor'] and times['masks + masks, put off'] < 2.5 * times['floor']
    assert 'boxes' in done.stdout and '(goal 1.4x)' in done.stdout
