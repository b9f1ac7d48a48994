"""The same for 4 GPUs, 8 images a step."""
_base_ = './faster_rcnn_r50_fpn_1gpu_coco.py'
optimizer = dict(lr=0.01)
lr_config = dict(step=[7500, 10000])
runner = dict(max_iters=15000)
evaluation = dict(interval=15000)
checkpoint_config = dict(interval=5000)
auto_scale_lr = dict(base_batch_size=8)
