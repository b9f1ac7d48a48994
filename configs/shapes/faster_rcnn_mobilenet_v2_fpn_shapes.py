"""MobileNetV2 of half width."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True, type='MobileNetV2', widen_factor=0.5, out_indices=(1, 2, 4, 6), norm_eval=False),
    neck=dict(in_channels=[16, 16, 48, 160]))
