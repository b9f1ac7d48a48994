"""detectron2's COCO-Detection/faster_rcnn_R_50_DC5."""
_base_ = [
    '../_base_/models/faster_rcnn_r50_caffe_dc5.py', '../_base_/datasets/coco_detection_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
model = dict(
    # The ratios of the first scale come first.
    rpn_head=dict(anchor_generator=dict(scale_major=False), bbox_coder=unlimited),
    roi_head=dict(bbox_head=dict(bbox_coder=unlimited)),
    test_cfg=dict(rcnn=dict(keep_empty=False)))
# Without a pyramid images are not filled up to whole multiples of 32 pixels.
img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
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
