"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x."""
_base_ = './mask_rcnn_R_50_FPN_3x.py'
model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://detectron2/resnet101_caffe')))
