"""detectron2's COCO-Detection/faster_rcnn_R_50_FPN_1x."""
_base_ = './faster_rcnn_R_50_FPN.py'
