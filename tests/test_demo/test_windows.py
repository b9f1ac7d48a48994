"""The windows of the demos, on a real X server: what they show, and that the keys end them."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from boxdet.apis.video import VideoFile, VideoWriter
from tests.test_docs.examples import runs


@pytest.fixture
def start(repo_root, tiny_detector, screen):
    """Start a demo with a window; whatever happens, it is gone after the test."""
    started = []

    def call(demo, *arguments):
        command = [sys.executable, str(repo_root / 'demo' / demo), *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, 'DISPLAY': screen.name})
        started.append(process)
        return process
    yield call
    for process in started:
        process.kill()
        process.communicate()


def opened(start, screen, title, *arguments):
    """Start a demo; its process and its window, once that is painted.

    On an X server without a window manager Qt leaves about one window in thirty black for ever, more on a busy machine,
    whatever is drawn into it and however it is moved: then the demo is started again.
    """
    for _ in range(3):
        process = start(*arguments)
        window = screen.wait_for_window(title, process)
        if screen.is_painted():
            return process, window
        process.kill()
        process.wait()
    raise AssertionError('three windows stayed black')


def shows(image):
    """Whether a part of the screen is ``image``, pixel by pixel where a patch of it is looked at."""
    height, width = image.shape[:2]

    def look(pixels):
        found = cv2.matchTemplate(pixels, image, cv2.TM_SQDIFF)
        return float(found.min()) < 4.0 * height * width
    return look


def number_shown(frames, pixels):
    """The number of the frame that the screen shows, None for none."""
    return next((i for i, frame in enumerate(frames) if shows(frame)(pixels)), None)


def test_image_demo_shows_the_image_and_a_key_ends_it(start, screen, tiny_detector, tmp_path):
    arguments = (tiny_detector.images[0], tiny_detector.config, tiny_detector.checkpoint, '--device', 'cpu',
                 '--score-thr', '0.2')
    written = start('image_demo.py', *arguments, '--out-file', tmp_path / 'a.png')
    assert written.wait(60) == 0
    shown, window = opened(start, screen, 'a.png', 'image_demo.py', *arguments)
    screen.wait_until(shows(cv2.imread(str(tmp_path / 'a.png'))))
    screen.press(window, 'q')
    assert shown.wait(20) == 0, shown.communicate()
    assert 'QFont' not in shown.communicate()[1]  # Qt's wheel comes without fonts, and says so of every text


@pytest.fixture
def clip(tiny_detector, tmp_path):
    """A video of 40 frames of 128x96 whose image moves to the right."""
    image = cv2.imread(str(tiny_detector.images[0]))
    with VideoWriter(tmp_path / 'clip.mp4', 25) as writer:
        for step in range(40):
            writer.write(np.roll(image, 2 * step, axis=1))
    return tmp_path / 'clip.mp4'


@pytest.mark.slow
def test_video_demo_shows_frames_and_a_key_ends_it(start, screen, clip, tiny_detector, tmp_path):
    # Every frame stays long enough to be seen on a busy machine, too; the key is heard at once.
    shown, window = opened(
        start, screen, 'clip.mp4', 'video_demo.py', clip, tiny_detector.config, tiny_detector.checkpoint, '--device',
        'cpu',
        '--show', '--wait-time', '3', '--score-thr', '1', '--out', tmp_path / 'out.mp4')
    frames = list(VideoFile(clip))
    first = number_shown(frames, screen.wait_until(lambda pixels: number_shown(frames, pixels) is not None))
    screen.wait_until(shows(frames[first + 1]))
    screen.press(window, 'q')
    assert shown.wait(30) == 0, shown.communicate()
    kept = len(VideoFile(tmp_path / 'out.mp4'))
    assert 0 < kept < 40, 'what was done until then is kept'
    assert f'{kept} frames in' in shown.communicate()[0], 'and counted'


@pytest.mark.slow
@pytest.mark.parametrize('demo', ['image', 'video', 'webcam'])
def test_closing_the_window_ends_a_demo(start, screen, clip, tiny_detector, demo):
    model = tiny_detector.config, tiny_detector.checkpoint, '--device', 'cpu', '--score-thr', '1'
    if demo == 'image':
        shown = start('image_demo.py', tiny_detector.folder / 'images', *model)
    elif demo == 'video':
        shown = start('video_demo.py', clip, *model, '--show', '--wait-time', '0.4')
    else:
        shown = start('webcam_demo.py', *model, '--camera-id', clip)
    screen.close(screen.wait_for_window({'image': 'a.png', 'video': 'clip.mp4', 'webcam': 'camera'}[demo], shown))
    output, errors = shown.communicate(timeout=20)
    assert shown.returncode == 0, errors
    last = output.strip().splitlines()[-1]
    assert demo == 'image' or not last.startswith('40 frames') and 'of 40 frames' not in last, output


@pytest.mark.slow
@runs('README.md: python demo/webcam_demo.py')
def test_webcam_demo_shows_a_stream_until_it_ends(examples, start, screen, clip, tiny_detector):
    names = {'config.py': tiny_detector.config, 'latest.pth': tiny_detector.checkpoint, 'clip.mp4': clip}
    _, program, *arguments = (names.get(word, word) for word in examples[0].filled.split())
    shown = start(program.removeprefix('demo/'), *arguments, '--score-thr', '1')
    output, errors = shown.communicate(timeout=60)
    assert shown.returncode == 0, errors
    assert 'of 40 frames shown' in output.splitlines()[-1]


@pytest.mark.slow
def test_escape_ends_the_webcam_demo(start, screen, tiny_detector, tmp_path):
    """A camera that never ends: another process that writes frames into a pipe as fast as they are read."""
    os.mkfifo(tmp_path / 'camera.mjpeg')
    writer = subprocess.Popen([sys.executable, '-c', _ENDLESS, str(tiny_detector.images[0]),
                               str(tmp_path / 'camera.mjpeg')])
    try:
        shown = start('webcam_demo.py', tiny_detector.config, tiny_detector.checkpoint, '--device', 'cpu',
                      '--camera-id',
                      tmp_path / 'camera.mjpeg', '--score-thr', '1')
        window = screen.wait_for_window('camera', shown)
        screen.press(window, 'Escape')
        assert shown.wait(30) == 0, shown.communicate()
    finally:
        writer.kill()
        writer.wait()


_ENDLESS = '''
import sys
import cv2
frame = cv2.imencode('.jpg', cv2.imread(sys.argv[1]))[1].tobytes()
with open(sys.argv[2], 'wb') as pipe:
    while True:  # a full pipe waits for its reader
        pipe.write(frame)
        pipe.flush()
'''
