"""Transforms: each takes a sample dict (see ``datasets.sample_keys``) and returns it changed, or None to drop it.

Each name is imported when it is asked for.
"""
from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    'AutoAugment': 'auto_augment', 'Rotate': 'auto_augment', 'Shear': 'auto_augment', 'Translate': 'auto_augment',
    'Albu': 'libraries', 'Corrupt': 'libraries', 'InstaBoost': 'libraries',
    'BrightnessTransform': 'color', 'ColorTransform': 'color', 'ContrastTransform': 'color', 'CutOut': 'color',
    'EqualizeTransform': 'color', 'GeometricTransform': 'geometric', 'RandomAffine': 'geometric',
    'RandomShift': 'geometric', 'Mosaic': 'mixing', 'MixUp': 'mixing',
    'Normalize': 'color', 'PhotoMetricDistortion': 'color', 'Compose': 'compose', 'Collect': 'formatting',
    'DefaultFormatBundle': 'formatting', 'ImageToTensor': 'formatting', 'ToDataContainer': 'formatting',
    'ToTensor': 'formatting', 'Transpose': 'formatting', 'WrapFieldsToLists': 'formatting', 'AspectCrop': 'geometric',
    'Expand': 'geometric',
    'MinIoURandomCrop': 'geometric', 'Pad': 'geometric', 'RandomCrop': 'geometric', 'RandomFlip': 'geometric',
    'Resize': 'geometric', 'SegRescale': 'geometric', 'FilterAnnotations': 'loading', 'LoadAnnotations': 'loading',
    'LoadImageFromFile': 'loading', 'LoadImageFromWebcam': 'loading', 'LoadProposals': 'loading',
    'LoadMultiChannelImageFromFiles': 'loading',
    'CopyPaste': 'mixing', 'MultiScaleFlipAug': 'compose',
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f'{__name__}.{_WHERE[name]}'), name)
