"""The shapes data set that tools/make_shapes.py draws: 160 x 128 or 128 x 160 pixels, boxes and masks."""
dataset_type = 'CocoDataset'
data_root = 'data/shapes/'
classes = ('circle', 'square', 'triangle', 'star', 'ring', 'stickman')
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', img_scale=(160, 128), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(160, 128), flip=False,
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
    samples_per_gpu=4, workers_per_gpu=1,
    train=dict(
        type=dataset_type, classes=classes, pipeline=train_pipeline, img_prefix=data_root + 'train/',
        ann_file=data_root + 'annotations/instances_train.json'),
    val=dict(
        type=dataset_type, classes=classes, pipeline=test_pipeline, img_prefix=data_root + 'val/',
        ann_file=data_root + 'annotations/instances_val.json'),
    test=dict(
        type=dataset_type, classes=classes, pipeline=test_pipeline, img_prefix=data_root + 'val/',
        ann_file=data_root + 'annotations/instances_val.json'))
evaluation = dict(metric=['bbox', 'segm'])
