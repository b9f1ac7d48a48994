"""RegNetX-400MF."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True, type='RegNet', arch='regnetx_400mf', out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True)),
    neck=dict(in_channels=[32, 64, 160, 384]))
