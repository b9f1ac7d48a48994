_base_ = './faster_rcnn_r50_caffe_fpn_mstrain_1x_coco.py'
runner = dict(_delete_=True, type='IterBasedRunner', max_iters=90000)
lr_config = dict(step=[60000, 80000])
evaluation = dict(interval=10000, metric='bbox')
checkpoint_config = dict(interval=10000)
