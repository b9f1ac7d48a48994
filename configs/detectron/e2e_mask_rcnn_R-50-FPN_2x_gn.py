"""Detectron's e2e_mask_rcnn_R-50-FPN_2x_gn: group normalisation (Wu and He 2018) everywhere."""
_base_ = './e2e_mask_rcnn_R-50-FPN_2x.py'
norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
model = dict(
    backbone=dict(
        style='pytorch', norm_cfg=norm_cfg, init_cfg=dict(checkpoint='open-mmlab://detectron/resnet50_gn')),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))
