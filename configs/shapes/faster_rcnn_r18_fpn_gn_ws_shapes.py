"""Group normalisation and weight standardisation (Qiao et al. 2019)."""
_base_ = './faster_rcnn_r18_fpn_gn_shapes.py'
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(conv_cfg=conv_cfg), neck=dict(conv_cfg=conv_cfg), roi_head=dict(bbox_head=dict(conv_cfg=conv_cfg)))
