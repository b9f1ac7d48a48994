"""Detectron's e2e_faster_rcnn_R-50-C4_1x; see faster_rcnn_R_50_FPN.py."""
_base_ = './faster_rcnn_R_50_C4.py'
