import math

import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.matching.box_coder import DeltaXYWHBBoxCoder
from boxdet.registry import BBOX_CODERS

STDS = [0.1, 0.1, 0.2, 0.2]


def slow_decode(box, delta, means, stds, max_shape=None, clip=16 / 1000, ctr_clamp=None):
    dx, dy, dw, dh = (d * s + m for d, s, m in zip(delta, stds, means))
    w, h, limit = box[2] - box[0], box[3] - box[1], abs(math.log(clip))
    shift_x, shift_y = dx * w, dy * h
    if ctr_clamp is None:
        dw, dh = (min(max(d, -limit), limit) for d in (dw, dh))
    else:
        shift_x, shift_y = (min(max(s, -ctr_clamp), ctr_clamp) for s in (shift_x, shift_y))
        dw, dh = min(dw, limit), min(dh, limit)
    x, y = (box[0] + box[2]) / 2 + shift_x, (box[1] + box[3]) / 2 + shift_y
    w, h = w * math.exp(dw), h * math.exp(dh)
    found = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    if max_shape is not None:
        found = [min(max(v, 0), max_shape[1 - i % 2]) for i, v in enumerate(found)]
    return found


def test_documented_example_of_mmdetection():
    boxes = torch.tensor([[0., 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [5, 5, 5, 5]])
    deltas = torch.tensor([[0., 0, 0, 0], [1, 1, 1, 1], [0, 0, 2, -1], [.7, -1.9, -.5, .3]])
    expected = torch.tensor([[0., 0, 1, 1], [.1409, .1409, 2.8591, 2.8591], [0, .3161, 4.1945, .6839], [5, 5, 5, 5]])
    assert torch.allclose(DeltaXYWHBBoxCoder().decode(boxes, deltas, max_shape=(32, 32, 3)), expected, atol=1e-4)


@pytest.mark.parametrize('options', [{}, dict(target_stds=STDS, target_means=[.1, -.2, .3, 0.]),
                                     dict(add_ctr_clamp=True, ctr_clamp=4), dict(clip_border=False)])
@pytest.mark.parametrize('classes', [1, 3])
def test_decode_equals_slow_loop(options, classes):
    g = torch.Generator().manual_seed(classes)
    corner = torch.rand(8, 2, generator=g) * 40
    boxes = torch.cat([corner, corner + 1 + torch.rand(8, 2, generator=g) * 30], 1)
    deltas = torch.randn(8, 4 * classes, generator=g) * 3
    coder = BBOX_CODERS.build(dict(type='DeltaXYWHBBoxCoder', **options))
    shape = (50, 70, 3)
    expected = [[slow_decode(box, d[4 * k:4 * k + 4], coder.means, coder.stds, shape if coder.clip_border else None,
                             ctr_clamp=coder.ctr_clamp if coder.add_ctr_clamp else None) for k in range(classes)]
                for box, d in zip(boxes.tolist(), deltas.tolist())]
    found = coder.decode(boxes, deltas, max_shape=shape)
    assert torch.allclose(found, torch.tensor(expected).view(8, -1), rtol=1e-4, atol=1e-3)


def test_decode_undoes_encode():
    g = torch.Generator().manual_seed(0)
    first, second = (torch.cat([c, c + 5 + torch.rand(50, 2, generator=g) * 30], 1)
                     for c in torch.rand(2, 50, 2, generator=g) * 40)
    coder = DeltaXYWHBBoxCoder(target_stds=STDS, target_means=(.1, .1, 0, 0))
    assert torch.allclose(coder.decode(first, coder.encode(first, second)), second, atol=1e-3)


def test_encode_by_hand():
    boxes, gts = torch.tensor([[0., 0, 10, 20]]), torch.tensor([[5., 0, 25, 20]])
    delta = DeltaXYWHBBoxCoder(target_stds=STDS).encode(boxes, gts)
    assert delta[0].tolist() == pytest.approx([10, 0, math.log(2) / 0.2, 0])


def test_wh_ratio_clip():
    box, delta = torch.tensor([[0., 0, 1, 1]]), torch.tensor([[0., 0, 9, -9]])
    grown = DeltaXYWHBBoxCoder().decode(box, delta, wh_ratio_clip=0.1)[0]
    assert (grown[2] - grown[0]).item() == pytest.approx(10) and (grown[3] - grown[1]).item() == pytest.approx(0.1)


def test_empty_half_and_gradient():
    coder = DeltaXYWHBBoxCoder(target_stds=STDS)
    assert coder.encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    for columns in (4, 12):
        assert coder.decode(torch.zeros(0, 4), torch.zeros(0, columns), max_shape=(9, 9)).shape == (0, columns)
    assert coder.decode(torch.ones(1, 4).half(), torch.zeros(1, 4).bfloat16()).dtype == torch.float32
    with torch.inference_mode():
        DeltaXYWHBBoxCoder.decode(coder, torch.rand(1, 4), torch.zeros(1, 4))
    deltas = torch.zeros(1, 4, requires_grad=True)
    coder.decode(torch.tensor([[2., 2, 9, 9]]), deltas, max_shape=(20, 20)).sum().backward()
    assert deltas.grad.abs().sum() > 0


def test_wrong_options():
    with pytest.raises(ConfigError):
        DeltaXYWHBBoxCoder(target_stds=[0, 1, 1, 1])
    with pytest.raises(ConfigError):
        DeltaXYWHBBoxCoder(target_means=[0, 1, 1])


@pytest.mark.parametrize('shapes', [None, (40, 90), [(40, 90), (70, 30)], [(40, 90, 3), (70, 30, 3)]])
@pytest.mark.parametrize('classes', [1, 2])
def test_boxes_of_several_images_are_decoded_as_those_of_each(shapes, classes):
    generator = torch.Generator().manual_seed(0)
    coder = DeltaXYWHBBoxCoder(target_stds=STDS)
    boxes = torch.rand(2, 5, 4, generator=generator) * 20 + torch.tensor([0., 0, 60, 60])
    deltas = torch.randn(2, 5, 4 * classes, generator=generator) * 9
    own = shapes if isinstance(shapes, list) else [shapes] * 2
    expected = torch.stack([coder.decode(*each) for each in zip(boxes, deltas, own)])
    assert torch.equal(coder.decode(boxes, deltas, shapes), expected)


@pytest.mark.parametrize('classes', [1, 2])
def test_each_box_is_clipped_to_its_own_image(classes):
    generator = torch.Generator().manual_seed(0)
    coder = DeltaXYWHBBoxCoder(target_stds=STDS)
    boxes = torch.rand(5, 4, generator=generator) * 20 + torch.tensor([0., 0, 60, 60])
    deltas = torch.randn(5, 4 * classes, generator=generator) * 9
    sizes = torch.tensor([[40, 90], [70, 30], [50, 60], [9, 99], [99, 9]])
    expected = torch.cat([coder.decode(boxes[i:i + 1], deltas[i:i + 1], tuple(sizes[i].tolist())) for i in range(5)])
    assert torch.equal(coder.decode(boxes, deltas, sizes), expected)


def test_growth_is_limited_with_a_clamped_centre_too():
    coder, box = DeltaXYWHBBoxCoder(add_ctr_clamp=True, ctr_clamp=4), torch.tensor([[10., 20, 30, 60]])
    for deltas in ([3., -3, 9, -9], [0.1, -0.01, 0.5, 9]):
        expected = slow_decode(box[0].tolist(), deltas, coder.means, coder.stds, ctr_clamp=4)
        torch.testing.assert_close(coder.decode(box, torch.tensor([deltas]))[0], torch.tensor(expected))
