"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x."""
_base_ = './mask_rcnn_R_50_DC5.py'
lr_config = dict(step=[28, 34])
runner = dict(max_epochs=36)
