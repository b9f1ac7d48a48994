"""PointRend R18-FPN: a coarse mask, and its uncertain points looked at again."""
_base_ = './mask_rcnn_r18_fpn_shapes.py'
model = dict(
    type='PointRend',
    roi_head=dict(
        type='PointRendRoIHead',
        mask_roi_extractor=dict(
            _delete_=True, type='GenericRoIExtractor', aggregation='concat', out_channels=64, featmap_strides=[4],
            roi_layer=dict(type='SimpleRoIAlign', output_size=14)),
        mask_head=dict(
            _delete_=True, type='CoarseMaskHead', num_fcs=2, in_channels=64, conv_out_channels=64, fc_out_channels=256,
            num_classes=6, loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0)),
        point_head=dict(
            type='MaskPointHead', num_fcs=3, in_channels=64, fc_channels=64, num_classes=6,
            coarse_pred_each_layer=True,
            loss_point=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))),
    train_cfg=dict(
        rcnn=dict(mask_size=7, num_points=14 * 14, oversample_ratio=3, importance_sample_ratio=0.75)),
    test_cfg=dict(rcnn=dict(subdivision_steps=3, subdivision_num_points=14 * 14, scale_factor=2)))
