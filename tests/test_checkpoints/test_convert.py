"""Weights of other projects: recognised, converted both ways, and running here as they run there."""

import copy
import logging
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator as TheirAnchors
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from boxdet.apis import inference_detector, init_detector
from boxdet.checkpoints.convert import format_named, formats, recognise
from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.engine.config import load_config
from boxdet.errors import CheckpointError
from boxdet.models import build_detector

KINDS = [('torchvision', 'fasterrcnn_resnet50_fpn'), ('torchvision', 'maskrcnn_resnet50_fpn'),
         ('torchvision', 'keypointrcnn_resnet50_fpn'), ('detectron2', 'faster_rcnn_R_50_FPN'),
         ('detectron2', 'mask_rcnn_R_50_FPN'), ('detectron2', 'keypoint_rcnn_R_50_FPN'),
         ('detectron2', 'faster_rcnn_R_50_C4'), ('detectron2', 'mask_rcnn_R_50_C4'),
         ('detectron2', 'faster_rcnn_R_50_DC5'), ('detectron2', 'mask_rcnn_R_50_DC5')]
NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


def small_config(name: str, repo_root, **rcnn):
    """A shipped torchvision config on ResNet-18, for 4 classes and small images."""
    cfg = load_config(repo_root / f'configs/torchvision/{name}.py')
    cfg.model.backbone.depth = 18
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    for head in ('bbox_head', 'mask_head'):
        if head in cfg.model.roi_head:
            cfg.model.roi_head[head].num_classes = 4
    cfg.model.test_cfg.rcnn.update(rcnn)
    cfg.data.test = dict(type='CocoDataset', classes=tuple('abcd'), pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='MultiScaleFlipAug', img_scale=(213, 160), flip=False, transforms=[
            dict(type='Resize', keep_ratio=True), dict(type='Normalize', **NORM), dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])])])
    return cfg


def small_theirs(kind: type):
    """Torchvision's own model of the same architecture, with weights that give results."""
    torch.manual_seed(3)
    backbone = resnet_fpn_backbone(backbone_name='resnet18', weights=None, norm_layer=torch.nn.BatchNorm2d)
    anchors = TheirAnchors(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    model = kind(backbone, num_classes=5, rpn_anchor_generator=anchors, min_size=160, max_size=213).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                gain = 0.5 if 'cls' in name else 0.15 if 'bbox_pred' in name else 1.4
                value.normal_(0, gain / value[0].numel() ** 0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.4, 0.9)
    return model


@pytest.fixture(scope='module')
def image():
    import cv2
    noise = np.random.default_rng(1).integers(0, 255, (10, 13, 3), dtype=np.uint8)
    return cv2.resize(noise, (208, 160), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize('kind, name', [(FasterRCNN, 'fasterrcnn_resnet50_fpn'), (MaskRCNN, 'maskrcnn_resnet50_fpn')])
def test_torchvisions_own_model_and_its_weights_here_agree(kind, name, image, repo_root, tmp_path, caplog):
    theirs = small_theirs(kind)
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    with caplog.at_level(logging.INFO, 'boxdet'):
        ours = init_detector(small_config(name, repo_root), tmp_path / 'theirs.pth', device='cpu')
    lines = [r.getMessage() for r in caplog.records if 'converted' in r.getMessage()]
    assert len(lines) == 1 and lines[0].endswith(f'converted {len(theirs.state_dict())} entries from torchvision')
    found = inference_detector(ours, image)
    with torch.no_grad():
        pixels = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255
        expected = theirs([pixels])[0]
    assert len(found) == len(expected['boxes']) > 20
    assert torch.equal(found.labels, expected['labels'] - 1)
    assert torch.allclose(found.bboxes, expected['boxes'], atol=2e-3, rtol=0)
    assert torch.allclose(found.scores, expected['scores'], atol=1e-5, rtol=0)
    if 'masks' in expected:
        other = expected['masks'][:, 0].numpy() >= 0.5
        assert other.any() and np.mean((found.masks_bitmaps() > 0) != other) < 1e-4


@pytest.mark.parametrize('project, name', KINDS)
def test_every_shipped_config_has_its_weights_both_ways(project, name, repo_root):
    cfg = load_config(repo_root / f'configs/{project}/{name}.py')
    with torch.device('meta'):
        own = build_detector(cfg.model).state_dict()
    own = {key: torch.full(value.shape, float(i)).to(value.dtype) for i, (key, value) in enumerate(own.items())}
    theirs = format_named(project).from_boxdet(own)
    assert recognise(theirs) is format_named(project) and not set(theirs) & set(own)
    back = recognise(theirs).to_boxdet(theirs)
    assert all(torch.equal(back[key], own[key]) for key in back)
    assert {key for key in own if key not in back} <= {key for key in own if key.endswith('num_batches_tracked')}


@pytest.mark.parametrize('name', ['fasterrcnn_resnet50_fpn', 'maskrcnn_resnet50_fpn', 'keypointrcnn_resnet50_fpn'])
def test_entries_are_named_as_in_torchvision_itself(name, repo_root):
    import torchvision
    with torch.device('meta'):
        theirs = torchvision.models.detection.__dict__[name](weights=None, weights_backbone=None).state_dict()
        own = build_detector(load_config(repo_root / f'configs/torchvision/{name}.py').model).state_dict()
        mine = format_named('torchvision').from_boxdet(own)
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_names_of_torchvisions_published_files():
    """Up to 0.12 the pyramid, the RPN and the mask head had other names; frozen norms have no counters."""
    new = small_theirs(MaskRCNN).state_dict()
    old = {}
    for name, value in new.items():
        name = name.replace('.0.0.', '.') if name.startswith('rpn.head.conv') else name
        if 'fpn' in name:
            name = name.replace('.0.weight', '.weight').replace('.0.bias', '.bias') if name.count('.0.') else name
        parts = name.split('.')
        if name.startswith('roi_heads.mask_head.'):
            name = f'roi_heads.mask_head.mask_fcn{int(parts[2]) + 1}.{parts[-1]}'
        if name.startswith('backbone.fpn'):
            name = '.'.join(parts[:4] + parts[-1:])
        if not name.endswith('num_batches_tracked'):
            old[name] = value
    assert 'rpn.head.conv.weight' in old and 'backbone.fpn.inner_blocks.0.weight' in old
    converted, expected = (format_named('torchvision').to_boxdet(state) for state in (old, new))
    assert all(torch.equal(converted[key], expected[key]) for key in converted)


def test_detectron2s_pkl(repo_root, tmp_path, image):
    cfg = small_config('maskrcnn_resnet50_fpn', repo_root)
    model = build_detector(copy.deepcopy(cfg.model))
    state = {k: v.numpy() for k, v in format_named('detectron2').from_boxdet(model.state_dict()).items()}
    state['pixel_mean'] = np.zeros((3, 1, 1), np.float32)
    state['proposal_generator.anchor_generator.cell_anchors.0'] = np.zeros((3, 4), np.float32)
    with open(tmp_path / 'model_final.pkl', 'wb') as file:
        pickle.dump(dict(model=state, __author__='somebody', matching_heuristics=True), file)
    loaded = load_checkpoint(tmp_path / 'model_final.pkl')
    assert loaded['meta']['converted_from'] == 'detectron2'
    ours = init_detector(cfg, tmp_path / 'model_final.pkl', device='cpu')
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in model.state_dict().items())
    assert tuple('abcd') == ours.CLASSES


def test_what_is_nearly_right_names_the_odd_entries(tmp_path):
    state = small_theirs(FasterRCNN).state_dict()
    state['roi_heads.box_head.fc8.weight'] = state.pop('roi_heads.box_head.fc7.weight')
    with pytest.raises(CheckpointError, match="box_head.fc8.weight is unknown; did you mean "
                                              "'roi_heads.box_head.fc7.weight'"):
        format_named('torchvision').to_boxdet(state)
    del state['roi_heads.box_head.fc8.weight']
    torch.save(dict(model=state), tmp_path / 'short.pth')
    with pytest.raises(CheckpointError, match='short.pth: .*box_head.fc7.weight is missing'):
        load_checkpoint(tmp_path / 'short.pth')


def test_messages_on_what_is_nearly_right_are_sentences():
    state = small_theirs(FasterRCNN).state_dict()
    del state['rpn.head.cls_logits.bias']
    with pytest.raises(CheckpointError) as caught:
        format_named('torchvision').to_boxdet(state)
    assert str(caught.value) == ("these are nearly the weights of torchvision's R-CNN, but rpn.head.cls_logits.bias is "
                                 'missing')


@pytest.mark.parametrize('name, value, message', [
    ('cls_score.weight', torch.tensor(1.), r'fc_cls\.weight has the shape \(\)'),
    ('bbox_pred.bias', torch.zeros(7), r'fc_reg\.bias has the shape \(7,\), and there are 5 rows of scores'),
    ('cls_score.weight', 'text', r'cls_score\.weight is of type str'),
    ('cls_score.weight', dict(a=1), r'cls_score\.weight is of type dict')])
def test_entries_that_are_no_weights_say_so(tmp_path, name, value, message):
    state = {**small_theirs(FasterRCNN).state_dict(), f'roi_heads.box_predictor.{name}': value}
    torch.save(state, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=rf'x\.pth: .*{message}'):
        load_checkpoint(tmp_path / 'x.pth')


def own_state(config, repo_root, **bbox_head):
    """The entries of a shipped config's model, of one number each and without the memory."""
    cfg = load_config(repo_root / f'configs/{config}.py')
    cfg.model.roi_head.bbox_head.update(bbox_head) if bbox_head else None
    with torch.device('meta'):
        own = build_detector(cfg.model).state_dict()
    return {key: torch.full((1,) * value.dim(), float(i)).to(value.dtype).expand(value.shape)
            for i, (key, value) in enumerate(own.items())}


CASCADE, GN = 'cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco', 'gn/mask_rcnn_r50_fpn_gn-all_2x_coco'
VGG16, C4 = 'shapes/faster_rcnn_vgg16_shapes', 'mask_rcnn/mask_rcnn_r50_caffe_c4_1x_coco'


@pytest.mark.parametrize('target, config, named', [
    # Theirs have one mask head; the others have no cascade.
    *[(target, CASCADE, f"roi_head.{'mask' if target in ('detectron2', 'tensorpack') else 'bbox'}_head.0")
      for target in formats()],
    *[(target, VGG16, 'backbone.features') for target in formats()],
    ('torchvision', C4, 'roi_head.shared_head.layer4'),
    ('torchvision', GN, 'backbone.gn1'),
    ('detectron', 'torchvision/fasterrcnn_resnet18', 'backbone.layer1.0.conv3')])
def test_what_a_target_lacks_is_refused(target, config, named, repo_root, tiny_detector):
    own = (load_checkpoint(tiny_detector.checkpoint)['state_dict'] if 'resnet18' in config
           else own_state(config, repo_root))
    message = rf'this model cannot be written for {format_named(target).NAME}.*{named}'
    with pytest.raises(CheckpointError, match=message):
        format_named(target).from_boxdet(own)


def test_boxes_of_all_classes_together(repo_root):
    """Torchvision has no such head, the others have."""
    own = own_state('mask_rcnn/mask_rcnn_r50_fpn_1x_coco', repo_root, reg_class_agnostic=True)
    with pytest.raises(CheckpointError, match=r'fc_reg\.weight is of all classes together'):
        format_named('torchvision').from_boxdet(own)
    for target in ('detectron2', 'detectron', 'maskrcnn-benchmark'):
        back = format_named(target).to_boxdet(format_named(target).from_boxdet(own))
        assert torch.equal(back['roi_head.bbox_head.fc_reg.weight'], own['roi_head.bbox_head.fc_reg.weight'])
    own['roi_head.mask_head.conv_logits.weight'] = torch.ones(1, 256, 1, 1)
    own['roi_head.mask_head.conv_logits.bias'] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r'conv_logits\.weight is of all classes together'):
        format_named('maskrcnn-benchmark').from_boxdet(own)
    back = format_named('detectron').to_boxdet(format_named('detectron').from_boxdet(own))
    assert torch.equal(back['roi_head.mask_head.conv_logits.weight'], torch.ones(1, 256, 1, 1))


def test_boxdets_own_and_foreign_backbones_are_left_alone(tiny_detector):
    import torchvision
    assert recognise(load_checkpoint(tiny_detector.checkpoint)['state_dict']) is None
    assert recognise(torchvision.models.resnet18(weights=None).state_dict()) is None
    assert formats() == ['torchvision', 'detectron2', 'detectron', 'maskrcnn-benchmark', 'Detectron.pytorch',
                         'tensorpack']
    with pytest.raises(CheckpointError, match="'torchvison' can be converted; did you mean 'torchvision'"):
        format_named('torchvison')


@pytest.mark.slow
def test_the_tool_converts_files_both_ways(repo_root, tmp_path, tiny_detector):
    tool = [sys.executable, str(repo_root / 'tools/model_converters/convert.py')]
    torch.save({f'module.{k}': v for k, v in small_theirs(FasterRCNN).state_dict().items()}, tmp_path / 'theirs.pth')

    def run(*args):
        return subprocess.run([*tool, *map(str, args)], capture_output=True, text=True)
    done = run(tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert done.returncode == 0 and 'entries from torchvision' in done.stdout, done.stderr
    back = run(tmp_path / 'ours.pth', tmp_path / 'back.pth', '--to', 'torchvision')
    assert back.returncode == 0, back.stderr
    again, theirs = load_checkpoint(tmp_path / 'back.pth'), load_checkpoint(tmp_path / 'theirs.pth')
    assert again['state_dict'].keys() == theirs['state_dict'].keys()
    assert all(torch.equal(again['state_dict'][k], v) for k, v in theirs['state_dict'].items())
    for wrong in ([tiny_detector.checkpoint, tmp_path / 'x.pth'],
                  [tmp_path / 'theirs.pth', tmp_path / 'x.pth', '--to', 'torchvision'],
                  [tmp_path / 'none.pth', tmp_path / 'x.pth']):
        done = run(*wrong)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / 'x.pth').exists()


@pytest.mark.slow
def test_the_tool_writes_files_of_detectron_and_refuses_what_it_cannot(repo_root, tmp_path, tiny_detector):
    tool = [sys.executable, str(repo_root / 'tools/model_converters/convert.py')]

    def run(*args):
        return subprocess.run([*tool, *map(str, args)], capture_output=True, text=True)
    listed = run('--help').stdout
    assert all(name in listed for name in formats())
    own = build_detector(load_config(repo_root / 'configs/detectron/faster_rcnn_R_50_FPN.py').model).state_dict()
    save_checkpoint(dict(state_dict=own), tmp_path / 'own.pth')
    done = run(tmp_path / 'own.pth', tmp_path / 'theirs.pkl', '--to', 'detectron')
    assert done.returncode == 0 and 'theirs.pkl: 189 entries for Detectron' in done.stdout, done.stderr
    done = run(tmp_path / 'theirs.pkl', tmp_path / 'back.pth')
    assert done.returncode == 0 and 'entries from Detectron' in done.stdout, done.stderr
    back = load_checkpoint(tmp_path / 'back.pth')['state_dict']
    assert all(torch.equal(back[key], own[key]) for key in own if key.startswith(('neck.', 'rpn_head.', 'roi_head.')))
    for wrong, reason in (([tmp_path / 'own.pth', '--to', 'detectron'], 'Detectron reads .pkl files'),
                          ([tiny_detector.checkpoint, '--to', 'detectron'], 'cannot be written for Detectron')):
        done = run(wrong[0], tmp_path / 'x.pth', *wrong[1:])
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and reason in done.stderr
        assert not (tmp_path / 'x.pth').exists()


def test_load_from_converts(repo_root, tmp_path):
    """A training that starts from torchvision's weights: the Runner's load_from goes the same way."""
    from boxdet.checkpoints.loading import load_weights
    state = small_theirs(FasterRCNN).state_dict()
    save_checkpoint(state, tmp_path / 'theirs.pth')
    model = build_detector(small_config('fasterrcnn_resnet50_fpn', repo_root).model)
    report = load_weights(model, load_checkpoint(tmp_path / 'theirs.pth'))
    assert not report.missing and not report.unexpected and not report.mismatched
    assert torch.equal(model.rpn_head.rpn_cls.weight, state['rpn.head.cls_logits.weight'])
