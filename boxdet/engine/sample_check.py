"""Does the pipeline make of an image what the model reads? One sample is made before the first step to see."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from boxdet.datasets.pipelines.color import Normalize
from boxdet.engine.environment import random_states, set_random_states
from boxdet.engine.findings import Finding
from boxdet.engine.model_check import image_channels
from boxdet.errors import DataError

_OF_ARRAYS = tuple(f'boxdet.datasets.pipelines.{name}' for name in (
    'auto_augment', 'color', 'geometric', 'libraries', 'loading', 'mixing'))  # and not of tensors
_TRIES = 8  # images that cannot be read may be skipped (on_error='skip')


def training_sample_findings(model: nn.Module, dataset: Any, name: str = 'data.train') -> Iterator[Finding]:
    """What a sample of the training set lacks of what the model learns from.

    Args:
        model: what learns from it.
        dataset: the training set, in its wrappers.
        name: what to call the data.

    Raises:
        DataError: an image or annotation that cannot be read, where that ends a training.
    """
    misplaced = list(_misplaced(dataset, name))
    if misplaced:  # no sample can be made
        yield from misplaced
        return
    try:
        sample = _sample(dataset)
    except KeyError:  # a transform that needs what the pipeline has not loaded
        sample = None
    steps = _steps(dataset)
    if sample is None:
        if steps and 'LoadAnnotations' not in steps and any(step.startswith('Load') for step in steps):
            yield Finding('pipeline.phase', (
                f'{name}.pipeline loads no annotations: it is one for testing; set it to the '
                'train_pipeline (LoadAnnotations)'))
        return
    if isinstance(sample.get('img'), (list, tuple)):
        yield Finding('pipeline.phase', (
            f'{name}.pipeline is one for testing (MultiScaleFlipAug makes views of an image): '
            'set it to the train_pipeline'))
        return
    if _is_empty(dataset, sample):
        yield Finding('pipeline.keys', f'{name}.pipeline is empty, and loads no image: set it to the train_pipeline')
        return
    for key, part, remedy in _wanted(model):
        if key not in sample:
            yield Finding('pipeline.keys', (
                f"{name}: its samples have no '{key}', which {part} learns from: {remedy}"))
    yield from _normalized(dataset, name)
    image, channels = sample.get('img'), image_channels(model)
    if isinstance(image, torch.Tensor) and image.dim() == 3 and channels not in (None, image.shape[0]):
        yield Finding('model.image-channels', (
            f'model.backbone reads images of {channels} channels (in_channels), and those '
            f"of {name} have {image.shape[0]}: set model.backbone.in_channels, or "
            "LoadImageFromFile's color_type"))


def evaluated_sample_findings(dataset: Any, name: str) -> Iterator[Finding]:
    """Whether the pipeline of a data set that is evaluated (called ``name``) is in order, and not one for training."""
    misplaced = list(_misplaced(dataset, name))
    if misplaced:
        yield from misplaced
        return
    steps = _steps(dataset)
    augments = 'LoadAnnotations' in steps
    try:
        sample = _sample(dataset)
    except KeyError:  # a user's data set may bring the annotations
        if augments:
            yield _for_training(name)
        return
    if sample is not None and 'img' not in sample:
        yield Finding('pipeline.keys', (
            f'{name}.pipeline is empty, and loads no image: set it to the test_pipeline' if _is_empty(dataset, sample)
            else f"{name}: its samples have no 'img', which the model reads: name it in Collect(keys=[…])"))
    elif sample is not None and augments and not isinstance(sample.get('img'), (list, tuple)) and 'gt_bboxes' in sample:
        yield _for_training(name)


def compared_normalization(dataset: Any, validation: Any) -> Iterator[Finding]:
    """Whether images of the training set and those that are evaluated are normalised alike."""
    ours, theirs = (normalizing_steps(one) for one in (dataset, validation))
    if len(ours) == len(theirs) == 1 and _numbers(ours[0]) != _numbers(theirs[0]):
        yield Finding('pipeline.normalize', (
            f'data.val normalises images by {_numbers(theirs[0])}, and data.train by {_numbers(ours[0])} (mean, std, '
            'to_rgb): the model would see other colours; set both to one img_norm_cfg'))


def _normalized(dataset: Any, name: str) -> Iterator[Finding]:
    steps = normalizing_steps(dataset)
    if len(steps) > 1:
        yield Finding('pipeline.normalize', f'{name}.pipeline normalises images {len(steps)} times: take one out')
    elif steps and max(steps[0].mean.max(), steps[0].std.max()) <= 1:
        yield Finding('pipeline.normalize', (
            f'{name}.pipeline: Normalize has mean {steps[0].mean.tolist()} and std {steps[0].std.tolist()}, numbers of '
            'images from 0 to 1, and these go to 255: multiply both by 255'))


def _misplaced(dataset: Any, name: str) -> Iterator[Finding]:
    """Transforms of images behind the one that makes tensors of them."""
    formats = ''
    for step in _all_steps(dataset):
        kind = type(step)
        if kind.__name__ in ('DefaultFormatBundle', 'ImageToTensor', 'ToDataContainer'):
            formats = kind.__name__
        elif formats and kind.__module__ in _OF_ARRAYS:
            yield Finding('pipeline.keys', f'{name}.pipeline has {kind.__name__} behind {formats}, which makes tensors '
                                           f'of images and boxes: put {kind.__name__} before it')


def normalizing_steps(dataset: Any) -> list[Normalize]:
    """The ``Normalize`` of a data set's pipeline, those of its test-time augmentation among them."""
    return [step for step in _all_steps(dataset) if isinstance(step, Normalize)]


def _all_steps(dataset: Any) -> list[Any]:
    """The transforms of a data set inside its wrappers, in order, those inside others too."""
    def inside(steps: Any) -> Iterator[Any]:
        transforms = getattr(steps, 'transforms', ())
        for step in transforms if isinstance(transforms, (list, tuple)) else getattr(transforms, 'transforms', ()):
            yield step
            if type(step).__name__ in ('MultiScaleFlipAug', 'Compose'):
                yield from inside(step)
    return list(inside(getattr(_innermost(dataset), 'pipeline', None)))


def _numbers(step: Normalize) -> tuple[list[float], list[float], bool]:
    return [round(float(v), 4) for v in step.mean], [round(float(v), 4) for v in step.std], bool(step.to_rgb)


def _for_training(name: str) -> Finding:
    return Finding('pipeline.phase', f'{name}.pipeline is one for training (LoadAnnotations): results are made without '
                                     'annotations; set it to the test_pipeline (MultiScaleFlipAug)')


def _wanted(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(key, the part that needs it, what to do) of what the model asks of a sample; a user's model may not tell."""
    collect = 'name it in Collect(keys=[…])'
    yield 'img', 'the model', collect
    if not hasattr(model, 'with_rpn') and not hasattr(model, 'with_roi_head'):
        return
    part = 'model.rpn_head' if getattr(model, 'with_rpn', False) else 'model.roi_head'
    yield 'gt_bboxes', part, f'load it (LoadAnnotations: with_bbox=True), and {collect}'
    if getattr(model, 'with_bbox', False):
        yield 'gt_labels', 'model.roi_head.bbox_head', f'load it (LoadAnnotations: with_label=True), and {collect}'
        if not getattr(model, 'with_rpn', False):
            yield 'proposals', 'model.roi_head', f'load it (data.*.proposal_file, LoadProposals), and {collect}'
    if getattr(model, 'with_mask', False):
        yield 'gt_masks', 'model.roi_head.mask_head', f'load it (LoadAnnotations: with_mask=True), and {collect}'
    if getattr(model, 'with_keypoint', False):
        yield ('gt_keypoints', 'model.roi_head.keypoint_head',
               f'load it (LoadAnnotations: with_keypoint=True), and {collect}')


def _sample(dataset: Any) -> dict | None:
    """A sample as a training or a test gets it; random numbers are as before. None where there is none to see."""
    if not hasattr(dataset, '__getitem__') or not len(dataset):
        return None
    states = random_states()
    try:
        for index in range(min(len(dataset), _TRIES)):
            try:
                sample = dataset[index]
            except DataError:
                if not _skips_errors(dataset):
                    raise
                continue
            return sample if isinstance(sample, dict) else None
    finally:
        set_random_states(states)
    return None


def _is_empty(dataset: Any, sample: dict) -> bool:
    pipeline = getattr(_innermost(dataset), 'pipeline', None)
    return 'img' not in sample and list(getattr(pipeline, 'transforms', (None,))) == []


def _skips_errors(dataset: Any) -> bool:
    return getattr(_innermost(dataset), 'on_error', 'raise') == 'skip'


def _innermost(dataset: Any) -> Any:
    """The data set inside its wrappers; the first of several."""
    while hasattr(dataset, 'dataset') or getattr(dataset, 'datasets', None):
        dataset = dataset.dataset if hasattr(dataset, 'dataset') else dataset.datasets[0]
    return dataset


def _steps(dataset: Any) -> list[str]:
    """The names of the transforms, those of a data set inside a wrapper first, and those inside others behind them."""
    names = []
    inner = getattr(dataset, 'dataset', None) or next(iter(getattr(dataset, 'datasets', ())), None)
    if inner is not None:
        names += _steps(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    return names + [type(step).__name__ for step in getattr(pipeline, 'transforms', None) or ()]
