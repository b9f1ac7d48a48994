"""Modulated deformable RoI pooling (Zhu et al. 2019)."""
_base_ = './faster_rcnn_r18_fpn_dpool_shapes.py'
model = dict(roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(type='ModulatedDeformRoIPoolPack'))))
