_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py']
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(
        type='AutoAugment',
        policies=[
            [
                dict(
                    type='Resize',
                    img_scale=[
                        (480, 1333), (512, 1333), (544, 1333), (576, 1333), (608, 1333), (640, 1333), (672, 1333),
                        (704, 1333), (736, 1333), (768, 1333), (800, 1333)],
                    multiscale_mode='value', keep_ratio=True)],
            [
                dict(
                    type='Resize', img_scale=[(400, 1333), (500, 1333), (600, 1333)], multiscale_mode='value',
                    keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                dict(
                    type='Resize',
                    img_scale=[
                        (480, 1333), (512, 1333), (544, 1333), (576, 1333), (608, 1333), (640, 1333), (672, 1333),
                        (704, 1333), (736, 1333), (768, 1333), (800, 1333)],
                    multiscale_mode='value', override=True, keep_ratio=True)]]),
    dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])]
checkpoint_file = 'https://download.openmmlab.com/mmclassification/v0/convnext/downstream/convnext-tiny_3rdparty_32xb128-noema_in1k_20220301-795e9634.pth'
model = dict(
    backbone=dict(
        _delete_=True, type='mmcls.ConvNeXt', arch='tiny', out_indices=[0, 1, 2, 3], drop_path_rate=0.4,
        layer_scale_init_value=1.0, gap_before_final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint_file, prefix='backbone.')),
    neck=dict(in_channels=[96, 192, 384, 768]))
data = dict(train=dict(pipeline=train_pipeline), persistent_workers=True)
optimizer = dict(
    _delete_=True, constructor='LearningRateDecayOptimizerConstructor', type='AdamW', lr=0.0001, betas=(0.9, 0.999),
    weight_decay=0.05, paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6))
lr_config = dict(warmup_iters=1000, step=[27, 33])
runner = dict(max_epochs=36)
custom_imports = dict(imports=['mmcls.models'], allow_failed_imports=False)
fp16 = dict(loss_scale=dict(init_scale=512))
