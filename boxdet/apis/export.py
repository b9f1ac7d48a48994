"""A detector as a file that runs without boxdet: ONNX, or ``.pt2`` of torch.export.

>>> from boxdet.apis import export_onnx, init_detector                      # doctest: +SKIP
>>> model = init_detector('configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', 'faster_rcnn.pth', device='cpu')
>>> export_onnx(model, 'faster_rcnn.onnx', batch=1)                          # images of any size, one at a time
"""
from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from boxdet.apis.images import preparation
from boxdet.datasets.collate import collate
from boxdet.errors import ConfigError, DataError
from boxdet.export.graph import InputFormat
from boxdet.export.onnx_file import write_onnx
from boxdet.export.parity import Parity
from boxdet.export.program import write_program
from boxdet.registry import Cfg
from boxdet.structures.batch import Batch

__all__ = ['export_onnx', 'export_program', 'input_format', 'verify_onnx']


def export_onnx(model: nn.Module, path: str | os.PathLike, shape: tuple[int, int] | None = None,
                batch: int | None = None, **options: Any) -> Path:
    """Write a whole detector, from the image to boxes, scores, labels and masks, as an ONNX file.

    The graph has the inputs ``images`` (B, 3, height, width), RGB, and ``sizes`` (B, 2), the height and width of each
    image in them, and the outputs that ``DetectionGraph.forward`` tells of (docs/export.md).

    Args:
        model: of ``init_detector``, or one whose ``cfg`` has a test pipeline; it is not changed.
        path: of the file; a folder that is not there is made.
        shape: (height, width) of the images; None for any.
        batch: number of images; None for any.
        **options: ``float_input=False`` for float32 images in the place of uint8; ``precision='fp32'`` or 'fp16';
            ``masks='logits'`` or 'paste'; ``exact=False``, True for results without filling.

    Returns:
        the path.

    Raises:
        ConfigError: a model or setting that has no graph, in one line that says which. DataError: the file cannot be
            written.
    """
    return write_onnx(model, path, input_format(model), shape, batch, **options)


def export_program(model: nn.Module, path: str | os.PathLike, shape: tuple[int, int] | None = None,
                   batch: int | None = None, **options: Any) -> Path:
    """Write a whole detector for ``torch.export.load``, which needs torchvision imported, and not boxdet.

    Args, Returns and Raises: as ``export_onnx``; ``path`` ends in .pt2.
    """
    return write_program(model, path, input_format(model), shape, batch, **options)


def input_format(model: nn.Module) -> InputFormat:
    """What the network wants of an image, read from the test pipeline of ``model.cfg``.

    Raises:
        ConfigError: no pipeline, none with Normalize, or a Pad that is not to a multiple.
    """
    steps = {str(step['type']).rpartition('.')[2]: step for step in _steps(_pipeline(model))}
    norm, pad = steps.get('Normalize'), steps.get('Pad', {})
    if norm is None:
        raise ConfigError('export: the test pipeline has no Normalize, which the graph does itself')
    if pad and not pad.get('size_divisor'):
        raise ConfigError('export: the test pipeline pads to a size; a graph pads to multiples (Pad.size_divisor)')
    scale = steps.get('MultiScaleFlipAug', {}).get('img_scale') or steps.get('Resize', {}).get('img_scale')
    single = isinstance(scale, Sequence) and len(scale) == 2 and all(isinstance(side, int) for side in scale)
    keeps = steps.get('Resize', {}).get('keep_ratio', True)
    return InputFormat(tuple(map(float, norm['mean'])), tuple(map(float, norm['std'])), norm.get('to_rgb', True),
                       pad.get('size_divisor', 1), (max(scale), min(scale)) if single and keeps else None)


def _pipeline(model: nn.Module) -> Sequence[Cfg]:
    preparation(model)  # refuses a model without one
    return model.__dict__['_test_pipelines'][0]


def _steps(pipeline: Sequence[Cfg]) -> Iterator[Cfg]:
    """All steps of a pipeline, those inside of others too."""
    for step in pipeline:
        if isinstance(step, Mapping) and 'type' in step:
            yield step
            yield from _steps(step.get('transforms') or ())


def verify_onnx(model: nn.Module, path: str | os.PathLike, images: Sequence[str | os.PathLike]) -> Parity:
    """Compare an exported file, run by onnxruntime on the CPU, with its detector, image by image.

    Args:
        model: of ``init_detector``, on the CPU.
        path: of ``export_onnx``, for any shape, or one that the images fit in.
        images: files.

    Raises:
        ConfigError: onnxruntime is missing, or the pipeline changes pixels after Normalize. DataError: an image that
            cannot be read.
    """
    if find_spec('onnxruntime') is None:
        raise ConfigError('comparing an ONNX file with its detector needs onnxruntime: pip install boxdet[export]')
    import onnxruntime
    session = onnxruntime.InferenceSession(os.fspath(path), providers=['CPUExecutionProvider'])
    about = json.loads(session.get_modelmeta().custom_metadata_map['boxdet'])
    parity, prepare = Parity(), preparation(model)
    for index, image in enumerate(images):
        batch = collate([prepare(image, index)])
        if isinstance(batch, list) or batch.images.dtype != torch.uint8:
            raise ConfigError('export: this test pipeline makes several views of an image, or changes it after '
                              'Normalize; neither is in the graph')
        found = run_session(session, about['outputs'], _as_rgb(batch))
        count = int(found['count'][0])
        rows = {name: value if about['exact'] else value[0, :count] for name, value in found.items()
                if name not in ('count', 'settled')}
        parity.add(model.predict(batch, rescale=False)[0], rows, about['mask_threshold'])
    return parity


def run_session(session: Any, outputs: Sequence[str], images: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by name for (images, sizes), filled up to the batch and size that the file was made for.

    Raises:
        DataError: images that are larger than that.
    """
    pixels, sizes = images
    count, _, height, width = (side if isinstance(side, int) else own
                               for side, own in zip(session.get_inputs()[0].shape, pixels.shape))
    if count < pixels.shape[0] or height < pixels.shape[2] or width < pixels.shape[3]:
        raise DataError(f'images {pixels.shape} do not fit in the {(count, 3, height, width)} that the file takes')
    room = np.zeros((count, 3, height, width), np.float32 if 'float' in session.get_inputs()[0].type else np.uint8)
    room[:pixels.shape[0], :, :pixels.shape[2], :pixels.shape[3]] = pixels
    sizes = np.concatenate([sizes, np.tile(sizes[-1:], (count - len(sizes), 1))])
    return dict(zip(outputs, session.run(None, dict(images=room, sizes=sizes))))


def _as_rgb(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    pixels = batch.images.numpy()
    if not batch.metas[0].img_norm_cfg['to_rgb']:
        pixels = pixels[:, ::-1]
    sizes = np.array([meta.img_shape[:2] for meta in batch.metas], dtype=np.int64)
    return np.ascontiguousarray(pixels[:, :, :sizes[:, 0].max(), :sizes[:, 1].max()]), sizes
