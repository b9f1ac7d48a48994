"""Several views of one test image."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from boxdet.datasets.pipelines.compose import Compose
from boxdet.errors import ConfigError
from boxdet.registry import PIPELINES


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

    def __call__(self, results: dict, compact: bool = False) -> dict[str, list]:
        """Change the sample (see the class)."""
        flips = [(False, None)] + ([(True, d) for d in self.flip_direction] if self.flip else [])
        views = []
        for scale in self.img_scale:
            for flip, direction in flips:
                # The transforms write into the sample: arrays they replace, lists of keys they may append to.
                view = {key: list(value) if isinstance(value, list) else value for key, value in results.items()}
                view.update({self.scale_key: scale, 'flip': flip, 'flip_direction': direction})
                views.append(self.transforms(view, compact=compact))
        return {key: [view[key] for view in views] for key in views[0]}
