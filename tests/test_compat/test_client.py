"""Other people's programs on top of mmdet.apis."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize('kind', ['mask', 'faster'])
def test_a_client_that_calls_mmdet_apis(kind):
    root = str(HERE.parents[1])
    done = subprocess.run([sys.executable, '-W', 'ignore', str(HERE / 'client.py'), root, kind], capture_output=True,
                          text=True, env={**os.environ, 'PYTHONPATH': root})
    assert done.stdout.strip() == 'equal', done.stderr[-2000:]


def test_what_scripts_call_beside_classes():
    """eval_map, test loops, EvalHook, checkpoints, containers, training; cascade and OHEM heads; data of plug-ins."""
    root = str(HERE.parents[1])
    done = subprocess.run([sys.executable, '-W', 'ignore', str(HERE / 'paths.py'), root], capture_output=True,
                          text=True, env={**os.environ, 'PYTHONPATH': root})
    assert done.stdout.strip().endswith('all paths'), done.stderr[-2000:]
