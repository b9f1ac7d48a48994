_base_ = [
    '../_base_/models/mask_rcnn_r50_fpn.py', '../common/mstrain-poly_3x_coco_instance.py',
]
