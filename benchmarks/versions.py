"""Fast tests with other versions of Python and torch, one environment after the other.

    python benchmarks/versions.py FOLDER                                     every one of the promise that is here
    python benchmarks/versions.py FOLDER --only python3.11=2.4 python3.13=   Python=torch; no number is the newest

Python is looked for on the PATH, among pyenv's, and by uv where that is installed. Each environment (6 GB) is made in
FOLDER from the machine's package index with the wheel's own requirements, and removed before the next. The last lines
are a table for docs/installing.md; the exit status is 1 where tests failed.
"""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMISED = ('python3.10=2.4', 'python3.10=', 'python3.11=2.4', 'python3.11=', 'python3.12=', 'python3.13=')
# Numbers, networks, a training, the command; nothing that needs an extra or more data than the checkout has.
TESTS = ('tests/test_geometry', 'tests/test_structures', 'tests/test_matching', 'tests/test_models/test_detectors.py',
         'tests/test_cli', 'tests/test_engine/test_own_data.py', 'tests/test_engine/test_runner.py')


def interpreter(name: str) -> str | None:
    """Where Python ``name`` is, or None."""
    found = [shutil.which(name)]
    root = Path(os.environ.get('PYENV_ROOT', '~/.pyenv')).expanduser()
    found += sorted(map(str, root.glob(f'versions/{name.removeprefix("python")}.*/bin/{name}')))
    if shutil.which('uv'):
        asked = subprocess.run(['uv', 'python', 'find', name.removeprefix('python')], capture_output=True, text=True)
        found.append(asked.stdout.strip())
    # pyenv's own programs of that name on the PATH end with an error where the version is not the one in use.
    return next((path for path in found if path and subprocess.run([path, '-V'], capture_output=True).returncode == 0),
                None)


def tried(python: str, torch: str, folder: Path) -> tuple[str, str]:
    """Versions and pytest's last line, of a new environment."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        subprocess.run([python, '-m', 'venv', folder], check=True)
        bin_ = folder / 'bin/python'
        subprocess.run([bin_, '-m', 'pip', 'install', '--quiet', '--no-cache-dir', '--disable-pip-version-check',
                        f'torch=={torch}.*' if torch else 'torch', f'{ROOT}[report]', 'pytest', 'pytest-timeout',
                        'psutil'], check=True)
        versions = subprocess.run([bin_, '-c', 'import sys, torch, torchvision, numpy; print(sys.version.split()[0], '
                                   'torch.__version__, torchvision.__version__, numpy.__version__, sep=" | ")'],
                                  check=True, capture_output=True, text=True, cwd=folder).stdout.strip()
        # What another torch warns of is no failure.
        done = subprocess.run([bin_, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'not slow', '-W', 'default',
                               *TESTS], cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True,
                              text=True)
        (folder.parent / f'{folder.name}.txt').write_text(done.stdout)
        return versions, (done.stdout.strip().splitlines() or ['nothing ran'])[-1]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    parser.add_argument('folder', type=Path, help='where the environments are made')
    parser.add_argument('--only', nargs='+', metavar='PYTHON=TORCH', default=PROMISED)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = ['| Python | torch | torchvision | numpy | tests |', '|---|---|---|---|---|']
    for pair in args.only:
        name, _, torch = pair.partition('=')
        python = interpreter(name)
        if python is None:
            lines.append(f"| {name.removeprefix('python')} | {torch or 'newest'} | | | not run: not on this machine |")
            continue
        versions, result = tried(python, torch, args.folder.resolve() / f'{name}_{torch or "newest"}')
        lines.append(f'| {versions} | {result} |')
        print(lines[-1], flush=True)
    print('\n'.join(lines))
    return int(any(word in line for line in lines for word in ('failed', 'error', 'nothing ran')))


if __name__ == '__main__':
    sys.exit(main())
