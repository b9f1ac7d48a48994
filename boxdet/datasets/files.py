"""Reading what a data set consists of, image bytes, lists of names, annotation files; and holding the annotations."""
from __future__ import annotations

import os
import pickle
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from boxdet.errors import ConfigError, DataError, nearest
from boxdet.files.json_text import read_json
from boxdet.files.pickles import read_pickle

_EXIF_ORIENTATION = 0x0112
IMAGE_BACKENDS = ('disk', 'http')
_COLOR_FLAGS = {
    'color': cv2.IMREAD_COLOR,  # turned upright by the EXIF orientation, as mmcv's 'color'
    'grayscale': cv2.IMREAD_GRAYSCALE,
    'unchanged': cv2.IMREAD_UNCHANGED,
    'color_ignore_orientation': cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_COLOR,
    'grayscale_ignore_orientation': cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_GRAYSCALE,
}


def check_file_client(file_client_args: Mapping[str, Any] | None) -> str:
    """The backend that 2.x's ``file_client_args`` names.

    Raises:
        ConfigError: a backend other than 'disk' and 'http', or options beside it.
    """
    args = dict(file_client_args or {})
    backend = args.pop('backend', 'disk')
    if backend not in IMAGE_BACKENDS:
        raise ConfigError(f"file_client_args.backend '{backend}' is none of {', '.join(IMAGE_BACKENDS)}"
                          f'{nearest(backend, IMAGE_BACKENDS)}')
    if args:
        raise ConfigError(f"file_client_args: backend '{backend}' takes no {', '.join(map(repr, args))}")
    return backend


def check_color_type(color_type: str) -> None:
    """Raise ConfigError when ``color_type`` is none of mmcv's flags."""
    if color_type not in _COLOR_FLAGS:
        raise ConfigError(f"color_type '{color_type}' is none of {', '.join(_COLOR_FLAGS)}"
                          f'{nearest(color_type, _COLOR_FLAGS)}')


def read_bytes(path: str, backend: str = 'disk') -> np.ndarray:
    """The bytes of a file (n,) uint8.

    Raises:
        DataError: the file is missing, empty or unreadable.
    """
    try:
        if backend == 'http':
            with urllib.request.urlopen(path, timeout=60) as response:
                data = np.frombuffer(response.read(), dtype=np.uint8)
        else:
            data = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file{_near_file(path)}") from error
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise DataError(f'{path}: cannot be read ({error})') from error
    if not data.size:
        raise DataError(f'{path}: empty file')
    return data


def _near_file(path: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or '.'):
        return f" (nor the folder '{folder}')"
    return nearest(name, (entry.name for entry in os.scandir(folder or '.')))


def decode_image(data: np.ndarray, path: str, color_type: str = 'color', channel_order: str = 'bgr') -> np.ndarray:
    """Decode image bytes (n,) uint8 to (H, W, 3) uint8, or as ``color_type`` says.

    Raises:
        DataError: not an image, or one that breaks off; the message names ``path``.
    """
    if _breaks_off(data):
        raise DataError(f'{path}: the image file is truncated ({data.size} bytes)')
    try:
        image = cv2.imdecode(data, _COLOR_FLAGS[color_type])
    except cv2.error as error:
        raise DataError(f'{path}: cannot be decoded ({error.err})') from error
    if image is None:
        kind = _kind_of(data[:64].tobytes())
        raise DataError(f"{path}: not an image that OpenCV can decode{f' ({kind})' if kind else ''}")
    if channel_order == 'rgb' and image.ndim == 3:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    return image


def kind_of_no_image(path: str) -> str:
    """What a file is that is certainly no image that OpenCV decodes, by its first bytes; '' otherwise."""
    try:
        with open(path, 'rb') as file:
            return _kind_of(file.read(64))
    except OSError:
        return ''


def _kind_of(head: bytes) -> str:
    if head.startswith(b'version https://git-lfs'):
        return 'a pointer of Git LFS: git lfs pull gets the file'
    if head.lstrip()[:1] == b'<' and b'<svg' not in head:
        return 'a web page or XML'
    if head[:1] in (b'{', b'[') and head[1:2].strip() in (b'"', b'', b'{', b'['):
        return 'JSON'
    if head[4:8] == b'ftyp' and head[8:12] in (b'heic', b'heix', b'hevc', b'mif1', b'msf1'):
        return 'HEIC: convert it to JPEG'
    return {b'%PDF': 'PDF', b'PK\x03\x04': 'a ZIP file', b'\x1f\x8b\x08': 'gzip'}.get(
        head[:3] if head[:1] == b'\x1f' else head[:4], '')


def image_size(path: str, backend: str = 'disk') -> tuple[int, int]:
    """(width, height) of an image as it is loaded, turned upright by its EXIF orientation; mostly from its header.

    Raises:
        DataError: missing, empty, or not an image.
    """
    from PIL import Image

    if backend == 'disk' and os.path.isfile(path):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # nothing is decompressed here
                with Image.open(path) as image:
                    # Asked for the EXIF data of a PNG that has none in its header, Pillow decodes the image.
                    may_turn = image.format != 'PNG' or 'exif' in image.info
                    turned = may_turn and image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
                    return (image.height, image.width) if turned else image.size
        except Exception:  # what Pillow does not know OpenCV may; its message names the file
            pass
    height, width = decode_image(read_bytes(path, backend), path).shape[:2]
    return width, height


def encode_png(image: np.ndarray) -> bytes:
    """The bytes of a PNG file of ``image`` (H, W[, 3]), uint8 or uint16, channels in the order BGR."""
    return cv2.imencode('.png', image)[1].tobytes()


def _breaks_off(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG ends early: OpenCV decodes such files without an error, the rest being grey."""
    head = data[:8].tobytes()
    if head[:2] == b'\xff\xd8':
        # The usual file ends in the end marker; others carry something behind it. A thumbnail's end marker, which
        # lies in the header, must not count.
        if data[-2:].tobytes() == b'\xff\xd9':
            return False
        content = data.tobytes()
        return content.find(b'\xff\xd9', _jpeg_scan_start(content)) < 0
    if head == b'\x89PNG\r\n\x1a\n':
        return data[-64:].tobytes().find(b'IEND') < 0 and data.tobytes().rfind(b'IEND') < 0
    return False


def _jpeg_scan_start(content: bytes) -> int:
    """Where the compressed data of a JPEG begins: behind its header segments."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(content[at + 2:at + 4], 'big')
        if marker == 0xDA:
            break
    return at


def read_names(path: str) -> tuple[str, ...]:
    """Names of classes or images, one a line; empty lines are left out.

    Raises:
        DataError: missing, empty, or not UTF-8.
    """
    try:
        lines = read_bytes(path).tobytes().decode('utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: not UTF-8 text ({error.reason} at byte {error.start})') from error
    return tuple(line.strip() for line in lines if line.strip())


def read_data(path: str) -> Any:
    """Read a ``.json`` file, or a ``.pkl`` file of numbers, text, containers and numpy arrays.

    Raises:
        DataError: missing, broken, of another kind, or a pickle that holds anything else.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == '.json':
        return read_json(path)
    if suffix not in ('.pkl', '.pickle'):
        raise DataError(f"{path}: expected a .json or .pkl file")
    return read_pickle(path)


class Records(Sequence):
    """A read-only sequence of plain objects, held as one array of bytes and unpickled when read.

    Workers are forked from the training process and share its memory until someone writes to it. Reading a Python
    object writes its reference count, so a list of a million dicts is slowly copied into every worker; an array of
    bytes is not. What is read is a copy: changing it changes nothing here.
    """

    def __init__(self, items: Iterable[Any]):
        pieces, ends = [], [0]
        for item in items:
            pieces.append(pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL))
            ends.append(ends[-1] + len(pieces[-1]))
        self._bytes = np.frombuffer(b''.join(pieces), dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f'record {index} of {len(self)}')
        index %= len(self)
        return pickle.loads(self._bytes[self._ends[index]:self._ends[index + 1]].data)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._bytes.nbytes + self._ends.nbytes
