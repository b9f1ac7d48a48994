"""detectron2's COCO-Detection/faster_rcnn_R_50_DC5_1x."""
_base_ = './faster_rcnn_R_50_DC5.py'
