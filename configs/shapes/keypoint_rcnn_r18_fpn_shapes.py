"""Keypoint R-CNN R18-FPN from scratch on the stickmen of the shapes data set, in minutes on two CPU cores.

Narrow as mask_rcnn_r18_fpn_shapes.py is; the keypoint head has 4 convolutions of 64, and heatmaps of 56 x 56 as the
COCO models have.
"""
_base_ = [
    '../_base_/models/keypoint_rcnn_r50_fpn.py', '../_base_/datasets/shapes_keypoint.py',
    '../_base_/default_runtime.py']
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, reg_class_agnostic=True),
        # keypoints are small: all but the largest figures are read at stride 4
        keypoint_roi_extractor=dict(out_channels=64, finest_scale=56, roi_layer=dict(sampling_ratio=1)),
        keypoint_head=dict(
            num_convs=4, in_channels=64, conv_out_channels=64, num_keypoints=11,
            flip_pairs=[(3, 4), (5, 6), (7, 8), (9, 10)],
            skeleton=[(0, 1), (1, 2), (1, 3), (3, 5), (1, 4), (4, 6), (2, 7), (7, 9), (2, 8), (8, 10)])),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=20)))
data = dict(samples_per_gpu=4, workers_per_gpu=0)
optimizer = dict(type='AdamW', lr=0.001, weight_decay=0.05, fused=True)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', min_lr=0, by_epoch=False, warmup='linear', warmup_iters=50, warmup_ratio=0.01)
runner = dict(type='EpochBasedRunner', max_epochs=12)
auto_scale_lr = dict(base_batch_size=4)
log_config = dict(interval=25)
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
evaluation = dict(interval=4)
