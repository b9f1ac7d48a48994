_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn_seesaw_loss.py', '../_base_/datasets/lvis_v1_instance_random.py',
    '../_base_/schedules/schedule_2x.py', '../_base_/default_runtime.py'
]
