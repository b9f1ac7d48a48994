"""Detectron's e2e_faster_rcnn_X-101-32x8d-FPN_2x."""
_base_ = './e2e_faster_rcnn_X-101-32x8d-FPN_1x.py'
lr_config = dict(step=[16, 22])
runner = dict(max_epochs=24)
