"""Convolutions in eight bits: their arithmetic, and detectors made of them."""
import pytest
import torch
from torch import nn

from boxdet.apis import inference, inference_detector, init_detector
from boxdet.errors import ConfigError, DataError
from boxdet.models.quantization import QuantizedConv2d, fast_in_int8

pytestmark = pytest.mark.skipif(not fast_in_int8('cpu'), reason='this processor has no products of eight bits')


@pytest.mark.parametrize('low', [0.0, -1.5])
@pytest.mark.parametrize('shape', [dict(kernel_size=1), dict(kernel_size=3, padding=1, stride=2),
                                   dict(kernel_size=3, padding=2, dilation=2, groups=4, bias=False)])
def test_it_is_the_convolution_of_rounded_numbers(low, shape):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 12, **shape), torch.empty(2, 8, 9, 11).uniform_(low, 2.0)
    quantized = QuantizedConv2d(conv, low, 2.0)
    step, zero = (2.0 - low) / 255, round(-low / ((2.0 - low) / 255))
    x_rounded = ((x / step + zero).round().clamp(0, 255) - zero) * step
    weight = quantized.weight.double() * quantized.scale.double()[:, None, None, None]
    assert (weight - conv.weight).abs().amax(dim=(1, 2, 3)).le(quantized.scale * 0.501).all()
    expected = conv.double()._conv_forward(x_rounded.double(), weight, conv.bias)
    found = quantized(x)
    assert found.dtype == torch.float32
    # A value in the middle of two steps may go to either.
    assert ((found - expected).abs() <= 1e-4).double().mean() > 0.99
    assert (found - expected).abs().max() <= 9 * step * weight.abs().max()


def test_values_beyond_the_range_are_clipped():
    conv = nn.Conv2d(4, 4, 1, bias=False)
    quantized = QuantizedConv2d(conv, 0.0, 1.0)
    far, ends = torch.tensor([5.0, -3.0]), torch.tensor([1.0, 0.0])
    assert torch.equal(*(quantized(values.view(2, 1, 1, 1).expand(2, 4, 3, 3)) for values in (far, ends)))


def test_a_detector_finds_about_the_same(tiny_detector):
    plain = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu', precision='int8',
                          calibration=tiny_detector.folder / 'images')
    kinds = {name: type(module) for name, module in model.named_modules()}
    quantized = [name for name, kind in kinds.items() if kind is QuantizedConv2d]
    assert 'backbone.layer1.0.conv1' in quantized and 'rpn_head.rpn_conv' in quantized
    assert 'neck.fpn_convs.0.conv' in quantized and 'backbone.conv1' not in quantized
    assert not any(name.startswith(('roi_head', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg')) for name in quantized)
    batch = torch.rand(1, 3, 128, 160) * 2 - 1
    with torch.inference_mode():
        for mine, theirs in zip(model.extract_feat(batch), plain.extract_feat(batch)):
            off = (mine - theirs).pow(2).mean().sqrt() / theirs.pow(2).mean().sqrt()
            assert 0 < off < 0.1
    for image in tiny_detector.images:
        assert len(inference_detector(model, image)) > 0


def test_images_alone_calibrate_too(tiny_detector):
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu', precision='int8',
                          calibration=tiny_detector.images[:1])
    assert type(model.get_submodule('neck.fpn_convs.0.conv')) is QuantizedConv2d


def test_it_is_refused_in_one_line(tiny_detector, monkeypatch, tmp_path):
    def started(**options):
        return init_detector(tiny_detector.config, None, device='cpu', precision='int8', **options)

    with pytest.raises(ConfigError, match="precision='int8' needs images .*calibration"):
        started()
    with pytest.raises(DataError, match='no images in it'):
        started(calibration=tmp_path)
    monkeypatch.setattr(inference, 'fast_in_int8', lambda device: False)
    with pytest.raises(ConfigError, match="would be slower than 'fp32' on this device"):
        started(calibration=tiny_detector.images)
