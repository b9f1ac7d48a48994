"""COCO, masks: standard scale jitter and simple copy-paste (Ghiasi et al. 2021), 270,000 steps."""
_base_ = '../_base_/default_runtime.py'
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
file_client_args = dict(backend='disk')
image_size = (1024, 1024)
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
load_pipeline = [
    dict(type='LoadImageFromFile', file_client_args=file_client_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='Resize', img_scale=image_size, ratio_range=(0.8, 1.25), multiscale_mode='range',
        keep_ratio=True),
    dict(
        type='RandomCrop', crop_type='absolute_range', crop_size=image_size, recompute_bbox=True,
        allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Pad', size=image_size),
]
train_pipeline = [
    dict(type='CopyPaste', max_num_pasted=100),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
]
test_pipeline = [
    dict(type='LoadImageFromFile', file_client_args=file_client_args),
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
        type='MultiImageMixDataset', pipeline=train_pipeline,
        dataset=dict(
            type=dataset_type, pipeline=load_pipeline, img_prefix=data_root + 'train2017/',
            ann_file=data_root + 'annotations/instances_train2017.json')),
    val=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'val2017/',
        ann_file=data_root + 'annotations/instances_val2017.json'),
    test=dict(
        type=dataset_type, pipeline=test_pipeline, img_prefix=data_root + 'val2017/',
        ann_file=data_root + 'annotations/instances_val2017.json'))
evaluation = dict(interval=6000, metric=['bbox', 'segm'])
checkpoint_config = dict(interval=6000)

# For 64 images a step: 270,000 steps are about 144 epochs, and lr falls after 90, 95 and 97.5 % of them.
optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.00004)
optimizer_config = dict(grad_clip=None)
lr_config = dict(
    policy='step', step=[243000, 256500, 263250], warmup='linear', warmup_iters=1000, warmup_ratio=0.001)
runner = dict(type='IterBasedRunner', max_iters=270000)
auto_scale_lr = dict(base_batch_size=64)
