"""Learning rates: mmdetection 2.x's ``lr_config`` as a pure function of the progress of the training.

Nothing has to be stored for a resume, and the rate of any iteration can be asked for. The formulas are 2.x's (mmcv
1.x), iteration for iteration.
"""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from boxdet.engine.chained_rates import ChainedRates
from boxdet.errors import ConfigError, nearest


@dataclass(frozen=True)
class Progress:
    """How far the training is: completed iterations and epochs, and what they will be at its end."""
    iter: int
    epoch: int
    max_iters: int
    max_epochs: int
    iters_per_epoch: int = 1


@dataclass(frozen=True)
class Clock:
    """Progress as one policy counts it, by epoch or by iteration."""
    count: int
    total: int


def _fixed(base: float, at: Clock) -> float:
    return base


def _step(base: float, at: Clock, step: int | Sequence[int], gamma: float = 0.1, min_lr: float | None = None) -> float:
    passed = at.count // step if isinstance(step, int) else next(
        (i for i, milestone in enumerate(step) if at.count < milestone), len(step))
    rate = base * gamma ** passed
    return rate if min_lr is None else max(rate, min_lr)


def _exp(base: float, at: Clock, gamma: float) -> float:
    return base * gamma ** at.count


def _poly(base: float, at: Clock, power: float = 1., min_lr: float = 0.) -> float:
    return (base - min_lr) * (1 - at.count / at.total) ** power + min_lr


def _inv(base: float, at: Clock, gamma: float, power: float = 1.) -> float:
    return base * (1 + gamma * at.count) ** (-power)


def _cosine(base: float, at: Clock, min_lr: float | None = None, min_lr_ratio: float | None = None) -> float:
    return _cos(base, _annealing_target(base, min_lr, min_lr_ratio), at.count / at.total)


def _linear_annealing(base: float, at: Clock, min_lr: float | None = None, min_lr_ratio: float | None = None) -> float:
    return base + (_annealing_target(base, min_lr, min_lr_ratio) - base) * at.count / at.total


def _flat_cosine(base: float, at: Clock, start_percent: float = 0.75, min_lr: float | None = None,
                 min_lr_ratio: float | None = None) -> float:
    start = round(at.total * start_percent)
    target = _annealing_target(base, min_lr, min_lr_ratio)
    return base if at.count < start else _cos(base, target, (at.count - start) / (at.total - start))


def _cosine_restart(base: float, at: Clock, periods: Sequence[int], restart_weights: Sequence[float] = (1,),
                    min_lr: float | None = None, min_lr_ratio: float | None = None) -> float:
    if len(periods) != len(restart_weights):
        raise ConfigError('lr_config: periods and restart_weights must be of one length')
    start = 0
    for period, weight in zip(periods, restart_weights):
        if at.count < start + period:
            return _cos(base, _annealing_target(base, min_lr, min_lr_ratio), (at.count - start) / period, weight)
        start += period
    raise ConfigError(f'lr_config.periods sum up to {start}, the training is longer')


def _cyclic(base: float, at: Clock, target_ratio: float | Sequence[float] = (10, 1e-4), cyclic_times: int = 1,
            step_ratio_up: float = 0.4, anneal_strategy: str = 'cos', gamma: float = 1) -> float:
    """Smith 2017: up to ``target_ratio[0]`` times the rate, down to ``target_ratio[1]``, ``cyclic_times`` times."""
    ratios = (target_ratio, target_ratio / 1e5) if isinstance(target_ratio, (int, float)) else (*target_ratio, )
    high, low = ratios if len(ratios) == 2 else (ratios[0], ratios[0] / 1e5)
    length = at.total // cyclic_times
    top, position, scale = int(step_ratio_up * length), at.count % length, gamma ** (at.count // length)
    peak = 1 - scale + high * scale
    anneal = annealing(anneal_strategy)
    if position < top:
        return anneal(base, base * peak, position / top)
    return anneal(base * peak, base * low, (position - top) / (length - top))


def _one_cycle(base: float, at: Clock, max_lr: float | Sequence[float], total_steps: int | None = None,
               pct_start: float = 0.3, anneal_strategy: str = 'cos', div_factor: float = 25,
               final_div_factor: float = 1e4, three_phase: bool = False) -> float:
    """Smith and Topin 2018; ``base`` is max_lr / div_factor, see ``LrSchedule.base_rates``."""
    total = at.total if total_steps is None else total_steps
    if three_phase:
        phases = [(pct_start * total - 1, 1., div_factor), (2 * pct_start * total - 2, div_factor, 1.),
                  (total - 1, 1., 1 / final_div_factor)]
    else:
        phases = [(pct_start * total - 1, 1., div_factor), (total - 1, div_factor, 1 / final_div_factor)]
    start, anneal = 0., annealing(anneal_strategy)
    for end, low, high in phases:
        if at.count <= end:
            return anneal(base * low, base * high, (at.count - start) / (end - start))
        start = end
    raise ConfigError(f'lr_config.total_steps is {total}, the training is longer')


def _chained(base: float, at: Clock, schedulers: Sequence[Mapping[str, Any]], batches_per_update: int = 1) -> float:
    """Mmdetection 3.x's ``param_scheduler``: ``ChainedRates`` works it out."""
    return base


def _cos(start: float, end: float, factor: float, weight: float = 1.) -> float:
    return end + 0.5 * weight * (start - end) * (math.cos(math.pi * factor) + 1)


def annealing(name: str) -> Callable[[float, float, float], float]:
    """From one value to another, by a part of the way from 0 to 1: 'cos' or 'linear'."""
    if name not in ('cos', 'linear'):
        raise ConfigError(f"anneal_strategy '{name}' is neither 'cos' nor 'linear'")
    return _cos if name == 'cos' else lambda start, end, factor: (end - start) * factor + start


def _annealing_target(base: float, min_lr: float | None, min_lr_ratio: float | None) -> float:
    if min_lr is not None and min_lr_ratio is None:
        return min_lr
    if min_lr_ratio is not None and min_lr is None:
        return base * min_lr_ratio
    raise ConfigError("lr_config: an annealing policy takes either 'min_lr' or 'min_lr_ratio'")


POLICIES: dict[str, Callable[..., float]] = {
    'fixed': _fixed, 'step': _step, 'exp': _exp, 'poly': _poly, 'inv': _inv, 'inverse': _inv,
    'CosineAnnealing': _cosine, 'LinearAnnealing': _linear_annealing, 'FlatCosineAnnealing': _flat_cosine,
    'CosineRestart': _cosine_restart, 'cyclic': _cyclic, 'OneCycle': _one_cycle, 'param_scheduler': _chained}
_WARMUPS = ('constant', 'linear', 'exp')


class LrSchedule:
    """2.x's ``lr_config``: a policy and a warmup.

    Args:
        policy: one of ``POLICIES``; 2.x's ``type='StepLrUpdaterHook'`` is understood too.
        by_epoch: the policy counts epochs, else iterations (cyclic and OneCycle always do).
        warmup: None, 'constant', 'linear' or 'exp', over ``warmup_iters`` iterations (epochs with
            ``warmup_by_epoch``), from ``warmup_ratio`` times the rate.
        **options: the policy's own: step, gamma, min_lr, power, …

    Raises:
        ConfigError: an unknown policy, warmup or option, or a value out of range.
    """

    section, hook = 'lr_config', 'LrUpdaterHook'
    policies: ClassVar[Mapping[str, Callable[..., float]]] = POLICIES

    def __init__(self, policy: str | None = None, by_epoch: bool = True, warmup: str | None = None,
                 warmup_iters: int = 0, warmup_ratio: float = 0.1, warmup_by_epoch: bool = False,
                 type: str | None = None, **options: Any):
        name = policy or (type or 'fixed').removesuffix(self.hook)
        by_lower = {known.lower(): known for known in self.policies}
        if name.lower() not in by_lower:
            raise ConfigError(f"{self.section}.policy '{name}' is unknown{nearest(name, self.policies)}")
        self.policy = by_lower[name.lower()]
        self._rate = self.policies[self.policy]
        self._check_options(options)
        if 'step' in options:
            _check_steps(self.section, options['step'])
        if warmup is not None:
            _check_warmup(self.section, warmup, warmup_iters, warmup_ratio)
        self.by_epoch = by_epoch and self.policy not in ('cyclic', 'OneCycle')
        self.warmup, self.warmup_iters, self.warmup_ratio = warmup, warmup_iters, warmup_ratio
        self.warmup_by_epoch = warmup_by_epoch
        self.options = options
        self._chain = ChainedRates(**options) if self._rate is _chained else None
        if self._chain is not None and warmup is not None:
            raise ConfigError("lr_config: the policy 'param_scheduler' has its warmup among its schedulers")
        self.rate(1., Progress(0, 0, 10 ** 9, 10 ** 9))  # a missing or contradictory option shows now

    def _check_options(self, options: dict[str, Any]) -> None:
        parameters = list(inspect.signature(self._rate).parameters.values())[2:]
        known = [p.name for p in parameters]
        common = ['policy', 'by_epoch', 'warmup', 'warmup_iters', 'warmup_ratio', 'warmup_by_epoch']
        for key in options:
            if key not in known:
                raise ConfigError(f"{self.section}.{key}: the policy '{self.policy}' takes no '{key}'"
                                  f'{nearest(key, known + common)}')
        absent = [p.name for p in parameters if p.default is p.empty and p.name not in options]
        if absent:
            raise ConfigError(f"{self.section}: the policy '{self.policy}' needs '{absent[0]}'")

    def base_rates(self, rates: Sequence[float]) -> list[float]:
        """The rates that the policy starts from, given the optimizer's: OneCycle's follow from ``max_lr``."""
        if self._rate is not _one_cycle:
            return list(rates)
        peak, div = self.options['max_lr'], self.options.get('div_factor', 25)
        peaks = list(peak) if isinstance(peak, Sequence) else [peak] * len(rates)
        if len(peaks) != len(rates):
            raise ConfigError(f'lr_config.max_lr has {len(peaks)} values for {len(rates)} parameter groups')
        return [p / div for p in peaks]

    def rate(self, base: float, progress: Progress) -> float:
        """The learning rate of the iteration that comes next, for a group whose initial rate is ``base``."""
        if self._chain is not None:
            return self._chain.rate(base, progress)
        clock = (Clock(progress.epoch, progress.max_epochs) if self.by_epoch
                 else Clock(progress.iter, progress.max_iters))
        regular = self._rate(base, clock, **self.options)
        length = self.warmup_iters * (progress.iters_per_epoch if self.warmup_by_epoch else 1)
        if self.warmup is None or progress.iter >= length:
            return regular
        return self.warmed_up(regular, self._warmup_factor(progress.iter / length))

    def warmed_up(self, regular: float, factor: float) -> float:
        """The value while the warmup lasts; ``factor`` ends at 1."""
        return regular * factor

    def _warmup_factor(self, passed: float) -> float:
        if self.warmup == 'constant':
            return self.warmup_ratio
        if self.warmup == 'linear':
            return 1 - (1 - passed) * (1 - self.warmup_ratio)
        return self.warmup_ratio ** (1 - passed)


def _check_steps(section: str, step: Any) -> None:
    steps = [step] if isinstance(step, int) else step
    if not isinstance(steps, (list, tuple)) or not all(isinstance(one, int) and one > 0 for one in steps):
        raise ConfigError(f'{section}.step must be a whole number, 1 at least, or a list of them, not {step!r}')
    if list(steps) != sorted(steps):
        raise ConfigError(f'{section}.step must rise, as in {sorted(steps)}, not {list(steps)}')


def _check_warmup(section: str, warmup: str, iters: int, ratio: float) -> None:
    if warmup not in _WARMUPS:
        raise ConfigError(f"{section}.warmup '{warmup}' is unknown{nearest(warmup, _WARMUPS)}; it is one of "
                          f'{", ".join(_WARMUPS)}')
    if not all(isinstance(one, (int, float)) for one in (iters, ratio)) or iters <= 0 or not 0 < ratio <= 1:
        raise ConfigError(f'{section}: a warmup needs warmup_iters > 0 and 0 < warmup_ratio <= 1, not '
                          f'{iters!r} and {ratio!r}')
