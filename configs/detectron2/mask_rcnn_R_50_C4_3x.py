"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x."""
_base_ = './mask_rcnn_R_50_C4.py'
lr_config = dict(step=[28, 34])
runner = dict(max_epochs=36)
