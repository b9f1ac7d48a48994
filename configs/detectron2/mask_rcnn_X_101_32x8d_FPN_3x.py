"""detectron2's COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x."""
_base_ = './mask_rcnn_X_101_32x8d_FPN.py'
lr_config = dict(step=[28, 34])
runner = dict(max_epochs=36)
