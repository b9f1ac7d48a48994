"""Families without a golden case: in float64 beside the papers' formulas, written out, or another implementation."""
from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

from boxdet.registry import BACKBONES, MATCHING, NECKS

DOUBLE = torch.float64


def drawn(cfg: dict, registry) -> tuple[torch.nn.Module, dict]:
    """A part in float64 with weights drawn at random, and those."""
    torch.manual_seed(0)
    part = registry.build(cfg).double().eval()
    with torch.no_grad():
        for name, value in part.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if name.endswith('running_var') else
                            torch.randn_like(value) * 0.2)
    return part, part.state_dict()


def carafe_by_hand(x, weights, name: str, factor: int = 2, window: int = 5):
    """CARAFE, equations 1 and 4 of the paper, for one group: pixel by pixel."""
    small = F.conv2d(x, weights[f'{name}channel_compressor.weight'], weights[f'{name}channel_compressor.bias'])
    kernels = F.conv2d(small, weights[f'{name}content_encoder.weight'], weights[f'{name}content_encoder.bias'],
                       padding=1)[0]
    _, height, width = x[0].shape
    padded, out = F.pad(x[0], (window // 2,) * 4), x.new_zeros(1, len(x[0]), factor * height, factor * width)
    for row in range(factor * height):
        for column in range(factor * width):
            top, left = row // factor, column // factor
            # A pixel shuffle: the kernels of the pixels that come from one are interleaved.
            place = row % factor * factor + column % factor
            kernel = kernels[place::factor ** 2, top, left].softmax(dim=0).view(window, window)
            out[0, :, row, column] = (padded[:, top:top + window, left:left + window] * kernel).sum(dim=(1, 2))
    return out


def test_a_carafe_pyramid():
    neck, weights = drawn(dict(type='FPN_CARAFE', in_channels=[3, 5], out_channels=4, num_outs=3, upsample_cfg=dict(
        type='carafe', up_kernel=5, up_group=1, encoder_kernel=3, encoder_dilation=1, compressed_channels=6)), NECKS)
    inputs = [torch.randn(1, 3, 6, 10, dtype=DOUBLE), torch.randn(1, 5, 3, 5, dtype=DOUBLE)]

    def conv(x, name, **options):
        return F.conv2d(x, weights[f'{name}.conv.weight'], weights[f'{name}.conv.bias'], **options)

    levels = [conv(inputs[0], 'lateral_convs.0'), conv(inputs[1], 'lateral_convs.1'),
              conv(inputs[1], 'lateral_convs.2', stride=2, padding=1)]
    for i in (1, 0):
        grown = carafe_by_hand(levels[i + 1], weights, f'upsample_modules.{i}.')
        levels[i] = levels[i] + grown[:, :, :levels[i].shape[2], :levels[i].shape[3]]
    for i, (found, level) in enumerate(zip(neck(inputs), levels)):
        torch.testing.assert_close(found, conv(level, f'fpn_convs.{i}', padding=1))


def test_the_legacy_coder_of_boxes():
    rng, means, stds = np.random.default_rng(0), np.array([0.1, -0.1, 0.05, 0]), np.array([0.1, 0.1, 0.2, 0.2])
    corners = rng.uniform(0, 60, (50, 2, 2))
    boxes, gt = (np.concatenate([c, c + rng.uniform(0, 50, (50, 2))], axis=1) for c in corners.transpose(1, 0, 2))
    size, gt_size = boxes[:, 2:] - boxes[:, :2] + 1, gt[:, 2:] - gt[:, :2] + 1
    centre, gt_centre = (boxes[:, :2] + boxes[:, 2:]) / 2, (gt[:, :2] + gt[:, 2:]) / 2
    coder = MATCHING.build(dict(type='LegacyDeltaXYWHBBoxCoder', target_means=means.tolist(),
                                target_stds=stds.tolist()))
    deltas = (np.concatenate([(gt_centre - centre) / size, np.log(gt_size / size)], axis=1) - means) / stds
    np.testing.assert_allclose(coder.encode(*map(torch.from_numpy, (boxes, gt))).numpy(), deltas, atol=1e-12)

    deltas = rng.normal(0, 15, (50, 3, 4))  # three classes; some grow by more than is allowed
    moved = deltas * stds + means
    limit = abs(math.log(16 / 1000))
    assert (abs(moved[..., 2:]) > limit).any()
    new_size = size[:, None] * np.exp(moved[..., 2:].clip(-limit, limit))
    new_centre = centre[:, None] + size[:, None] * moved[..., :2]
    expected = np.concatenate([new_centre - new_size / 2, new_centre + new_size / 2], axis=2)
    inputs = torch.from_numpy(boxes), torch.from_numpy(deltas.reshape(50, 12))
    np.testing.assert_allclose(coder.decode(*inputs).numpy(), expected.reshape(50, 12), atol=1e-9)
    last = np.array([99, 79, 99, 79])  # of an image of 80 x 100
    np.testing.assert_allclose(coder.decode(*inputs, (80, 100)).numpy(), expected.clip(0, last).reshape(50, 12),
                               atol=1e-9)


def test_legacy_anchors():
    strides, ratios, scales = (4, 8), (0.5, 1.0, 2.0), (8, 11.3)
    for offset in (0.0, 0.5):
        make = MATCHING.get('LegacyAnchorGenerator')(strides=strides, ratios=ratios, scales=scales,
                                                     center_offset=offset)
        for stride, found in zip(strides, make.grid_priors([(2, 3), (2, 3)], device='cpu')):
            expected, middle = [], offset * (stride - 1)
            for y in range(2):
                for x in range(3):
                    for ratio in ratios:
                        for scale in scales:
                            width = stride * scale / math.sqrt(ratio)
                            low = [middle - (side - 1) / 2 for side in (width, width * ratio)]
                            high = [middle + (side - 1) / 2 for side in (width, width * ratio)]
                            expected.append(np.round([*low, *high]) + np.array([x, y, x, y]) * stride)
            np.testing.assert_array_equal(found.numpy(), expected)


def test_mobilenet_v2_beside_torchvision():
    backbone, weights = drawn(dict(type='MobileNetV2', widen_factor=0.5, out_indices=(0, 1, 2, 4, 6, 7)), BACKBONES)
    other = mobilenet_v2(width_mult=0.5).features.double().eval()
    own = list(weights.values())
    assert [v.shape for v in own] == [v.shape for v in other.state_dict().values()]
    other.load_state_dict(dict(zip(other.state_dict(), own)))
    x, levels = torch.randn(1, 3, 64, 96, dtype=DOUBLE), []
    found = backbone(x)
    for i, block in enumerate(other):
        x = block(x)
        if i in (1, 3, 6, 13, 17, 18):  # the last block of each layer
            levels.append(x)
    for one, two in zip(found, levels, strict=True):
        torch.testing.assert_close(one, two)


def test_a_stage_of_pvt_v2():
    # what PyramidVisionTransformerV2 sets, for one stage
    backbone, weights = drawn(
        dict(type='PyramidVisionTransformer', embed_dims=8, num_stages=1, num_layers=(2,), num_heads=(2,),
             patch_sizes=(7,), strides=(4,), paddings=(3,), sr_ratios=(2,), mlp_ratios=(3,), out_indices=(0,),
             use_abs_pos_embed=False, norm_after_stage=True, use_conv_ffn=True), BACKBONES)
    channels, heads = 16, 2

    def conv(x, name, **options):
        return F.conv2d(x, weights[f'{name}.weight'], weights[f'{name}.bias'], **options)

    def norm(x, name):  # over the channels of a map
        mean, var = x.mean(dim=1, keepdim=True), x.var(dim=1, unbiased=False, keepdim=True)
        x = (x - mean) / (var + 1e-6).sqrt()
        return x * weights[f'{name}.weight'].view(1, -1, 1, 1) + weights[f'{name}.bias'].view(1, -1, 1, 1)

    image = torch.randn(1, 3, 32, 48, dtype=DOUBLE)
    x = norm(conv(image, 'layers.0.0.projection', stride=4, padding=3), 'layers.0.0.norm')
    for block in ('layers.0.1.0.', 'layers.0.1.1.'):
        inside = norm(x, f'{block}norm1')
        few = norm(conv(inside, f'{block}attn.sr', stride=2), f'{block}attn.norm')
        parts = zip(*(weights[f'{block}attn.attn.in_proj_{kind}'].chunk(3) for kind in ('weight', 'bias')))
        query, key, value = (
            F.conv2d(source, w[:, :, None, None], b).view(heads, channels // heads, -1)
            for source, (w, b) in zip((inside, few, few), parts))
        attention = (torch.einsum('hcq,hck->hqk', query, key) / math.sqrt(channels // heads)).softmax(dim=2)
        read = torch.einsum('hqk,hck->hcq', attention, value).reshape(x.shape)
        x = x + F.conv2d(read, weights[f'{block}attn.attn.out_proj.weight'][:, :, None, None],
                         weights[f'{block}attn.attn.out_proj.bias'])
        wide = conv(conv(norm(x, f'{block}norm2'), f'{block}ffn.layers.0'), f'{block}ffn.layers.1', padding=1,
                    groups=3 * channels)
        x = x + conv(wide * (1 + torch.erf(wide / math.sqrt(2))) / 2, f'{block}ffn.layers.4')
    torch.testing.assert_close(backbone(image)[0], norm(x, 'layers.0.2'))
