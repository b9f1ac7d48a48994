"""Training from a config: mmdetection 2.x's ``train_detector``.

cfg = load_config('configs/…')
model = build_detector(cfg.model); model.init_weights()
train_detector(model, build_dataset(cfg.data.train), cfg, validate=True)
"""
from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from boxdet.datasets import build_dataloader, build_dataset, inference_settings
from boxdet.datasets.contracts import Dataset
from boxdet.engine.config import Config
from boxdet.engine.config_check import require
from boxdet.engine.distributed import get_dist_info, is_main, wrap_distributed
from boxdet.engine.environment import (
    choose_device,
    choose_seed,
    place_for_training,
    set_random_seed,
    setup_logger,
)
from boxdet.engine.findings import ignored_codes
from boxdet.engine.hooks import EvaluationHook, Hook, output_folder
from boxdet.engine.learning_rate import LrSchedule
from boxdet.engine.momentum import MomentumSchedule
from boxdet.engine.preflight import (
    check_metrics,
    check_schedule,
    check_training,
    check_writable,
    learning_rate_scale,
    parts_of,
    scale_steps,
)
from boxdet.engine.schedule import build_optimizer, build_update_step, freeze
from boxdet.errors import ConfigError
from boxdet.evaluation.evaluate import evaluate, option_names
from boxdet.registry import HOOKS, RUNNERS, Cfg, check_keywords

__all__ = ['choose_seed', 'set_random_seed', 'train_detector']


def train_detector(model: nn.Module, dataset: Dataset | list[Dataset] | tuple[Dataset, ...], cfg: Config,
                   distributed: bool = False, validate: bool = False, timestamp: str | None = None,
                   meta: Cfg | None = None) -> nn.Module:
    """Train ``model`` as ``cfg`` says.

    Args:
        model: built detector with its initial weights, on the CPU.
        dataset: the training set, or [training set, set for the workflow's 'val' phases].
        cfg: Config; it is not changed.
        distributed: ``init_dist`` was called, this process is one of several.
        validate: evaluate on ``cfg.data.val`` as ``cfg.evaluation`` says.
        timestamp: names the log files.
        meta: goes into checkpoints and the JSON log.

    Returns:
        the trained detector, unwrapped.

    Raises:
        UserError: what the preflight found, a loss that is no number, a checkpoint that cannot be read or written.
    """
    require(cfg, 'data', 'optimizer')
    datasets = list(dataset) if isinstance(dataset, (list, tuple)) else [dataset]
    timestamp = timestamp or time.strftime('%Y%m%d_%H%M%S')
    work_dir = Path(cfg.get('work_dir') or 'work_dirs')
    logger = logging.getLogger('boxdet')
    if not logger.handlers:
        logger = setup_logger(work_dir / f'{timestamp}.log', cfg.get('log_level', 'INFO'))
    _check_folders(cfg, work_dir)
    device = choose_device(cfg.get('device'))
    length = runner_config(cfg)
    validation, batch = check_before_training(model, datasets[0], cfg, validate)
    loaders = [_train_loader(datasets[0], cfg, length, distributed),
               *(_train_loader(one, cfg, length, distributed, shuffle=False) for one in datasets[1:])]
    scale, (length, lr_config, evaluation, saving) = _scaled_schedule(cfg, length, loaders[0].batch_size or 1)
    check_schedule(model, cfg, length, lr_config, (evaluation or {}) if validation is not None else None,
                   _updates_per_epoch(cfg, length, loaders[0]))
    model.CLASSES = datasets[0].CLASSES  # type: ignore[assignment]  # torch types it as Tensor | Module
    model = place_for_training(model, device, cfg)
    frozen = freeze(model, cfg.frozen_modules) if cfg.get('frozen_modules') else ()
    step = build_update_step(build_optimizer(model, cfg.optimizer, scale), cfg.get('optimizer_config'), cfg.get('fp16'),
                             device.type)
    runner = RUNNERS.build(length, model=wrap_distributed(model, device, cfg.get('find_unused_parameters', False)),
                           train_loader=loaders[0], update_step=step, work_dir=work_dir, logger=logger, device=device,
                           meta=_meta(cfg, datasets[0], meta), timestamp=timestamp,
                           workflow=cfg.get('workflow') or [('train', 1)], frozen=frozen,
                           validation_loader=loaders[1] if len(loaders) > 1 else None)
    for hook, priority in _hooks(cfg, lr_config, saving, runner.by_epoch):
        runner.register_hook(hook, priority)
    if validation is not None:
        runner.register_hook(_evaluation_hook(cfg, evaluation, validation, batch, runner.by_epoch, distributed))
    if cfg.get('resume_from'):
        runner.resume(cfg.resume_from)
    elif cfg.get('load_from'):
        runner.load_checkpoint(cfg.load_from)
    runner.train()
    return model


def check_before_training(model: nn.Module, dataset: Dataset, cfg: Config,
                          validate: bool = True) -> tuple[Dataset | None, int]:
    """Check model, training set and validation set against each other.

    Args:
        model: built detector.
        dataset: the training set.
        cfg: Config.
        validate: ``cfg.data.val``, where there is one, is evaluated.

    Returns:
        the validation set, or None; how many of its images at a time.

    Raises:
        UserError: a finding that ends a training.
    """
    validation, batch = _validation_set(cfg) if validate and cfg.data.get('val') else (None, 0)
    metric = (cfg.get('evaluation') or {}).get('metric')
    samples = {**cfg.data, **(cfg.data.get('train_dataloader') or {})}.get('samples_per_gpu', 1)
    check_training(model, dataset, validation, ignored_codes(cfg), metric, samples * get_dist_info()[1])
    if validation is not None:
        check_metrics(model, metric, validation)
    return validation, batch


def runner_config(cfg: Config) -> Cfg:
    """``cfg.runner``, or what ``total_epochs`` meant before there was one.

    Raises:
        ConfigError: neither is there.
    """
    if cfg.get('runner'):
        return {'type': 'EpochBasedRunner', **cfg.runner}
    if cfg.get('total_epochs'):
        return dict(type='EpochBasedRunner', max_epochs=cfg.total_epochs)
    raise ConfigError("the config says neither runner=dict(type='EpochBasedRunner', max_epochs=…) nor total_epochs")


def _scaled_schedule(cfg: Config, length: Cfg, samples_per_gpu: int) -> tuple[float, tuple]:
    """What the learning rate is multiplied by; ``runner``, ``lr_config``, ``evaluation`` and ``checkpoint_config``."""
    accumulation = (cfg.get('optimizer_config') or {}).get('cumulative_iters', 1)
    scale = learning_rate_scale(samples_per_gpu, get_dist_info()[1], accumulation, cfg.optimizer.get('lr', 0.),
                                cfg.get('auto_scale_lr'))
    sections = {name: cfg.get(name) for name in ('evaluation', 'checkpoint_config')}
    if scale != 1 and (cfg.get('auto_scale_lr') or {}).get('scale_steps'):
        return scale, scale_steps(scale, length, cfg.get('lr_config'), **sections)
    return scale, (length, cfg.get('lr_config'), *sections.values())


def _updates_per_epoch(cfg: Config, length: Cfg, loader: Any) -> int | None:
    """Optimizer steps of an epoch; None for a runner that does not count by them."""
    accumulation = (cfg.get('optimizer_config') or {}).get('cumulative_iters', 1)
    return math.ceil(len(loader) / accumulation) if 'max_epochs' in length else None


def _meta(cfg: Config, dataset: Dataset, given: Mapping | None) -> Cfg:
    """What every checkpoint tells of the training, in plain values."""
    meta = dict(CLASSES=dataset.CLASSES, PALETTE=getattr(dataset, 'PALETTE', None), config=cfg.pretty_text,
                seed=cfg.get('seed'))
    ids = getattr(next(parts_of(dataset)), 'cat_ids', None)
    if ids:  # what a test file without categories is written with
        meta['category_ids'] = list(ids)
    return {**meta, **(given or {})}


def _check_folders(cfg: Config, work_dir: Path) -> None:
    """Look before the training, not after its first epoch, whether what it will write can be written."""
    if not is_main():
        return
    check_writable(work_dir, 'work_dir')
    for key in ('checkpoint_config', 'evaluation'):
        out_dir = (cfg.get(key) or {}).get('out_dir')
        if out_dir is not None:
            check_writable(output_folder(out_dir, work_dir), f'{key}.out_dir')


# --- loaders ---

def _split_options(cfg: Config, split: str) -> Cfg:
    """Loader options: what stands in ``data`` itself, then in ``data.<split>_dataloader``."""
    own = ('train', 'val', 'test', 'train_dataloader', 'val_dataloader', 'test_dataloader')
    shared = {key: value for key, value in cfg.data.items() if key not in own}
    return {**shared, **(cfg.data.get(f'{split}_dataloader') or {})}


def _train_loader(dataset: Dataset, cfg: Config, length: Mapping, distributed: bool, **more: Any) -> DataLoader:
    options = dict(samples_per_gpu=1, workers_per_gpu=2, num_gpus=1, dist=distributed, seed=cfg.get('seed'),
                   runner_type=length['type'])
    return build_dataloader(dataset, **{**options, **_split_options(cfg, 'train'), **more})


def _validation_set(cfg: Config) -> tuple[Dataset, int]:
    """``data.val`` without augmentation, and how many of its images at a time."""
    settings, batch = inference_settings(cfg.data.val, (cfg.data.get('val_dataloader') or {}).get('samples_per_gpu'))
    return build_dataset(settings, dict(test_mode=True)), batch


def _evaluation_hook(cfg: Config, evaluation: Mapping | None, dataset: Dataset, batch: int, by_epoch: bool,
                     distributed: bool) -> EvaluationHook:
    options = {'workers_per_gpu': 2, **_split_options(cfg, 'val'), 'samples_per_gpu': batch}
    loader = build_dataloader(dataset, dist=distributed, **{'shuffle': False, **options})
    chosen = {'by_epoch': by_epoch, **{k: v for k, v in (evaluation or {}).items() if k != 'type'}}
    names = option_names(dataset, metric=chosen.get('metric'))
    if names is not None:
        check_keywords(EvaluationHook, {k: v for k, v in chosen.items() if k not in (*names, 'metric')}, 'evaluation')
    return EvaluationHook(dataset, loader, evaluate, **chosen)


# --- hooks ---

def _hooks(cfg: Config, lr_config: Mapping | None, saving: Mapping | None,
           by_epoch: bool) -> Iterator[tuple[Hook, str | int | None]]:
    """(hook, priority or None) of ``lr_config``, ``checkpoint_config``, ``log_config`` and ``custom_hooks``."""
    for section, schedule in ((lr_config, LrSchedule), (cfg.get('momentum_config'), MomentumSchedule)):
        if section:
            yield _schedule_hook(section, schedule, by_epoch), None
    if saving:
        yield HOOKS.build({'type': 'CheckpointHook', 'by_epoch': by_epoch, **saving}), None
    log = dict(cfg.get('log_config') or dict(hooks=[dict(type='TextLoggerHook')]))
    for one in log.get('hooks') or []:
        yield HOOKS.build({'interval': log.get('interval', 10), 'by_epoch': by_epoch, **one}), 'VERY_LOW'
    for one in cfg.get('custom_hooks') or []:
        if isinstance(one, Mapping):
            yield HOOKS.build({k: v for k, v in one.items() if k != 'priority'}), one.get('priority')
        else:
            yield one, None


def _schedule_hook(section: Mapping, schedule: type[LrSchedule], by_epoch: bool) -> Hook:
    """The hook of ``lr_config`` or ``momentum_config``; it may be of a policy of the user's own."""
    policy = section.get('policy')
    own = f'{policy}{schedule.hook}'
    if policy is not None and policy.lower() not in {p.lower() for p in schedule.policies} and own in HOOKS:
        return HOOKS.build({'type': own, 'by_epoch': by_epoch, **{k: v for k, v in section.items() if k != 'policy'}})
    options = {'by_epoch': by_epoch, **section}
    if 'type' in options:
        options.setdefault('policy', options.pop('type').removesuffix(schedule.hook))
    return HOOKS.build({'type': schedule.hook, **options})
