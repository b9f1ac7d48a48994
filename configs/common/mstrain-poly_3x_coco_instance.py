"""COCO, boxes and polygon masks: 36 epochs as 12 over the set repeated 3 times, short side 640 to 800."""
_base_ = '../_base_/default_runtime.py'
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='Resize', img_scale=[(1333, 640), (1333, 800)], multiscale_mode='range', keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
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
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(
        type='RepeatDataset', times=3,
        dataset=dict(
            type=dataset_type, pipeline=train_pipeline, img_prefix=data_root + 'train2017/',
            ann_file=data_root + 'annotations/instances_train2017.json')),
    val=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'val2017/',
        ann_file=data_root + 'annotations/instances_val2017.json'),
    test=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'val2017/',
        ann_file=data_root + 'annotations/instances_val2017.json'))
evaluation = dict(interval=1, metric=['bbox', 'segm'])

optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', step=[9, 11], warmup='linear', warmup_iters=500, warmup_ratio=0.001)
runner = dict(type='EpochBasedRunner', max_epochs=12)
