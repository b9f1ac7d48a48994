"""detectron2's Misc/cascade_mask_rcnn_R_50_FPN: one mask head, class probabilities averaged over the stages."""
_base_ = './mask_rcnn_R_50_FPN.py'
deviations = [[1 / 10, 1 / 10, 1 / 5, 1 / 5], [1 / 20, 1 / 20, 1 / 10, 1 / 10], [1 / 30, 1 / 30, 1 / 15, 1 / 15]]
model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='SingleMaskCascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 1, 1],
        bbox_head=[
            dict(
                type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=1024, roi_feat_size=7, num_classes=80,
                reg_class_agnostic=True,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_stds=stds, add_ctr_clamp=True, ctr_clamp=1e6),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='L1Loss', loss_weight=1.0)) for stds in deviations
        ]),
    train_cfg=dict(
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou,
                    match_low_quality=False, ignore_iof_thr=-1),
                sampler=dict(
                    type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True)
                if iou == 0.5 else dict(type='PseudoSampler'),
                mask_size=28, pos_weight=-1, debug=False) for iou in (0.5, 0.6, 0.7)
        ]))
