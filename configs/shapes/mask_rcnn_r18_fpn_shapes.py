"""Mask R-CNN R18-FPN from scratch on the shapes data set, in minutes on two CPU cores (`make demo`).

Narrower than the COCO models where that costs no accuracy at 160 pixels: 64 channels in the pyramid and the heads.
"""
_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/datasets/shapes_instance.py', '../_base_/default_runtime.py']
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    # shapes are 16 to 96 pixels wide: anchors of 16 to 256
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        # boxes below 56 pixels go to stride 4, below 112 to stride 8, ...; one sample a bin is enough there
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=6),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_classes=6)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100), rcnn=dict(max_per_img=50)))
optimizer = dict(type='AdamW', lr=0.001, weight_decay=0.05, fused=True)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(policy='CosineAnnealing', min_lr=0, by_epoch=False, warmup='linear', warmup_iters=100, warmup_ratio=0.01)
runner = dict(type='EpochBasedRunner', max_epochs=8)
log_config = dict(interval=25)
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
evaluation = dict(interval=1)
