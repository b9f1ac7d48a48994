_base_ = [
    '../_base_/models/cascade_rcnn_r50_fpn.py', '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py']
model = dict(
    backbone=dict(
        type='DetectoRS_ResNet', conv_cfg=dict(type='ConvAWS'), sac=dict(type='SAC', use_deform=True),
        stage_with_sac=(False, True, True, True)))
