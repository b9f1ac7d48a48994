_base_ = './faster_rcnn_r50_caffe_fpn_mstrain_1x_coco.py'
lr_config = dict(step=[16, 23])
runner = dict(type='EpochBasedRunner', max_epochs=24)
