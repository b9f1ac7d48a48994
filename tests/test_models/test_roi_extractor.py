"""RoI pooling over levels."""
from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align, roi_pool

from boxdet.errors import ConfigError
from boxdet.models.roi_extractor import (
    GenericRoIExtractor,
    RoIAlign,
    RoIPool,
    SingleRoIExtractor,
    boxes_to_rois,
    pool_masked,
    pool_sorted,
    rescale_rois,
)

STRIDES = [4, 8, 16, 32]
LAYERS = [dict(type='RoIAlign', output_size=7, sampling_ratio=0),
          dict(type='RoIAlign', output_size=(5, 3), sampling_ratio=2, aligned=False),
          dict(type='RoIAlign', output_size=4, sampling_ratio=0, aligned=False),
          dict(type='RoIPool', output_size=7)]


def features(channels: int = 6, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, channels, 256 // s, 320 // s, generator=generator) for s in STRIDES]


def rois_of_all_sizes() -> torch.Tensor:
    boxes = [[3., 5, 30, 40], [10, 10, 60, 90], [0, 0, 130, 150], [20, 4, 310, 250], [0, 0, 319, 255],
             [7, 7, 7, 7], [50, 60, 180, 170], [1, 2, 12, 9]]
    return torch.cat([(torch.arange(8) % 2)[:, None].float(), torch.tensor(boxes)], dim=1)


def test_boxes_to_rois_counts_the_images():
    boxes = [torch.rand(2, 4), torch.rand(0, 4), torch.rand(1, 4)]
    rois = boxes_to_rois(boxes)
    assert rois[:, 0].tolist() == [0, 0, 2]
    assert torch.equal(rois[:, 1:], torch.cat(boxes))
    assert boxes_to_rois([torch.zeros(0, 4)] * 2).shape == (0, 5)


def test_levels_follow_the_size():
    extractor = SingleRoIExtractor(LAYERS[0], 6, STRIDES, finest_scale=56)
    sides = torch.tensor([1., 111.9, 112, 223.9, 224, 448, 5000])
    rois = torch.stack([torch.zeros(7), torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    assert extractor.map_roi_levels(rois, 4).tolist() == [0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize('layer', LAYERS)
def test_each_roi_is_pooled_from_its_level(layer):
    extractor, feats, rois = SingleRoIExtractor(layer, 6, STRIDES), features(), rois_of_all_sizes()
    levels = extractor.map_roi_levels(rois, 4)
    assert set(levels.tolist()) == {0, 1, 2}
    pooled = extractor([*feats, torch.zeros(2, 6, 4, 4)], rois)  # a level more than the extractor uses
    size = layer['output_size']
    for roi, level, found in zip(rois, levels.tolist(), pooled):
        if layer['type'] == 'RoIPool':
            expected = roi_pool(feats[level], roi[None], size, 1 / STRIDES[level])
        else:
            expected = roi_align(feats[level], roi[None], size, 1 / STRIDES[level], layer['sampling_ratio'],
                                 layer.get('aligned', True))
        torch.testing.assert_close(found[None], expected)


@pytest.mark.parametrize('layer', LAYERS)
def test_both_ways_over_the_levels_are_one(layer):
    extractor, rois = SingleRoIExtractor(layer, 6, STRIDES), rois_of_all_sizes()
    levels, grads, outs = extractor.map_roi_levels(rois, 4), [], []
    for pool in (pool_sorted, pool_masked):
        feats = [f.requires_grad_() for f in features()]
        outs.append(pool(extractor.roi_layers, feats, rois, levels))
        outs[-1].square().sum().backward()
        grads.append([f.grad for f in feats])
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize('layer', LAYERS)
def test_levels_in_one_call_are_levels_one_by_one(layer):
    extractor, rois, found = SingleRoIExtractor(layer, 6, STRIDES), rois_of_all_sizes(), []
    for hooks in (False, True):  # layers with hooks are called one by one
        if hooks:
            extractor.roi_layers[1].register_forward_hook(lambda *_: None)
        feats = [f.double().requires_grad_() for f in features()]
        pooled = extractor(feats, rois)
        weights = torch.linspace(-1, 1, pooled.numel(), dtype=torch.float64).view_as(pooled)
        found.append([pooled, *torch.autograd.grad((pooled * weights).sum(), feats)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_what_is_pooled_is_contiguous_unless_it_is_for_convolutions(memory_format):
    extractor, rois = SingleRoIExtractor(LAYERS[0], 6, STRIDES), rois_of_all_sizes()
    feats = [f.to(memory_format=memory_format).requires_grad_() for f in features()]
    assert extractor(feats, rois).is_contiguous()
    extractor.for_convolutions = True
    assert extractor(feats, rois).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('some', [1, 5, 1000])
def test_without_gradients_rois_are_pooled_some_at_a_time(layer, some, monkeypatch):
    monkeypatch.setattr('boxdet.models.roi_extractor._ROIS_AT_ONCE', some)
    extractor, rois, sizes = SingleRoIExtractor(layer, 6, STRIDES), rois_of_all_sizes(), []
    for one in extractor.roi_layers:
        one.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[1])))
    feats = features()
    expected = extractor([f.requires_grad_() for f in feats], rois)
    del sizes[:]
    with torch.no_grad():
        found = extractor(feats, rois)
    torch.testing.assert_close(found, expected.detach())
    assert found.is_contiguous() and sum(sizes) == len(rois) and max(sizes) <= max(some, 1)
    assert extractor(feats, rois[:0]).shape == (0, *found.shape[1:])


@pytest.mark.parametrize('rois', [rois_of_all_sizes()[:1], torch.zeros(0, 5)])
def test_a_level_without_rois_is_in_the_graph(rois):
    feats = [f.requires_grad_() for f in features()]
    extractor = SingleRoIExtractor(LAYERS[0], 6, STRIDES)
    pooled = extractor(feats, rois)
    assert pooled.shape == (len(rois), 6, 7, 7)
    pooled.sum().backward()
    assert all(f.grad is not None for f in feats)
    assert not feats[3].grad.any()


def test_rois_are_enlarged_about_their_centre():
    torch.testing.assert_close(rescale_rois(torch.tensor([[1., 10, 20, 30, 60]]), 1.5),
                               torch.tensor([[1., 5, 10, 35, 70]]))
    extractor, feats, rois = SingleRoIExtractor(LAYERS[0], 6, STRIDES), features(), rois_of_all_sizes()
    # The level is that of the roi as it was.
    expected = pool_sorted(extractor.roi_layers, feats, rescale_rois(rois, 1.5),
                           extractor.map_roi_levels(rois, 4))
    assert torch.equal(extractor(feats, rois, roi_scale_factor=1.5), expected)


def test_half_precision_keeps_the_boxes():
    feats, rois = features(), rois_of_all_sizes()
    extractor = SingleRoIExtractor(LAYERS[0], 6, STRIDES)
    half = extractor([f.bfloat16() for f in feats], rois)
    assert half.dtype == torch.bfloat16
    expected = extractor([f.bfloat16().float() for f in feats], rois)
    torch.testing.assert_close(half.float(), expected, rtol=0.01, atol=0.01)


def test_channels_last_features_give_the_same():
    feats, rois = features(), rois_of_all_sizes()
    extractor = SingleRoIExtractor(LAYERS[0], 6, STRIDES)
    last = [f.contiguous(memory_format=torch.channels_last) for f in feats]
    assert torch.equal(extractor(last, rois), extractor(feats, rois))


def test_one_level_needs_no_mapping():
    extractor, feats = SingleRoIExtractor(LAYERS[0], 6, [16]), features()[2:3]
    rois = rois_of_all_sizes()
    torch.testing.assert_close(extractor(feats, rois), roi_align(feats[0], rois, 7, 1 / 16, 0, True))
    assert extractor.num_inputs == 1


def test_generic_extractor_joins_the_levels():
    feats, rois = features(), rois_of_all_sizes()
    single = [RoIAlign(7, 1 / s)(f, rois) for s, f in zip(STRIDES, feats)]
    joined = GenericRoIExtractor(LAYERS[0], 6, STRIDES)(feats, rois)
    torch.testing.assert_close(joined, sum(single))
    pre = dict(type='Conv2d', in_channels=6, out_channels=6, kernel_size=1)
    concat = GenericRoIExtractor(LAYERS[0], 6, STRIDES, aggregation='concat', pre_cfg=pre)
    torch.testing.assert_close(concat(feats, rois), torch.cat([concat.pre_module(s) for s in single], dim=1))


def test_generic_extractor_with_the_layers_of_2x():
    """configs/groie of mmdetection 2.x: a ConvModule before, an attention block after."""
    feats, rois = features(), rois_of_all_sizes()
    pre = dict(type='ConvModule', in_channels=6, out_channels=8, kernel_size=5, padding=2, inplace=False)
    post = dict(type='GeneralizedAttention', in_channels=8, spatial_range=-1, num_heads=2, attention_type='0100',
                kv_stride=2)
    extractor = GenericRoIExtractor(LAYERS[0], 8, STRIDES, pre_cfg=pre, post_cfg=post)
    single = [RoIAlign(7, 1 / s)(f, rois) for s, f in zip(STRIDES, feats)]
    conv = extractor.pre_module.conv
    before = sum(torch.relu(torch.nn.functional.conv2d(s, conv.weight, conv.bias, padding=2)) for s in single)
    torch.testing.assert_close(extractor(feats, rois), extractor.post_module(before))
    assert {'pre_module.conv.weight', 'pre_module.conv.bias', 'post_module.gamma'} <= set(extractor.state_dict())


def test_what_does_not_exist_is_an_error():
    with pytest.raises(ConfigError, match="pool_mode is 'max'"):
        RoIAlign(7, pool_mode='max')
    with pytest.raises(ConfigError, match="aggregation is 'mean'"):
        GenericRoIExtractor(LAYERS[0], 6, STRIDES, aggregation='mean')
    with pytest.raises(ConfigError, match="did you mean 'RoIAlign'"):
        SingleRoIExtractor(dict(type='RoIAlgn', output_size=7), 6, STRIDES)
    assert RoIPool(7).output_size == (7, 7)


@pytest.mark.parametrize('ratio', [0, 2])
def test_torchvisions_deterministic_way_gives_the_same_and_its_gradients_are_numbers(ratio, monkeypatch):
    """That way, which a GPU goes under ``use_deterministic_algorithms``, here eagerly and on the CPU."""
    import importlib

    from boxdet.models import roi_extractor
    in_python = importlib.import_module('torchvision.ops.roi_align')._roi_align.__wrapped__
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=ratio, use_torchvision=True)
    extractor, rois = SingleRoIExtractor(layer, 6, STRIDES), rois_of_all_sizes()[[0, 1, 2, 3, 6, 7]]
    rois[5, 3:] += 9  # with an area
    levels, outs, grads = extractor.map_roi_levels(rois, 4), [], []
    for way in (roi_align, lambda x, r, size, scale, n, aligned: in_python(x, r, scale, *size, n, aligned)):
        monkeypatch.setattr(roi_extractor, 'roi_align', way)
        feats = [f.requires_grad_() for f in features()]
        outs.append(pool_masked(extractor.roi_layers, feats, rois, levels))
        outs[-1].square().sum().backward()
        grads.append([f.grad for f in feats])
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)


def test_where_algorithms_are_to_be_deterministic_rois_are_sums_of_rows(monkeypatch):
    from boxdet.models import roi_extractor
    from tests.emulated_gpu import emulated_gpu
    called = []
    monkeypatch.setattr(roi_extractor, 'roi_align_rows', lambda *args: called.append('rows'))
    monkeypatch.setattr(roi_extractor, 'roi_align', lambda *args: called.append('operator') or args[0])
    with emulated_gpu():
        x, rois = torch.empty(1, 4, 8, 8, device='cuda'), torch.empty(2, 5, device='cuda')
        for wanted in (False, True):
            monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda wanted=wanted: wanted)
            RoIAlign(7)(x, rois)
    assert called == ['operator', 'rows']


@pytest.mark.parametrize('layer', [*LAYERS, *(dict(type='RoIAlign', output_size=7, sampling_ratio=ratio,
                                                   use_torchvision=True) for ratio in (0, 2))])
@pytest.mark.parametrize('pool', [pool_sorted, pool_masked])
def test_a_roi_that_ends_before_it_begins_has_no_area(layer, pool):
    extractor = SingleRoIExtractor(layer, 6, STRIDES)
    turned, empty = torch.tensor([[0, 10., 10, 5, 30]]), torch.tensor([[0, 10., 10, 10, 30]])
    found, expected = (pool(extractor.roi_layers, features(), rois, extractor.map_roi_levels(rois, 4))
                       for rois in (turned, empty))
    assert torch.equal(found, expected) and torch.equal(extractor(features(), turned), expected)
