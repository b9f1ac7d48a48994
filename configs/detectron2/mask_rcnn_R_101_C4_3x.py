"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x."""
_base_ = './mask_rcnn_R_50_C4_3x.py'
pretrained = dict(checkpoint='open-mmlab://detectron2/resnet101_caffe')
model = dict(
    backbone=dict(depth=101, init_cfg=pretrained),
    roi_head=dict(shared_head=dict(depth=101, init_cfg=pretrained)))
