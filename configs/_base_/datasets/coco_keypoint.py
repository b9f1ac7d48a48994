"""COCO 2017 persons, boxes and 17 keypoints; each image is resized to one of six short sides."""
dataset_type = 'CocoKeypointDataset'
data_root = 'data/coco/'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
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
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(
        type=dataset_type, pipeline=train_pipeline, img_prefix=data_root + 'train2017/',
        ann_file=data_root + 'annotations/person_keypoints_train2017.json'),
    val=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'val2017/',
        ann_file=data_root + 'annotations/person_keypoints_val2017.json'),
    test=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'val2017/',
        ann_file=data_root + 'annotations/person_keypoints_val2017.json'))
evaluation = dict(metric=['bbox', 'keypoints'])
