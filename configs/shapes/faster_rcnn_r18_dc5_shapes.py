"""Faster R-CNN R18-DC5: one level, stage 5 dilated instead of strided, so that it has stride 16."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(3, )),
    neck=None,
    rpn_head=dict(
        in_channels=512, feat_channels=64, anchor_generator=dict(scales=[1, 2, 4, 8], strides=[16])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=512, featmap_strides=[16]),
        bbox_head=dict(in_channels=512)))
