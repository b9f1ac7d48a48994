r"""Your own data in VOC's form: Faster R-CNN R18-FPN from scratch on photos of blood cells, in minutes on a CPU.

    python tools/train.py configs/pascal_voc/faster_rcnn_r18_fpn_bccd.py --cfg-options \
        data.train.dataset.img_prefix=DIR/ data.train.dataset.ann_file=DIR/ImageSets/Main/train.txt ...

benchmarks/bccd.sh does it with paths filled in. For other data change `data_root`, `classes` and `num_classes`.
"""
_base_ = ['../_base_/models/faster_rcnn_r50_fpn.py', '../_base_/default_runtime.py']
data_root = 'data/bccd/'
classes = ('RBC', 'WBC', 'Platelets')
img_scale = (320, 240)
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    # cells are 15 to 130 pixels wide at this scale: anchors of 16, 32, 64 and 128
    rpn_head=dict(
        in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=len(classes), reg_class_agnostic=True)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=150),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=150), rcnn=dict(max_per_img=100)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=img_scale, keep_ratio=True),
    # under a microscope there is no up and down
    dict(type='RandomFlip', flip_ratio=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
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
# year=2012: mAP is the area under the curve
images = dict(type='VOCDataset', classes=classes, year=2012, data_root=data_root, img_prefix='')
data = dict(
    samples_per_gpu=4, workers_per_gpu=0,
    # two rounds of 205 images an epoch
    train=dict(type='RepeatDataset', times=2, dataset=dict(
        ann_file='ImageSets/Main/train.txt', pipeline=train_pipeline, **images)),
    val=dict(ann_file='ImageSets/Main/val.txt', pipeline=test_pipeline, **images),
    test=dict(ann_file='ImageSets/Main/val.txt', pipeline=test_pipeline, **images))

optimizer = dict(type='AdamW', lr=0.001, weight_decay=0.05, fused=True)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(policy='CosineAnnealing', min_lr=0, by_epoch=False, warmup='linear', warmup_iters=50,
                 warmup_ratio=0.01)
runner = dict(type='EpochBasedRunner', max_epochs=10)
auto_scale_lr = dict(base_batch_size=4)
log_config = dict(interval=25)
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
evaluation = dict(interval=2, metric='mAP')
