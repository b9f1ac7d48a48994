"""Detectron's e2e_keypoint_rcnn_R-50-FPN, and maskrcnn-benchmark's; see faster_rcnn_R_50_FPN.py."""
_base_ = [
    '../_base_/models/keypoint_rcnn_r50_fpn.py', '../_base_/datasets/coco_keypoint_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
roi_layer = dict(type='DetectronRoIAlign', sampling_ratio=2)
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
model = dict(
    backbone=dict(
        style='caffe', norm_cfg=dict(requires_grad=False),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron/resnet50_caffe')),
    rpn_head=dict(
        anchor_generator=dict(type='DetectronAnchorGenerator', center_offset=0.5),
        bbox_coder=unlimited,
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=roi_layer),
        bbox_head=dict(
            bbox_coder=unlimited,
            loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1.0, loss_weight=1.0)),
        keypoint_roi_extractor=dict(roi_layer=roi_layer)),
    train_cfg=dict(rpn=dict(allowed_border=0), rpn_proposal=dict(nms_pre=2000, max_per_img=2000)))
img_norm_cfg = dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_keypoint=True),
    dict(
        type='Resize', img_scale=[(1333, side) for side in range(640, 801, 32)],
        multiscale_mode='value', keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_keypoints']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img']),
        ]),
]
data = dict(
    train=dict(pipeline=train_pipeline), val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline))
