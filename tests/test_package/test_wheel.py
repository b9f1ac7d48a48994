"""The wheel and the sdist: what is in them, what they say of themselves, and that the wheel is enough to work with.

benchmarks/fresh_install.py does the same in an empty environment, with a training and an export.
"""
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from boxdet.errors import EXTRAS
from boxdet.version import __version__
from tests.test_docs.examples import expanded, runs

pytestmark = pytest.mark.slow

SOURCES = ('boxdet', 'configs', 'tools', 'demo', 'docs', 'requirements', 'README.md', 'CHANGELOG.md', 'LICENSE',
           'MANIFEST.in', 'setup.py', 'pyproject.toml')


@pytest.fixture(scope='module')
def built(repo_root, tmp_path_factory):
    """(wheel, sdist), built from a copy, for building writes beside the sources."""
    folder = tmp_path_factory.mktemp('package')
    for name in SOURCES:
        source, target = repo_root / name, folder / 'boxdet' / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)  # with its __pycache__, which must not be in the wheel
        else:
            shutil.copyfile(source, target)
    done = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, folder / 'boxdet'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob('*.whl')), next(folder.glob('*.tar.gz'))


@pytest.fixture(scope='module')
def names(built):
    with zipfile.ZipFile(built[0]) as wheel:
        return {name for name in wheel.namelist() if not name.endswith('/')}


def below(folder, *patterns):
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.rglob(pattern)}


def test_files_of_the_wheel(names, repo_root):
    package = below(repo_root / 'boxdet', '*.py') | {'zoo.json', 'evaluation/report.html'}
    share = {f'share/{folder}/{name}' for folder, patterns in (
        ('configs', ['*.py']), ('tools', ['*.py', '*.sh']), ('demo', ['*.py', '*.ipynb', 'demo.*']), ('docs', ['*.md']))
        for name in below(repo_root / folder, *patterns)}
    about = {f'boxdet-{__version__}.dist-info/{name}' for name in (
        'METADATA', 'RECORD', 'WHEEL', 'entry_points.txt', 'licenses/LICENSE', 'top_level.txt')}
    assert names == {f'boxdet/{name}' for name in package | share} | about


def test_what_it_says_of_itself(built):
    with zipfile.ZipFile(built[0]) as wheel:
        about = email.message_from_bytes(wheel.read(f'boxdet-{__version__}.dist-info/METADATA'))
        assert wheel.read(f'boxdet-{__version__}.dist-info/entry_points.txt').decode().split() == [
            '[console_scripts]', 'boxdet', '=', 'boxdet.cli.command:main']
    assert (about['Name'], about['License'], about['Requires-Python']) == ('boxdet', 'Apache-2.0', '>=3.10')
    needed = {line.partition('>')[0] for line in about.get_all('Requires-Dist') if 'extra ==' not in line}
    assert {'torch', 'torchvision', 'mmengine', 'numpy'} < needed and not needed & set(EXTRAS)
    assert {'video', 'report', 'export', 'transforms', 'loggers', 'docs', 'all'} <= set(about.get_all('Provides-Extra'))
    done = subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *built], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('PASSED') == 2, done.stdout


def test_the_sdist_builds_it_again(built):
    with tarfile.open(built[1]) as sdist:  # the wheel is built from it
        inside = {name.partition('/')[2].partition('/')[0] for name in sdist.getnames()}
    assert set(SOURCES) <= inside and 'tests' not in inside


def test_the_wheel_alone(built, shapes_dir, tmp_path):
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path / 'site')

    def boxdet(*arguments):
        done = subprocess.run([sys.executable, '-m', 'boxdet', *map(str, arguments)], capture_output=True, text=True,
                              cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')})
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = boxdet('config', 'mask_rcnn_r50_fpn_1x_coco', '--explain', 'model.backbone.depth')
    assert 'site/boxdet/share/configs/_base_/models/faster_rcnn_r50_fpn.py:' in told
    told = boxdet('check', 'mask_rcnn_r18_fpn_shapes', '--data', shapes_dir / 'annotations/instances_train.json')
    assert told.endswith('a training can begin (12 images, 12 to evaluate on)\n')


def pip(words, *more, **options):
    """A pip install of the documents, of what is at hand and without what it needs, which is here."""
    assert words[:2] == ['pip', 'install'], words
    done = subprocess.run([sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', *more, *words[2:]],
                          capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@runs('docs/getting_started.md: pip', 'docs/installing.md', 'docs/export.md: pip', 'README.md: pip')
def test_the_ways_to_install_it(examples, built, tmp_path):
    wheel = built[0]
    for k, words in enumerate({one.filled: expanded(one.filled)[0] for one in examples}.values()):
        extras = re.search(r'\[(.*)\]', words[-1])
        if '-e' in words:
            said = pip(words, '--dry-run', '--no-build-isolation', cwd=wheel.parent / 'boxdet')
            assert f'Would install boxdet-{__version__}' in said
        else:
            said = pip(words, '--find-links', wheel.parent, '--target', tmp_path / str(k))
            assert (tmp_path / str(k) / 'boxdet/share/configs').is_dir()
        assert set(extras[1].split(',') if extras else []) <= set(EXTRAS.values())
        assert 'does not provide the extra' not in said


@runs('docs/performance.md: bash benchmarks/gpu_wheels.sh', 'docs/performance.md: pip')
def test_the_wheels_for_a_gpu_machine(examples, repo_root, tmp_path, monkeypatch):
    fetch, install = (one.filled for one in examples)
    (tmp_path / 'benchmarks').symlink_to(repo_root / 'benchmarks')
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(['bash', '-c', fetch], capture_output=True, text=True,
                          env={**os.environ, 'PYTHON': sys.executable})
    if done.returncode:
        message = f'pip cannot download: {done.stderr.strip().splitlines()[-1]}'
        pytest.fail(message) if os.environ.get('BOXDET_CI') == '1' else pytest.skip(message)
    words, = expanded(install)
    assert len(words) > 15
    pip(words, '--target', 'there')
    assert {'mmengine', 'pycocotools', 'terminaltables.py'} & {path.name for path in (tmp_path / 'there').iterdir()}
