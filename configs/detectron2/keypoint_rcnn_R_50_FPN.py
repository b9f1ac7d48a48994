"""detectron2's COCO-Keypoints/keypoint_rcnn_R_50_FPN."""
_base_ = [
    '../_base_/models/keypoint_rcnn_r50_fpn.py', '../_base_/datasets/coco_keypoint_caffe.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
model = dict(
    backbone=dict(
        style='caffe', norm_cfg=dict(requires_grad=False),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron2/resnet50_caffe')),
    rpn_head=dict(bbox_coder=unlimited),
    roi_head=dict(bbox_head=dict(bbox_coder=unlimited)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=1500)),
    test_cfg=dict(rcnn=dict(keep_empty=False)))
