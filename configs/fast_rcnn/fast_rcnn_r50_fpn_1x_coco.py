"""The proposals come from `tools/test.py RPN_CONFIG CHECKPOINT --out data/coco/proposals/….pkl`."""
_base_ = [
    '../_base_/models/fast_rcnn_r50_fpn.py', '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadProposals', num_max_proposals=2000),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'proposals', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadProposals', num_max_proposals=None),
    dict(
        type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='ToTensor', keys=['proposals']),
            dict(type='ToDataContainer', fields=[dict(key='proposals', stack=False)]),
            dict(type='Collect', keys=['img', 'proposals']),
        ]),
]
data = dict(
    train=dict(pipeline=train_pipeline, proposal_file=data_root + 'proposals/rpn_r50_fpn_1x_train2017.pkl'),
    val=dict(pipeline=test_pipeline, proposal_file=data_root + 'proposals/rpn_r50_fpn_1x_val2017.pkl'),
    test=dict(pipeline=test_pipeline, proposal_file=data_root + 'proposals/rpn_r50_fpn_1x_val2017.pkl'))
