"""Swin of 24 channels, with layers of a quarter of Swin-T."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True, type='SwinTransformer', embed_dims=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8),
        window_size=7, drop_path_rate=0.0),
    neck=dict(in_channels=[24, 48, 96, 192]))
