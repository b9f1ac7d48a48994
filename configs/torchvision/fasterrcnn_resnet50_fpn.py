"""torchvision.models.detection.fasterrcnn_resnet50_fpn: its weights load as they are (boxdet/checkpoints/convert).

Its batch norms are torchvision's as they are built; for the published COCO weights, see
fasterrcnn_resnet50_fpn_coco_v1.py.
"""
_base_ = [
    '../_base_/models/faster_rcnn_r50_fpn.py', '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py',
]
roi_layer = dict(sampling_ratio=2, aligned=False)
# Box sizes are limited from above only; that comes with a limit on shifts, which is too wide here to matter.
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
            # The 90 category ids of COCO, the unused ones included: label k is category id k + 1.
            num_classes=90,
            bbox_coder=unlimited,
            loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0))),
    train_cfg=dict(rpn_proposal=dict(max_per_img=2000, min_bbox_size=1e-3)),
    test_cfg=dict(rpn=dict(min_bbox_size=1e-3), rcnn=dict(min_bbox_size=1e-2)))
dataset_type = 'CocoByIdDataset'
data = dict(train=dict(type=dataset_type), val=dict(type=dataset_type), test=dict(type=dataset_type))
