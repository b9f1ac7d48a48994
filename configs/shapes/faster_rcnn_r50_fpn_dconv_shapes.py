"""Deformable convolution v1 in stages 3 to 5 of a thin ResNet-50: ResNet-18's blocks have no place for it."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        depth=50, base_channels=16, dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True)))
