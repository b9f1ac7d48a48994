"""Soft-NMS (Bodla et al. 2017) in place of NMS; the weights are those of faster_rcnn_r18_fpn_shapes.py."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms', iou_threshold=0.5))))
