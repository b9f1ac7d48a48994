"""benchmarks/plain_operators.py: a row for each operator, beside what it takes the place of."""
from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / 'benchmarks/plain_operators.py'


def test_the_table_has_a_row_for_each_operator(capsys):
    runpy.run_path(str(SCRIPT))['main'](['--rounds', '1', '--scale', '0.1'])
    rows = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[1].strip() for row in rows[2:]] == [
        'nearest pixel', 'CARAFE', 'convolution', 'deformable convolution', 'SAC', 'SAC, use_deform', 'convolution',
        "ResNeSt's split attention"]
    assert all(float(row[2]) > 0 for row in rows[2:])
    assert rows[2][3].strip() == rows[4][3].strip() == '1.0'  # what the others are compared with
