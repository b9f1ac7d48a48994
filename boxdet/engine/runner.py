"""The training loop: 2.x's EpochBasedRunner and IterBasedRunner over mmengine's Runner.

The runner takes built objects (model, loader, update step) and meets a detector by duck typing:
``model(batch, mode='loss')`` returns a dict of losses. Everything else (rates, logs, checkpoints, evaluation) is a
hook; the passes over the data are train_loop.py's.
"""
from __future__ import annotations

import contextlib
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner as _MMEngineRunner
from torch import nn

from boxdet.checkpoints.io import (compare_classes, describe, find_checkpoint, load_checkpoint, load_weights,
                                   save_checkpoint)
from boxdet.engine.distributed import all_gather_objects, get_dist_info, is_main, unwrap
from boxdet.engine.environment import random_states, set_random_states
from boxdet.engine.learning_rate import Progress
from boxdet.engine.loss_watch import LogBuffer, LossWatch, total_loss
from boxdet.engine.schedule import UpdateStep
from boxdet.engine.train_loop import TrainLoop
from boxdet.errors import CheckpointError, ConfigError
from boxdet.registry import RUNNERS
from boxdet.version import __version__


class Runner(_MMEngineRunner):
    """What both runners share. mmengine's part is the hooks (order, registration) and the names that hooks read.

    Args:
        model: detector on its device, wrapped for distributed training where there are several ranks.
        train_loader: yields Batches. validation_loader: for the workflow's 'val' phases.
        update_step: optimizer with clipping, accumulation and precision.
        work_dir: where files go. logger: the log. meta: goes into every checkpoint (CLASSES, config, seed, …).
        timestamp: names the log files. device: of the model.
        workflow: 2.x's, ``[('train', 1)]`` or ``[('train', 1), ('val', 1)]``.
    """

    def __init__(self, model: nn.Module, train_loader: Any, update_step: UpdateStep, work_dir: str | Path,
                 logger: logging.Logger | None = None, meta: Mapping | None = None, timestamp: str | None = None,
                 device: torch.device | str | None = None, workflow: Sequence = (('train', 1),),
                 validation_loader: Any = None, max_epochs: int | None = None, max_iters: int | None = None):
        _check_workflow(workflow, validation_loader)
        parameter = next(model.parameters(), None)
        self.device = torch.device(device) if device is not None else parameter.device if parameter is not None \
            else torch.device('cpu')
        self.meta: dict[str, Any] = dict(meta or {})
        self.meta.setdefault('hook_msgs', {})
        self._given_timestamp = timestamp or time.strftime('%Y%m%d_%H%M%S')
        self._stages: dict[str, list[tuple[Callable, frozenset[str] | None]]] = {}
        super().__init__(model=model, work_dir=str(work_dir), train_dataloader=train_loader, train_cfg={},
                         optim_wrapper=update_step, default_scope=None, experiment_name=Path(work_dir).name)
        self.logger = logger or logging.getLogger('boxdet')
        self._remove_empty_log_folder()
        self._train_loop = TrainLoop(self, train_loader, max_epochs, max_iters, workflow, validation_loader)
        self.log_buffer = LogBuffer()
        self.loss_watch = LossWatch(self.log_buffer, self.device)
        self.mode = 'train'
        self.data_batch: Any = None
        self.outputs: dict[str, Any] = {}

    # --- mmengine's constructor asks these; our objects are built and our process is set up already ---

    def setup_env(self, env_cfg: Mapping) -> None:
        self._rank, self._world_size = get_dist_info()
        self._distributed = self._world_size > 1
        self._timestamp = self._given_timestamp

    def set_randomness(self, seed: int | None = None, **_: Any) -> None:
        self._seed, self._deterministic = self.meta.get('seed'), False

    def build_logger(self, *_: Any, **__: Any) -> logging.Logger:
        quiet = logging.getLogger('boxdet.mmengine')  # its constructor tells of hooks that it does not have
        quiet.setLevel(logging.WARNING)
        return quiet

    def build_visualizer(self, visualizer: Any = None) -> None:
        return None

    def build_message_hub(self, message_hub: Any = None) -> None:
        return None

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        return model

    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:
        return None

    def _log_env(self, env_cfg: Any) -> None:
        return None

    def dump_config(self) -> None:
        return None

    def _remove_empty_log_folder(self) -> None:
        # mmengine made work_dir/<timestamp>/; 2.x's logs lie in work_dir itself. Every rank tries, one is the first.
        with contextlib.suppress(OSError):
            Path(self._log_dir).rmdir()
        self._log_dir = self.work_dir

    # --- names that 2.x's hooks read ---

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer."""
        return self.optim_wrapper.optimizer

    @property
    def inner_iter(self) -> int:
        """Completed iterations of the current epoch."""
        return self.train_loop.inner_iter

    @property
    def by_epoch(self) -> bool:
        """Whether the training is counted in epochs."""
        return self.train_loop.by_epoch

    @property
    def data_loader(self) -> Any:
        """The training loader."""
        return self.train_loop.dataloader

    @property
    def progress(self) -> Progress:
        """How far the training is."""
        loop = self.train_loop
        return Progress(loop.iter, loop.epoch, loop.max_iters, loop.max_epochs, len(loop.dataloader))

    def current_lr(self) -> list[float]:
        """The learning rate of each parameter group."""
        return [group['lr'] for group in self.optimizer.param_groups]

    # --- hooks ---

    def register_hook(self, hook: Hook, priority: Any = None) -> None:
        """Add a hook behind those of the same or a higher priority."""
        super().register_hook(hook, priority)
        self._stages.clear()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call stage ``fn_name`` of every hook that has it, in order of priority.

        A hook written for mmcv 1.x, ``after_train_iter(self, runner)``, gets what it names.
        """
        if fn_name not in self._stages:
            found = [getattr(hook, fn_name) for hook in self._hooks if hasattr(hook, fn_name)]
            self._stages[fn_name] = [(method, _accepted(method)) for method in found if not _is_empty(method)]
        for method, accepted in self._stages[fn_name]:
            method(self, **(kwargs if accepted is None else {k: v for k, v in kwargs.items() if k in accepted}))

    # --- training ---

    def train(self) -> nn.Module:
        """Train to the end; returns the model."""
        self.optim_wrapper.initialize_count_status(self.model, self.iter, self.max_iters)
        self.call_hook('before_run')
        self.train_loop.run()
        self.call_hook('after_run')
        return self.model

    def train_step(self, batch: Any) -> dict[str, Any]:
        """One forward, backward and, when its turn has come, update.

        Returns:
            dict(loss, log_vars, num_samples): the values still on the device.

        Raises:
            TrainingError: a loss is NaN or infinite (on a GPU it is noticed one iteration late, not to wait for it).
        """
        with self.optim_wrapper.optim_context(self.model):
            total, values = total_loss(self.model(batch, mode='loss'))
        self.loss_watch.record(self.iter + 1, values, batch.metas)
        self.optim_wrapper.update_params(total)
        if self.optim_wrapper.grad_norm is not None:
            self.loss_watch.record(self.iter + 1, dict(grad_norm=self.optim_wrapper.grad_norm), batch.metas)
            self.optim_wrapper.grad_norm = None
        return dict(loss=total.detach(), log_vars=values, num_samples=len(batch))

    def report_metrics(self, metrics: Mapping[str, Any], epoch: int, step: int, batches: int) -> None:
        """Hand the metrics of a validation of ``batches`` batches after ``epoch`` epochs, ``step`` iterations to the
        hooks."""
        self.call_hook('after_val_epoch', metrics=metrics, epoch=epoch, step=step, batches=batches)

    # --- checkpoints ---

    def save_checkpoint(self, path: str | Path, save_optimizer: bool = True) -> Path:
        """Save everything that going on needs. Every rank calls it; rank 0 writes.

        Raises:
            CheckpointError: it cannot be written.
        """
        self.loss_watch.flush()  # weights behind an unnoticed NaN must not be saved
        randoms = all_gather_objects(random_states())
        if not is_main():
            return Path(path)
        meta = {**self.meta, **self.train_loop.completed(), 'boxdet_version': __version__,
                'world_size': self.world_size, 'time': time.asctime()}
        checkpoint = dict(meta=meta, state_dict={k: v.cpu() for k, v in unwrap(self.model).state_dict().items()})
        if save_optimizer:
            checkpoint.update(optimizer=self.optimizer.state_dict(), random=randoms)
            if hasattr(self.data_loader.sampler, 'state_dict'):
                checkpoint['sampler'] = self.data_loader.sampler.state_dict()
            if self.optim_wrapper.scaler is not None:
                checkpoint['loss_scaler'] = self.optim_wrapper.scaler.state_dict()
        self.call_hook('before_save_checkpoint', checkpoint=checkpoint)
        return save_checkpoint(checkpoint, path)

    def load_weights(self, address: str) -> None:
        """2.x's ``load_from``: weights only; the training starts at its beginning.

        Raises:
            CheckpointError: not found, unreadable, or of another architecture.
        """
        checkpoint = load_checkpoint(address)
        report = load_weights(unwrap(self.model), checkpoint, str(address))
        self.logger.info('load_from %s', describe(report))
        self._compare_classes(checkpoint, address)

    def resume(self, filename: str, *_: Any, **__: Any) -> None:
        """2.x's ``resume_from``: weights, optimizer, progress and random states; training goes on as if never stopped.

        Raises:
            CheckpointError: as ``load_weights``, or the file lacks what a resume needs.
        """
        checkpoint = load_checkpoint(find_checkpoint(filename))
        report = load_weights(unwrap(self.model), checkpoint, str(filename))
        meta = checkpoint['meta']
        if 'optimizer' not in checkpoint or 'epoch' not in meta or 'iter' not in meta:
            raise CheckpointError(f'{filename} holds weights only, no optimizer and progress: use --load-from')
        if report.missing or report.mismatched:
            one_line = describe(report).replace('\n ', ';')
            raise CheckpointError(f'cannot resume: {one_line}')
        self._compare_classes(checkpoint, filename)
        self._load_optimizer(checkpoint, filename)
        self._set_progress(checkpoint, filename)
        self._load_random_states(checkpoint)
        self.meta['hook_msgs'] = dict(meta.get('hook_msgs') or {})
        self.meta['seed'] = self._seed = meta.get('seed', self._seed)  # its random numbers go on
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        self.logger.info('resumed from %s: epoch %d, iteration %d', filename, self.epoch, self.iter)

    def _load_optimizer(self, checkpoint: Mapping, filename: str) -> None:
        configured = self.current_lr()
        try:
            self.optimizer.load_state_dict(checkpoint['optimizer'])
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"cannot resume from {filename}: its optimizer does not fit this config's "
                                  f'({error}); --load-from takes the weights alone') from error
        initial = [group.get('initial_lr', group['lr']) for group in self.optimizer.param_groups]
        if initial != configured:
            self.logger.warning('the learning rate goes on from the %g of %s, not from the %g of the config',
                                initial[0], filename, configured[0])
        if self.optim_wrapper.scaler is not None and 'loss_scaler' in checkpoint:
            self.optim_wrapper.scaler.load_state_dict(checkpoint['loss_scaler'])

    def _set_progress(self, checkpoint: Mapping, filename: str) -> None:
        loop, meta = self.train_loop, checkpoint['meta']
        loop.epoch, loop.iter, loop.inner_iter = int(meta['epoch']), int(meta['iter']), int(meta.get('inner_iter', 0))
        if loop.finished:
            self.logger.warning('%s is at epoch %d, iteration %d: the config asks for no more than that', filename,
                                loop.epoch, loop.iter)
        before, inner = meta.get('world_size', self.world_size), loop.inner_iter
        self._load_sampler(checkpoint, filename)
        if before != self.world_size:
            self.logger.warning('%s was saved by %d ranks, now there are %d: the order of images and the random '
                                'numbers cannot continue exactly', filename, before, self.world_size)
            # The same share of the epoch is another number of iterations now.
            loop.inner_iter = inner * before // self.world_size
            if loop.by_epoch:
                loop.iter = loop.epoch * len(loop.dataloader) + loop.inner_iter

    def _load_sampler(self, checkpoint: Mapping, filename: str) -> None:
        sampler = self.data_loader.sampler
        if 'sampler' in checkpoint and hasattr(sampler, 'load_state_dict'):
            sampler.load_state_dict(checkpoint['sampler'])
        elif self.inner_iter:
            raise CheckpointError(f'{filename} was saved within an epoch, and the sampler {type(sampler).__name__} '
                                  'cannot go on from there; resume from the end of an epoch')

    def _load_random_states(self, checkpoint: Mapping) -> None:
        states = checkpoint.get('random') or []
        if self.rank < len(states):
            set_random_states(states[self.rank])

    def _compare_classes(self, checkpoint: Mapping, address: Any) -> None:
        note = compare_classes(checkpoint, self.meta.get('CLASSES'), str(address))
        if note:
            self.logger.warning(note)


def _check_workflow(workflow: Sequence, validation_loader: Any) -> None:
    modes = [mode for mode, _ in workflow]
    unknown = [mode for mode in modes if mode not in ('train', 'val')]
    if unknown or 'train' not in modes:
        raise ConfigError(f"workflow {list(workflow)} needs a ('train', n) and may have a ('val', n)")
    if 'val' in modes and validation_loader is None:
        raise ConfigError(f'workflow {list(workflow)} has a val phase, but there is no validation data')


def _accepted(method: Callable) -> frozenset[str] | None:
    """The keywords beyond ``runner`` that ``method`` takes; None for any."""
    parameters = inspect.signature(method).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


_EMPTY = {function for function in vars(Hook).values() if inspect.isfunction(function)}


def _is_empty(method: Callable) -> bool:
    """Whether this is mmengine's own stage, which leads to an overridable ``_before_iter`` and the like, unused."""
    if getattr(method, '__func__', None) not in _EMPTY:
        return False
    generic = {'before_train_iter': '_before_iter', 'after_train_iter': '_after_iter',
               'before_train_epoch': '_before_epoch', 'after_train_epoch': '_after_epoch',
               'after_val_epoch': '_after_epoch'}.get(method.__name__)
    return generic is None or getattr(type(method.__self__), generic) is getattr(Hook, generic)


@RUNNERS.register_module()
class EpochBasedRunner(Runner):
    """Counts epochs: 2.x's ``runner=dict(type='EpochBasedRunner', max_epochs=12)``."""

    def __init__(self, max_epochs: int, **kwargs: Any):
        super().__init__(max_epochs=max_epochs, **kwargs)


@RUNNERS.register_module()
class IterBasedRunner(Runner):
    """Counts iterations: 2.x's ``runner=dict(type='IterBasedRunner', max_iters=90000)``."""

    def __init__(self, max_iters: int, **kwargs: Any):
        super().__init__(max_iters=max_iters, **kwargs)
