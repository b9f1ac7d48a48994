"""No pyramid: each level gets the same channels."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(neck=dict(type='ChannelMapper'))
