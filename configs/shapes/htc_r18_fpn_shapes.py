"""Hybrid Task Cascade R18-FPN: each mask head reads what the one before it made. The shapes have no semantic maps."""
_base_ = './cascade_mask_rcnn_r18_fpn_shapes.py'
model = dict(
    type='HybridTaskCascade',
    roi_head=dict(
        type='HybridTaskCascadeRoIHead', interleaved=True, mask_info_flow=True,
        mask_head=[
            dict(
                type='HTCMaskHead', with_conv_res=stage > 0, num_convs=4, in_channels=64, conv_out_channels=64,
                num_classes=6, class_agnostic=True,
                loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0)) for stage in range(3)
        ]))
