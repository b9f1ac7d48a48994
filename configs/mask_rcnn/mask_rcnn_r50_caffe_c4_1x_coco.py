_base_ = [
    '../_base_/models/mask_rcnn_r50_caffe_c4.py', '../_base_/datasets/coco_instance_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
# Half of the usual lr: for 8 images a step.
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001)
