"""The config files of mmdetection's wheels, fetched with pip."""
from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def configs_of(version: str, folder: Path) -> Path:
    """The configs folder of mmdet ``version``, unpacked into ``folder``; nothing else of the wheel is.

    Without an index the test is skipped; with BOXDET_CI=1 it fails.
    """
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--disable-pip-version-check',
               '--retries', '1', '--timeout', '20', '-d', str(folder), f'mmdet=={version}']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ['no message'])[-1]
        message = f'pip cannot download mmdet {version}: {reason}'
        pytest.fail(message) if os.environ.get('BOXDET_CI') == '1' else pytest.skip(message)
    with zipfile.ZipFile(next(folder.glob(f'mmdet-{version}*.whl'))) as wheel:
        names = [name for name in wheel.namelist() if name.startswith('mmdet/.mim/configs/') and name.endswith('.py')]
        wheel.extractall(folder, names)
    return folder / 'mmdet/.mim/configs'
