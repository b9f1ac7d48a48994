"""LVIS v1, boxes and masks, images drawn alike, at several scales."""
dataset_type = 'LVISV1Dataset'
data_root = 'data/lvis_v1/'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='Resize', multiscale_mode='value', keep_ratio=True,
        img_scale=[(1333, 640), (1333, 672), (1333, 704), (1333, 736), (1333, 768), (1333, 800)]),
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
        type=dataset_type, pipeline=train_pipeline, img_prefix=data_root,
        ann_file=data_root + 'annotations/lvis_v1_train.json'),
    val=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root,
        ann_file=data_root + 'annotations/lvis_v1_val.json'),
    test=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root,
        ann_file=data_root + 'annotations/lvis_v1_val.json'))
evaluation = dict(interval=24, metric=['bbox', 'segm'])
