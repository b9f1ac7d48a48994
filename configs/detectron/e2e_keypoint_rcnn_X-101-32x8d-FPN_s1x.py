"""Detectron's e2e_keypoint_rcnn_X-101-32x8d-FPN_s1x."""
_base_ = './e2e_keypoint_rcnn_X-101-32x8d-FPN_1x.py'
lr_config = dict(step=[13, 16])
runner = dict(max_epochs=17)
