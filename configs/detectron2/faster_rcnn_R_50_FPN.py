"""detectron2's COCO-Detection/faster_rcnn_R_50_FPN: its weights load as they are (boxdet/checkpoints/convert).

detectron2 resizes with Pillow; for its very pixels say Resize's backend='pillow'.
"""
_base_ = [
    '../_base_/models/faster_rcnn_r50_fpn.py', '../_base_/datasets/coco_detection_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
# Box sizes are limited from above only; that comes with a limit on shifts, which is too wide here to matter.
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
model = dict(
    backbone=dict(
        style='caffe', norm_cfg=dict(requires_grad=False),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron2/resnet50_caffe')),
    rpn_head=dict(bbox_coder=unlimited),
    roi_head=dict(bbox_head=dict(bbox_coder=unlimited)),
    test_cfg=dict(rcnn=dict(keep_empty=False)))
