"""DetectoRS on a thin ResNet-50: switchable atrous convolution and a recursive pyramid."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
body = dict(
    type='DetectoRS_ResNet', depth=50, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=-1,
    norm_cfg=dict(type='BN', requires_grad=True), norm_eval=False, style='pytorch', conv_cfg=dict(type='ConvAWS'),
    sac=dict(type='SAC', use_deform=True), stage_with_sac=(False, True, True, True))
model = dict(
    backbone=dict(_delete_=True, output_img=True, **body),
    neck=dict(
        type='RFP', in_channels=[32, 64, 128, 256], rfp_steps=2, aspp_out_channels=16, aspp_dilations=(1, 3, 6, 1),
        rfp_backbone=dict(rfp_inplanes=64, **body)))
