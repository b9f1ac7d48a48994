"""Weights of tensorpack and Detectron.pytorch, of detectron2's cascade and torchvision's second versions, both ways.

What a file of these projects means is written out by hand below from the projects' own text; see docs/weights.md for
what was compared with their own conversion code.
"""
import re

import numpy as np
import pytest
import torch
import torchvision

from boxdet.checkpoints.convert import detectron_pytorch, format_named, recognise, tensorpack
from boxdet.checkpoints.io import load_checkpoint, save_arrays
from boxdet.checkpoints.loading import load_weights
from boxdet.engine.config import load_config
from boxdet.errors import CheckpointError
from boxdet.models import build_detector
from boxdet.registry import BACKBONES

TENSORPACK = [
    'cascade_mask_rcnn_R101_FPN_3x', 'cascade_mask_rcnn_R101_FPN_GN_scratch_9x', 'cascade_mask_rcnn_R50_FPN_1x',
    'cascade_mask_rcnn_R50_FPN_GN_4x', 'faster_rcnn_R50_FPN_1x', 'mask_rcnn_R101_C4_1x', 'mask_rcnn_R101_FPN_1x',
    'mask_rcnn_R50_C4_1x', 'mask_rcnn_R50_FPN_2x', 'mask_rcnn_R50_FPN_GN_2x']


def thin(cfg):
    """An eighth of the widths: the names are the same, and numbers can be told apart."""
    model, head = cfg.model, cfg.model.roi_head
    model.backbone.base_channels = 32 if model.backbone.get('norm_cfg', {}).get('type') == 'GN' else 8
    base = model.backbone.base_channels
    if 'neck' in model:
        model.neck.update(in_channels=[4 * base, 8 * base, 16 * base, 32 * base], out_channels=32)
        model.rpn_head.update(in_channels=32, feat_channels=32)
        for extractor in ('bbox_roi_extractor', 'mask_roi_extractor'):
            if head.get(extractor):
                head[extractor].out_channels = 32
        for part in head.bbox_head if isinstance(head.bbox_head, list) else [head.bbox_head]:
            part.update(in_channels=32, fc_out_channels=24, num_classes=5, conv_out_channels=32)
        if head.get('mask_head'):
            head.mask_head.update(in_channels=32, conv_out_channels=32, num_classes=5)
    return cfg


def numbered(model):
    """Every entry with numbers of its own, so that a wrong place or layout shows."""
    state, start = model.state_dict(), 0
    for value in state.values():
        if value.is_floating_point():
            value.copy_(torch.arange(start, start + value.numel(), dtype=torch.float32).view(value.shape) % 9973)
            start += value.numel()
    return state


def without_counters(state):
    return {name: value for name, value in state.items() if not name.endswith('num_batches_tracked')}


@pytest.mark.parametrize('name', TENSORPACK)
def test_tensorpack_there_and_back(repo_root, tmp_path, name):
    cfg = load_config(repo_root / f'configs/tensorpack/{name}.py')
    cfg = cfg if 'C4' in name else thin(cfg)
    with torch.device('meta' if 'C4' in name else 'cpu'):
        model = build_detector(cfg.model)
    state = without_counters(model.state_dict() if 'C4' in name else numbered(model))
    theirs = tensorpack.from_boxdet(state)
    assert recognise(theirs) is tensorpack
    back = tensorpack.to_boxdet(theirs)
    assert back.keys() == state.keys()
    assert {n: v.shape for n, v in back.items()} == {n: v.shape for n, v in state.items()}
    if 'C4' in name:
        return
    assert all(torch.equal(back[n], state[n]) for n in state)
    save_arrays(tensorpack.arrays(theirs), tmp_path / 'model.npz')
    read = load_checkpoint(tmp_path / 'model.npz')
    assert read['meta']['converted_from'] == 'tensorpack'
    assert all(torch.equal(read['state_dict'][n], state[n]) for n in state)


def test_tensorpack_layouts(repo_root):
    """Kernels are (h, w, in, out), linear layers (in, out) of (C, h, w); the background is class 0 and has boxes."""
    cfg = thin(load_config(repo_root / 'configs/tensorpack/mask_rcnn_R50_FPN_2x.py'))
    state = numbered(build_detector(cfg.model))
    theirs = tensorpack.from_boxdet(state)
    kernel = state['backbone.layer2.0.conv2.weight']
    assert theirs['group1/block0/conv2/W'][2, 1, 5, 7] == kernel[7, 5, 2, 1]
    variance = state['backbone.layer2.0.downsample.1.running_var']
    assert theirs['group1/block0/convshortcut/bn/variance/EMA'].equal(variance)
    assert theirs['conv0/bn/gamma'].equal(state['backbone.bn1.weight'])
    assert theirs['fpn/lateral_1x1_c3/b'].equal(state['neck.lateral_convs.1.conv.bias'])
    assert theirs['fpn/posthoc_3x3_p5/W'].shape == (3, 3, 32, 32)
    fc = state['roi_head.bbox_head.shared_fcs.0.weight']  # (out, C * 7 * 7)
    assert theirs['fastrcnn/fc6/W'].view(32, 7, 7, 24)[3, 2, 6, 4] == fc.view(24, 32, 7, 7)[4, 3, 2, 6]
    scores, boxes = state['roi_head.bbox_head.fc_cls.bias'], state['roi_head.bbox_head.fc_reg.bias']
    assert theirs['fastrcnn/outputs/class/b'].tolist() == [scores[5].item(), *scores[:5].tolist()]
    assert theirs['fastrcnn/outputs/box/b'].tolist() == [0] * 4 + boxes.tolist()
    assert theirs['maskrcnn/conv/W'].shape == (1, 1, 32, 5)
    assert theirs['maskrcnn/deconv/W'][1, 0, 3, 4] == state['roi_head.mask_head.upsample.weight'][4, 3, 1, 0]
    assert theirs['rpn/class/W'].shape == (1, 1, 32, 3)


def test_tensorpack_norms_of_heads(repo_root):
    """Group norms come after the ReLU, and their convolutions have biases."""
    cfg = thin(load_config(repo_root / 'configs/tensorpack/cascade_mask_rcnn_R50_FPN_GN_4x.py'))
    model = build_detector(cfg.model)
    theirs = tensorpack.from_boxdet(model.state_dict())
    for name in ('fpn/gn_c2/gamma', 'fpn/gn_p5/beta', 'fpn/lateral_1x1_c2/b', 'maskrcnn/fcn3/b', 'maskrcnn/gn3/gamma',
                 'cascade_rcnn_stage3/head/conv3/b', 'cascade_rcnn_stage3/head/gn3/beta',
                 'cascade_rcnn_stage1/head/fc/W', 'cascade_rcnn_stage2/outputs/box/W', 'group3/block2/conv3/gn/gamma'):
        assert name in theirs
    conv = model.roi_head.mask_head.convs[0]
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(conv(x), conv.gn(conv.conv(x).relu()))
    lateral = model.neck.lateral_convs[0]
    x = torch.randn(2, lateral.conv.in_channels, 4, 4)
    assert torch.equal(lateral(x), lateral.gn(lateral.conv(x)))


def test_tensorpack_body(tmp_path, monkeypatch):
    """ImageNet's R50-AlignPadding.npz: its classifier and what training left are passed over."""
    body = BACKBONES.build(dict(type='ResNet', depth=50, base_channels=8))
    state = without_counters(numbered(body))
    named = {f'backbone.{name}': value for name, value in state.items()}
    from boxdet.checkpoints.convert.tensorpack import _read, _theirs, _to_tensorflow
    names = [_theirs(name, _read(['group0/block0/conv3/W'])) for name in named]
    arrays = {f'{name}:0': _to_tensorflow(value).numpy() for name, value in zip(names, named.values())}
    arrays.update({'linear/W:0': np.zeros((64, 1000), 'f4'), 'linear/b:0': np.zeros(1000, 'f4'),
                   'global_step:0': np.int64(5), 'conv0/W/Momentum:0': np.zeros(3, 'f4')})
    np.savez(tmp_path / 'ImageNet-R50-AlignPadding.npz', **arrays)
    read = load_checkpoint(tmp_path / 'ImageNet-R50-AlignPadding.npz')['state_dict']
    assert all(torch.equal(read[name], value) for name, value in state.items()) and len(read) == len(state)
    fresh = BACKBONES.build(dict(type='ResNet', depth=50, base_channels=8, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'ImageNet-R50-AlignPadding.npz'))))
    fresh.init_weights()
    assert torch.equal(fresh.layer3[1].conv2.weight, state['layer3.1.conv2.weight'])


def test_damaged_archives_and_odd_entries_are_told(tmp_path, repo_root):
    np.savez(tmp_path / 'objects.npz', a=np.array([dict(a=1)], dtype=object))
    (tmp_path / 'cut.npz').write_bytes(b'PK\x03\x04 nothing')
    for name in ('objects', 'cut'):
        with pytest.raises(CheckpointError, match='no numpy archive of plain arrays'):
            load_checkpoint(tmp_path / f'{name}.npz')
    cfg = thin(load_config(repo_root / 'configs/tensorpack/faster_rcnn_R50_FPN_1x.py'))
    theirs = tensorpack.arrays(tensorpack.from_boxdet(build_detector(cfg.model).state_dict()))
    theirs['rpn/klass/b'] = theirs.pop('rpn/class/b')
    np.savez(tmp_path / 'odd.npz', **theirs)
    told = "rpn/klass/b is unknown; did you mean 'rpn/class/b'.*rpn/class/b is missing"
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(tmp_path / 'odd.npz')


@pytest.mark.parametrize('name', ['faster_rcnn_R_50_FPN', 'mask_rcnn_R_50_FPN', 'keypoint_rcnn_R_50_FPN',
                                  'faster_rcnn_R_50_C4', 'mask_rcnn_R_50_C4'])
def test_detectron_pytorch_there_and_back(repo_root, tmp_path, name):
    cfg = load_config(repo_root / f'configs/detectron/{name}.py')
    with torch.device('meta'):
        shapes = without_counters(build_detector(cfg.model).state_dict())
    state = {n: torch.full(v.shape, i % 97 + 1.0) if v.is_floating_point() else torch.zeros(v.shape, dtype=v.dtype)
             for i, (n, v) in enumerate(shapes.items())}
    theirs = detectron_pytorch.from_boxdet(state)
    assert recognise(theirs) is detectron_pytorch
    assert all(re.match(r'(Conv_Body|RPN|Box_Head|Box_Outs|Mask_Head|Mask_Outs|Keypoint_Head|Keypoint_Outs)\.', n)
               for n in theirs)
    if 'keypoint' in name:
        theirs['Keypoint_Outs.upsample.upconv.weight'] = torch.zeros(17, 17, 4, 4)
    torch.save(dict(model=theirs, step=720000, train_size=1, batch_size=16, optimizer=dict(state={}, param_groups=[])),
               tmp_path / 'model_step719999.pth')
    read = load_checkpoint(tmp_path / 'model_step719999.pth')
    assert read['meta']['converted_from'] == 'Detectron.pytorch'
    found = read['state_dict']
    assert found.keys() == state.keys()
    for n, value in state.items():
        # Batch norms hold a scale and a shift there: the same function of other numbers.
        if not re.search(r'\.(bn\d|downsample\.1)\.', n):
            assert torch.equal(found[n], value), n


@pytest.mark.parametrize('pooling', ['RoIAlign', 'RoIPool', 'RoICrop'])
def test_p2only_with_each_pooling(repo_root, tmp_path, pooling):
    """Of a file all but the output convolutions of the other levels is used; its RPN is called as without a pyramid."""
    cfg = load_config(repo_root / 'configs/detectron/faster_rcnn_R_50_FPN_P2only.py')
    cfg.model.roi_head.bbox_roi_extractor.roi_layer = dict(type=pooling, output_size=7)
    whole = thin(load_config(repo_root / 'configs/detectron/faster_rcnn_R_50_FPN.py')).model
    whole.rpn_head.anchor_generator.scales = [8, 16, 32, 64, 128]
    theirs = detectron_pytorch.from_boxdet(numbered(build_detector(whole)))
    theirs = {name.replace('RPN.FPN_RPN_', 'RPN.RPN_'): value / 1e5 for name, value in theirs.items()}
    torch.save(dict(model=theirs, step=1), tmp_path / 'model_step1.pth')
    model = build_detector(thin(cfg).model).eval()
    report = load_weights(model, load_checkpoint(tmp_path / 'model_step1.pth'))
    assert not report.missing and not report.mismatched
    assert sorted(report.unexpected) == [f'neck.fpn_convs.{i}.conv.{leaf}' for i in (1, 2, 3)
                                         for leaf in ('bias', 'weight')]
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        level, = model.extract_feat(image)
        pooled = model.roi_head.bbox_roi_extractor([level], torch.tensor([[0., 4., 4., 40., 30.]]))
    assert level.shape[-2:] == (16, 24) and pooled.shape == (1, 32, 7, 7) and pooled.isfinite().all()
    assert model.rpn_head.anchor_generator.num_base_priors == [15]


def test_detectron_pytorch_names_levels_from_the_top(repo_root):
    cfg = load_config(repo_root / 'configs/detectron/mask_rcnn_R_50_FPN.py')
    state = {n: torch.zeros(v.shape) for n, v in build_detector(cfg.model).state_dict().items()}
    state['neck.lateral_convs.3.conv.bias'] += 3
    state['neck.lateral_convs.0.conv.bias'] += 1
    state['neck.fpn_convs.2.conv.bias'] += 2
    state['roi_head.mask_head.convs.1.conv.bias'] += 5
    theirs = detectron_pytorch.from_boxdet(state)
    assert theirs['Conv_Body.conv_top.bias'].eq(3).all()
    assert theirs['Conv_Body.topdown_lateral_modules.2.conv_lateral.bias'].eq(1).all()
    assert theirs['Conv_Body.posthoc_modules.1.bias'].eq(2).all()
    assert theirs['Mask_Head.conv_fcn.2.bias'].eq(5).all()
    assert 'Conv_Body.conv_body.res4.5.conv3.weight' in theirs and 'Box_Head.fc1.weight' in theirs


@pytest.mark.parametrize('name', ['cascade_mask_rcnn_R_50_FPN', 'faster_rcnn_X_101_32x8d_FPN',
                                  'mask_rcnn_X_101_32x8d_FPN'])
def test_detectron2_there_and_back(repo_root, name):
    with torch.device('meta'):
        model = build_detector(load_config(repo_root / f'configs/detectron2/{name}.py').model)
    state = without_counters(model.state_dict())
    theirs = format_named('detectron2').from_boxdet(state)
    assert recognise(theirs).NAME == 'detectron2'
    back = recognise(theirs).to_boxdet(theirs)
    assert {n: v.shape for n, v in back.items()} == {n: v.shape for n, v in state.items()}
    if name.startswith('cascade'):
        assert {'roi_heads.box_head.2.fc2.bias', 'roi_heads.box_predictor.0.bbox_pred.weight',
                'roi_heads.mask_head.predictor.bias'} <= theirs.keys()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fasterrcnn_resnet50_fpn_v2', 'maskrcnn_resnet50_fpn_v2'])
def test_torchvisions_second_versions(repo_root, name):
    """Of the models as torchvision builds them every entry is read, and all parts compute the same in float64."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    state = theirs.state_dict()
    model = build_detector(load_config(repo_root / f'configs/torchvision/{name}.py').model).eval()
    missing = model.load_state_dict(recognise(state).to_boxdet(state), strict=True)
    assert not missing.missing_keys
    assert format_named('torchvision').from_boxdet(model.state_dict()).keys() == state.keys()
    theirs.double(), model.double()
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 96).double()
        levels, expected = model.extract_feat(x), list(theirs.backbone(x).values())
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(levels, expected))
        scores, deltas = model.rpn_head(levels)
        assert torch.allclose(scores[0], theirs.rpn.head(expected)[0][0], rtol=1e-9, atol=1e-12)
        pooled = torch.rand(4, 256, 7, 7).double()
        scores, deltas = model.roi_head.bbox_head(pooled)
        logits, boxes = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
        assert torch.allclose(scores[:, :-1], logits[:, 1:], rtol=1e-9, atol=1e-12)
        assert torch.allclose(deltas, boxes[:, 4:], rtol=1e-9, atol=1e-12)
        if name.startswith('mask'):
            pooled = torch.rand(2, 256, 14, 14).double()
            masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled))
            assert torch.allclose(model.roi_head.mask_head(pooled), masks[:, 1:], rtol=1e-9, atol=1e-12)
