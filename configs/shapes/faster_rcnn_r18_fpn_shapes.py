"""Faster R-CNN R18-FPN from scratch on the shapes data set: the boxes alone of mask_rcnn_r18_fpn_shapes.py."""
_base_ = './mask_rcnn_r18_fpn_shapes.py'
model = dict(
    type='FasterRCNN',
    roi_head=dict(mask_roi_extractor=None, mask_head=None))
evaluation = dict(metric='bbox')
