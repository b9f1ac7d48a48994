"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x."""
_base_ = './mask_rcnn_R_50_DC5.py'
