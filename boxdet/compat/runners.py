"""``EpochBasedRunner``, ``IterBasedRunner`` and ``build_runner`` of mmcv 1.x: runners that a script feeds by itself.

``train_detector`` builds boxdet's runners from a config. These have 1.x's constructor and ``run(data_loaders,
workflow)``; the batches go to the model's ``train_step`` and ``val_step`` as they are, and hooks update the weights.
"""
from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from boxdet.checkpoints import io
from boxdet.compat.hooks import HOOKS_1X, OptimizerHook, TimesHook
from boxdet.compat.mmcv1 import bare, load_checkpoint
from boxdet.engine.hooks import CheckpointHook, Hook, LrUpdaterHook
from boxdet.engine.momentum import MomentumUpdaterHook
from boxdet.engine.runner import Runner
from boxdet.engine.train_loop import TrainLoop
from boxdet.errors import ConfigError
from boxdet.registry import HOOKS, RUNNERS


class _Loop(TrainLoop):
    """The passes over a script's loaders."""

    @property
    def finished(self) -> bool:
        """Whether so many epochs or iterations are done, from wherever a script has begun to count."""
        return self.stop_training or (self.epoch >= self.max_epochs if self.by_epoch else self.iter >= self.max_iters)

    def train_pass(self) -> None:
        """An epoch of training."""
        super()._train_epoch()

    def val_pass(self) -> None:
        """An epoch of validation."""
        super()._validate_losses()

    # By the runner's methods, which a script's class may override.

    def _train_epoch(self) -> None:
        self.runner.train(self.dataloader, **self.runner.step_options)

    def _validate_losses(self) -> None:
        self.runner.val(self.validation_loader, **self.runner.step_options)

    def _iteration(self, batches: list[Any], started: float) -> None:
        runner, batch = self.runner, batches[0]
        runner.times.start(started, time.perf_counter())
        runner.data_batch = batch
        runner.call_hook('before_train_iter', batch_idx=self.inner_iter, data_batch=batch)
        runner.run_iter(batch, train_mode=True, **runner.step_options)
        runner.log_buffer.update(runner.outputs.get('log_vars', {}), runner.outputs.get('num_samples', 1))
        self._in_iteration = 1
        runner.call_hook('after_train_iter', batch_idx=self.inner_iter, data_batch=batch, outputs=runner.outputs)
        runner.log_buffer.clear_told()
        runner.data_batch = None
        self._in_iteration = 0
        self.iter += 1
        self.inner_iter += 1
        runner.stop_if_asked()

    def _validate_batch(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        runner = self.runner
        runner.data_batch = batch
        runner.call_hook('before_val_iter', batch_idx=self.validated, data_batch=batch)
        runner.run_iter(batch, train_mode=False, **runner.step_options)
        runner.call_hook('after_val_iter', batch_idx=self.validated, data_batch=batch, outputs=runner.outputs)
        return runner.outputs.get('log_vars', {})


def _of_loop(name: str) -> Any:
    def get(runner: Runner1x) -> int:
        return getattr(runner.train_loop, name)

    def put(runner: Runner1x, value: int) -> None:
        setattr(runner.train_loop, name, value)
    return property(get, put)


class Runner1x(Runner):
    """What both runners share.

    Args:
        model: has ``train_step(batch, optimizer, **options)``, which returns a dict with ``loss`` and, for the log,
            ``log_vars`` and ``num_samples``; for the workflow's 'val' ``val_step`` likewise.
        batch_processor: takes the place of both: ``batch_processor(model, batch, train_mode)``.
        optimizer: what ``OptimizerHook`` steps; None where no hook needs one.
        work_dir: where files go; the current folder when None.
        logger: the log.
        meta: goes into every checkpoint.
        max_iters: the length of the training in iterations; or
        max_epochs: in epochs.
        **others: refused, of the runners that ``train_detector`` builds.

    Raises:
        ConfigError: both lengths, several optimizers, or ``others``.
    """
    _epoch, _iter, _inner_iter = map(_of_loop, ('epoch', 'iter', 'inner_iter'))
    _max_epochs, _max_iters = map(_of_loop, ('max_epochs', 'max_iters'))
    length = 'max_epochs'

    def __init__(self, model: nn.Module, batch_processor: Callable | None = None,
                 optimizer: torch.optim.Optimizer | None = None, work_dir: str | None = None,
                 logger: logging.Logger | None = None, meta: Mapping | None = None, max_iters: int | None = None,
                 max_epochs: int | None = None, **others: Any):
        if others:
            raise ConfigError(f'{type(self).__name__} takes no {", ".join(others)}: it is a runner that a script '
                              'builds and runs; one for the config derives from boxdet.engine.runner.EpochBasedRunner')
        if max_iters is not None and max_epochs is not None:
            raise ConfigError('a runner takes max_epochs or max_iters, not both')
        if isinstance(optimizer, Mapping):
            raise ConfigError('a runner takes one optimizer, not a dict of them')
        step: Any = SimpleNamespace(optimizer=optimizer, accumulation=1, scaler=None)
        # What ``run`` is given takes the place of this loader; until then the loop holds the counts.
        super().__init__(model, [None], step, work_dir or os.getcwd(), logger, meta, max_epochs=1)
        self.lengths: dict[str, Any] = dict(max_epochs=max_epochs, max_iters=max_iters)
        self.batch_processor = batch_processor
        self.step_options: dict[str, Any] = {}
        self.times = TimesHook()
        self.register_hook(self.times)

    def run_iter(self, data_batch: Any, train_mode: bool, **kwargs: Any) -> None:
        """Give a batch to the model; what it returns is ``outputs``.

        Raises:
            TypeError: the model returns no dict.
        """
        if self.batch_processor is not None:
            outputs = self.batch_processor(self.model, data_batch, train_mode=train_mode, **kwargs)
        else:
            model: Any = self.model
            outputs = (model.train_step if train_mode else model.val_step)(data_batch, self.optimizer, **kwargs)
        if not isinstance(outputs, dict):
            raise TypeError(f"{type(self.model).__name__}'s step returns a dict with 'loss', not {type(outputs)}")
        self.outputs = outputs

    def train(self, data_loader: Any = None, **kwargs: Any) -> nn.Module:
        """An epoch of training over the loader of ``run``."""
        self.train_loop.train_pass()  # type: ignore[attr-defined]  # the loop that ``run`` made
        return self.model

    def val(self, data_loader: Any = None, **kwargs: Any) -> None:
        """An epoch of validation."""
        self.train_loop.val_pass()  # type: ignore[attr-defined]  # likewise

    def run(self, data_loaders: Sequence[Any], workflow: Sequence[tuple[str, int]], max_epochs: int | None = None,
            **kwargs: Any) -> None:
        """Train to the end.

        Args:
            data_loaders: one for each phase of the workflow.
            workflow: ``[('train', 1)]`` or ``[('train', 1), ('val', 1)]``.
            max_epochs: instead of the constructor's.
            **kwargs: handed to ``train_step`` and ``val_step``.

        Raises:
            ConfigError: another workflow, or no length.
        """
        loaders = dict(zip((mode for mode, _ in workflow), data_loaders))
        allowed = ('train', 'val') if self.length == 'max_epochs' else ('train',)
        if len(loaders) != len(data_loaders) or len(loaders) != len(workflow) or 'train' not in loaders \
                or set(loaders) - set(allowed):
            raise ConfigError(f'{type(self).__name__}.run: the workflow {list(workflow)} with {len(data_loaders)} '
                              f'loaders; it has a loader for each phase, and phases are {" and ".join(allowed)}')
        if max_epochs is not None:
            self.lengths['max_epochs'] = max_epochs
        if self.lengths[self.length] is None:
            raise ConfigError(f'{type(self).__name__} needs {self.length}')
        before, self.step_options = self.train_loop, kwargs
        self.train_loop = _Loop(self, loaders['train'], workflow=workflow, validation_loader=loaders.get('val'),
                                **{self.length: self.lengths[self.length]})
        self.train_loop.epoch, self.train_loop.iter = before.epoch, before.iter
        super().train()

    def current_lr(self) -> list[float]:
        """The learning rate of each parameter group.

        Raises:
            RuntimeError: there is no optimizer.
        """
        if self.optimizer is None:
            raise RuntimeError('this runner has no optimizer, so no learning rate')
        return super().current_lr()

    # --- hooks ---

    def register_hook(self, hook: Any, priority: str | int | None = None) -> None:
        """Add a hook, or the one that a dict describes; 1.x's come before boxdet's of the same name."""
        if isinstance(hook, Mapping) and hook.get('type') in HOOKS_1X:
            described = dict(hook)
            priority = described.pop('priority', priority)
            hook = HOOKS_1X.build(described)
        super().register_hook(hook, priority)

    def register_hook_from_cfg(self, hook_cfg: Mapping[str, Any]) -> None:
        """Add the hook that a dict describes."""
        self.register_hook(hook_cfg)

    def _register(self, given: Any, make: Callable[..., Hook]) -> None:
        if given is not None:
            self.register_hook(make(**given) if isinstance(given, Mapping) else given)

    def _options(self, given: Any) -> Any:
        """A dict of options, counted as this runner counts unless it says otherwise."""
        return {'by_epoch': self.length == 'max_epochs', **given} if isinstance(given, Mapping) else given

    def register_lr_hook(self, lr_config: Any) -> None:
        """Set the learning rate by ``lr_config``, or by a hook."""
        self._register(self._options(lr_config), LrUpdaterHook)

    def register_momentum_hook(self, momentum_config: Any) -> None:
        """Likewise the momentum."""
        self._register(self._options(momentum_config), MomentumUpdaterHook)

    def register_optimizer_hook(self, optimizer_config: Any) -> None:
        """Update the weights: ``dict(grad_clip=...)``, with a ``type`` another hook, or a hook."""
        typed = isinstance(optimizer_config, Mapping) and 'type' in optimizer_config
        if typed:
            self.register_hook_from_cfg(optimizer_config)
        else:
            self._register(optimizer_config, OptimizerHook)

    def register_checkpoint_hook(self, checkpoint_config: Any) -> None:
        """Save checkpoints."""
        self._register(self._options(checkpoint_config), CheckpointHook)

    def register_logger_hooks(self, log_config: Mapping[str, Any] | None) -> None:
        """Log by ``log_config``: ``interval`` and ``hooks``."""
        for hook in (log_config or {}).get('hooks', ()):
            options = {'interval': (log_config or {})['interval'], **self._options(hook)}
            self.register_hook(HOOKS.build(options))

    def register_timer_hook(self, timer_config: Any) -> None:
        """Nothing but what is there already: iterations are timed."""
        if timer_config is not None:
            self.register_hook(timer_config)

    def register_custom_hooks(self, custom_config: Sequence[Any] | Any) -> None:
        """Add hooks, or the dicts that describe them."""
        several = isinstance(custom_config, (list, tuple))
        for hook in custom_config if several else [custom_config]:
            if hook is not None:
                self.register_hook(hook)

    def register_training_hooks(self, lr_config: Any, optimizer_config: Any = None, checkpoint_config: Any = None,
                                log_config: Mapping[str, Any] | None = None, momentum_config: Any = None,
                                timer_config: Any = None, custom_hooks_config: Any = None) -> None:
        """Add what a training needs; each may be None."""
        self.register_lr_hook(lr_config)
        self.register_momentum_hook(momentum_config)
        self.register_optimizer_hook(optimizer_config)
        self.register_checkpoint_hook(checkpoint_config)
        self.register_timer_hook(timer_config)
        self.register_logger_hooks(log_config)
        self.register_custom_hooks(custom_hooks_config)

    # --- checkpoints ---

    def write_checkpoint(self, path: str | Path, save_optimizer: bool = True, more: Mapping | None = None) -> Path:
        """Save 1.x's content: the weights, the optimizer, and how far the training is."""
        content: dict[str, Any] = dict(meta={**self.meta, **self.train_loop.completed(), **(more or {})},
                                       state_dict={k: v.cpu() for k, v in bare(self.model).state_dict().items()})
        if save_optimizer and self.optimizer is not None:
            content['optimizer'] = self.optimizer.state_dict()
        if self.rank:
            return Path(path)
        self.call_hook('before_save_checkpoint', checkpoint=content)
        return io.save_checkpoint(content, path)

    def load_checkpoint(self, filename: str, map_location: Any = 'cpu', strict: bool = False,
                        revise_keys: Sequence[tuple[str, str]] = ()) -> dict:
        """Load weights; the file's content is returned."""
        return load_checkpoint(self.model, filename, map_location, strict, revise_keys=revise_keys)

    def resume(self, filename: str, resume_optimizer: bool = True, map_location: Any = 'cpu') -> None:
        """Go on from a checkpoint: weights, optimizer, epoch and iteration."""
        content = io.read_as_written(filename, map_location)
        left = bare(self.model).load_state_dict(content['state_dict'], strict=False)
        if left.missing_keys or left.unexpected_keys:
            self.logger.warning('%s: not there %s; not used %s', filename, left.missing_keys, left.unexpected_keys)
        if resume_optimizer and 'optimizer' in content and self.optimizer is not None:
            self.optimizer.load_state_dict(content['optimizer'])
        self._epoch, self._iter = content['meta']['epoch'], content['meta']['iter']
        self.meta['hook_msgs'] = dict(content['meta'].get('hook_msgs') or {})
        self.logger.info('resumed from %s: epoch %d, iteration %d', filename, self.epoch, self.iter)


class EpochBasedRunner(Runner1x):
    """Counts epochs."""


class IterBasedRunner(Runner1x):
    """Counts iterations."""
    length = 'max_iters'


def build_runner(cfg: Mapping[str, Any], default_args: Mapping[str, Any] | None = None) -> Any:
    """The runner that ``cfg`` (``type``, ``max_epochs`` or ``max_iters``) describes, 1.x's or a script's own.

    Args:
        cfg: of the config.
        default_args: model, optimizer, work_dir, logger, meta.

    Raises:
        ConfigError: no such runner.
    """
    options = {**(default_args or {}), **cfg}
    options.pop('constructor', None)
    kind = options.pop('type')
    own: dict[Any, type] = dict(EpochBasedRunner=EpochBasedRunner, IterBasedRunner=IterBasedRunner)
    cls: Any = own.get(kind) or RUNNERS.get(kind)
    return cls(**options)
