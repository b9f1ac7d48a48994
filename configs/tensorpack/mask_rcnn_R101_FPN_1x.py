"""tensorpack's COCO-MaskRCNN-R101FPN1x.npz; see mask_rcnn_R50_FPN_2x.py."""
_base_ = './mask_rcnn_R50_FPN_2x.py'
model = dict(
    backbone=dict(depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101')))
lr_config = dict(step=[8, 11])
runner = dict(max_epochs=12)
