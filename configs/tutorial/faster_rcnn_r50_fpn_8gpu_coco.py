"""The same for 8 GPUs, 16 images a step."""
_base_ = './faster_rcnn_r50_fpn_1gpu_coco.py'
optimizer = dict(lr=0.02)
lr_config = dict(step=[3750, 5000])
runner = dict(max_iters=7500)
evaluation = dict(interval=7500)
checkpoint_config = dict(interval=2500)
auto_scale_lr = dict(base_batch_size=16)
