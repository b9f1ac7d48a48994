"""EMA hooks: 2.x's formulas, the average evaluated and saved, a resume that is bit for bit."""
import math

import pytest
import torch
from mmengine.hooks import Hook
from toy_training import same, toy_loader, toy_runner, weights

from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.averaging import EMAHook, ExpMomentumEMAHook, LinearMomentumEMAHook
from boxdet.engine.hooks import CheckpointHook, EvaluationHook
from boxdet.errors import ConfigError
from boxdet.registry import HOOKS


class Keep(Hook):
    """Every iteration's weights."""
    priority = 'VERY_HIGH'

    def __init__(self):
        self.seen = []

    def before_run(self, runner):
        self.seen.append(weights(runner))

    def after_train_iter(self, runner):
        self.seen.append(weights(runner))


@pytest.mark.parametrize('hook, rates', [
    (dict(type='EMAHook', momentum=0.5, warm_up=4), lambda i: min(0.5, (1 + i) / (4 + i))),
    (dict(type='LinearMomentumEMAHook', momentum=0.6, interval=2, warm_up=4), lambda i: min(0.36, (1 + i) / (4 + i))),
    (dict(type='ExpMomentumEMAHook', momentum=0.1, total_iter=3), lambda i: 0.9 * math.exp(-(1 + i) / 3) + 0.1),
    (dict(type='ExpMomentumEMAHook', momentum=.1, skip_buffers=True), lambda i: .9 * math.exp(-(1 + i) / 2000) + .1)])
def test_the_average_is_2x_s(tmp_path, hook, rates):
    keep, average = Keep(), HOOKS.build(hook)
    runner = toy_runner(tmp_path, 2, hooks=[keep, average])
    runner.train()
    expected = {name: value.double() for name, value in keep.seen[0].items()}
    for i, now in enumerate(keep.seen[1:]):
        if (i + 1) % hook.get('interval', 1) == 0:
            for name, value in now.items():
                m = rates(i) if value.is_floating_point() else 1
                expected[name] = (1 - m) * expected[name] + m * value.double()
    found, last = weights(runner), keep.seen[-1]  # the training leaves the average behind
    parameters = dict(runner.model.named_parameters())
    for name, value in found.items():
        if name in parameters or not (hook['type'] == 'EMAHook' or hook.get('skip_buffers')):
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, last[name])  # buffers are the model's own
    assert not same(found, last)


def test_the_average_is_evaluated_and_saved(tmp_path):
    seen = {}

    class Watch(Hook):
        priority = 'VERY_LOW'

        def after_train_iter(self, runner):
            seen.setdefault('online', []).append(weights(runner))

    def evaluate(dataset, results, logger=None):
        seen['evaluated'] = weights(runner)
        return dict(bbox_mAP=0.5)
    hooks = [ExpMomentumEMAHook(momentum=0.1, total_iter=2), CheckpointHook(interval=1), Watch(),
             EvaluationHook(None, toy_loader(5, shuffle=False), evaluate, progress=False, save_best='auto')]
    runner = toy_runner(tmp_path, 1, hooks=hooks)
    runner.train()
    saved = load_checkpoint(tmp_path / 'epoch_1.pth')
    assert same(saved['state_dict'], seen['evaluated']) and same(saved['state_dict'], weights(runner))
    assert same(saved['online_state_dict'], seen['online'][-1]) and not same(saved['state_dict'], seen['online'][-1])
    assert same(load_checkpoint(tmp_path / 'best_bbox_mAP_epoch_1.pth')['state_dict'], saved['state_dict'])


def test_it_leaves_the_training_alone(tmp_path):
    keep, plain = Keep(), Keep()
    toy_runner(tmp_path / 'a', 2, hooks=[keep, EMAHook(momentum=0.5), CheckpointHook(interval=1)]).train()
    toy_runner(tmp_path / 'b', 2, hooks=[plain]).train()
    assert len(keep.seen) == 9 and all(same(a, b) for a, b in zip(keep.seen, plain.seen))


@pytest.mark.parametrize('hook', [EMAHook, LinearMomentumEMAHook, ExpMomentumEMAHook])
@pytest.mark.parametrize('at', [2, 4, 7])
def test_resume_equals_never_having_stopped(tmp_path, hook, at):
    def hooks():
        return [CheckpointHook(interval=1, by_epoch=False), hook(momentum=0.3, interval=3)]
    whole = toy_runner(tmp_path / 'whole', 3, hooks=hooks())
    whole.train()
    rest = toy_runner(tmp_path / 'rest', 3, hooks=hooks(), seed=99)
    rest.resume(str(tmp_path / 'whole' / f'iter_{at}.pth'))
    rest.train()
    assert same(weights(whole), weights(rest))
    one, other = (load_checkpoint(tmp_path / name / 'iter_12.pth') for name in ('whole', 'rest'))
    assert same(one['online_state_dict'], other['online_state_dict']) and same(one['state_dict'], other['state_dict'])


def test_checkpoints_with_and_without_an_average(tmp_path, caplog):
    toy_runner(tmp_path / 'plain', 1, hooks=[CheckpointHook(interval=1)]).train()
    toy_runner(tmp_path / 'ema', 1, hooks=[CheckpointHook(interval=1), EMAHook(momentum=0.3)]).train()
    late = toy_runner(tmp_path, 2, hooks=[EMAHook(momentum=0.3)])
    late.logger.propagate = True
    late.resume(str(tmp_path / 'plain' / 'epoch_1.pth'))
    assert 'holds no averaged weights' in caplog.text
    late.train()
    without = toy_runner(tmp_path, 2)
    without.resume(str(tmp_path / 'ema' / 'epoch_1.pth'))  # goes on with what the optimizer has moved
    assert same(weights(without), load_checkpoint(tmp_path / 'ema' / 'epoch_1.pth')['online_state_dict'] | {
        k: v for k, v in load_checkpoint(tmp_path / 'ema' / 'epoch_1.pth')['state_dict'].items()
        if k not in dict(without.model.named_parameters())})


@pytest.mark.parametrize('options', [dict(momentum=0), dict(momentum=1.), dict(interval=0), dict(resume_from='x.pth')])
def test_wrong_options(options):
    with pytest.raises(ConfigError, match='ExpMomentumEMAHook'):
        ExpMomentumEMAHook(**options)
    with pytest.raises(ConfigError, match="did you mean 'momentum'"):
        HOOKS.build(dict(type='EMAHook', momentun=0.1))
