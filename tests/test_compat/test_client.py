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
