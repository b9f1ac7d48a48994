"""Plug-ins of the forms found in public train as a plain implementation does."""
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_three_plug_ins_equal_plain_implementations():
    done = subprocess.run([sys.executable, '-W', 'ignore', str(HERE / 'three_plugins.py')], capture_output=True,
                          text=True, env={**os.environ, 'PYTHONPATH': str(HERE.parents[1])})
    assert done.stdout.split('\n')[:3] == ['backbone equal', 'cosine equal', 'contrast equal'], done.stderr[-2000:]
