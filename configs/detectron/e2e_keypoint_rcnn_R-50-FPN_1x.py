"""Detectron's e2e_keypoint_rcnn_R-50-FPN_1x; see faster_rcnn_R_50_FPN.py."""
_base_ = './keypoint_rcnn_R_50_FPN.py'
