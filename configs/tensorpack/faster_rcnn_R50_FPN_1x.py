"""tensorpack's R50-FPN with MODE_MASK=False; see mask_rcnn_R50_FPN_2x.py."""
_base_ = './mask_rcnn_R50_FPN_2x.py'
model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
data = dict(train=dict(pipeline=train_pipeline))
evaluation = dict(metric='bbox')
lr_config = dict(step=[8, 11])
runner = dict(max_epochs=12)
