"""Group normalisation everywhere, nothing frozen: the from-scratch models of He et al. 2019, with their box head."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
norm_cfg = dict(type='GN', num_groups=8, requires_grad=True)
model = dict(
    backbone=dict(norm_cfg=norm_cfg, zero_init_residual=False),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=32, norm_cfg=norm_cfg)))
