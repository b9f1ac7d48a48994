"""Detectron's e2e_faster_rcnn_R-50-C4, and maskrcnn-benchmark's; see faster_rcnn_R_50_FPN.py."""
_base_ = [
    '../_base_/models/faster_rcnn_r50_caffe_c4.py', '../_base_/datasets/coco_detection_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
pretrained = dict(type='Pretrained', checkpoint='open-mmlab://detectron/resnet50_caffe')
model = dict(
    backbone=dict(init_cfg=pretrained),
    rpn_head=dict(
        # The scales of the first ratio come first, as by default.
        anchor_generator=dict(type='DetectronAnchorGenerator', center_offset=0.5),
        bbox_coder=unlimited,
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
    roi_head=dict(
        shared_head=dict(init_cfg=pretrained),
        bbox_roi_extractor=dict(roi_layer=dict(type='DetectronRoIAlign')),
        bbox_head=dict(
            bbox_coder=unlimited,
            loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1.0, loss_weight=1.0))),
    train_cfg=dict(rpn=dict(allowed_border=0)))
# Without a pyramid images are not filled up to whole multiples of 32 pixels.
img_norm_cfg = dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img']),
        ]),
]
data = dict(
    train=dict(pipeline=train_pipeline), val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline))
