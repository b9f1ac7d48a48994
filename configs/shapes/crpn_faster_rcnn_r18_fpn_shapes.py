"""Cascade RPN R18-FPN: anchors are moved in two stages."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
strides = [4, 8, 16, 32]
model = dict(
    rpn_head=dict(
        _delete_=True, type='CascadeRPNHead', num_stages=2,
        stages=[
            dict(
                type='StageCascadeRPNHead', in_channels=64, feat_channels=64,
                anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=strides),
                adapt_cfg=dict(type='dilation', dilation=3), bridged_feature=True, sampling=False, with_cls=False,
                reg_decoded_bbox=True,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_means=(0.0, 0.0, 0.0, 0.0), target_stds=(0.1, 0.1, 0.5, 0.5)),
                loss_bbox=dict(type='IoULoss', linear=True, loss_weight=7.0)),
            dict(
                type='StageCascadeRPNHead', in_channels=64, feat_channels=64,
                anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=strides),
                adapt_cfg=dict(type='offset'), bridged_feature=False, sampling=True, with_cls=True,
                reg_decoded_bbox=True,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_means=(0.0, 0.0, 0.0, 0.0), target_stds=(0.05, 0.05, 0.1, 0.1)),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=0.7),
                loss_bbox=dict(type='IoULoss', linear=True, loss_weight=7.0))]),
    train_cfg=dict(
        rpn=[
            dict(assigner=dict(type='RegionAssigner', center_ratio=0.2, ignore_ratio=0.5), allowed_border=-1),
            dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.7, min_pos_iou=0.3),
                sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5, add_gt_as_proposals=False),
                allowed_border=-1)]))
