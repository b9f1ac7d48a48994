"""tensorpack's COCO-MaskRCNN-R101FPN9xGNCasAugScratch.npz: group norms and cascade, trained from nothing."""
_base_ = './cascade_mask_rcnn_R50_FPN_GN_4x.py'
model = dict(backbone=dict(depth=101, frozen_stages=-1, zero_init_residual=True, init_cfg=None))
lr_config = dict(step=[98, 106])
runner = dict(max_epochs=108)
