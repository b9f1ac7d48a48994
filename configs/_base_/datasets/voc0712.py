"""Pascal VOC: trainval of 2007 and 2012, three times an epoch; tested on 2007's test split (mAP by 11 points)."""
dataset_type = 'VOCDataset'
data_root = 'data/VOCdevkit/'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(1000, 600), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(1000, 600), flip=False,
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
            type=dataset_type, pipeline=train_pipeline,
            img_prefix=[data_root + 'VOC2007/', data_root + 'VOC2012/'],
            ann_file=[data_root + 'VOC2007/ImageSets/Main/trainval.txt',
                      data_root + 'VOC2012/ImageSets/Main/trainval.txt'])),
    val=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'VOC2007/',
        ann_file=data_root + 'VOC2007/ImageSets/Main/test.txt'),
    test=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'VOC2007/',
        ann_file=data_root + 'VOC2007/ImageSets/Main/test.txt'))
evaluation = dict(interval=1, metric='mAP')
