"""Detectron's e2e_mask_rcnn_R-50-FPN_2x."""
_base_ = './e2e_mask_rcnn_R-50-FPN_1x.py'
lr_config = dict(step=[16, 22])
runner = dict(max_epochs=24)
