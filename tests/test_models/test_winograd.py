"""Winograd's convolution against the direct one, and where it is taken."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from boxdet.models import winograd
from boxdet.models.folding import ready_for_inference
from boxdet.models.winograd import conv3x3, suits


def drawn(batch, channels, outputs, height, width, last):
    """A map, channels last or planar, and weight and bias of a convolution, at random."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width)
    x = x.to(memory_format=torch.channels_last) if last else x
    return x, torch.randn(outputs, channels, 3, 3) / (3 * channels ** 0.5), torch.randn(outputs)


@pytest.mark.parametrize('batch, channels, outputs, height, width', [
    (1, 8, 16, 4, 4), (2, 5, 3, 9, 14), (1, 130, 128, 33, 61), (1, 4, 4, 1, 1), (40, 6, 4, 14, 14)])
@pytest.mark.parametrize('last', [True, False])
def test_same_numbers_as_the_direct_way(batch, channels, outputs, height, width, last):
    x, weight, bias = drawn(batch, channels, outputs, height, width, last)
    for shift in (bias, None):
        exact = F.conv2d(x.double(), weight.double(), None if shift is None else shift.double(), padding=1)
        found = conv3x3(x, weight, shift)
        assert found.shape == exact.shape and found.dtype == torch.float32
        assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_half_precision_is_off_by_a_hundredth():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 128, 40, 44).relu(), torch.randn(128, 128, 3, 3) / 34, torch.randn(128)
    exact = F.conv2d(x, weight, bias, padding=1)
    found = conv3x3(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).pow(2).mean().sqrt() < 0.02 * exact.pow(2).mean().sqrt()


@pytest.mark.parametrize('amx, taken', [(False, True), (True, False)])
def test_in_half_precision_it_is_for_processors_without_matrix_units(amx, taken, monkeypatch):
    calls = []
    monkeypatch.setattr(winograd, 'conv3x3', lambda x, *rest: (calls.append(x.dtype), conv3x3(x, *rest))[1])
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: dict(amx_bf16=amx), raising=False)
    winograd._faster_in.cache_clear()
    try:
        model = ready_for_inference(nn.Sequential(nn.Conv2d(128, 128, 3, padding=1)), 'bf16')
        with torch.no_grad():
            found = model(torch.randn(1, 128, 60, 60, dtype=torch.bfloat16))
    finally:
        winograd._faster_in.cache_clear()
    assert found.dtype == torch.bfloat16 and calls == [torch.bfloat16] * taken


@pytest.mark.parametrize('shape, taken', [
    ((1, 128, 55, 56), True), ((60, 128, 14, 14), True), ((50, 128, 7, 7), True), ((9, 128, 14, 14), False),
    ((1, 128, 25, 38), False), ((200, 128, 5, 5), False)])
def test_it_is_taken_where_there_are_many_pixels_and_tiles_fit(shape, taken, monkeypatch):
    calls = []
    monkeypatch.setattr(winograd, 'conv3x3', lambda x, *rest: (calls.append(x.shape), conv3x3(x, *rest))[1])
    model = ready_for_inference(nn.Sequential(nn.Conv2d(128, 128, 3, padding=1)))
    assert model[0].fast
    x = torch.randn(shape)
    with torch.no_grad():
        found = model(x)
        assert torch.allclose(found, F.conv2d(x, model[0].weight, model[0].bias, padding=1), atol=1e-4)
    model(x)  # with gradients, too
    assert calls == [x.shape] * 2 * taken


@pytest.mark.parametrize('batch, channels, outputs, height, width', [
    (2, 8, 6, 9, 14), (1, 130, 128, 33, 61), (1, 4, 4, 1, 1), (40, 6, 4, 14, 14), (3, 16, 8, 7, 7)])
@pytest.mark.parametrize('last', [True, False])
def test_same_gradients_as_the_direct_way(batch, channels, outputs, height, width, last):
    given = [t.requires_grad_() for t in drawn(batch, channels, outputs, height, width, last)]
    doubles = [t.detach().double().requires_grad_() for t in given]
    weights = torch.randn(batch, outputs, height, width)
    (conv3x3(*given) * weights).sum().backward()
    (F.conv2d(*doubles, padding=1) * weights).sum().backward()
    for one, other in zip(given, doubles):
        assert one.grad.shape == one.shape and (one.grad - other.grad).abs().max() < 1e-5 * other.grad.abs().max()


def test_gradients_of_what_is_asked_for_only():
    x, weight = torch.randn(1, 4, 9, 9, requires_grad=True), torch.randn(4, 4, 3, 3)
    assert torch.autograd.grad(conv3x3(x, weight).sum(), x)[0].shape == x.shape  # frozen weights
    weight.requires_grad_()
    first, = torch.autograd.grad(conv3x3(x.detach(), weight).sum(), weight)      # the first layer that is trained
    both = torch.autograd.grad(conv3x3(x, weight).sum(), (x, weight))
    assert torch.equal(first, both[1])
    hidden = F.relu(conv3x3(x, weight), inplace=True)                            # may be overwritten
    hidden.sum().backward()


def test_gradients_of_gradients_are_refused():
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    gradient, = torch.autograd.grad(conv3x3(x, torch.randn(4, 4, 3, 3)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


def test_training_in_half_precision_stays_with_the_direct_way():
    x, weight = torch.randn(1, 128, 60, 60), torch.randn(128, 128, 3, 3)
    assert winograd.pays(x, weight) and not winograd.pays(x.bfloat16(), weight.bfloat16())
    with torch.autocast('cpu', torch.bfloat16):
        assert not winograd.pays(x, weight)
    assert not winograd.pays(x.double(), weight.double())


@pytest.mark.parametrize('conv', [
    nn.Conv2d(128, 128, 3), nn.Conv2d(128, 128, 3, padding=1, stride=2), nn.Conv2d(128, 128, 1),
    nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=2, dilation=2),
    nn.Conv2d(128, 128, 3, padding=1, groups=2)])
def test_other_convolutions_stay(conv):
    assert not suits(conv) and type(ready_for_inference(nn.Sequential(conv))[0]) is nn.Conv2d
