"""Hooks as people wrote them for mmcv 1.x: every stage is called, in its order and as often; the helpers inside."""
import json
import logging

import mmengine.hooks
import pytest
from toy_training import toy_loader, toy_runner

from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.hooks import HOOKS, EvaluationHook, Hook
from boxdet.engine.loggers import TextLoggerHook

SHARED = ('before_epoch', 'after_epoch', 'before_iter', 'after_iter')
STAGES = ('before_run', 'before_train_epoch', 'before_train_iter', 'after_train_iter', 'after_train_epoch',
          'before_val_epoch', 'before_val_iter', 'after_val_iter', 'after_val_epoch', 'after_run')  # mmcv 1.x's


def recorder(base, *names):
    """A hook with the methods ``names``, each ``(self, runner)``, which note that they were called."""
    def method(name):
        return lambda self, runner: self.seen.append(name)
    return type('Recorder', (base,), {'seen': None, '__init__': lambda self: setattr(self, 'seen', []),
                                      **{name: method(name) for name in names}})()


def train(tmp_path, hook, *more, **options):
    """Two epochs of two iterations, a validation of one batch after each."""
    validation = dict(workflow=[('train', 1), ('val', 1)], validation_loader=toy_loader(2, shuffle=False))
    runner = toy_runner(tmp_path, loader=toy_loader(4), hooks=[hook, *more], **{**validation, **options})
    runner.train()
    return runner


@pytest.mark.parametrize('base', [Hook, mmengine.hooks.Hook])
def test_every_stage_of_mmcv(tmp_path, base):
    hook = recorder(base, *STAGES)
    train(tmp_path, hook)
    epoch = [*STAGES[1:4], *STAGES[2:4], *STAGES[4:9]]
    assert hook.seen == ['before_run', *epoch, *epoch, 'after_run']


@pytest.mark.parametrize('base', [Hook, mmengine.hooks.Hook])
def test_the_stages_that_training_and_validation_share(tmp_path, base):
    hook = recorder(base, *SHARED)
    train(tmp_path, hook)
    training, validation = ['before_iter', 'after_iter'] * 2, ['before_iter', 'after_iter']
    one = [['before_epoch', *iterations, 'after_epoch'] for iterations in (training, validation)]
    assert hook.seen == 2 * [*one[0], *one[1]]


def test_the_more_special_stage_takes_the_place_unless_it_calls_super(tmp_path):
    class Special(Hook):
        seen = []

        def before_iter(self, runner):
            self.seen.append('iter')

        def before_train_iter(self, runner):
            self.seen.append('train')
            if runner.iter == 1:
                super().before_train_iter(runner)
    train(tmp_path, Special(), workflow=[('train', 1)])
    assert Special.seen == ['train', 'train', 'iter', 'train', 'train']


def test_mmengines_own_shared_stages(tmp_path):
    class Modes(mmengine.hooks.Hook):
        seen = []

        def _before_epoch(self, runner, mode='train'):
            self.seen.append(mode)

        def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode='train'):
            self.seen.append((mode, batch_idx))
    train(tmp_path, Modes())
    assert Modes.seen == 2 * ['train', ('train', 0), ('train', 1), 'val', ('val', 0)]


def test_an_evaluation_is_no_epoch(tmp_path):
    """In mmcv 1.x an evaluation calls none of ``before_epoch`` and its like; the stages of its own it has here."""
    hook = recorder(Hook, 'after_epoch', 'before_epoch')
    own = recorder(Hook, 'before_val_epoch', 'after_val_epoch')
    evaluation = EvaluationHook('data', toy_loader(2, shuffle=False), lambda *a, **k: dict(bbox_mAP=.5), progress=False)
    train(tmp_path, hook, own, evaluation, workflow=[('train', 1)])
    assert hook.seen == ['before_epoch', 'after_epoch'] * 2
    assert own.seen == ['before_val_epoch', 'after_val_epoch'] * 2


def test_with_iterations_the_epoch_is_the_training(tmp_path):
    hook = recorder(Hook, *SHARED)
    train(tmp_path, hook, max_iters=3, workflow=[('train', 1)])
    assert hook.seen == ['before_epoch', *['before_iter', 'after_iter'] * 3, 'after_epoch']


def test_what_a_validation_stage_sees(tmp_path):
    class Watch(Hook):
        seen = []

        def after_val_iter(self, runner):
            self.seen.append((runner.mode, runner.inner_iter, len(runner.data_loader), self.end_of_epoch(runner),
                              len(runner.data_batch), set(runner.outputs)))

        def after_train_epoch(self, runner):
            self.seen.append((runner.mode, len(runner.data_loader)))
    train(tmp_path, Watch(), max_epochs=1, validation_loader=toy_loader(3, shuffle=False))
    outputs = {'loss', 'log_vars', 'num_samples'}
    assert Watch.seen == [('train', 2), ('val', 0, 2, False, 2, outputs), ('val', 1, 2, True, 1, outputs)]


# --- what nothing calls ---

def test_a_misspelt_stage_is_told_at_registration(tmp_path, caplog):
    class Typos(Hook):
        def after_train_iters(self, runner): ...
        def befor_epoch(self, runner): ...
        def before_the_storm(self, runner): ...
        def measure(self, runner): ...
        def after_train_iter(self, runner): ...
    with caplog.at_level(logging.WARNING, 'boxdet'):
        toy_runner(tmp_path, hooks=[Typos(), TextLoggerHook()])
    told = sorted(caplog.messages)
    assert len(told) == 3
    assert told[0] == "Typos.after_train_iters: no stage calls this method; did you mean 'after_train_iter'?"
    assert told[1] == "Typos.befor_epoch: no stage calls this method; did you mean 'before_epoch'?"
    assert told[2].startswith('Typos.before_the_storm: no stage calls this method')


def test_no_hook_of_ours_has_an_idle_method(caplog, tmp_path):
    kinds = dict(CheckpointHook={}, EMAHook={}, LrUpdaterHook={}, NumClassCheckHook={}, EarlyStoppingHook=dict(
        monitor='bbox_mAP'), CheckInvalidLossHook={}, TextLoggerHook={})
    toy_runner(tmp_path, hooks=[HOOKS.build(dict(type=kind, **options)) for kind, options in kinds.items()])
    assert not caplog.messages


# --- helpers ---

def test_when(tmp_path):
    class When(Hook):
        seen = []

        def after_train_iter(self, runner, batch_idx):
            self.seen.append([name for name, due in dict(
                third=self.every_n_iters(runner, 3), never=self.every_n_iters(runner, 0),
                second=self.every_n_inner_iters(runner, 2), mmengines=self.every_n_inner_iters(batch_idx, 2),
                end=self.end_of_epoch(runner), mmengines_end=self.end_of_epoch(runner.data_loader, batch_idx),
                epochs=self.every_n_epochs(runner, 2), no_epochs=self.every_n_epochs(runner, 0),
                last_epoch=self.is_last_epoch(runner), last=self.is_last_iter(runner)).items() if due])
    train(tmp_path, When())
    second = ['second', 'mmengines', 'end', 'mmengines_end']
    assert When.seen == [[], second, ['third', 'epochs', 'last_epoch'], [*second, 'epochs', 'last_epoch', 'last']]


def test_the_end_of_an_epoch_with_accumulation(tmp_path):
    class End(Hook):
        seen = []

        def after_train_iter(self, runner):
            self.seen.append(self.end_of_epoch(runner))
    toy_runner(tmp_path, 1, hooks=[End()], loader=toy_loader(6), optimizer_config=dict(cumulative_iters=2)).train()
    assert End.seen == [False, True]  # two updates of three batches


def test_triggered_stages():
    assert recorder(Hook, 'before_run', 'after_val_iter').get_triggered_stages() == ['before_run', 'after_val_iter']
    assert recorder(Hook, 'after_epoch').get_triggered_stages() == ['after_train_epoch', 'after_val_epoch']
    assert Hook().get_triggered_stages() == []


@pytest.mark.parametrize('optimizer, momentum', [
    (dict(type='SGD', lr=.1, momentum=.8), .8), (dict(type='AdamW', lr=.1, betas=(.7, .9)), .7),
    (dict(type='Adagrad', lr=.1), 0)])
def test_what_a_hook_reads_of_the_runner(tmp_path, optimizer, momentum):
    runner = toy_runner(tmp_path, 3, loader=toy_loader(4), optimizer=optimizer)
    assert runner.current_momentum() == [momentum]
    assert (runner._max_epochs, runner._max_iters) == (3, 6)


# --- the log ---

def log_of(tmp_path, hook, interval=2, length=8):
    toy_runner(tmp_path, 1, loader=toy_loader(length), hooks=[hook, TextLoggerHook(interval)]).train()
    lines = (tmp_path / '20200101_000000.log.json').read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


def test_values_of_a_hook_in_the_log(tmp_path):
    class Tell(Hook):
        def after_train_iter(self, runner):
            runner.log_buffer.update({'mean': runner.iter})
            if runner.iter == 0:
                runner.log_buffer.output['once'] = 5

        def after_train_epoch(self, runner):
            runner.log_buffer.output['score'] = 0.25
            runner.log_buffer.ready = True
    first, second, end = log_of(tmp_path, Tell())
    assert (first['mean'], first['once'], first['mode']) == (0.5, 5, 'train')
    assert second['mean'] == 2.5 and 'once' not in second and 'score' not in second
    assert end == dict(mode='val', epoch=1, iter=4, lr=0.1, score=0.25)


def test_values_that_are_ready_within_an_epoch(tmp_path):
    class Tell(Hook):
        def after_train_iter(self, runner):
            if runner.iter == 0:
                runner.log_buffer.output['early'] = 1
                runner.log_buffer.ready = True
    entries = log_of(tmp_path, Tell())
    assert [('early' in entry, entry['mode'], entry['iter']) for entry in entries] == [
        (True, 'val', 1), (False, 'train', 2), (False, 'train', 4)]


# --- checkpoints ---

def test_a_hook_saves(tmp_path):
    class Save(Hook):
        def after_train_epoch(self, runner):
            runner.save_checkpoint(runner.work_dir)
            runner.save_checkpoint(tmp_path / 'mine', filename_tmpl='mine_{}.pth', save_optimizer=False,
                                   meta=dict(note='a'), create_symlink=False)

        def after_run(self, runner):
            runner.save_checkpoint(runner.work_dir, 'end_{}.pth')
    train(tmp_path, Save(), workflow=[('train', 1)])
    assert {p.name for p in tmp_path.glob('*.pth')} == {'epoch_1.pth', 'epoch_2.pth', 'end_2.pth', 'latest.pth'}
    assert load_checkpoint(tmp_path / 'latest.pth')['meta']['iter'] == 4
    assert {p.name for p in (tmp_path / 'mine').iterdir()} == {'mine_1.pth', 'mine_2.pth'}
    mine = load_checkpoint(tmp_path / 'mine/mine_1.pth')
    assert mine['meta']['note'] == 'a' and 'optimizer' not in mine


def test_a_hook_saves_amid_the_validation_and_the_training_goes_on_from_there(tmp_path):
    class Save(Hook):
        def before_val_epoch(self, runner):
            runner.save_checkpoint(runner.work_dir, 'val_{}.pth')
    runner = train(tmp_path, Save())
    again = toy_runner(tmp_path, loader=toy_loader(4))
    again.resume(str(tmp_path / 'val_2.pth'))
    assert (again.epoch, again.iter) == (runner.epoch, runner.iter) == (2, 4)


def test_iterations_name_the_file(tmp_path):
    class Save(Hook):
        def after_train_iter(self, runner):
            if self.every_n_iters(runner, 2):
                runner.save_checkpoint(runner.work_dir)
    toy_runner(tmp_path, max_iters=4, hooks=[Save()]).train()
    assert {p.name for p in tmp_path.glob('iter_*.pth')} == {'iter_2.pth', 'iter_4.pth'}
