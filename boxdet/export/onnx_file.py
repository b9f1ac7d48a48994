"""The graph of a detector as an ONNX file of standard operators."""
from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boxdet.errors import ConfigError
from boxdet.export.graph import DetectionGraph, InputFormat, pasting
from boxdet.export.program import exported
from boxdet.files.writing import write_whole
from boxdet.geometry.keypoints import HALF_PIXEL

OPSET = 18
_LARGEST = 1 << 31  # bytes that one protobuf file can hold


@dataclass(frozen=True)
class Labels:
    """What results mean in the files of the data set.

    Args:
        category_ids: of the K labels; empty where nothing tells them: they are 1 to K then.
        keypoint_offset: pixels from the file's keypoints to ours, see ``Instances.to_coco``.
    """
    category_ids: Sequence[int] = ()
    keypoint_offset: float = HALF_PIXEL


def write_onnx(model: nn.Module, path: str | os.PathLike, inputs: InputFormat, shape: tuple[int, int] | None = None,
               batch: int | None = None, float_input: bool = False, precision: str = 'fp32', masks: str = 'logits',
               exact: bool = False, labels: Labels = Labels()) -> Path:
    """Write a detector as an ONNX file.

    Args:
        model: a two-stage detector; it is not changed.
        path: of the file.
        inputs: what its network wants.
        shape: (height, width) of the images; None for any.
        batch: number of images; None for any.
        float_input: images are float32 in [0, 255], and not uint8.
        precision: see ``DetectionGraph``.
        masks: likewise.
        exact: likewise.
        labels: what the results mean in the data set's files.

    Returns:
        ``path``.

    Raises:
        ConfigError: what ``DetectionGraph`` refuses, an operator that ONNX has not, or packages that are missing.
        DataError: the file cannot be written.
    """
    _need_packages()
    graph = DetectionGraph(model, inputs, masks=masks, exact=exact, precision=precision)
    program = exported(graph, shape, batch, float_input)
    with _quiet():
        try:
            made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET,
                                     input_names=['images', 'sizes'], output_names=graph.output_names,
                                     custom_translation_table=_translations())
        except torch.onnx.OnnxExporterError as error:
            raise ConfigError(f'export: ONNX has no operator for a part of this model: {_reason(error)}') from error
    assert made is not None  # it is with dynamo=True
    content = made.model_proto
    content.metadata_props.add(key='boxdet', value=json.dumps(description(model, graph, labels)))
    if content.ByteSize() >= _LARGEST:
        raise ConfigError(f'export: the model has {content.ByteSize() >> 20} MB; an ONNX file holds 2 GB')
    return write_whole(path, content.SerializeToString())


def description(model: nn.Module, graph: DetectionGraph, labels: Labels = Labels()) -> dict[str, object]:
    """What a program needs to know to use the graph: how images are resized, and what the labels mean."""
    masks = pasting(model)
    return dict(
        format=1, scale=graph.inputs.scale, keep_ratio=graph.inputs.keep_ratio, channels='RGB',
        classes=list(model.CLASSES or ()), categories=list(labels.category_ids),
        masks=graph.masks if model.with_mask else None, exact=graph.exact, outputs=graph.output_names,
        mask_threshold=masks['threshold'], whole_pixels=masks['whole_pixels'],
        keypoint_offset=labels.keypoint_offset)


def _translations() -> dict:
    from onnxscript import opset18
    op: Any = opset18  # its types want tensors of one type, and a constant has any

    def translated(boxes, scores, threshold: float):
        """NonMaxSuppression tells places (image, group, box): a mask of the boxes is written from them."""
        most = op.Constant(value_ints=[1 << 30])
        chosen = op.NonMaxSuppression(boxes, scores, most, op.Constant(value_floats=[threshold]),
                                      op.Constant(value_floats=[-0.5]))                  # (M, 3)
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)               # (M, 2)
        ones = op.Cast(op.ReduceMax(op.Add(op.Mul(places, op.Constant(value_int=0)), op.Constant(value_int=1)),
                                    op.Constant(value_ints=[1]), keepdims=0), to=1)      # (M,) of 1.0
        empty = op.Mul(op.ReduceMax(scores, op.Constant(value_ints=[1]), keepdims=0), op.Constant(value_float=0.0))
        return op.Greater(op.ScatterND(empty, places, ones), op.Constant(value_float=0.5))

    return {torch.ops.boxdet.nms_by_group.default: translated}


def _need_packages() -> None:
    missing = [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]
    if missing:
        raise ConfigError(f"export to ONNX needs {' and '.join(missing)}: pip install boxdet[export]")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's account of its own steps."""
    level = logging.getLogger('torch.onnx').level
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.getLogger('torch.onnx').setLevel(level)


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return ' '.join(str(error).split())[:300]
