"""PAFPN: the pyramid with a way back up."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(neck=dict(type='PAFPN'))
