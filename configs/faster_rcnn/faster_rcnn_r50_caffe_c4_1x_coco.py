_base_ = [
    '../_base_/models/faster_rcnn_r50_caffe_c4.py', '../_base_/datasets/coco_detection_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
