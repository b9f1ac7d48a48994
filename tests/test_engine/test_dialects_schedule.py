"""mmdetection 3.x's param_scheduler: the learning rate of every iteration is that of mmengine's own schedulers."""
import math

import pytest
import torch
from mmengine.optim import scheduler as mmengine_schedulers

from boxdet.engine.dialects.mmdet3 import translate
from boxdet.engine.learning_rate import LrSchedule, Progress
from boxdet.errors import ConfigError

EPOCH, EPOCHS, BASE = 7, 12, 0.02


def rates_of_mmengine(entries, steps=EPOCH * EPOCHS, epoch=EPOCH):
    """As mmengine's Runner builds its schedulers and ParamSchedulerHook steps them."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=BASE)
    built = []
    for entry in entries:
        options = dict(entry)
        cls = getattr(mmengine_schedulers, options.pop('type'))
        if options.pop('convert_to_iter_based', False):
            built.append(cls.build_iter_from_epoch(optimizer, **options, epoch_length=epoch))
        else:
            built.append(cls(optimizer, **options))
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for one in built:
            if not one.by_epoch:
                one.step()
        if (step + 1) % epoch == 0:
            for one in built:
                if one.by_epoch:
                    one.step()
    return rates


def rates_of_translation(entries, steps=EPOCH * EPOCHS, epoch=EPOCH, by_epoch=True):
    loop = dict(by_epoch=True, max_epochs=EPOCHS) if by_epoch else dict(type='IterBasedTrainLoop', max_iters=steps)
    lr_config = translate(dict(param_scheduler=entries, train_cfg=loop)).value['lr_config']
    schedule = LrSchedule(**lr_config)
    base, = schedule.base_rates([BASE])
    return [schedule.rate(base, Progress(i, i // epoch, steps, EPOCHS, epoch)) for i in range(steps)], lr_config


WARMUP = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=20)
STEPS = dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)


@pytest.mark.parametrize('entries', [
    [WARMUP, STEPS],
    [STEPS],
    [STEPS, WARMUP],
    [dict(type='ConstantLR', factor=0.1, by_epoch=False, begin=0, end=9), STEPS],
    [WARMUP, dict(STEPS, milestones=[8, 14])],                       # a milestone that never comes
    [WARMUP, dict(STEPS, milestones=[5, 5, 9])],
    [dict(WARMUP, end_factor=0.5), STEPS],
    [dict(type='LinearLR', start_factor=0.01, begin=0, end=3, by_epoch=True, convert_to_iter_based=True),
     dict(type='CosineAnnealingLR', T_max=9, begin=3, end=12, eta_min_ratio=0.05, by_epoch=True,
          convert_to_iter_based=True)],
    [WARMUP, dict(type='CosineAnnealingLR', T_max=6, begin=6, end=12, eta_min=1e-4, by_epoch=True)],
    [dict(type='CosineAnnealingLR', T_max=12, by_epoch=True)],
    [dict(type='CosineAnnealingLR', T_max=20, eta_min=1e-5, by_epoch=False, begin=0, end=84)],  # down and up again
    [dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=84, by_epoch=False)],
    [WARMUP, dict(type='ExponentialLR', gamma=0.95, begin=20, end=60, by_epoch=False)],
    [WARMUP, dict(type='StepLR', step_size=3, gamma=0.5, by_epoch=True)],
    [dict(type='StepLR', step_size=2, by_epoch=True, convert_to_iter_based=True)],
    [dict(WARMUP, begin=5, end=9), dict(STEPS, begin=2)],            # milestones count from ``begin``
    [dict(type='LinearLR', start_factor=1.0, end_factor=0.2, by_epoch=True, begin=4, end=10)],
    [dict(WARMUP, start_factor=1 / 3), dict(type='CosineAnnealingLR', begin=0, by_epoch=True, eta_min_ratio=1e-3)],
    [dict(type='OneCycleLR', eta_max=0.1, total_steps=84, by_epoch=False)],
    [dict(type='OneCycleLR', eta_max=0.1, total_steps=84, by_epoch=False, three_phase=True, div_factor=10,
          anneal_strategy='linear')],
], ids=lambda entries: '+'.join(one['type'] for one in entries))
def test_every_rate_is_mmengines(entries):
    ours, _ = rates_of_translation(entries)
    assert ours == pytest.approx(rates_of_mmengine(entries), rel=1e-9, abs=1e-15)


def test_the_usual_schedule_is_2x_steps_after_a_warmup():
    assert rates_of_translation([WARMUP, STEPS])[1] == dict(
        policy='step', step=[8, 11], warmup='linear', warmup_iters=19, warmup_ratio=0.001)


def test_a_training_by_iterations():
    entries = [WARMUP, dict(STEPS, by_epoch=False, milestones=[40, 60], end=84)]
    ours, lr_config = rates_of_translation(entries, by_epoch=False)
    assert ours == pytest.approx(rates_of_mmengine(entries), rel=1e-12) and lr_config['by_epoch'] is False


def test_a_resume_asks_for_any_iteration_at_once():
    entries = [WARMUP, dict(type='CosineAnnealingLR', T_max=6, begin=6, end=12, eta_min=1e-4, by_epoch=True)]
    schedule = LrSchedule(**translate(dict(param_scheduler=entries)).value['lr_config'])
    expected = rates_of_mmengine(entries)
    for i in (50, 83, 3, 3, 0, 60):  # in any order
        assert schedule.rate(BASE, Progress(i, i // EPOCH, 84, EPOCHS, EPOCH)) == pytest.approx(expected[i], rel=1e-9)


def test_batches_that_make_one_update_are_3x_iterations():
    entries = [WARMUP, STEPS]
    wrapper = dict(type='OptimWrapper', accumulative_counts=2, optimizer=dict(type='SGD', lr=BASE))
    found = translate(dict(param_scheduler=entries, optim_wrapper=wrapper)).value
    schedule = LrSchedule(**found['lr_config'])
    expected = rates_of_mmengine(entries, steps=96, epoch=8)
    ours = [schedule.rate(BASE, Progress(i, i // 4, 48, 12, 4)) for i in range(48)]
    assert ours == pytest.approx(expected[::2], rel=1e-9)
    assert found['optimizer_config'] == dict(type='GradientCumulativeOptimizerHook', cumulative_iters=2, grad_clip=None)


@pytest.mark.parametrize('entries, message', [
    ([dict(type='ReduceOnPlateauLR')], r"param_scheduler\.0\.type: 'ReduceOnPlateauLR' is no schedule"),
    ([WARMUP, dict(type='CosineRestartLR', periods=[3])], r"param_scheduler\.1\.type: .*it has ConstantLR"),
    ([dict(type='OneCycleLR', eta_max=1, total_steps=9, by_epoch=True)], r'param_scheduler\.0\.by_epoch: True')])
def test_other_schedules_are_named(entries, message):
    with pytest.raises(ConfigError, match=message):
        translate(dict(param_scheduler=entries))


def test_epochs_in_a_training_by_iterations():
    with pytest.raises(ConfigError, match=r'param_scheduler\.0\.by_epoch: a training by iterations has no epochs'):
        translate(dict(param_scheduler=[STEPS], train_cfg=dict(type='IterBasedTrainLoop', max_iters=100)))


@pytest.mark.parametrize('entry, message', [
    (dict(type='LinearL', end=4), r"lr_config\.schedulers\.0\.type 'LinearL' is unknown; did you mean 'LinearLR'"),
    (dict(type='StepLR', step_sise=3), r"StepLR takes no 'step_sise'; did you mean 'step_size'"),
    (dict(type='ExponentialLR'), r"ExponentialLR needs 'gamma'"),
    (dict(type='ConstantLR', begin=5, end=5), 'it begins at 5 and ends at 5')])
def test_the_policy_checks_its_schedulers(entry, message):
    with pytest.raises(ConfigError, match=message):
        LrSchedule(policy='param_scheduler', schedulers=[entry])
    assert math.isfinite(LrSchedule(policy='param_scheduler', schedulers=[WARMUP]).rate(1., Progress(0, 0, 9, 3, 3)))
