"""Cascade R-CNN R18-FPN on the shapes data set: the boxes alone of cascade_mask_rcnn_r18_fpn_shapes.py."""
_base_ = './cascade_mask_rcnn_r18_fpn_shapes.py'
model = dict(roi_head=dict(mask_roi_extractor=None, mask_head=None))
evaluation = dict(metric='bbox')
