"""demo/image_demo.py as users run it."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest


@pytest.fixture
def run(repo_root, tiny_detector):
    def call(*arguments, img=tiny_detector.images[0]):
        command = [sys.executable, str(repo_root / 'demo/image_demo.py'), str(img), str(tiny_detector.config),
                   str(tiny_detector.checkpoint), '--device', 'cpu', *map(str, arguments)]
        env = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')}
        return subprocess.run(command, capture_output=True, text=True, env=env)
    return call


def test_picture_is_written(run, tiny_detector, tmp_path):
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
