"""RoI heads of families, RPN and mask heads call what a plug-in of 2.x overrides, or tell."""
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_heads_of_families_hear_a_plug_in():
    root = str(HERE.parents[1])
    done = subprocess.run([sys.executable, '-W', 'ignore', str(HERE / 'families.py'), root], capture_output=True,
                          text=True, env={**os.environ, 'PYTHONPATH': root})
    assert done.stdout.split('\n')[:3] == ['families equal', 'parts equal', 'all told'], done.stderr[-2000:]
