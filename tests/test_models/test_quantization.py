"""Convolutions in eight bits: their arithmetic, and detectors made of them."""
import pytest
import torch
from torch import nn

from boxdet.apis import inference, inference_detector, init_detector
from boxdet.errors import ConfigError, DataError
from boxdet.models import build_backbone
from boxdet.models.quantization import QuantizedConv2d, QuantizedLinear, QuantizedStage, Steps, fast_in_int8, quantize

pytestmark = pytest.mark.skipif(not fast_in_int8('cpu'), reason='this processor has no products of eight bits')


@pytest.mark.parametrize('low', [0.0, -1.5])
@pytest.mark.parametrize('shape', [dict(kernel_size=1), dict(kernel_size=1, stride=2), dict(kernel_size=1, groups=2),
                                   dict(kernel_size=3, padding=1, stride=2),
                                   dict(kernel_size=3, padding=2, dilation=2, groups=4, bias=False)])
def test_it_is_the_convolution_of_rounded_numbers(low, shape):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 12, **shape), torch.empty(2, 8, 9, 11).uniform_(low, 2.0)
    quantized = QuantizedConv2d(conv, Steps.between(low, 2.0))
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


def test_a_linear_layer_is_that_of_rounded_numbers():
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10), torch.empty(7, 24).uniform_(-1.0, 3.0)
    steps = Steps.between(-1.0, 3.0)
    quantized = QuantizedLinear(layer, steps)
    weight = quantized.weight.double() * quantized.scale.double()[:, None]
    assert (weight - layer.weight).abs().amax(dim=1).le(quantized.scale * 0.501).all()
    expected = steps.restored(steps.rounded(x)).double() @ weight.T + layer.bias.double()
    assert torch.allclose(quantized(x).double(), expected, atol=1e-4)


@pytest.mark.parametrize('depth', [18, 50])
def test_a_stage_is_its_blocks_with_rounded_sums(depth):
    """Against the same layers in float64, where what lies between two of them is rounded to its steps."""
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = build_backbone(dict(type='ResNet', depth=depth)).eval()
    for norm in model.backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):  # unlike 0 and 1, and the branches count as much as the shortcuts
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.normal_(norm.bias, std=0.1)
    images = torch.randn(1, 3, 64, 96)
    plain = [level.clone() for level in model.backbone(images)]
    quantize(model, [lambda: model.backbone(images)])
    stage = model.backbone.layer2
    assert type(stage) is QuantizedStage

    def carried(conv, x, gives, added=0):
        weight = conv.weight.double() * conv.scale.double().view(-1, 1, 1, 1)
        stride, padding, dilation, groups = conv._shape
        y = nn.functional.conv2d(x, weight, conv.bias.double(), stride, padding, dilation, groups) + added
        return ((y / gives.size + gives.zero).round().clamp(0, 255) - gives.zero) * gives.size

    x = stage._reads.restored(stage._reads.rounded(plain[0])).double()
    for block in stage:
        shortcut = x if block.downsample is None else carried(block.downsample, x, block._shortcut)
        for conv, following in zip(block.chain, block.chain[1:]):
            x = carried(conv, x, following.reads)
        x = carried(block.chain[-1], x, block._gives, shortcut)
    found = stage(plain[0])
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    steps_off = (found - x).abs() / stage._gives.size  # of sums in float32: a value in the middle may go to either side
    assert (steps_off > 0.5).double().mean() < 0.02 and steps_off.max() < 3.5
    assert (found - plain[1]).pow(2).mean().sqrt() < 0.1 * plain[1].pow(2).mean().sqrt()


@pytest.mark.parametrize('options', [dict(type='ResNetV1d', depth=50), dict(type='ResNet', depth=50, norm_cfg=dict(
    type='GN', num_groups=4)), dict(type='Res2Net', depth=50, scales=4, base_width=26)])
def test_other_blocks_keep_their_sums_in_float(options):
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = build_backbone(options).eval()
    images = torch.randn(1, 3, 64, 64)
    plain = model.backbone(images)
    quantize(model, [lambda: model.backbone(images)])
    # ResNetV1d pools in the shortcut of a stage's first block.
    assert not any(type(module) is QuantizedStage for module in model.modules())
    assert any(type(module) is QuantizedConv2d for module in model.modules())
    for mine, theirs in zip(model.backbone(images), plain):
        assert (mine - theirs).pow(2).mean().sqrt() < 0.1 * theirs.pow(2).mean().sqrt()


def test_values_beyond_the_range_are_clipped():
    conv = nn.Conv2d(4, 4, 1, bias=False)
    quantized = QuantizedConv2d(conv, Steps.between(0.0, 1.0))
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
    assert kinds['roi_head.bbox_head.shared_fcs.0'] is QuantizedLinear and kinds['backbone.layer1'] is QuantizedStage
    outputs = ('rpn_cls', 'rpn_reg', 'fc_cls', 'fc_reg', 'conv_logits')
    assert not any(name.rpartition('.')[2] in outputs for name in quantized)
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
