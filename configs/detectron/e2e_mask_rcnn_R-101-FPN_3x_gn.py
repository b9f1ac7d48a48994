"""Detectron's e2e_mask_rcnn_R-101-FPN_3x_gn."""
_base_ = './e2e_mask_rcnn_R-101-FPN_2x_gn.py'
lr_config = dict(step=[28, 34])
runner = dict(max_epochs=36)
