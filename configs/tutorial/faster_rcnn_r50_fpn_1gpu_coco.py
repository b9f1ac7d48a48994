"""Faster R-CNN R50-FPN on small COCO images, a short training: Detectron's tutorial_1gpu_e2e_faster_rcnn_R-50-FPN.

2 images a GPU. The files for 2, 4 and 8 GPUs follow the linear scaling rule (Goyal et al. 2017): k times as many
images a step, k times the learning rate, 1 / k of the iterations. Meant to learn from; its AP is far below that of the
1x schedule.

    python tools/train.py configs/tutorial/faster_rcnn_r50_fpn_1gpu_coco.py
    tools/dist_train.sh configs/tutorial/faster_rcnn_r50_fpn_2gpu_coco.py 2
"""
_base_ = '../faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py'
model = dict(
    train_cfg=dict(rcnn=dict(sampler=dict(num=256))),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000)))
img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(833, 500), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(833, 500), flip=False,
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
    samples_per_gpu=2, train=dict(pipeline=train_pipeline), val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline))

optimizer = dict(lr=0.0025)
lr_config = dict(warmup_ratio=1.0 / 3, step=[30000, 40000])
runner = dict(_delete_=True, type='IterBasedRunner', max_iters=60000)
evaluation = dict(interval=60000, metric='bbox')
checkpoint_config = dict(interval=20000)
auto_scale_lr = dict(base_batch_size=2)
