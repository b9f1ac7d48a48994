"""mmdetection 3.x's ``param_scheduler``: several schedules of one learning rate, one after and upon another.

Each schedule works from its ``begin`` to before its ``end``, counted in epochs or iterations, and changes the rate as
it finds it; so the rate is the outcome of all steps so far (mmengine 0.10, optim/scheduler). It still is a function of
the progress of the training, and nothing has to be stored for a resume.
"""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxdet.errors import ConfigError, nearest


@dataclass(frozen=True)
class _Span:
    """The steps of one schedule: ``length`` of them, the first at count ``begin``."""
    begin: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.begin


# Each takes the rate as it is, the rate before all schedules, the step from 0 and the span; then its own options.

def _constant(rate: float, base: float, step: int, span: _Span, factor: float = 1 / 3) -> float:
    if step == 0:
        return rate * factor
    return rate / factor if step == span.length - 1 else rate


def _linear(rate: float, base: float, step: int, span: _Span, start_factor: float = 1 / 3,
            end_factor: float = 1.) -> float:
    if step == 0:
        return rate * start_factor
    slope = (end_factor - start_factor) / (span.length - 1)
    return rate * (start_factor + slope * step) / (start_factor + slope * (step - 1))


def _multi_step(rate: float, base: float, step: int, span: _Span, milestones: Sequence[int],
                gamma: float = 0.1) -> float:
    return rate * gamma ** list(milestones).count(step)


def _step(rate: float, base: float, step: int, span: _Span, step_size: int, gamma: float = 0.1) -> float:
    return rate * gamma if step and step % step_size == 0 else rate


def _exponential(rate: float, base: float, step: int, span: _Span, gamma: float) -> float:
    return rate * gamma if step else rate


def _poly(rate: float, base: float, step: int, span: _Span, power: float = 1, eta_min: float = 0) -> float:
    return rate if step == 0 else (rate - eta_min) * (1 - 1 / (span.length - step)) ** power + eta_min


def _cosine(rate: float, base: float, step: int, span: _Span, T_max: int | None = None, eta_min: float | None = None,
            eta_min_ratio: float | None = None) -> float:
    low = (eta_min or 0.) if eta_min_ratio is None else base * eta_min_ratio
    period = T_max or span.length
    if step == 0:
        return rate
    if (step - 1 - period) % (2 * period) == 0:  # the lowest point, where the ratio below is 0 / 0
        return rate + (base - low) * (1 - math.cos(math.pi / period)) / 2
    ratio = (1 + math.cos(math.pi * step / period)) / (1 + math.cos(math.pi * (step - 1) / period))
    return ratio * (rate - low) + low


SCHEDULERS: dict[str, Callable[..., float]] = {
    'ConstantLR': _constant, 'CosineAnnealingLR': _cosine, 'ExponentialLR': _exponential, 'LinearLR': _linear,
    'MultiStepLR': _multi_step, 'PolyLR': _poly, 'StepLR': _step}
_NEVER = 10 ** 9  # where a schedule ends that names no end
_SHARED = ('type', 'begin', 'end', 'by_epoch', 'convert_to_iter_based')
_COUNTS = ('T_max', 'step_size')  # options that are counted as ``begin`` is


class _Schedule:
    """One entry of ``param_scheduler``.

    Raises:
        ConfigError: an unknown type or keyword, or an option that is missing.
    """

    def __init__(self, place: int, entry: Mapping[str, Any]):
        where = f'lr_config.schedulers.{place}'
        kind = entry.get('type')
        if kind not in SCHEDULERS:
            raise ConfigError(f"{where}.type '{kind}' is unknown{nearest(str(kind), SCHEDULERS)}")
        self.function = SCHEDULERS[kind]
        parameters = list(inspect.signature(self.function).parameters.values())[4:]
        known = [*(p.name for p in parameters), *_SHARED]
        for key in entry:
            if key not in known:
                raise ConfigError(f"{where}.{key}: {kind} takes no '{key}'{nearest(key, known)}")
        missing = [p.name for p in parameters if p.default is p.empty and p.name not in entry]
        if missing:
            raise ConfigError(f"{where}: {kind} needs '{missing[0]}'")
        self.begin, self.end = entry.get('begin', 0), entry.get('end', _NEVER)
        if not self.begin < self.end:
            raise ConfigError(f'{where}: it begins at {self.begin} and ends at {self.end}')
        self.by_epoch, self.converted = entry.get('by_epoch', True), entry.get('convert_to_iter_based', False)
        self.options = {key: value for key, value in entry.items() if key not in _SHARED}

    @property
    def counts_epochs(self) -> bool:
        return self.by_epoch and not self.converted

    def apply(self, rate: float, base: float, count: int, epoch_length: int) -> float:
        """The rate after ``count`` epochs or iterations, given the one before."""
        scale = epoch_length if self.converted else 1
        span = _Span(self.begin * scale, self.end * scale)
        if not span.begin <= count < span.end:
            return rate
        options = {key: value * scale if key in _COUNTS and value is not None else value
                   for key, value in self.options.items()}
        if 'milestones' in options:
            options['milestones'] = [milestone * scale for milestone in options['milestones']]
        return self.function(rate, base, count - span.begin, span, **options)


class ChainedRates:
    """The learning rate of a list of mmengine's schedulers.

    Args:
        schedulers: 3.x's ``param_scheduler``, in its order.
        batches_per_update: 3.x's ``accumulative_counts``: it counts batches, where boxdet counts updates.
    """

    def __init__(self, schedulers: Sequence[Mapping[str, Any]], batches_per_update: int = 1):
        self.schedules = [_Schedule(i, entry) for i, entry in enumerate(schedulers)]
        self.batches = batches_per_update
        self._reached: dict[float, tuple[int, int, int, float]] = {}  # base -> (iteration, epoch, epoch length, rate)

    def rate(self, base: float, progress: Any) -> float:
        """The rate of the iteration that comes next; ``progress`` is learning_rate.Progress."""
        length = progress.iters_per_epoch * self.batches
        target, epochs = progress.iter * self.batches, progress.epoch
        done = self._reached.get(base)
        if done is None or done[0] > target or done[1] > epochs or done[2] != length:
            rate = self._step(base, base, 0, length, of_epochs=None)
            done = (0, 0, length, rate)
        iteration, epoch, _, rate = done
        while iteration < target:
            iteration += 1
            rate = self._step(rate, base, iteration, length, of_epochs=False)
            if iteration % length == 0 and epoch < epochs:
                epoch += 1
                rate = self._step(rate, base, epoch, length, of_epochs=True)
        self._reached[base] = (iteration, epoch, length, rate)
        return rate

    def _step(self, rate: float, base: float, count: int, length: int, of_epochs: bool | None) -> float:
        for schedule in self.schedules:
            if of_epochs is None or schedule.counts_epochs == of_epochs:
                rate = schedule.apply(rate, base, count, length)
        return rate
