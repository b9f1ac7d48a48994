"""Detection for programs that run on asyncio: many tasks share one model, and the event loop never waits for it.

>>> async with concurrent(streamqueue):                                       # doctest: +SKIP
...     result = await async_inference_detector(model, 'street.jpg')

The images are prepared and the network runs in threads of this module. On a GPU each task has the CUDA stream that it
took from its queue, so that the work of several overlaps; on the CPU so many networks run at once as there are cores
for their threads, and the queue may hold anything: it only says how many tasks may be at it.
"""
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import os
import threading
import weakref
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from boxdet.apis.images import ImageLike, is_image
from boxdet.apis.inference import inference_detector
from boxdet.errors import ConfigError
from boxdet.registry import Cfg
from boxdet.structures.instances import Instances

_GPU_THREADS = 8
_stream: contextvars.ContextVar[torch.cuda.Stream | None] = contextvars.ContextVar('boxdet_stream', default=None)
_pools: dict[tuple, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
# The streams that a model's tensors were recorded on: once is enough, for as long as they live.
_streams: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()
_streams_lock = threading.Lock()


@contextlib.asynccontextmanager
async def concurrent(streamqueue: asyncio.Queue) -> AsyncIterator[torch.cuda.Stream | None]:
    """Take a stream from the queue, waiting until one is free, and give it back at the end.

    Args:
        streamqueue: as many entries as tasks may run at once: ``torch.cuda.Stream`` for a GPU, anything for the CPU.

    Yields:
        the stream, on which ``async_inference_detector`` works inside the block.
    """
    stream = await streamqueue.get()
    token = _stream.set(stream)
    try:
        yield stream
    finally:
        _stream.reset(token)
        streamqueue.task_done()
        streamqueue.put_nowait(stream)


async def async_inference_detector(model: nn.Module, imgs: ImageLike | Iterable[ImageLike],
                                   **options: Any) -> Instances | list[Instances]:
    """``inference_detector`` without blocking the event loop; any number of tasks may call it with one model.

    Args:
        model: of ``init_detector``, in eval mode.
        imgs: as in ``inference_detector``.
        **options: as in ``inference_detector``.

    Raises:
        ConfigError: the model is in training mode, which tasks beside each other cannot change.
    """
    if model.training:
        raise ConfigError('async_inference_detector: the model is in training mode; call model.eval() first')
    if not is_image(imgs):
        options.setdefault('prefetch', 0)  # this is a thread of its own already
    work = functools.partial(_detect, model, imgs, _stream.get(), options)
    return await asyncio.get_running_loop().run_in_executor(_pool(next(model.parameters()).device), work)


def _detect(model: nn.Module, imgs: ImageLike | Iterable[ImageLike], stream: torch.cuda.Stream | None,
            options: Cfg) -> Instances | list[Instances]:
    device = next(model.parameters()).device
    if device.type != 'cuda':
        return inference_detector(model, imgs, **options)
    stream = stream if isinstance(stream, torch.cuda.Stream) else torch.cuda.Stream(device)
    _lend(model, stream, device)
    with torch.cuda.stream(stream):
        return inference_detector(model, imgs, **options)  # ends with results on the CPU: the stream is done


def _lend(model: nn.Module, stream: torch.cuda.Stream, device: torch.device) -> None:
    """Hand the model's tensors to ``stream``: it waits for what wrote them, and their memory stays until it is done."""
    stream.wait_stream(torch.cuda.default_stream(device))
    with _streams_lock:
        streams = _streams.setdefault(model, set())
        if stream.cuda_stream in streams:
            return
        streams.add(stream.cuda_stream)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        tensor.record_stream(stream)


def _pool(device: torch.device) -> ThreadPoolExecutor:
    """The threads for networks on ``device``."""
    threads = _GPU_THREADS
    if device.type == 'cpu':
        # More networks at once than there are cores for torch's own threads would only slow each other down.
        threads = max((os.cpu_count() or 1) // torch.get_num_threads(), 1)
    with _pools_lock:
        key = (os.getpid(), device, threads)
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(threads, f'boxdet-{device.type}')
        return _pools[key]
