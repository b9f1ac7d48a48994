"""Keywords and settings that a config leaves out have mmdetection 2.28's values."""
import inspect

import pytest

from boxdet.errors import ConfigError
from boxdet.models import bbox_head, detectors, keypoint_head, mask_head, rpn_head, shared_head

CONVOLUTIONS = dict(conv_cfg=None, norm_cfg=None, init_cfg=None)
DEFAULTS = {
    bbox_head.BBoxHead: dict(
        CONVOLUTIONS, with_avg_pool=False, with_cls=True, with_reg=True, roi_feat_size=7, in_channels=256,
        num_classes=80, bbox_coder=None, reg_class_agnostic=False, reg_decoded_bbox=False, reg_predictor_cfg=None,
        cls_predictor_cfg=None, loss_cls=None, loss_bbox=None, num_shared_convs=0, num_shared_fcs=0, num_cls_convs=0,
        num_cls_fcs=0, num_reg_convs=0, num_reg_fcs=0, conv_out_channels=256, fc_out_channels=1024),
    bbox_head.Shared2FCBBoxHead: dict(fc_out_channels=1024),
    bbox_head.Shared4Conv1FCBBoxHead: dict(fc_out_channels=1024),
    mask_head.FCNMaskHead: dict(
        CONVOLUTIONS, num_convs=4, roi_feat_size=14, in_channels=256, conv_kernel_size=3, conv_out_channels=256,
        num_classes=80, class_agnostic=False, upsample_cfg=None, predictor_cfg=None, loss_mask=None, dilation=1,
        upsample_ratio=1, res_layer=None),
    keypoint_head.KeypointRCNNHead: dict(
        CONVOLUTIONS, num_convs=8, roi_feat_size=14, in_channels=256, conv_kernel_size=3, conv_out_channels=512,
        num_keypoints=17, upsample_kernel_size=4, up_scale=2, loss_keypoint=None, normalize_by_visible_keypoints=True,
        score_type='probability', flip_pairs=None, skeleton=None),
    rpn_head.RPNHead: dict(
        feat_channels=256, anchor_generator=None, bbox_coder=None, num_convs=1, num_classes=1, reg_decoded_bbox=False,
        loss_cls=None, loss_bbox=None, train_cfg=None, test_cfg=None, init_cfg=None),
    shared_head.ResLayer: dict(stage=3, stride=2, dilation=1, style='pytorch', norm_cfg=None, norm_eval=True,
                               with_cp=False, dcn=None, pretrained=None, init_cfg=None)}
SETTINGS = {
    bbox_head.RoITrainSettings: dict(assigner=None, sampler=None, mask_size=28, mask_samples=-1, pos_weight=-1,
                                     debug=False),
    bbox_head.RoITestSettings: dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100,
                                    mask_thr_binary=0.5, min_bbox_size=-1, keep_empty=True, paste_whole_pixels=False),
    rpn_head.RPNTrainSettings: dict(assigner=None, sampler=None, allowed_border=0, pos_weight=-1, debug=False),
    rpn_head.ProposalSettings: dict(nms_pre=-1, max_per_img=1000, min_bbox_size=0, nms_across_levels=False,
                                    nms_post=-1, max_per_batch=-1, nms=dict(type='nms', iou_threshold=0.7))}


@pytest.mark.parametrize('part', DEFAULTS, ids=lambda part: part.__name__)
def test_keywords(part):
    parameters = inspect.signature(part).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == DEFAULTS[part]


@pytest.mark.parametrize('settings', SETTINGS, ids=lambda settings: settings.__name__)
def test_settings(settings):
    assert vars(settings()) == SETTINGS[settings]


def test_prediction_takes_the_plain_way():
    assert detectors.TestSettings().fixed_size is False


def test_parts_of_a_box_head():
    head = bbox_head.BBoxHead(roi_feat_size=1, in_channels=2, num_classes=1)
    assert (head.bbox_coder.means, head.bbox_coder.stds) == ((0, 0, 0, 0), (0.1, 0.1, 0.2, 0.2))
    assert (head.loss_cls.use_sigmoid, head.loss_cls.loss_weight) == (False, 1)
    assert (head.loss_bbox.beta, head.loss_bbox.loss_weight) == (1, 1)


def test_parts_of_an_rpn():
    head = rpn_head.RPNHead(2, 2)
    generator = head.anchor_generator
    assert generator.strides == [(s, s) for s in (4, 8, 16, 32, 64)] and generator.num_base_priors == [9] * 5
    assert [list(map(float, values)) for values in (generator.scales, generator.ratios)] == [[8, 16, 32], [.5, 1, 2]]
    assert (head.bbox_coder.means, head.bbox_coder.stds) == ((0, 0, 0, 0), (1, 1, 1, 1)) and head.bbox_coder.clip_border
    assert (head.loss_cls.use_sigmoid, head.loss_cls.loss_weight) == (True, 1)
    assert (head.loss_bbox.beta, head.loss_bbox.loss_weight) == (1 / 9, 1)
    assert head.assigner is head.sampler is None and head.rpn_conv.kernel_size == (3, 3)


@pytest.mark.parametrize('wrong', [dict(depth=51), dict(depth=50, stage=4), dict(depth=50, stage=-1)])
def test_a_stage_that_resnets_do_not_have(wrong):
    with pytest.raises(ConfigError, match='ResLayer: depth'):
        shared_head.ResLayer(**wrong)


@pytest.mark.parametrize('stage', range(4))
def test_each_stage_of_a_resnet_can_be_a_shared_head(stage):
    layer = shared_head.ResLayer(18, stage=stage, stride=1)
    blocks = getattr(layer, f'layer{stage + 1}')
    assert len(blocks) == 2 and blocks[0].conv1.in_channels == [64, 64, 128, 256][stage]
    assert blocks[1].conv2.out_channels == 64 * 2 ** stage
    assert not any(module.training for module in layer.train().modules() if 'Norm' in type(module).__name__)
    layer.norm_eval = False
    assert all(module.training for module in layer.train().modules())
    assert not any(module.training for module in layer.eval().modules())
