"""demo/image_demo.py as users run it."""

import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from boxdet.apis import inference_detector, init_detector


@pytest.fixture
def run(repo_root, tiny_detector):
    def call(*arguments, img=tiny_detector.images[0]):
        command = [sys.executable, str(repo_root / 'demo/image_demo.py'), str(img), str(tiny_detector.config),
                   str(tiny_detector.checkpoint), '--device', 'cpu', *map(str, arguments)]
        env = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')}
        return subprocess.run(command, capture_output=True, text=True, env=env)
    return call


def test_image_is_written(run, tiny_detector, tmp_path):
    done = run('--score-thr', '0', '--out-file', tmp_path / 'new/out.png', '--palette', 'green')
    assert done.returncode == 0, done.stderr
    assert all(line.startswith('warning: ') for line in done.stderr.splitlines()), done.stderr
    drawn, image = cv2.imread(str(tmp_path / 'new/out.png')), cv2.imread(str(tiny_detector.images[0]))
    assert drawn.shape == image.shape and not np.array_equal(drawn, image)
    assert (drawn.reshape(-1, 3) == [0, 255, 0]).all(axis=1).any() and 'objects above 0' in done.stdout


def test_async_draws_the_same(run, tmp_path):
    for name, more in (('sync.png', ()), ('async.png', ('--async-test',))):
        done = run('--score-thr', '0.1', '--out-file', tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'sync.png').read_bytes() == (tmp_path / 'async.png').read_bytes()


def test_without_a_display_the_error_names_out_file(run):
    done = run()
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(
        'error: cannot open a window') and '--out-file' in done.stderr


def test_missing_image_is_one_line(run):
    done = run(img='missing.jpg')
    assert (done.returncode, done.stderr.strip()) == (2, 'error: missing.jpg: no such file')


def test_a_truncated_image_says_so(run, tiny_detector, tmp_path):
    whole = tiny_detector.images[2].read_bytes()
    (tmp_path / 'cut.jpg').write_bytes(whole[:len(whole) * 2 // 3])
    done = run(img=tmp_path / 'cut.jpg')
    assert done.returncode == 2 and 'cut.jpg: the image file is truncated' in done.stderr


@pytest.mark.parametrize('arguments, message', [
    (('--out-file', 'a.foo'), "error: a.foo: OpenCV writes no '.foo' images"),
    (('--out-file', 'IMAGE/a.png'), 'error: cannot write '),
    (('--out-file', 'IMAGE'), 'error: IMAGE is the image itself'),
    (('--score-thr', 'nan'), 'error: --score-thr nan: scores are from 0 to 1'),
    (('--score-thr', '-0.1'), 'error: --score-thr -0.1: scores are from 0 to 1'),
    (('--palette', 'grene'), "error: unknown colour 'grene'")])
def test_what_cannot_work_is_told_before_the_model_is_loaded(repo_root, tiny_detector, arguments, message):
    image = str(tiny_detector.images[0])
    command = [sys.executable, str(repo_root / 'demo/image_demo.py'), image, 'no config', 'no checkpoint',
               *(word.replace('IMAGE', image) for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message.replace('IMAGE', image)), done.stderr


def test_several_images(repo_root, tiny_detector, tmp_path):
    images = tiny_detector.images[:2]
    command = [sys.executable, str(repo_root / 'demo/image_demo.py'), *map(str, images), 'absent.jpg',
               str(tiny_detector.config), str(tiny_detector.checkpoint), '--device', 'cpu', '--out-dir', str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'left out: absent.jpg: no such file' in done.stderr
    drawn = sorted(path.name for path in tmp_path.rglob('*.*'))
    assert drawn == sorted(path.name for path in images)


def test_folders_and_patterns(run, tiny_detector, tmp_path):
    folder = tmp_path / 'images'
    shutil.copytree(tiny_detector.folder / 'images', folder)
    done = run('--out-dir', tmp_path / 'all', img=folder)
    assert done.returncode == 0, done.stderr
    assert sorted(path.relative_to(tmp_path / 'all').as_posix() for path in (tmp_path / 'all').rglob('*.*')) == [
        'a.png', 'c.jpg', 'd.png', 'deep/b.png']
    (folder / 'cut.png').write_bytes((folder / 'a.png').read_bytes()[:500])
    done = run('--out-dir', tmp_path / 'some', img=folder / '**/*.png')
    assert done.returncode == 1 and done.stderr.count('left out: ') == 1
    assert 'cut.png: the image file is truncated' in done.stderr
    assert len(list((tmp_path / 'some').rglob('*.png'))) == 3
    for more, img, message in (
            ((), folder / '*.bmp', 'no file matches this pattern'),
            (('--out-file', tmp_path / 'a.png'), folder, 'there are 5 images; give --out-dir DIR')):
        done = run(*more, img=img)
        assert done.returncode == 2 and message in done.stderr.strip().splitlines()[-1]


def test_a_page_and_a_turned_image(run, tiny_detector, tmp_path):
    done = run('--out-file', tmp_path / 'new/a.pdf')
    assert done.returncode == 0 and (tmp_path / 'new/a.pdf').read_bytes().startswith(b'%PDF-'), done.stderr
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / 'turned.png'
    Image.open(tiny_detector.images[0]).convert('RGB').save(turned, exif=exif)
    done = run('--out-file', tmp_path / 'drawn.png', '--score-thr', '0.1', '--device', 'cpu', img=turned)
    assert done.returncode == 0, done.stderr
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    result = inference_detector(model, turned)
    assert np.array_equal(cv2.imread(str(tmp_path / 'drawn.png')), model.show_result(turned, result, score_thr=0.1))
