"""Deformable convolution v2, modulated, in stages 3 to 5 of a thin ResNet-50."""
_base_ = './faster_rcnn_r50_fpn_dconv_shapes.py'
model = dict(backbone=dict(dcn=dict(type='DCNv2')))
