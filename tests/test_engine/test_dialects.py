"""Configs of mmdetection 3.x as people write them: what they become, where each value came from, what is refused.

Each case of ``FORMS`` is of a kind found in public repositories, written anew: a file on top of the bases of
``mmdet3_forms``.
"""
import warnings
from pathlib import Path

import pytest

from boxdet.engine.config import Config, ConfigWarning, check_config, load_config, translated
from boxdet.engine.config_source import lookup
from boxdet.engine.dialects.mmdet3 import is_mmdet3, translate
from boxdet.errors import ConfigError
from tests.mmdet3_forms import FASTER, WHOLE, as_2x, write_bases

TRAIN = "train_dataloader = dict(dataset=dict({}))\n"
TWO_SETS = '''
one = dict(type='CocoDataset', data_root='data/a', metainfo=_base_.metainfo, ann_file='a.json',
           data_prefix=dict(img='images'), filter_cfg=dict(filter_empty_gt=True, min_size=32),
           pipeline=_base_.train_pipeline)
two = dict(one, data_root='/data/b/', ann_file='b.json')
'''


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(write_bases(tmp_path))

    def load(text, *options, name='config.py', **more):
        Path(name).write_text(text)
        return load_config(name, list(options), **more)
    return load


def at(cfg, path):
    """The value at a dotted path; numbers are indices."""
    return lookup(cfg.to_dict(), tuple(int(part) if part.lstrip('-').isdigit() else part for part in path.split('.')))


# name -> (text, {path in 2.x's form: value})
FORMS = {
    'classes of one\'s own': (
        "metainfo = dict(classes=('cat', 'dog'), palette=[(220, 20, 60), (0, 0, 255)])\n"
        "model = dict(roi_head=dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)))\n"
        "train_dataloader = dict(batch_size=2, dataset=dict(data_root='balloons/', metainfo=metainfo, ann_file="
        "'train.json', data_prefix=dict(img='train/')))\n",
        {'data.train.classes': ('cat', 'dog'), 'data.train.ann_file': 'balloons/train.json',
         'data.train.img_prefix': 'balloons/train/', 'data.samples_per_gpu': 2,
         'model.roi_head.bbox_head.num_classes': 2}),
    'one class': (
        "train_dataloader = dict(dataset=dict(metainfo=dict(classes=('balloon',))))\n",
        {'data.train.classes': ('balloon',)}),
    'no data_root': (
        "train_dataloader = dict(dataset=dict(data_root='', ann_file='/d/a.json', data_prefix=dict(img='/d/img')))\n",
        {'data.train.ann_file': '/d/a.json', 'data.train.img_prefix': '/d/img'}),
    'images beside the annotations': (
        "train_dataloader = dict(dataset=dict(data_root='d', ann_file='a.json', data_prefix=dict(img='')))\n",
        {'data.train.ann_file': 'd/a.json', 'data.train.img_prefix': 'd/'}),
    'repeated data set': (
        "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3, dataset="
        "_base_.train_dataloader.dataset))\n",
        {'data.train.type': 'RepeatDataset', 'data.train.times': 3,
         'data.train.dataset.pipeline.-1': None, 'data.train.dataset.ann_file':
         'data/shapes/annotations/instances_train.json'}),
    'several data sets': (
        TWO_SETS + "train_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', ignore_keys=['x'], "
        "datasets=[one, two]))\n",
        {'data.train.datasets.0.ann_file': 'data/a/a.json', 'data.train.datasets.1.ann_file': '/data/b/b.json',
         'data.train.datasets.1.pipeline.7.type': 'Collect'}),
    'balanced classes': (
        "train_dataloader = dict(dataset=dict(_delete_=True, type='ClassBalancedDataset', oversample_thr=1e-3, "
        "dataset=_base_.train_dataloader.dataset))\n",
        {'data.train.type': 'ClassBalancedDataset', 'data.train.oversample_thr': 1e-3}),
    'evaluated on several data sets': (
        TWO_SETS.replace('train_pipeline', 'test_pipeline') + "val_dataloader = dict(dataset=dict(_delete_=True, "
        "type='ConcatDataset', datasets=[one, two]))\nval_evaluator = dict(ann_file='all.json')\n",
        {'data.val.separate_eval': False, 'data.val.datasets.0.pipeline.1.type': 'MultiScaleFlipAug'}),
    'nothing is left out': (
        "train_dataloader = dict(dataset=dict(filter_cfg=None))\n",
        {'data.train.filter_empty_gt': False, 'data.train.min_size': 0}),
    'images without objects': (
        "train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False, min_size=16)))\n",
        {'data.train.filter_empty_gt': False, 'data.train.min_size': 16}),
    'AdamW with a cosine': (
        "optim_wrapper = dict(_delete_=True, type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, "
        "betas=(0.9, 0.999), weight_decay=0.05), paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}, "
        "norm_decay_mult=0.), clip_grad=dict(max_norm=35, norm_type=2))\n"
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500), "
        "dict(type='CosineAnnealingLR', T_max=10, begin=2, end=12, by_epoch=True, convert_to_iter_based=True)]\n",
        {'optimizer.type': 'AdamW', 'optimizer.paramwise_cfg.custom_keys.backbone.lr_mult': 0.1,
         'optimizer_config.grad_clip.max_norm': 35, 'fp16.loss_scale': 'dynamic', 'lr_config.policy': 'param_scheduler',
         'lr_config.schedulers.1.T_max': 10}),
    'half precision of a kind': (
        "optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=512.)\n",
        {'fp16.dtype': 'bfloat16', 'fp16.loss_scale': 512.}),
    'gradients of several batches': (
        "optim_wrapper = dict(accumulative_counts=4)\n"
        "default_hooks = dict(checkpoint=dict(by_epoch=False, interval=8))\n",
        {'optimizer_config.cumulative_iters': 4, 'optimizer_config.type': 'GradientCumulativeOptimizerHook',
         'checkpoint_config.interval': 2, 'lr_config.batches_per_update': 4}),
    'a training by iterations': (
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=9000, val_interval=1000)\n"
        "param_scheduler = [dict(type='MultiStepLR', begin=0, end=9000, by_epoch=False, milestones=[6000, 8000])]\n"
        "default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000))\n"
        "train_dataloader = dict(sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True))\n"
        "log_processor = dict(by_epoch=False)\n",
        {'runner': dict(type='IterBasedRunner', max_iters=9000), 'evaluation.interval': 1000,
         'lr_config': dict(policy='step', step=[6000, 8000], by_epoch=False),
         'checkpoint_config': dict(interval=1000)}),
    'the loop without its type': (
        "train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=7, val_begin=5, val_interval=2)\n",
        {'runner': dict(type='EpochBasedRunner', max_epochs=7), 'evaluation.start': 5, 'evaluation.interval': 2}),
    'the best checkpoint': (
        "default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP', rule='greater', max_keep_ckpts=3, "
        "save_param_scheduler=False))\n",
        {'evaluation.save_best': 'segm_mAP', 'evaluation.rule': 'greater', 'checkpoint_config.max_keep_ckpts': 3}),
    'early stopping': (
        "default_hooks = dict(early_stopping=dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', patience=10, "
        "min_delta=0.001))\n",
        {'custom_hooks.0': dict(type='EarlyStoppingHook', monitor='bbox_mAP', patience=10, min_delta=0.001)}),
    'averaged weights': (
        "custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, "
        "priority=49)]\n",
        {'custom_hooks.0': dict(type='ExpMomentumEMAHook', momentum=0.0002, priority=49, skip_buffers=False)}),
    'averaged weights, the plain kind': (
        "custom_hooks = [dict(type='EMAHook')]\n", {'custom_hooks.0': dict(type='EMAHook', warm_up=1)}),
    'Weights & Biases': (
        "visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='WandbVisBackend', init_kwargs=dict("
        "project='balloons'))])\n",
        {'log_config.hooks': [dict(type='TextLoggerHook'),
                              dict(type='WandbLoggerHook', init_kwargs=dict(project='balloons'))]}),
    'TensorBoard': (
        "vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]\n"
        "visualizer = dict(vis_backends=vis_backends)\n",
        {'log_config.hooks.1': dict(type='TensorboardLoggerHook')}),
    'a hook of one\'s own': (
        "custom_hooks = [dict(type='SubmissionHook', test_out_dir='submit', priority='LOW')]\n",
        {'custom_hooks.0': dict(type='SubmissionHook', test_out_dir='submit', priority='LOW')}),
    'a transform and a data set of one\'s own': (
        "train_dataloader = dict(dataset=dict(_delete_=True, type='TilesDataset', tile=512, data_root='d', "
        "ann_file='a.json', pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), "
        "dict(type='MyBlur', sigma=2.), dict(type='PackDetInputs', meta_keys=('img_id', 'tile_id'))]))\n",
        {'data.train.tile': 512, 'data.train.ann_file': 'd/a.json', 'data.train.img_prefix': 'd',
         'data.train.pipeline.2': dict(type='MyBlur', sigma=2.),
         'data.train.pipeline.6.keys': ['img', 'gt_bboxes', 'gt_labels'],
         'data.train.pipeline.6.meta_keys.9': 'tile_id'}),
    'resizing between two scales, a crop': (
        "p = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True), "
        "dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True), "
        "dict(type='RandomCrop', crop_size=(640, 480), crop_type='absolute', recompute_bbox=True), "
        "dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)), dict(type='Pad', size=(640, 480), "
        "pad_val=dict(img=(114, 114, 114))), dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']), "
        "dict(type='PackDetInputs')]\n" + TRAIN.format('pipeline=p'),
        {'data.train.pipeline.2': dict(type='Resize', img_scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
         'data.train.pipeline.3.crop_size': (480, 640),  # 2.x counts height first
         'data.train.pipeline.5': dict(type='Pad', size=(480, 640), pad_val=dict(img=(114, 114, 114))),
         'data.train.pipeline.6': dict(type='RandomFlip', flip_ratio=0.5, direction=['horizontal', 'vertical'])}),
    'one of two ways to augment': (
        "p = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='RandomChoice', "
        "transforms=[[dict(type='RandomChoiceResize', scales=[(480, 1333), (512, 1333)], keep_ratio=True)], [dict(type="
        "'RandomChoiceResize', scales=[(400, 4200)], keep_ratio=True), dict(type='RandomCrop', crop_type="
        "'absolute_range', crop_size=(384, 600)), dict(type='Resize', scale=(480, 1333), keep_ratio=True)]]), "
        "dict(type='PackDetInputs')]\n" + TRAIN.format('pipeline=p'),
        {'data.train.pipeline.2.type': 'AutoAugment', 'data.train.pipeline.2.policies.1.1.crop_size': (384, 600),
         'data.train.pipeline.2.policies.1.2': dict(type='Resize', img_scale=(480, 1333), keep_ratio=True,
                                                    override=True)}),
    'a mixing data set': (
        "inner = dict(_base_.train_dataloader.dataset, pipeline=[dict(type='LoadImageFromFile'), "
        "dict(type='LoadAnnotations', with_bbox=True, with_mask=True)])\n"
        "train_dataloader = dict(dataset=dict(_delete_=True, type='MultiImageMixDataset', dataset=inner, pipeline=["
        "dict(type='CopyPaste', max_num_pasted=10), dict(type='PackDetInputs')]))\n",
        {'data.train.dataset.pipeline.1.type': 'LoadAnnotations', 'data.train.pipeline.0.type': 'CopyPaste',
         'data.train.pipeline.4.keys': ['img', 'gt_bboxes', 'gt_labels', 'gt_masks']}),
    'a fixed size of the batch': (
        "model = dict(data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=(640, 768), "
        "pad_mask=True)]))\n",
        {'data.train.pipeline.5': dict(type='Pad', size=(640, 768)),
         'data.val.pipeline.1.transforms.3': dict(type='Pad', size_divisor=32)}),
    'images as they are': (
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), "
        "dict(type='PackDetInputs')]\ntest_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n",
        {'data.test.pipeline.1.scale_factor': 1.0, 'data.test.pipeline.1.transforms.0.type': 'Resize'}),
    'batches of any aspect': (
        "train_dataloader = dict(batch_sampler=None)\n", {'data.train_dataloader.group_by_aspect': False}),
    'a mode of VOC': (
        "voc = dict(type='VOCDataset', data_root='d', ann_file='VOC2012/v.txt', "
        "data_prefix=dict(sub_data_root='VOC2012/'), pipeline=_base_.test_pipeline)\n"
        "val_dataloader = dict(dataset=dict(_delete_=True, **voc))\n"
        "val_evaluator = dict(_delete_=True, type='VOCMetric', metric='mAP', eval_mode='area', iou_thrs=[0.5])\n",
        {'evaluation': dict(interval=1, metric='mAP', iou_thr=[0.5]), 'data.val.img_prefix': 'd/VOC2012/'}),
    'caffe weights': (
        "model = dict(data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1., 1., 1.], bgr_to_rgb=False), "
        "backbone=dict(style='caffe'))\n",
        {'data.train.pipeline.4': dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1., 1., 1.],
                                       to_rgb=False)}),
    'test-time augmentation': (
        "tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=50))\n"
        "tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[[dict(type='Resize', "
        "scale=s, keep_ratio=True) for s in [(160, 96), (160, 128)]], [dict(type='RandomFlip', prob=1.), "
        "dict(type='RandomFlip', prob=0.)], [dict(type='LoadAnnotations', with_bbox=True)], "
        "[dict(type='PackDetInputs', meta_keys=('img_id', 'flip'))]])]\n",
        {'tta_pipeline.1.img_scale': [(160, 96), (160, 128)], 'tta_pipeline.1.flip': True,
         'tta_pipeline.1.transforms.2.type': 'Normalize', 'tta_model.max_per_img': 50}),
    'only files for a server': (
        "test_evaluator = dict(format_only=True, outfile_prefix='./work/test')\n",
        {'test_evaluation.format_only': True, 'test_evaluation.jsonfile_prefix': './work/test',
         'evaluation.metric': ['bbox', 'segm']}),
    'goes on': (
        "resume = True\nload_from = 'work/epoch_3.pth'\nrandomness = dict(seed=7, deterministic=True)\n"
        "work_dir = 'w'\n",
        {'resume_from': 'work/epoch_3.pth', 'load_from': None, 'seed': 7, 'deterministic': True, 'work_dir': 'w'}),
    'goes on where it was': ("resume = True\n", {'auto_resume': True, 'resume_from': None}),
    'several processes': (
        "model_wrapper_cfg = dict(type='MMDistributedDataParallel', find_unused_parameters=True)\n"
        "env_cfg = dict(dist_cfg=dict(backend='gloo'))\n",
        {'find_unused_parameters': True, 'dist_params.backend': 'gloo'}),
    'names with the scope': (
        "model = dict(backbone=dict(type='mmdet.ResNet'))\ntrain_dataloader = dict(dataset=dict(type="
        "'mmdet.CocoDataset'))\n",
        {'model.backbone.type': 'ResNet', 'data.train.type': 'CocoDataset'}),
}


@pytest.mark.parametrize('name', FORMS)
def test_forms_of_other_people(load, name):
    text, expected = FORMS[name]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConfigWarning)
        cfg = load(WHOLE + text)
    for path, value in expected.items():
        if value is not None or path in ('load_from', 'resume_from'):
            assert at(cfg, path) == value, path
    # Written and read again it is the same, and is no longer a config of 3.x.
    again = load(cfg.pretty_text, name='again.py')
    assert again.to_dict() == cfg.to_dict() and not is_mmdet3(again) and again.as_written is None


def test_a_translation_is_what_a_2x_user_writes(load):
    for masks, text in ((True, WHOLE), (False, FASTER)):
        ours = load(text).to_dict()
        theirs = load(as_2x(masks, 'data/shapes'), name='two.py').to_dict()
        sections = set(theirs) - {'norm', 'classes', 'train_pipeline', 'test_pipeline', 'val'}
        assert {name: ours[name] for name in sections} == {name: theirs[name] for name in sections}


def test_a_good_config_is_checked_without_a_warning(load):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_config(load(WHOLE), needed=('model', 'data.train', 'optimizer'))
        check_config(load(FASTER))


# ------------------------------------------------------------------------------------------ where values come from


def test_every_value_knows_its_file_and_3x_key(load):
    cfg = load(WHOLE + "optim_wrapper = dict(optimizer=dict(lr=0.5))\n")
    assert cfg.origin('optimizer.lr') == 'config.py:2, optim_wrapper.optimizer.lr'
    new, old = cfg.explain('optimizer.lr')[::-1]
    assert (new.value, old.value) == (0.5, 0.01) and old.place == '_base_/schedule.py:8, optim_wrapper.optimizer.lr'
    assert cfg.origin('data.samples_per_gpu') == '_base_/data.py:20, train_dataloader.batch_size'
    assert cfg.origin('data.train.pipeline.3.flip_ratio').endswith('train_dataloader.dataset.pipeline.3.prob')
    assert cfg.origin('data.train.pipeline.4.mean') == '_base_/model.py:5, model.data_preprocessor.mean'
    assert cfg.origin('lr_config.warmup_iters') == '_base_/schedule.py:6, param_scheduler.0.end'
    assert cfg.origin('model.backbone.depth') == '_base_/model.py:7'
    assert cfg.origin('evaluation.metric').startswith('_base_/data.py:')


def test_errors_of_the_check_name_the_3x_key(load):
    cfg = load(WHOLE + "custom_hooks = [dict(type='ProfilerHok')]\noptim_wrapper = dict(optimizer=dict(typ='SGD'))\n")
    with pytest.raises(ConfigError, match=r'optimizer\.typ \(config\.py:3, optim_wrapper\.optimizer\.typ\): SGD tak'):
        check_config(cfg)
    del cfg.optimizer['typ']
    with pytest.raises(ConfigError, match=r'custom_hooks\.0\.type \(config\.py:2.*unknown hook type'):
        check_config(cfg)


def test_options_by_either_dialects_keys(load):
    cfg = load(WHOLE, 'train_dataloader.batch_size=3', 'optimizer.lr=0.3', 'model.backbone.depth=34',
               'data.val.ann_file=v.json', 'train_dataloader.dataset.data_root=elsewhere')
    assert cfg.data.samples_per_gpu == 3 and cfg.optimizer.lr == 0.3 and cfg.model.backbone.depth == 34
    assert cfg.data.val.ann_file == 'v.json'
    assert cfg.data.train.ann_file == 'elsewhere/annotations/instances_train.json'
    assert cfg.origin('data.samples_per_gpu') == '--cfg-options, train_dataloader.batch_size'
    with pytest.raises(ConfigError, match=r"optim_wraper \(--cfg-options\): .*did you mean 'optim_wrapper'"):
        load(WHOLE, 'optim_wraper.clip_grad=None')


def test_a_variable_that_reaches_nothing_is_told(load):
    cfg = load(WHOLE + "train_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]\n")
    with pytest.warns(ConfigWarning, match=r'train_pipeline \(config\.py:2\): the new value reaches nothing.*train'):
        check_config(cfg)


def test_sections_of_2x_in_a_config_of_3x_are_told(load):
    with pytest.warns(ConfigWarning, match=r"evaluation \(config\.py:2\): mmdetection 3\.x has no such section, so "
                                           r"that it has no effect; its place is val_evaluator"):
        cfg = load(WHOLE + "evaluation = dict(save_best='auto')\noptimizer = 'SGD'\n"
                           "optim_wrapper = dict(optimizer=dict(type=optimizer))\n")
    assert 'save_best' not in cfg.evaluation and cfg.optimizer.type == 'SGD'


def test_a_rule_of_voc_that_is_not_the_years_is_told(load):
    text = WHOLE + FORMS['a mode of VOC'][0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load(text)
    with pytest.warns(ConfigWarning, match=r'val_evaluator\.eval_mode .*data\.val\.year=2007 .*gives that of 3\.x'):
        load(text.replace("'area'", "'11points'"))


def test_annotations_that_the_evaluator_was_left_with(load):
    with pytest.warns(ConfigWarning, match=r'val_evaluator\.ann_file .*data set that is evaluated has new/val\.json'):
        load(WHOLE + "val_dataloader = dict(dataset=dict(data_root='new', ann_file='val.json'))\n")


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize('text, message', [
    ("train_dataloader = dict(batchsize=4)\n",
     r"train_dataloader\.batchsize \(config\.py:2\): .*no such key .*did you mean 'batch_size'"),
    ("val_evaluator = dict(type='MyMetric')\n", r"val_evaluator\.type \(config\.py:2\): no evaluation by 'MyMetric'.*"
     r"--cfg-options val_evaluator=None leaves it out"),
    ("test_evaluator = [dict(type='DumpDetResults', out_file_path='r.pkl')]\n",
     r"test_evaluator\.0\.type .*--out writes all results"),
    ("train_dataloader = dict(sampler=dict(type='MultiSourceSampler'))\n",
     r"train_dataloader\.sampler\.type .*they know no MultiSourceSampler"),
    ("model = dict(data_preprocessor=dict(batch_augments=[dict(type='BatchSyncRandomResize')]))\n",
     r"model\.data_preprocessor\.batch_augments\.0\.type .*put RandomChoiceResize into the pipeline"),
    ("model = dict(data_preprocessor=dict(type='MultiBranchDataPreprocessor'))\n",
     r"model\.data_preprocessor\.type .*is no data preprocessor"),
    ("visualizer = dict(vis_backends=[dict(type='WandBVisBackend')])\n", r"did you mean 'WandbVisBackend'"),
    ("train_cfg = dict(type='SemiTrainLoop')\n", r"train_cfg\.type \(config\.py:2\): boxdet trains by Epoch"),
    ("optim_wrapper = dict(type='DeepSpeedOptimWrapper')\n", r"optim_wrapper\.type .*boxdet updates weights by"),
    ("optim_wrapper = dict(clip_grad=dict(type='value', clip_value=1.))\n", r"wrapper\.clip_grad\.type .*'value'"),
    ("default_hooks = dict(checkpoint=dict(save_best=['coco/bbox_mAP', 'coco/segm_mAP']))\n",
     r'default_hooks\.checkpoint\.save_best .*the best checkpoint of one metric'),
    ("p = _base_.train_pipeline\np.insert(2, dict(type='RandAugment', aug_num=2))\n" + TRAIN.format('pipeline=p'),
     r"train_dataloader\.dataset\.pipeline\.2\.type .*3\.x's RandAugment has no counterpart"),
    ("p = _base_.train_pipeline\np[1]['with_boxes'] = True\n" + TRAIN.format('pipeline=p'),
     r"pipeline\.1\.with_boxes .*'LoadAnnotations' of mmdetection 3\.x has no such key.*did you mean 'with_bbox'"),
    (TRAIN.format('pipeline=_base_.train_pipeline[:-1]'), r'train_dataloader\.dataset\.pipeline .*no PackDetInputs'),
    (TRAIN.format("metainfo=dict(classes='cat')"), r"metainfo\.classes .*a comma makes a list of one class"),
    (TRAIN.format("backend_args=dict(backend='petrel')"), r'dataset\.backend_args .*boxdet reads files from the disk'),
    ("randomness = dict(seed=1, diff_rank_seed=True)\n", r'randomness\.diff_rank_seed .*--diff-seed'),
    ("env_cfg = dict(mp_cfg=dict(start='fork'))\n", r'env_cfg\.mp_cfg\.start .*no such key'),
], ids=lambda value: value[:40])
def test_what_cannot_be_translated_is_named(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(WHOLE + text)


def test_the_advice_of_an_unknown_metric_works(load):
    text = WHOLE + "val_evaluator = dict(type='MyMetric')\ntest_evaluator = val_evaluator\n"
    cfg = load(text, 'val_evaluator=None', 'test_evaluator=None')
    assert 'metric' not in cfg.evaluation and cfg.data.val.type == 'CocoDataset'


# ------------------------------------------------------------------------------------------ pure-Python configs


PURE = '''
from mmengine.config import read_base
with read_base():
    from ._base_.model import *
    from ._base_.data import *
    from ._base_.schedule import *
    from ._base_.runtime import *
from mmdet.datasets.transforms import RandomFlip as Flip
from mmdet.models.backbones import ResNeXt
from mmengine.model.weight_init import PretrainedInit
from torch.nn import BatchNorm2d
from torch.optim import AdamW
from my_package.heads import MyHead
import torch.nn as nn

model.update(dict(backbone=dict(type=ResNeXt, groups=32, norm_cfg=dict(type=BatchNorm2d),
                                init_cfg=dict(type=PretrainedInit, checkpoint='x.pth'))))
model.roi_head.bbox_head.type = MyHead
model.neck.act_cfg = dict(type=nn.ReLU)
optim_wrapper.optimizer.update(type=AdamW, lr=1e-4)
del optim_wrapper.optimizer['momentum']
train_pipeline[3] = dict(type=Flip, prob=0.25)
train_dataloader.update(dict(batch_size=8, dataset=dict(pipeline=train_pipeline)))
'''


def test_read_base(load):
    cfg = load(PURE, import_custom_modules=False)
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.groups, backbone.depth) == ('ResNeXt', 32, 18)
    assert backbone.norm_cfg == dict(type='BN', requires_grad=True) and backbone.init_cfg.type == 'Pretrained'
    assert cfg.model.roi_head.bbox_head.type == 'MyHead' and cfg.model.neck.act_cfg.type == 'ReLU'
    assert cfg.custom_imports == dict(imports=['my_package.heads'])  # others' classes have to register
    assert cfg.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    assert cfg.data.samples_per_gpu == 8 and cfg.data.train.pipeline[3] == dict(type='RandomFlip', flip_ratio=0.25)
    assert cfg.origin('optimizer.lr') == 'config.py:20, optim_wrapper.optimizer.lr'
    assert cfg.origin('model.backbone.groups') == 'config.py:16'
    assert cfg.origin('model.roi_head.bbox_head.type') == 'config.py:18'
    assert cfg.origin('model.backbone.depth') == '_base_/model.py:7'
    assert [str(file) for file in cfg.files][-1] == 'config.py' and len(cfg.files) == 5


def test_read_base_of_chosen_names_and_a_packages_config(load, tmp_path, monkeypatch):
    wheel = write_bases(tmp_path / 'wheel/mmdet/.mim/configs')
    (wheel / 'mask_rcnn').mkdir()
    (wheel / 'mask_rcnn/mine.py').write_text("_base_ = ['../_base_/model.py', '../_base_/schedule.py']\n")
    monkeypatch.setenv('BOXDET_MMDET_CONFIGS', str(tmp_path / 'wheel'))
    text = ("from mmengine.config import read_base\nwith read_base():\n    from mmdet.configs.mask_rcnn.mine import "
            "model as base_model\n    from ._base_.data import (train_dataloader, metainfo)\nmodel = base_model\n"
            "model.backbone.depth = 34\n")
    cfg = load(text, translate=False)
    assert set(cfg) == {'base_model', 'model', 'train_dataloader', 'metainfo'} and cfg.model.backbone.depth == 34
    text = "_base_ = 'mmdet::mask_rcnn/mine.py'\nmodel = dict(backbone=dict(depth=50))\n"
    assert load(text).model.backbone.depth == 50
    with pytest.raises(ConfigError, match=r"mine\.py \(a '_base_' of config\.py\)|no such config file"):
        load("_base_ = 'mmdet::mask_rcnn/mien.py'\n")
    monkeypatch.delenv('BOXDET_MMDET_CONFIGS')
    with pytest.raises(ConfigError, match=r"'mmnowhere::x.py': the package mmnowhere is not installed.*pip download"):
        load("_base_ = 'mmnowhere::x.py'\n")
    with pytest.raises(ConfigError, match=r"read_base\(\): \._base_\.data has no 'nothing'"):
        load("from mmengine.config import read_base\nwith read_base():\n    from ._base_.data import nothing\n")


def test_a_file_that_only_names_classes(load):
    text = ("from mmdet.models import MaskRCNN\nfrom torch.optim import SGD\n"
            "optim_wrapper = dict(optimizer=dict(type=SGD, lr=1.))\n"
            "model = dict(type=MaskRCNN, data_preprocessor=dict())\n")
    cfg = load(text)
    assert cfg.model.type == 'MaskRCNN' and cfg.optimizer == dict(type='SGD', lr=1.)


def test_values_that_are_computed_by_a_package_are_computed(load):
    cfg = load("from mmengine.config import read_base\nimport numpy as np\nimport math\nwith read_base():\n"
               "    from ._base_.schedule import *\nlr = float(np.linspace(0, 1, 3)[1])\nother = math.sqrt(4)\n")
    assert cfg.lr == 0.5 and cfg.other == 2
    with pytest.raises(ConfigError, match=r'config\.py:5: ImportError: no_such\.thing is not installed'):
        load("from mmengine.config import read_base\nimport no_such\nwith read_base():\n"
             "    from ._base_.data import *\nx = no_such.thing()\n")


def test_bases_changed_in_place(load):
    cfg = load(WHOLE + "_base_.model.backbone.depth = 50\n_base_.default_hooks.checkpoint.interval = 4\n"
                       "_base_.train_pipeline[3].prob = 0.9\n_base_.train_dataloader.dataset.pipeline = "
                       "_base_.train_pipeline\n")
    assert cfg.model.backbone.depth == 50 and cfg.checkpoint_config.interval == 4
    assert cfg.data.train.pipeline[3].flip_ratio == 0.9
    assert cfg.origin('model.backbone.depth') == 'config.py:2'
    assert cfg.origin('checkpoint_config.interval') == 'config.py:3, default_hooks.checkpoint.interval'


# ------------------------------------------------------------------------------------------ other doors


def test_a_config_of_mmengine_is_translated(load):
    from mmengine.config import Config as MMEngineConfig
    load(WHOLE)
    cfg = translated(MMEngineConfig.fromfile('config.py'))
    assert cfg.to_dict() == load_config('config.py').to_dict()
    assert translated(cfg) is cfg


def test_the_text_of_a_checkpoint_is_translated(load):
    load(WHOLE)
    text = load_config('config.py', translate=False).pretty_text
    assert translated(Config.fromstring(text)).to_dict() == load_config('config.py').to_dict()


def test_parts_of_a_config(load):
    for name in ('model', 'data', 'schedule', 'runtime'):
        assert is_mmdet3(load_config(f'_base_/{name}.py', translate=False))
        load_config(f'_base_/{name}.py')
    assert not is_mmdet3(dict(model=dict(type='MaskRCNN'), data=dict(), optimizer=dict(), train_cfg=dict(rpn=dict())))


def test_translating_changes_nothing_of_what_it_is_given(load):
    import copy
    values = load(WHOLE, translate=False).to_dict()
    before = copy.deepcopy(values)
    assert translate(values).value['runner']['max_epochs'] == 2 and values == before
