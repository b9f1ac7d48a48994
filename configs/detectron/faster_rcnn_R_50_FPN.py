"""Detectron's e2e_faster_rcnn_R-50-FPN, and maskrcnn-benchmark's: the weights of both load as they are.

Both count the pixels of a box inclusively: one from 0 to 9 is 10 wide. Here it is the box from 0 to 10, which makes the
same overlaps, deltas and results; anchors and RoIAlign have types of their own that follow Detectron's rules
(boxdet/models/families/legacy.py). Masks and keypoints are put on the image without its rounding to whole pixels.
"""
_base_ = [
    '../_base_/models/faster_rcnn_r50_fpn.py', '../_base_/datasets/coco_detection_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
# Box sizes are limited from above only; that comes with a limit on shifts, which is too wide here to matter.
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
model = dict(
    backbone=dict(
        style='caffe', norm_cfg=dict(requires_grad=False),
        # Or Detectron's own file, ImageNetPretrained/MSRA/R-50.pkl, by its path or address.
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron/resnet50_caffe')),
    rpn_head=dict(
        anchor_generator=dict(type='DetectronAnchorGenerator', center_offset=0.5),
        bbox_coder=unlimited,
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(type='DetectronRoIAlign', sampling_ratio=2)),
        bbox_head=dict(
            bbox_coder=unlimited,
            loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1.0, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(nms_pre=2000, max_per_img=2000)))
img_norm_cfg = dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
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
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img']),
        ]),
]
data = dict(
    train=dict(pipeline=train_pipeline), val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline))
