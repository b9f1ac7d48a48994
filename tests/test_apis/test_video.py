"""Video files read and written whole, cameras whose newest frame counts."""

import queue
import subprocess
import threading
import warnings
import wave
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from boxdet.apis.video import Camera, VideoFile, VideoWriter
from boxdet.errors import DataError, UserError

av = pytest.importorskip('av')


def frames(count, height=48, width=64):
    """Frames that tell their number by the place of a white bar."""
    made = np.full((count, height, width, 3), (40, 90, 160), np.uint8)
    for number, frame in enumerate(made):
        frame[:, 2 * number:2 * number + 6] = 255
    return made


def write(path, images, rate=25):
    with VideoWriter(path, rate) as writer:
        for image in images:
            writer.write(image)
    return path


@pytest.mark.parametrize('ending', ['.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi'])
def test_every_format_comes_back_frame_by_frame(tmp_path, ending):
    made = frames(23)
    video = VideoFile(write(tmp_path / f'new/video{ending}', made, 30000 / 1001))
    back = np.stack(list(video))
    assert len(video) == video.frames == len(back) == 23 and video.rate == Fraction(30000, 1001)
    assert back.shape == made.shape
    assert [int(row[20, :, 0].argmax()) // 2 for row in back.astype(int)] == pytest.approx(range(23), abs=2)
    assert np.abs(back.astype(int) - made).mean() < 6  # the codecs lose a little, and no more
    assert len(list(video)) == 23, 'a second reading'
    assert [path.name for path in (tmp_path / 'new').iterdir()] == [f'video{ending}']


def test_what_browsers_play(tmp_path):
    with av.open(str(write(tmp_path / 'a.mp4', frames(3, 47, 63)))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ('h264', 'yuv420p')
        assert (stream.width, stream.height) == (64, 48)  # H.264 takes even sides only
    content = (tmp_path / 'a.mp4').read_bytes()
    assert content.index(b'moov') < content.index(b'mdat'), 'the index has to come first'


def test_odd_sides_repeat_their_last_line(tmp_path):
    made = frames(2, 47, 63)
    back = next(iter(VideoFile(write(tmp_path / 'a.mp4', made))))
    assert back.shape == (48, 64, 3)
    assert np.abs(back[47].astype(int) - back[46]).max() < 12


def test_colours_stay(tmp_path):
    flat = np.full((64, 64, 3), (30, 120, 200), np.uint8)
    back = list(VideoFile(write(tmp_path / 'a.mp4', [flat] * 3)))[1]
    assert np.abs(back.astype(int) - flat).max() <= 3


def test_a_telephone_held_upright(tmp_path):
    """The file says how it was held; the frames come upright, as every player shows them."""
    path = write(tmp_path / 'flat.mp4', frames(4, 48, 96))
    upright = tmp_path / 'upright.mp4'
    with av.open(str(path)) as source, av.open(str(upright), 'w') as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    # The matrix of the track's header, a rotation by 90 degrees, in 16.16 fixed point.
    content = bytearray(upright.read_bytes())
    matrix = content.index(b'tkhd') + 4 + 40
    content[matrix:matrix + 20] = np.array([0, 1 << 16, 0, -(1 << 16), 0], '>i4').tobytes()
    upright.write_bytes(content)
    turned = list(VideoFile(upright))
    assert turned[0].shape == (96, 48, 3)
    capture = cv2.VideoCapture(str(upright))
    shown = capture.read()[1]
    assert np.abs(turned[0].astype(int) - shown).mean() < 3, 'OpenCV turns it the same way'


def test_an_interrupted_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / 'a.mp4', 25) as writer:
        writer.write(frames(1)[0])
        raise KeyboardInterrupt
    with VideoWriter(tmp_path / 'none.mp4', 25):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(DataError, match='frame 1 is 32x48, the first one was 64x48'):
        write(tmp_path / 'a.mp4', [frames(1)[0], frames(1, 48, 32)[0]])


def test_unknown_ending_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"'.mp5'; did you mean '.mp4'\?"):
        VideoWriter(tmp_path / 'a.mp5', 25)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot write .*file/a.mp4'):
        VideoWriter(tmp_path / 'file/a.mp4', 25)


@pytest.mark.parametrize('name, message', [('none.mp4', 'no such file'), ('', 'a folder, not a video file'),
                                           ('text.mp4', 'not a video that can be read'),
                                           ('sound.wav', 'there is no video in this file')])
def test_files_that_are_no_videos(tmp_path, name, message):
    (tmp_path / 'text.mp4').write_text('text')
    with wave.open(str(tmp_path / 'sound.wav'), 'wb') as sound:
        sound.setparams((1, 2, 8000, 0, 'NONE', ''))
        sound.writeframes(bytes(1600))
    with pytest.raises(DataError, match=message):
        VideoFile(tmp_path / name)


def test_truncated_files(tmp_path):
    whole = write(tmp_path / 'a.mkv', frames(200)).read_bytes()
    (tmp_path / 'cut.mkv').write_bytes(whole[:len(whole) // 3])
    with pytest.warns(UserWarning, match=r'cut.mkv: \d+ frames, where its header promises about 200'):
        video = VideoFile(tmp_path / 'cut.mkv')
    assert 0 < len(video) < 150
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        VideoFile(tmp_path / 'a.mkv')


def test_a_frame_that_cannot_be_decoded_is_named(tmp_path):
    path = write(tmp_path / 'a.mp4', frames(3))
    content = bytearray(path.read_bytes())
    start = content.index(b'mdat') + 4
    content[start:] = bytes(len(content) - start)
    path.write_bytes(content)
    with pytest.raises(DataError, match='a.mp4: frame 0 of 3 cannot be decoded'):
        list(VideoFile(path))


class Device:
    """An open camera that gives what the test hands over; ``asked`` counts the reads that have begun."""

    def __init__(self):
        self.frames, self.asked = queue.Queue(), threading.Semaphore(0)

    def isOpened(self):
        return True

    def read(self):
        self.asked.release()  # what was read before is stored by now
        frame = self.frames.get()
        return frame is not None, frame

    def get(self, _):
        return 0.

    def release(self):
        pass


@pytest.fixture
def device(monkeypatch):
    made = Device()
    monkeypatch.setattr(cv2, 'VideoCapture', lambda source: made)
    yield made
    made.frames.put(None)  # whoever still waits may end


def test_camera_gives_the_newest_frame_and_none_twice(device):
    def shoot(*numbers):
        for number in numbers:
            device.asked.acquire()
            device.frames.put(np.full((2, 2, 3), number, np.uint8))
        device.asked.acquire()  # the last one is stored
        device.asked.release()

    with Camera(0) as camera:
        seen = iter(camera)
        shoot(1)
        assert next(seen)[0, 0, 0] == 1
        shoot(2, 3, 4)  # while a slow model works
        assert next(seen)[0, 0, 0] == 4, 'the newest, and none of those before it'
        shoot(5)
        device.asked.acquire()
        device.frames.put(None)
        assert [frame[0, 0, 0] for frame in seen] == [5], 'the last frame is shown, none twice'
        assert camera.frames == 5


def test_a_file_plays_at_its_own_rate(tmp_path, monkeypatch):
    """On a clock that stands still but for the camera's own waiting, which here is for the one who looks."""
    now, waited, seen = [0.], [], threading.Semaphore(0)

    def sleep(seconds):
        waited.append(seconds)
        now[0] += seconds
        if len(waited) <= 20:
            seen.acquire(timeout=60)

    monkeypatch.setattr('boxdet.apis.video.time', SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    path = write(tmp_path / 'a.avi', frames(20), 25)
    count = 0
    with Camera(path) as camera:
        for _ in camera:
            count += 1
            seen.release()
    assert count == camera.frames == 20, 'who keeps up sees every frame'
    assert waited[:20] == pytest.approx([1 / 25] * 20)


def test_camera_that_is_not_there():
    with pytest.raises(UserError, match='the camera 97 cannot be opened'):
        Camera('97')


def test_a_stream_that_falls_silent(device):
    with Camera(0, patience=0.1) as camera, pytest.raises(UserError,
                                                          match='the camera 0 gave no frame for 0.1 seconds'):
        next(iter(camera))


def test_camera_over_the_network(tmp_path):
    """A stream's address: another process serves it over HTTP."""
    path = write(tmp_path / 'a.mkv', frames(50))
    server = subprocess.Popen(['python3', '-m', 'http.server', '0', '--bind', '127.0.0.1'], cwd=tmp_path,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              env={'PYTHONUNBUFFERED': '1', 'PATH': '/usr/bin:/bin:/usr/local/bin'})
    try:
        port = server.stdout.readline().split('port ')[1].split()[0]
        with Camera(f'http://127.0.0.1:{port}/{path.name}') as camera:
            count = sum(1 for _ in camera)
        assert camera.frames == 50 and 1 <= count <= 50
    finally:
        server.kill()
        server.wait()
