"""The same for 2 GPUs, 4 images a step."""
_base_ = './faster_rcnn_r50_fpn_1gpu_coco.py'
optimizer = dict(lr=0.005)
lr_config = dict(step=[15000, 20000])
runner = dict(max_iters=30000)
evaluation = dict(interval=30000)
checkpoint_config = dict(interval=10000)
auto_scale_lr = dict(base_batch_size=4)
