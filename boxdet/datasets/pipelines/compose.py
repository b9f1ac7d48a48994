"""Compose: the transforms of a pipeline one after the other, for one view or several, and what can wait for the device.

Normalising an image makes four bytes of each of its bytes. When all that follows ``Normalize`` only moves pixels
(``Pad``, ``RandomFlip``, formatting, ``Collect``), it waits, and the image stays uint8 (H, W, 3) to the end. The
loader takes this *compact* sample; ``structures.batch`` normalises and pads on the device. Whoever calls the pipeline
or indexes the data set gets the finished image, normalised and padded in one pass. The numbers are the same.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from boxdet.abilities import ability
from boxdet.datasets.pipelines.color import normalize
from boxdet.datasets.pipelines.formatting import image_to_tensor
from boxdet.errors import ConfigError
from boxdet.registry import PIPELINES


class Compose:
    """A pipeline.

    Args:
        transforms: configs for the registry, or callables that take and return a sample.
    """

    def __init__(self, transforms: Sequence[Any]):
        self.transforms: list[Callable] = [PIPELINES.build(t) for t in transforms]
        for transform in self.transforms:
            if not callable(transform):
                raise TypeError(f'a transform is a config with a type, or callable: {transform!r}')
        self._defer_from = _deferrable_from(self.transforms)
        self._take_compact = [ability(transform, 'takes_compact') for transform in self.transforms]
        self._deferred = [ability(transform, 'defer') or transform for transform in self.transforms]

    def __call__(self, results: dict, compact: bool = False) -> dict | None:
        """Run the pipeline; None as soon as a transform returns None.

        Args:
            results: the sample, which is changed.
            compact: leave the image uint8 (H, W, 3) BGR where that can be, for ``datasets.collate``.
        """
        for position, transform in enumerate(self.transforms):
            if position == self._defer_from and _is_plain_image(results):
                deferred = self._run_deferred(results)
                return deferred if compact or deferred is None else finish_image(deferred)
            if compact and self._take_compact[position]:
                results = transform(results, compact=True)
            else:
                results = transform(results)
            if results is None:
                return None
        return results

    def _run_deferred(self, results: dict) -> dict | None:
        results['pad_shape'] = results['img'].shape
        for transform in self._deferred[self._defer_from:]:
            results = transform(results)
            if results is None:
                return None
        return results

    def __repr__(self) -> str:
        return f"Compose({', '.join(type(t).__name__ for t in self.transforms)})"


@PIPELINES.register_module()
class MultiScaleFlipAug:
    """Run ``transforms`` once for each scale and flip; every key becomes a list, one entry a view.

    Args:
        transforms: configs; they hold a Resize and a RandomFlip that take what is set here.
        img_scale: one (w, h) or several; or else
        scale_factor: one factor or several.
        flip: also flipped views.
        flip_direction: one or several of 'horizontal', 'vertical', 'diagonal'.
    """
    takes_compact = True

    def __init__(self, transforms: Sequence[Any], img_scale: Any = None, scale_factor: Any = None, flip: bool = False,
                 flip_direction: str | Sequence[str] = 'horizontal'):
        if (img_scale is None) == (scale_factor is None):
            raise ConfigError('MultiScaleFlipAug needs either img_scale or scale_factor')
        self.transforms = Compose(transforms)
        if img_scale is not None:
            self.scale_key = 'scale'
            self.img_scale = list(img_scale) if isinstance(img_scale[0], Sequence) else [img_scale]
            if not all(len(scale) == 2 for scale in self.img_scale):
                raise ConfigError(f'MultiScaleFlipAug.img_scale is (w, h) or a list of them, not {img_scale}')
            self.img_scale = [tuple(scale) for scale in self.img_scale]
        else:
            self.scale_key = 'scale_factor'
            self.img_scale = list(scale_factor) if isinstance(scale_factor, Sequence) else [float(scale_factor)]
        self.flip = flip
        self.flip_direction = [flip_direction] if isinstance(flip_direction, str) else list(flip_direction)

    def __call__(self, results: dict, compact: bool = False) -> dict[str, list] | None:
        """The views of a sample (see the class); None where a transform drops one."""
        flips = [(False, None)] + ([(True, d) for d in self.flip_direction] if self.flip else [])
        views = []
        for scale in self.img_scale:
            for flip, direction in flips:
                # The transforms write into the sample: arrays they replace, lists of keys they may append to.
                view = {key: list(value) if isinstance(value, list) else value for key, value in results.items()}
                view.update({self.scale_key: scale, 'flip': flip, 'flip_direction': direction})
                made = self.transforms(view, compact=compact)
                if made is None:
                    return None
                views.append(made)
        return {key: [view[key] for view in views] for key in views[0]}


def finish_image(results: dict) -> dict:
    """Normalise and pad the image of a compact sample: a float32 tensor (3, H, W)."""
    meta = results['img_metas']
    norm = meta['img_norm_cfg']
    image = normalize(results['img'], norm['mean'], norm['std'], norm['to_rgb'], meta['pad_shape'][:2])
    return {**results, 'img': image_to_tensor(image)}


def _deferrable_from(transforms: Sequence[Callable]) -> int | None:
    """Where ``Normalize`` stands when it and all after it may be deferred, else None.

    A transform allows it by ``can_defer``, and ``defer``, where it has one, is called in its place (``abilities``).
    """
    at = next((i for i, t in enumerate(transforms) if type(t).__name__ == 'Normalize'), None)
    if at is None:
        return None
    if not all(ability(t, 'can_defer') for t in transforms[at:]):
        return None
    # Collect is what tells the loader how to normalise: without it the image must be finished here.
    return at if type(transforms[-1]).__name__ == 'Collect' else None


def _is_plain_image(results: dict) -> bool:
    """Only a uint8 colour image without padding normalises to the same numbers later."""
    image = results.get('img')
    return (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            and results.get('img_fields', ['img']) == ['img'] and image.shape == results.get('img_shape'))
