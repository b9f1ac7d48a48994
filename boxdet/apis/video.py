"""Frames of video files and cameras, and videos to write: what the video and webcam demos stand on.

A video file is read frame by frame, none left out; a camera gives its newest frame, since who watches it wants to see
now and not what a slow model is still to catch up with. Frames are (H, W, 3) uint8 in BGR order, as OpenCV has them.
"""
from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from boxdet.errors import DataError, UserError, nearest
from boxdet.files.writing import Replacement

if TYPE_CHECKING:
    import av
    import av.container

# What each ending of a file holds. H.264 as yuv420p is what every browser plays; WebM asks for VP9.
_H264 = ('libx264', dict(preset='veryfast', crf='21'))
_VP9 = ('libvpx-vp9', dict(crf='32', deadline='realtime', **{'b:v': '0', 'cpu-used': '6', 'row-mt': '1'}))
_FORMATS = {'.mp4': ('mp4', *_H264), '.m4v': ('mp4', *_H264), '.mov': ('mov', *_H264), '.mkv': ('matroska', *_H264),
            '.webm': ('webm', *_VP9), '.avi': ('avi', 'mpeg4', {'q': '4'})}
_BT601 = 6  # SMPTE 170M, of ITU-T H.273's table


class VideoFile:
    """The frames of a video file, in order; iterate over it, any number of times.

    Args:
        path: of the file.

    Attributes:
        frames: how many there are.
        rate: frames a second, a Fraction.

    Raises:
        DataError: no such file, no video in it, or (while iterating) a frame that cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        with _opened(self.path) as container:
            stream = _video_stream(container, self.path)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            # Packets are counted, not decoded: what a header says may be an estimate, or nothing.
            self.frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
            promised = int((container.duration or 0) / 1e6 * self.rate)
        if not self.frames:
            raise DataError(f'{self.path}: the video has no frames')
        if self.frames < 0.9 * promised:
            warnings.warn(f'{self.path}: {self.frames} frames, where its header promises about {promised}: '
                          'the file is truncated, or its frame rate varies', stacklevel=2)

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[np.ndarray]:
        import av

        with _opened(self.path) as container:
            stream = _video_stream(container, self.path)
            stream.thread_type = 'AUTO'
            count = 0
            try:
                for frame in container.decode(stream):
                    yield _upright(frame)
                    count += 1
            except av.FFmpegError as error:
                raise DataError(f'{self.path}: frame {count} of {self.frames} cannot be decoded '
                                f'({error.strerror})') from error


def _opened(path: str) -> av.container.InputContainer:
    av = _pyav()
    if not os.path.isfile(path):
        raise DataError(f'{path}: {"a folder, not a video file" if os.path.isdir(path) else "no such file"}')
    try:
        return av.open(path)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f'{path}: not a video that can be read ({error.strerror})') from error


def _video_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    if not container.streams.video:
        raise DataError(f'{path}: there is no video in this file')
    return container.streams.video[0]


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """The frame as it is meant to be seen: telephones store how they were held beside the pixels."""
    image = frame.to_ndarray(format='bgr24')
    turns = round(frame.rotation / 90) % 4  # degrees, counter-clockwise
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise UserError("videos are read and written by PyAV, which is not installed: pip install 'boxdet[video]'"
                        ) from error
    return av


class VideoWriter:
    """Write frames to a video file that browsers play; the file appears when it is whole.

    Use as a context manager: leaving it by an exception leaves no file behind.

    Args:
        path: its ending chooses the format: .mp4, .m4v, .mov, .mkv (H.264), .webm (VP9), .avi (MPEG-4).
        rate: frames a second.

    Raises:
        UserError: another ending. DataError: the folder does not take the file, or a frame of another size than the
            first.
    """

    def __init__(self, path: str | os.PathLike, rate: Fraction | float):
        self.path = Path(path)
        ending = self.path.suffix.lower()
        if ending not in _FORMATS:
            raise UserError(f"{path}: no video format has the ending '{self.path.suffix}'"
                            f"{nearest(ending, _FORMATS)} ({', '.join(_FORMATS)})")
        self.frames = 0
        self._format, self._codec, self._options = _FORMATS[ending]
        self._rate = Fraction(rate).limit_denominator(1001)
        self._shape: tuple[int, ...] | None = None
        self._new = Replacement(self.path)
        self._container = self._open()

    def _open(self) -> av.container.OutputContainer:
        av = _pyav()
        # The index goes to the front, so that a browser starts before it has the whole file.
        options = {'movflags': '+faststart'} if self._format in ('mp4', 'mov') else {}
        try:
            return av.open(str(self._new.part), 'w', format=self._format, options=options)
        except (OSError, av.FFmpegError) as error:
            raise DataError(f'cannot write {self.path}: {error.strerror}') from error

    def write(self, frame: np.ndarray) -> None:
        """Add ``frame`` (H, W, 3) uint8 BGR; an odd side is made even by repeating its last line, as H.264 asks."""
        import av
        import cv2

        if self._shape is None:
            self._shape = frame.shape
            height, width = frame.shape[:2]
            stream = self._container.add_stream(self._codec, rate=self._rate, options=self._options)
            assert isinstance(stream, av.VideoStream)  # as every codec of _FORMATS gives
            self._stream = stream
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = 'yuv420p'
            self._stream.codec_context.colorspace = _BT601  # as OpenCV converts; players would guess
        if frame.shape != self._shape:
            raise DataError(f'{self.path}: frame {self.frames} is {frame.shape[1]}x{frame.shape[0]}, the first one '
                            f'was {self._shape[1]}x{self._shape[0]}')
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')
        planes = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)  # rounds better than PyAV's own conversion
        # Bytes, which cv2 does not say.
        self._mux(self._stream.encode(av.VideoFrame.from_ndarray(planes, format='yuv420p')))  # type: ignore[arg-type]
        self.frames += 1

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        import av

        try:
            self._container.mux(packets)
        except (OSError, av.FFmpegError) as error:
            raise DataError(f'cannot write {self.path}: {error.strerror}') from error

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._shape is None:
            self.discard()
            return
        self._mux(self._stream.encode())
        self._container.close()
        self._new.commit()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._container.close()
        self._new.discard()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class Camera:
    """The newest frame of a camera or a stream.

    A thread reads all frames and keeps the last one only: frames that nobody had time for are dropped, and the
    image never lags behind. A video file is played at its own rate, as if a camera were giving it.

    Args:
        source: the camera's number, a device's path ('/dev/video0'), a stream's address ('rtsp://...') or a video file.
        patience: seconds without a frame after which the camera counts as lost.

    Attributes:
        frames: read so far, those dropped included.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, source: int | str, patience: float = 10.):
        import cv2

        self.source, self.patience, self.frames = source, patience, 0
        self._capture = cv2.VideoCapture(int(source) if str(source).isdigit() else str(source))
        if not self._capture.isOpened():
            devices = sorted(str(path) for path in Path('/dev').glob('video*'))
            raise UserError(f'the camera {source} cannot be opened (a number, a device or a stream address; '
                            f'devices here: {", ".join(devices) or "none"})')
        # A regular file is read at its frame rate; cameras and streams set the pace themselves.
        rate = self._capture.get(cv2.CAP_PROP_FPS) if os.path.isfile(str(source)) else 0
        self._period = 1 / rate if rate > 0 else 0.  # seconds between frames
        self._newest: np.ndarray | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read_on, name='camera', daemon=True)
        self._thread.start()

    def _read_on(self) -> None:
        due = time.monotonic()
        while not self._ended:
            due = max(due + self._period, time.monotonic())
            alive, frame = self._capture.read()
            with self._changed:
                if alive:
                    self._newest, self.frames = frame, self.frames + 1
                else:
                    self._ended = True
                self._changed.notify_all()
            time.sleep(max(due - time.monotonic(), 0))
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames until the stream ends, each the newest at the time and none twice."""
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._newest is not None or self._ended, self.patience):
                    raise UserError(f'the camera {self.source} gave no frame for {self.patience:g} seconds')
                frame, self._newest = self._newest, None
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """End the thread and let go of the camera."""
        self._ended = True
        self._thread.join(self.patience)

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
