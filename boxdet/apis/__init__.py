"""What a user imports. Each name is loaded when it is first asked for: the import itself costs nothing."""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asynchronous import async_inference_detector, concurrent
    from .det_inferencer import DetInferencer
    from .export import export_onnx, export_program
    from .inference import fuse_conv_bn, inference_detector, inference_stream, init_detector, show_result_pyplot
    from .test import multi_gpu_test, single_gpu_test
    from .train import set_random_seed, train_detector

_HOMES = dict(DetInferencer='det_inferencer', init_detector='inference', inference_detector='inference',
              inference_stream='inference',
              async_inference_detector='asynchronous', concurrent='asynchronous', show_result_pyplot='inference',
              fuse_conv_bn='inference', single_gpu_test='test', multi_gpu_test='test',
              train_detector='train', set_random_seed='train', export_onnx='export', export_program='export')

__all__ = ['DetInferencer', 'async_inference_detector', 'concurrent', 'export_onnx', 'export_program', 'fuse_conv_bn',
           'inference_detector', 'inference_stream', 'init_detector', 'multi_gpu_test', 'set_random_seed',
           'show_result_pyplot', 'single_gpu_test', 'train_detector']


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
