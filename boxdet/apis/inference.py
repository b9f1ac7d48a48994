"""A detector from a config and a checkpoint, and its results on pictures at hand.

>>> from boxdet.apis import init_detector, inference_detector               # doctest: +SKIP
>>> model = init_detector('configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', 'faster_rcnn.pth', device='cpu')
>>> result = inference_detector(model, 'street.jpg')
>>> model.show_result('street.jpg', result, out_file='result.jpg')
"""
from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

import cv2
import numpy as np
import torch
from torch import nn

from boxdet.checkpoints.io import classes_of, compare_classes, describe, load_checkpoint, load_weights
from boxdet.datasets.collate import collate
from boxdet.datasets.pipelines.compose import Compose
from boxdet.engine.config import load_config
from boxdet.engine.environment import choose_device
from boxdet.errors import ConfigError, DataError
from boxdet.models import build_detector
from boxdet.registry import DATASETS
from boxdet.structures.instances import Instances
from boxdet.visualization.palette import PaletteSpec

Picture = Union[str, os.PathLike, np.ndarray, bytes, Any]  # Any: a PIL image
_Waiting = tuple[int, Any, Any]  # a picture's index, its sample, and that sample collated alone


# --- a model ---

def init_detector(config: str | os.PathLike | Mapping[str, Any], checkpoint: str | os.PathLike | None = None,
                  device: str | torch.device = 'cuda:0',
                  cfg_options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a detector for inference.

    Args:
        config: a config file or a Config; it is not changed.
        checkpoint: a file or an address; without one the weights are random.
        device: 'cuda:0', 'cpu', ...
        cfg_options: settings in place of the config's, ``{'model.test_cfg.rcnn.score_thr': 0.3}``.

    Returns:
        the detector in eval mode, with ``cfg`` (the config) and ``CLASSES`` (from the checkpoint, else the
        config).

    Raises:
        ConfigError: a wrong config or a device that is not there. CheckpointError: an unusable checkpoint.
    """
    device = choose_device(device)  # before the work of loading
    if isinstance(config, (str, os.PathLike)):
        cfg = load_config(config, cfg_options)
    elif hasattr(config, 'merge_from_dict'):
        cfg = copy.deepcopy(config)
        cfg.merge_from_dict(dict(cfg_options or {}))
    else:
        raise ConfigError(f'config is a file name or a Config, not {type(config).__name__}')
    model = build_for_inference(cfg)
    if checkpoint is None:
        model.init_weights()
        model.CLASSES = configured_classes(cfg)
    else:
        load_into(model, checkpoint, configured_classes(cfg))
    model.cfg = cfg
    return model.to(device).eval()


def build_for_inference(cfg: Any) -> nn.Module:
    """Build ``cfg.model`` without what only training needs: pretrained weights and ``train_cfg``.

    Raises:
        ConfigError: as ``build_detector``.
    """
    if not isinstance(cfg.get('model'), Mapping):
        raise ConfigError(f"{getattr(cfg, 'filename', None) or 'the config'} has no 'model'")
    model = _without_pretrained(cfg['model'])
    if 'train_cfg' in model:
        model['train_cfg'] = None
    # Configs before mmdetection 2.4 have test_cfg beside model.
    return build_detector(model, test_cfg=None if model.get('test_cfg') is not None else cfg.get('test_cfg'))


def _without_pretrained(value: Any) -> Any:
    """A copy of a config without the weights that a part would start its training from."""
    if isinstance(value, (list, tuple)):
        return [_without_pretrained(v) for v in value if not _is_pretrained(v)]
    if not isinstance(value, Mapping):
        return value
    return {k: None if k == 'pretrained' else _without_pretrained(v) for k, v in value.items()
            if not (k == 'init_cfg' and _is_pretrained(v))}


def _is_pretrained(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get('type') == 'Pretrained'


def load_into(model: nn.Module, checkpoint: str | os.PathLike, classes: Sequence[str] | None) -> None:
    """Load ``checkpoint`` into ``model`` and set its ``CLASSES``: those of the checkpoint, else ``classes``.

    What is missing in the checkpoint or does not fit, and classes that differ, are warnings.

    Raises:
        CheckpointError: not readable, or of another architecture.
    """
    content, source = load_checkpoint(checkpoint), str(checkpoint)
    report = load_weights(model, content, source)
    if report.missing or report.mismatched:
        warnings.warn(describe(report), stacklevel=3)
    model.CLASSES = classes_of(content)
    if model.CLASSES is None:
        model.CLASSES = None if classes is None else tuple(classes)
        warnings.warn(f'{source} does not tell its classes; those of the config are used', stacklevel=3)
        return
    difference = compare_classes(content, classes, source)
    if difference:
        warnings.warn(difference, stacklevel=3)


def configured_classes(cfg: Any) -> tuple[str, ...] | None:
    """The class names of the config's test data: its ``classes``, else those of the data set's type; None if
    unknown.
    """
    data = cfg.get('data') or {}
    test = data.get('test') or data.get('val') or data.get('train') or {}
    if isinstance(test, Sequence):
        test = test[0] if test else {}
    while isinstance(test.get('dataset'), Mapping):
        test = test['dataset']
    if 'type' not in test:
        return None
    kind = DATASETS.get(test['type'])
    classes = kind.get_classes(test.get('classes')) if hasattr(kind, 'get_classes') else kind.CLASSES
    return None if classes is None else tuple(classes)


# --- its results ---

def inference_detector(model: nn.Module, imgs: Picture | Iterable[Picture],
                       batch_size: int | None = None) -> Instances | list[Instances]:
    """Detect on one picture or several, through ``model.cfg.data.test.pipeline``.

    Args:
        model: of ``init_detector``.
        imgs: a file name, an array (H, W, 3) uint8 in BGR order as OpenCV reads, the bytes of an image file,
            or a PIL image; or a list, tuple or iterator of them.
        batch_size: pictures of the same input size that go through the network together; default 1 on the
            CPU, 8 on a GPU. Pictures of other sizes are never padded for the sake of a batch, so the results
            are those of single pictures.

    Returns:
        the Instances of one picture, in its original pixels; a list of them, in order, for several.

    Raises:
        DataError: a picture that cannot be read. ConfigError: the config has no test pipeline.
    """
    single = isinstance(imgs, (str, os.PathLike, np.ndarray, bytes)) or _is_pil(imgs)
    device = next(model.parameters()).device
    if batch_size is None:
        batch_size = 1 if device.type == 'cpu' else 8
    from_file, in_memory = _pipelines(model)
    results: dict[int, Instances] = {}
    waiting: dict[Any, list[_Waiting]] = {}  # by input size, until a batch of them is full
    for index, picture in enumerate([imgs] if single else imgs):
        sample = _prepare(picture, index, from_file, in_memory)
        batch = collate([sample])  # one Batch, or a list of them: views, which stay alone
        size = index if isinstance(batch, list) else tuple(batch.images.shape[1:])
        group = waiting.setdefault(size, [])
        group.append((index, sample, batch))
        full = len(group) >= batch_size or isinstance(batch, list)
        if full or sum(map(len, waiting.values())) > 4 * batch_size:
            results.update(_predict(model, group, device))
            group.clear()
    for group in waiting.values():
        results.update(_predict(model, group, device))
    ordered = [results[i] for i in range(len(results))]
    return ordered[0] if single else ordered


def _predict(model: nn.Module, group: Sequence[_Waiting], device: torch.device) -> dict[int, Instances]:
    if not group:
        return {}
    batch = group[0][2] if len(group) == 1 else collate([sample for _, sample, _ in group])
    batch = batch.to(device) if not isinstance(batch, list) else [view.to(device) for view in batch]
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            found = model(batch, mode='predict', rescale=True)
    finally:
        model.train(training)
    return {index: result for (index, _, _), result in zip(group, found)}


def _pipelines(model: nn.Module) -> tuple[Compose, Compose]:
    """The test pipeline as it is, and for arrays in place of files; built once while the config stays."""
    if getattr(model, 'cfg', None) is None:
        raise ConfigError('the model has no cfg: make it with init_detector, or set model.cfg')
    test = (model.cfg.get('data') or {}).get('test') or {}
    if isinstance(test, Sequence):
        test = test[0]
    while 'pipeline' not in test and isinstance(test.get('dataset'), Mapping):
        test = test['dataset']
    steps = test.get('pipeline')
    if not steps:
        raise ConfigError(
            f"{getattr(model.cfg, 'filename', None) or 'the config'}: data.test has no 'pipeline'")
    kept = model.__dict__.get('_test_pipelines')
    if kept is None or kept[0] != steps:
        given = list(steps)
        if _type_of(given[0]) == 'LoadImageFromFile':
            given[0] = {**given[0], 'type': 'LoadImageFromWebcam'}
        kept = (copy.deepcopy(list(steps)), Compose(list(steps)), Compose(given))
        model.__dict__['_test_pipelines'] = kept
    return kept[1], kept[2]


def _type_of(step: Any) -> str:
    return str(step.get('type', '')).rpartition('.')[2] if isinstance(step, Mapping) else type(step).__name__


def _prepare(picture: Picture, index: int, from_file: Compose, in_memory: Compose) -> Any:
    """The sample that the test pipeline makes of ``picture``."""
    if isinstance(picture, (str, os.PathLike)):
        return from_file(dict(img_info=dict(filename=os.fspath(picture)), img_prefix=None), compact=True)
    image = _decode(picture, index)
    if getattr(in_memory.transforms[0], 'channel_order', 'bgr') == 'rgb':
        image = np.ascontiguousarray(image[:, :, ::-1])
    return in_memory(dict(img_info=dict(filename=None), img_prefix=None, img=image), compact=True)


def _decode(picture: Any, index: int) -> np.ndarray:
    """An array, the bytes of an image file or a PIL image as (H, W, 3) uint8 in BGR order."""
    if isinstance(picture, (bytes, bytearray, memoryview)):
        image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) if len(picture) else None
        if image is None:
            raise DataError(f'picture {index}: {len(picture)} bytes that are no image file')
        return image
    if _is_pil(picture):
        return np.ascontiguousarray(np.asarray(picture.convert('RGB'))[:, :, ::-1])
    if not isinstance(picture, np.ndarray):
        raise DataError(
            f'picture {index} is a {type(picture).__name__}: give a file name, array, bytes or PIL image')
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape or picture.dtype != np.uint8:
        raise DataError(
            f'picture {index} is an array {picture.shape} of {picture.dtype}: it has to be '
            '(height, width, 3) of uint8 in BGR order')
    return picture


def _is_pil(picture: Any) -> bool:
    return any(kind.__module__.startswith('PIL.') for kind in type(picture).__mro__)


def show_result_pyplot(model: nn.Module, img: str | np.ndarray, result: Instances, score_thr: float = 0.3,
                       title: str = 'result', wait_time: float = 0, palette: PaletteSpec = None,
                       out_file: str | None = None) -> None:
    """Show a result with matplotlib, in a notebook or a window.

    Args:
        img: file name, or (H, W, 3) uint8 in BGR order.
        title: of the window.
        wait_time: seconds until the window closes, 0 until it is closed by hand.
        palette: see ``visualization.palette.class_colors``; the model's by default.
        out_file: write the picture there, too.
    """
    import matplotlib.pyplot as plt

    from boxdet.visualization.draw import draw_instances, read_image, write_image

    image = read_image(img) if isinstance(img, (str, os.PathLike)) else img
    drawn = draw_instances(image, result, model.CLASSES, score_thr,
                           model.PALETTE if palette is None else palette)
    if out_file is not None:
        write_image(drawn, out_file)
    height, width = drawn.shape[:2]
    figure = plt.figure(num=title, figsize=(12, 12 * height / width))
    figure.add_axes([0, 0, 1, 1], frameon=False, xticks=[], yticks=[]).imshow(drawn[:, :, ::-1])
    if wait_time:
        plt.show(block=False)
        plt.pause(wait_time)
        plt.close(figure)
    else:
        plt.show()


# --- folding batch norm ---

@torch.no_grad()
def fuse_conv_bn(model: nn.Module) -> nn.Module:
    """Fold each batch norm that directly follows a convolution into its weights: the same function, less
    work.

    A norm follows a convolution when it is registered right after it in the same module, as in the ResNets
    and ConvModules here. Only for inference: the model is changed and no longer matches checkpoints.
    """
    for parent in model.modules():
        before: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if before is not None and isinstance(child, nn.modules.batchnorm._BatchNorm) \
                    and isinstance(before[1], nn.Conv2d) and before[1].out_channels == child.num_features \
                    and child.track_running_stats:
                setattr(parent, before[0], nn.utils.fuse_conv_bn_eval(before[1].eval(), child.eval()))
                setattr(parent, name, nn.Identity())
            before = (name, child)
    return model
