"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_FPN."""
_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/datasets/coco_instance_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
model = dict(
    backbone=dict(
        style='caffe', norm_cfg=dict(requires_grad=False),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron2/resnet50_caffe')),
    rpn_head=dict(bbox_coder=unlimited),
    roi_head=dict(bbox_head=dict(bbox_coder=unlimited)),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
    test_cfg=dict(rcnn=dict(keep_empty=False)))
