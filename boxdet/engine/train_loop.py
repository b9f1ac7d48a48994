"""The passes over the training data: batches, stages of the hooks, counting, and the workflow's validation losses.

An iteration is one update of the weights. With accumulation it takes several batches, so that max_iters, learning
rates, checkpoints and logs are counted as with the large batch; the last update of an epoch takes what is left.
Epochs and iterations count completed ones; inside ``after_train_iter`` and ``after_train_epoch`` the current one is not
counted yet, as in mmcv and mmengine. With max_iters there are no epochs to hooks: their ``before_epoch`` and
``after_epoch`` stand around the whole training, as in mmcv 1.x.
"""
from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from boxdet.engine.distributed import mean_over_ranks, unwrap
from boxdet.engine.environment import random_states, set_random_states
from boxdet.engine.loss_watch import LogBuffer, total_loss
from boxdet.errors import ConfigError


class TrainLoop:
    """Passes over the training loader until so many epochs or iterations are done.

    Args:
        runner: whose model, update step and hooks are used.
        loader: yields batches with ``.to(device)``; its sampler may have ``set_epoch``, and
            ``state_dict``/``load_state_dict`` to go on in the middle of an epoch.
        max_epochs, max_iters: exactly one is given.
        accumulation: batches of one iteration.
        validation_loader: for ``('val', n)`` phases of ``workflow``.
    """

    def __init__(self, runner: Any, loader: Any, max_epochs: int | None = None, max_iters: int | None = None,
                 workflow: Sequence[tuple[str, int]] = (('train', 1),), validation_loader: Any = None,
                 accumulation: int = 1):
        self.runner, self.dataloader = runner, loader
        if len(loader) == 0:
            raise ConfigError('the training loader is empty: fewer images than samples_per_gpu?')
        self.by_epoch = max_epochs is not None
        self.accumulation = accumulation
        self.iters_per_epoch = math.ceil(len(loader) / accumulation)
        if max_epochs is not None:
            self.max_epochs, self.max_iters = int(max_epochs), int(max_epochs) * self.iters_per_epoch
        elif max_iters is not None:
            self.max_epochs, self.max_iters = math.ceil(int(max_iters) / self.iters_per_epoch), int(max_iters)
        else:
            raise ConfigError('a training needs max_epochs or max_iters')
        self.workflow = [(mode, int(count)) for mode, count in workflow]
        self.validation_loader = validation_loader
        self.epoch = self.iter = self.inner_iter = 0
        self.validated = 0  # batches of the workflow's validation that are done
        self.stop_training = False
        self._batches: Iterator | None = None
        self._at_end_of_epoch = False
        self._in_iteration = 0  # 1 once the current iteration's update is made, before it is counted

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train, and no epoch whose end is still to be dealt with."""
        return self.stop_training or self.iter >= self.max_iters and not (self.by_epoch and self.inner_iter)

    def completed(self) -> dict[str, int]:
        """Epochs, iterations, and iterations of the epoch begun, that are done: also inside an ``after_`` stage.

        An epoch of which only the end is missing (its evaluation, its checkpoint) is not done: a resume deals with it.
        """
        inner, iterations = self.inner_iter + self._in_iteration, self.iter + self._in_iteration
        if inner == self.iters_per_epoch and (self._at_end_of_epoch or not self.by_epoch):
            return dict(epoch=self.epoch + 1, iter=iterations, inner_iter=0)
        return dict(epoch=self.epoch, iter=iterations, inner_iter=inner)

    def run(self) -> nn.Module:
        """Train to the end."""
        self.runner.call_hook('before_train')
        if not self.by_epoch:
            self.runner.call_hook('before_epoch')
        try:
            while not self.finished:
                for mode, count in self.workflow:
                    for _ in range(count):
                        if mode == 'train' and not self.finished:
                            self._train_epoch()
                        elif mode == 'val':
                            self._validate_losses()
        finally:
            self._batches = None  # ends the loader's processes, also after an error
        if not self.by_epoch:
            self.runner.call_hook('after_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _train_epoch(self) -> None:
        runner = self.runner
        runner.set_training()
        if self.by_epoch:
            _set_epoch(self.dataloader, self.epoch)
            runner.call_hook('before_train_epoch')
        # In a resumed epoch the sampler knows how much of it is done and yields the rest only.
        while self.inner_iter < self.iters_per_epoch and not self.finished:
            started = time.perf_counter()
            self._iteration(self._next_batches(), started)
        if self.by_epoch and self.inner_iter == self.iters_per_epoch:
            next(self._batches or iter(()), None)  # lets the loader see the end of the epoch
            self._batches = None
            runner.loss_watch.flush()
            self._at_end_of_epoch = True
            runner.call_hook('after_train_epoch')
            runner.log_buffer.clear_told()
        self._at_end_of_epoch = False
        self.epoch += 1
        self.inner_iter = 0

    def _next_batches(self) -> list[Any]:
        """The batches of the next iteration; at the end of an epoch there may be fewer."""
        left = len(self.dataloader) - self.inner_iter * self.accumulation
        count = min(self.accumulation, left) if self.by_epoch else self.accumulation
        return [self._next_batch(i) for i in range(count)]

    def _next_batch(self, place: int) -> Any:
        """The next batch, number ``place`` of its iteration.

        When training by iterations over a loader that ends, it may be the first one of another pass.
        """
        if self._batches is None:
            self._batches = iter(self.dataloader)
        batch = next(self._batches, None)
        if batch is None and not self.by_epoch:
            _set_epoch(self.dataloader, (self.iter * self.accumulation + place) // len(self.dataloader))
            self._batches = iter(self.dataloader)
            batch = next(self._batches, None)
        if batch is not None:
            return batch
        raise RuntimeError(f'the loader promised {len(self.dataloader)} batches an epoch and gave '
                           f'{self.inner_iter * self.accumulation + place}')

    def _iteration(self, batches: list[Any], started: float) -> None:
        runner = self.runner
        data_time = time.perf_counter() - started
        runner.data_batch = batches[-1]
        runner.call_hook('before_train_iter', batch_idx=self.inner_iter, data_batch=batches[-1])
        runner.outputs = runner.train_step(batches)
        self._in_iteration = 1
        runner.log_buffer.update(dict(data_time=data_time, time=time.perf_counter() - started))
        runner.call_hook('after_train_iter', batch_idx=self.inner_iter, data_batch=batches[-1], outputs=runner.outputs)
        runner.log_buffer.clear_told()
        runner.data_batch = None  # its memory is free while the next one is loaded
        self._in_iteration = 0
        self.iter += 1
        self.inner_iter += 1
        runner.stop_if_asked()

    @torch.no_grad()
    def _validate_losses(self) -> None:
        """The mean losses on the validation loader. Neither BN statistics nor the random numbers of training move."""
        runner, states = self.runner, random_states()
        runner.mode = 'val'
        buffer = LogBuffer()
        self.validated = 0
        runner.call_hook('before_val')
        runner.call_hook('before_val_epoch')
        model = unwrap(runner.model).eval()
        for batch in self.validation_loader:
            values = self._validate_batch(model, batch)
            buffer.update({name: float(value) for name, value in values.items()}, count=len(batch))
            self.validated += 1
        runner.data_batch = None
        set_random_states(states)
        runner.call_hook('after_val')
        runner.set_training()
        runner.report_metrics(mean_over_ranks(buffer.means_since()), self.epoch, self.iter, len(self.validation_loader))
        runner.mode = 'train'

    def _validate_batch(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """The losses on one batch, between its stages of the hooks."""
        runner = self.runner
        runner.data_batch = batch
        runner.call_hook('before_val_iter', batch_idx=self.validated, data_batch=batch)
        total, values = total_loss(model(batch.to(runner.device), mode='loss'))
        runner.outputs = dict(loss=total, log_vars=values, num_samples=len(batch))
        runner.call_hook('after_val_iter', batch_idx=self.validated, data_batch=batch, outputs=runner.outputs)
        return values


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell the sampler, also one inside a batch sampler, which shuffle comes."""
    holder: Any
    for holder in (loader, getattr(loader, 'sampler', None), getattr(loader, 'batch_sampler', None),
                   getattr(getattr(loader, 'batch_sampler', None), 'sampler', None)):
        if hasattr(holder, 'set_epoch'):
            holder.set_epoch(epoch)
            return
