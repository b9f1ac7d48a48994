"""RoIAlign as sums of rows against torchvision's operator."""

import pytest
import torch
from torchvision.ops import roi_align

from boxdet.geometry.roi_align import roi_align_rows


def some_rois(count: int = 120) -> torch.Tensor:
    """Small, large, outside of the image, empty, turned inside out, and where no image is."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([340., 220.]) - 20
    size = torch.rand(count, 2, generator=generator) ** 3 * 400
    rois = torch.cat([torch.randint(0, 2, (count, 1), generator=generator).float(), corner, corner + size], dim=1)
    rois[0, 3:] = rois[0, 1:3]
    rois[1, 1:] = -1e5
    rois[2, 3] = rois[2, 1] - 5
    rois[3, 1:] = torch.tensor([-50., -50., 2000., 2000.])
    return rois


@pytest.fixture(scope='module')
def features() -> torch.Tensor:
    return torch.randn(2, 16, 25, 38, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2, 3])
@pytest.mark.parametrize('size, scale', [((7, 7), 1 / 8), ((3, 5), 1 / 16), ((14, 14), 0.25)])
def test_same_numbers_as_torchvision(features, aligned, ratio, size, scale):
    expected = roi_align(features, some_rois(), size, scale, ratio, aligned)
    for x in (features, features.to(memory_format=torch.channels_last)):
        found = roi_align_rows(x, some_rois(), size, scale, ratio, aligned)
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_and_nothing(features):
    expected = roi_align(features, some_rois(), (7, 7), 0.125, 2, True)
    found = roi_align_rows(features.bfloat16(), some_rois(), (7, 7), 0.125, 2, True)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), expected, atol=0.05)
    assert roi_align_rows(features, some_rois()[:0], (7, 5), 0.125, 0, True).shape == (0, 16, 7, 5)


def test_many_rois_go_in_parts(features, monkeypatch):
    whole = roi_align_rows(features, some_rois(), (7, 7), 0.125, 0, True)
    monkeypatch.setattr('boxdet.geometry.roi_align._PAIRS_AT_ONCE', 500)
    assert torch.equal(roi_align_rows(features, some_rois(), (7, 7), 0.125, 0, True), whole)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2])
@pytest.mark.parametrize('parts', [1 << 20, 500])
def test_same_gradients_as_torchvision(features, aligned, ratio, parts, monkeypatch):
    monkeypatch.setattr('boxdet.geometry.roi_align._PAIRS_AT_ONCE', parts)
    rois = some_rois().double()
    x, y = (features.double().requires_grad_() for _ in range(2))
    expected = roi_align(x, rois, (7, 5), 0.125, ratio, aligned)
    found = roi_align_rows(y, rois, (7, 5), 0.125, ratio, aligned)
    weight = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('rois', [some_rois()[:0], torch.tensor([[0., -900, -900, -800, -800]])])
def test_what_reads_no_pixel_has_a_gradient_of_zeros(features, rois):
    x = features.clone().requires_grad_()
    roi_align_rows(x, rois, (7, 7), 0.125, 0, True).sum().backward()
    assert x.grad.shape == features.shape and not x.grad.any()


def test_gradients_in_half_precision_are_summed_in_float32(features):
    x, y = features.bfloat16().requires_grad_(), features.clone().requires_grad_()
    roi_align_rows(x, some_rois(), (7, 7), 0.125, 2, True).sum().backward()
    roi_align_rows(y, some_rois(), (7, 7), 0.125, 2, True).sum().backward()
    assert x.grad.dtype == torch.bfloat16 and torch.allclose(x.grad.float(), y.grad, rtol=0.01, atol=0.01)
