"""The training loop: 2.x's EpochBasedRunner and IterBasedRunner over mmengine's Runner.

The runner takes built objects (model, loader, update step) and meets a detector by duck typing:
``model(batch, mode='loss')`` returns a dict of losses. Everything else (rates, logs, checkpoints, evaluation) is a
hook; the passes over the data are train_loop.py's.
"""
from __future__ import annotations

import contextlib
import errno
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner as _MMEngineRunner
from torch import nn

from boxdet.checkpoints.io import find_checkpoint, load_checkpoint, save_checkpoint
from boxdet.checkpoints.loading import compare_classes, describe, load_weights
from boxdet.engine.config_difference import differences
from boxdet.engine.distributed import all_gather_objects, broadcast_object, get_dist_info, is_main, unwrap
from boxdet.engine.environment import random_states, set_random_states
from boxdet.engine.hook_stages import Hook, idle_methods, method_of
from boxdet.engine.hooks import point_to
from boxdet.engine.interruption import Interrupted, StopSignals
from boxdet.engine.learning_rate import Progress
from boxdet.engine.loss_watch import LogBuffer, LossWatch, TrainingError, total_loss
from boxdet.engine.schedule import UpdateStep
from boxdet.engine.train_loop import TrainLoop
from boxdet.errors import CheckpointError, ConfigError
from boxdet.registry import RUNNERS, accepted_keywords
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
        frozen: modules of the model that stay in evaluation mode, so that BN statistics of theirs stand still.

    Attributes:
        checkpoint_folder: where checkpoints go.
    """

    def __init__(self, model: nn.Module, train_loader: Any, update_step: UpdateStep, work_dir: str | Path,
                 logger: logging.Logger | None = None, meta: Mapping | None = None, timestamp: str | None = None,
                 device: torch.device | str | None = None, workflow: Sequence = (('train', 1),),
                 validation_loader: Any = None, max_epochs: int | None = None, max_iters: int | None = None,
                 frozen: Sequence[nn.Module] = ()):
        _check_workflow(workflow, validation_loader)
        parameter = next(model.parameters(), None)
        self.device = torch.device(device) if device is not None else parameter.device if parameter is not None \
            else torch.device('cpu')
        self.meta: dict[str, Any] = dict(meta or {})
        self.meta.setdefault('hook_msgs', {})
        self._given_timestamp = timestamp or time.strftime('%Y%m%d_%H%M%S')
        self._stages: dict[tuple[str, str], list[tuple[Callable, frozenset[str] | None]]] = {}
        super().__init__(model=model, work_dir=str(work_dir), train_dataloader=train_loader, train_cfg={},
                         optim_wrapper=update_step, default_scope=None, experiment_name=Path(work_dir).name)
        self.logger = logger or logging.getLogger('boxdet')
        self._remove_empty_log_folder()
        self._train_loop = TrainLoop(self, train_loader, max_epochs, max_iters, workflow, validation_loader,
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
        """Torch's optimizer."""
        return self.optim_wrapper.optimizer

    @property
    def inner_iter(self) -> int:
        """Completed iterations of the current epoch; in the workflow's validation those of that."""
        return self.train_loop.inner_iter if self.mode == 'train' else self.train_loop.validated

    @property
    def by_epoch(self) -> bool:
        """Whether the training is counted in epochs."""
        return self.train_loop.by_epoch

    @property
    def data_loader(self) -> Any:
        """The training loader; in the workflow's validation that one's."""
        return self.train_loop.dataloader if self.mode == 'train' else self.train_loop.validation_loader

    @property
    def _max_epochs(self) -> int:
        return self.max_epochs

    @property
    def _max_iters(self) -> int:
        return self.max_iters

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

    def register_hook(self, hook: Hook, priority: Any = None) -> None:
        """Add a hook behind those of the same or a higher priority; warn of methods that nothing will call."""
        super().register_hook(hook, priority)
        for message in idle_methods(hook):
            self.logger.warning(message)
        self._stages.clear()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call stage ``fn_name`` of every hook that has it, in order of priority.

        A hook written for mmcv 1.x, ``after_train_iter(self, runner)``, gets what it names. Its ``after_epoch`` is of
        epochs and not of an evaluation, which comes while ``mode`` is 'train'.
        """
        key = fn_name, self.mode
        if key not in self._stages:
            found = [method_of(hook, fn_name, shared=f'_{self.mode}_' in fn_name) for hook in self._hooks]
            self._stages[key] = [(method, _accepted(method)) for method in found if method is not None]
        for method, accepted in self._stages[key]:
            method(self, **(kwargs if accepted is None else {k: v for k, v in kwargs.items() if k in accepted}))

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
        """One update: forward and backward of each batch, then the step on the mean of their gradients, each batch
        weighted by its images, as in one large batch.

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
        """Hand the metrics of a validation of ``batches`` batches after ``epoch`` epochs, ``step`` iterations to the
        hooks.
        """
        self.call_hook('after_val_epoch', metrics=metrics, epoch=epoch, step=step, batches=batches)

    # --- checkpoints ---

    def save_checkpoint(self, out_dir: str | Path, filename_tmpl: str | None = None, save_optimizer: bool = True,
                        meta: Mapping | None = None, create_symlink: bool = True) -> Path:
        """Mmcv 1.x's: save into a folder from inside a hook. Every rank calls it; rank 0 writes.

        Args:
            filename_tmpl: the file's name, ``{}`` in it the current epoch, or iteration, from 1; 'epoch_{}.pth' or
                'iter_{}.pth' when None.
            save_optimizer: keep what a resume needs besides the weights.
            meta: joins the checkpoint's. create_symlink: point ``latest.pth`` to the file.

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
        meta = {**self.meta, **self.train_loop.completed(), **self._batch(), 'boxdet_version': __version__,
                'time': time.asctime(), **(more or {})}
        checkpoint = dict(meta=meta, state_dict={k: v.cpu() for k, v in unwrap(self.model).state_dict().items()})
        if save_optimizer:
            checkpoint.update(optimizer=self.optimizer.state_dict(), random=randoms)
            if hasattr(self.train_loop.dataloader.sampler, 'state_dict'):
                checkpoint['sampler'] = self.train_loop.dataloader.sampler.state_dict()
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
        found = find_checkpoint(filename)
        checkpoint = load_checkpoint(found)
        report = load_weights(unwrap(self.model), checkpoint, str(filename))
        meta = checkpoint['meta']
        if 'optimizer' not in checkpoint or 'epoch' not in meta or 'iter' not in meta:
            raise CheckpointError(f'{filename} holds weights only, no optimizer and progress: use --load-from')
        if report.missing or report.mismatched:
            one_line = describe(report).replace('\n ', ';')
            raise CheckpointError(f'cannot resume: {one_line}')
        if 'online_state_dict' in checkpoint:  # of a training with averaged weights: those it goes on with
            unwrap(self.model).load_state_dict(checkpoint['online_state_dict'], strict=False)
        self._compare_classes(checkpoint, filename)
        self._compare_config(meta, filename)
        self._load_optimizer(checkpoint, filename)
        self._set_progress(checkpoint, filename)
        self._load_random_states(checkpoint)
        self.resumed_from = found.resolve()
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
        self._load_sampler(checkpoint, filename)
        now = self._batch()
        before = {key: meta.get(key, value) for key, value in now.items()}
        if before != now:
            self.logger.warning('%s was saved with %s, now there are %s: the order of images and the random numbers '
                                'cannot continue exactly; the epoch goes on at the same share of it', filename,
                                *(', '.join(f'{key} {value}' for key, value in one.items()) for one in (before, now)))
            self._rescale_progress(math.prod(before.values()) / math.prod(now.values()))

    def _batch(self) -> dict[str, int]:
        """What the images of one update are made of."""
        loop = self.train_loop
        return dict(world_size=self.world_size, samples_per_gpu=getattr(loop.dataloader, 'batch_size', None) or 1,
                    accumulation=loop.accumulation)

    def _rescale_progress(self, factor: float) -> None:
        """The same share of the epoch is ``factor`` times as many iterations now."""
        loop, sampler = self.train_loop, self.train_loop.dataloader.sampler
        loop.inner_iter = min(int(loop.inner_iter * factor), loop.iters_per_epoch)
        if loop.by_epoch:
            loop.iter = loop.epoch * loop.iters_per_epoch + loop.inner_iter
        if hasattr(sampler, 'consumed'):
            batch = self._batch()
            done = loop.inner_iter if loop.by_epoch else loop.iter
            sampler.consumed = done * batch['accumulation'] * batch['samples_per_gpu']

    def _load_sampler(self, checkpoint: Mapping, filename: str) -> None:
        sampler = self.train_loop.dataloader.sampler
        if 'sampler' in checkpoint and hasattr(sampler, 'load_state_dict'):
            sampler.load_state_dict(checkpoint['sampler'])
        elif self.inner_iter:
            raise CheckpointError(f'{filename} was saved within an epoch, and the sampler {type(sampler).__name__} '
                                  'cannot go on from there; resume from the end of an epoch')

    def _load_random_states(self, checkpoint: Mapping) -> None:
        states = checkpoint.get('random') or []
        if self.rank < len(states):
            set_random_states(states[self.rank])

    def _compare_config(self, meta: Mapping, filename: str) -> None:
        changed = differences(str(meta.get('config') or ''), str(self.meta.get('config') or ''))
        if changed:
            self.logger.info('the config differs from that of %s:\n%s', filename, '\n'.join(changed))

    def _compare_classes(self, checkpoint: Mapping, address: Any) -> None:
        note = compare_classes(checkpoint, self.meta.get('CLASSES'), str(address))
        if note:
            self.logger.warning(note)


# Of a full or broken disk: the user's to mend, and no fault of the program.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _check_workflow(workflow: Sequence, validation_loader: Any) -> None:
    modes = [mode for mode, _ in workflow]
    unknown = [mode for mode in modes if mode not in ('train', 'val')]
    if unknown or 'train' not in modes:
        raise ConfigError(f"workflow {list(workflow)} needs a ('train', n) and may have a ('val', n)")
    if 'val' in modes and validation_loader is None:
        raise ConfigError(f'workflow {list(workflow)} has a val phase, but there is no validation data')


def _accepted(method: Callable) -> frozenset[str] | None:
    """The keywords beyond ``runner`` that ``method`` takes; None for any."""
    names, open_ended = accepted_keywords(method)
    return None if open_ended else frozenset(names)


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
