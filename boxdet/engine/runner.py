"""Training: 2.x's EpochBasedRunner and IterBasedRunner.

The runner takes built objects (model, loader, update step) and meets a detector by duck typing:
``model(batch, mode='loss')`` returns a dict of losses. Everything else (rates, logs, checkpoints, evaluation) is a
hook (hook_list.py); the passes over the data are train_loop.py's, going on from a checkpoint is resuming.py's.
"""
from __future__ import annotations

import errno
import logging
import operator
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.checkpoints.loading import describe, load_weights
from boxdet.engine.distributed import all_gather_objects, broadcast_object, get_dist_info, is_main, unwrap
from boxdet.engine.environment import random_states
from boxdet.engine.hook_list import HookList
from boxdet.engine.hook_stages import Hook
from boxdet.engine.hooks import point_to
from boxdet.engine.interruption import Interrupted, StopSignals
from boxdet.engine.learning_rate import Progress
from boxdet.engine.loss_watch import LogBuffer, LossWatch, TrainingError, total_loss
from boxdet.engine.resuming import batch_of, resume, tell_other_classes
from boxdet.engine.schedule import UpdateStep
from boxdet.engine.train_loop import TrainLoop
from boxdet.errors import ConfigError
from boxdet.registry import RUNNERS
from boxdet.version import __version__


class Runner:
    """What both runners share.

    Args:
        model: detector on its device, wrapped for distributed training where there are several ranks.
        train_loader: yields Batches.
        update_step: optimizer with clipping, accumulation and precision.
        work_dir: where files go; it is made.
        logger: the log.
        meta: goes into every checkpoint (CLASSES, config, seed, …).
        timestamp: names the log files.
        device: of the model.
        workflow: 2.x's, ``[('train', 1)]`` or ``[('train', 1), ('val', 1)]``.
        validation_loader: for the workflow's 'val' phases.
        max_epochs: the length of the training; or
        max_iters: in iterations.
        frozen: modules of the model that stay in evaluation mode, so that BN statistics of theirs stand still.

    Attributes:
        model, optim_wrapper, work_dir, logger, meta, timestamp, device: as they were given.
        rank, world_size: this process among those of the training.
        hooks: a ``HookList``.
        train_loop: the passes over the data, and how far they are.
        mode: 'train', or 'val' in the workflow's validation.
        data_batch, outputs: of the current iteration.
        log_buffer: what hooks want told, see ``LogBuffer``.
        checkpoint_folder: where checkpoints go.
        resumed_from: the checkpoint that the training goes on from.
    """

    def __init__(self, model: nn.Module, train_loader: Any, update_step: UpdateStep, work_dir: str | Path,
                 logger: logging.Logger | None = None, meta: Mapping | None = None, timestamp: str | None = None,
                 device: torch.device | str | None = None, workflow: Sequence = (('train', 1),),
                 validation_loader: Any = None, max_epochs: int | None = None, max_iters: int | None = None,
                 frozen: Sequence[nn.Module] = ()):
        _check_workflow(workflow, validation_loader)
        self.model, self.optim_wrapper = model, update_step
        parameter = next(model.parameters(), None)
        self.device = torch.device(device or (torch.device('cpu') if parameter is None else parameter.device))
        self.work_dir = os.path.abspath(work_dir)
        os.makedirs(self.work_dir, exist_ok=True)
        self.logger = logger or logging.getLogger('boxdet')
        self.meta: dict[str, Any] = dict(meta or {})
        self.meta.setdefault('hook_msgs', {})
        self.timestamp = timestamp or time.strftime('%Y%m%d_%H%M%S')
        self.rank, self.world_size = get_dist_info()
        self.hooks = HookList()
        self.train_loop = TrainLoop(self, train_loader, max_epochs, max_iters, workflow, validation_loader,
                                    update_step.accumulation)
        self.checkpoint_folder = Path(work_dir)
        self.resumed_from: Path | None = None
        self._frozen = tuple(frozen)
        self._stop = StopSignals()
        self.log_buffer = LogBuffer()
        self.loss_watch = LossWatch(self.log_buffer, self.device)
        self.mode = 'train'
        self.data_batch: Any = None
        self.outputs: dict[str, Any] = {}

    # --- names that 2.x's hooks read ---

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Torch's optimizer."""
        return self.optim_wrapper.optimizer

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.train_loop.epoch

    @property
    def iter(self) -> int:
        """Completed iterations of the whole training."""
        return self.train_loop.iter

    @property
    def inner_iter(self) -> int:
        """Completed iterations of the current epoch; in the workflow's validation those of that."""
        return self.train_loop.inner_iter if self.mode == 'train' else self.train_loop.validated

    @property
    def max_epochs(self) -> int:
        """Epochs of the training; with ``max_iters`` the passes over the data that it begins."""
        return self.train_loop.max_epochs

    @property
    def max_iters(self) -> int:
        """Iterations of the training."""
        return self.train_loop.max_iters

    @property
    def by_epoch(self) -> bool:
        """Whether the training is counted in epochs."""
        return self.train_loop.by_epoch

    @property
    def data_loader(self) -> Any:
        """The training loader; in the workflow's validation that one's."""
        return self.train_loop.dataloader if self.mode == 'train' else self.train_loop.validation_loader

    @property
    def train_dataloader(self) -> Any:
        """The training loader, under mmengine's name."""
        return self.train_loop.dataloader

    @property
    def model_name(self) -> str:
        """The class of the detector."""
        return type(unwrap(self.model)).__name__

    @property
    def seed(self) -> int | None:
        """Of the training's random numbers."""
        return self.meta.get('seed')

    # mmcv 1.x's attributes, which some hooks read for lack of an older property.
    _hooks, _epoch, _iter, _inner_iter = (property(operator.attrgetter(name))
                                          for name in ('hooks', 'epoch', 'iter', 'inner_iter'))
    _max_epochs, _max_iters, _rank, _world_size = (property(operator.attrgetter(name))
                                                   for name in ('max_epochs', 'max_iters', 'rank', 'world_size'))

    @property
    def progress(self) -> Progress:
        """How far the training is."""
        loop = self.train_loop
        return Progress(loop.iter, loop.epoch, loop.max_iters, loop.max_epochs, loop.iters_per_epoch)

    def current_lr(self) -> list[float]:
        """The learning rate of each parameter group."""
        return [group['lr'] for group in self.optimizer.param_groups]

    def current_momentum(self) -> list[float]:
        """The momentum of each parameter group, Adam's first beta where it has those, 0 for neither."""
        return [group['momentum'] if 'momentum' in group else group.get('betas', (0,))[0]
                for group in self.optimizer.param_groups]

    # --- hooks ---

    def register_hook(self, hook: Hook | Mapping, priority: str | int | None = None) -> None:
        """Add a hook behind those of the same or a higher priority; warn of methods that nothing will call.

        Raises:
            ConfigError: it is no hook, or there is no such priority.
        """
        for message in self.hooks.register(hook, priority):
            self.logger.warning(message)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call stage ``fn_name`` of every hook that has it, in order of priority.

        A hook written for mmcv 1.x, ``after_train_iter(self, runner)``, gets what it names. Its ``after_epoch`` is of
        epochs and not of an evaluation, which comes while ``mode`` is 'train'.
        """
        self.hooks.call(self, fn_name, self.mode, kwargs)

    # --- training ---

    def train(self) -> nn.Module:
        """Train to the end; returns the model.

        Raises:
            Interrupted: SIGTERM or SIGUSR1 came; a checkpoint is written.
            TrainingError: a loss that is no number, or a file that cannot be written.
        """
        try:
            with self._stop:
                self.call_hook('before_run')
                self.train_loop.run()
                self.call_hook('after_run')
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise TrainingError(f'cannot write {error.filename or self.work_dir}: {error.strerror} (after iteration '
                                f'{self.iter}); the checkpoints are untouched, --auto-resume goes on') from error
        return self.model

    def train_step(self, batches: Sequence[Any]) -> dict[str, Any]:
        """One update: forward and backward of each batch, then the step on the mean of their gradients.

        Each batch is weighted by its images, as in one large batch.

        Returns:
            dict(loss, log_vars, num_samples): the values, of the last batch, still on the device.

        Raises:
            TrainingError: a loss is NaN or infinite (on a GPU it is noticed one iteration late, not to wait for it).
        """
        step, images = self.optim_wrapper, sum(len(batch) for batch in batches)
        for i, batch in enumerate(batches):
            batch = batch.to(self.device)
            with step.optim_context(self.model, completes=i == len(batches) - 1):
                total, values = total_loss(self.model(batch, mode='loss'))
            self.loss_watch.record(self.iter + 1, values, batch.metas)
            step.backward(total if len(batches) == 1 else total * (len(batch) / images))
        step.step()
        step.zero_grad()
        if step.grad_norm is not None:
            self.loss_watch.record(self.iter + 1, dict(grad_norm=step.grad_norm), batch.metas)
            step.grad_norm = None
        return dict(loss=total.detach(), log_vars=values, num_samples=images)

    def set_training(self) -> None:
        """Put the model into training mode, all but what is frozen."""
        self.model.train()
        for module in self._frozen:
            module.eval()

    def stop_if_asked(self) -> None:
        """Between two iterations: if a signal asked for it, write a checkpoint and end the training.

        Raises:
            Interrupted: the checkpoint is written.
        """
        number = self._stop.agreed()
        if not number:
            return
        path = self.checkpoint_folder / f'iter_{self.iter}.pth'
        self.meta['hook_msgs']['interrupted_ckpt'] = str(path)
        self.write_checkpoint(path)
        if is_main():
            point_to(path.with_name('latest.pth'), path)
        broadcast_object(None)  # a launcher ends the others when the first rank leaves: not while rank 0 still writes
        raise Interrupted(f'stopped by {signal.Signals(number).name} at iteration {self.iter}, saved {path}; '
                          '--auto-resume goes on from there', number)

    def report_metrics(self, metrics: Mapping[str, Any], epoch: int, step: int, batches: int) -> None:
        """Hand ``metrics`` of ``batches`` batches to the hooks, after ``epoch`` epochs and ``step`` iterations."""
        self.call_hook('after_val_epoch', metrics=metrics, epoch=epoch, step=step, batches=batches)

    # --- checkpoints ---

    def save_checkpoint(self, out_dir: str | Path, filename_tmpl: str | None = None, save_optimizer: bool = True,
                        meta: Mapping | None = None, create_symlink: bool = True) -> Path:
        """Mmcv 1.x's: save into a folder from inside a hook. Every rank calls it; rank 0 writes.

        Args:
            out_dir: the folder.
            filename_tmpl: the file's name, ``{}`` in it the current epoch, or iteration, from 1; 'epoch_{}.pth' or
                'iter_{}.pth' when None.
            save_optimizer: keep what a resume needs besides the weights.
            meta: joins the checkpoint's.
            create_symlink: point ``latest.pth`` to the file.

        Raises:
            CheckpointError: it cannot be written.
        """
        count = min(self.epoch + 1, self.max_epochs) if self.by_epoch else min(self.iter + 1, self.max_iters)
        name = (filename_tmpl or ('epoch_{}.pth' if self.by_epoch else 'iter_{}.pth')).format(count)
        path = self.write_checkpoint(Path(out_dir) / name, save_optimizer, meta)
        if create_symlink and is_main():
            point_to(path.with_name('latest.pth'), path)
        return path

    def write_checkpoint(self, path: str | Path, save_optimizer: bool = True, more: Mapping | None = None) -> Path:
        """Save everything that going on needs, and ``more`` in its meta. Every rank calls it; rank 0 writes.

        Raises:
            CheckpointError: it cannot be written.
        """
        self.loss_watch.flush()  # weights behind an unnoticed NaN must not be saved
        randoms = all_gather_objects(random_states())
        if not is_main():
            return Path(path)
        meta = {**self.meta, **self.train_loop.completed(), **batch_of(self), 'boxdet_version': __version__,
                'time': time.asctime(), **(more or {})}
        checkpoint: dict[str, Any] = dict(
            meta=meta, state_dict={k: v.cpu() for k, v in unwrap(self.model).state_dict().items()})
        if save_optimizer:
            checkpoint.update(optimizer=self.optimizer.state_dict(), random=randoms)
            if hasattr(self.train_loop.dataloader.sampler, 'state_dict'):
                checkpoint['sampler'] = self.train_loop.dataloader.sampler.state_dict()
            if self.optim_wrapper.scaler is not None:
                checkpoint['loss_scaler'] = self.optim_wrapper.scaler.state_dict()
        self.call_hook('before_save_checkpoint', checkpoint=checkpoint)
        return save_checkpoint(checkpoint, path)

    def load_checkpoint(self, filename: str, map_location: Any = 'cpu') -> dict:
        """2.x's ``load_from``: weights only; the training starts at its beginning.

        Args:
            filename: path or address.
            map_location: where tensors are read to.

        Returns:
            the checkpoint.

        Raises:
            CheckpointError: not found, unreadable, or of another architecture.
        """
        checkpoint = load_checkpoint(filename, map_location)
        report = load_weights(unwrap(self.model), checkpoint, str(filename))
        self.logger.info('load_from %s', describe(report))
        tell_other_classes(self, checkpoint, filename)
        return checkpoint

    def resume(self, filename: str) -> None:
        """2.x's ``resume_from``: weights, optimizer, progress and random states; training goes on as if never stopped.

        Raises:
            CheckpointError: as ``load_checkpoint``, or the file lacks what a resume needs.
        """
        resume(self, filename)


# Of a full or broken disk: the user's to mend, and no fault of the program.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _check_workflow(workflow: Sequence, validation_loader: Any) -> None:
    modes = [mode for mode, _ in workflow]
    unknown = [mode for mode in modes if mode not in ('train', 'val')]
    if unknown or 'train' not in modes:
        raise ConfigError(f"workflow {list(workflow)} needs a ('train', n) and may have a ('val', n)")
    if 'val' in modes and validation_loader is None:
        raise ConfigError(f'workflow {list(workflow)} has a val phase, but there is no validation data')


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
