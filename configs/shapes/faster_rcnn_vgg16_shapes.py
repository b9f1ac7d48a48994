"""Faster R-CNN on VGG-16 (Ren et al. 2015), with batch norm, which training from scratch needs: stride 16, RoIPool."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True, type='VGG', depth=16, with_bn=True, bn_eval=False, out_indices=(4, ), with_last_pool=False),
    neck=None,
    rpn_head=dict(
        in_channels=512, feat_channels=64, anchor_generator=dict(scales=[1, 2, 4, 8], strides=[16])),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=512, featmap_strides=[16], roi_layer=dict(_delete_=True, type='RoIPool', output_size=7)),
        bbox_head=dict(in_channels=512)))
