"""Detectron's e2e_mask_rcnn_R-101-FPN_1x; see faster_rcnn_R_50_FPN.py."""
_base_ = './mask_rcnn_R_50_FPN.py'
model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://detectron/resnet101_caffe')))
