_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py']
checkpoint = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth'
model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint, prefix='backbone.')))
optimizer = dict(
    _delete_=True, type='AdamW', lr=0.0002, weight_decay=0.05,
    paramwise_cfg=dict(norm_decay_mult=0.0, bypass_duplicate=True))
