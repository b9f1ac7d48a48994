"""SABL R18-FPN: each side of a box is put into a bucket, then moved."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    roi_head=dict(
        bbox_head=dict(
            _delete_=True, type='SABLHead', num_classes=6, cls_in_channels=64, reg_in_channels=64, roi_feat_size=7,
            reg_feat_up_ratio=2, reg_pre_kernel=3, reg_post_kernel=3, reg_pre_num=2, reg_post_num=1,
            cls_out_channels=256, reg_offset_out_channels=64, reg_cls_out_channels=64, num_cls_fcs=1, num_reg_fcs=0,
            bbox_coder=dict(type='BucketingBBoxCoder', num_buckets=14, scale_factor=1.7),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
            loss_bbox_reg=dict(type='SmoothL1Loss', beta=0.1, loss_weight=1.0))))
