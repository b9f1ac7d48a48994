"""mmdetection 3.x's forms at the edge, in a process of its own."""
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_script_of_3x_runs_as_it_is(tmp_path):
    root = str(HERE.parents[1])
    done = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'boxdet.compat', str(HERE / 'script_3x.py'), root,
                           str(tmp_path)], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': root})
    assert done.stdout.strip().endswith('read'), done.stderr[-2000:]
