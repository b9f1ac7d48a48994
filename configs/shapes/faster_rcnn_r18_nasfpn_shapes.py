"""NAS-FPN, three times; it has five levels."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    neck=dict(type='NASFPN', num_outs=5, stack_times=3),
    rpn_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32, 64])))
