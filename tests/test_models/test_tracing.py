"""TorchScript would keep one image's numbers as constants: it is refused, with the ways that work."""
from __future__ import annotations

import importlib
import io
import re

import pytest
import torch
from torch import nn

from boxdet.errors import ConfigError
from boxdet.models import build_detector
from boxdet.models.necks.fpn import FPN
from boxdet.structures.batch import Batch
from tests.test_models import tiny_models as tiny

IMAGES = torch.zeros(1, 3, 64, 96)


class Part(nn.Module):
    """What people wrap a detector in before they trace it."""

    def __init__(self, model: nn.Module, way: str):
        super().__init__()
        self.model, self.way = model, way

    def forward(self, images: torch.Tensor):
        if self.way == 'extract_feat':
            return self.model.extract_feat(images)
        batch = Batch(images, [tiny.meta(64, 96)])
        if self.way == 'predict':
            found = self.model.predict(batch)[0]
            return found.bboxes, found.scores
        return self.model(batch, mode='predict')[0].bboxes


@pytest.fixture(scope='module')
def model():
    return build_detector(tiny.faster_rcnn()).eval()


@pytest.mark.parametrize('way', ['extract_feat', 'predict', 'forward'])
@pytest.mark.parametrize('tool', ['trace', 'legacy'])
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')
def test_tracing_is_refused_in_one_line(model, way, tool):
    part = Part(model, way).eval()
    with torch.no_grad(), pytest.raises(ConfigError, match='wrong boxes on other images: export it with') as caught:
        if tool == 'trace':
            torch.jit.trace(part, IMAGES)
        else:
            torch.onnx.export(part, (IMAGES,), io.BytesIO(), dynamo=False, opset_version=17)
    assert '\n' not in str(caught.value)


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')
def test_the_detector_itself_is_neither_traced_nor_scripted(model):
    with pytest.raises(ConfigError, match='export_onnx'):
        torch.jit.trace(model, IMAGES)
    with pytest.raises(ConfigError, match='torch.jit.script cannot read a detector: export it'):
        torch.jit.script(model)


def test_a_tensor_is_answered_with_what_takes_one(model):
    with pytest.raises(TypeError, match='FasterRCNN takes a Batch and not a tensor.*inference_detector.*export_onnx'):
        model(IMAGES)


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning', 'ignore::torch.jit.TracerWarning')
def test_a_traced_pyramid_gives_the_same_levels():
    neck = FPN([4, 8], 4, 3).eval()
    levels = [torch.rand(1, 4, 16, 24), torch.rand(1, 8, 8, 12)]
    with torch.no_grad():
        expected, traced = neck(list(levels)), torch.jit.trace(neck, (levels,), check_trace=False)
        for one, other in zip(expected, traced(levels)):
            torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings('ignore')
def test_a_pyramid_by_the_legacy_exporter_gives_the_same_levels(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    neck = FPN([4, 8, 8], 4, 4).eval()
    levels = [torch.rand(1, 4, 16, 24), torch.rand(1, 8, 8, 12), torch.rand(1, 8, 4, 6)]
    path = str(tmp_path / 'neck.onnx')
    with torch.no_grad():
        expected = neck(list(levels))
        torch.onnx.export(neck, (levels,), path, dynamo=False, opset_version=17, input_names=['a', 'b', 'c'])
    found = onnxruntime.InferenceSession(path).run(None, {name: level.numpy() for name, level in zip('abc', levels)})
    assert len(found) == len(expected) == 4
    for one, other in zip(expected, found):
        torch.testing.assert_close(one, torch.from_numpy(other))


def test_the_advice_exists(model):
    with pytest.raises(TypeError) as caught:
        model(IMAGES)
    apis = importlib.import_module('boxdet.apis')
    for name in re.findall(r'export_\w+', str(caught.value)):
        assert callable(getattr(apis, name))
