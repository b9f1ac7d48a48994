"""tensorpack's COCO-MaskRCNN-R50C41x.npz; see mask_rcnn_R50_FPN_2x.py.

Where a side of a level is odd, tensorpack leaves its last row out before it halves it; here it is padded. Give images
whole multiples of 32 pixels where that matters.
"""
_base_ = '../detectron2/mask_rcnn_R_50_C4.py'
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False)
body = dict(type='Pretrained', checkpoint='torchvision://resnet50')
model = dict(
    backbone=dict(norm_cfg=dict(requires_grad=True), style='pytorch', init_cfg=body),
    rpn_head=dict(
        anchor_generator=dict(scale_major=False),
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
    roi_head=dict(
        shared_head=dict(norm_cfg=dict(requires_grad=True), style='pytorch', init_cfg=body),
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2))),
    train_cfg=dict(rpn=dict(allowed_border=0)),
    test_cfg=dict(rcnn=dict(keep_empty=True)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
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
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img']),
        ]),
]
data = dict(
    train=dict(pipeline=train_pipeline), val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline))
