"""Learning rates equal to 2.x's formulas, and to the numbers in its published logs."""
import math

import pytest
import torch
from torch import nn

from boxdet.engine.learning_rate import LrSchedule, Progress
from boxdet.errors import ConfigError

EPOCH = 7330  # iterations: COCO, 8 GPUs, batch 16


def rate(schedule, iteration, base=0.02, epochs=12, per_epoch=EPOCH):
    return schedule.rate(base, Progress(iteration, iteration // per_epoch, epochs * per_epoch, epochs, per_epoch))


@pytest.mark.parametrize('iteration, expected', [
    (0, 2e-5), (49, 1.978e-3), (99, 3.976e-3), (249, 9.970e-3), (499, 1.996e-2), (500, 0.02), (8 * EPOCH - 1, 0.02),
    (8 * EPOCH, 2e-3), (11 * EPOCH - 1, 2e-3), (11 * EPOCH, 2e-4), (12 * EPOCH - 1, 2e-4)])
def test_1x_schedule(iteration, expected):
    # The numbers that 2.x's published logs show at iterations 50, 100, ... (which is index 49, 99, ...).
    schedule = LrSchedule(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[8, 11])
    assert rate(schedule, iteration) == pytest.approx(expected, rel=6e-4)


def test_linear_warmup_is_exact():
    schedule = LrSchedule(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[8, 11])
    for i in range(500):
        k = (1 - i / 500) * (1 - 0.001)
        assert rate(schedule, i) == 0.02 * (1 - k)


@pytest.mark.parametrize('warmup, at_0, at_5', [('constant', 0.25, 0.25), ('linear', 0.25, 0.625), ('exp', 0.25, 0.5)])
def test_warmups(warmup, at_0, at_5):
    schedule = LrSchedule(policy='fixed', warmup=warmup, warmup_iters=10, warmup_ratio=0.25)
    assert rate(schedule, 0, base=1.) == pytest.approx(at_0)
    assert rate(schedule, 5, base=1.) == pytest.approx(at_5)
    assert rate(schedule, 10, base=1.) == 1.


def test_warmup_by_epoch():
    schedule = LrSchedule(policy='fixed', warmup='linear', warmup_iters=2, warmup_ratio=0.5, warmup_by_epoch=True)
    assert rate(schedule, 10, base=1., per_epoch=10) == pytest.approx(0.75)
    assert rate(schedule, 20, base=1., per_epoch=10) == 1.


@pytest.mark.parametrize('options, at, expected', [
    (dict(policy='step', step=3), 7, 0.01), (dict(policy='step', step=3, gamma=0.5), 7, 0.25),
    (dict(policy='step', step=[2, 4], min_lr=0.05), 7, 0.05),
    (dict(policy='exp', gamma=0.9), 3, 0.9 ** 3), (dict(policy='poly', power=2, min_lr=0.1), 5, 0.9 * 0.25 + 0.1),
    (dict(policy='inv', gamma=0.5, power=2), 4, 3 ** -2.), (dict(policy='inverse', gamma=0.5), 4, 1 / 3),
    (dict(policy='CosineAnnealing', min_lr=0.), 5, 0.5), (dict(policy='cosineannealing', min_lr_ratio=0.1), 5, 0.55),
    (dict(policy='CosineAnnealing', min_lr=0.), 2, 0.5 * (1 + math.cos(math.pi * 0.2))),
    (dict(policy='LinearAnnealing', min_lr=0.2), 5, 0.6),
    (dict(policy='FlatCosineAnnealing', start_percent=0.6, min_lr=0.), 5, 1.),
    (dict(policy='FlatCosineAnnealing', start_percent=0.6, min_lr=0.), 8, 0.5),
    (dict(policy='CosineRestart', periods=[4, 6], restart_weights=[1, 0.5], min_lr=0.), 2, 0.5),
    (dict(policy='CosineRestart', periods=[4, 6], restart_weights=[1, 0.5], min_lr=0.), 4, 0.5),
    (dict(type='StepLrUpdaterHook', step=[2]), 3, 0.1)])
def test_policies_by_epoch(options, at, expected):
    assert rate(LrSchedule(**options), at, base=1., epochs=10, per_epoch=1) == pytest.approx(expected)


def test_policies_by_iteration():
    schedule = LrSchedule(policy='step', by_epoch=False, step=[60000, 80000])
    assert [schedule.rate(0.02, Progress(i, 0, 90000, 13)) for i in (0, 59999, 60000, 80000)] == pytest.approx(
        [0.02, 0.02, 2e-3, 2e-4])


def test_cyclic():
    schedule = LrSchedule(policy='cyclic', target_ratio=(10, 1e-4), cyclic_times=2, step_ratio_up=0.4)
    rates = [schedule.rate(0.1, Progress(i, 0, 200, 1)) for i in range(200)]
    assert rates[0] == pytest.approx(0.1) and rates[20] == pytest.approx(0.55)
    assert rates[40] == pytest.approx(1.0) and max(rates) == pytest.approx(1.0)
    assert rates[99] < 1e-3 and rates[100:] == pytest.approx(rates[:100])


def test_one_cycle_equals_torch():
    schedule = LrSchedule(policy='OneCycle', max_lr=0.5, pct_start=0.3, div_factor=25, final_div_factor=1e4)
    base = schedule.base_rates([0.1])
    assert base == [0.02]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=100, cycle_momentum=False)
    for i in range(100):
        assert schedule.rate(base[0], Progress(i, 0, 100, 1)) == pytest.approx(optimizer.param_groups[0]['lr'])
        if i < 99:
            optimizer.step()
            theirs.step()


@pytest.mark.parametrize('options, message', [
    (dict(policy='stepp', step=3), "policy 'stepp' is unknown; did you mean 'step'"),
    (dict(policy='step', step=3, gama=0.1), "lr_config.gama: .* did you mean 'gamma'"),
    (dict(policy='step', step=3, warmup='liner', warmup_iters=5), "warmup 'liner' is unknown; did you mean 'linear'"),
    (dict(policy='step', step=3, warmup='linear'), 'warmup_iters > 0'),
    (dict(policy='step', step=3, warmup='linear', warmup_iters=5, warmup_ratio=2), 'warmup_ratio <= 1'),
    (dict(policy='step'), "'step' needs 'step'"), (dict(policy='CosineAnnealing'), "either 'min_lr' or 'min_lr_ratio'"),
    (dict(policy='CosineRestart', periods=[3], restart_weights=[1, 1], min_lr=0), 'one length')])
def test_wrong_schedules(options, message):
    with pytest.raises(ConfigError, match=message):
        LrSchedule(**options)
