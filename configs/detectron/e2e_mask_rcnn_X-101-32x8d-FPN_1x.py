"""Detectron's e2e_mask_rcnn_X-101-32x8d-FPN_1x; see faster_rcnn_R_50_FPN.py."""
_base_ = './mask_rcnn_R_50_FPN.py'
model = dict(
    backbone=dict(
        type='ResNeXt', depth=101, groups=32, base_width=8, style='pytorch',
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/20171220/X-101-32x8d.pkl')))
