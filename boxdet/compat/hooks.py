"""Hooks of mmcv 1.x and mmdetection 2.x for runners that a script feeds by itself (``compat.runners``)."""
from __future__ import annotations

import importlib
import time
from typing import Any

import torch
from torch import nn

from boxdet.compat.functions import reduce_mean
from boxdet.compat.mmcv1 import bare
from boxdet.engine import averaging
from boxdet.engine.distributed import get_dist_info
from boxdet.engine.hooks import Hook
from boxdet.registry import Registry

HOOKS_1X = Registry('hook')


class TimesHook(Hook):
    """Notes how long an iteration takes, its update included, and how long its data let it wait."""
    priority = 'LOW'

    def __init__(self) -> None:
        self._started = self._data_time = 0.

    def start(self, started: float, loaded: float) -> None:
        """An iteration whose data were asked for and there at these moments."""
        self._started, self._data_time = started, loaded - started

    def after_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # hooks are called with what they take
        """Before the log is written."""
        runner.log_buffer.update(dict(data_time=self._data_time, time=time.perf_counter() - self._started))


@HOOKS_1X.register_module()
class IterTimerHook(Hook):
    """1.x's name for what every runner does: iterations are timed."""


@HOOKS_1X.register_module()
class OptimizerHook(Hook):
    """Updates the weights by the gradients of ``outputs['loss']``.

    Args:
        grad_clip: ``dict(max_norm=, norm_type=)`` of torch's clip_grad_norm_, or None.
    """
    priority = 'ABOVE_NORMAL'

    def __init__(self, grad_clip: dict[str, Any] | None = None):
        self.grad_clip = grad_clip

    def clip_grads(self, params: Any) -> Any:
        """Clip the gradients of ``params``; their norm, or None where there are none."""
        own = [one for one in params if one.requires_grad and one.grad is not None]
        return nn.utils.clip_grad_norm_(own, **(self.grad_clip or {})) if own else None

    def after_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # hooks are called with what they take
        """Backward, clip, step."""
        runner.optimizer.zero_grad()
        runner.outputs['loss'].backward()
        norm = self.clip_grads(runner.model.parameters()) if self.grad_clip is not None else None
        if norm is not None:
            runner.log_buffer.update(dict(grad_norm=float(norm)), runner.outputs.get('num_samples', 1))
        runner.optimizer.step()


@HOOKS_1X.register_module()
class SetEpochInfoHook(Hook):
    """Tells the model which epoch begins: ``set_epoch(epoch)``."""

    def before_train_epoch(self, runner: Any) -> None:
        """Counted from 0."""
        model: Any = bare(runner.model)
        model.set_epoch(runner.epoch)


@HOOKS_1X.register_module()
class CheckInvalidLossHook(Hook):
    """Ends the training at a loss that is NaN or infinite.

    Args:
        interval: iterations between two looks.
    """

    def __init__(self, interval: int = 50):
        self.interval = interval

    def after_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # hooks are called with what they take
        """Look at ``outputs['loss']``."""
        if self.every_n_iters(runner, self.interval) and not torch.isfinite(runner.outputs['loss']).all():
            raise AssertionError(f'the loss is not finite at iteration {runner.iter + 1}')


@HOOKS_1X.register_module()
class SyncNormHook(Hook):
    """Gives all ranks the mean of their normalization layers' weights and statistics.

    Args:
        num_last_epochs: in so many epochs at the end after each of them.
        interval: epochs between two exchanges before.
    """

    def __init__(self, num_last_epochs: int = 15, interval: int = 1):
        self.num_last_epochs, self.interval = num_last_epochs, interval

    def before_train_epoch(self, runner: Any) -> None:
        """Where the last epochs begin."""
        if runner.epoch + 1 == runner.max_epochs - self.num_last_epochs:
            self.interval = 1

    def after_train_epoch(self, runner: Any) -> None:
        """Exchange, where it is time and there are others."""
        if self.every_n_epochs(runner, self.interval) and get_dist_info()[1] > 1:
            self.exchange(bare(runner.model))

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Put the means over the ranks into the layers."""
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                for value in module.state_dict(keep_vars=True).values():
                    if value.is_floating_point():
                        value.copy_(reduce_mean(value.detach()))


@HOOKS_1X.register_module()
class MemoryProfilerHook(Hook):
    """Logs the memory of the machine and of this process; needs psutil and memory_profiler.

    Args:
        interval: iterations between entries.

    Raises:
        ImportError: one of them is not installed.
    """

    def __init__(self, interval: int = 50):
        self.interval = interval
        try:
            self._system = importlib.import_module('psutil')
            self._usage = importlib.import_module('memory_profiler').memory_usage
        except ImportError as error:
            raise ImportError('MemoryProfilerHook needs psutil and memory_profiler: '
                              f'pip install {error.name}') from error

    def after_iter(self, runner: Any) -> None:
        """Log, where it is time; in MB."""
        if self.every_n_iters(runner, self.interval):
            memory, swap, unit = self._system.virtual_memory(), self._system.swap_memory(), 2 ** 20
            runner.logger.info('Memory information available_memory: %d MB, used_memory: %d MB, memory_utilization: '
                               '%s %%, available_swap_memory: %d MB, used_swap_memory: %d MB, swap_memory_utilization: '
                               '%s %%, current_process_memory: %d MB', round(memory.available / unit),
                               round(memory.used / unit), memory.percent, round((swap.total - swap.used) / unit),
                               round(swap.used / unit), swap.percent, round(self._usage()[0]))


class _AverageInBuffers(Hook):
    """2.x's place for averaged weights: buffers ``ema_*`` of the model.

    After an epoch they change places with the weights, so that the average is evaluated and saved, and before the next
    one again. (In a config ``custom_hooks=[dict(type='ExpMomentumEMAHook')]`` keeps the names of the plain model.)
    """
    priority = 49
    rule: type[averaging._Averaging]

    def __init__(self, resume_from: str | None = None, **options: Any):
        self._rule = self.rule(**options)
        self.momentum, self.interval = self._rule.momentum, self._rule.interval
        self.resume_from = resume_from
        self._names: dict[str, str] = {}

    def _pairs(self, runner: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        state = bare(runner.model).state_dict()
        return [(state[average], state[name]) for name, average in self._names.items()]

    def before_run(self, runner: Any) -> None:
        """Make the buffers, and go on from a checkpoint that has them."""
        model = bare(runner.model)
        state = dict(model.named_parameters()) if self._rule.skip_buffers else model.state_dict()
        for name, value in state.items():
            if not name.startswith('ema_'):
                self._names[name] = f"ema_{name.replace('.', '_')}"
                model.register_buffer(self._names[name], value.detach().clone())
        if self.resume_from is not None:
            runner.resume(self.resume_from)

    @torch.no_grad()
    def after_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # hooks are called with what they take
        """Move the average."""
        if not self.every_n_iters(runner, self.interval):
            return
        momentum = self._rule.rate(runner.iter)
        for average, value in self._pairs(runner):
            if value.is_floating_point():
                average.lerp_(value, momentum)
            else:
                average.copy_(value)

    @torch.no_grad()
    def _exchange(self, runner: Any) -> None:
        for average, value in self._pairs(runner):
            kept = value.clone()
            value.copy_(average)
            average.copy_(kept)

    def before_train_epoch(self, runner: Any) -> None:
        """The weights that the optimizer moves."""
        self._exchange(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """The average."""
        self._exchange(runner)


class ExpMomentumEMAHook(_AverageInBuffers):
    """``m = (1 - momentum) * exp(-(1 + i) / total_iter) + momentum`` in iteration i."""
    rule = averaging.ExpMomentumEMAHook

    def __init__(self, total_iter: int = 2000, **options: Any):
        super().__init__(total_iter=total_iter, **options)


class LinearMomentumEMAHook(_AverageInBuffers):
    """``m = min(momentum ** interval, (1 + i) / (warm_up + i))`` in iteration i."""
    rule = averaging.LinearMomentumEMAHook

    def __init__(self, warm_up: int = 100, **options: Any):
        super().__init__(warm_up=warm_up, **options)


for _hook in (ExpMomentumEMAHook, LinearMomentumEMAHook):
    HOOKS_1X.register_module(module=_hook)
