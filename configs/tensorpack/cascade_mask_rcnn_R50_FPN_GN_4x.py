"""tensorpack's COCO-MaskRCNN-R50FPN4xGNCasAug.npz: cascade, group norms, images of 640 to 800 pixels."""
_base_ = './cascade_mask_rcnn_R50_FPN_1x.py'
norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
deviations = [[1 / 10, 1 / 10, 1 / 5, 1 / 5], [1 / 20, 1 / 20, 1 / 10, 1 / 10], [1 / 30, 1 / 30, 1 / 15, 1 / 15]]
model = dict(
    backbone=dict(
        norm_cfg=norm_cfg, init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron/resnet50_gn')),
    neck=dict(type='TensorpackFPN', norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=[
            dict(
                type='TensorpackConvFCBBoxHead', num_shared_convs=4, num_shared_fcs=1, in_channels=256,
                conv_out_channels=256, fc_out_channels=1024, roi_feat_size=7, num_classes=80, norm_cfg=norm_cfg,
                reg_class_agnostic=True,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=stds, add_ctr_clamp=True, ctr_clamp=1e6),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='L1Loss', loss_weight=1.0)) for stds in deviations
        ],
        mask_head=dict(type='TensorpackFCNMaskHead', norm_cfg=norm_cfg)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', img_scale=[(1333, 640), (1333, 800)], multiscale_mode='range', keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
]
data = dict(train=dict(pipeline=train_pipeline))
lr_config = dict(step=[40, 46])
runner = dict(max_epochs=48)
