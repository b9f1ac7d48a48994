r"""Your own COCO-format data: Mask R-CNN R18-FPN from scratch on 18 photos of dates, figs and hazelnuts.

    python tools/train.py configs/mask_rcnn/mask_rcnn_r18_fpn_fruits.py --cfg-options \
        data.train.dataset.data_root=DIR data.val.data_root=DIR data.test.data_root=DIR

For other data change `data_root`, `classes`, the two `num_classes` and the names of the files below. The images are
few, so that it shows one thing: that the model can learn them by heart. It is evaluated on the images it trains on.
"""
_base_ = ['../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/default_runtime.py']
data_root = 'data/fruits_nuts/'
classes = ('date', 'fig', 'hazelnut')
img_scale = (320, 240)
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=len(classes)),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_classes=len(classes))),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', img_scale=img_scale, keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=img_scale, flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img']),
        ]),
]
images = dict(type='CocoDataset', classes=classes, data_root=data_root, ann_file='trainval.json', img_prefix='images/')
data = dict(
    samples_per_gpu=2, workers_per_gpu=1,
    # ten rounds of 18 images an epoch: evaluations and checkpoints do not come every few seconds
    train=dict(type='RepeatDataset', times=10, dataset=dict(pipeline=train_pipeline, **images)),
    val=dict(pipeline=test_pipeline, **images),
    test=dict(pipeline=test_pipeline, **images))

optimizer = dict(type='AdamW', lr=0.0005, weight_decay=0.05)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(policy='CosineAnnealing', min_lr=0, by_epoch=False, warmup='linear', warmup_iters=100,
                 warmup_ratio=0.01)
runner = dict(type='EpochBasedRunner', max_epochs=14)
log_config = dict(interval=30)
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
evaluation = dict(interval=2, metric=['bbox', 'segm'])
