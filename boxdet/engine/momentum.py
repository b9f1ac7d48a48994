"""Momentum that changes: mmdetection 2.x's ``momentum_config`` as a pure function of the progress of the training.

The formulas are mmcv 1.x's, iteration for iteration. Momentum is SGD's, or the first of Adam's betas.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from boxdet.engine.hook_stages import Hook
from boxdet.engine.learning_rate import POLICIES, Clock, LrSchedule, annealing
from boxdet.errors import ConfigError
from boxdet.registry import HOOKS


def _step(base: float, at: Clock, step: int | Sequence[int], gamma: float = 0.5,
          min_momentum: float | None = None) -> float:
    return POLICIES['step'](base, at, step, gamma, min_momentum)


def _annealed(policy: str) -> Any:
    def value(base: float, at: Clock, min_momentum: float | None = None,
              min_momentum_ratio: float | None = None) -> float:
        if (min_momentum is None) == (min_momentum_ratio is None):
            raise ConfigError(
                "momentum_config: an annealing policy takes either 'min_momentum' or 'min_momentum_ratio'")
        return POLICIES[policy](base, at, min_momentum, min_momentum_ratio)
    return value


def _cyclic(base: float, at: Clock, target_ratio: float | Sequence[float] = (0.85 / 0.95, 1), cyclic_times: int = 1,
            step_ratio_up: float = 0.4, anneal_strategy: str = 'cos', gamma: float = 1) -> float:
    return POLICIES['cyclic'](base, at, target_ratio, cyclic_times, step_ratio_up, anneal_strategy, gamma)


def _one_cycle(base: float, at: Clock, base_momentum: float = 0.85, max_momentum: float = 0.95,
               pct_start: float = 0.3, anneal_strategy: str = 'cos', three_phase: bool = False) -> float:
    """From the highest momentum to the lowest while the rate rises, and back (Smith and Topin 2018)."""
    phases = [(pct_start * at.total - 1, max_momentum, base_momentum)]
    if three_phase:
        phases += [(2 * pct_start * at.total - 2, base_momentum, max_momentum),
                   (at.total - 1, max_momentum, max_momentum)]
    else:
        phases += [(at.total - 1, base_momentum, max_momentum)]
    start, between = 0., annealing(anneal_strategy)
    for end, first, last in phases:
        if at.count <= end:
            return between(first, last, (at.count - start) / (end - start))
        start = end
    return phases[-1][2]


class MomentumSchedule(LrSchedule):
    """2.x's ``momentum_config``: a policy and a warmup, from which momentum comes down to its regular value.

    Args: as in ``LrSchedule``; the policies are 'fixed', 'step', 'CosineAnnealing', 'LinearAnnealing', 'cyclic' and
        'OneCycle', and ``warmup_ratio`` is 0.9 by default.
    """

    section, hook = 'momentum_config', 'MomentumUpdaterHook'
    policies: ClassVar[Mapping[str, Callable[..., float]]] = {
        'fixed': POLICIES['fixed'], 'step': _step, 'CosineAnnealing': _annealed('CosineAnnealing'),
        'LinearAnnealing': _annealed('LinearAnnealing'), 'cyclic': _cyclic, 'OneCycle': _one_cycle}

    def __init__(self, policy: str | None = None, by_epoch: bool = True, warmup: str | None = None,
                 warmup_iters: int = 0, warmup_ratio: float = 0.9, type: str | None = None, **options: Any):
        super().__init__(policy, by_epoch, warmup, warmup_iters, warmup_ratio, type=type, **options)

    def warmed_up(self, regular: float, factor: float) -> float:
        """The momentum while the warmup lasts; ``factor`` ends at 1."""
        return regular / factor


@HOOKS.register_module()
class MomentumUpdaterHook(Hook):
    """Sets every group's momentum before each iteration; keywords are ``MomentumSchedule``'s.

    Raises:
        ConfigError: at the start, where the optimizer has no momentum.
    """
    priority = 'HIGH'

    def __init__(self, **momentum_config: Any):
        self.schedule = MomentumSchedule(**momentum_config)
        self._base: list[float] = []

    def before_run(self, runner: Any) -> None:
        """Note each group's own momentum, that of the beginning where the training is resumed."""
        for group in runner.optimizer.param_groups:
            if 'momentum' not in group and 'betas' not in group:
                raise ConfigError(
                    f'momentum_config: {type(runner.optimizer).__name__} has neither momentum nor betas')
            group.setdefault('initial_momentum', _momentum(group))  # there already after a resume
        self._base = [group['initial_momentum'] for group in runner.optimizer.param_groups]

    def before_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # called with what it takes
        """Set the momentum of the iteration that begins."""
        for group, base in zip(runner.optimizer.param_groups, self._base):
            value = self.schedule.rate(base, runner.progress)
            if 'momentum' in group:
                group['momentum'] = value
            else:
                group['betas'] = (value, *group['betas'][1:])


def _momentum(group: Mapping[str, Any]) -> float:
    return group['momentum'] if 'momentum' in group else group['betas'][0]
