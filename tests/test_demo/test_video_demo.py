"""demo/video_demo.py and demo/webcam_demo.py as users run them; their windows are in test_windows.py."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from boxdet.apis import inference_detector, init_detector
from boxdet.apis.video import VideoFile, VideoWriter


@pytest.fixture
def run(repo_root, tiny_detector):
    def call(demo, *arguments):
        command = [sys.executable, str(repo_root / 'demo' / demo), *map(str, arguments)]
        env = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')}
        return subprocess.run(command, capture_output=True, text=True, env=env)
    return call


@pytest.fixture
def model_files(tiny_detector):
    return tiny_detector.config, tiny_detector.checkpoint


@pytest.fixture
def clip(tiny_detector, tmp_path):
    """Eleven frames of 128x96, each another image or a shifted one."""
    image = cv2.imread(str(tiny_detector.images[0]))
    with VideoWriter(tmp_path / 'clip.mp4', 12.5) as writer:
        for step in range(11):
            writer.write(np.roll(image, 9 * step, axis=1))
    return tmp_path / 'clip.mp4'


def test_every_frame_is_written_with_its_own_objects(run, clip, model_files, tmp_path):
    done = run('video_demo.py', clip, *model_files, '--device', 'cpu', '--score-thr', '0.1', '--batch-size', '4',
               '--out', tmp_path / 'new/out.mp4')
    assert done.returncode == 0, done.stderr
    assert '11/11 frames' in done.stdout and f"video: {tmp_path / 'new/out.mp4'}" in done.stdout
    made = VideoFile(tmp_path / 'new/out.mp4')
    assert len(made) == 11 and float(made.rate) == 12.5
    model = init_detector(*map(str, model_files), device='cpu')
    for frame, seen in zip(VideoFile(clip), made):
        expected = model.show_result(frame, inference_detector(model, frame), score_thr=0.1)
        # The codec loses some of the noise of these images, but the boxes and masks are there.
        drawn_off, plain_off = (np.abs(seen.astype(int) - image).mean() for image in (expected, frame))
        assert drawn_off < 0.7 * plain_off


@pytest.mark.parametrize('arguments, message', [
    (('none.mp4', '--out', 'o.mp4'), 'error: none.mp4: no such file'),
    (('CLIP',), 'error: say what to do with the result: --out FILE, --show, or both'),
    (('CLIP', '--out', 'o.gif'), "error: o.gif: no video format has the ending '.gif'"),
    (('CLIP', '--out', 'CLIP'), 'error: --out CLIP: this is the video itself'),
    (('CLIP', '--out', 'o.mp4', '--score-thr', '1.5'), 'error: --score-thr 1.5: scores are from 0 to 1'),
    (('CLIP', '--show'), 'error: cannot open a window: there is no display')])
def test_what_cannot_work_is_one_line(run, clip, model_files, tmp_path, arguments, message):
    video, *more = [str(clip) if word == 'CLIP' else word for word in arguments]
    done = run('video_demo.py', video, *model_files, '--device', 'cpu', *more)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(message.replace('CLIP', str(clip))), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['clip.mp4']


def test_a_broken_video_leaves_no_half_written_one(run, clip, model_files, tmp_path):
    content = bytearray(clip.read_bytes())
    start = content.index(b'mdat') + 4
    content[start:] = bytes(len(content) - start)
    clip.write_bytes(content)
    done = run('video_demo.py', clip, *model_files, '--device', 'cpu', '--out', tmp_path / 'out.mp4')
    assert done.returncode == 2 and 'clip.mp4: frame 0 of 11 cannot be decoded' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['clip.mp4']


def test_no_camera_is_one_line(run, model_files):
    done = run('webcam_demo.py', *model_files, '--device', 'cpu', '--camera-id', '97')
    assert done.returncode == 2 and 'error: the camera 97 cannot be opened' in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_threshold_that_is_no_score_is_one_line(run, model_files):
    done = run('webcam_demo.py', *model_files, '--device', 'cpu', '--score-thr', 'nan')
    assert (done.returncode, done.stderr.strip()) == (2, 'error: --score-thr nan: scores are from 0 to 1')
