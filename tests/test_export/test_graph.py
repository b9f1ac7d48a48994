"""The graph of a detector, as a module and as files, gives what the detector gives."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from boxdet.apis.export import add_batch
from boxdet.errors import ConfigError
from boxdet.export.graph import DetectionGraph, InputFormat
from boxdet.export.onnx_file import write_onnx
from boxdet.export.parity import TOLERANCES, Parity
from boxdet.export.program import write_program
from boxdet.export.suppression import ProgramSuppression
from boxdet.models import build_detector
from boxdet.structures.batch import Batch
from tests.test_models import tiny_models as tiny

INPUTS = InputFormat([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], divisor=32, scale=(160, 96))
BGR = InputFormat([103.53, 116.28, 123.675], [57.375, 57.12, 58.395], rgb=False, divisor=32)
SIZES = [(96, 128), (83, 101)]


def detector(name: str = 'faster_rcnn', **rcnn):
    torch.manual_seed(0)
    cfg = getattr(tiny, name.removeprefix('small_'))()
    cfg = two_levels(cfg) if name.startswith('small_') else cfg
    cfg['test_cfg']['rcnn'] |= rcnn
    model = build_detector(cfg)
    model.init_weights()
    for part in model.modules():  # far enough from one another that no two results tie
        if hasattr(part, 'fc_cls'):
            torch.nn.init.normal_(part.fc_cls.weight, std=0.5)
    return model.eval()


def two_levels(cfg: dict) -> dict:
    """With a body of two stages: half of the operators to follow."""
    cfg['backbone'] |= dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    cfg['neck'] |= dict(in_channels=[8, 16], num_outs=2)
    cfg['rpn_head']['anchor_generator'] |= dict(strides=[4, 8])
    for name, part in cfg['roi_head'].items():
        if name.endswith('_roi_extractor'):
            part |= dict(featmap_strides=[4, 8])
    return cfg


def images(sizes=SIZES) -> torch.Tensor:
    """(B, 3, H, W) uint8, noise also beyond the images' sizes."""
    height, width = (max(side) for side in zip(*sizes))
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 255, (len(sizes), 3, height, width), dtype=np.uint8))


def expected(model, pixels: torch.Tensor, sizes, inputs=INPUTS):
    """The detector's results, of each image alone, prepared as a pipeline does it."""
    results = []
    for image, (height, width) in zip(pixels, sizes):
        image = image[:, :height, :width].float()
        image = image if inputs.rgb else image.flip(0)
        image = (image - torch.tensor(inputs.mean)[:, None, None]) / torch.tensor(inputs.std)[:, None, None]
        padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
        padded[0, :, :height, :width] = image
        results += model.predict(Batch(padded, [tiny.meta(height, width)]), rescale=False)
    return results


def compare(model, outputs: dict, pixels, sizes=SIZES, inputs=INPUTS, parity: Parity | None = None) -> Parity:
    parity = parity or Parity()
    add_batch(parity, expected(model, pixels, sizes, inputs),
              {name: np.asarray(value) for name, value in outputs.items()}, model)
    return parity


def run(graph: DetectionGraph, pixels: torch.Tensor, sizes=SIZES) -> dict:
    with torch.no_grad():
        return dict(zip(graph.output_names, graph(pixels, torch.tensor(sizes))))


@pytest.mark.parametrize('name', ['faster_rcnn', 'mask_rcnn', 'cascade_mask_rcnn', 'c4_mask_rcnn', 'keypoint_rcnn'])
@pytest.mark.parametrize('inputs', [INPUTS, BGR], ids=['rgb', 'bgr'])
def test_the_module_gives_what_the_detector_gives(name, inputs):
    model, pixels = detector(name), images()
    found = run(DetectionGraph(model, inputs), pixels)
    parity = compare(model, found, pixels, inputs=inputs)
    assert parity.detections > 10 and parity.share == 1, str(parity)
    assert found['settled'] and (found['labels'][0, int(found['count'][0]):] == -1).all()


def test_masks_of_the_whole_image_and_results_without_filling():
    model, pixels = detector('mask_rcnn'), images()
    found = run(DetectionGraph(model, INPUTS, masks='paste'), pixels)
    assert found['masks'].shape[2:] == (96, 128) and found['masks'].dtype == torch.bool
    parity = compare(model, found, pixels)
    assert parity.detections > 10 and parity.share == 1, str(parity)
    exact = run(DetectionGraph(model, INPUTS, exact=True), pixels)
    assert len(exact['boxes']) == int(exact['count'].sum()) and compare(model, exact, pixels).share == 1


def test_an_image_without_objects():
    model, pixels = detector('mask_rcnn', score_thr=1.0), images()
    for kind in (DetectionGraph(model, INPUTS), DetectionGraph(model, INPUTS, ProgramSuppression)):
        found = run(kind, pixels)
        assert found['count'].tolist() == [0, 0] and not found['scores'].any() and (found['labels'] == -1).all()
        parity = compare(model, found, pixels)
        assert (parity.images, parity.detections, parity.share) == (2, 0, 1)


def test_more_candidates_than_can_be_looked_at_are_told(monkeypatch):
    monkeypatch.setattr('boxdet.export.graph.CANDIDATES', 1)
    graph = DetectionGraph(detector(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.01)), INPUTS)
    assert not run(graph, images())['settled']


@pytest.mark.parametrize(('changes', 'line'), [
    (dict(max_per_img=0), r'test_cfg.rcnn.max_per_img sets no limit; a graph needs one, such as 100'),
    (dict(nms=dict(type='soft_nms', iou_threshold=0.5)), r"test_cfg.rcnn.nms is .*soft_nms.* a graph has type='nms'")])
def test_what_has_no_graph_is_refused_in_one_line(changes, line):
    with pytest.raises(ConfigError, match=line):
        DetectionGraph(detector(**changes), INPUTS)


def test_masks_of_a_detector_without_are_refused():
    with pytest.raises(ConfigError, match="masks='paste', and a FasterRCNN has no mask_head"):
        DetectionGraph(detector(), INPUTS, masks='paste')


def test_keypoints_of_a_head_of_ones_own_are_refused():
    model = detector('keypoint_rcnn')
    kind = type(model.roi_head.keypoint_head)
    model.roi_head.keypoint_head.__class__ = type('OwnHead', (kind,), dict(predict=lambda *args: None))
    with pytest.raises(ConfigError, match=r'model.roi_head.keypoint_head is a OwnHead, which declares no fixed_size'):
        DetectionGraph(model, INPUTS)


def test_the_model_is_not_changed():
    model = detector()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    DetectionGraph(model, INPUTS, precision='fp16')
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.roi_head.bbox_roi_extractor.pools_every_level


# ------------------------------------------------------------------------------------------ files


def opened(path):
    """What runs an exported file: images and sizes to outputs by name; and its description."""
    session = pytest.importorskip('onnxruntime').InferenceSession(str(path))
    about = json.loads(session.get_modelmeta().custom_metadata_map['boxdet'])
    names = [output.name for output in session.get_outputs()]
    assert about['outputs'] == names
    kind = np.float32 if 'float' in session.get_inputs()[0].type else np.uint8

    def run_file(pixels, sizes):
        inputs = dict(images=pixels.numpy().astype(kind), sizes=np.array(sizes))
        return dict(zip(names, session.run(None, inputs)))
    return run_file, about


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'options'), [
    ('mask_rcnn', dict(masks='paste')), ('small_cascade_mask_rcnn', dict(exact=True)),
    ('c4_mask_rcnn', dict(float_input=True)), ('small_keypoint_rcnn', {})])
def test_onnxruntime_gives_what_the_detector_gives(name, options, tmp_path):
    onnx = pytest.importorskip('onnx')
    from boxdet import runtime
    pixels = images()
    nothing = torch.full_like(pixels, 90)
    best = max(float(result.scores.max()) for result in expected(detector(name), nothing, SIZES))
    model = detector(name, score_thr=best + 1e-3)  # so that an even image is one without objects
    path = write_onnx(model, tmp_path / 'a.onnx', INPUTS, shape=pixels.shape[2:], batch=2, **options)
    run_file, about = opened(path)
    parity = compare(model, run_file(pixels, SIZES), pixels)
    assert parity.detections > 10 and parity.share >= 0.99, str(parity)
    assert about['scale'] == [160, 96] and about['categories'] == [] and about['exact'] == bool(options.get('exact'))
    assert {node.domain for node in onnx.load(path).graph.node} == {''}  # standard operators only
    if 'masks' not in options:
        alone = runtime.Detector(path)(np.ascontiguousarray(pixels[0].permute(1, 2, 0)))
        first = run_file(pixels, SIZES)
        wanted = first['boxes'][:int(first['count'][0])] if about['exact'] else first['boxes'][0, :first['count'][0]]
        np.testing.assert_allclose(alone['boxes'], wanted, atol=1e-2)
        assert len(alone['scores']) == len(alone['labels']) == len(wanted)
    found = run_file(nothing, SIZES)
    assert found['count'].tolist() == [0, 0] and found['settled'] and not found['scores'].any()


@pytest.mark.slow
def test_images_smaller_than_a_stride(tmp_path):
    model, sizes = detector('faster_rcnn'), [(20, 20)]
    assert max(model.rpn_head.anchor_generator.strides)[0] > 32  # the last levels have one cell
    pixels = images(sizes)
    run_file, _ = opened(write_onnx(model, tmp_path / 'a.onnx', INPUTS, shape=(20, 20), batch=1))
    parity = compare(model, run_file(pixels, sizes), pixels, sizes)
    assert parity.detections > 10 and parity.share >= 0.99, str(parity)


@pytest.fixture(scope='module')
def any_size(tmp_path_factory):
    """A detector, and its file for any number of images of any size."""
    model = detector('small_faster_rcnn')
    return model, write_onnx(model, tmp_path_factory.mktemp('any_size') / 'a.onnx', INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize('program', ['onnxruntime', 'openvino'])
def test_one_file_takes_any_number_of_images_of_any_size(program, any_size):
    model, path = any_size
    if program == 'openvino':
        openvino = pytest.importorskip('openvino', reason='openvino is not installed: pip install boxdet[openvino]')
        compiled = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        names = DetectionGraph(model, INPUTS).output_names

        def run_file(pixels, sizes):
            return dict(zip(names, compiled([pixels.numpy(), np.array(sizes)]).values()))
    else:
        run_file, _ = opened(path)
    for sizes in ([(96, 128)], [(131, 77), (90, 70), (70, 66), (66, 80)], [(200, 333)]):
        pixels = images(sizes)
        parity = compare(model, run_file(pixels, sizes), pixels, sizes)
        assert parity.detections >= 10 and parity.share >= 0.99, str(parity)


@pytest.mark.slow
def test_half_precision_is_near(tmp_path):
    onnx = pytest.importorskip('onnx')
    model, pixels = detector('small_faster_rcnn'), images()
    path = write_onnx(model, tmp_path / 'a.onnx', INPUTS, shape=pixels.shape[2:], batch=2, precision='fp16')
    parity = compare(model, opened(path)[0](pixels, SIZES), pixels, parity=Parity(*TOLERANCES['fp16']))
    assert parity.detections > 10 and parity.share >= 0.9, str(parity)
    graph = onnx.load(path).graph
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    kinds = {value.name.split('.')[-2]: value.data_type for value in graph.initializer
             if value.name.endswith('.weight') and len(value.dims) == 4}
    assert {name for name, kind in kinds.items() if kind == full} == {'rpn_cls', 'rpn_reg'}
    assert kinds['conv1'] == kinds['rpn_conv'] == half
    assert all(value.type.tensor_type.elem_type != half for value in graph.output)


_WITHOUT_BOXDET = '''
import sys
sys.modules['boxdet'] = None
import torch, torchvision
program = torch.export.load(sys.argv[1]).module() if sys.argv[4] == 'program' else (
    torch._inductor.aoti_load_package(sys.argv[1]))
pixels, sizes = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(program(pixels, sizes), sys.argv[3])
'''


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'kind'), [('mask_rcnn', 'program'), ('small_faster_rcnn', 'compiled')])
def test_a_program_runs_where_boxdet_is_not(name, kind, need, tmp_path):
    if kind == 'compiled':
        need(os.environ.get('CXX', 'g++'), package='g++')
    model, pixels = detector(name), images()
    path = write_program(model, tmp_path / 'a.pt2', INPUTS, shape=pixels.shape[2:], batch=2,
                         compiled=kind == 'compiled')
    torch.save((pixels, torch.tensor(SIZES)), tmp_path / 'in.pt')
    subprocess.run([sys.executable, '-c', _WITHOUT_BOXDET, path, tmp_path / 'in.pt', tmp_path / 'out.pt', kind],
                   check=True, cwd=tmp_path, capture_output=True, timeout=300)
    found = dict(zip(DetectionGraph(model, INPUTS).output_names, torch.load(tmp_path / 'out.pt')))
    parity = compare(model, found, pixels)
    assert parity.detections > 10 and parity.share == 1, str(parity)


def test_a_program_ends_in_pt2(tmp_path):
    with pytest.raises(ConfigError, match="ends in .pt2, '.*a.pth' does not"):
        write_program(detector(), tmp_path / 'a.pth', INPUTS)
