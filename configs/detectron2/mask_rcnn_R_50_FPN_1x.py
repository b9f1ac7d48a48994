"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x."""
_base_ = './mask_rcnn_R_50_FPN.py'
