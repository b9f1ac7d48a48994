"""A detector of a few hundred weights, as a user writes one, and a config that trains it with all that has a state."""
from pathlib import Path

DETECTOR = '''
import torch
from torch import nn
from boxdet.registry import DETECTORS
from boxdet.structures.instances import Instances

@DETECTORS.register_module()
class TinyDetector(nn.Module):
    """One box an image, from a convolution, batch norm and dropout: weights, buffers and random numbers."""

    def __init__(self, train_cfg=None, test_cfg=None):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.box, self.CLASSES = nn.Linear(4, 4), None

    def init_weights(self):
        pass

    def forward(self, batch, mode='loss', rescale=True):
        batch = batch.to('cpu')
        out = self.box(self.drop(self.bn(self.conv(batch.images)).relu()).mean(dim=(2, 3))) + 8
        if mode == 'predict':
            return [Instances((32, 32), bboxes=box[None], scores=torch.ones(1), labels=torch.zeros(1).long())
                    for box in out]
        errors = [(box - gt.bboxes[0]).abs().mean() / 8 for box, gt in zip(out, batch.gt)]
        return dict(loss_box=torch.stack(errors).mean())
'''

CONFIG = '''
custom_imports = dict(imports='tiny_detector')
model = dict(type='TinyDetector')
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', img_scale=[(32, 24), (32, 32)], keep_ratio=False),
            dict(type='RandomFlip', flip_ratio=0.5),
            dict(type='Normalize', mean=[127.] * 3, std=[50.] * 3), dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]
views = dict(type='MultiScaleFlipAug', img_scale=(32, 32), flip=False, transforms=[
    dict(type='Resize', keep_ratio=False), dict(type='Normalize', mean=[127.] * 3, std=[50.] * 3),
    dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])])
test_pipeline = [dict(type='LoadImageFromFile'), views]
classes = ('circle', 'square', 'triangle', 'star', 'ring', 'stickman')
data = dict(samples_per_gpu=1, workers_per_gpu=0,
    train=dict(type='CocoDataset', classes=classes, ann_file='SHAPES/annotations/instances_train.json',
               img_prefix='SHAPES/train/', pipeline=pipeline),
    val=dict(type='CocoDataset', classes=classes, ann_file='SHAPES/annotations/instances_val.json',
             img_prefix='SHAPES/val/', pipeline=test_pipeline))
optimizer = dict(type='AdamW', lr=0.05, weight_decay=1e-3)
optimizer_config = dict(cumulative_iters=2, grad_clip=dict(max_norm=5.))
lr_config = dict(policy='CosineAnnealing', min_lr=0., warmup='linear', warmup_iters=4, warmup_ratio=0.1)
runner = dict(type='EpochBasedRunner', max_epochs=3)
checkpoint_config = dict(interval=2, by_epoch=False, max_keep_ckpts=2)
evaluation = dict(interval=1, save_best='bbox_mAP_50')
custom_hooks = [dict(type='ExpMomentumEMAHook', momentum=0.01, total_iter=5)]
log_config = dict(interval=1, hooks=[dict(type='TextLoggerHook')])
'''


def write(folder: Path, shapes: Path) -> Path:
    """Write the detector's file and the config into ``folder``; returns the config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'tiny_detector.py').write_text(DETECTOR)
    (folder / 'tiny.py').write_text(CONFIG.replace('SHAPES', str(shapes)))
    return folder / 'tiny.py'
