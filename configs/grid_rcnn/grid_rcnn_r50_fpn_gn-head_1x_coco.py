_base_ = './grid_rcnn_r50_fpn_gn-head_2x_coco.py'
lr_config = dict(step=[8, 11], warmup_iters=500, warmup_ratio=0.001)
runner = dict(type='EpochBasedRunner', max_epochs=12)
