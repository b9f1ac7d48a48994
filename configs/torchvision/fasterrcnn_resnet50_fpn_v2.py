"""torchvision's fasterrcnn_resnet50_fpn_v2: batch norms in pyramid and heads, two convolutions in the RPN.

Its batch norms are trained, as torchvision trains them from ImageNet's weights.
"""
_base_ = './fasterrcnn_resnet50_fpn.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(norm_cfg=norm_cfg, norm_eval=False),
    neck=dict(norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead', conv_out_channels=256, fc_out_channels=1024, norm_cfg=norm_cfg)))
