"""TridentNet on a thin ResNet-50-C4: three branches of one weight, of growing dilation."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    type='TridentFasterRCNN',
    backbone=dict(
        type='TridentResNet', depth=50, base_channels=16, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
        out_indices=(2,), trident_dilations=(1, 2, 3), num_branch=3, test_branch_idx=1),
    neck=None,
    rpn_head=dict(in_channels=256, feat_channels=64, anchor_generator=dict(scales=[1, 2, 4, 8], strides=[16])),
    roi_head=dict(
        type='TridentRoIHead', num_branch=3, test_branch_idx=1,
        bbox_roi_extractor=dict(out_channels=256, featmap_strides=[16]), bbox_head=dict(in_channels=256)))
