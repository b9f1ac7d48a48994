"""tensorpack's COCO-MaskRCNN-R101C41x.npz; see mask_rcnn_R50_C4_1x.py."""
_base_ = './mask_rcnn_R50_C4_1x.py'
body = dict(type='Pretrained', checkpoint='torchvision://resnet101')
model = dict(backbone=dict(depth=101, init_cfg=body), roi_head=dict(shared_head=dict(depth=101, init_cfg=body)))
