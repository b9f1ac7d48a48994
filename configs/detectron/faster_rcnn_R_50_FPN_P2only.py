"""Detectron's and Detectron.pytorch's fpn_ResNet50_conv5_P2only_body: of the pyramid the finest level alone goes on.

Detectron.pytorch's other poolings are roi_layer=dict(_delete_=True, type='RoIPool', output_size=7) and 'RoICrop'. In a
file the other levels' output convolutions are reported as unused.
"""
_base_ = './faster_rcnn_R_50_FPN.py'
model = dict(
    neck=dict(num_outs=1),
    rpn_head=dict(anchor_generator=dict(strides=[4], scales=[8, 16, 32, 64, 128])),
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[4])),
    train_cfg=dict(rpn_proposal=dict(nms_pre=12000)),
    test_cfg=dict(rpn=dict(nms_pre=6000)))
