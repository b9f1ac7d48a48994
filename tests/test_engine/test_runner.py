"""Training loops: epochs and iterations counted, a resume that is bit for bit, errors that name things."""
import pytest
from mmengine.hooks import Hook
from toy_training import ToyDetector, same, toy_loader, toy_runner, weights

from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.engine.hooks import CheckpointHook, LrUpdaterHook
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
    assert (rest.iter, rest.inner_iter) == (at, at % 4)
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
    with pytest.raises(CheckpointError, match='cannot resume: .*missing in the checkpoint: head.bias'):
        toy_runner(tmp_path).resume(str(tmp_path / 'short.pth'))


def test_resume_and_load_tell_of_differences(tmp_path, caplog):
    toy_runner(tmp_path, 1, hooks=hooks(interval=1)).train()
    checkpoint = load_checkpoint(tmp_path / 'epoch_1.pth')
    checkpoint['meta']['CLASSES'] = ('a', 'cat')
    save_checkpoint(checkpoint, tmp_path / 'epoch_1.pth')
    other = toy_runner(tmp_path, optimizer=dict(type='SGD', lr=0.5, momentum=0.9))
    other.logger.propagate = True
    other.resume(str(tmp_path / 'epoch_1.pth'))
    assert 'only in the checkpoint: cat; only in the config: b' in caplog.text
    assert 'goes on from the 0.1 of' in caplog.text and 'not from the 0.5 of the config' in caplog.text
    caplog.clear()
    fresh = toy_runner(tmp_path, seed=5)
    with caplog.at_level('INFO', logger='boxdet'):
        fresh.load_weights(str(tmp_path / 'epoch_1.pth'))
    assert fresh.iter == 0 and same(weights(fresh), checkpoint['state_dict'])
    assert 'epoch_1.pth: 9 entries loaded, 0 missing, 0 unused' in caplog.text


def test_checkpoint_meta(tmp_path):
    toy_runner(tmp_path, 1, hooks=hooks(interval=1)).train()
    checkpoint = load_checkpoint(tmp_path / 'epoch_1.pth')
    meta = checkpoint['meta']
    assert (meta['epoch'], meta['iter'], meta['inner_iter'], meta['CLASSES'], meta['seed']) == (1, 4, 0, ('a', 'b'), 0)
    assert set(checkpoint) == {'meta', 'state_dict', 'optimizer', 'random', 'sampler'}
    assert list(checkpoint['state_dict']) == list(ToyDetector().state_dict())
