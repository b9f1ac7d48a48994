_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py']
model = dict(
    backbone=dict(
        frozen_stages=0, norm_cfg=dict(type='SyncBN'), norm_eval=False,
        init_cfg=dict(checkpoint='./mocov2_r50_800ep_pretrain.pth')))
