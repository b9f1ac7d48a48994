"""FPN against 2.28's keys, torchvision's pyramid with the same weights, and its options one by one."""
import json

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import FeaturePyramidNetwork

from boxdet.errors import ConfigError
from boxdet.models.necks.fpn import FPN

R50 = [256, 512, 1024, 2048]
GN = dict(type='GN', num_groups=32, requires_grad=True)
NORMS = {'gn/mask_rcnn_r50_fpn_gn-all_2x_coco.py': dict(norm_cfg=GN),
         'gn+ws/faster_rcnn_r50_fpn_gn_ws-all_1x_coco.py': dict(norm_cfg=GN, conv_cfg=dict(type='ConvWS'))}


def test_state_dict_keys_shapes_and_order_are_those_of_mmdetection(reference):
    seen = 0
    for config, golden in json.loads((reference / 'state_dict_keys.json').read_text()).items():
        wanted = [(k.removeprefix('neck.'), shape) for k, shape in golden.items() if k.startswith('neck.')]
        if wanted:
            with torch.device('meta'):
                neck = FPN(R50, 256, 5, **NORMS.get(config, {}))
            assert [(k, list(v.shape)) for k, v in neck.state_dict().items()] == wanted, config
            seen += 1
    assert seen == 9


def _levels(channels=(8, 16, 32), sizes=((13, 17), (7, 9), (4, 5)), **options):
    torch.manual_seed(1)
    return [torch.randn(2, c, *hw, **options) for c, hw in zip(channels, sizes)]


def test_fpn_equals_torchvision():
    peer, neck = FeaturePyramidNetwork([8, 16, 32], 12), FPN([8, 16, 32], 12, num_outs=4)
    for theirs, ours in ((peer.inner_blocks, neck.lateral_convs), (peer.layer_blocks, neck.fpn_convs)):
        for block, module in zip(theirs, ours, strict=True):
            module.conv.load_state_dict(block[0].state_dict())
    inputs = _levels()
    wanted = list(peer({str(i): x for i, x in enumerate(inputs)}).values())
    outs = neck(inputs)
    assert len(outs) == 4
    for out, want in zip(outs, wanted):
        torch.testing.assert_close(out, want)
    assert torch.equal(outs[3], outs[2][:, :, ::2, ::2])  # extra levels take every second pixel


@pytest.mark.parametrize('where', ['on_input', 'on_lateral', 'on_output', True])
@pytest.mark.parametrize('relu', [False, True])
def test_extra_convolutions(where, relu):
    neck = FPN([8, 16, 32], 12, num_outs=5, add_extra_convs=where, relu_before_extra_convs=relu)
    inputs = _levels()
    outs = neck(inputs)
    first, second = (c.conv for c in neck.fpn_convs[3:])
    assert first.in_channels == (32 if where in ('on_input', True) else 12) and second.in_channels == 12
    source = {'on_lateral': neck.lateral_convs[2](inputs[2]), 'on_output': outs[2]}.get(where, inputs[2])
    torch.testing.assert_close(outs[3], F.conv2d(source, first.weight, first.bias, stride=2, padding=1))
    source = outs[3].relu() if relu else outs[3]
    torch.testing.assert_close(outs[4], F.conv2d(source, second.weight, second.bias, stride=2, padding=1))


def test_levels_can_be_left_out():
    inputs = _levels()
    above = FPN([8, 16, 32], 12, num_outs=3, start_level=1, add_extra_convs='on_input')
    assert [tuple(o.shape[2:]) for o in above(inputs)] == [(7, 9), (4, 5), (2, 3)]
    assert len(above.lateral_convs) == 2 and above.lateral_convs[0].conv.in_channels == 16
    below = FPN([8, 16, 32], 12, num_outs=2, end_level=1)
    outs = below(inputs)
    assert [tuple(o.shape[2:]) for o in outs] == [(13, 17), (7, 9)] and len(below.lateral_convs) == 2
    torch.testing.assert_close(outs[1], below.fpn_convs[1](below.lateral_convs[1](inputs[1])))


def test_upsampling_options():
    inputs = _levels(sizes=((16, 20), (8, 10), (4, 5)))
    by_size = FPN([8, 16, 32], 12, 3)
    by_factor = FPN([8, 16, 32], 12, 3, upsample_cfg=dict(scale_factor=2, mode='nearest'))
    by_factor.load_state_dict(by_size.state_dict())
    for a, b in zip(by_size(inputs), by_factor(inputs)):
        torch.testing.assert_close(a, b)
    smooth = FPN([8, 16, 32], 12, 3, upsample_cfg=dict(mode='bilinear', align_corners=False))
    laterals = [conv(x) for conv, x in zip(smooth.lateral_convs, inputs)]
    middle = laterals[1] + F.interpolate(laterals[2], size=(8, 10), mode='bilinear', align_corners=False)
    torch.testing.assert_close(smooth(inputs)[1], smooth.fpn_convs[1](middle))


def test_norm_activation_and_bare_laterals():
    neck = FPN([8, 16, 32], 32, 3, norm_cfg=GN, act_cfg=dict(type='ReLU'), no_norm_on_lateral=True)
    keys = set(neck.state_dict())
    assert {'lateral_convs.0.conv.bias', 'fpn_convs.0.gn.weight'} <= keys
    assert 'lateral_convs.0.gn.weight' not in keys and 'fpn_convs.0.conv.bias' not in keys
    outs = neck(_levels())
    assert all((o >= 0).all() for o in outs)


def test_gradients_with_norm_and_activation_survive_the_sum_in_place():
    neck = FPN([8, 16, 32], 32, 4, norm_cfg=GN, act_cfg=dict(type='ReLU')).double()
    inputs = [x.requires_grad_() for x in _levels(dtype=torch.double)]
    sum(o.square().sum() for o in neck(inputs)).backward()
    before = inputs[2].grad[0, 0, 0, 0].item()
    with torch.no_grad():  # central difference of one input pixel
        values = []
        for step in (1e-6, -2e-6):
            inputs[2][0, 0, 0, 0] += step
            values.append(sum(o.square().sum() for o in neck(inputs)).item())
    assert before == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_memory_format_goes_through():
    neck = FPN([8, 16, 32], 12, 5).eval()
    inputs = _levels()
    for a, b in zip(neck(inputs), neck([x.to(memory_format=torch.channels_last) for x in inputs])):
        torch.testing.assert_close(a, b)
        assert b.is_contiguous(memory_format=torch.channels_last)


def test_initial_weights():
    torch.manual_seed(0)
    neck = FPN(R50, 256, 5)
    neck.init_weights()
    bound = (6 / (256 * 9 * 2)) ** 0.5  # Xavier, uniform
    weight = neck.fpn_convs[0].conv.weight
    assert bound * 0.99 < weight.abs().max() <= bound and not neck.fpn_convs[0].conv.bias.any()
    override = dict(name='fpn_convs', type='Constant', val=3)
    neck = FPN(R50, 256, 5, init_cfg=dict(type='Constant', val=2, layer='Conv2d', override=override))
    neck.init_weights()
    assert (neck.lateral_convs[1].conv.weight == 2).all() and (neck.fpn_convs[1].conv.weight == 3).all()


@pytest.mark.parametrize('options, message', [
    (dict(num_outs=0), 'num_outs=0, but levels 0 to 2 make 3'),
    (dict(num_outs=3, end_level=1), 'num_outs=3, but levels 0 to 1 make 2'),
    (dict(num_outs=3, end_level=3), 'end_level=3'), (dict(num_outs=3, start_level=3), 'start_level=3'),
    (dict(num_outs=4, add_extra_convs='on_inputs'), "did you mean 'on_input'")])
def test_levels_that_do_not_add_up(options, message):
    with pytest.raises(ConfigError, match=message):
        FPN([8, 16, 32], 12, **options)


def test_backbone_with_other_levels_is_named():
    with pytest.raises(ConfigError, match='3 levels, the backbone gives 2'):
        FPN([8, 16, 32], 12, 3)(_levels()[:2])


@pytest.mark.parametrize('sizes',
                         [((16, 24), (8, 12), (4, 6)), ((15, 24), (8, 12), (4, 6)), ((16, 24), (8, 12), (4, 5))])
@pytest.mark.parametrize('options', [{}, dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
                                     dict(upsample_cfg=dict(mode='bilinear')), dict(start_level=1, num_outs=2)])
def test_without_gradients_sums_are_made_in_place(sizes, options):
    torch.manual_seed(0)
    neck, levels = FPN([8, 16, 32], 12, **{'num_outs': 3, **options}).eval(), _levels(sizes=sizes)
    before, expected = [level.clone() for level in levels], neck(levels)
    for memory in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            found = neck([level.contiguous(memory_format=memory) for level in levels])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other.detach())
    assert all(torch.equal(one, other) for one, other in zip(before, levels))


@pytest.mark.parametrize('extra', [False, 'on_input', 'on_lateral', 'on_output'])
def test_levels_are_let_go_when_they_are_read(extra):
    torch.manual_seed(0)
    neck = FPN([4, 8], 6, num_outs=4, add_extra_convs=extra)
    levels = [torch.randn(1, 4, 16, 16), torch.randn(1, 8, 8, 8)]
    given = list(levels)
    kept = neck(levels)
    freed = neck(given, keep=False)
    assert given == [] and len(levels) == 2
    assert all(torch.equal(one, other) for one, other in zip(kept, freed))


def test_p2_alone():
    """Detectron.pytorch's P2only: the sums come down to the finest level, and that one goes on."""
    whole = FPN([8, 16, 32], 12, num_outs=3)
    finest = FPN([8, 16, 32], 12, num_outs=1)
    left = finest.load_state_dict(whole.state_dict(), strict=False)
    assert not left.missing_keys
    assert {name[:11] for name in left.unexpected_keys} == {'fpn_convs.1', 'fpn_convs.2'}
    levels = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 32), (16, 8, 4))]
    only, = finest(levels)
    assert torch.equal(only, whole(levels)[0])
