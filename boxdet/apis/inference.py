"""A detector from a config and a checkpoint, and its results on images at hand.

>>> from boxdet.apis import init_detector, inference_detector               # doctest: +SKIP
>>> model = init_detector('configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', 'faster_rcnn.pth', device='cpu')
>>> result = inference_detector(model, 'street.jpg')
>>> model.show_result('street.jpg', result, out_file='result.jpg')
"""
from __future__ import annotations

import contextlib
import copy
import os
import threading
import warnings
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from boxdet.apis.images import ImageLike, is_image, list_images, preparation, prepared_ahead
from boxdet.checkpoints import zoo
from boxdet.checkpoints.io import load_checkpoint
from boxdet.checkpoints.loading import classes_of, compare_classes, describe, load_weights
from boxdet.datasets.collate import collate
from boxdet.engine.config import Config, load_config, parse_options, refuse_misspelt_options, translated
from boxdet.engine.environment import choose_device, give_back_memory, memory_format, slow_in
from boxdet.engine.findings import ignored_codes, report
from boxdet.engine.model_check import model_findings
from boxdet.engine.preflight import head_classes
from boxdet.errors import ConfigError, DataError, nearest
from boxdet.models import build_detector
from boxdet.models.folding import PRECISIONS, fuse_conv_bn, ready_for_inference
from boxdet.models.quantization import fast_in_int8, quantize
from boxdet.registry import DATASETS, Cfg
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances
from boxdet.visualization.palette import PaletteSpec

__all__ = ['fuse_conv_bn', 'inference_detector', 'inference_stream', 'init_detector', 'show_result_pyplot']

_CALIBRATION_IMAGES = 32
_Collated = Batch | list[Batch]  # of one image: the views of test-time augmentation are a list
_Waiting = tuple[int, dict, _Collated]  # an image's index, its sample, and that sample collated alone


# --- a model ---

def init_detector(config: str | os.PathLike | Cfg, checkpoint: str | os.PathLike | None = None,
                  device: str | torch.device = 'cuda:0', cfg_options: Cfg | None = None, *,
                  precision: str = 'fp32', compile: bool | str = False,
                  calibration: str | os.PathLike | Sequence[ImageLike] = ()) -> nn.Module:
    """Build a detector for inference: batch norms folded into the convolutions, weights in the device's memory format.

    Args:
        config: a config file, the short name of one in ``configs/``, or a Config; it is not changed.
        checkpoint: a file or an address, boxdet's or another project's (see docs/weights.md); 'zoo' for those that were
            published for this config; without one the weights are random.
        device: 'cuda:0', 'cuda' (the current GPU), 'cpu', ...
        cfg_options: settings in place of the config's, ``{'model.test_cfg.rcnn.score_thr': 0.3}``; or a list of
            texts as on a command line.
        precision: 'fp32', or 'bf16' or 'fp16' for weights and features in half precision; scores and boxes are
            always computed in float32. On a processor that is slow in it, float32 it is, with a warning. 'int8' for
            products of eight bits in all but the first and the last layers, on a processor that has them
            (``models.quantization``).
        compile: let torch.compile work on backbone and neck; a text names its backend. For a GPU, and images of few
            sizes; on the CPU it is slower, without Winograd's convolution (docs/performance.md).
        calibration: for 'int8': a folder of images, or images, like those to come; ranges of activations are found on
            them, of a folder on 32.

    Returns:
        the detector in eval mode, with ``cfg`` (the config) and ``CLASSES`` (from the checkpoint, else the
        config).

    Raises:
        ConfigError: a wrong config or option, a device or a backend that is not there. CheckpointError: an unusable
            checkpoint.
    """
    device, backend = choose_device(device), _compile_backend(compile)  # before the work of loading
    known = (*PRECISIONS, 'int8')
    if precision not in known:
        raise ConfigError(f"precision '{precision}' is none of {', '.join(known)}{nearest(precision, known)}")
    cfg = _configured(config, cfg_options)
    refuse_misspelt_options(cfg)
    model = build_for_inference(cfg)
    if checkpoint is None:
        model.init_weights()
        model.CLASSES = configured_classes(cfg)  # type: ignore[assignment]  # torch types it as Tensor | Module
    else:
        load_into(model, zoo.address(checkpoint, cfg.filename), configured_classes(cfg))
    _warn_of_other_classes(model, checkpoint)
    model.cfg = cfg
    model = place_for_inference(model, device, precision, calibration)
    give_back_memory()  # of the checkpoint, which is as large as the weights
    with contextlib.suppress(ConfigError):  # no test pipeline, or one for proposals: inference_detector says so
        preparation(model)
    if backend:
        model.__dict__['extract_feat'] = torch.compile(model.extract_feat, backend=backend)
    return model


def place_for_inference(model: nn.Module, device: torch.device, precision: str = 'fp32',
                        calibration: str | os.PathLike | Sequence[ImageLike] = ()) -> nn.Module:
    """Put a model on ``device``, in eval mode and in the form that detects fastest there.

    Args:
        model: with ``cfg``, for 'int8'.
        device: where it detects.
        precision: 'fp32', 'bf16', 'fp16' (``models.folding``) or 'int8' (``models.quantization``).
        calibration: for 'int8': a folder of images, or images.

    Raises:
        ConfigError: another precision, or one for which the device is not made. DataError: no such folder.
    """
    if precision == 'int8':
        return _quantize(place_for_inference(model, device), device, calibration)
    precision = _fast_precision(precision, device)
    layout = memory_format(device, PRECISIONS.get(precision, torch.float32))
    return ready_for_inference(model.eval(), precision, layout).to(device)  # which knows what a precision is


def _quantize(model: nn.Module, device: torch.device,
              calibration: str | os.PathLike | Sequence[ImageLike]) -> nn.Module:
    """Bring the model into eight bits, with the ranges of activations found on images.

    Raises:
        ConfigError: a device that is not faster so, or no image. DataError: no such folder.
    """
    if not fast_in_int8(device):
        raise ConfigError(f"precision='int8' would be slower than 'fp32' on this device ({device}): it needs a "
                          'processor with VNNI or AMX')
    images: Sequence[ImageLike] = [calibration] if is_image(calibration) else calibration
    if isinstance(calibration, (str, os.PathLike)) and os.path.isdir(calibration):
        names = list_images(calibration)
        images = [os.path.join(calibration, name) for name in names[::-(-len(names) // _CALIBRATION_IMAGES)]]
    return quantize(model, (partial(inference_detector, model, image) for image in images))


def _fast_precision(precision: str, device: torch.device) -> str:
    """``precision``, or 'fp32' with a warning where half precision would be far slower."""
    if not slow_in(PRECISIONS.get(precision, torch.float32), device):
        return precision
    warnings.warn(f'precision={precision!r}: this processor has no instructions for it, and would take many times as '
                  'long as in float32, which is used instead', stacklevel=4)
    return 'fp32'


def _compile_backend(compile: bool | str) -> str:
    """The name of torch.compile's backend, '' for none."""
    if not compile or compile is True:
        return 'inductor' if compile else ''
    known = torch.compiler.list_backends(())
    if compile not in known:
        raise ConfigError(f"compile={compile!r}: torch.compile has no such backend{nearest(str(compile), known)}")
    return compile


def _configured(config: str | os.PathLike | Cfg, cfg_options: Cfg | None) -> Config:
    """A Config of a file name or a copy of a Config, with the options in it."""
    options = parse_options(list(cfg_options)) if isinstance(cfg_options, (list, tuple)) else cfg_options or {}
    if not isinstance(options, Mapping):
        raise ConfigError("cfg_options is a dict such as {'model.test_cfg.rcnn.score_thr': 0.3}, or a list of texts "
                          f"KEY=VALUE, not {cfg_options!r}")
    if isinstance(config, (str, os.PathLike)):
        return load_config(config, options)
    if not hasattr(config, 'merge_from_dict'):
        raise ConfigError(f'config is a file name or a Config, not {type(config).__name__}')
    cfg = translated(copy.deepcopy(config))
    cfg.merge_from_dict(dict(options))
    return cfg


def build_for_inference(cfg: Config) -> nn.Module:
    """Build ``cfg.model`` without what only training needs: pretrained weights and ``train_cfg``.

    Raises:
        ConfigError: as ``build_detector``, or parts of the model that do not fit one another.
    """
    if not isinstance(cfg.get('model'), Mapping):
        raise ConfigError(f"{getattr(cfg, 'filename', None) or 'the config'} has no 'model'")
    model = _without_pretrained(cfg['model'])
    if 'train_cfg' in model:
        model['train_cfg'] = None
    # Configs before mmdetection 2.4 have test_cfg beside model.
    built = build_detector(model, test_cfg=cfg.get('test_cfg'))
    report(model_findings(built), ignored_codes(cfg))
    return built


def _without_pretrained(value: Any) -> Any:
    """A copy of a config without the weights that a part would start its training from."""
    if isinstance(value, (list, tuple)):
        return [_without_pretrained(v) for v in value if not _is_pretrained(v)]
    if not isinstance(value, Mapping):
        return value
    return {k: None if k == 'pretrained' else _without_pretrained(v) for k, v in value.items()
            if not (k == 'init_cfg' and _is_pretrained(v))}


def _is_pretrained(value: object) -> bool:
    return isinstance(value, Mapping) and value.get('type') == 'Pretrained'


def load_into(model: nn.Module, checkpoint: str | os.PathLike, classes: Sequence[str] | None) -> Cfg:
    """Load ``checkpoint`` into ``model`` and set its ``CLASSES``: those of the checkpoint, else ``classes``.

    What is missing in the checkpoint or does not fit, and classes that differ, are warnings.

    Returns:
        the checkpoint's ``meta``.

    Raises:
        CheckpointError: not readable, or of another architecture.
    """
    content, source = load_checkpoint(checkpoint), str(checkpoint)
    report = load_weights(model, content, source)
    if report.missing or report.mismatched:
        warnings.warn(describe(report), stacklevel=3)
    # Torch types it as Tensor | Module.
    model.category_ids = (content.get('meta') or {}).get('category_ids')  # type: ignore[assignment]
    model.CLASSES = classes_of(content)  # type: ignore[assignment]  # torch types it as Tensor | Module
    if model.CLASSES is None:
        # Torch types it as Tensor | Module.
        model.CLASSES = None if classes is None else tuple(classes)  # type: ignore[assignment]
        if 'converted_from' in (content.get('meta') or {}):  # those projects do not store classes
            return content.get('meta') or {}
        warnings.warn(f'{source} does not tell its classes; those of the config are used', stacklevel=3)
        return content.get('meta') or {}
    difference = compare_classes(content, classes, source)
    if difference:
        warnings.warn(difference, stacklevel=3)
    return content.get('meta') or {}


def _warn_of_other_classes(model: nn.Module, checkpoint: str | os.PathLike | None) -> None:
    """Warn where the heads tell another number of classes apart than there are names for them."""
    heads = [f'model.{name}.num_classes = {count}' for name, count in head_classes(model)
             if model.CLASSES is not None and count != len(model.CLASSES)]
    if heads:
        source = 'the config' if checkpoint is None else f'{checkpoint} (or else the config)'
        warnings.warn(f"{'; '.join(heads)}, and {source} names {len(model.CLASSES)} classes: names of results would be "
                      'wrong; set num_classes to that, or model.CLASSES to the names; see '
                      'docs/troubleshooting.md#the-classes-are-wrong', stacklevel=3)


def test_data(cfg: Config | Cfg) -> Cfg:
    """The config's test data without wrappers, the first set where there are several; {} where it has none."""
    data = cfg.get('data') or {}
    test = data.get('test') or data.get('val') or data.get('train') or {}
    if isinstance(test, Sequence):
        test = test[0] if test else {}
    while isinstance(test.get('dataset'), Mapping):
        test = test['dataset']
    return test


def configured_classes(cfg: Config) -> tuple[str, ...] | None:
    """The class names of the config's test data: its ``classes``, else those of its type; None if unknown."""
    test = test_data(cfg)
    if 'type' not in test:
        return None
    kind: Any = DATASETS.get(test['type'])
    classes = kind.get_classes(test.get('classes')) if hasattr(kind, 'get_classes') else kind.CLASSES
    return None if classes is None else tuple(classes)


# --- its results ---

def inference_detector(model: nn.Module, imgs: ImageLike | Iterable[ImageLike], batch_size: int | None = None,
                       channel_order: str = 'bgr', exif_orientation: bool | None = None,
                       prefetch: int | None = None) -> Instances | list[Instances]:
    """Detect on one image or several, through ``model.cfg.data.test.pipeline``.

    Args:
        model: of ``init_detector``.
        imgs: a file name or http(s) address, an array (H, W, 3) uint8 (also (H, W), (H, W, 1), or (H, W, 4) whose
            last channel is left out), the bytes of an image file, what can read() them, or a PIL image; or a list,
            tuple or iterator of them.
        batch_size: images of the same input size that go through the network together; default 1 on the
            CPU, 8 on a GPU. Images of other sizes are never padded for the sake of a batch, so the results
            are those of single images.
        channel_order: of arrays: 'bgr' as OpenCV reads, or 'rgb'.
        exif_orientation: turn files, bytes and PIL images upright by their EXIF orientation, or not; None: as the
            config's LoadImageFromFile does (it does unless its color_type says 'ignore_orientation').
        prefetch: images that threads read and prepare ahead, 0 for none; by default two batches.

    Returns:
        the Instances of one image, in its original pixels; a list of them, in order, for several.

    Raises:
        DataError: an image that cannot be read. ConfigError: the config has no test pipeline, or one that needs
            proposals; ``batch_size`` or ``prefetch`` is no such number.
    """
    _check_numbers(batch_size, prefetch)
    if is_image(imgs) or not _is_iterable(imgs):  # preparation says that the latter is no image
        sample = preparation(model, channel_order, exif_orientation)(cast('ImageLike', imgs))
        return _predict(model, [(0, sample, collate([sample]))])[0]
    stream = inference_stream(model, imgs, batch_size, prefetch, channel_order, exif_orientation)
    return [result for _, result in stream]


def inference_stream(model: nn.Module, imgs: Iterable[ImageLike], batch_size: int | None = None,
                     prefetch: int | None = None, channel_order: str = 'bgr',
                     exif_orientation: bool | None = None) -> Iterator[tuple[ImageLike, Instances]]:
    """Detect on images as they come, also on an endless stream of them.

    A thread reads ``imgs`` and others prepare the images, a few ahead of the network, which runs in the caller's
    thread. An exception of ``imgs`` or of an image reaches the caller in its turn, after the results of all images
    before it; closing the generator ends the threads (and leaves ``imgs`` alone from then on).

    Args:
        model: of ``init_detector``.
        imgs: read lazily.
        batch_size: as in ``inference_detector``.
        prefetch: as in ``inference_detector``.
        channel_order: as in ``inference_detector``.
        exif_orientation: as in ``inference_detector``.

    Yields:
        each image as it was given, with its result; in order.

    Raises:
        UserError: as ``inference_detector``; what is wrong with the arguments at once.
    """
    _check_numbers(batch_size, prefetch)
    frames = isinstance(imgs, np.ndarray) and imgs.ndim != 3  # (N, H, W, 3), say
    if not _is_iterable(imgs) or is_image(imgs) and not frames:
        raise DataError(f'a stream is a list, tuple or iterator of images, not one {type(imgs).__name__}')
    prepare = preparation(model, channel_order, exif_orientation)  # what is wrong with the config, before any thread
    if batch_size is None:
        batch_size = 1 if next(model.parameters()).device.type == 'cpu' else 8
    ahead = 2 * batch_size if prefetch is None else prefetch
    return _stream(model, prepared_ahead(prepare, imgs, ahead), batch_size)


def _is_iterable(value: object) -> bool:
    return hasattr(value, '__iter__') or hasattr(value, '__getitem__')


def _check_numbers(batch_size: int | None, prefetch: int | None) -> None:
    for name, value, least in (('batch_size', batch_size, 1), ('prefetch', prefetch, 0)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and not (whole and value >= least):
            raise ConfigError(f'{name} is {value!r}; it is a whole number, {least} or more')


def _stream(model: nn.Module, prepared: Generator[tuple[ImageLike, dict], None, None],
            batch_size: int) -> Iterator[tuple[ImageLike, Instances]]:
    images: dict[int, ImageLike] = {}     # given and not yet handed back
    results: dict[int, Instances] = {}
    waiting: dict[int | tuple[int, ...], list[_Waiting]] = {}  # by input size, until a batch of them is full
    turn, failure = 0, None
    with contextlib.closing(prepared):
        for index, item in enumerate(_collated(prepared)):
            if isinstance(item, Exception):
                failure = item
                break
            image, sample, batch = item
            size = index if isinstance(batch, list) else tuple(batch.images.shape[1:])
            group = waiting.setdefault(size, [])
            group.append((index, sample, batch))
            images[index] = image
            if len(group) >= batch_size or isinstance(batch, list):
                results.update(_predict(model, waiting.pop(size) if isinstance(batch, list) else group))
                group.clear()
            if len(images) > 4 * batch_size:  # so that a rare size does not hold up the images after it
                oldest = next((g for g in waiting.values() if g and g[0][0] == turn), [])
                results.update(_predict(model, oldest))
                oldest.clear()
            while turn in results:
                yield images.pop(turn), results.pop(turn)
                turn += 1
    for group in waiting.values():
        results.update(_predict(model, group))
    yield from ((images[index], results[index]) for index in sorted(images))
    if failure is not None:
        raise failure


def _collated(prepared: Iterator[tuple[ImageLike, dict]]) -> Iterator[tuple[ImageLike, dict, _Collated] | Exception]:
    """Each image with its sample and that collated alone: one Batch, or a list of them (views, which stay alone).

    What is raised on the way comes as the last item, so that the images before it are not lost.
    """
    try:
        for image, sample in prepared:
            yield image, sample, collate([sample])
    except Exception as error:
        yield error


_lock = threading.Lock()
_borrowers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()  # of models that were training


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; a model that was training goes back to it when the last thread has left."""
    with _lock:
        borrowed = model in _borrowers or model.training
        if borrowed:
            _borrowers[model] = _borrowers.get(model, 0) + 1
            model.eval()
    try:
        yield
    finally:
        with _lock:
            if borrowed:
                _borrowers[model] -= 1
                if not _borrowers[model]:
                    del _borrowers[model]
                    model.train()


def _predict(model: nn.Module, group: Sequence[_Waiting]) -> dict[int, Instances]:
    if not group:
        return {}
    device = next(model.parameters()).device
    batch = group[0][2] if len(group) == 1 else collate([sample for _, sample, _ in group])
    batch = [_moved(view, device) for view in batch] if isinstance(batch, list) else _moved(batch, device)
    with _evaluating(model), torch.no_grad():
        found = model(batch, mode='predict', rescale=True)
    return {index: result for (index, _, _), result in zip(group, found)}


def _moved(batch: Batch, device: torch.device) -> Batch:
    # From page-locked memory the copy to a GPU runs while the host goes on.
    return (batch.pin_memory() if device.type == 'cuda' else batch).to(device)


def show_result_pyplot(model: nn.Module, img: ImageLike, result: Instances | Sequence, score_thr: float = 0.3,
                       title: str = 'result', wait_time: float = 0, palette: PaletteSpec = None,
                       out_file: str | None = None) -> None:
    """Show a result with matplotlib, in a notebook or a window.

    Args:
        model: of ``init_detector``.
        img: file name, (H, W, 3) uint8 in BGR order, the bytes of an image file, or a PIL image.
        result: of ``inference_detector``, or mmdetection 2.x's lists (see ``Instances.from_per_class``).
        score_thr: objects scoring less are not drawn.
        title: of the window.
        wait_time: seconds until the window closes, 0 until it is closed by hand.
        palette: see ``visualization.palette.class_colors``; the model's by default.
        out_file: write the image there, too.
    """
    import matplotlib.pyplot as plt

    from boxdet.visualization.draw import draw_instances, read_image, write_image

    found = result if isinstance(result, Instances) else Instances.from_per_class(result)
    drawn = draw_instances(read_image(img, found.image_size), found, model.CLASSES, score_thr,
                           model.PALETTE if palette is None else palette,
                           skeleton=getattr(model, 'skeleton', ()))
    if out_file is not None:
        write_image(drawn, out_file)
    height, width = drawn.shape[:2]
    figure = plt.figure(num=title, figsize=(12, 12 * height / width))
    # Matplotlib takes a list.
    figure.add_axes([0, 0, 1, 1], frameon=False, xticks=[], yticks=[]).imshow(drawn[:, :, ::-1])  # type: ignore[call-overload]
    if wait_time:
        plt.show(block=False)
        plt.pause(wait_time)
        plt.close(figure)
    else:
        plt.show()
