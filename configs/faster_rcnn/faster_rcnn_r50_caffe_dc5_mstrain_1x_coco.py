_base_ = [
    '../_base_/models/faster_rcnn_r50_caffe_dc5.py',
    '../_base_/datasets/coco_detection_caffe_mstrain.py', '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime.py',
]
