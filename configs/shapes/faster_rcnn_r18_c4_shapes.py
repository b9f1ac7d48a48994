"""Faster R-CNN R18-C4: RPN and rois on stage 4 (stride 16), stage 5 as the head, on rois of 7 x 7, not 14 x 14."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2, )),
    neck=None,
    rpn_head=dict(
        in_channels=256, feat_channels=64, anchor_generator=dict(scales=[1, 2, 4, 8], strides=[16])),
    roi_head=dict(
        shared_head=dict(type='ResLayer', depth=18, stage=3, stride=2, norm_cfg=norm_cfg, norm_eval=False),
        bbox_roi_extractor=dict(out_channels=256, featmap_strides=[16]),
        bbox_head=dict(
            _delete_=True, type='BBoxHead', with_avg_pool=True, in_channels=512, roi_feat_size=4, num_classes=6,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=True,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0))),
    train_cfg=dict(rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=50)))
