"""Averaged weights: 2.x's EMA hooks.

The average is what is evaluated, what a checkpoint holds as its ``state_dict`` and what a training leaves behind; the
weights that the optimizer moves lie beside it (``online_state_dict``), so that a resume is exact. A checkpoint has the
names of the plain model, no ``ema_*`` entries as 2.x's.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from boxdet.engine.distributed import unwrap
from boxdet.engine.hook_stages import Hook
from boxdet.errors import ConfigError
from boxdet.registry import HOOKS


class _Averaging(Hook):
    """``average = (1 - m) * average + m * weights`` after every ``interval`` iterations, with m of ``rate``.

    Args:
        momentum: how much of the new weights the average takes; 0 < momentum < 1.
        interval: iterations between updates of the average.
        skip_buffers: average the parameters only; BN statistics are the model's own.
        resume_from: of 2.x's signature; ``--resume-from`` does it.
    """
    priority = 'ABOVE_NORMAL'  # before a checkpoint of the same iteration is written

    def __init__(self, momentum: float = 0.0002, interval: int = 1, skip_buffers: bool = False,
                 resume_from: str | None = None):
        name = type(self).__name__
        if not 0 < momentum < 1 or interval < 1:
            raise ConfigError(f'{name}: momentum {momentum} must lie between 0 and 1, and interval {interval} be 1 at '
                              'least')
        if resume_from is not None:
            raise ConfigError(f'{name}.resume_from: --resume-from {resume_from} goes on with its averaged weights, too')
        self.momentum, self.interval, self.skip_buffers = momentum, interval, skip_buffers
        self._average: dict[str, torch.Tensor] = {}

    def rate(self, iteration: int) -> float:
        """M after ``iteration`` completed iterations."""
        raise TypeError(f'{type(self).__name__} defines no rate()')

    def before_run(self, runner: Any) -> None:
        if not self._average:
            self._average = {name: value.clone() for name, value in self._weights(runner).items()}

    def after_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # hooks are called with what they take
        if (runner.iter + 1) % self.interval:
            return
        momentum, averages, weights = self.rate(runner.iter), [], []
        for name, value in self._weights(runner).items():
            if value.is_floating_point():
                averages.append(self._average[name])
                weights.append(value)
            else:
                self._average[name].copy_(value)
        torch._foreach_mul_(averages, 1 - momentum)  # one kernel for hundreds of tensors
        torch._foreach_add_(averages, weights, alpha=momentum)

    def before_val(self, runner: Any) -> None:
        self._exchange(runner)

    def after_val(self, runner: Any) -> None:
        self._exchange(runner)

    def after_run(self, runner: Any) -> None:
        self._exchange(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        state = checkpoint['state_dict']
        if 'optimizer' in checkpoint:
            checkpoint['online_state_dict'] = {name: state[name] for name in self._average}
        state.update({name: value.cpu() for name, value in self._average.items()})

    def after_load_checkpoint(self, runner: Any, checkpoint: Mapping) -> None:
        if 'online_state_dict' not in checkpoint:
            runner.logger.warning('%s: the checkpoint holds no averaged weights; the average starts from its weights',
                                  type(self).__name__)
            return
        averaged = checkpoint['state_dict']
        self._average = {name: averaged[name].to(value.device, copy=True)
                         for name, value in self._weights(runner).items()}

    def _weights(self, runner: Any) -> dict[str, torch.Tensor]:
        model = unwrap(runner.model)
        if self.skip_buffers:
            return {name: value.detach() for name, value in model.named_parameters()}
        return model.state_dict()

    @torch.no_grad()
    def _exchange(self, runner: Any) -> None:
        for name, value in self._weights(runner).items():
            kept = value.clone()
            value.copy_(self._average[name])
            self._average[name].copy_(kept)


@HOOKS.register_module()
class EMAHook(_Averaging):
    """mmcv 1.x's: parameters only, ``m = min(momentum ** interval, (1 + i) / (warm_up + i))`` in iteration i.

    Args: as in ``_Averaging``.
        warm_up: iterations in which m may be smaller.
    """

    def __init__(self, momentum: float = 0.0002, interval: int = 1, warm_up: int = 100, resume_from: str | None = None):
        super().__init__(momentum, interval, skip_buffers=True, resume_from=resume_from)
        self.warm_up = warm_up

    def rate(self, iteration: int) -> float:
        return _warmed_up(self.momentum ** self.interval, iteration, self.warm_up)


@HOOKS.register_module()
class LinearMomentumEMAHook(_Averaging):
    """mmdetection 2.x's: as ``EMAHook``, and buffers are averaged too.

    Args: as in ``_Averaging``.
        warm_up: iterations in which m may be smaller.
    """

    def __init__(self, momentum: float = 0.0002, interval: int = 1, warm_up: int = 100, skip_buffers: bool = False,
                 resume_from: str | None = None):
        super().__init__(momentum, interval, skip_buffers, resume_from)
        self.warm_up = warm_up

    def rate(self, iteration: int) -> float:
        return _warmed_up(self.momentum ** self.interval, iteration, self.warm_up)


@HOOKS.register_module()
class ExpMomentumEMAHook(_Averaging):
    """mmdetection 2.x's, YOLOX's schedule: ``m = (1 - momentum) * exp(-(1 + i) / total_iter) + momentum``.

    Args: as in ``_Averaging``.
        total_iter: how slowly m falls from 1 to ``momentum``.
    """

    def __init__(self, momentum: float = 0.0002, interval: int = 1, total_iter: int = 2000, skip_buffers: bool = False,
                 resume_from: str | None = None):
        super().__init__(momentum, interval, skip_buffers, resume_from)
        self.total_iter = total_iter

    def rate(self, iteration: int) -> float:
        return (1 - self.momentum) * math.exp(-(1 + iteration) / self.total_iter) + self.momentum


def _warmed_up(momentum: float, iteration: int, warm_up: int) -> float:
    return min(momentum, (1 + iteration) / (warm_up + iteration))
