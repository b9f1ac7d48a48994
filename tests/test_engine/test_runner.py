"""Training loops: epochs and iterations counted, a resume that is bit for bit, errors that name things."""
import errno
import os
import signal

import pytest
import torch
from mmengine.hooks import Hook
from toy_training import ToyDetector, same, toy_loader, toy_runner, weights

from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.engine.hooks import CheckpointHook, LrUpdaterHook
from boxdet.engine.interruption import Interrupted
from boxdet.engine.loss_watch import TrainingError
from boxdet.engine.schedule import freeze
from boxdet.errors import CheckpointError, ConfigError
from boxdet.registry import RUNNERS

# --- loops ---

class Recorder(Hook):
    """Notes every stage with the epoch and iteration that it saw."""

    def __init__(self):
        self.seen = []

    def before_train_epoch(self, runner):
        self.seen.append(('epoch', runner.epoch, runner.iter))

    def after_train_iter(self, runner):  # mmcv 1.x's signature
        self.seen.append(('iter', runner.epoch, runner.inner_iter, runner.iter))

    def after_train_epoch(self, runner):
        self.seen.append(('end', runner.epoch, runner.iter))


def test_epochs_are_counted(tmp_path):
    recorder = Recorder()
    runner = toy_runner(tmp_path, max_epochs=2, hooks=[recorder], loader=toy_loader(4))
    runner.train()
    assert recorder.seen == [('epoch', 0, 0), ('iter', 0, 0, 0), ('iter', 0, 1, 1), ('end', 0, 2),
                             ('epoch', 1, 2), ('iter', 1, 0, 2), ('iter', 1, 1, 3), ('end', 1, 4)]
    assert (runner.epoch, runner.iter, runner.max_epochs, runner.max_iters) == (2, 4, 2, 4)


def test_iterations_are_counted_over_epochs(tmp_path):
    recorder = Recorder()
    toy_runner(tmp_path, max_iters=5, hooks=[recorder], loader=toy_loader(4, runner_type='IterBasedRunner')).train()
    assert [stage[1:] for stage in recorder.seen] == [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (2, 0, 4)]


def test_iterations_over_a_loader_that_ends(tmp_path):
    recorder = Recorder()
    toy_runner(tmp_path, max_iters=5, hooks=[recorder], loader=toy_loader(4)).train()
    assert [stage[-1] for stage in recorder.seen] == [0, 1, 2, 3, 4]


def test_work_dir_holds_nothing_that_was_not_asked_for(tmp_path):
    toy_runner(tmp_path, max_epochs=1).train()
    assert list(tmp_path.iterdir()) == []


def test_hooks_run_by_priority(tmp_path):
    order = []

    def hook(name, level):
        class One(Hook):
            priority = level

            def before_run(self, runner):
                order.append(name)
        return One()
    hooks = [hook('low', 'LOW'), hook('high', 'HIGH'), hook('low again', 'LOW')]
    toy_runner(tmp_path, hooks=hooks).call_hook('before_run')
    assert order == ['high', 'low', 'low again']


def test_hooks_are_registered_as_in_mmcv(tmp_path):
    runner = toy_runner(tmp_path, hooks=[Recorder()])
    runner.register_hook(dict(type='CheckpointHook', interval=3, priority='VERY_HIGH'))
    runner.register_hook(dict(type='CheckpointHook', interval=4, priority='VERY_HIGH'), priority=100)
    runner.register_hook(Recorder(), 'ABOVE_NORMAL')
    assert [getattr(hook, 'interval', 0) for hook in runner.hooks] == [3, 0, 0, 4] and runner._hooks is runner.hooks
    with pytest.raises(ConfigError, match="Recorder: priority 'HIHG' is neither .*did you mean 'HIGH'"):
        runner.register_hook(Recorder(), 'HIHG')
    with pytest.raises(ConfigError, match='Recorder: priority 101 is neither'):
        runner.register_hook(Recorder(), 101)
    with pytest.raises(ConfigError, match=r'Recorder is a class: register an object of it, Recorder\('):
        runner.register_hook(Recorder)
    with pytest.raises(ConfigError, match='int is no hook'):
        runner.register_hook(3)
    assert len(runner.hooks) == 4


def test_a_hook_that_joins_within_the_training_is_heard(tmp_path):
    late = Recorder()

    class Joins(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                runner.register_hook(late)
    toy_runner(tmp_path, max_epochs=2, hooks=[Joins()], loader=toy_loader(4)).train()
    assert late.seen == [('iter', 1, 0, 2), ('iter', 1, 1, 3), ('end', 1, 4)]


def test_names_that_hooks_of_2x_read(tmp_path):
    class Reads(Hook):
        def after_train_iter(self, runner):
            assert (runner.epoch, runner.iter, runner.inner_iter) == (runner._epoch, runner._iter, runner._inner_iter)
            assert (runner.max_epochs, runner.max_iters) == (runner._max_epochs, runner._max_iters) == (2, 4)
            assert (runner.rank, runner.world_size, runner._rank, runner._world_size) == (0, 1, 0, 1)
            assert runner.work_dir == str(tmp_path / 'w') and runner.timestamp == '20200101_000000'
            assert runner.mode == 'train' and runner.by_epoch and runner.model_name == 'ToyDetector'
            assert runner.data_loader is runner.train_dataloader and len(runner.data_batch) == 2
            assert set(runner.outputs) == {'loss', 'log_vars', 'num_samples'} and runner.meta['CLASSES'] == ('a', 'b')
            assert runner.current_lr() == [0.1] and runner.current_momentum() == [0.9] and runner.seed == 0
            assert runner.optimizer is runner.optim_wrapper.optimizer and runner.log_buffer.output == {}
            runner.logger.debug('read')
            self.done = True
    hook = Reads()
    toy_runner(tmp_path / 'w', 2, hooks=[hook], loader=toy_loader(4)).train()
    assert hook.done


def test_an_error_inside_a_hook_keeps_its_kind(tmp_path):
    class Broken(Hook):
        def before_train_iter(self, runner, batch_idx):
            raise TypeError('inside')
    with pytest.raises(TypeError, match='^inside$'):
        toy_runner(tmp_path, hooks=[Broken()]).train()


def test_wrong_lengths_and_workflows(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'EpochBasedRunner'"):
        RUNNERS.get('EpochBaseRunner')
    with pytest.raises(ConfigError, match="needs a \\('train', n\\)"):
        toy_runner(tmp_path, workflow=[('val', 1)])
    with pytest.raises(ConfigError, match='no validation data'):
        toy_runner(tmp_path, workflow=[('train', 1), ('val', 1)])


def test_validation_losses_leave_the_training_alone(tmp_path):
    reported = []

    class Listen(Hook):
        def after_val_epoch(self, runner, metrics, epoch):
            reported.append((epoch, metrics))
    plain = toy_runner(tmp_path / 'a', max_epochs=2)
    plain.train()
    runner = toy_runner(tmp_path / 'b', max_epochs=2, hooks=[Listen()], workflow=[('train', 1), ('val', 1)],
                        validation_loader=toy_loader(5, shuffle=False))
    runner.train()
    assert same(weights(plain), weights(runner))  # BN statistics and dropout's random numbers included
    assert [epoch for epoch, _ in reported] == [1, 2]
    assert set(reported[0][1]) == {'loss_cls', 'loss_levels', 'acc', 'loss'}


# --- accumulation ---

class PlainToy(ToyDetector):
    """Without batch statistics and random numbers a large batch is the mean of its images."""

    def __init__(self):
        super().__init__(drop=0.)
        self.bn = torch.nn.Identity()


class Rates(Hook):
    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner):
        self.seen.append((runner.iter, runner.current_lr()[0]))


@pytest.mark.parametrize('length', [dict(max_epochs=2), dict(max_iters=7)])
@pytest.mark.parametrize('images, batch, accumulation', [(12, 1, 4), (12, 2, 2), (10, 1, 4), (11, 2, 3)])
def test_accumulation_equals_the_large_batch(tmp_path, images, batch, accumulation, length):
    if length == dict(max_iters=7) and images in (10, 11):
        pytest.skip('the two endless loaders cut the passes differently')

    def train(name, size, options):
        rates = Rates()
        hooks = [LrUpdaterHook(policy='step', step=[3, 5], by_epoch=False, warmup='linear', warmup_iters=3), rates,
                 CheckpointHook(interval=2, by_epoch=False)]
        runner = toy_runner(tmp_path / name, hooks=hooks, model=PlainToy(), optimizer_config=options,
                            loader=toy_loader(images, size, shuffle=False), **length)
        runner.train()
        return runner, rates.seen, sorted(p.name for p in (tmp_path / name).iterdir())
    torch.manual_seed(0)
    large, large_rates, large_files = train('large', batch * accumulation, dict(grad_clip=dict(max_norm=0.1)))
    torch.manual_seed(0)
    small, small_rates, small_files = train('small', batch, dict(grad_clip=dict(max_norm=0.1),
                                                                 cumulative_iters=accumulation))
    # Rates, lengths and checkpoints are counted in updates; only the sums are rounded in another order.
    assert large_rates == small_rates and large_files == small_files and large.iter == small.iter
    for name, value in weights(large).items():
        torch.testing.assert_close(value, weights(small)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('at', [1, 2, 3, 4, 5])
def test_resume_with_accumulation(tmp_path, by_epoch, at):
    length = dict(max_epochs=3) if by_epoch else dict(max_iters=7)

    def runner(name, **kwargs):  # 8 batches of one image: updates of 3, 3 and 2
        loader = toy_loader(8, 1, runner_type='EpochBasedRunner' if by_epoch else 'IterBasedRunner')
        return toy_runner(tmp_path / name, hooks=hooks(interval=1, by_epoch=False), loader=loader,
                          optimizer_config=dict(cumulative_iters=3), **length, **kwargs)
    whole = runner('whole')
    whole.train()
    rest = runner('rest', seed=99)
    rest.resume(str(tmp_path / 'whole' / f'iter_{at}.pth'))
    rest.train()
    assert whole.iter == (9 if by_epoch else 7) and same(weights(whole), weights(rest))


# --- precision ---

@pytest.mark.parametrize('fp16', [dict(dtype='bf16'), dict(dtype='float16'), dict(dtype='float16', loss_scale=512.)])
def test_resume_with_mixed_precision(tmp_path, fp16):
    whole = toy_runner(tmp_path / 'whole', 3, hooks=hooks(interval=1), fp16=fp16)
    whole.train()
    assert all(v.dtype is torch.float32 for v in weights(whole).values() if v.is_floating_point())
    rest = toy_runner(tmp_path / 'rest', 3, hooks=hooks(), fp16=fp16, seed=99)
    rest.resume(str(tmp_path / 'whole' / 'epoch_1.pth'))
    rest.train()
    assert same(weights(whole), weights(rest))
    if rest.optim_wrapper.scaler is not None:
        assert rest.optim_wrapper.scaler.state_dict() == whole.optim_wrapper.scaler.state_dict()


# --- frozen parts ---

def test_frozen_modules_stand_still(tmp_path):
    model = ToyDetector()
    frozen = freeze(model, ['conv', 'bn'])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    runner = toy_runner(tmp_path, 1, model=model, frozen=frozen)
    runner.train()
    moved = {name for name, value in weights(runner).items() if not torch.equal(value, before[name])}
    assert moved == {'head.weight', 'head.bias'}  # not even the running statistics


# --- stopping ---

def stop_at(iteration, number):
    class Stop(Hook):
        def after_train_iter(self, runner):
            if runner.iter + 1 == iteration:
                os.kill(os.getpid(), number)
    return Stop()


@pytest.mark.parametrize('at', [2, 4, 12])  # within an epoch, at the end of one, at the very end
def test_a_signal_ends_behind_a_checkpoint(tmp_path, at):
    seen = []

    class Epochs(Hook):
        def after_train_epoch(self, runner):
            seen.append(runner.epoch)
    whole = toy_runner(tmp_path / 'whole', 3, hooks=hooks(interval=1))
    whole.train()
    stopped = toy_runner(tmp_path / 'a', 3, hooks=[*hooks(interval=1), stop_at(at, signal.SIGUSR1), Epochs()])
    handler = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Interrupted, match=rf'stopped by SIGUSR1 at iteration {at}, saved .*iter_{at}\.pth') as caught:
        stopped.train()
    assert caught.value.status == 75 and signal.getsignal(signal.SIGUSR1) is handler
    assert os.readlink(tmp_path / 'a' / 'latest.pth') == f'iter_{at}.pth'
    rest = toy_runner(tmp_path / 'a', 3, seed=99, hooks=[*hooks(interval=1, max_keep_ckpts=3), Epochs()])
    rest.resume(str(tmp_path / 'a' / f'iter_{at}.pth'))
    rest.train()
    assert same(weights(whole), weights(rest)) and seen == [0, 1, 2]  # no end of an epoch is left out
    assert sorted(p.name for p in (tmp_path / 'a').glob('*_*.pth')) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']


def test_a_full_disk_is_one_line(tmp_path):
    class Full(Hook):
        def after_train_iter(self, runner):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'x.json')
    message = '^cannot write x.json: No space left on device .after iteration 0.*auto-resume'
    with pytest.raises(TrainingError, match=message):
        toy_runner(tmp_path, 1, hooks=[Full()]).train()


# --- resume ---

def hooks(**checkpoint):
    return [LrUpdaterHook(policy='step', step=[2], warmup='linear', warmup_iters=6, warmup_ratio=0.1),
            CheckpointHook(**checkpoint)]


@pytest.mark.parametrize('optimizer', [dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-3),
                                       dict(type='AdamW', lr=0.01, paramwise_cfg=dict(bias_lr_mult=2.))])
@pytest.mark.parametrize('workers', [0, 2])
def test_resume_equals_never_having_stopped(tmp_path, optimizer, workers):
    whole = toy_runner(tmp_path / 'whole', 3, hooks=hooks(), optimizer=optimizer)
    whole.train()
    toy_runner(tmp_path / 'first', 1, hooks=hooks(interval=1), optimizer=optimizer).train()
    rest = toy_runner(tmp_path / 'rest', 3, hooks=hooks(), optimizer=optimizer, seed=99,
                      loader=toy_loader(workers=workers))
    rest.resume(str(tmp_path / 'first' / 'epoch_1.pth'))
    assert (rest.epoch, rest.iter) == (1, 4)
    rest.train()
    assert same(weights(whole), weights(rest))
    assert str(whole.optimizer.state_dict()) == str(rest.optimizer.state_dict())


@pytest.mark.parametrize('at', [3, 4, 6])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_resume_within_an_epoch(tmp_path, by_epoch, at):
    length = dict(max_epochs=3) if by_epoch else dict(max_iters=11)
    whole = toy_runner(tmp_path / 'whole', hooks=hooks(interval=1, by_epoch=False), **length)
    whole.train()
    rest = toy_runner(tmp_path / 'rest', hooks=hooks(), seed=99, **length)
    rest.resume(str(tmp_path / 'whole' / f'iter_{at}.pth'))
    # Of an epoch that was saved at its last iteration the end (evaluation, checkpoint) is still to come.
    assert (rest.iter, rest.epoch, rest.inner_iter) == ((4, 0, 4) if by_epoch and at == 4 else (at, at // 4, at % 4))
    rest.train()
    assert same(weights(whole), weights(rest))


def test_resume_refuses_what_it_cannot_continue(tmp_path):
    runner = toy_runner(tmp_path, 1, hooks=hooks(interval=1))
    runner.train()
    checkpoint = load_checkpoint(tmp_path / 'epoch_1.pth')
    save_checkpoint(dict(meta=checkpoint['meta'], state_dict=checkpoint['state_dict']), tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match='holds weights only, no optimizer and progress: use --load-from'):
        toy_runner(tmp_path).resume(str(tmp_path / 'weights.pth'))
    with pytest.raises(CheckpointError, match='its optimizer does not fit'):
        other = dict(type='SGD', lr=0.1, weight_decay=1., paramwise_cfg=dict(bias_decay_mult=0.))
        toy_runner(tmp_path, optimizer=other).resume(str(tmp_path / 'epoch_1.pth'))
    del checkpoint['state_dict']['head.bias']
    save_checkpoint(checkpoint, tmp_path / 'short.pth')
    with pytest.raises(CheckpointError, match='cannot resume: .*missing in the checkpoint: head.bias.*; --load-from '):
        toy_runner(tmp_path).resume(str(tmp_path / 'short.pth'))
    # A head of other classes has another size.
    checkpoint['meta']['CLASSES'] = ('a', 'b', 'cat')
    save_checkpoint(checkpoint, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='cannot resume: .*other.pth was trained on 3 classes, the config names '
                                              '2; only in the checkpoint: cat; --load-from starts a new') as told:
        toy_runner(tmp_path).resume(str(tmp_path / 'other.pth'))
    assert '\n' not in str(told.value)


def test_resume_and_load_tell_of_differences(tmp_path, caplog):
    toy_runner(tmp_path, 1, hooks=hooks(interval=1)).train()
    checkpoint = load_checkpoint(tmp_path / 'epoch_1.pth')
    checkpoint['meta']['CLASSES'] = ('a', 'cat')
    save_checkpoint(checkpoint, tmp_path / 'epoch_1.pth')
    other = toy_runner(tmp_path, optimizer=dict(type='SGD', lr=0.5, momentum=0.9))
    other.logger.propagate = True
    other.resume(str(tmp_path / 'epoch_1.pth'))
    assert ('only in the checkpoint: cat; only in the config: b; --load-from starts a new training from its weights'
            in caplog.text)
    assert 'goes on from the 0.1 of' in caplog.text and 'not from the 0.5 of the config' in caplog.text
    caplog.clear()
    fresh = toy_runner(tmp_path, seed=5)
    with caplog.at_level('INFO', logger='boxdet'):
        fresh.load_checkpoint(str(tmp_path / 'epoch_1.pth'))
    assert fresh.iter == 0 and same(weights(fresh), checkpoint['state_dict'])
    assert 'epoch_1.pth: 9 entries loaded, 0 missing, 0 unused' in caplog.text


@pytest.mark.parametrize('change, epoch, iteration, inner', [
    (dict(batch=4), 0, 1, 1), (dict(batch=1), 0, 6, 6), (dict(optimizer_config=dict(cumulative_iters=2)), 0, 1, 1)])
def test_another_batch_goes_on_at_the_same_share_of_the_epoch(tmp_path, caplog, change, epoch, iteration, inner):
    toy_runner(tmp_path, 2, hooks=hooks(interval=3, by_epoch=False), loader=toy_loader(8, 2)).train()
    batch, config = change.pop('batch', 2), change
    rest = toy_runner(tmp_path, 2, hooks=hooks(), loader=toy_loader(8, batch), **config)
    rest.logger.propagate = True
    rest.resume(str(tmp_path / 'iter_3.pth'))  # three quarters of the first epoch
    assert 'cannot continue exactly' in caplog.text and 'samples_per_gpu 2' in caplog.text
    assert (rest.epoch, rest.iter, rest.inner_iter) == (epoch, iteration, inner)
    rest.train()
    assert (rest.epoch, rest.iter) == (2, rest.max_iters)


def test_the_config_s_difference_is_told(tmp_path, caplog):
    def runner(text):
        made = toy_runner(tmp_path, 2, hooks=hooks(interval=1))
        made.meta['config'], made.logger.propagate = text, True
        return made
    runner("a = dict(b=[1, 2], c=3)\nresume_from = None\nold = dict(type='X')").train()
    with caplog.at_level('INFO', logger='boxdet'):
        runner("a = dict(b=[1, 4], c=3)\nresume_from = 'y.pth'\nd = 1").resume(str(tmp_path / 'epoch_1.pth'))
    told = caplog.text.partition('the config differs')[2]
    assert "epoch_1.pth:\n  a.b: [1, 2] -> [1, 4]\n  old.type: 'X' -> (absent)\n  d: (absent) -> 1\n" in told
    assert 'resume_from' not in told and 'a.c' not in told


def test_checkpoint_meta(tmp_path):
    toy_runner(tmp_path, 1, hooks=hooks(interval=1)).train()
    checkpoint = load_checkpoint(tmp_path / 'epoch_1.pth')
    meta = checkpoint['meta']
    assert (meta['epoch'], meta['iter'], meta['inner_iter'], meta['CLASSES'], meta['seed']) == (1, 4, 0, ('a', 'b'), 0)
    assert set(checkpoint) == {'meta', 'state_dict', 'optimizer', 'random', 'sampler'}
    assert list(checkpoint['state_dict']) == list(ToyDetector().state_dict())
