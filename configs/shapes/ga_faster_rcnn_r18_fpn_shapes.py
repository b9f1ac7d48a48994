"""Guided anchoring R18-FPN: the RPN predicts its anchors."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    rpn_head=dict(
        _delete_=True, type='GARPNHead', in_channels=64, feat_channels=64,
        approx_anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32]),
        square_anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], scales=[4], strides=[4, 8, 16, 32]),
        anchor_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.07, 0.07, 0.14, 0.14]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.07, 0.07, 0.11, 0.11])),
    train_cfg=dict(
        rpn=dict(
            ga_assigner=dict(type='ApproxMaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            ga_sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5, add_gt_as_proposals=False))))
