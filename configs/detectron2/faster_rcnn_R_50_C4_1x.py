"""detectron2's COCO-Detection/faster_rcnn_R_50_C4_1x."""
_base_ = './faster_rcnn_R_50_C4.py'
