"""Libra R-CNN R18-FPN: balanced samples, levels and loss."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    neck=[
        dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
        dict(type='BFP', in_channels=64, num_levels=4, refine_level=2, refine_type='non_local')],
    roi_head=dict(
        bbox_head=dict(
            loss_bbox=dict(_delete_=True, type='BalancedL1Loss', alpha=0.5, gamma=1.5, beta=1.0, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(sampler=dict(neg_pos_ub=5)),
        rcnn=dict(
            sampler=dict(
                _delete_=True, type='CombinedSampler', num=32, pos_fraction=0.5, add_gt_as_proposals=True,
                pos_sampler=dict(type='InstanceBalancedPosSampler'),
                neg_sampler=dict(type='IoUBalancedNegSampler', floor_thr=-1, floor_fraction=0, num_bins=3)))))
