"""A real X server without a screen, to open windows on and look at them."""

import ctypes
import os
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest


class ClientMessage(ctypes.Structure):
    """XClientMessageEvent of Xlib.h, as long as the union XEvent."""
    _fields_ = [('type', ctypes.c_int), ('serial', ctypes.c_ulong), ('send_event', ctypes.c_int),
                ('display', ctypes.c_void_p), ('window', ctypes.c_ulong), ('message_type', ctypes.c_ulong),
                ('format', ctypes.c_int), ('data', ctypes.c_long * 5), ('rest', ctypes.c_long * 24)]


class Screen:
    """Xvfb's display: its pixels, its windows, its keyboard."""

    def __init__(self, number: str, folder: Path):
        self.name, self._file = f':{number}', folder / 'Xvfb_screen0'

    def pixels(self) -> np.ndarray:
        """The screen as (H, W, 3) uint8 BGR, from the X window dump that Xvfb keeps up to date."""
        data = self._file.read_bytes()
        header = struct.unpack('>25I', data[:100])
        size, width, height, stride, colours = header[0], header[4], header[5], header[12], header[19]
        start = size + 12 * colours
        rows = np.frombuffer(data, np.uint8, stride * height, start).reshape(height, stride)
        return rows[:, :4 * width].reshape(height, width, 4)[:, :, :3].copy()

    def windows(self, title: str) -> list[str]:
        return self._xdotool('search', '--onlyvisible', '--name', title).split()

    def wait_for_window(self, title: str, process: subprocess.Popen, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.windows(title)
            if found:
                return found[0]
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        raise AssertionError(f'no window {title!r} after {seconds} s')

    def wait_until(self, seen, seconds: float = 60) -> np.ndarray:
        """The screen as soon as ``seen(pixels)`` holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pixels = self.pixels()
            if seen(pixels):
                return pixels
            time.sleep(0.1)
        raise AssertionError('the screen never showed it')

    def is_painted(self, seconds: float = 10) -> bool:
        """Whether there is more than the mouse's arrow on the screen, now or soon."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if np.count_nonzero(self.pixels().any(axis=2)) > 1000:
                return True
            time.sleep(0.1)
        return False

    def press(self, window: str, key: str) -> None:
        self._xdotool('windowfocus', '--sync', window, 'key', key)

    def close(self, window: str) -> None:
        """Ask a window to close, by the message that the X button of its frame sends (there is no window manager)."""
        x11 = ctypes.CDLL('libX11.so.6')
        x11.XOpenDisplay.restype, x11.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
        display = ctypes.c_void_p(x11.XOpenDisplay(self.name.encode()))
        protocols, delete = (x11.XInternAtom(display, name, 0) for name in (b'WM_PROTOCOLS', b'WM_DELETE_WINDOW'))
        event = ClientMessage(type=33, window=int(window), message_type=protocols, format=32, data=(delete, 0))
        x11.XSendEvent(display, ctypes.c_ulong(int(window)), 0, ctypes.c_long(0), ctypes.byref(event))
        x11.XCloseDisplay(display)

    def _xdotool(self, *arguments: str) -> str:
        done = subprocess.run(['xdotool', *arguments], env={**os.environ, 'DISPLAY': self.name}, capture_output=True,
                              text=True, timeout=30)
        return done.stdout


@pytest.fixture(scope='session')
def screen(need, tmp_path_factory):
    """An X server of 800x600 pixels; skipped where Debian's xvfb and xdotool are not installed."""
    need('Xvfb', 'xdotool', package='xvfb xdotool')
    folder = tmp_path_factory.mktemp('screen')
    reading, writing = os.pipe()
    server = subprocess.Popen(['Xvfb', '-displayfd', str(writing), '-screen', '0', '800x600x24', '-fbdir', str(folder),
                               '-nolisten', 'tcp'], pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as told:
        number = told.readline().strip()
    assert number, 'Xvfb did not start'
    yield Screen(number, folder)
    server.terminate()
    server.wait(10)
