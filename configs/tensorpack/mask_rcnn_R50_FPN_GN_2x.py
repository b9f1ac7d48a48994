"""tensorpack's COCO-MaskRCNN-R50FPN2xGN.npz: group norms everywhere (models/families/tensorpack_norms.py)."""
_base_ = './mask_rcnn_R50_FPN_2x.py'
norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
model = dict(
    backbone=dict(
        norm_cfg=norm_cfg, init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron/resnet50_gn')),
    neck=dict(type='TensorpackFPN', norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(
            type='TensorpackConvFCBBoxHead', num_shared_convs=4, num_shared_fcs=1, conv_out_channels=256,
            norm_cfg=norm_cfg),
        mask_head=dict(type='TensorpackFCNMaskHead', norm_cfg=norm_cfg)))
