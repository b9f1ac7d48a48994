"""Pyramid vision transformer v2, B0 with a layer a stage."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True, type='PyramidVisionTransformerV2', embed_dims=32, num_layers=(1, 1, 1, 1)),
    neck=dict(in_channels=[32, 64, 160, 256]))
