"""Detectron's e2e_keypoint_rcnn_R-101-FPN_s1x."""
_base_ = './e2e_keypoint_rcnn_R-101-FPN_1x.py'
lr_config = dict(step=[13, 16])
runner = dict(max_epochs=17)
