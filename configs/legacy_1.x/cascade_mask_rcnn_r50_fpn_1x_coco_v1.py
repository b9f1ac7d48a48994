_base_ = '../cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py'
model = dict(
    rpn_head=dict(
        anchor_generator=dict(type='LegacyAnchorGenerator', center_offset=0.5),
        bbox_coder=dict(type='LegacyDeltaXYWHBBoxCoder')),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False)),
        bbox_head=[
            dict(
                type='Shared2FCBBoxHead', reg_class_agnostic=True, in_channels=256, fc_out_channels=1024,
                roi_feat_size=7, num_classes=80,
                bbox_coder=dict(type='LegacyDeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=stds))
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ],
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False))))
dist_params = dict(backend='nccl', port=29515)
