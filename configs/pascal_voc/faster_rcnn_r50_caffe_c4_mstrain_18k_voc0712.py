_base_ = ['../_base_/models/faster_rcnn_r50_caffe_c4.py', '../_base_/default_runtime.py']
model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))
dataset_type = 'VOCDataset'
data_root = 'data/VOCdevkit/'
img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='Resize', multiscale_mode='value', keep_ratio=True,
        img_scale=[(1333, 480), (1333, 512), (1333, 544), (1333, 576), (1333, 608), (1333, 640), (1333, 672),
                   (1333, 704), (1333, 736), (1333, 768), (1333, 800)]),
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
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(
        type=dataset_type, pipeline=train_pipeline,
        img_prefix=[data_root + 'VOC2007/', data_root + 'VOC2012/'],
        ann_file=[data_root + 'VOC2007/ImageSets/Main/trainval.txt',
                  data_root + 'VOC2012/ImageSets/Main/trainval.txt']),
    val=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'VOC2007/',
        ann_file=data_root + 'VOC2007/ImageSets/Main/test.txt'),
    test=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'VOC2007/',
        ann_file=data_root + 'VOC2007/ImageSets/Main/test.txt'))
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', warmup='linear', warmup_iters=100, warmup_ratio=0.001, step=[12000, 16000])
runner = dict(type='IterBasedRunner', max_iters=18000)
checkpoint_config = dict(interval=3000)
evaluation = dict(interval=3000, metric='mAP')
