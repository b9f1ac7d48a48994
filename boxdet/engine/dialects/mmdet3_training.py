"""mmdetection 3.x's loops, optimizer wrapper, schedulers, hooks and logs, as 2.x's sections of the same."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from boxdet.engine.chained_rates import SCHEDULERS
from boxdet.engine.dialects.piece import Context, Idle, Only, Piece, Section, Table, same
from boxdet.errors import nearest

# --- loops ---

LOOPS: Mapping[str, Table] = {
    'EpochBasedTrainLoop': dict(max_epochs='max_epochs', val_interval='interval', val_begin='start',
                                dynamic_intervals='dynamic_intervals'),
    'IterBasedTrainLoop': dict(max_iters='max_iters', val_interval='interval', val_begin='start',
                               dynamic_intervals='dynamic_intervals')}


def loop(section: Section, batches: int) -> tuple[Piece, dict[str, Piece]]:
    """``train_cfg`` as ``runner``, and the keys of ``evaluation`` that it holds.

    Args:
        section: ``train_cfg``.
        batches: batches of one update, as 3.x counts those as iterations.
    """
    kind = section.kind
    if kind is None:  # 3.x's own way to leave the type out
        kind = 'EpochBasedTrainLoop' if section.get('by_epoch', True) else 'IterBasedTrainLoop'
    if kind not in LOOPS:
        section.fail('type', f"boxdet trains by {' or '.join(LOOPS)}, not by '{section.get('type')}'")
    found = section.read({**LOOPS[kind], 'by_epoch': Idle('tells the type where that is absent')})
    if found.get('start') is not None and found['start'].value <= found['interval'].value:
        del found['start']  # 3.x begins at the first interval anyway
    by_epoch = kind == 'EpochBasedTrainLoop'
    name, runner = ('max_epochs', 'EpochBasedRunner') if by_epoch else ('max_iters', 'IterBasedRunner')
    if name not in found:
        section.fail(None, f"{kind} needs '{name}'")
    length = found.pop(name)
    if name == 'max_iters':
        length = _updates(length, section, name, batches)
        found = {key: _updates(part, section, f'val_{key}', batches) if key == 'interval' else part
                 for key, part in found.items()}
    return Piece.mapping({'type': section.made(runner, 'type'), name: length}, section.key), found


def _updates(piece: Piece, section: Section, name: str, batches: int) -> Piece:
    """A number of 3.x's iterations, which are batches, as a number of updates of the weights."""
    return piece if batches == 1 or piece.value is None else section.made(math.ceil(piece.value / batches), name)


# --- optimizer ---

WRAPPER: Table = {
    'optimizer': Idle('becomes optimizer'), 'paramwise_cfg': Idle('stands inside optimizer in 2.x'),
    'constructor': Idle('stands inside optimizer in 2.x'), 'clip_grad': Idle('becomes optimizer_config.grad_clip'),
    'accumulative_counts': Idle('becomes optimizer_config.cumulative_iters'), 'dtype': Idle('becomes fp16.dtype'),
    'loss_scale': Idle('becomes fp16.loss_scale'), 'use_fsdp': Only(False)}
WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper')


def optimizer(section: Section) -> dict[str, Piece]:
    """``optim_wrapper`` as ``optimizer``, ``optimizer_config`` and ``fp16``."""
    kind = section.kind or 'OptimWrapper'
    if kind not in WRAPPERS:
        section.fail('type', f"boxdet updates weights by {' or '.join(WRAPPERS)}, not by '{section.get('type')}'")
    section.read(WRAPPER)
    found: dict[str, Piece] = {}
    if section.get('optimizer') is not None:
        inner = section.inside('optimizer')
        parts = {name: inner.piece(name) for name in inner.value}
        parts.update({name: section.piece(name) for name in ('constructor', 'paramwise_cfg')
                      if section.get(name) not in (None, 'DefaultOptimWrapperConstructor')})
        if 'paramwise_cfg' in parts:
            parts['paramwise_cfg'] = _paramwise(section.inside('paramwise_cfg'))
        found['optimizer'] = Piece.mapping(parts, inner.key)
    step = dict(grad_clip=_clip(section))
    if batches_of(section) > 1:
        step = dict(type=section.made('GradientCumulativeOptimizerHook', 'accumulative_counts'),
                    cumulative_iters=section.piece('accumulative_counts'), **step)
    found['optimizer_config'] = Piece.mapping(step)
    if kind == 'AmpOptimWrapper':
        half = dict(loss_scale=section.made(section.get('loss_scale', 'dynamic'), 'loss_scale'))
        if section.get('dtype') is not None:
            half['dtype'] = section.piece('dtype')
        found['fp16'] = Piece.mapping(half, section.key)
    return found


def batches_of(section: Section | None) -> int:
    """Batches of one update of the weights."""
    return (section.get('accumulative_counts') or 1) if section is not None else 1


def _paramwise(section: Section) -> Piece:
    return Piece.mapping({name: section.piece(name) for name in section.value if section.get(name) is not None
                          or name == 'custom_keys'}, section.key)


def _clip(section: Section) -> Piece:
    if section.get('clip_grad') is None:
        return section.made(None, 'clip_grad')
    clip = section.inside('clip_grad')
    return Piece.mapping(clip.read(dict(type=Only('norm', advice='gradients are clipped by their norm'), **same(
        'max_norm', 'norm_type', 'error_if_nonfinite')), leave=()), clip.key)


# --- learning rate ---

_ONE_CYCLE: Table = {
    'eta_max': 'max_lr', **same('total_steps', 'pct_start', 'anneal_strategy', 'div_factor', 'final_div_factor',
                                'three_phase'), 'by_epoch': Only(False, advice='its phases are counted in iterations'),
    'begin': Only(0, advice='it is the schedule of the whole training'), 'end': Idle('see total_steps'),
    'convert_to_iter_based': Idle('it counts iterations'), 'verbose': Idle('rates are in the log')}
_WARMUPS = dict(LinearLR=('linear', 'start_factor', 1 / 3), ConstantLR=('constant', 'factor', 1 / 3))


def schedule(values: Mapping[str, Any], context: Context, by_epoch: bool, batches: int) -> Piece | None:
    """``param_scheduler`` as ``lr_config``; every learning rate is 3.x's.

    It is 2.x's steps after a warmup where that is what 3.x says, else one policy that works through its schedulers.
    """
    sections = Section(values, (), context).sections('param_scheduler')
    if len(sections) == 1 and sections[0].kind == 'OneCycleLR' and batches == 1:
        only = sections[0]
        return Piece.mapping(dict(policy=only.made('OneCycle', 'type'), **only.read(_ONE_CYCLE)), only.key)
    for one in sections:
        if one.kind not in SCHEDULERS:
            one.fail('type', f"'{one.get('type')}' is no schedule of the learning rate that boxdet could combine; it "
                             f"has {', '.join(SCHEDULERS)}, and OneCycleLR alone")
        if one.get('by_epoch', True) and not by_epoch and not one.get('convert_to_iter_based'):
            one.fail('by_epoch', 'a training by iterations has no epochs: by_epoch=False, with begin and end in '
                                 'iterations')
    if not sections:
        return None
    found = _steps(sections, by_epoch, batches)
    if found is not None:
        return Piece.mapping(found, ('param_scheduler',))
    parts = [Piece.mapping({name: one.made(one.kind, 'type') if name == 'type' else one.piece(name)
                            for name in one.value if name not in ('verbose', '_scope_')}, one.key) for one in sections]
    found = dict(policy=Piece('param_scheduler', (((), ('param_scheduler',)),)),
                 schedulers=Piece.sequence(parts, ('param_scheduler',)))
    if batches > 1:
        found['batches_per_update'] = Piece(batches, (((), ('optim_wrapper', 'accumulative_counts')),))
    return Piece.mapping(found, ('param_scheduler',))


def _steps(sections: Sequence[Section], by_epoch: bool, batches: int) -> dict[str, Piece] | None:
    """A MultiStepLR, after a LinearLR or ConstantLR or not, as policy 'step'; None for anything else."""
    steps = [one for one in sections if one.kind == 'MultiStepLR']
    warmups = [one for one in sections if one.kind in _WARMUPS]
    if len(steps) != 1 or len(warmups) > 1 or len(sections) != len(steps) + len(warmups) or batches > 1:
        return None
    step = steps[0]
    milestones = step.get('milestones') or []
    if step.get('begin', 0) != 0 or len(set(milestones)) < len(milestones) or step.get('convert_to_iter_based') or \
            any(m >= step.get('end', math.inf) for m in milestones) or list(milestones) != sorted(milestones):
        return None
    found = dict(policy=step.made('step', 'type'), step=step.piece('milestones'))
    if step.get('gamma', 0.1) != 0.1:
        found['gamma'] = step.piece('gamma')
    if not step.get('by_epoch', True):
        found['by_epoch'] = step.piece('by_epoch')
    if warmups:
        warmup = _warmup(warmups[0])
        if warmup is None:
            return None
        found.update(warmup)
    return found


def _warmup(section: Section) -> dict[str, Piece] | None:
    name, factor, usual = _WARMUPS[section.kind]
    end, ratio = section.get('end'), section.get(factor, usual)
    if section.get('begin', 0) != 0 or section.get('by_epoch', True) or not isinstance(end, int) or end < 2 or \
            section.get('end_factor', 1.) != 1. or not 0 < ratio <= 1:
        return None
    # 3.x's factor reaches 1 in its last iteration, 2.x's in the one after.
    return dict(warmup=section.made(name, 'type'), warmup_iters=section.made(end - 1, 'end'),
                warmup_ratio=section.made(ratio, factor))


# --- hooks ---

_NO_FILES = dict(backend_args=Only(None), file_client_args=Only(None))
CHECKPOINT: Table = {
    **_NO_FILES, **same('interval', 'save_optimizer', 'max_keep_ckpts', 'save_last', 'out_dir'),
    'by_epoch': Idle('see _checkpoint'), 'save_best': Idle('becomes evaluation.save_best'),
    'rule': Idle('becomes evaluation.rule'), 'save_param_scheduler': Idle('rates follow from the progress'),
    'greater_keys': Idle('see rule'), 'less_keys': Idle('see rule'),
    'filename_tmpl': Only(None, 'epoch_{}.pth', 'iter_{}.pth', advice='checkpoints are epoch_N.pth or iter_N.pth'),
    'published_keys': Only(None, advice='tools/model_converters/publish_model.py makes the file to publish'),
    'save_begin': Only(0, advice='checkpoints are saved from the beginning')}


def _drawing(section: Section, key: str) -> dict[str, Piece]:
    if section.get(key):
        section.note(key, 'nothing is drawn while a training validates; tools/test.py --show-dir DIR draws')
    return {}


# What boxdet does by itself. (type -> the keys that may stand there)
BUILT_IN: Mapping[str, Table] = {
    'IterTimerHook': {}, 'ParamSchedulerHook': {}, 'DistSamplerSeedHook': {}, 'RuntimeInfoHook': {},
    'SyncBuffersHook': {}, 'NumClassCheckHook': {}, 'SetEpochInfoHook': {}, 'EmptyCacheHook': dict.fromkeys(
        ('before_epoch', 'after_epoch', 'after_iter'), Idle("torch's cache needs no emptying")),
    'DetVisualizationHook': {**_NO_FILES, 'draw': _drawing, **dict.fromkeys(
        ('interval', 'score_thr', 'show', 'wait_time', 'test_out_dir'), Idle('of the drawing'))}}
LOGGER: Table = {**_NO_FILES, 'interval': 'interval', **same('ignore_last', 'interval_exp_name'),
                 'out_dir': Only(None), 'out_suffix': Idle('of out_dir'), 'keep_local': Idle('of out_dir'),
                 'log_metric_by_epoch': Idle('metrics are logged by what the training counts')}
EMA: Table = {
    'type': Idle(''), 'ema_type': Idle('see ema_hook'), 'momentum': 'momentum', 'interval': 'interval',
    'gamma': 'total_iter', 'update_buffers': Idle('see ema_hook'), 'strict_load': Idle('averages fit the model'),
    'begin_iter': Only(0, advice='the average begins with the training'), 'priority': 'priority',
    'begin_epoch': Only(0, advice='the average begins with the training'),
    'evaluate_on_ema': Only(True, advice='what is evaluated is the average'),
    'evaluate_on_origin': Only(False, advice='what is evaluated is the average')}


class Hooks:
    """``default_hooks`` and ``custom_hooks``, sorted into 2.x's sections.

    Attributes:
        log: keys of ``log_config``'s text logger. checkpoint: ``checkpoint_config``. evaluation: of ``evaluation``.
        custom: ``custom_hooks``.
    """

    def __init__(self, by_epoch: bool, batches: int):
        self.by_epoch, self.batches = by_epoch, batches
        self.log: dict[str, Piece] = {}
        self.checkpoint: Piece | None = None
        self.evaluation: dict[str, Piece] = {}
        self.custom: list[Piece] = []

    def take(self, section: Section) -> None:
        """Sort in one hook; a type that no table knows is the user's own and stays as it is."""
        kind = section.kind
        if kind in BUILT_IN:
            section.read(BUILT_IN[kind], leave=('type', 'priority'))
            if kind == 'NumClassCheckHook':
                self.custom.append(Piece.mapping(dict(type=section.made(kind, 'type')), section.key))
        elif kind == 'LoggerHook':
            self.log.update(section.read(LOGGER, leave=('type', 'priority')))
        elif kind == 'CheckpointHook':
            self._checkpoint(section)
        elif kind == 'EMAHook':
            self.custom.append(ema_hook(section))
        elif kind == 'EarlyStoppingHook':
            parts = {name: section.piece(name) for name in section.value if name not in ('strict',)}
            if 'monitor' in parts:
                parts['monitor'] = section.made(metric_name(section.get('monitor')), 'monitor')
            self.custom.append(Piece.mapping({**parts, 'type': section.made(kind, 'type')}, section.key))
        else:
            parts = {name: section.piece(name) for name in section.value}
            self.custom.append(Piece.mapping({**parts, 'type': section.made(kind, 'type')}, section.key))

    def _checkpoint(self, section: Section) -> None:
        found = section.read(CHECKPOINT, leave=('type', 'priority'))
        by_epoch = section.get('by_epoch', True)
        if by_epoch != self.by_epoch:
            found['by_epoch'] = section.made(by_epoch, 'by_epoch')
        if not by_epoch and self.batches > 1 and 'interval' in found:
            found['interval'] = _updates(found['interval'], section, 'interval', self.batches)
        best = section.get('save_best')
        if isinstance(best, (list, tuple)) and len(best) > 1:
            section.fail('save_best', f'boxdet keeps the best checkpoint of one metric, not of {list(best)}')
        if best:
            best = best[0] if isinstance(best, (list, tuple)) else best
            self.evaluation['save_best'] = section.made(metric_name(best), 'save_best')
            rule = section.get('rule')
            if rule:
                self.evaluation['rule'] = section.made(rule[0] if isinstance(rule, (list, tuple)) else rule, 'rule')
        self.checkpoint = Piece.mapping(found, section.key)


def metric_name(name: str) -> str:
    """2.x's name of a metric: 'bbox_mAP' of 'coco/bbox_mAP'."""
    return name.rpartition('/')[2]


def ema_hook(section: Section) -> Piece:
    """EMAHook: 3.x's averages with the momentum as it stands, as 2.x's hooks without their warm up."""
    kind = str(section.get('ema_type', 'ExponentialMovingAverage')).rpartition('.')[2]
    found = section.read(EMA, leave=())
    buffers = section.get('update_buffers', False)
    if kind == 'ExpMomentumEMA':
        found['skip_buffers'] = section.made(not buffers, 'update_buffers')
        return Piece.mapping({'type': section.made('ExpMomentumEMAHook', 'ema_type'), **found}, section.key)
    if kind != 'ExponentialMovingAverage' or 'total_iter' in found:
        section.fail('ema_type', f'boxdet averages by ExponentialMovingAverage or ExpMomentumEMA, not by {kind}')
    interval, momentum = section.get('interval', 1), section.get('momentum', 0.0002)
    if interval != 1:  # 2.x takes the momentum to the power of the interval
        found['momentum'] = section.made(momentum ** (1 / interval), 'momentum')
    if buffers:
        found['skip_buffers'] = section.made(False, 'update_buffers')
    found['warm_up'] = section.made(1)
    name = 'LinearMomentumEMAHook' if buffers else 'EMAHook'
    return Piece.mapping({'type': section.made(name, 'type'), **found}, section.key)


# --- logs ---

BACKENDS: Mapping[str, tuple[str, Table]] = {
    'LocalVisBackend': ('', dict.fromkeys(('save_dir', 'img_save_dir', 'config_save_file', 'scalar_save_file'),
                                          Idle('the log is in the work_dir'))),
    'TensorboardVisBackend': ('TensorboardLoggerHook', dict(save_dir='log_dir')),
    'WandbVisBackend': ('WandbLoggerHook', dict(
        init_kwargs='init_kwargs', save_dir=Idle('the work_dir'), commit=Idle(''), define_metric_cfg=Only(None),
        log_code_name=Only(None), watch_kwargs=Only(None))),
    'MLflowVisBackend': ('MlflowLoggerHook', dict(
        **same('exp_name', 'tags', 'params'), save_dir=Idle('the work_dir'), run_name=Only(None),
        tracking_uri=Only(None, advice='the environment variable MLFLOW_TRACKING_URI names it'),
        artifact_suffix=Idle(''), tracked_config_keys=Only(None))),
    'ClearMLVisBackend': ('ClearMLLoggerHook', {}), 'NeptuneVisBackend': ('NeptuneLoggerHook', {}),
    'DVCLiveVisBackend': ('DvcliveLoggerHook', {}), 'AimVisBackend': ('AimLoggerHook', {})}


def logs(values: Mapping[str, Any], context: Context, log: dict[str, Piece]) -> Piece | None:
    """``visualizer.vis_backends`` and the LoggerHook as ``log_config``."""
    hooks = {}
    if values.get('visualizer') is not None:
        visualizer = Section(values['visualizer'], ('visualizer',), context)
        for one in visualizer.sections('vis_backends'):
            if one.kind not in BACKENDS:
                one.fail('type', f"boxdet logs to {', '.join(BACKENDS)}, not to '{one.get('type')}'"
                                 f"{nearest(str(one.kind), BACKENDS)}")
            name, table = BACKENDS[one.kind]
            options = one.read(table, others=not table)
            if name:
                hooks[name] = Piece.mapping({'type': one.made(name, 'type'), **options}, one.key)
    if not hooks and not log:
        return None
    interval = log.pop('interval', None)
    text = {'type': Piece('TextLoggerHook', (((), ('default_hooks', 'logger')),)), **log}
    found = dict(hooks=Piece.sequence([Piece.mapping(text), *hooks.values()]))
    return Piece.mapping({**({'interval': interval} if interval is not None else {}), **found})
