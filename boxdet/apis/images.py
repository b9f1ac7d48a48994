"""From an image in any form to the sample that a model's test pipeline makes of it."""
from __future__ import annotations

import copy
import itertools
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Union

import cv2
import numpy as np
from torch import nn

from boxdet.datasets.files import decode_image
from boxdet.datasets.pipelines.compose import Compose
from boxdet.datasets.pipelines.loading import read_image
from boxdet.errors import ConfigError, DataError
from boxdet.registry import Cfg

if TYPE_CHECKING:
    import PIL.Image
    from typing_extensions import TypeIs


class HasRead(Protocol):
    """An open file, or what reads like one."""

    def read(self) -> bytes:
        """All that is left of it."""


IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
ImageLike = Union[str, os.PathLike, np.ndarray, bytes, bytearray, memoryview, 'PIL.Image.Image', HasRead]
_ORIENTATION = '_ignore_orientation'
_PATIENCE = 2.0  # seconds for a source to give the image that it is at; a camera may never
_MOST_THREADS = 4  # decoding and resizing of more images at once outruns any network


def list_images(folder: str | os.PathLike) -> list[str]:
    """The image files in ``folder`` and the folders in it, by their path within, sorted; hidden ones are left out.

    Raises:
        DataError: no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder')
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.')]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in names
                  if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith('.')]
    if not found:
        raise DataError(f"{folder}: no images in it (files that end in {', '.join(IMAGE_ENDINGS)})")
    return sorted(found)


def is_image(value: object) -> TypeIs[ImageLike]:
    """Whether ``value`` is one image, and not several of them."""
    one = isinstance(value, (str, os.PathLike, np.ndarray, bytes, bytearray, memoryview))
    return one or _is_pil(value) or hasattr(value, 'read')  # an open file is no list of lines here


def _is_pil(image: object) -> TypeIs[PIL.Image.Image]:
    return any(kind.__module__.startswith('PIL.') for kind in type(image).__mro__)


@dataclass(frozen=True)
class Preparation:
    """A test pipeline, ready for images from files and from memory; threads may share it.

    Args:
        from_file: the pipeline as it is.
        in_memory: the pipeline with a step that takes an array in the place of the one that reads.
        color_type: what the config's first step says of the colours to read.
        backend: what it says of the files.
        channel_order: of arrays that are given, 'bgr' or 'rgb'.
        exif_orientation: turn images upright by their EXIF orientation; None leaves it to the config's first step.
    """
    from_file: Compose
    in_memory: Compose
    color_type: str = 'color'
    backend: str = 'disk'
    channel_order: str = 'bgr'
    exif_orientation: bool | None = None

    def __call__(self, source: ImageLike, index: int = 0) -> dict:
        """The sample, compact where that can be (see ``pipelines.compose``).

        Args:
            source: path, array, bytes, PIL image or file object.
            index: what a message calls an image that has no name.

        Raises:
            DataError: an image that cannot be read.
        """
        if isinstance(source, (str, os.PathLike)) and self.exif_orientation is None:
            info = dict(filename=os.fspath(source))
            return _kept(self.from_file(dict(img_info=info, img_prefix=None), compact=True), info['filename'])
        image = self._decode(source, index)
        if getattr(self.in_memory.transforms[0], 'channel_order', 'bgr') == 'rgb':
            image = np.ascontiguousarray(image[:, :, ::-1])
        sample = self.in_memory(dict(img_info=dict(filename=None), img_prefix=None, img=image), compact=True)
        return _kept(sample, f'image {index}')

    @property
    def upright(self) -> bool:
        """Whether images are turned by their EXIF orientation."""
        if self.exif_orientation is None:
            return not self.color_type.endswith(_ORIENTATION)
        return self.exif_orientation

    def _decode(self, source: ImageLike, index: int) -> np.ndarray:
        """(H, W, 3) uint8 in BGR order."""
        color_type = 'color' if self.upright else 'color' + _ORIENTATION
        if isinstance(source, (str, os.PathLike)):
            path = os.fspath(source)
            return decode_image(read_image(path, self.backend), path, color_type)
        if hasattr(source, 'read'):
            source = _content(source, index)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _decode_bytes(source, index, color_type)
        if _is_pil(source):
            return _decode_pil(source, index, self.upright)
        image = _checked(source, index)
        return image if self.channel_order == 'bgr' else np.ascontiguousarray(image[:, :, ::-1])


def _kept(sample: dict | None, name: str) -> dict:
    if sample is None:
        raise DataError(f'{name}: the test pipeline drops this image')
    return sample


def _content(file: HasRead, index: int) -> bytes:
    """All bytes of an open file, from its beginning where it can go back there."""
    try:
        if hasattr(file, 'seekable') and hasattr(file, 'seek') and file.seekable():
            file.seek(0)
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise DataError(f'image {index}: the {type(file).__name__} cannot be read ({error})') from error
    if not isinstance(data, bytes):
        raise DataError(f"image {index}: read() of the {type(file).__name__} gives {type(data).__name__}, not bytes "
                        "(an image's file is opened with 'rb')")
    return data


def _decode_pil(image: PIL.Image.Image, index: int, upright: bool) -> np.ndarray:
    from PIL import ImageOps
    try:
        image = ImageOps.exif_transpose(image) if upright else image
        if image.mode.startswith('I;16'):  # Pillow would cut at 255; OpenCV takes the upper byte, as from a file
            return cv2.cvtColor((np.asarray(image) >> 8).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        if image.mode in ('I', 'F'):
            raise DataError(f"image {index} is a PIL image of mode '{image.mode}', which does not tell what is "
                            "white: scale it to 0-255 and convert it to 'L'")
        return np.ascontiguousarray(np.asarray(image.convert('RGB'))[:, :, ::-1])
    except (OSError, ValueError) as error:  # read only now, from a file that may be truncated, or is closed
        raise DataError(f'image {index}: a PIL image that cannot be read ({error})') from error


def _decode_bytes(data: bytes | bytearray | memoryview, index: int, color_type: str) -> np.ndarray:
    if not len(data):
        raise DataError(f'image {index}: 0 bytes that are no image file')
    try:
        return decode_image(np.frombuffer(data, np.uint8), f'image {index}', color_type)
    except DataError as error:
        known = 'truncated' in str(error)
        raise error if known else DataError(f'image {index}: {len(data)} bytes that are no image file') from None


def _checked(image: object, index: int) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise DataError(
            f'image {index} is a {type(image).__name__}: give a file name, array, bytes, open file or PIL image')
    channels = 1 if image.ndim == 2 else image.shape[2] if image.ndim == 3 else 0
    if channels not in (1, 3, 4) or not image.size or image.dtype != np.uint8:
        raise DataError(
            f'image {index} is an array {image.shape} of {image.dtype}: it has to be '
            '(height, width, 3) of uint8 in BGR order, or with 1 channel, or with 4, the last being alpha')
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[:, :, :3]) if channels == 4 else image


def preparation(model: nn.Module, channel_order: str = 'bgr', exif_orientation: bool | None = None) -> Preparation:
    """The Preparation by ``model.cfg``'s test pipeline; its steps are built once while the config stays.

    Raises:
        ConfigError: the model has no config, the config no test pipeline or one that needs more than an image
            (proposals), or another ``channel_order``.
    """
    if channel_order not in ('bgr', 'rgb'):
        raise ConfigError(f"channel_order '{channel_order}' is neither 'bgr' nor 'rgb'")
    steps = _steps(model)
    kept = model.__dict__.get('_test_pipelines')
    if kept is None or kept[0] != steps:
        given = list(steps)
        first = given[0]
        if isinstance(first, Mapping) and _type_of(first) == 'LoadImageFromFile':
            given[0] = {**first, 'type': 'LoadImageFromWebcam'}
        kept = (copy.deepcopy(list(steps)), Compose(list(steps)), Compose(given))
        model.__dict__['_test_pipelines'] = kept
    loader = kept[1].transforms[0]
    return Preparation(kept[1], kept[2], getattr(loader, 'color_type', 'color'), getattr(loader, 'backend', 'disk'),
                       channel_order, exif_orientation)


def _steps(model: nn.Module) -> Sequence[Cfg | Callable]:
    if getattr(model, 'cfg', None) is None:
        raise ConfigError('the model has no cfg: make it with init_detector, or set model.cfg')
    test = (model.cfg.get('data') or {}).get('test') or {}
    if isinstance(test, Sequence):
        test = test[0]
    while 'pipeline' not in test and isinstance(test.get('dataset'), Mapping):
        test = test['dataset']
    steps = test.get('pipeline')
    name = getattr(model.cfg, 'filename', None) or 'the config'
    if not steps:
        raise ConfigError(f"{name}: data.test has no 'pipeline'")
    if _asks_for_proposals(steps):
        raise ConfigError(f'{name}: its test pipeline needs proposals, which an image alone does not bring; '
                          'tools/test.py runs it on its data set')
    return steps


def _asks_for_proposals(steps: Sequence[Cfg | Callable]) -> bool:
    return any(_type_of(step) == 'LoadProposals' or isinstance(step, Mapping) and (
        'proposals' in step.get('keys', ()) or _asks_for_proposals(step.get('transforms') or ())) for step in steps)


def _type_of(step: Cfg | Callable) -> str:
    return str(step.get('type', '')).rpartition('.')[2] if isinstance(step, Mapping) else type(step).__name__


# --- ahead of the network ---

def prepared_ahead(prepare: Preparation, images: Iterable[ImageLike],
                   ahead: int) -> Generator[tuple[ImageLike, dict], None, None]:
    """Each image with its sample, in order; ``ahead`` of them at most are read before they are asked for.

    Args:
        prepare: what makes a sample of an image.
        images: any number of them.
        ahead: 0 reads and prepares in the caller's thread.

    Raises:
        what ``images`` or ``prepare`` raise, at the image's turn.
    """
    if ahead <= 0:
        yield from ((image, prepare(image, index)) for index, image in enumerate(images))
        return
    ready: queue.Queue = queue.Queue()
    places, stop = threading.Semaphore(ahead), threading.Event()

    def read(pool: ThreadPoolExecutor) -> None:
        try:
            source = iter(images)
            for index in itertools.count():
                places.acquire()
                if stop.is_set():
                    return
                image = next(source)
                ready.put((image, pool.submit(prepare, image, index)))
        except StopIteration:
            ready.put(None)
        except BaseException as error:  # whatever it is, the caller has to hear of it
            ready.put(error)

    with ThreadPoolExecutor(min(ahead, os.cpu_count() or 1, _MOST_THREADS), 'boxdet-prepare') as pool:
        reader = threading.Thread(target=read, args=(pool,), name='boxdet-read', daemon=True)
        reader.start()
        try:
            yield from _in_turn(ready, places)
        finally:
            stop.set()
            places.release()
            pool.shutdown(wait=True, cancel_futures=True)
            reader.join(_PATIENCE)


def _in_turn(ready: queue.Queue, places: threading.Semaphore) -> Iterator[tuple[ImageLike, dict]]:
    while (item := ready.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        image, future = item
        sample = future.result()
        places.release()
        yield image, sample
