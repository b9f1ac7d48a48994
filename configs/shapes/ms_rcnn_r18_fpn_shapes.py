"""Mask Scoring R-CNN R18-FPN: a head that tells how good a mask is."""
_base_ = './mask_rcnn_r18_fpn_shapes.py'
model = dict(
    type='MaskScoringRCNN',
    roi_head=dict(
        type='MaskScoringRoIHead', mask_head=dict(class_agnostic=False),
        mask_iou_head=dict(
            type='MaskIoUHead', num_convs=2, num_fcs=2, roi_feat_size=14, in_channels=64, conv_out_channels=32,
            fc_out_channels=128, num_classes=6)),
    train_cfg=dict(rcnn=dict(mask_thr_binary=0.5)))
