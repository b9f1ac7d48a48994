"""Detectron's stretched schedule (s1x): 130,000 steps of 16 images."""
_base_ = './keypoint_rcnn_r50_caffe_fpn_1x_coco.py'
runner = dict(_delete_=True, type='IterBasedRunner', max_iters=130000)
lr_config = dict(step=[100000, 120000])
evaluation = dict(interval=10000)
checkpoint_config = dict(interval=10000)
