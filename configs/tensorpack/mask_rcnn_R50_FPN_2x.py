"""tensorpack's COCO-MaskRCNN-R50FPN2x.npz: its weights load as they are (boxdet/checkpoints/convert).

Its rules where they differ from mmdetection's: two samples a side of every pooled cell, proposals of a level are cut to
their number before and after the suppression, batch norms learn, L1 losses for boxes. Box sizes are limited from above
only, there by 1333 / 16 and here by 1000 / 16 times. Pooling next to the image's edge repeats the last pixel there.
"""
_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_2x.py', '../_base_/default_runtime.py',
]
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False)
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
# tensorpack's own ResNet/ImageNet-R50-AlignPadding.npz, by its path or address, serves as well: its channels are BGR.
model = dict(
    rpn_head=dict(
        bbox_coder=unlimited,
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(bbox_coder=unlimited),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2))),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(nms_pre=2000, max_per_img=2000),
        rcnn=dict(assigner=dict(match_low_quality=False))))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),
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
    train=dict(pipeline=train_pipeline), val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline))
