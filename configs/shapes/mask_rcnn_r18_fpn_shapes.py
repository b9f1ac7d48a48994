"""Mask R-CNN R18-FPN from scratch on the shapes data set, in minutes on two CPU cores (`make demo`).

Every part that the arithmetic allows is narrower than in the COCO models: 64 channels in the pyramid and the box head,
32 in the mask head, one box and one mask a roi instead of one for each class, few proposals.
"""
_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/datasets/shapes_instance.py', '../_base_/default_runtime.py']
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    # shapes are 18 to 96 pixels wide: anchors of 16, 32, 64 and 128
    rpn_head=dict(
        in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        # boxes below 56 pixels go to stride 4, below 112 to stride 8; one sample a bin is enough there
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=6, reg_class_agnostic=True),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(in_channels=64, conv_out_channels=32, num_classes=6, class_agnostic=True)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        # half of few rois positive: the other half of the time would go into telling background from background
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)))
data = dict(samples_per_gpu=4, workers_per_gpu=0)  # loading takes 1 ms an image, less than passing it on
optimizer = dict(type='AdamW', lr=0.001, weight_decay=0.05, fused=True)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(policy='CosineAnnealing', min_lr=0, by_epoch=False, warmup='linear', warmup_iters=50,
                 warmup_ratio=0.01)
runner = dict(type='EpochBasedRunner', max_epochs=10)
auto_scale_lr = dict(base_batch_size=4)
log_config = dict(interval=25)
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
evaluation = dict(interval=1)
