"""A thin ResNeXt-50: 8 groups of 2 channels in the first stage."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(backbone=dict(type='ResNeXt', depth=50, base_channels=16, groups=8, base_width=2))
