"""SCNet R18-FPN: one mask head, on the boxes of the last stage. The shapes have no semantic maps."""
_base_ = './cascade_mask_rcnn_r18_fpn_shapes.py'
model = dict(
    type='SCNet',
    roi_head=dict(
        type='SCNetRoIHead',
        bbox_head=[
            dict(
                type='SCNetBBoxHead', num_shared_fcs=2, in_channels=64, fc_out_channels=256, roi_feat_size=7,
                num_classes=6, reg_class_agnostic=True,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ],
        mask_head=dict(type='SCNetMaskHead', num_convs=4, conv_out_channels=64, conv_to_res=True),
        glbctx_head=dict(
            type='GlobalContextHead', num_convs=4, in_channels=64, conv_out_channels=64, num_classes=6,
            loss_weight=3.0, conv_to_res=True),
        feat_relay_head=dict(
            type='FeatureRelayHead', in_channels=256, out_conv_channels=64, roi_feat_size=7, scale_factor=2)))
