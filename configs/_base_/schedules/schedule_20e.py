"""20 epochs, 16 images a step: what Cascade R-CNN is usually given."""
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', step=[16, 19], warmup='linear', warmup_iters=500, warmup_ratio=0.001)
runner = dict(type='EpochBasedRunner', max_epochs=20)
