"""A thin Res2Net-50."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        type='Res2Net', depth=50, base_channels=16, scales=4, base_width=26))
