"""Every family trains and predicts on a batch of an empty image, one with nothing but crowds, and a crowded one."""
from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.checkpoints.loading import load_weights
from boxdet.models import build_detector
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances
from tests.test_models import tiny_models
from tests.test_models.test_families_bodies import BACKBONES_AND_CHANNELS, FIVE_NECKS

KEYPOINTS = 5
THIN_R50 = dict(depth=50, base_channels=4)  # its levels have 16, 32, 64 and 128 channels
GN = dict(type='GN', num_groups=2, requires_grad=True)


def changed(make: Callable[[], dict], **parts) -> dict:
    """A config with keys of some of its parts changed: ``backbone=dict(depth=50)``, ``roi_head__bbox_head=...``."""
    cfg = copy.deepcopy(make())
    for path, values in parts.items():
        part = cfg
        for key in path.split('__'):
            part = part[key]
        part.update(values)
    return cfg


def faster(**parts) -> Callable[[], dict]:
    return lambda: changed(tiny_models.faster_rcnn, **parts)


def thin_r50(**backbone) -> Callable[[], dict]:
    return faster(backbone=THIN_R50 | backbone, neck=dict(in_channels=[16, 32, 64, 128]))


def pooled_by(**layer) -> Callable[[], dict]:
    return faster(roi_head__bbox_roi_extractor=dict(roi_layer=dict(output_size=7) | layer))


def rpn() -> dict:
    cfg = tiny_models.faster_rcnn(type='RPN')
    del cfg['roi_head'], cfg['train_cfg']['rcnn'], cfg['train_cfg']['rpn_proposal'], cfg['test_cfg']['rcnn']
    return cfg


def fast() -> dict:
    cfg = tiny_models.mask_rcnn(type='FastRCNN')
    del cfg['rpn_head'], cfg['train_cfg']['rpn'], cfg['train_cfg']['rpn_proposal'], cfg['test_cfg']['rpn']
    return cfg


def cascade() -> dict:
    cfg = tiny_models.cascade_mask_rcnn()
    del cfg['roi_head']['mask_head'], cfg['roi_head']['mask_roi_extractor']
    return cfg


def cascade_keypoint() -> dict:
    return changed(tiny_models.cascade_mask_rcnn, roi_head=dict(
        keypoint_roi_extractor=tiny_models.extractor(14), keypoint_head=tiny_models.keypoint_head()))


def one_level(backbone: dict, channels: int) -> dict:
    """Without a neck: RPN and rois on one map of stride 16."""
    cfg = tiny_models.faster_rcnn(backbone=backbone, neck=None, rpn_head=tiny_models.rpn_head(
        in_channels=channels, anchor_generator=dict(type='AnchorGenerator', scales=[2, 4], ratios=[1.0], strides=[16])))
    cfg['roi_head'] |= dict(bbox_roi_extractor=tiny_models.extractor(7, [16], channels),
                            bbox_head=tiny_models.bbox_head(in_channels=channels))
    return cfg


def c4() -> dict:
    """Rois of 4 x 4 instead of 14 x 14: the shared head is the one part that has no narrow form."""
    return changed(tiny_models.c4_mask_rcnn, roi_head__bbox_roi_extractor=tiny_models.extractor(4, [16], 256),
                   roi_head__bbox_head=dict(roi_feat_size=2), train_cfg__rcnn=dict(mask_size=4))


def dc5() -> dict:
    backbone = dict(type='ResNet', depth=18, base_channels=8, num_stages=4, strides=(1, 2, 2, 1),
                    dilations=(1, 1, 1, 2), out_indices=(3,), norm_eval=False)
    return one_level(backbone, 64)


def vgg() -> dict:
    return one_level(dict(type='VGG', depth=11, out_indices=(4,), with_last_pool=False), 512)


def from_scratch(**conv) -> Callable[[], dict]:
    return faster(backbone=dict(norm_cfg=GN, zero_init_residual=False, **conv), neck=dict(norm_cfg=GN, **conv),
                  roi_head__bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=8, norm_cfg=GN, **conv))


def box_loss(decoded: bool = True, **loss) -> Callable[[], dict]:
    return faster(roi_head__bbox_head=dict(reg_decoded_bbox=decoded, loss_bbox=loss | dict(loss_weight=10.0)))


def sampled_by(**sampler) -> Callable[[], dict]:
    return lambda: tiny_models.faster_rcnn(train_cfg=tiny_models.train_cfg(tiny_models.rcnn_train(**sampler)))


def detectron_mask_head(**options) -> Callable[[], dict]:
    return lambda: changed(tiny_models.mask_rcnn, roi_head__mask_head=options)


def htc(semantic: bool = True) -> Callable[[], dict]:
    def make() -> dict:
        cfg = changed(tiny_models.cascade_mask_rcnn, roi_head=dict(type='HybridTaskCascadeRoIHead', mask_head=[
            tiny_models.mask_head(type='HTCMaskHead', with_conv_res=stage > 0) for stage in range(3)]))
        if semantic:
            cfg['roi_head'] |= dict(
                semantic_roi_extractor=tiny_models.extractor(14, [8]),
                semantic_head=dict(type='FusedSemanticHead', num_ins=5, fusion_level=1, num_convs=1, in_channels=16,
                                   conv_out_channels=16, num_classes=7))
        return cfg | dict(type='HybridTaskCascade')
    return make


def point_rend() -> dict:
    cfg = changed(tiny_models.mask_rcnn, train_cfg__rcnn=dict(mask_size=7, num_points=49), test_cfg__rcnn=dict(
        subdivision_steps=3, subdivision_num_points=100))
    cfg['roi_head'] |= dict(
        type='PointRendRoIHead',
        mask_roi_extractor=dict(type='GenericRoIExtractor', aggregation='concat', out_channels=16, featmap_strides=[4],
                                roi_layer=dict(type='SimpleRoIAlign', output_size=14)),
        mask_head=dict(type='CoarseMaskHead', in_channels=16, conv_out_channels=16, fc_out_channels=16,
                       num_classes=tiny_models.CLASSES),
        point_head=dict(type='MaskPointHead', in_channels=16, fc_channels=16, num_classes=tiny_models.CLASSES))
    return cfg | dict(type='PointRend')


def grid() -> dict:
    cfg = faster(roi_head__bbox_head=dict(with_reg=False))()
    cfg['roi_head'] |= dict(
        type='GridRoIHead', grid_roi_extractor=tiny_models.extractor(14),
        grid_head=dict(type='GridHead', num_convs=2, in_channels=16, point_feat_channels=4,
                       norm_cfg=dict(type='GN', num_groups=9)))
    return cfg | dict(type='GridRCNN')


def sabl_head() -> dict:
    return dict(type='SABLHead', num_classes=tiny_models.CLASSES, cls_in_channels=16, reg_in_channels=16,
                cls_out_channels=32, reg_offset_out_channels=16, reg_cls_out_channels=16)


def sabl_cascade() -> dict:
    cfg = cascade()
    cfg['roi_head']['bbox_head'] = [sabl_head() for _ in range(3)]
    return cfg


def dynamic() -> dict:
    settings = dict(iou_topk=5, beta_topk=3, update_iter_interval=1, initial_iou=0.4, initial_beta=1.0)
    smooth = dict(loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))
    return faster(roi_head=dict(type='DynamicRoIHead'), roi_head__bbox_head=smooth,
                  train_cfg__rcnn=dict(dynamic_rcnn=settings))()


def pisa() -> dict:
    return faster(roi_head=dict(type='PISARoIHead'), train_cfg__rcnn=dict(
        sampler=dict(type='ScoreHLRSampler', num=32, pos_fraction=0.25), isr=dict(k=2, bias=0),
        carl=dict(k=1, bias=0.2)))()


def scnet() -> dict:
    cfg = htc()()
    roi_head, classes = cfg['roi_head'], tiny_models.CLASSES
    roi_head |= dict(
        type='SCNetRoIHead',
        bbox_head=[tiny_models.bbox_head(type='SCNetBBoxHead', num_shared_fcs=2, reg_class_agnostic=True)] * 3,
        mask_head=tiny_models.mask_head(type='SCNetMaskHead', num_convs=2),
        semantic_head=roi_head['semantic_head'] | dict(type='SCNetSemanticHead', num_convs=2),
        glbctx_head=dict(type='GlobalContextHead', num_convs=2, in_channels=16, conv_out_channels=16,
                         num_classes=classes, conv_to_res=True),
        feat_relay_head=dict(type='FeatureRelayHead', in_channels=32, out_conv_channels=16))
    return cfg | dict(type='SCNet')


def seesaw() -> dict:
    return changed(tiny_models.mask_rcnn, roi_head__bbox_head=dict(
        cls_predictor_cfg=dict(type='NormedLinear', tempearture=20),
        loss_cls=dict(type='SeesawLoss', num_classes=tiny_models.CLASSES)),
        roi_head__mask_head=dict(predictor_cfg=dict(type='NormedConv2d', tempearture=20)))


def trident(branch: int) -> Callable[[], dict]:
    branches = dict(num_branch=3, test_branch_idx=branch)

    def make() -> dict:
        cfg = one_level(dict(type='TridentResNet', trident_dilations=(1, 2, 3), num_stages=3, strides=(1, 2, 2),
                             dilations=(1, 1, 1), out_indices=(2,), norm_eval=True, **THIN_R50, **branches), 64)
        cfg['roi_head'] |= dict(type='TridentRoIHead', **branches)
        return cfg | dict(type='TridentFasterRCNN')
    return make


def cascade_rpn() -> dict:
    cfg = tiny_models.faster_rcnn()
    rpn = cfg['rpn_head']
    strides = rpn['anchor_generator']['strides']
    stage = dict(
        type='StageCascadeRPNHead', in_channels=rpn['in_channels'], feat_channels=16, reg_decoded_bbox=True,
        anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=strides),
        loss_bbox=dict(type='IoULoss', linear=True))
    first = stage | dict(bridged_feature=True, sampling=False, with_cls=False)
    last = stage | dict(adapt_cfg=dict(type='offset'))
    cfg['rpn_head'] = dict(type='CascadeRPNHead', num_stages=2, stages=[first, last])
    regions = dict(assigner=dict(type='RegionAssigner', center_ratio=0.2, ignore_ratio=0.5), allowed_border=-1)
    cfg['train_cfg']['rpn'] = [regions, cfg['train_cfg']['rpn']]
    return cfg


def guided_anchoring() -> dict:
    cfg = tiny_models.faster_rcnn()
    strides = cfg['rpn_head']['anchor_generator']['strides']
    cfg['rpn_head'] = dict(
        type='GARPNHead', in_channels=16, feat_channels=16, loc_filter_thr=0.01,
        approx_anchor_generator=dict(type='AnchorGenerator', octave_base_scale=2, scales_per_octave=3,
                                     ratios=[0.5, 1.0, 2.0], strides=strides),
        square_anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], scales=[2], strides=strides))
    cfg['train_cfg']['rpn'] |= dict(
        ga_assigner=dict(type='ApproxMaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
        ga_sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, add_gt_as_proposals=False))
    return cfg


def legacy() -> dict:
    cfg = faster(roi_head__bbox_head=dict(bbox_coder=dict(type='LegacyDeltaXYWHBBoxCoder')),
                 rpn_head=dict(bbox_coder=dict(type='LegacyDeltaXYWHBBoxCoder')))()
    cfg['rpn_head']['anchor_generator'] |= dict(type='LegacyAnchorGenerator', center_offset=0.5)
    return cfg


def double_heads() -> dict:
    return faster(roi_head=dict(type='DoubleHeadRoIHead', reg_roi_scale_factor=1.3, bbox_head=dict(
        type='DoubleConvFCBBoxHead', num_convs=1, num_fcs=1, in_channels=16, conv_out_channels=32, fc_out_channels=32,
        roi_feat_size=7, num_classes=tiny_models.CLASSES)))()


def mask_scoring() -> dict:
    iou_head = dict(type='MaskIoUHead', num_convs=1, num_fcs=1, roi_feat_size=14, in_channels=16, conv_out_channels=16,
                    fc_out_channels=16, num_classes=tiny_models.CLASSES)
    return changed(tiny_models.mask_rcnn, roi_head=dict(type='MaskScoringRoIHead', mask_iou_head=iou_head),
                   train_cfg__rcnn=dict(mask_thr_binary=0.5)) | dict(type='MaskScoringRCNN')


def libra() -> dict:
    cfg = sampled_by(type='CombinedSampler', pos_sampler=dict(type='InstanceBalancedPosSampler'),
                     neg_sampler=dict(type='IoUBalancedNegSampler', num_bins=3))()
    cfg['roi_head']['bbox_head']['loss_bbox'] = dict(type='BalancedL1Loss')
    cfg['neck'] = [cfg['neck'], dict(type='BFP', in_channels=16, num_levels=5, refine_type='non_local')]
    return cfg


def groie() -> dict:
    return faster(roi_head=dict(bbox_roi_extractor=dict(
        type='GenericRoIExtractor', out_channels=16, featmap_strides=[4, 8, 16, 32],
        roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2),
        pre_cfg=dict(type='ConvModule', in_channels=16, out_channels=16, kernel_size=5, padding=2, inplace=False),
        post_cfg=dict(type='GeneralizedAttention', in_channels=16, num_heads=4, attention_type='0100', kv_stride=2))))()


def detectors() -> dict:
    """Switchable atrous convolution, and a pyramid that is gone through twice."""
    body = dict(type='DetectoRS_ResNet', depth=50, base_channels=4, conv_cfg=dict(type='ConvAWS'), num_stages=4,
                out_indices=(0, 1, 2, 3), sac=dict(type='SAC', use_deform=True),
                stage_with_sac=(False, True, True, True), norm_eval=False, frozen_stages=-1)
    return tiny_models.faster_rcnn(backbone=body | dict(output_img=True), neck=dict(
        type='RFP', in_channels=[16, 32, 64, 128], out_channels=16, num_outs=5, rfp_steps=2, aspp_out_channels=4,
        aspp_dilations=(1, 3, 6, 1), rfp_backbone=body | dict(rfp_inplanes=16)))


def on_body(backbone: dict, channels: tuple[int, ...]) -> Callable[[], dict]:
    return lambda: tiny_models.faster_rcnn(backbone=backbone, neck=dict(
        type='FPN', in_channels=list(channels), out_channels=16, num_outs=5))


def with_neck(neck: dict) -> Callable[[], dict]:
    # FPG builds both ways between the levels of a pathway, as 2.x does, and goes one of them.
    ways = dict(paths=['bu', 'bu'], same_down_trans=None) if neck['type'] == 'FPG' else {}
    return lambda: tiny_models.faster_rcnn(neck=neck | ways | dict(out_channels=16))


def ghm() -> dict:
    return faster(rpn_head=dict(loss_cls=dict(type='GHMC', momentum=0.75), loss_bbox=dict(type='GHMR')))()


FAMILIES = {
    'rpn': rpn, 'fast': fast, 'faster': tiny_models.faster_rcnn, 'mask': tiny_models.mask_rcnn, 'cascade': cascade,
    'cascade_mask': tiny_models.cascade_mask_rcnn, 'keypoint': tiny_models.keypoint_rcnn,
    'cascade_keypoint': cascade_keypoint,
    'c4': c4, 'dc5': dc5, 'vgg': vgg,
    'resnet50': thin_r50(), 'resnet_v1c': faster(backbone=dict(type='ResNetV1c', stem_channels=8)),
    'resnet_v1d': faster(backbone=dict(type='ResNetV1d', stem_channels=8)),
    'resnext': thin_r50(type='ResNeXt', groups=4, base_width=1),
    'dcn': thin_r50(dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, True, True, True)),
    'dcnv2': thin_r50(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True)),
    'sync_bn': faster(backbone=dict(norm_cfg=dict(type='SyncBN', requires_grad=True))),
    'gn_scratch': from_scratch(), 'gn_ws': from_scratch(conv_cfg=dict(type='ConvWS')),
    'ohem': sampled_by(type='OHEMSampler'), 'instance_balanced': sampled_by(
        type='CombinedSampler', pos_sampler=dict(type='InstanceBalancedPosSampler'),
        neg_sampler=dict(type='RandomSampler')),
    'iou': box_loss(type='IoULoss'), 'giou': box_loss(type='GIoULoss'), 'diou': box_loss(type='DIoULoss'),
    'ciou': box_loss(type='CIoULoss'), 'bounded_iou': box_loss(type='BoundedIoULoss'),
    'soft_nms': faster(test_cfg__rcnn=dict(nms=dict(type='soft_nms', iou_threshold=0.5))),
    'post_nms_per_batch': faster(train_cfg__rpn_proposal=dict(max_per_batch=50)),
    'roi_align_old': pooled_by(type='RoIAlign', aligned=False, sampling_ratio=2), 'roi_pool': pooled_by(type='RoIPool'),
    'roi_crop': pooled_by(type='RoICrop'),
    'dpool': pooled_by(type='DeformRoIPoolPack', output_channels=16, deform_fc_channels=8),
    'mdpool': pooled_by(type='ModulatedDeformRoIPoolPack', output_channels=16, deform_fc_channels=8),
    'htc': htc(), 'htc_without_semantic': htc(semantic=False),
    'point_rend': point_rend, 'grid': grid, 'sabl': faster(roi_head=dict(bbox_head=sabl_head())),
    'sabl_cascade': sabl_cascade, 'dynamic': dynamic, 'pisa': pisa,
    'cascade_rpn': cascade_rpn, 'guided_anchoring': guided_anchoring,
    'trident': trident(1), 'trident_all': trident(-1), 'scnet': scnet, 'seesaw': seesaw, 'legacy': legacy, 'ghm': ghm,
    'double_heads': double_heads, 'mask_scoring': mask_scoring, 'libra': libra, 'groie': groie, 'detectors': detectors,
    'gcnet': thin_r50(plugins=[dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv3')]),
    **{cfg['type'].rpartition('.')[2]: on_body(cfg, channels) for cfg, channels in BACKBONES_AND_CHANNELS},
    **{cfg['type']: with_neck(cfg) for cfg in FIVE_NECKS},
    'mask_v1up': detectron_mask_head(num_convs=2), 'mask_dilated': detectron_mask_head(dilation=2),
}


def mixed_batch(counts, crowds, cfg: dict) -> Batch:
    """Random images with so many objects and crowds; keypoints for a keypoint model, proposals for Fast R-CNN.

    Semantic maps are an eighth of the images in size.
    """
    # FPG adds levels that are halves of one another.
    size = (128, 128) if 'FPG' in str(cfg.get('neck')) else (96, 128)
    keypoints = KEYPOINTS if 'keypoint_head' in cfg.get('roi_head', {}) else 0
    batch = tiny_models.batch(counts, crowds, size=size, keypoints=keypoints)
    if 'semantic_head' in cfg.get('roi_head', {}):
        height, width = (side // 8 for side in batch.images.shape[2:])
        batch.semantic_seg = torch.arange(len(batch) * height * width).view(-1, 1, height, width) % 7
    if cfg['type'] == 'FastRCNN':
        around = [torch.cat([boxes + shift for boxes in (gt.bboxes, crowd) for shift in (3.0, -4.0)])
                  for gt, crowd in zip(batch.gt, batch.ignored)]
        batch = Batch(batch.images, batch.metas, batch.gt, batch.ignored,
                      [Instances(bboxes=boxes, scores=torch.ones(len(boxes))) for boxes in around])
    return batch


@pytest.mark.parametrize('family', FAMILIES)
def test_a_step_on_an_empty_a_crowd_only_and_a_crowded_image(family, tmp_path):
    cfg = FAMILIES[family]()
    torch.manual_seed(0)
    model = build_detector(cfg)
    model.init_weights()
    model.train()
    usual = model.loss(mixed_batch((2, 1), (0, 0), cfg))
    losses = model.loss(mixed_batch((0, 0, 30), (0, 3, 2), cfg))
    assert set(losses) == set(usual)
    total = tiny_models.total(losses)
    assert total.isfinite() and total > 0
    total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    torch.optim.SGD(model.parameters(), lr=1e-3).step()

    results = model.eval().predict(mixed_batch((0, 0, 30), (0, 3, 2), cfg))
    assert len(results) == 3
    again = saved_and_loaded(model, cfg, tmp_path).predict(mixed_batch((0, 0, 30), (0, 3, 2), cfg))
    for result, other in zip(results, again):
        assert torch.equal(result.bboxes, other.bboxes) and torch.equal(result.scores, other.scores)
        assert result.bboxes.isfinite().all() and result.scores.isfinite().all()
        assert len(result.bboxes) == len(result.scores) == len(result.labels)
        assert ('masks' in result) == model.with_mask and ('keypoints' in result) == model.with_keypoint


def saved_and_loaded(model: torch.nn.Module, cfg: dict, folder: Path) -> torch.nn.Module:
    """Another model of ``cfg``, of other weights at first, with those of a checkpoint of ``model``."""
    save_checkpoint(dict(meta={}, state_dict=model.state_dict()), folder / 'model.pth')
    torch.manual_seed(1)
    other = build_detector(cfg)
    load_weights(other, load_checkpoint(folder / 'model.pth'))
    return other.train(model.training)


@pytest.mark.parametrize('family', ['ghm', 'seesaw', 'detectors'])
def test_what_a_training_remembers_is_in_its_checkpoint(family, tmp_path):
    """Statistics of gradients, counts of classes: the next loss is the same after a resume."""
    cfg = FAMILIES[family]()
    torch.manual_seed(0)
    model = build_detector(cfg)
    model.init_weights()
    for _ in range(2):
        model.train().loss(mixed_batch((4, 2), (0, 0), cfg))
    losses = []
    for one in (saved_and_loaded(model, cfg, tmp_path), model):
        torch.manual_seed(2)
        losses.append(tiny_models.total(one.loss(mixed_batch((4, 2), (0, 0), cfg))).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize('family', ['mask', 'keypoint', 'cascade_mask', 'cascade_keypoint'])
def test_augmented_views_of_such_a_batch(family):
    """Test-time augmentation, an image at a time as the loader gives them."""
    cfg = FAMILIES[family]()
    torch.manual_seed(0)
    model = build_detector(cfg).eval()
    for image in range(3):
        views = []
        for flip in (False, True):
            batch = tiny_models.batch((0, 0, 30), (0, 3, 2))
            meta = tiny_models.meta(flip=flip, flip_direction='horizontal' if flip else None)
            pixels = batch.images[image:image + 1]
            views.append(Batch(pixels.flip(-1) if flip else pixels, [meta]))
        result, = model.predict(views)
        assert result.bboxes.isfinite().all() and ('masks' in result) == model.with_mask
        assert ('keypoints' in result) == model.with_keypoint
