"""Counting multiplications: against hooks on a real run, against the formula of each layer, and published totals."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from boxdet.engine.config import load_config
from boxdet.errors import ConfigError
from boxdet.models import build_detector
from boxdet.models.complexity import count_operations, count_parameters
from tests.test_models import tiny_models
from tests.test_models.test_families import FAMILIES

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
K, PROPOSALS, DETECTIONS = tiny_models.CLASSES, 50, 20  # as tiny_models.test_cfg has them


def on_meta(cfg):
    with torch.device('meta'):
        return build_detector(cfg)


def counted_by_hooks(module: nn.Module, *inputs) -> tuple[int, object]:
    """Multiplications of the convolutions and linear layers in ``module`` while it runs on real numbers."""
    total = 0

    def hook(layer, args, out):
        nonlocal total
        weight = layer.weight
        if isinstance(layer, nn.ConvTranspose2d):
            total += args[0].shape[0] * args[0].shape[2] * args[0].shape[3] * weight.numel()
        elif isinstance(layer, nn.Linear):
            total += len(out) * weight.numel()
        else:
            total += out.shape[0] * out.shape[2] * out.shape[3] * weight.numel()

    # norms have vectors for weights; a deformable convolution is no nn.Conv2d
    layers = [m for m in module.modules()
              if isinstance(getattr(m, 'weight', None), torch.Tensor) and m.weight.dim() > 1]
    handles = [m.register_forward_hook(hook) for m in layers]
    with torch.no_grad():
        out = module(*inputs)
    for handle in handles:
        handle.remove()
    return total, out


@pytest.mark.parametrize('family', ['faster', 'resnext', 'dcnv2', 'gn_ws', 'vgg', 'dc5'])
def test_body_and_rpn_are_what_hooks_count(family):
    cfg = FAMILIES[family]()
    counts = count_operations(on_meta(cfg), 96, 128)
    model = build_detector(cfg).eval()
    expected, feats = counted_by_hooks(model.backbone, torch.zeros(1, 3, 96, 128))
    assert counts['backbone'] == expected
    if model.with_neck:
        expected, feats = counted_by_hooks(model.neck, feats)
        assert counts['neck'] == expected
    assert counts['rpn_head'] == counted_by_hooks(model.rpn_head, feats)[0]


def test_heads_by_hand():
    box = 16 * 49 * 32 + 32 * 32 + 32 * (K + 1) + 32 * 4 * K          # of one roi
    mask = 14 * 14 * (16 * 16 * 9 + 16 * 16 * 4) + 28 * 28 * 16 * K   # convolution, deconvolution, logits
    counts = count_operations(on_meta(tiny_models.mask_rcnn()), 96, 128)
    assert counts['bbox_head'] == PROPOSALS * box and counts['mask_head'] == DETECTIONS * mask
    counts = count_operations(on_meta(tiny_models.cascade_mask_rcnn()), 96, 128)
    agnostic = box - 32 * 4 * (K - 1)
    assert counts['bbox_head'] == 3 * PROPOSALS * agnostic and counts['mask_head'] == 3 * DETECTIONS * mask


def test_layers_inside_the_pooling_count():
    plain = count_operations(on_meta(FAMILIES['faster']()), 96, 128)
    moved = count_operations(on_meta(FAMILIES['mdpool']()), 96, 128)
    bins = 49
    inner = (16 * bins * 8 + 8 * 8 + 8 * 2 * bins) + (16 * bins * 8 + 8 * bins)
    assert moved['bbox_head'] - plain['bbox_head'] == PROPOSALS * inner


def test_layers_around_the_joining_of_levels_count():
    """GenericRoIExtractor: a layer for each of four levels, and one after their sum."""
    cfg = tiny_models.faster_rcnn()
    plain = count_operations(on_meta(cfg), 96, 128)
    layer = dict(type='Conv2d', in_channels=16, out_channels=16, kernel_size=3, padding=1)
    cfg['roi_head']['bbox_roi_extractor'] |= dict(type='GenericRoIExtractor', pre_cfg=layer, post_cfg=layer)
    more = count_operations(on_meta(cfg), 96, 128)
    assert more['bbox_head'] - plain['bbox_head'] == PROPOSALS * (4 + 1) * 49 * 16 * 16 * 9


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_is_counted(family):
    counts = count_operations(on_meta(FAMILIES[family]()), 128, 128)  # FPG halves its maps seven times
    assert all(count > 0 for count in counts.values())
    parts = {'rpn': {'rpn_head'}, 'fast': {'bbox_head', 'mask_head'}, 'keypoint': {'bbox_head', 'keypoint_head'},
             'c4': {'rpn_head', 'shared_head', 'bbox_head', 'mask_head'}}.get(family, {'rpn_head', 'bbox_head'})
    assert parts <= set(counts)


def test_totals_are_the_published_ones():
    """Swin (Liu et al. 2021, table 2) has 260 GFLOPs and 44 M for Mask R-CNN R50 at 1280 x 800.

    torchvision's weights tell their number of parameters.
    """
    model = on_meta(load_config(CONFIGS / 'mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py').model)
    assert sum(count_operations(model, 800, 1280).values()) / 1e9 == pytest.approx(260, rel=0.005)
    assert count_parameters(model) / 1e6 == pytest.approx(44.4, abs=0.05)
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
    theirs = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta['num_params']
    cfg = load_config(CONFIGS / 'torchvision/fasterrcnn_resnet50_fpn.py',
                      ['model.roi_head.bbox_head.num_classes=90']).model
    # Its frozen norms are no parameters (26,560 channels), and its last layer has box deltas for the background too.
    assert count_parameters(on_meta(cfg)) == theirs + 2 * 26560 - 4 * (1024 + 1)


def test_a_family_is_counted_as_it_runs():
    plain, htc, grid = (count_operations(on_meta(FAMILIES[family]()), 96, 128)
                             for family in ('mask', 'htc', 'grid'))
    assert 'context' not in plain and htc['context'] > 0 and grid['grid_head'] > 0


def test_a_model_with_numbers_is_an_error():
    with pytest.raises(ConfigError, match="torch.device\\('meta'\\)"):
        count_operations(build_detector(tiny_models.faster_rcnn()), 96, 128)
