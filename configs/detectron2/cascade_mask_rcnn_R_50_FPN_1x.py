"""detectron2's Misc/cascade_mask_rcnn_R_50_FPN_1x."""
_base_ = './cascade_mask_rcnn_R_50_FPN.py'
