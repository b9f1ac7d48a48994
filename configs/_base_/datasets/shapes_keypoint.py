"""The stickmen of the shapes data set that tools/make_shapes.py draws: boxes and 11 keypoints.

The names of the keypoints, and by them what a mirror swaps, come from the annotation file. A stickman faces the viewer,
and only that tells its left hand from its right one.
"""
dataset_type = 'CocoKeypointDataset'
data_root = 'data/shapes/'
classes = ('stickman',)
sigmas = [0.079, 0.079, 0.107, 0.072, 0.072, 0.062, 0.062, 0.087, 0.087, 0.089, 0.089]  # COCO's of the same keypoints
keypoints = dict(sigmas=sigmas, keypoint_offset=0)  # the file's coordinates are continuous
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_keypoint=True),
    dict(type='Resize', img_scale=(160, 128), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_keypoints']),
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
        ann_file=data_root + 'annotations/instances_train.json', **keypoints),
    val=dict(
        type=dataset_type, classes=classes, pipeline=test_pipeline, img_prefix=data_root + 'val/',
        ann_file=data_root + 'annotations/instances_val.json', **keypoints),
    test=dict(
        type=dataset_type, classes=classes, pipeline=test_pipeline, img_prefix=data_root + 'val/',
        ann_file=data_root + 'annotations/instances_val.json', **keypoints))
evaluation = dict(metric=['bbox', 'keypoints'])
