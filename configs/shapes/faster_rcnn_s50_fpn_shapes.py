"""A thin ResNeSt-50."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        type='ResNeSt', depth=50, base_channels=16, stem_channels=32, radix=2, reduction_factor=4,
        avg_down_stride=True))
