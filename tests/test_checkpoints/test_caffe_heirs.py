"""Weights of Detectron and maskrcnn-benchmark: their names, their order of classes, their norms, and results as before.

Neither project runs here, so their files are made from models of boxdet, and what a file means is checked by hand.
"""
import copy
import pickle
import re
import struct

import numpy as np
import pytest
import torch

from boxdet.apis import inference_detector, init_detector
from boxdet.apis import train as _  # noqa: F401  (from then on Pretrained reads files)
from boxdet.checkpoints.convert import detectron, format_named, formats, maskrcnn_benchmark, recognise
from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.checkpoints.loading import load_weights
from boxdet.engine.config import load_config
from boxdet.errors import CheckpointError
from boxdet.models import build_detector
from boxdet.registry import BACKBONES

KINDS = ['faster_rcnn_R_50_FPN', 'mask_rcnn_R_50_FPN', 'keypoint_rcnn_R_50_FPN', 'mask_rcnn_R_50_C4']
CFG = 'MODEL:\n  TYPE: generalized_rcnn\n  NUM_CLASSES: 5\nPIXEL_MEANS: !!python/object/apply:numpy.core ...\n'


class Python2(pickle._Pickler):
    """Writes text and bytes as Python 2 did: one type, of latin1 bytes."""
    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        raw = value.encode('latin1') if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack('<i', len(raw)) + raw)
        self.memoize(value)
    dispatch[str] = dispatch[bytes] = save_string


def write_as_detectron(path, blobs):
    """A file of its training: momentums, the learning rate, what was preserved of ImageNet's file, and the config."""
    arrays = {name: value.numpy() for name, value in blobs.items()}
    arrays.update({f'{name}_momentum': np.zeros_like(value) for name, value in list(arrays.items())[:3]})
    arrays.update(lr=np.float32(0.002), weight_order='conv1_w', conv1_b=np.zeros(8, np.float32),
                  fc1000_w=np.zeros((9, 8), np.float32), kps_score_w=np.zeros((17, 17, 4, 4), np.float32))
    with open(path, 'wb') as file:
        Python2(file, protocol=2).dump(dict(blobs=arrays, cfg=CFG))


def write_as_maskrcnn_benchmark(path, state):
    cells = {f'rpn.anchor_generator.cell_anchors.{i}': torch.zeros(3, 4) for i in range(2)}
    torch.save(dict(model={f'module.{name}': value for name, value in {**state, **cells}.items()}, iteration=90000,
                    optimizer=dict(state={}, param_groups=[])), path)


def thin_config(name, repo_root):
    """A shipped config for 4 classes and small images; with a pyramid, an eighth as wide."""
    cfg = load_config(repo_root / f'configs/detectron/{name}.py')
    model, head = cfg.model, cfg.model.roi_head
    if 'neck' in model:
        model.backbone.base_channels = 8
        model.neck.update(in_channels=[32, 64, 128, 256], out_channels=16)
        model.rpn_head.update(in_channels=16, feat_channels=16)
        for part in ('bbox', 'mask', 'keypoint'):
            if f'{part}_head' in head:
                head[f'{part}_roi_extractor'].out_channels = head[f'{part}_head'].in_channels = 16
        head.bbox_head.fc_out_channels = 24
    if name.startswith('keypoint'):
        head.keypoint_head.update(conv_out_channels=16)
    else:
        head.bbox_head.num_classes = 4
    if 'mask_head' in head:
        head.mask_head.update(num_classes=4, conv_out_channels=16)
    model.test_cfg.rpn.max_per_img = 30
    model.test_cfg.rcnn.update(score_thr=0.01, max_per_img=20, nms=dict(type='nms', iou_threshold=0.9))
    cfg.data.test = dict(type='CocoDataset', classes=tuple('abcd'), pipeline=cfg.data.test.pipeline)
    cfg.data.test.pipeline[1].img_scale = (128, 96)
    return cfg


@pytest.fixture(scope='module')
def models(repo_root):
    """Name -> a thin model with norms that do something and results that differ, and its config; made once."""
    made = {}

    def get(name):
        if name not in made:
            cfg = thin_config(name, repo_root)
            torch.manual_seed(5)
            model = build_detector(copy.deepcopy(cfg.model)).eval()
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 1.5)
                    module.weight.data.uniform_(0.4, 0.9), module.bias.data.normal_(0, 0.1)
            for key, value in model.named_parameters():
                if value.dim() > 1:
                    # Pixels reach to 150, and boxes are to stay in the image.
                    gain = 0.02 if key == 'backbone.conv1.weight' else 0.1 if 'reg' in key else 1.4
                    value.data.normal_(0, gain / value[0].numel() ** 0.5)
                elif 'fc_' in key or 'conv_logits' in key or 'upsample' in key:
                    value.data.normal_(0, 0.1)
            made[name] = model, cfg
        return made[name]
    return get


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(1).integers(0, 255, (96, 128, 3), dtype=np.uint8)


def detections(model, cfg, image):
    model.cfg = cfg
    return inference_detector(model, image)


# A person of a class of its own, and the names of the small set's four classes.
@pytest.mark.filterwarnings('ignore:.*names of results would be wrong')
@pytest.mark.parametrize('project, write, suffix', [
    ('detectron', write_as_detectron, '.pkl'), ('maskrcnn-benchmark', write_as_maskrcnn_benchmark, '.pth')])
@pytest.mark.parametrize('name', KINDS)
def test_a_file_of_theirs_detects_as_the_model_it_is_made_of(project, write, suffix, name, models, image, tmp_path):
    model, cfg = models(name)
    theirs = format_named(project).from_boxdet(model.state_dict())
    assert [kind for kind in formats() if format_named(kind).recognises(theirs)] == [project]
    write(tmp_path / f'model_final{suffix}', theirs)
    ours = init_detector(copy.deepcopy(cfg), tmp_path / f'model_final{suffix}', device='cpu')
    expected, found = detections(model, cfg, image), inference_detector(ours, image)
    assert len(found) == len(expected) > 5
    assert torch.equal(found.labels, expected.labels) and torch.allclose(found.scores, expected.scores, atol=1e-4)
    assert torch.allclose(found.bboxes, expected.bboxes, atol=1e-2)
    if name.startswith('mask'):
        assert np.mean(found.masks_bitmaps() != expected.masks_bitmaps()) < 1e-3 and found.masks_bitmaps().any()
    if name.startswith('keypoint'):
        assert torch.allclose(found.keypoints, expected.keypoints, atol=1e-2)


@pytest.mark.parametrize('module', [detectron, maskrcnn_benchmark])
@pytest.mark.parametrize('config', [
    'detectron/faster_rcnn_R_50_C4', 'detectron/keypoint_rcnn_R_50_FPN', 'mask_rcnn/mask_rcnn_x101_32x8d_fpn_1x_coco',
    'gn/mask_rcnn_r50_fpn_gn-all_2x_coco', 'rpn/rpn_r50_fpn_1x_coco'])
def test_every_architecture_there_and_back(module, config, repo_root):
    with torch.device('meta'):
        own = build_detector(load_config(repo_root / f'configs/{config}.py').model).state_dict()
    own = {key: torch.full((1,) * value.dim(), float(i)).expand(value.shape)
           for i, (key, value) in enumerate(own.items()) if not key.endswith('num_batches_tracked')}
    # Such norms as are a scale and a shift there come back as they were, too.
    for key in own:
        if key.endswith(('running_mean', 'running_var')):
            own[key] = torch.full(own[key].shape, 0. if key.endswith('mean') else 1 - 1e-5)
    theirs = module.from_boxdet(own)
    assert recognise(theirs) is module and not set(theirs) & set(own)
    back = module.to_boxdet(theirs)
    assert back.keys() == own.keys() and all(torch.allclose(back[key], own[key]) for key in own)


# --- what is in a Detectron file ---

NAMES = {
    'faster_rcnn_R_50_FPN': """
        conv1_w res_conv1_bn_s res_conv1_bn_b res2_0_branch1_w res2_0_branch1_bn_s res2_0_branch1_bn_b res2_0_branch2a_w
        res2_0_branch2a_bn_s res2_0_branch2a_bn_b res2_0_branch2b_w res2_2_branch2c_bn_b res3_3_branch2c_w
        res4_5_branch2a_bn_s res5_2_branch2c_w fpn_inner_res5_2_sum_w fpn_inner_res5_2_sum_b
        fpn_inner_res4_5_sum_lateral_w fpn_inner_res3_3_sum_lateral_w fpn_inner_res2_2_sum_lateral_b fpn_res5_2_sum_w
        fpn_res4_5_sum_w fpn_res3_3_sum_b fpn_res2_2_sum_w conv_rpn_fpn2_w rpn_cls_logits_fpn2_w rpn_bbox_pred_fpn2_b
        fc6_w fc6_b fc7_w fc7_b cls_score_w cls_score_b bbox_pred_w bbox_pred_b""",
    'mask_rcnn_R_50_FPN': """
        _[mask]_fcn1_w _[mask]_fcn1_b _[mask]_fcn4_w conv5_mask_w conv5_mask_b mask_fcn_logits_w mask_fcn_logits_b""",
    'keypoint_rcnn_R_50_FPN': 'conv_fcn1_w conv_fcn8_b kps_score_lowres_w kps_score_lowres_b',
    'mask_rcnn_R_50_C4': """
        conv_rpn_w rpn_cls_logits_w rpn_bbox_pred_w res5_0_branch1_w res5_2_branch2c_bn_s cls_score_w bbox_pred_b
        conv5_mask_w mask_fcn_logits_w"""}
# 53 convolutions with a scale and a shift each; and weights with biases.
COUNTS = {'faster_rcnn_R_50_FPN': 159 + 2 * (8 + 3 + 4), 'mask_rcnn_R_50_FPN': 159 + 2 * (8 + 3 + 4 + 6),
          'keypoint_rcnn_R_50_FPN': 159 + 2 * (8 + 3 + 4 + 9), 'mask_rcnn_R_50_C4': 159 + 2 * (3 + 2 + 2)}


@pytest.mark.parametrize('name', KINDS)
def test_blobs_have_detectrons_names(name, models):
    blobs = detectron.from_boxdet(models(name)[0].state_dict())
    assert set(NAMES[name].split()) <= set(blobs) and len(blobs) == COUNTS[name]


def test_names_of_group_norms(repo_root):
    cfg = load_config(repo_root / 'configs/gn/mask_rcnn_r101_fpn_gn-all_2x_coco.py')
    with torch.device('meta'):
        own = build_detector(cfg.model).state_dict()
        blobs = detectron.from_boxdet(own)
    expected = {
        'conv1_gn_s', 'res2_0_branch1_gn_s', 'res4_22_branch2c_gn_b', 'fpn_inner_res4_22_sum_lateral_gn_s',
        'fpn_res5_2_sum_gn_b', 'head_conv1_w', 'head_conv4_gn_s', 'fc6_w', '_mask_fcn1_w', '_mask_fcn4_gn_b'}
    assert expected <= set(blobs)
    assert not {'conv1_b', 'fc7_w', 'fpn_res5_2_sum_b', 'head_conv1_b', '_mask_fcn1_b'} & set(blobs)


def test_a_scale_and_a_shift_are_a_batch_norm_here(models):
    blobs = detectron.from_boxdet(models('faster_rcnn_R_50_FPN')[0].state_dict())
    scale, shift = torch.tensor([2., -0.5, 1e-3, 100.]).repeat(2), torch.arange(8.)
    blobs.update(res_conv1_bn_s=scale, res_conv1_bn_b=shift)
    model = models('faster_rcnn_R_50_FPN')[0]
    other = copy.deepcopy(model)
    assert not load_weights(other, detectron.to_boxdet(blobs)).missing
    pixels = torch.randn(2, 8, 5, 5)
    expected = pixels * scale[:, None, None] + shift[:, None, None]
    assert torch.allclose(other.backbone.bn1(pixels), expected, rtol=1e-5, atol=1e-6)
    x = torch.randn(2, 3, 64, 64)
    norm, theirs = model.backbone.bn1, detectron.from_boxdet(model.state_dict())
    expected = norm(model.backbone.conv1(x))
    found = model.backbone.conv1(x) * theirs['res_conv1_bn_s'][:, None, None] + theirs['res_conv1_bn_b'][:, None, None]
    assert torch.allclose(found, expected, atol=1e-5)


def test_running_statistics_beside_a_scale_are_read(models):
    """Files of norms that were never frozen have them."""
    own = models('faster_rcnn_R_50_FPN')[0].state_dict()
    blobs = detectron.from_boxdet(own)
    for name in [name for name in blobs if name.endswith('_bn_s')]:
        blobs[f'{name[:-2]}_rm'] = torch.full_like(blobs[name], 0.25)
        blobs[f'{name[:-2]}_riv'] = torch.full_like(blobs[name], 4.)
    back = detectron.to_boxdet(blobs)
    assert (back['backbone.layer2.0.downsample.1.running_mean'] == 0.25).all()
    assert (back['backbone.bn1.running_var'] == 4).all()
    assert torch.equal(back['backbone.bn1.weight'], blobs['res_conv1_bn_s'])


@pytest.mark.parametrize('module, scores, boxes, masks', [
    (detectron, 'cls_score_w', 'bbox_pred_w', 'mask_fcn_logits_w'),
    (maskrcnn_benchmark, 'roi_heads.box.predictor.cls_score.weight', 'roi_heads.box.predictor.bbox_pred.weight',
     'roi_heads.mask.predictor.mask_fcn_logits.weight')])
def test_the_background_comes_first_there_and_last_here(module, scores, boxes, masks, models):
    theirs = module.from_boxdet(models('mask_rcnn_R_50_FPN')[0].state_dict())
    rows = torch.arange(5.)  # the background and classes 1 to 4
    theirs[scores] = rows[:, None].expand(5, 24)
    theirs[boxes] = (rows[:, None] * 10 + torch.arange(4.)).flatten()[:, None].expand(20, 24)
    theirs[masks] = rows[:, None, None, None].expand(5, 16, 1, 1)
    found = module.to_boxdet(theirs)
    assert found['roi_head.bbox_head.fc_cls.weight'][:, 0].tolist() == [1, 2, 3, 4, 0]
    assert found['roi_head.bbox_head.fc_reg.weight'][:, 0].tolist() == [
        10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33, 40, 41, 42, 43]
    assert found['roi_head.mask_head.conv_logits.weight'].flatten(1)[:, 0].tolist() == [1, 2, 3, 4]


def test_the_transposed_convolution_is_the_same_there(models):
    """Caffe2's ConvTranspose: out[o, 2 y + dy, 2 x + dx] = b[o] + sum over i of x[i, y, x] w[i, o, dy, dx]."""
    model = copy.deepcopy(models('mask_rcnn_R_50_FPN')[0])
    blobs = detectron.from_boxdet(model.state_dict())
    weight, bias = torch.randn(16, 16, 2, 2), torch.randn(16)
    blobs.update(conv5_mask_w=weight, conv5_mask_b=bias)
    load_weights(model, detectron.to_boxdet(blobs))
    x, expected = torch.randn(16, 3, 5), torch.empty(16, 6, 10)
    for dy in range(2):
        for dx in range(2):
            expected[:, dy::2, dx::2] = torch.einsum('iyx,io->oyx', x, weight[:, :, dy, dx]) + bias[:, None, None]
    assert torch.allclose(model.roi_head.mask_head.upsample(x[None])[0], expected, atol=1e-4)


@pytest.mark.parametrize('bare', [False, True])
def test_imagenets_backbones_start_a_backbone_and_a_detector(bare, models, tmp_path, repo_root):
    """R-50.pkl as init_cfg=dict(type='Pretrained') and as load_from; with 'blobs' or, as the oldest, without."""
    model = models('faster_rcnn_R_50_FPN')[0]
    blobs = {name: value for name, value in detectron.from_boxdet(model.state_dict()).items()
             if re.match(r'conv1_|res_conv1|res\d', name)}
    if bare:
        with open(tmp_path / 'R-50.pkl', 'wb') as file:
            Python2(file, protocol=2).dump({**{k: v.numpy() for k, v in blobs.items()}, 'fc1000_b': np.zeros(9)})
    else:
        write_as_detectron(tmp_path / 'R-50.pkl', blobs)
    cfg = copy.deepcopy(models('faster_rcnn_R_50_FPN')[1].model)
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'R-50.pkl'))
    backbone = BACKBONES.build({**cfg.backbone, 'init_cfg': init_cfg})
    backbone.init_weights()
    other = build_detector(cfg)
    report = load_weights(other, load_checkpoint(tmp_path / 'R-50.pkl'))
    assert not report.unexpected and not any(name.startswith('backbone.') for name in report.missing)
    x = torch.randn(1, 3, 64, 64)
    for started in (backbone, other.backbone):
        for found, expected in zip(started.eval()(x), model.backbone(x)):
            assert torch.allclose(found, expected, atol=1e-4) and expected.abs().max() > 0.1


def test_the_file_for_detectron_is_one_that_python_2_reads(models, tmp_path):
    import pickletools
    raw = detectron.pickled(detectron.from_boxdet(models('faster_rcnn_R_50_FPN')[0].state_dict()))
    assert {argument for opcode, argument, place in pickletools.genops(raw) if 'GLOBAL' in opcode.name} == {
        'numpy.core.multiarray _reconstruct', 'numpy ndarray', 'numpy dtype', '_codecs encode'}
    assert next(pickletools.genops(raw))[1] == 2
    (tmp_path / 'x.pkl').write_bytes(raw)
    assert load_checkpoint(tmp_path / 'x.pkl')['meta']['converted_from'] == 'Detectron'


# --- what is in a maskrcnn-benchmark file ---

OTHER_NAMES = {
    'mask_rcnn_R_50_FPN': """
        backbone.body.stem.conv1.weight backbone.body.stem.bn1.running_var backbone.body.layer1.0.downsample.0.weight
        backbone.body.layer1.0.downsample.1.bias backbone.body.layer3.5.bn3.running_mean backbone.fpn.fpn_inner1.weight
        backbone.fpn.fpn_inner4.bias backbone.fpn.fpn_layer1.weight rpn.head.conv.weight rpn.head.cls_logits.weight
        rpn.head.bbox_pred.bias roi_heads.box.feature_extractor.fc6.weight roi_heads.box.feature_extractor.fc7.bias
        roi_heads.box.predictor.cls_score.weight roi_heads.box.predictor.bbox_pred.bias
        roi_heads.mask.feature_extractor.mask_fcn1.weight roi_heads.mask.feature_extractor.mask_fcn4.bias
        roi_heads.mask.predictor.conv5_mask.weight roi_heads.mask.predictor.mask_fcn_logits.bias""",
    'keypoint_rcnn_R_50_FPN': """roi_heads.keypoint.feature_extractor.conv_fcn1.weight
        roi_heads.keypoint.feature_extractor.conv_fcn8.bias roi_heads.keypoint.predictor.kps_score_lowres.weight""",
    'mask_rcnn_R_50_C4': """roi_heads.box.feature_extractor.head.layer4.0.conv1.weight
        roi_heads.box.feature_extractor.head.layer4.0.downsample.1.running_var roi_heads.box.predictor.cls_score.weight
        roi_heads.mask.feature_extractor.head.layer4.2.bn3.bias roi_heads.mask.predictor.conv5_mask.weight"""}
OTHER_COUNTS = {'mask_rcnn_R_50_FPN': 53 * 5 + 2 * (8 + 3 + 4 + 6),
                'keypoint_rcnn_R_50_FPN': 53 * 5 + 2 * (8 + 3 + 4 + 9),
                'mask_rcnn_R_50_C4': 53 * 5 + 10 * 5 + 2 * (3 + 2 + 2)}  # stage 5 is there under two names


@pytest.mark.parametrize('name', OTHER_NAMES)
def test_entries_have_maskrcnn_benchmarks_names(name, models):
    theirs = maskrcnn_benchmark.from_boxdet(models(name)[0].state_dict())
    assert set(OTHER_NAMES[name].split()) <= set(theirs) and len(theirs) == OTHER_COUNTS[name]


def test_names_of_its_group_norms(repo_root):
    cfg = load_config(repo_root / 'configs/gn/mask_rcnn_r50_fpn_gn-all_2x_coco.py')
    with torch.device('meta'):
        own = build_detector(cfg.model).state_dict()
        theirs = maskrcnn_benchmark.from_boxdet(own)
    expected = {
        'backbone.body.stem.bn1.weight', 'backbone.body.layer2.0.downsample.1.bias',
        'backbone.fpn.fpn_inner1.0.weight', 'backbone.fpn.fpn_layer4.1.bias',
        'roi_heads.box.feature_extractor.xconvs.0.weight', 'roi_heads.box.feature_extractor.xconvs.10.bias',
        'roi_heads.box.feature_extractor.fc6.weight', 'roi_heads.mask.feature_extractor.mask_fcn1.0.weight',
        'roi_heads.mask.feature_extractor.mask_fcn4.1.bias'}
    assert expected <= set(theirs)


def test_its_frozen_norm_has_no_eps(models):
    model = copy.deepcopy(models('faster_rcnn_R_50_FPN')[0])
    theirs = maskrcnn_benchmark.from_boxdet(model.state_dict())
    norm = {leaf: torch.rand(8) + 0.1 for leaf in ('weight', 'bias', 'running_mean')}
    norm['running_var'] = torch.tensor([3e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100])  # where an eps is much, and nothing
    theirs.update({f'backbone.body.stem.bn1.{leaf}': value for leaf, value in norm.items()})
    load_weights(model, maskrcnn_benchmark.to_boxdet(theirs))
    scale = norm['weight'] * norm['running_var'].rsqrt()
    x = torch.randn(2, 8, 5, 5)
    expected = x * scale[:, None, None] + (norm['bias'] - norm['running_mean'] * scale)[:, None, None]
    assert torch.allclose(model.backbone.bn1(x), expected, rtol=1e-4, atol=1e-4)


def test_stage_5_that_heads_do_not_share_is_not_dropped(models):
    theirs = maskrcnn_benchmark.from_boxdet(models('mask_rcnn_R_50_C4')[0].state_dict())
    name = 'roi_heads.mask.feature_extractor.head.layer4.0.conv1.weight'
    theirs[name] = theirs[name] + 1
    with pytest.raises(CheckpointError, match=f'{name} is unknown'):
        maskrcnn_benchmark.to_boxdet(theirs)


# --- what is not quite theirs ---

@pytest.mark.parametrize('module, name, wrong, whose', [
    (detectron, 'fc7_w', 'fc9_w', "Detectron's R-CNN"),
    (maskrcnn_benchmark, 'rpn.head.conv.weight', 'rpn.head.convs.weight', "maskrcnn-benchmark's R-CNN")])
def test_what_is_nearly_right_is_told_of_the_right_project(module, name, wrong, whose, models, tmp_path):
    theirs = module.from_boxdet(models('mask_rcnn_R_50_FPN')[0].state_dict())
    theirs[wrong] = theirs.pop(name)
    save_checkpoint(theirs, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / 'x.pth')
    assert str(caught.value) == (
        f"{tmp_path / 'x.pth'}: these are nearly the weights of {whose}, but {wrong} is unknown; did you mean "
        f"'{name}'?; "
        f'{name} is missing')
