"""detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x."""
_base_ = './mask_rcnn_R_50_FPN.py'
lr_config = dict(step=[28, 34])
runner = dict(max_epochs=36)
