"""Global context blocks in a thin ResNet-50."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        depth=50, base_channels=16,
        plugins=[
            dict(cfg=dict(type='ContextBlock', ratio=0.25), stages=(False, True, True, True), position='after_conv3')]))
