"""A wrong key is found before anything is built, with its path, its file and the nearest valid name."""

import copy
import dataclasses
import warnings

import pytest
import torch

from boxdet.engine import config_check
from boxdet.engine.config import Config, ConfigWarning, check_config, load_config
from boxdet.engine.schedule import build_optimizer, build_update_step
from boxdet.errors import ConfigError
from boxdet.models.bbox_head import RoITestSettings
from boxdet.models.standard_roi_head import StandardRoIHead
from boxdet.registry import HEADS, HOOKS, PIPELINES

MASK = 'configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'


@pytest.fixture
def mask_config(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)
    return lambda *options: load_config(MASK, list(options))


def check_quietly(cfg):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_config(cfg)


@pytest.mark.parametrize('option, message', [
    ('model.test_cfg.rcnn.score_thresh=0.1',
     "model.test_cfg.rcnn.score_thresh (--cfg-options): there is no such setting; "
     "did you mean 'score_thr'?"),
    ('model.train_cfg.rpn.sampler.nums=3', "model.train_cfg.rpn.sampler.nums (--cfg-options): RandomSampler takes no "
                                           "'nums'; did you mean 'num'?"),
    ('model.train_cfg.rcnn.assigner.type=MaxIouAssigner', "model.train_cfg.rcnn.assigner.type (--cfg-options): unknown "
                                                          "matching type 'MaxIouAssigner'; near it: MaxIoUAssigner"),
    ('model.backbone.dept=18',
     "model.backbone.dept (--cfg-options): ResNet takes no 'dept'; did you mean 'depth'?"),
    ('model.backbone.type=Resnet', "unknown model type 'Resnet'; near it: ResNet"),
    ('model.backbone.norm_cfg.epsilon=1', "model.backbone.norm_cfg.epsilon"),
    ('model.backbone.init_cfg.checkpoints=x',
     "Pretrained takes no 'checkpoints'; did you mean 'checkpoint'?"),
    ('model.backbone.init_cfg.type=Pretraind',
     "unknown initialisation 'Pretraind'; did you mean 'Pretrained'?"),
    ('model.roi_head.bbox_head.num_class=3',
     "Shared2FCBBoxHead takes no 'num_class'; did you mean 'num_classes'?"),
    ('model.roi_head.bbox_roi_extractor.roi_layer.out_size=7',
     "RoIAlign takes no 'out_size'; mmdetection 1.x's: 2.x has output_size"),
    ('model.rpn_head.anchor_generator.ratio=[1]', "AnchorGenerator takes no 'ratio'; did you mean 'ratios'?"),
    ('evaluation.metric=bbx', "unknown metric 'bbx'; did you mean 'bbox'?"),
    ('evaluation.metric_items=[mAPP]', "unknown metric item 'mAPP'; did you mean 'mAP'?"),
    ('checkpoint_config.interval=0', 'checkpoint_config.interval (--cfg-options): must be a whole number, 1 at least'),
    ('evaluation.save_best=box_mAP', "evaluation.save_best (--cfg-options): 'box_mAP' is no metric of this evaluation; "
                                     "did you mean 'bbox_mAP'?; it gives bbox_mAP, bbox_mAP_50"),
    ('data.samples_per_gpu=0', 'data.samples_per_gpu (--cfg-options): must be a whole number, 1 at least, not 0'),
    ('data.workers_per_gpu=many', "data.workers_per_gpu (--cfg-options): must be a whole number, 0 at least"),
    ('runner.max_epochs=1.5', 'runner.max_epochs (--cfg-options): must be a whole number, 1 at least, not 1.5'),
    ('total_epochs=x', "total_epochs (--cfg-options): must be a whole number"),
    ('optimizer.lr=fast', "optimizer.lr (--cfg-options): must be a number, 0 at least, not 'fast'"),
    ('log_level=LOUD', "log_level (--cfg-options): 'LOUD' is none of DEBUG, INFO"),
    ('log_config.hooks=[TextLoggerHook]', "log_config.hooks.0 (--cfg-options): must be a dict with a 'type'"),
    ('model.backbone=3', "model.backbone (--cfg-options): must be a dict with a 'type', not 3"),
    ('model.roi_head.bbox_head.loss_cls=FocalLoss', "loss_cls (--cfg-options): must be a dict with a 'type'"),
    ('model.rpn_heads=1',
     "model.rpn_heads (--cfg-options): MaskRCNN takes no 'rpn_heads'; did you mean 'rpn_head'?"),
    ('model.roi_head.mask_head.loss_mask.type=CrossEntropy', "near it: CrossEntropyLoss"),
    ('data.sample_per_gpu=4',
     "data.sample_per_gpu (--cfg-options): there is no such key; did you mean 'samples_per_gpu'?"),
    ('data.train.annfile=x',
     "data.train.annfile (--cfg-options): CocoDataset takes no 'annfile'; did you mean 'ann_file'?"),
    ('data.train.type=ResNet', "data.train.type (--cfg-options): unknown dataset type 'ResNet'"),
    ('data.train.samples_per_gpu=2', "CocoDataset takes no 'samples_per_gpu'"),
    ('data.train.pipeline.2.keep_ratios=1',
     "data.train.pipeline.2.keep_ratios (--cfg-options): Resize takes no"),
    ('data.train.pipeline.3.type=RandomFilp', "unknown pipeline type 'RandomFilp'; near it: RandomFlip"),
    ('data.test.pipeline.1.transforms.0.keep_rato=1', "data.test.pipeline.1.transforms.0.keep_rato"),
    ('optimizer.momentumm=0.9', "SGD takes no 'momentumm'; did you mean 'momentum'?"),
    ('optimizer.type=Adamw', "unknown optimizer type 'Adamw'; near it: AdamW"),
    ('optimizer.paramwise_cfg.norm_decay=0',
     "optimizer.paramwise_cfg.norm_decay (--cfg-options): there is no such key; "
     "did you mean 'norm_decay_mult'?"),
    ('optimizer_config.grad_clips.max_norm=3',
     "optimizer_config.grad_clips (--cfg-options): there is no such key; did you mean 'grad_clip'?"),
    ('optimizer_config.grad_clip.maxnorm=3', "did you mean 'max_norm'?"),
    ('fp16.loss_scales=512', "did you mean 'loss_scale'?"),
    ('lr_config.policy=steps', "lr_config.policy (--cfg-options)"),
    ('lr_config.steps=[1]', "lr_config.steps (--cfg-options)"),
    ('runner.max_epoch=3', "EpochBasedRunner takes no 'max_epoch'; did you mean 'max_epochs'?"),
    ('checkpoint_config.intervall=3', "did you mean 'interval'?"),
    ('evaluation.metrics=bbox',
     "evaluation.metrics (--cfg-options): there is no such key; did you mean 'metric'?"),
    ('log_config.intervals=3', "did you mean 'interval'?"),
    ('custom_hooks.0.type=NumClassesCheckHook', "near it: NumClassCheckHook"),
    ('auto_scale_lr.enabled=True', "did you mean 'enable'?"),
    # a text is no number, and no yes or no
    ('model.roi_head.bbox_head.num_classes=three', "num_classes (--cfg-options): must be a whole number, not 'three'"),
    ('model.roi_head.bbox_head.num_classes=3.0', 'num_classes (--cfg-options): must be a whole number, not 3.0'),
    ('model.roi_head.bbox_head.reg_class_agnostic=no', "must be True or False, not 'no'"),
    ('model.train_cfg.rcnn.sampler.pos_fraction=half', "must be a number, not 'half'"),
    ('data.train.pipeline.2.keep_ratio=yes', "must be True or False, not 'yes'"),
    ('optimizer.lr=-0.01', 'optimizer.lr (--cfg-options): must be a number, 0 at least, not -0.01'),
    ('optimizer_config.grad_clip=35', 'must be a dict such as dict(max_norm=35), not 35'),
    ('optimizer_config.grad_clip.max_norm=0', 'max_norm (--cfg-options): must be a number above 0, not 0'),
    ('lr_config.step=[8,often]', "lr_config.step (--cfg-options): must be a whole number, 1 at least, or a list"),
    ('lr_config.step=0', 'lr_config.step (--cfg-options): must be a whole number, 1 at least'),
    ('lr_config.step=[11,8]', 'lr_config.step (--cfg-options): must rise, as in [8, 11], not [11, 8]'),
    ('lr_config.warmup_iters=many', "needs warmup_iters > 0 and 0 < warmup_ratio <= 1, not 'many' and 0.001"),
    # mmdetection 1.x
    ('data.imgs_per_gpu=2', "there is no such key; mmdetection 1.x's: 2.x has data.samples_per_gpu"),
    ('model.bbox_roi_extractor.type=SingleRoIExtractor', '2.x has the same in model.roi_head=dict('),
    ('model.bbox_head.type=SharedFCBBoxHead', '2.x has the same in model.roi_head=dict('),
    ('model.roi_head.bbox_head.type=SharedFCBBoxHead', "2.x has 'Shared2FCBBoxHead' (num_fcs is in its name)"),
    ('model.roi_head.bbox_head.target_means=[0]', "2.x has bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means"),
    ('model.rpn_head.target_stds=[1]', "2.x has bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means"),
    ('model.rpn_head.anchor_scales=[8]', "2.x has anchor_generator=dict(type='AnchorGenerator', scales"),
    ('model.rpn_head.anchor_strides=[4]', "2.x has anchor_generator=dict(type='AnchorGenerator', scales"),
    ('model.rpn_head.use_sigmoid_cls=True', "2.x has loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True)"),
    ('model.roi_head.mask_roi_extractor.roi_layer.sample_num=2', '2.x has sampling_ratio'),
    ('model.train_cfg.rcnn.smoothl1_beta=1', "2.x has loss_bbox=dict(type='SmoothL1Loss', beta=…)"),
    ('model.backbone.gcb.ratio=4', '2.x has plugins=['),
    ('optimizer_config.max_norm=35', '2.x has optimizer_config.grad_clip=dict(max_norm=…, norm_type=…)'),
    ('data.train.img_scale=(1333,800)', '2.x has Resize of data.*.pipeline'),
])
def test_a_wrong_key_is_an_error(mask_config, option, message):
    with pytest.raises(ConfigError) as caught:
        check_config(mask_config(option))
    assert message in str(caught.value) and '--cfg-options' in str(caught.value)


def test_the_file_and_line_are_named(tmp_path, repo_root):
    text = f"_base_ = '{repo_root / MASK}'\nmodel = dict(\n    neck=dict(\n        outs=3))\n"
    (tmp_path / 'leaf.py').write_text(text)
    with pytest.raises(ConfigError, match=r"^model\.neck\.outs \(.*leaf\.py:4\): FPN takes no 'outs'"):
        check_config(load_config(tmp_path / 'leaf.py'))


@pytest.mark.parametrize('missing', ['model', 'data', 'data.train', 'optimizer'])
def test_a_section_that_is_needed(mask_config, missing):
    cfg = mask_config()
    needed = ('model', 'data.train', 'optimizer')
    check_config(cfg, needed)
    outer, _, inner = missing.rpartition('.')
    (cfg.data if outer else cfg).pop(inner)
    named = 'data.train' if missing == 'data' else missing
    with pytest.raises(ConfigError, match=f'^{MASK} has no {named}$'):
        check_config(cfg, needed)
    check_config(cfg)
    with pytest.raises(ConfigError, match=f'^{MASK} has no data.train$'):
        check_config(mask_config('data.train=None'), needed)


def test_a_config_of_detectron(tmp_path):
    (tmp_path / 'e2e.yaml').write_text('MODEL:\n  TYPE: generalized_rcnn\nTRAIN:\n  WEIGHTS: a.pkl\n')
    with pytest.raises(ConfigError, match='e2e.yaml has no model; it looks like a config of Detectron'):
        check_config(load_config(tmp_path / 'e2e.yaml'), ('model', 'data.test'))


@pytest.mark.parametrize('hooks, message', [
    ([dict(type='PaviLoggerHook', init_kwargs={})], 'a service that boxdet does not talk to: take TextLoggerHook'),
    ([dict(type='TextLoggerHok')], 'near it: TextLoggerHook'),
])
def test_loggers(mask_config, hooks, message):
    cfg = mask_config()
    cfg.log_config.hooks = hooks
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)


def test_2x_has_a_class_aware_sampler(mask_config):
    with pytest.raises(ConfigError, match=r"data.train_dataloader.class_aware_sampler.*'num_sample_class'"):
        check_config(mask_config('data.train_dataloader.class_aware_sampler.num_samples_class=1'))
    check_quietly(mask_config('data.train_dataloader.class_aware_sampler.num_sample_class=1'))
    check_quietly(mask_config('data.train_dataloader.class_aware_sampler=None'))


def test_keys_of_mmdetection_2x_that_change_little(mask_config):
    cfg = mask_config('checkpoint_config.create_symlink=False', 'evaluation.dynamic_intervals=[(1,1)]',
                      "evaluation.greater_keys=['mAP']", "evaluation.less_keys=['mAP_s']",
                      'optimizer_config.type=DistOptimizerHook')
    cfg.log_config.hooks = [
        dict(type='TextLoggerHook', by_epoch=True, reset_flag=False),
        dict(type='MlflowLoggerHook', exp_name='e', log_model=True),
        dict(type='WandbLoggerHook', init_kwargs={}, log_artifact=True, with_step=False, commit=True),
        dict(type='MMDetWandbHook', init_kwargs={}, interval=10, log_checkpoint=True, num_eval_images=100)]
    check_quietly(cfg)
    assert build_update_step(build_optimizer(torch.nn.Linear(2, 2), dict(type='SGD', lr=1.)), cfg.optimizer_config)


def test_good_configs_pass_in_silence(mask_config):
    check_quietly(mask_config())
    check_quietly(mask_config('data.test.samples_per_gpu=2', 'fp16.loss_scale=512',
                              'optimizer_config.grad_clip.max_norm=35', 'evaluation.save_best=bbox_mAP',
                              'evaluation.classwise=True', 'log_config.interval=1',
                              'optimizer.type=SGD', 'optimizer.paramwise_cfg.norm_decay_mult=0', 'seed=3'))
    check_quietly(mask_config().to_dict())


def test_checking_changes_nothing(mask_config):
    cfg = mask_config()
    before = copy.deepcopy(cfg.to_dict())
    check_config(cfg)
    assert cfg.to_dict() == before


def test_old_places_of_settings_are_checked_too(mask_config):
    cfg = mask_config()
    cfg.train_cfg, cfg.test_cfg = cfg.model.pop('train_cfg'), cfg.model.pop('test_cfg')
    check_quietly(cfg)
    cfg.test_cfg.rcnn.score_thresh = 1
    with pytest.raises(ConfigError, match='test_cfg.rcnn.score_thresh'):
        check_config(cfg)


def test_a_users_own_classes_are_checked_by_their_signatures(mask_config):
    @PIPELINES.register_module()
    class _OwnTransform:
        def __init__(self, strength):
            self.strength = strength

    @HOOKS.register_module()
    class _OwnHook:
        def __init__(self, every=1, **kwargs):
            self.every = every
    try:
        cfg = mask_config()
        cfg.data.train.pipeline.insert(3, dict(type='_OwnTransform', strength=3))
        cfg.custom_hooks = [dict(type='_OwnHook', priority='LOW', anything=1)]
        check_quietly(cfg)
        cfg.data.train.pipeline[3]['strenght'] = 4
        with pytest.raises(ConfigError, match=r"data\.train\.pipeline\.3\.strenght.*did you mean 'strength'"):
            check_config(cfg)
    finally:
        del PIPELINES._module_dict['_OwnTransform'], HOOKS._module_dict['_OwnHook']


def _put(monkeypatch, where, **classes):
    where.names()
    for name, cls in classes.items():
        monkeypatch.setitem(where.module_dict, name, cls)


def test_a_users_class_takes_typed_dicts_of_its_own(mask_config, monkeypatch):
    class Sink:
        def __init__(self, sink):
            self.sink = sink

    class Albu:
        def __init__(self, transforms):
            self.transforms = transforms

        def __call__(self, results):
            return results

    class Net(torch.nn.Module):
        def __init__(self, arch, backbone='resnet50', norm_cfg=None, **kwargs):
            super().__init__()
            self.arch, self.more = arch, kwargs

    class Head(StandardRoIHead):
        def __init__(self, graph, **kwargs):
            super().__init__(**kwargs)

    _put(monkeypatch, HOOKS, _Sink=Sink)
    _put(monkeypatch, PIPELINES, _Albu=Albu)
    _put(monkeypatch, HEADS, _Net=Net, _Head=Head)
    cfg = mask_config('model.roi_head.type=_Head')
    cfg.custom_hooks = [dict(type='_Sink', sink=dict(type='s3', parts=[dict(type='Resize')]))]
    # Names that boxdet has too are the user's own here.
    own = dict(type='_Albu', transforms=[dict(type='Resize', height=3), dict(type='Noise')])
    cfg.data.train.pipeline.insert(3, own)
    cfg.model.backbone = dict(type='_Net', arch=dict(type='tiny'), backbone='resnet18', norm_cfg=dict(type='MyNorm'),
                              stem=dict(type='ResNet', patches=4), loss_cls=dict(type='MyLoss'))
    cfg.model.roi_head.graph = dict(type='knn', of=[dict(type='FPN', k=3)])
    check_quietly(cfg)
    arch = HEADS.build(cfg.model.backbone)
    assert arch.arch == dict(type='tiny') and arch.more['stem'] == dict(type='ResNet', patches=4)
    # What a class of boxdet's reads is checked as ever, and boxdet's own parts under their usual names.
    for option, message in (('model.roi_head.bbox_head.type=Shared2FCBBoxHed', 'near it: Shared2FCBBoxHead'),
                            ('model.roi_head.bbox_head.num_class=3', "Shared2FCBBoxHead takes no 'num_class'"),
                            ('model.backbone.loss_cls.type=FocalLoss', None),
                            ('model.backbone.loss_cls.gama=2', "takes no 'gama'")):
        cfg.merge_from_dict({option.partition('=')[0]: option.partition('=')[2]})
        if message is not None:
            with pytest.raises(ConfigError, match=message):
                check_config(cfg)
        if 'bbox_head' in option:
            cfg.model.roi_head.bbox_head = mask_config().model.roi_head.bbox_head


def test_a_users_head_has_a_setting_of_its_own(mask_config, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Settings(RoITestSettings):
        vote_thr: float = 0.6

    class _VotingRoIHead(StandardRoIHead):
        test_settings = Settings

    _put(monkeypatch, HEADS, _VotingRoIHead=_VotingRoIHead)
    cfg = mask_config('model.roi_head.type=_VotingRoIHead', 'model.test_cfg.rcnn.vote_thr=0.7')
    check_quietly(cfg)
    cfg = mask_config('model.roi_head.type=_VotingRoIHead', 'model.test_cfg.rcnn.vote_th=0.7')
    with pytest.raises(ConfigError, match=r"^model\.test_cfg\.rcnn\.vote_th \(--cfg-options\): .* mean 'vote_thr'"):
        check_config(cfg)
    with pytest.raises(ConfigError, match=r'rcnn\.vote_thr \(--cfg-options\): there is no such setting'):
        check_config(mask_config('model.test_cfg.rcnn.vote_thr=0.7'))


# ------------------------------------------------------------------------------ variables


@pytest.mark.parametrize('text, message', [
    ("optimiser = dict(type='SGD')",
     r"optimiser \(.*leaf\.py:2\): nothing reads this variable; did you mean 'optimizer'"),
    ('total_epoch = 3', "did you mean 'total_epochs'"),
    ('work_dirs = 3', "did you mean 'work_dir'"),
    ("train_pipeline = [dict(type='LoadImageFromFile')]",
     r"train_pipeline \(.*:2\): the new value reaches nothing.*'data'"),
    ("img_norm_cfg = dict(mean=[0, 0, 0])", r'img_norm_cfg .* reaches nothing'),
    ("data_root = '/my/coco/'", r'data_root .* reaches nothing'),
])
def test_variables_that_do_nothing_are_warned_of(tmp_path, repo_root, text, message):
    (tmp_path / 'leaf.py').write_text(f"_base_ = '{repo_root / MASK}'\n{text}\n")
    with pytest.warns(ConfigWarning, match=message):
        check_config(load_config(tmp_path / 'leaf.py'))


def test_variables_that_only_a_misspelt_option_sets_are_refused(repo_root):
    for options in (['optimiser.lr=0.1'], dict(total_epoch=3)):
        with pytest.raises(ConfigError, match=r'(optimiser|total_epoch) \(--cfg-options\): nothing reads this'):
            check_config(load_config(repo_root / MASK, options))
    check_config(load_config(repo_root / MASK, ['xyzzy=3', 'fp16.loss_scale=512.']))


@pytest.mark.parametrize('text', [
    "optimiser = dict(type='SGD', lr=0.01)\noptimizer = optimiser",
    'my_own_note = 3',
    "classes = ('a', )\ndata = dict(train=dict(classes=classes))",
    "data_root = '/my/coco/'\ndata = dict(train=dict(ann_file=data_root + 'a.json'))",
    "train_pipeline = {{_base_.train_pipeline}}",
])
def test_variables_that_are_used_are_not(tmp_path, repo_root, text):
    (tmp_path / 'leaf.py').write_text(f"_base_ = '{repo_root / MASK}'\n{text}\n")
    check_quietly(load_config(tmp_path / 'leaf.py'))


# ------------------------------------------------------------------------------ the same keys as the readers


def test_optimizer_keys_are_those_that_the_schedule_reads():
    parameter = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(parameter.parameters(), lr=1)
    for config in (dict(grad_clip=dict(max_norm=1)), dict(type='GradientCumulativeOptimizerHook', cumulative_iters=2),
                   dict(type='Fp16OptimizerHook', loss_scale=2.0)):
        assert set(config) <= set(config_check.OPTIMIZER_CONFIG_KEYS)
        build_update_step(optimizer, config)
    build_update_step(optimizer, None, dict.fromkeys(config_check.FP16_KEYS) | dict(loss_scale='dynamic'))
    values = dict.fromkeys(config_check.PARAMWISE_KEYS, 1.0) | dict(custom_keys={}, bypass_duplicate=True)
    build_optimizer(parameter, dict(type='SGD', lr=0.1, weight_decay=0.1, paramwise_cfg=values))


def test_a_plain_mmengine_like_config_is_checked_without_origins():
    with pytest.raises(ConfigError, match=r"^runner\.max_epoch: EpochBasedRunner takes no"):
        check_config(Config(dict(runner=dict(type='EpochBasedRunner', max_epoch=1))))


@pytest.mark.parametrize('key, told', [('greater_keys', 'mPA'), ('less_keys', ['loss_x'])])
def test_names_of_metrics_that_are_part_of_none_are_told(key, told):
    with pytest.warns(UserWarning, match=f"evaluation.{key}: '{told if key[0] == 'g' else told[0]}' is part of no met"):
        check_config(Config(dict(evaluation={'metric': 'bbox', key: told})))


def test_types_inside_albu_are_albumentations():
    pipeline = [dict(type='Albu', transforms=[dict(type='OneOf', transforms=[dict(type='HorizontalFlip', p=0.5)])],
                     bbox_params=dict(type='BboxParams'))]
    check_config(Config(dict(data=dict(train=dict(type='CocoDataset', ann_file='a.json', pipeline=pipeline)))))
