import copy
import math
import pickle

import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.matching import anchors as A
from boxdet.registry import ANCHOR_GENERATORS


def slow_anchors(stride, base_size, ratios, scales, hw, scale_major=True, center=(0.0, 0.0)):
    pairs = [(r, s) for r in ratios for s in scales] if scale_major else [(r, s) for s in scales for r in ratios]
    rows = []
    for i in range(hw[0]):
        for j in range(hw[1]):
            for ratio, scale in pairs:
                w, h = base_size * scale / math.sqrt(ratio), base_size * scale * math.sqrt(ratio)
                x, y = center[0] + j * stride[0], center[1] + i * stride[1]
                rows.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return torch.tensor(rows).view(-1, 4)


def test_docstring_example_of_mmdetection():
    cfg = dict(type='AnchorGenerator', strides=[16], ratios=[1.], scales=[1.], base_sizes=[9])
    generator = ANCHOR_GENERATORS.build(cfg)
    assert generator.grid_priors([(2, 2)], device='cpu')[0].tolist() == [
        [-4.5, -4.5, 4.5, 4.5], [11.5, -4.5, 20.5, 4.5], [-4.5, 11.5, 4.5, 20.5], [11.5, 11.5, 20.5, 20.5]]


@pytest.mark.parametrize('options,base,center', [
    ({}, 4, (0, 0)), (dict(scale_major=False), 4, (0, 0)), (dict(base_sizes=[10]), 10, (0, 0)),
    (dict(centers=[(3., 5.)]), 4, (3, 5)), (dict(center_offset=0.5), 4, (2, 2))])
def test_equals_slow_loop(options, base, center):
    generator = A.AnchorGenerator(strides=[(4, 8)], ratios=[0.5, 1.0, 2.0], scales=[2, 8], **options)
    expected = slow_anchors((4, 8), base, [0.5, 1, 2], [2, 8], (3, 5), options.get('scale_major', True), center)
    found, = generator.grid_anchors([(3, 5)], device='cpu')
    assert torch.allclose(found, expected, atol=1e-5)
    assert generator.num_base_priors == generator.num_base_anchors == [6] and generator.num_levels == 1


def test_octaves():
    generator = A.AnchorGenerator(strides=[8, 16], ratios=[1.0], octave_base_scale=4, scales_per_octave=3)
    side = (generator.base_anchors[1][:, 2] - generator.base_anchors[1][:, 0]).tolist()
    assert side == pytest.approx([64, 64 * 2 ** (1 / 3), 64 * 2 ** (2 / 3)])


def test_valid_flags():
    generator = A.AnchorGenerator(strides=[4, 8], ratios=[1.0, 2.0], scales=[1])
    first, second = generator.valid_flags([(4, 5), (2, 3)], (9, 17, 3), device='cpu')
    grid = first.view(4, 5, 2)
    assert grid[:3].all() and not grid[3].any() and second.view(2, 3, 2).all()
    assert generator.valid_flags([(4, 5), (2, 3)], (8, 8), device='cpu')[0].sum() == 2 * 2 * 2
    assert generator.valid_flags([(4, 5), (2, 3)], (800, 800), device='cpu')[0].all()


def test_grids_are_remembered_and_few():
    generator = A.AnchorGenerator(strides=[4], ratios=[1.0], scales=[8])
    first = generator.grid_priors([(3, 4)], device='cpu')[0]
    assert generator.grid_priors([(3, 4)], device='cpu')[0] is first
    assert generator.grid_priors([(3, 4)], dtype=torch.float64, device='cpu')[0].dtype == torch.float64
    for size in range(1, 2 * A._REMEMBERED):
        generator.grid_priors([(size, size)], device='cpu')
    assert len(generator._grids) == A._REMEMBERED
    assert len(copy.deepcopy(generator)._grids) == len(pickle.loads(pickle.dumps(generator))._grids) == 0


def test_grids_made_in_inference_mode_can_be_trained_with():
    generator = A.AnchorGenerator(strides=[4], ratios=[1.0], scales=[8])
    with torch.inference_mode():
        generator.grid_priors([(3, 4)], device='cpu')
    factor = torch.ones(1, requires_grad=True)
    (generator.grid_priors([(3, 4)], device='cpu')[0] * factor).sum().backward()


def test_built_on_meta_and_empty_maps():
    with torch.device('meta'):
        generator = A.AnchorGenerator(strides=[4], ratios=[1.0], scales=[8])
    assert generator.base_anchors[0].device.type == 'cpu'
    assert generator.grid_priors([(0, 4)], device='cpu')[0].shape == (0, 4)


@pytest.mark.parametrize('options', [
    {}, dict(scales=[8], octave_base_scale=4, scales_per_octave=3), dict(octave_base_scale=4),
    dict(scales=[8], octave_base_scale=4), dict(scales=[8], base_sizes=[4]), dict(scales=[8], centers=[(0, 0)]),
    dict(scales=[8], center_offset=2), dict(scales=[8], center_offset=.5, centers=[(0, 0)] * 2)])
def test_wrong_options(options):
    with pytest.raises(ConfigError):
        A.AnchorGenerator(strides=[4, 8], ratios=[1.0], **options)


def test_torchvisions_anchors():
    """Whole-pixel corners, and levels whose cells are as far apart as the input's size says: 61 pixels, not 64."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator as Theirs
    from torchvision.models.detection.image_list import ImageList

    from boxdet.matching.anchors import TorchvisionAnchorGenerator
    ours = TorchvisionAnchorGenerator(strides=[4, 8, 16, 32, 64], ratios=[0.5, 1.0, 2.0], scales=[8])
    theirs = Theirs(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    sizes = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
    expected = theirs(ImageList(torch.zeros(1, 3, 800, 1216), [(800, 1216)]), [torch.zeros(1, 1, *s) for s in sizes])[0]
    assert torch.equal(torch.cat(ours.grid_priors(sizes, device='cpu')), expected)


def test_threads_may_share_a_generator():
    from concurrent.futures import ThreadPoolExecutor

    from boxdet.matching.anchors import AnchorGenerator
    generator = AnchorGenerator(strides=[16], ratios=[1.0], scales=[8])
    sizes = [[(h, w)] for h in range(1, 9) for w in range(1, 9)] * 20
    with ThreadPoolExecutor(8) as pool:
        grids = list(pool.map(lambda size: generator.grid_priors(size, device='cpu')[0], sizes))
    assert all(len(grid) == size[0][0] * size[0][1] for grid, size in zip(grids, sizes))
    assert len(generator._grids) <= A._REMEMBERED


def test_threads_and_streams_have_grids_of_their_own(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    generator = A.AnchorGenerator(strides=[16], ratios=[1.0], scales=[8])
    own = generator.grid_priors([(4, 4)], device='cpu')[0]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: generator.grid_priors([(4, 4)], device='cpu')[0]).result()
    assert other is not own and torch.equal(other, own) and generator.grid_priors([(4, 4)], device='cpu')[0] is own
    monkeypatch.setattr(A, 'line_of_work', lambda device: ('another', 'stream'))
    assert generator.grid_priors([(4, 4)], device='cpu')[0] is not own


def test_a_line_of_work_is_a_thread_and_its_current_stream(monkeypatch):
    from types import SimpleNamespace

    from boxdet.matching.anchors import line_of_work
    assert line_of_work(torch.device('cpu')) == line_of_work(torch.device('cpu'))
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    lines = []
    for number in (7, 8):
        monkeypatch.setattr(torch.cuda, 'current_stream', lambda device, n=number: SimpleNamespace(cuda_stream=n))
        lines.append(line_of_work(torch.device('cuda', 0)))
    assert lines[0] != lines[1] and lines[0][0] == lines[1][0]
    assert line_of_work(torch.device('cpu'))[1] == 0  # there are no streams


def test_anchors_come_to_a_gpu_beside_its_work():
    from tests.emulated_gpu import emulated_gpu, watched_copies
    generator = A.AnchorGenerator(strides=[16], ratios=[1.0], scales=[8])
    with emulated_gpu(), watched_copies() as copies:
        generator.grid_priors([(4, 4)], device='cuda')
    assert copies.waited == [] and copies.beside == ['cpu->cuda:0']


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch):
    assert A._numbered('cpu') == torch.device('cpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 3)
    assert A._numbered('cuda') == torch.device('cuda', 3) and A._numbered('cuda:1') == torch.device('cuda', 1)
