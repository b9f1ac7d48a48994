"""Logging, checkpoints and processes."""
log_level = 'INFO'
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])  # TensorboardLoggerHook for curves
checkpoint_config = dict(interval=1)
custom_hooks = [dict(type='NumClassCheckHook')]
load_from = None
resume_from = None
workflow = [('train', 1)]

dist_params = dict(backend='nccl')
mp_start_method = 'fork'
opencv_num_threads = 0  # the loader's processes share the cores already

# lr of a schedule is meant for 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
