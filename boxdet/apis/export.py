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
from boxdet.apis.inference import test_data
from boxdet.datasets.class_names import COCO_CATEGORY_IDS, COCO_CLASSES
from boxdet.datasets.collate import collate
from boxdet.errors import ConfigError, DataError
from boxdet.export.graph import InputFormat, pasting
from boxdet.export.onnx_file import Labels, write_onnx
from boxdet.export.parity import Parity
from boxdet.export.program import write_program
from boxdet.files.json_text import read_json
from boxdet.geometry.keypoints import HALF_PIXEL
from boxdet.registry import Cfg
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances

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
    labels = Labels(category_ids(model), _test_data(model).get('keypoint_offset', HALF_PIXEL))
    return write_onnx(model, path, input_format(model), shape, batch, labels=labels, **options)


def export_program(model: nn.Module, path: str | os.PathLike, shape: tuple[int, int] | None = None,
                   batch: int | None = None, **options: Any) -> Path:
    """Write a whole detector for ``torch.export.load``, which needs torchvision imported, and not boxdet.

    Args, Returns and Raises: as ``export_onnx``; ``path`` ends in .pt2. ``compiled=True`` compiles it with AOTInductor
    for this machine's processor, which needs a C++ compiler; ``torch._inductor.aoti_load_package`` loads it then.
    """
    return write_program(model, path, input_format(model), shape, batch, **options)


def input_format(model: nn.Module) -> InputFormat:
    """What the network wants of an image, read from the test pipeline of ``model.cfg``.

    Raises:
        ConfigError: no pipeline, one that makes several views, none with Normalize, or a Pad that is not to a multiple.
    """
    steps = {str(step['type']).rpartition('.')[2]: step for step in _steps(_pipeline(model))}
    norm, pad = steps.get('Normalize'), steps.get('Pad', {})
    if norm is None:
        raise ConfigError('export: the test pipeline has no Normalize, which the graph does itself')
    if pad and not pad.get('size_divisor'):
        raise ConfigError('export: the test pipeline pads to a size; a graph pads to multiples (Pad.size_divisor)')
    views = steps.get('MultiScaleFlipAug', {})
    factors = views.get('scale_factor')
    several = isinstance(factors, Sequence) and len(factors) > 1 or len(_scales(views.get('img_scale'))) > 1
    if views.get('flip') or several:
        raise ConfigError('export: the test pipeline makes several views of an image (MultiScaleFlipAug); a graph '
                          'takes one: flip=False and one img_scale')
    return InputFormat(tuple(map(float, norm['mean'])), tuple(map(float, norm['std'])), norm.get('to_rgb', True),
                       pad.get('size_divisor', 1), **_resizing(steps.get('Resize'), views))


def _resizing(resize: Cfg | None, views: Cfg) -> dict[str, Any]:
    """``scale`` and ``keep_ratio`` of ``InputFormat``."""
    if resize is None:
        return dict(scale=None)
    scales = _scales(views.get('img_scale') or resize.get('img_scale'))
    plain = (resize.get('backend', 'cv2'), resize.get('interpolation', 'bilinear')) == ('cv2', 'bilinear')
    if len(scales) != 1 or not plain or resize.get('ratio_range'):
        return dict(scale='unknown')
    keep_ratio = resize.get('keep_ratio', True)
    width, height = map(int, scales[0])
    return dict(scale=(max(width, height), min(width, height)) if keep_ratio else (width, height),
                keep_ratio=keep_ratio)


def _scales(value: Any) -> Sequence[Sequence[int]]:
    """The scales (width, height) of a setting that holds none, one or several of them."""
    return [] if value is None else value if isinstance(value[0], Sequence) else [value]


def category_ids(model: nn.Module) -> list[int]:
    """The category id of each class: of the config's annotation file, else of the checkpoint, else COCO's own.

    Returns:
        [] where none of these tells them.

    Raises:
        DataError: an annotation file that cannot be read.
    """
    classes = tuple(model.CLASSES or ())
    ids = _ids_by_name(_test_data(model))
    if classes and all(name in ids for name in classes):
        return [ids[name] for name in classes]
    known = list(getattr(model, 'category_ids', None) or ())
    if known and len(known) == len(classes):
        return known
    return list(COCO_CATEGORY_IDS) if classes == COCO_CLASSES else []


def _ids_by_name(data: Cfg) -> dict[str, int]:
    """The categories of a COCO annotation file, where it is there."""
    name = data.get('ann_file')
    path = os.path.join(data.get('data_root') or '', name) if isinstance(name, (str, os.PathLike)) else ''
    if not (path.endswith('.json') and os.path.isfile(path)):
        return {}
    content = read_json(path)
    categories = content.get('categories') if isinstance(content, dict) else None
    return {category['name']: category['id'] for category in reversed(categories or [])}


def _test_data(model: nn.Module) -> Cfg:
    return test_data(getattr(model, 'cfg', None) or {})


def _pipeline(model: nn.Module) -> Sequence[Cfg]:
    preparation(model)  # refuses a model without one
    return model.__dict__['_test_pipelines'][0]


def _steps(pipeline: Sequence[Cfg]) -> Iterator[Cfg]:
    """All steps of a pipeline, those inside of others too."""
    for step in pipeline:
        if isinstance(step, Mapping) and 'type' in step:
            yield step
            yield from _steps(step.get('transforms') or ())


def verify_onnx(model: nn.Module, path: str | os.PathLike, images: Sequence[str | os.PathLike],
                batch_size: int = 1, parity: Parity | None = None) -> Parity:
    """Compare an exported file, run by onnxruntime on the CPU, with its detector.

    Args:
        model: of ``init_detector``, on the CPU.
        path: of ``export_onnx``, for any shape, or one that the images fit in.
        images: files.
        batch_size: so many images at a time.
        parity: counts with other tolerances, say; what is found is added to it.

    Raises:
        ConfigError: onnxruntime is missing, or the pipeline changes pixels after Normalize. DataError: an image that
            cannot be read.
    """
    if find_spec('onnxruntime') is None:
        raise ConfigError('comparing an ONNX file with its detector needs onnxruntime: pip install boxdet[export]')
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of each float16 operator that the CPU does not have
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=['CPUExecutionProvider'])
    about = json.loads(session.get_modelmeta().custom_metadata_map['boxdet'])
    parity = parity or Parity()
    for batch in batches(model, images, batch_size):
        found = run_session(session, about['outputs'], as_rgb(batch))
        add_batch(parity, model.predict(batch, rescale=False), found, model)
    return parity


def batches(model: nn.Module, images: Sequence[str | os.PathLike], batch_size: int = 1) -> Iterator[Batch]:
    """Images as the test pipeline of ``model.cfg`` prepares them, normalisation left to the detector.

    Raises: as ``verify_onnx``.
    """
    prepare = preparation(model)
    for start in range(0, len(images), batch_size):
        some = images[start:start + batch_size]
        batch = collate([prepare(image, start + i) for i, image in enumerate(some)])
        if isinstance(batch, list) or batch.images.dtype != torch.uint8:
            raise ConfigError('export: this test pipeline makes several views of an image, or changes it after '
                              'Normalize; neither is in the graph')
        yield batch


def add_batch(parity: Parity, expected: Sequence[Instances], found: Mapping[str, np.ndarray], model: nn.Module) -> None:
    """Count a batch: the detector's results for its images, and the outputs of the exported file by name."""
    counts, masks = found['count'][:len(expected)], pasting(model)
    ends = np.cumsum(found['count'])
    exact = found['boxes'].ndim == 2
    for i, (result, count) in enumerate(zip(expected, counts.tolist())):
        rows = {name: value[ends[i] - count:ends[i]] if exact else value[i, :count] for name, value in found.items()
                if name not in ('count', 'settled')}
        parity.add(result, rows, **masks)


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


def as_rgb(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of an exported file for a batch: images (B, 3, H, W) uint8, RGB, and their sizes (B, 2) int64."""
    pixels = batch.images.numpy()
    norm = batch.metas[0].img_norm_cfg
    if norm is not None and not norm['to_rgb']:
        pixels = pixels[:, ::-1]
    sizes = np.array([meta.input_size for meta in batch.metas], dtype=np.int64)
    return np.ascontiguousarray(pixels[:, :, :sizes[:, 0].max(), :sizes[:, 1].max()]), sizes
