"""Parts of 2.x that scripts and tests call by themselves, each group in a process of its own."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize('name', ['blocks', 'samples'])
def test_parts_by_2x_names_and_arguments(name, tmp_path):
    done = subprocess.run([sys.executable, '-W', 'ignore', str(HERE / f'{name}.py')], capture_output=True, text=True,
                          cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(HERE.parents[1])})
    assert done.stdout.endswith(f'{name}\n'), done.stderr
