"""detectron2 reports box AP 53.6 and keypoint AP 64.0 for this model (its model zoo, R50-FPN 1x)."""
_base_ = [
    '../_base_/models/keypoint_rcnn_r50_fpn.py', '../_base_/datasets/coco_keypoint.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
