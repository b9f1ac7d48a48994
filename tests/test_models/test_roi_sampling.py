"""Deformable RoI pooling and RoICrop, against loops over bins and points."""
from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.models.roi_extractor import RoIAlign, SingleRoIExtractor, pool_masked, pool_sorted
from boxdet.models.roi_sampling import DeformRoIPoolPack, ModulatedDeformRoIPoolPack, RoICrop, corners, deform_roi_pool

SIZE, SCALE = (3, 4), 0.25
# usual, reaching out of the map, without area, beyond it, all of it, upright, turned inside out
ROIS = torch.tensor([[0, 3., 4, 50, 60], [1, -8, -9, 30, 44], [0, 10, 10, 10, 10], [1, 60, 30, 130, 90],
                     [0, 0, 0, 119, 79], [1, 20, 30, 25, 70], [0, 60, 60, 20, 20]])


def features() -> torch.Tensor:
    return torch.randn(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))


def offsets(size=SIZE) -> torch.Tensor:
    return 2 * torch.randn(len(ROIS), 2, *size, generator=torch.Generator().manual_seed(1))


def bilinear(plane, y: float, x: float) -> float:
    """RoIAlign's sample of one plane: the border within a pixel of it, zero beyond."""
    height, width = len(plane), len(plane[0])
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return ((1 - dy) * ((1 - dx) * plane[top][left] + dx * plane[top][right])
            + dy * ((1 - dx) * plane[bottom][left] + dx * plane[bottom][right]))


def slow_deform_roi_pool(feats, rois, offset, ratio, gamma):
    h, w = SIZE
    out = torch.zeros(len(rois), feats.shape[1], h, w)
    planes = feats.tolist()
    for r, (image, *box) in enumerate(rois.tolist()):
        x0, y0, x1, y1 = (v * SCALE - 0.5 for v in box)
        width, height = x1 - x0, y1 - y0
        rows = ratio or max(math.ceil(height / h), 0)
        columns = ratio or max(math.ceil(width / w), 0)
        for i in range(h):
            for j in range(w):
                shift_x, shift_y = gamma * width * offset[r, 0, i, j].item(), gamma * height * offset[r, 1, i, j].item()
                for c in range(feats.shape[1]):
                    values = [bilinear(planes[int(image)][c],
                                       y0 + shift_y + (i + (a + 0.5) / rows) * height / h,
                                       x0 + shift_x + (j + (b + 0.5) / columns) * width / w)
                              for a in range(rows) for b in range(columns)]
                    out[r, c, i, j] = sum(values) / max(len(values), 1)
    return out


@pytest.mark.parametrize('ratio', [0, 1, 2])
@pytest.mark.parametrize('gamma', [0.1, 0.5])
def test_deformable_pooling_is_the_loop_over_points(ratio, gamma):
    feats, offset = features(), offsets()
    found = deform_roi_pool(feats, ROIS, offset, SIZE, SCALE, ratio, gamma)
    torch.testing.assert_close(found, slow_deform_roi_pool(feats, ROIS, offset, ratio, gamma), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('ratio', [0, 2])
def test_without_offsets_it_is_roi_align(ratio):
    feats, rois = features(), ROIS[:-1]  # a reversed roi is nothing's: RoIAlign straightens it, this does not
    expected = RoIAlign(SIZE, SCALE, ratio)(feats, rois)
    for offset in (None, torch.zeros(len(rois), 2, *SIZE)):
        torch.testing.assert_close(deform_roi_pool(feats, rois, offset, SIZE, SCALE, ratio), expected)


def test_one_offset_for_all_bins_is_a_moved_roi():
    feats, rois = features(), ROIS[:1]
    offset = torch.zeros(1, 2, *SIZE)
    offset[:, 0], offset[:, 1] = 0.5, -1.0
    moved = rois.clone()
    moved[:, [1, 3]] += 0.1 * 0.5 * 47  # gamma, offset, width
    moved[:, [2, 4]] -= 0.1 * 56
    torch.testing.assert_close(deform_roi_pool(feats, rois, offset, SIZE, SCALE), RoIAlign(SIZE, SCALE)(feats, moved))


@pytest.mark.parametrize('ratio', [0, 2])
def test_gradients_of_features_and_offsets(ratio):
    feats, rois = features()[:, :2].double().requires_grad_(), ROIS[[0, 1, 5]].double()
    offset = (0.3 * offsets()[[0, 1, 5]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, o: deform_roi_pool(f, rois, o, SIZE, SCALE, ratio), (feats, offset),
                                    eps=1e-6, atol=1e-5, fast_mode=True)
    deform_roi_pool(feats, rois, offset, SIZE, SCALE, ratio).sum().backward()
    assert offset.grad.abs().sum() > 0


def pack(cls, **changes):
    torch.manual_seed(0)
    return cls(**dict(output_size=SIZE, output_channels=3, deform_fc_channels=8, spatial_scale=SCALE) | changes)


def test_names_and_shapes_are_mmcvs():
    keys = {k: tuple(v.shape) for k, v in pack(ModulatedDeformRoIPoolPack).state_dict().items()}
    assert keys == {
        'offset_fc.0.weight': (8, 36), 'offset_fc.0.bias': (8,), 'offset_fc.2.weight': (8, 8), 'offset_fc.2.bias': (8,),
        'offset_fc.4.weight': (24, 8), 'offset_fc.4.bias': (24,), 'mask_fc.0.weight': (8, 36), 'mask_fc.0.bias': (8,),
        'mask_fc.2.weight': (12, 8), 'mask_fc.2.bias': (12,)}
    assert list(pack(DeformRoIPoolPack).state_dict()) == [k for k in keys if k.startswith('offset')]


def test_a_fresh_pack_moves_nothing_and_halves_when_modulated():
    feats = features()
    still = RoIAlign(SIZE, SCALE)(feats, ROIS)
    torch.testing.assert_close(pack(DeformRoIPoolPack)(feats, ROIS), still)
    torch.testing.assert_close(pack(ModulatedDeformRoIPoolPack)(feats, ROIS), still / 2)  # sigmoid(0)


def test_the_layers_say_where_bins_go_and_how_much_they_count():
    layer, feats = pack(ModulatedDeformRoIPoolPack, gamma=0.3), features()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    still = RoIAlign(SIZE, SCALE)(feats, ROIS).flatten(1)
    offset = layer.offset_fc(still).view(-1, 2, *SIZE)
    expected = (slow_deform_roi_pool(feats, ROIS, offset, 0, 0.3) * layer.mask_fc(still).view(-1, 1, *SIZE))
    torch.testing.assert_close(layer(feats, ROIS), expected, rtol=1e-3, atol=1e-4)
    layer(feats, ROIS).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize('layer', [
    dict(type='DeformRoIPoolPack', output_size=3, output_channels=6, deform_fc_channels=8),
    dict(type='ModulatedDeformRoIPoolPack', output_size=3, output_channels=6, deform_fc_channels=8, sampling_ratio=2),
    dict(type='RoICrop', output_size=3), dict(type='RoICrop', output_size=3, max_pool=False)])
def test_over_levels_as_roi_layer(layer):
    torch.manual_seed(0)
    feats = [torch.randn(2, 6, 128 // s, 160 // s) for s in (4, 8, 16)]
    extractor = SingleRoIExtractor(layer, 6, [4, 8, 16], finest_scale=20)
    for parameter in extractor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    rois = torch.tensor([[0, 3., 4, 30, 25], [1, 8, 9, 110, 100], [0, 10, 10, 60, 60], [1, 50, 60, 62, 80]])
    levels = extractor.map_roi_levels(rois, 3)
    assert levels.unique().tolist() == [0, 1, 2]
    pooled = extractor(feats, rois)
    for i, level in enumerate(levels.tolist()):
        torch.testing.assert_close(pooled[i:i + 1], extractor.roi_layers[level](feats[level], rois[i:i + 1]))
    both = [pool(extractor.roi_layers, feats, rois, levels) for pool in (pool_sorted, pool_masked)]
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-5)
    empty = extractor([f.requires_grad_() for f in feats], torch.zeros(0, 5))
    assert empty.shape == (0, 6, 3, 3)
    empty.sum().backward()
    assert all(f.grad is not None for f in feats)
    half = extractor([f.detach().bfloat16() for f in feats], rois) if layer['type'] == 'RoICrop' else None
    assert half is None or half.dtype == torch.bfloat16


def slow_roi_crop(feats, rois, size):
    """affine_grid and grid_sample for each roi, as Detectron.pytorch has them."""
    height, width = feats.shape[2:]
    crops = []
    for image, *box in rois.tolist():
        x0, y0, x1, y1 = (v * SCALE for v in box)
        theta = torch.tensor([[[(x1 - x0) / (width - 1), 0, (x0 + x1 - width + 1) / (width - 1)],
                               [0, (y1 - y0) / (height - 1), (y0 + y1 - height + 1) / (height - 1)]]])
        grid = F.affine_grid(theta, (1, 1, *size), align_corners=True)
        crops.append(F.grid_sample(feats[int(image)][None], grid, mode='bilinear', padding_mode='zeros',
                                   align_corners=True))
    return torch.cat(crops)


def test_roi_crop_is_grid_sample_and_the_largest_of_four():
    feats = features()
    torch.testing.assert_close(RoICrop(SIZE, SCALE, max_pool=False)(feats, ROIS), slow_roi_crop(feats, ROIS, SIZE),
                               rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(RoICrop(SIZE, SCALE)(feats, ROIS), F.max_pool2d(slow_roi_crop(feats, ROIS, (6, 8)), 2),
                               rtol=1e-4, atol=1e-4)


def test_roi_crop_gradient_is_grid_samples():
    grads = []
    for crop in (lambda f: RoICrop(SIZE, SCALE)(f, ROIS), lambda f: F.max_pool2d(slow_roi_crop(f, ROIS, (6, 8)), 2)):
        feats = features().requires_grad_()
        (crop(feats) ** 2).sum().backward()
        grads.append(feats.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


def test_corners_by_hand():
    index, weight = corners(torch.tensor([0.25, -0.5, 3.0]), torch.tensor([1.0, 0.0, 1.5]), 2, 4)
    assert index[0].tolist() == [4, 5, 4, 5] and weight[0].tolist() == [0.75, 0.25, 0, 0]
    assert weight[1].tolist() == [0, 0.5, 0, 0]      # half a pixel left of the map: half of pixel 0
    assert weight[2].tolist() == [0.5, 0, 0, 0]      # half a pixel below the last row


def test_other_channels_are_an_error():
    with pytest.raises(ConfigError, match='output_channels=3, but the features have 5 channels'):
        pack(DeformRoIPoolPack)(torch.zeros(1, 5, 20, 30), ROIS)
