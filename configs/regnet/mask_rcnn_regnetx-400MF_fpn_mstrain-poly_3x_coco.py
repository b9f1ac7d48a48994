_base_ = ['../common/mstrain-poly_3x_coco_instance.py', '../_base_/models/mask_rcnn_r50_fpn.py']
optimizer = dict(weight_decay=5e-05)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
model = dict(
    backbone=dict(
        _delete_=True, type='RegNet', arch='regnetx_400mf', out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://regnetx_400mf')),
    neck=dict(in_channels=[32, 64, 160, 384]))
