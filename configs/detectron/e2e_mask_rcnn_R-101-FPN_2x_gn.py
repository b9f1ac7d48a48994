"""Detectron's e2e_mask_rcnn_R-101-FPN_2x_gn."""
_base_ = './e2e_mask_rcnn_R-50-FPN_2x_gn.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://detectron/resnet101_gn')))
