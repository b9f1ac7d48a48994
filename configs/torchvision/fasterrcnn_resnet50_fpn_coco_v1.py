"""For torchvision's published weights, fasterrcnn_resnet50_fpn(weights='COCO_V1'): it runs those with eps 0."""
_base_ = './fasterrcnn_resnet50_fpn.py'
model = dict(backbone=dict(norm_cfg=dict(eps=0.0)))
