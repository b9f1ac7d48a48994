"""detectron2's Misc/mask_rcnn_R_50_FPN_3x_gn: group normalisation everywhere."""
_base_ = './mask_rcnn_R_50_FPN_3x.py'
norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
model = dict(
    backbone=dict(
        style='pytorch', norm_cfg=norm_cfg, init_cfg=dict(checkpoint='open-mmlab://detectron/resnet50_gn')),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))
