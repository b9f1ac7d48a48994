"""torchvision.models.detection.keypointrcnn_resnet50_fpn; the scores of its keypoints are logits."""
_base_ = [
    '../_base_/models/keypoint_rcnn_r50_fpn.py', '../_base_/datasets/coco_keypoint.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
roi_layer = dict(sampling_ratio=2, aligned=False)
unlimited = dict(add_ctr_clamp=True, ctr_clamp=1e6)
model = dict(
    backbone=dict(norm_cfg=dict(requires_grad=False)),
    rpn_head=dict(
        anchor_generator=dict(type='TorchvisionAnchorGenerator'),
        bbox_coder=unlimited,
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=roi_layer),
        bbox_head=dict(
            bbox_coder=unlimited,
            loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)),
        keypoint_roi_extractor=dict(roi_layer=roi_layer),
        keypoint_head=dict(score_type='logit')),
    train_cfg=dict(rpn_proposal=dict(max_per_img=2000, min_bbox_size=1e-3)),
    test_cfg=dict(rpn=dict(min_bbox_size=1e-3), rcnn=dict(min_bbox_size=1e-2)))
