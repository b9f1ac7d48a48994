"""Runners that a script feeds by itself, against loops written out; hooks of mmcv 1.x and mmdetection 2.x."""
import json
import logging
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from boxdet.compat import apis, hooks
from boxdet.compat.mmcv1 import MMDataParallel
from boxdet.compat.optimizers import LearningRateDecayOptimizerConstructor
from boxdet.compat.runners import EpochBasedRunner, IterBasedRunner, build_runner
from boxdet.engine.hooks import Hook
from boxdet.errors import ConfigError

DATA = torch.tensor([[1., 2], [3, -1], [0, 1], [2, 2], [-1, 1]])


class Model(nn.Module):
    def __init__(self, scale=1.):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(1)
        self.scale, self.began = scale, []
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.constant_(self.linear.bias, 0.1)

    def train_step(self, batch, optimizer, factor=1.):
        loss = self.linear(batch).square().mean() * self.scale * factor
        return dict(loss=loss, log_vars=dict(loss=loss.item()), num_samples=len(batch))

    val_step = train_step

    def set_epoch(self, epoch):
        self.began.append(epoch)


def make(folder, model=None, cls=EpochBasedRunner, **length):
    model = model or Model()
    return cls(model, None, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), str(folder),
               logging.getLogger('runner'), dict(seed=3), **length)


def test_a_training_equals_a_loop_written_out(tmp_path):
    runner = make(tmp_path, MMDataParallel(Model()))
    runner.register_training_hooks(
        dict(policy='step', step=[2]), dict(grad_clip=dict(max_norm=1.)), dict(interval=1),
        dict(interval=5, hooks=[dict(type='TextLoggerHook')]), timer_config=dict(type='IterTimerHook'),
        custom_hooks_config=[dict(type='SetEpochInfoHook', priority='LOW')])
    runner.run([DataLoader(DATA)], [('train', 1)], 3)
    plain = Model()
    optimizer, last = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), []
    for epoch in range(3):
        for row in DATA:
            optimizer.param_groups[0]['lr'] = 0.1 if epoch < 2 else 0.01
            loss = plain.train_step(row[None], None)['loss']
            last.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(plain.linear.parameters(), 1.)
            optimizer.step()
    assert torch.equal(runner.model.module.linear.weight, plain.linear.weight)
    assert runner.model.module.began == [0, 1, 2] and (runner.epoch, runner.iter, runner.inner_iter) == (3, 15, 0)
    assert (runner._max_epochs, runner.max_iters, runner.current_lr()) == (3, 15, [pytest.approx(0.01)])
    log = [json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()][1:]
    assert [row['epoch'] for row in log] == [1, 2, 3] and log[2]['lr'] == 0.01
    assert log[2]['loss'] == pytest.approx(sum(last[10:]) / 5, abs=1e-5)
    assert all(row['time'] >= row['data_time'] >= 0 and row['grad_norm'] > 0 for row in log)


def test_a_training_goes_on_from_its_checkpoint(tmp_path):
    whole = make(tmp_path / 'whole')
    for runner in (whole, make(tmp_path / 'first'), make(tmp_path / 'second')):
        runner.register_optimizer_hook(dict())
        runner.register_checkpoint_hook(dict(interval=1))
        if runner.work_dir.endswith('second'):
            runner.resume(str(tmp_path / 'first/latest.pth'))
            assert (runner.epoch, runner.iter, runner.inner_iter) == (1, 5, 0)
        runner.run([DataLoader(DATA)], [('train', 1)], 1 if runner.work_dir.endswith('first') else 2)
    last = torch.load(tmp_path / 'second/epoch_2.pth')
    assert not (tmp_path / 'second/epoch_1.pth').exists() and last['meta']['seed'] == 3
    assert torch.equal(last['state_dict']['linear.weight'], whole.model.linear.weight)
    assert (last['meta']['epoch'], last['meta']['iter']) == (2, 10)


class Stages(Hook):
    def __init__(self):
        self.seen = []

    def note(self, runner, name):
        self.seen.append((name, runner.mode, runner.epoch, runner.inner_iter))

    def before_run(self, runner):
        self.note(runner, 'run')

    def before_epoch(self, runner):
        self.note(runner, 'epoch')

    def after_iter(self, runner):
        assert runner.outputs['num_samples'] == 3 and runner.data_batch.shape == (3, 2)
        self.note(runner, 'iter')

    def after_val_epoch(self, runner, metrics):
        self.note(runner, round(metrics['loss'], 4))


def test_stages_of_training_and_validation(tmp_path):
    stages, rows = Stages(), DataLoader(DATA[:3], batch_size=3)
    runner = build_runner(dict(type='EpochBasedRunner', max_epochs=2),
                          dict(model=Model(), batch_processor=None, work_dir=str(tmp_path), logger=None, meta=None))
    runner.register_hook(stages)
    runner.run([rows, rows], [('train', 1), ('val', 1)], factor=2.)
    value = round(Model().train_step(DATA[:3], None, 2.)['loss'].item(), 4)
    assert stages.seen == [('run', 'train', 0, 0), *(
        row for done in (0, 1) for row in (('epoch', 'train', done, 0), ('iter', 'train', done, 0),
                                           ('epoch', 'val', done + 1, 0), ('iter', 'val', done + 1, 0),
                                           (value, 'val', done + 1, 1)))]
    with pytest.raises(RuntimeError, match='no optimizer'):
        runner.current_lr()


def test_iterations_and_methods_of_a_runner_of_ones_own(tmp_path):
    class Twice(IterBasedRunner):
        def run_iter(self, data_batch, train_mode, **kwargs):
            super().run_iter(data_batch * 2, train_mode, **kwargs)

    runner = make(tmp_path, cls=Twice, max_iters=7)
    runner.register_lr_hook(dict(policy='poly', min_lr=0.))
    runner.register_checkpoint_hook(dict(interval=3))
    runner.run([DataLoader(DATA)], [('train', 1)])
    assert runner.iter == 7 and sorted(path.name for path in tmp_path.glob('iter*')) == [
        f'iter_{n}.pth' for n in (3, 6, 7)]
    assert runner.outputs['loss'].item() == Model().train_step(DATA[1:2] * 2, None)['loss'].item()
    assert runner.current_lr() == [pytest.approx(0.1 / 7)]


@pytest.mark.parametrize('call, said', [
    (lambda runner, rows: runner.run([rows], [('train', 1)]), 'needs max_epochs'),
    (lambda runner, rows: runner.run([rows], [('train', 1), ('val', 1)], 1), 'a loader for each phase'),
    (lambda runner, rows: build_runner(dict(type='EpochBasedRunner', max_epochs=1, max_iters=1, model=runner.model)),
     'not both'),
    (lambda runner, rows: EpochBasedRunner(runner.model, optimizer=dict(a=runner.optimizer)), 'one optimizer'),
    (lambda runner, rows: EpochBasedRunner(runner.model, train_loader=rows), 'for the config derives from boxdet'),
    (lambda runner, rows: build_runner(dict(type='EpochBasedRuner')), "did you mean 'EpochBasedRunner'")])
def test_what_a_runner_refuses(call, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        call(make(tmp_path), DataLoader(DATA))


def test_averages_lie_in_buffers_and_change_places_with_the_weights(tmp_path):
    runner = make(tmp_path, max_epochs=1)
    runner.register_optimizer_hook(dict())
    runner.register_hook_from_cfg(dict(type='LinearMomentumEMAHook', momentum=0.25, warm_up=1, skip_buffers=True))
    runner.register_checkpoint_hook(dict(interval=1))
    runner.run([DataLoader(DATA)], [('train', 1)])
    plain, averages = make(tmp_path / 'plain', max_epochs=1), [torch.full((1, 2), 0.5)]
    plain.register_optimizer_hook(dict())

    class Average(Hook):
        priority = 'LOW'

        def after_train_iter(self, runner):
            averages.append(0.75 * averages[-1] + 0.25 * runner.model.linear.weight.detach())
    plain.register_hook(Average())
    plain.run([DataLoader(DATA)], [('train', 1)])
    state = torch.load(tmp_path / 'epoch_1.pth')['state_dict']
    assert torch.allclose(state['linear.weight'], averages[-1])
    assert torch.equal(state['ema_linear_weight'], plain.model.linear.weight)
    assert [name for name in state if 'ema' in name] == [f'ema_{part}_{kind}' for part in ('linear', 'norm')
                                                         for kind in ('weight', 'bias')]
    again = make(tmp_path / 'again')
    again.register_hook(hooks.LinearMomentumEMAHook(resume_from=str(tmp_path / 'epoch_1.pth'), skip_buffers=True))
    again.run([DataLoader(DATA)], [('train', 1)], 1)
    assert again.epoch == 1 and torch.equal(again.model.ema_linear_weight, state['ema_linear_weight'])


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    for scale in (float('nan'), float('inf')):
        runner = make(tmp_path, Model(scale))
        runner.register_hook_from_cfg(dict(type='CheckInvalidLossHook', interval=2))
        with pytest.raises(AssertionError, match='not finite at iteration 2'):
            runner.run([DataLoader(DATA)], [('train', 1)], 1)


def test_norms_are_exchanged_in_the_last_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, 'get_dist_info', lambda: (0, 2))
    monkeypatch.setattr(hooks, 'reduce_mean', lambda value: value + 1)
    runner = make(tmp_path)
    runner.register_hook_from_cfg(dict(type='SyncNormHook', num_last_epochs=2, interval=10))
    runner.run([DataLoader(DATA)], [('train', 1)], 4)
    assert runner.model.norm.running_mean.item() == 3  # after epochs 2, 3 and 4
    assert runner.model.norm.num_batches_tracked == 0 and runner.model.linear.weight[0, 0] == 0.5


def test_memory_is_told_where_its_packages_are(monkeypatch):
    modules = {'psutil': MagicMock(), 'memory_profiler': MagicMock()}
    modules['psutil'].virtual_memory.return_value = MagicMock(available=2 ** 20, used=3 * 2 ** 20, percent=75)
    modules['psutil'].swap_memory.return_value = MagicMock(total=2 ** 21, used=2 ** 20, percent=50)
    modules['memory_profiler'].memory_usage.return_value = [40.4]
    monkeypatch.setattr(hooks.importlib, 'import_module', modules.__getitem__)
    runner = MagicMock(iter=0)
    hooks.MemoryProfilerHook(1).after_iter(runner)
    assert runner.logger.info.call_args.args[1:] == (1, 3, 75, 1, 1, 50, 40)
    hooks.MemoryProfilerHook(2).after_iter(runner)
    assert runner.logger.info.call_count == 1

    def none(name):
        raise ImportError(name=name)
    monkeypatch.setattr(hooks.importlib, 'import_module', none)
    with pytest.raises(ImportError, match='pip install psutil'):
        hooks.MemoryProfilerHook()


@pytest.mark.parametrize('options, begins, epochs, evaluated', [
    (dict(), 0, 2, [1, 2]), (dict(interval=2), 0, 3, [2]), (dict(start=1, interval=2), 0, 3, [1, 3]),
    (dict(start=0), 0, 2, [0, 1, 2]), (dict(start=0, interval=2, dynamic_intervals=[(3, 1)]), 0, 4, [2, 3, 4]),
    (dict(start=1), 1, 3, [1, 2, 3]), (dict(start=2), 1, 3, [2, 3]),
    (dict(start=2, interval=3, by_epoch=False), 0, 2, [2, 5, 8])])
def test_when_an_eval_hook_evaluates(options, begins, epochs, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(apis, 'single_gpu_test', lambda model, loader, show: 'results')
    found, by_epoch, runner = [], options.get('by_epoch', True), make(tmp_path)

    class Evaluation(apis.EvalHook):
        def evaluate(self, runner, results):
            assert results == 'results' and not runner.model.training
            found.append((runner.epoch if by_epoch else runner.iter) + (runner.inner_iter > 0 or not by_epoch))
    runner.register_hook(Evaluation(DataLoader(DATA), **options))
    runner._epoch = begins
    runner.run([DataLoader(DATA)], [('train', 1)], epochs)
    assert found == evaluated and runner.model.training


@pytest.mark.parametrize('options, best', [(dict(save_best='auto'), 2), (dict(save_best='bbox_mAP', rule='less'), 3)])
def test_an_eval_hook_keeps_the_best_checkpoint(options, best, tmp_path, monkeypatch):
    monkeypatch.setattr(apis, 'single_gpu_test', lambda model, loader, show: [])
    values, runner = iter([0.2, 0.7, 0.1, 0.4]), make(tmp_path)

    class Rows(torch.utils.data.TensorDataset):
        def evaluate(self, results, logger):
            return dict(bbox_mAP=next(values))
    runner.register_hook(apis.EvalHook(DataLoader(Rows(DATA)), **options))
    runner.run([DataLoader(DATA)], [('train', 1)], 4)
    assert [path.name for path in tmp_path.glob('best*')] == [f'best_bbox_mAP_epoch_{best}.pth']
    assert runner.meta['hook_msgs'] == dict(best_score={2: 0.7, 3: 0.1}[best],
                                            best_ckpt=str(tmp_path / f'best_bbox_mAP_epoch_{best}.pth'))


def test_an_eval_hook_refuses():
    for options in (dict(save_best='auto', rule='most'), dict(save_best='beauty')):
        with pytest.raises(ConfigError, match="'greater' (n)?or 'less'"):
            apis.EvalHook(DataLoader(DATA), **options)
    with pytest.raises(TypeError, match='takes a DataLoader'):
        apis.EvalHook([DATA])
    for options in (dict(interval=-1), dict(start=-2)):
        with pytest.raises(ValueError, match='is not negative'):
            apis.EvalHook(DataLoader(DATA), **options)


def test_rates_fall_towards_the_stem():
    backbone = nn.Module()
    backbone.cls_token = nn.Parameter(torch.ones(1))
    backbone.downsample_layers = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(4))
    backbone.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(1, 1, 1)) for _ in range(4))
    detector = nn.Module()
    detector.backbone, detector.head = backbone, nn.Linear(1, 1, bias=False)
    optimizer = LearningRateDecayOptimizerConstructor(
        dict(type='AdamW', lr=0.5, weight_decay=0.05),
        dict(decay_rate=0.5, decay_type='stage_wise', num_layers=4))(MMDataParallel(detector))
    first, *_, last = optimizer.param_groups
    assert (first['lr_scale'], first['lr'], first['weight_decay'], len(first['params'])) == (1 / 32, 1 / 64, 0, 5)
    assert first['params'][0] is backbone.cls_token
    assert (last['lr_scale'], last['lr'], last['weight_decay']) == (1, 0.5, 0.05)
    assert sum(len(group['params']) for group in optimizer.param_groups) == 18
