"""36 epochs, as detectron2's 3x: the rate falls at 210,000 and 250,000 of 270,000 steps."""
_base_ = './keypoint_rcnn_r50_fpn_1x_coco.py'
lr_config = dict(step=[28, 33])
runner = dict(max_epochs=36)
