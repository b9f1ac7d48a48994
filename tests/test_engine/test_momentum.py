"""momentum_config: mmcv 1.x's formulas, and the hook on optimizers."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from boxdet.engine.config import Config, check_config
from boxdet.engine.learning_rate import LrSchedule, Progress
from boxdet.engine.momentum import MomentumSchedule, MomentumUpdaterHook
from boxdet.errors import ConfigError


def values(total: int = 100, base: float = 0.9, **config) -> list[float]:
    schedule = MomentumSchedule(**config)
    return [schedule.rate(base, Progress(i, i // 10, total, total // 10, 10)) for i in range(total)]


def test_cyclic_falls_while_the_rate_rises():
    found = values(policy='cyclic', target_ratio=(0.85 / 0.95, 1), cyclic_times=2, step_ratio_up=0.4, base=0.95)
    assert found[0] == pytest.approx(0.95) and min(found) == pytest.approx(0.85)
    assert found.index(min(found)) == 20 and found[50] == pytest.approx(0.95)  # 40 % of a cycle of 50
    rates = LrSchedule(policy='cyclic', cyclic_times=2)
    assert max(range(50), key=lambda i: rates.rate(1., Progress(i, 0, 100, 1))) == 20


@pytest.mark.parametrize('three_phase', [False, True])
def test_one_cycle_is_that_of_torch(three_phase):
    found = values(policy='OneCycle', base_momentum=0.85, max_momentum=0.95, pct_start=0.3, three_phase=three_phase)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100, pct_start=0.3,
                                                 three_phase=three_phase)
    for i, value in enumerate(found):
        assert value == pytest.approx(optimizer.param_groups[0]['momentum']), i
        optimizer.step()
        if i < 99:
            torchs.step()


@pytest.mark.parametrize('config, at, expected', [
    (dict(policy='step', step=[2, 4]), 25, 0.45),                                     # gamma is 0.5
    (dict(policy='step', step=2, gamma=0.1, min_momentum=0.05), 60, 0.05),
    (dict(policy='CosineAnnealing', min_momentum_ratio=0.5), 50, 0.675),
    (dict(policy='LinearAnnealing', min_momentum=0.4, by_epoch=False), 50, 0.65),
    (dict(policy='fixed', warmup='constant', warmup_iters=10, warmup_ratio=0.9), 5, 1.0),
    (dict(policy='fixed', warmup='linear', warmup_iters=10, warmup_ratio=0.5), 0, 1.8),
    (dict(policy='fixed', warmup='exp', warmup_iters=10, warmup_ratio=0.25), 5, 1.8),
    (dict(policy='fixed', warmup='exp', warmup_iters=10, warmup_ratio=0.25), 10, 0.9),
    (dict(type='StepMomentumUpdaterHook', step=[1]), 10, 0.45)])
def test_policies(config, at, expected):
    assert values(**config)[at] == pytest.approx(expected)


@pytest.mark.parametrize('optimizer, read', [
    (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda group: group['momentum']),
    (lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.99)), lambda group: group['betas'][0])])
def test_hook_sets_momentum_or_the_first_beta_and_goes_on_after_a_resume(optimizer, read):
    made = optimizer([torch.nn.Parameter(torch.zeros(1))])
    runner = SimpleNamespace(optimizer=made, progress=Progress(0, 0, 10, 1, 10))
    for _ in range(2):  # the second hook is that of a resumed training: the momentum is no longer the first one
        hook = MomentumUpdaterHook(policy='LinearAnnealing', by_epoch=False, min_momentum=0.)
        hook.before_run(runner)
        runner.progress = Progress(5, 0, 10, 1, 10)
        hook.before_train_iter(runner)
        assert read(made.param_groups[0]) == pytest.approx(0.45)


def test_an_optimizer_without_momentum_is_told():
    runner = SimpleNamespace(optimizer=torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))]))
    with pytest.raises(ConfigError, match='Adagrad has neither momentum nor betas'):
        MomentumUpdaterHook(policy='fixed').before_run(runner)


@pytest.mark.parametrize('config, words', [
    (dict(policy='cylic'), "momentum_config.policy: 'cylic' is unknown; did you mean 'cyclic'"),
    (dict(policy='step', step=[8], min_lr=0.1), "momentum_config.min_lr: the policy 'step' takes no 'min_lr'"),
    (dict(policy='CosineAnnealing'), "either 'min_momentum' or 'min_momentum_ratio'"),
    (dict(policy='fixed', warmup='linear'), 'momentum_config: a warmup needs warmup_iters > 0')])
def test_what_cannot_be_is_told_before_the_training(config, words):
    with pytest.raises(ConfigError, match=words):
        check_config(Config(dict(momentum_config=config)))
    check_config(Config(dict(momentum_config=None)))
