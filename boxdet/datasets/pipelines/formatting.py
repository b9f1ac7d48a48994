"""The end of a pipeline: tensors, and what of the sample is handed on.

A transform with ``can_defer`` may run after a ``Normalize`` that waits for the device (see ``pipelines.compose``).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from boxdet.errors import ConfigError, nearest
from boxdet.registry import PIPELINES

META_KEYS = ('filename', 'ori_filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip',
             'flip_direction', 'img_norm_cfg')
UNKNOWN_CLASS = 255  # in semantic maps
PAD_VAL = dict(img=0, masks=0, seg=UNKNOWN_CLASS)
_TENSOR_KEYS = ('proposals', 'gt_bboxes', 'gt_bboxes_ignore', 'gt_labels', 'gt_keypoints')


def to_tensor(data: Any) -> torch.Tensor:
    """A tensor from an array, a sequence or a number; arrays share their memory with it.

    Raises:
        TypeError: text, or another type.
    """
    if isinstance(data, torch.Tensor):
        return data
    if isinstance(data, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(data))
    if isinstance(data, (int, float)) or isinstance(data, Sequence) and not isinstance(data, str):
        return torch.tensor(data)
    raise TypeError(f'cannot make a tensor of {type(data).__name__}')


def image_to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) or (H, W) to (C, H, W), in the same memory (channels last)."""
    image = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _require(results: dict, keys: Sequence[str], who: str) -> None:
    for key in keys:
        if key not in results:
            raise ConfigError(f"{who}: the sample has no '{key}'{nearest(key, results)}")


def _add_default_meta(results: dict) -> None:
    """What a pipeline without Resize, Pad or Normalize leaves unsaid."""
    image = results['img']
    channels = 1 if image.ndim < 3 else image.shape[2]
    results.setdefault('pad_shape', image.shape)
    results.setdefault('scale_factor', 1.0)
    results.setdefault('img_norm_cfg', dict(mean=np.zeros(channels, dtype=np.float32),
                                            std=np.ones(channels, dtype=np.float32), to_rgb=False))


def _format_annotations(results: dict) -> None:
    for key in _TENSOR_KEYS:
        if key in results:
            results[key] = to_tensor(results[key])
    if 'gt_semantic_seg' in results:
        classes = results['gt_semantic_seg']
        # torch computes nothing in uint16, which PNG files have.
        classes = classes.astype(np.int32) if classes.dtype == np.uint16 else classes
        results['gt_semantic_seg'] = to_tensor(classes[None])


@PIPELINES.register_module()
class DefaultFormatBundle:
    """Images to (C, H, W) tensors, boxes and labels to tensors, semantic maps to (1, h, w); masks stay as they are.

    Args:
        img_to_float: uint8 images become float32.
        pad_val: what a batch is filled up with, ``dict(img=0, masks=0, seg=255)``; images and masks know 0 only.

    Raises:
        ConfigError: another ``pad_val`` for them, or another key.
    """
    can_defer = True

    def __init__(self, img_to_float: bool = True, pad_val: Mapping[str, int] | None = None):
        self.pad_val = {**PAD_VAL, **(pad_val or {})}
        for key, value in self.pad_val.items():
            if key not in PAD_VAL:
                raise ConfigError(f"DefaultFormatBundle.pad_val knows no '{key}'{nearest(key, PAD_VAL)}")
            if key != 'seg' and value != 0:
                raise ConfigError(f'DefaultFormatBundle.pad_val: batches are filled up with 0, not with {pad_val}')
        self.img_to_float = img_to_float

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        if 'img' in results:
            image = results['img']
            if self.img_to_float and image.dtype == np.uint8:
                image = image.astype(np.float32)
            _add_default_meta(results)
            results['img'] = image_to_tensor(image)
        return self._format_rest(results)

    def defer(self, results: dict) -> dict:
        """As a call, but the image stays (H, W, 3) uint8."""
        _add_default_meta(results)
        return self._format_rest(results)

    def _format_rest(self, results: dict) -> dict:
        _format_annotations(results)
        if 'gt_semantic_seg' in results:
            results['seg_pad_val'] = self.pad_val['seg']
        return results


@PIPELINES.register_module()
class ImageToTensor:
    """Images under ``keys`` from (H, W, C) to (C, H, W) tensors."""
    can_defer = True

    def __init__(self, keys: Sequence[str]):
        self.keys = list(keys)

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        for key in self.keys:
            results[key] = image_to_tensor(results[key])
        return results

    def defer(self, results: dict) -> dict:
        """As a call, but the image stays (H, W, 3) uint8."""
        return results


def replace_ImageToTensor(pipeline: Sequence[dict]) -> list[dict]:
    """A copy of a test pipeline's configs with DefaultFormatBundle in the place of ImageToTensor, for batches."""
    replaced = []
    for transform in pipeline:
        transform = dict(transform)
        if transform['type'] == 'MultiScaleFlipAug':
            transform['transforms'] = replace_ImageToTensor(transform['transforms'])
        elif transform['type'] == 'ImageToTensor':
            transform = dict(type='DefaultFormatBundle')
        replaced.append(transform)
    return replaced


@PIPELINES.register_module()
class ToTensor:
    """Values under ``keys`` to tensors as they are."""

    def __init__(self, keys: Sequence[str]):
        self.keys = list(keys)

    @property
    def can_defer(self) -> bool:
        """An image that waits for the device is no tensor yet."""
        return 'img' not in self.keys

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        for key in self.keys:
            results[key] = to_tensor(results[key])
        return results


_CONTAINER_OPTIONS = ('key', 'stack', 'padding_value', 'cpu_only', 'pad_dims')


@PIPELINES.register_module()
class ToDataContainer:
    """Checks that the sample holds what 2.x wraps in containers here; the sample itself stays as it is.

    A container told 2.x's collate how to put values together. Here ``datasets.collate`` knows by key: images are
    filled up with zeros and stacked, everything else stays one an image, and ``img_metas`` stay on the CPU.

    Args:
        fields: dicts with a 'key' and DataContainer's options, e.g. ``[dict(key='proposals', stack=False)]``.

    Raises:
        ConfigError: an unknown option; 'stack' for anything but images; another 'padding_value' than 0; a key that
            the sample does not hold.
    """
    can_defer = True

    def __init__(self, fields: Sequence[Mapping[str, Any]] = (dict(key='img', stack=True), dict(key='gt_bboxes'),
                                                              dict(key='gt_labels'))):
        for field in fields:
            if 'key' not in field:
                raise ConfigError(f"ToDataContainer.fields: {dict(field)} names no 'key'")
            for option in field:
                if option not in _CONTAINER_OPTIONS:
                    raise ConfigError(f"ToDataContainer.fields: '{field['key']}' takes no '{option}'"
                                      f'{nearest(option, _CONTAINER_OPTIONS)}')
            if field.get('stack') and not field['key'].startswith('img'):
                raise ConfigError(f"ToDataContainer.fields: '{field['key']}' is not stacked: only images are")
            if field.get('padding_value', 0) != 0:
                raise ConfigError('ToDataContainer.fields: batches are filled up with 0, not with '
                                  f"{field['padding_value']}")
        self.keys = [field['key'] for field in fields]

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        _require(results, self.keys, 'ToDataContainer')
        return results


@PIPELINES.register_module()
class Transpose:
    """Arrays under ``keys`` with their axes in the given ``order``."""

    def __init__(self, keys: Sequence[str], order: Sequence[int]):
        self.keys = list(keys)
        self.order = tuple(order)

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        for key in self.keys:
            results[key] = results[key].transpose(self.order)
        return results


@PIPELINES.register_module()
class WrapFieldsToLists:
    """Every value into a list of one: a test pipeline without MultiScaleFlipAug then looks like one with it."""

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        return {key: [value] for key, value in results.items()}


@PIPELINES.register_module()
class Collect:
    """Keep ``keys``, and what ``meta_keys`` name in ``img_metas``.

    The id of the image, where the data set knows one, is always among the metas, so that an error can name it.

    Args:
        keys: e.g. ``['img', 'gt_bboxes', 'gt_labels']``.
        meta_keys: which facts about the image to keep.

    Raises:
        ConfigError: a key that the sample does not hold.
    """

    def __init__(self, keys: Sequence[str], meta_keys: Sequence[str] = META_KEYS):
        self.keys = list(keys)
        self.meta_keys = tuple(meta_keys)

    @property
    def can_defer(self) -> bool:
        """Whether it hands on what the device needs to normalise the image."""
        return 'img' in self.keys and {'img_shape', 'pad_shape', 'img_norm_cfg'} <= set(self.meta_keys)

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        _require(results, self.keys, 'Collect')
        # 2.x's own keys may be absent (a pipeline without RandomFlip); ImageMeta knows what that means.
        absent = [key for key in self.meta_keys if key not in results and key not in META_KEYS]
        if absent:
            raise ConfigError(f"Collect.meta_keys: the sample has no '{absent[0]}'{nearest(absent[0], results)}")
        meta = {key: results[key] for key in self.meta_keys if key in results}
        image_id = results.get('img_info', {}).get('id')
        if image_id is not None:
            meta['image_id'] = image_id
        if 'gt_semantic_seg' in self.keys and 'seg_pad_val' in results:
            meta['seg_pad_val'] = results['seg_pad_val']
        collected = {key: results[key] for key in self.keys}
        collected['img_metas'] = meta
        return collected
