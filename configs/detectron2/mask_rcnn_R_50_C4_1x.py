"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x."""
_base_ = './mask_rcnn_R_50_C4.py'
