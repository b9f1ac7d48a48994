"""A Mask R-CNN so small that an epoch on the shapes of the tests takes seconds; DATA is the folder of the shapes."""

CONFIG = '''_base_ = 'boxdet::shapes/mask_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(base_channels=8), neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16, fc_out_channels=32),
                  mask_roi_extractor=dict(out_channels=16),
                  mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16)),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(max_per_img=10)))
data = dict(
    samples_per_gpu=2, workers_per_gpu=0,
    train=dict(ann_file='DATA/annotations/instances_train.json', img_prefix='DATA/train/'),
    val=dict(ann_file='DATA/annotations/instances_val.json', img_prefix='DATA/val/'),
    test=dict(ann_file='DATA/annotations/instances_val.json', img_prefix='DATA/val/'))
runner = dict(max_epochs=1)
log_config = dict(interval=1)
'''
