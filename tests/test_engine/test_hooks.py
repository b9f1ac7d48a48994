"""Checkpoints kept and deleted, the best one, evaluation when it is due, rates set by the schedule."""
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from toy_training import ToyDetector, same, toy_loader, toy_runner, weights

from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.hooks import CheckpointHook, EarlyStoppingHook, EvaluationHook, LrUpdaterHook, point_to, rule_of
from boxdet.errors import CheckpointError, ConfigError
from boxdet.registry import HOOKS
from boxdet.structures.instances import Instances


def names(folder):
    return sorted(p for p in os.listdir(folder) if p.endswith('.pth'))


# --- rates ---

def test_rates_are_set_for_every_group(tmp_path):
    seen = []

    class Watch(Hook):
        def before_train_iter(self, runner):
            seen.append(runner.current_lr())
    runner = toy_runner(tmp_path, 2, hooks=[LrUpdaterHook(policy='step', step=[1], warmup='linear', warmup_iters=2,
                                                          warmup_ratio=0.5), Watch()],
                        optimizer=dict(type='SGD', lr=1., paramwise_cfg=dict(bias_lr_mult=2.)))
    runner.train()
    assert [pytest.approx(sorted(r)) for r in ([0.5, 1.], [0.75, 1.5], [1., 2.], [1., 2.], *[[0.1, 0.2]] * 4)] == [
        sorted(r) for r in seen]


# --- checkpoints ---

@pytest.mark.parametrize('options, expected', [
    (dict(interval=2), ['epoch_2.pth', 'epoch_4.pth', 'epoch_5.pth', 'latest.pth']),
    (dict(interval=2, save_last=False), ['epoch_2.pth', 'epoch_4.pth', 'latest.pth']),
    (dict(interval=1, max_keep_ckpts=2), ['epoch_4.pth', 'epoch_5.pth', 'latest.pth']),
    (dict(interval=3, by_epoch=False), ['iter_10.pth', 'iter_3.pth', 'iter_6.pth', 'iter_9.pth', 'latest.pth']),
    (dict(interval=-1), []), (dict(interval=-1, by_epoch=False), []),
    (dict(interval=-1, save_last=True), ['epoch_5.pth', 'latest.pth']),
    (dict(), ['epoch_5.pth', 'latest.pth'])])
def test_what_is_saved(tmp_path, options, expected):
    toy_runner(tmp_path, 5, hooks=[CheckpointHook(**options)], loader=toy_loader(4)).train()
    assert names(tmp_path) == expected
    if not expected:
        return
    assert load_checkpoint(tmp_path / 'latest.pth')['meta']['iter'] == (10 if options.get('save_last', True) else 8)


def test_out_dir_and_no_optimizer(tmp_path):
    toy_runner(tmp_path / 'run', 1, hooks=[CheckpointHook(interval=1, out_dir=str(tmp_path / 'out'),
                                                          save_optimizer=False)]).train()
    assert names(tmp_path / 'out' / 'run') == ['epoch_1.pth', 'latest.pth']
    assert set(load_checkpoint(tmp_path / 'out' / 'run' / 'epoch_1.pth')) == {'meta', 'state_dict'}


def test_a_longer_training_before_is_not_deleted(tmp_path):
    (tmp_path / 'epoch_30.pth').write_bytes(b'of another training')
    toy_runner(tmp_path, 3, hooks=[CheckpointHook(interval=1, max_keep_ckpts=1)]).train()
    assert names(tmp_path) == ['epoch_3.pth', 'epoch_30.pth', 'latest.pth']


def test_the_last_good_one_is_never_deleted(tmp_path, monkeypatch):
    """A checkpoint that reads back wrong is not renamed into place, and costs no older one its life."""
    from boxdet.files import writing
    real, calls = os.fsync, []

    def flip_a_bit(handle):
        real(handle)
        path = os.readlink(f'/proc/self/fd/{handle}')
        calls.append(path)
        if 'epoch_2' in path:
            with open(path, 'r+b') as file:
                content = bytearray(file.read())
                weights = torch.load(path, weights_only=True)['state_dict']['conv.weight']
                content[content.index(weights.numpy().tobytes()) + 40] ^= 1
                file.seek(0)
                file.write(content)
    monkeypatch.setattr(writing.os, 'fsync', flip_a_bit)
    with pytest.raises(CheckpointError, match=r'cannot write .*epoch_2\.pth: '):
        toy_runner(tmp_path, 3, hooks=[CheckpointHook(interval=1, max_keep_ckpts=1)]).train()
    assert names(tmp_path) == ['epoch_1.pth', 'latest.pth']
    assert load_checkpoint(tmp_path / 'latest.pth')['meta']['epoch'] == 1


def test_full_disk_ends_with_the_last_checkpoint_whole(tmp_path, monkeypatch):
    from boxdet.files import writing
    real, calls = os.fsync, []

    def second_fails(handle):
        calls.append(handle)
        if len(calls) > 2:  # the file and the folder of the first checkpoint
            raise OSError(28, 'No space left on device')
        return real(handle)
    monkeypatch.setattr(writing.os, 'fsync', second_fails)
    with pytest.raises(CheckpointError, match=r'cannot write .*epoch_2\.pth: No space left on device'):
        toy_runner(tmp_path, 3, hooks=[CheckpointHook(interval=1, max_keep_ckpts=1)]).train()
    assert names(tmp_path) == ['epoch_1.pth', 'latest.pth']
    assert load_checkpoint(tmp_path / 'latest.pth')['meta']['epoch'] == 1


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('given', ['newest', 'latest'])
def test_a_kill_right_behind_the_last_checkpoint(tmp_path, monkeypatch, by_epoch, given):
    """The file is there; its link and the deletion of the one that is too many were still to come."""
    def options():
        return dict(hooks=[CheckpointHook(interval=1, by_epoch=by_epoch, max_keep_ckpts=2)], loader=toy_loader(2))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointHook, '_make_newest', lambda self, path, *_: path.stem.endswith('_1') and point_to(
            path.with_name('latest.pth'), path))
        toy_runner(tmp_path, 4, **options()).train()
    kind, last = ('epoch', 4) if by_epoch else ('iter', 4 * len(toy_loader(2)))
    assert len(names(tmp_path)) == last + 1 and os.readlink(tmp_path / 'latest.pth') == f'{kind}_1.pth'
    if given == 'latest':
        point_to(tmp_path / 'latest.pth', tmp_path / f'{kind}_{last}.pth')
    runner = toy_runner(tmp_path, 4, **options())
    runner.resume(str(tmp_path / ('latest.pth' if given == 'latest' else f'{kind}_{last}.pth')))
    runner.train()
    assert names(tmp_path) == sorted([f'{kind}_{last}.pth', f'{kind}_{last - 1}.pth', 'latest.pth'])
    assert os.readlink(tmp_path / 'latest.pth') == f'{kind}_{last}.pth'


def test_what_another_folder_holds_is_left_alone(tmp_path):
    toy_runner(tmp_path / 'a', 3, hooks=[CheckpointHook(interval=1)]).train()
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    for folder, keep in (('a', 3), ('b', 2)):  # of its own, the one that is too many goes
        runner = toy_runner(tmp_path / 'b', 3, hooks=[CheckpointHook(interval=1, max_keep_ckpts=2)])
        runner.resume(str(tmp_path / folder / 'epoch_3.pth'))
        runner.train()
        assert len(list((tmp_path / 'b').glob('epoch_*.pth'))) == keep


def test_the_file_of_a_signal_is_none_of_those_that_are_kept(tmp_path):
    def options():
        return [CheckpointHook(interval=2, by_epoch=False, max_keep_ckpts=2)]
    toy_runner(tmp_path, 3, hooks=options(), loader=toy_loader(4)).train()
    shutil.copyfile(tmp_path / 'iter_4.pth', tmp_path / 'iter_5.pth')
    runner = toy_runner(tmp_path, 4, hooks=options(), loader=toy_loader(4))
    runner.resume(str(tmp_path / 'iter_6.pth'))
    runner.meta['hook_msgs']['interrupted_ckpt'] = str(tmp_path / 'iter_5.pth')
    runner.train()
    assert names(tmp_path) == ['iter_6.pth', 'iter_8.pth', 'latest.pth']


@pytest.mark.parametrize('options', [dict(interval=0), dict(max_keep_ckpts=0)])
def test_wrong_checkpoint_options(options):
    with pytest.raises(ConfigError, match='must not be 0'):
        CheckpointHook(**options)
    with pytest.raises(ConfigError, match="did you mean 'max_keep_ckpts'"):
        HOOKS.build(dict(type='CheckpointHook', max_keep_ckpt=3))


# --- evaluation ---

def evaluation(scores, **options):
    """A hook whose evaluation gives ``scores`` one after the other, and the list of the epochs that it logs."""
    values = iter(scores)

    def evaluate(dataset, results, logger=None):
        assert len(results) == 5 and all(len(result) == 1 for result in results)
        return dict(bbox_mAP=next(values), loss_x=1.)
    return EvaluationHook('the data set', toy_loader(5, shuffle=False), evaluate, progress=False, **options)


class Listen(Hook):
    def __init__(self):
        self.seen = []

    def after_val_epoch(self, runner, metrics, epoch, step):
        self.seen.append((epoch, step, metrics['bbox_mAP']))


@pytest.mark.parametrize('options, due', [
    (dict(), [1, 2, 3, 4]), (dict(interval=2), [2, 4]), (dict(start=3), [3, 4]), (dict(start=2, interval=2), [2, 4]),
    (dict(start=0, interval=2), [0, 2, 4])])
def test_when_it_evaluates(tmp_path, options, due):
    listen = Listen()
    toy_runner(tmp_path, 4, hooks=[evaluation(range(9), **options), listen], loader=toy_loader(4)).train()
    assert [(epoch, step) for epoch, step, _ in listen.seen] == [(epoch, 2 * epoch) for epoch in due]


@pytest.mark.parametrize('classes, label', [(('b',), 0), (('b', 'a'), 0), (('a', 'b'), 1), (('a', 'c'), 1)])
def test_results_get_the_labels_of_the_classes_that_are_evaluated(tmp_path, classes, label):
    class Sure(ToyDetector):
        def forward(self, batch, mode='loss', rescale=True):
            found = super().forward(batch, mode, rescale)
            if mode == 'predict':
                found = [Instances(num_classes=2, bboxes=torch.zeros(2, 4), scores=torch.tensor([.9, .8]),
                                   labels=torch.tensor([1, 0]))[:2 if len(classes) == 2 else 1] for _ in found]
            return found

    def evaluate(dataset, results, logger=None):
        assert [result.labels[0].item() for result in results] == [label] * 5
        return dict(bbox_mAP=0.5)
    hook = EvaluationHook(SimpleNamespace(CLASSES=classes), toy_loader(5, shuffle=False), evaluate, progress=False)
    toy_runner(tmp_path, 1, hooks=[hook], model=Sure()).train()


def test_evaluation_by_iteration(tmp_path):
    listen = Listen()
    toy_runner(tmp_path, max_iters=7, hooks=[evaluation(range(9), interval=3, by_epoch=False), listen]).train()
    assert [step for _, step, _ in listen.seen] == [3, 6]


def test_evaluation_leaves_the_training_alone(tmp_path):
    with_it = toy_runner(tmp_path, 2, hooks=[evaluation(range(9))])
    with_it.train()
    without = toy_runner(tmp_path, 2)
    without.train()
    assert same(weights(with_it), weights(without))


@pytest.mark.parametrize('scores, options, best', [
    ([.1, .3, .2], dict(save_best='auto'), 'best_bbox_mAP_epoch_2.pth'),
    ([.1, .3, .2], dict(save_best='bbox_mAP', rule='less'), 'best_bbox_mAP_epoch_1.pth'),
    ([float('nan'), .1, .1], dict(save_best='bbox_mAP'), 'best_bbox_mAP_epoch_2.pth')])
def test_the_best_is_kept(tmp_path, scores, options, best):
    checkpoints = CheckpointHook(interval=1, max_keep_ckpts=1)
    toy_runner(tmp_path, 3, hooks=[evaluation(scores, **options), checkpoints]).train()
    assert names(tmp_path) == [best, 'epoch_3.pth', 'latest.pth']
    messages = load_checkpoint(tmp_path / best)['meta']['hook_msgs']
    assert messages['best_ckpt'].endswith(best)


def test_the_best_survives_a_resume(tmp_path):
    def hooks(scores):
        return [evaluation(scores, save_best='bbox_mAP'), CheckpointHook(interval=1)]
    toy_runner(tmp_path, 2, hooks=hooks([.5, .9])).train()
    listen = Listen()
    again = toy_runner(tmp_path, 4, hooks=[*hooks([.9, .6, .7]), listen])
    again.resume(str(tmp_path / 'epoch_2.pth'))
    again.train()
    # The checkpoint was written before its own evaluation, so that one is made up for.
    assert [epoch for epoch, _, _ in listen.seen] == [2, 3, 4]
    assert [n for n in names(tmp_path) if n.startswith('best')] == ['best_bbox_mAP_epoch_2.pth']
    assert again.meta['hook_msgs']['best_score'] == .9


def test_a_metric_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="save_best 'bbox_map' is no metric of .*; did you mean 'bbox_mAP'"):
        toy_runner(tmp_path, 1, hooks=[evaluation([.1], save_best='bbox_map')]).train()


def test_rules():
    assert rule_of('bbox_mAP') == rule_of('AR@100') == rule_of('mAP') == 'greater' and rule_of('loss_cls') == 'less'
    with pytest.raises(ConfigError, match="rule='greater' or 'less'"):
        rule_of('score')
    assert rule_of('score', ['score']) == 'greater' and rule_of('my_score', less_keys='score') == 'less'
    assert rule_of('bbox_mAP', less_keys=['mAP']) == 'less' and rule_of('loss_x', ['loss_x']) == 'greater'
    assert rule_of('mAP', greater_keys=['loss_mAP'], less_keys=['mAP']) == 'less'


def test_the_best_by_keys_of_ones_own(tmp_path):
    toy_runner(tmp_path, 3, hooks=[evaluation([.1, .3, .2], save_best='bbox_mAP', less_keys=['bbox_mAP'])]).train()
    assert names(tmp_path) == ['best_bbox_mAP_epoch_1.pth']


@pytest.mark.parametrize('options, seen', [
    (dict(interval=3, dynamic_intervals=[(5, 1)]), [3, 5, 6]),
    (dict(interval=4, dynamic_intervals=[(5, 2)]), [4, 6]),
    (dict(interval=1, start=2, dynamic_intervals=[[4, 3]]), [2, 3, 5])])
def test_other_intervals_from_a_milestone_on(tmp_path, options, seen):
    listen = Listen()
    toy_runner(tmp_path, 6, hooks=[evaluation(range(9), **options), listen]).train()
    assert [epoch for epoch, _, _ in listen.seen] == seen
    with pytest.raises(ConfigError, match='list of pairs'):
        evaluation([], dynamic_intervals=[5, 1])


def test_checkpoints_without_a_link_to_the_newest(tmp_path):
    toy_runner(tmp_path, 2, hooks=[CheckpointHook(interval=1, create_symlink=False)]).train()
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']


@pytest.mark.parametrize('options', [dict(interval=0), dict(start=-1), dict(rule='more')])
def test_wrong_evaluation_options(options):
    with pytest.raises(ConfigError, match='evaluation'):
        evaluation([], **options)


# --- early stopping ---

@pytest.mark.parametrize('scores, options, epochs', [
    ([.1, .3, .2, .3, .4, .5], dict(patience=2), 4), ([.1, .2, .21, .22, .5], dict(patience=2, min_delta=.05), 4),
    ([.5, .4, .3, .2, .1, .0], dict(patience=2, rule='less'), 6), ([.1, .2, .9, .1], dict(stopping_threshold=.8), 3),
    ([.1, float('nan'), .2], dict(), 2), ([.1, float('nan'), .2, .3, .4, .5], dict(check_finite=False), 6)])
def test_early_stopping(tmp_path, scores, options, epochs):
    stop = EarlyStoppingHook('bbox_mAP', **options)
    runner = toy_runner(tmp_path, 6, hooks=[evaluation(scores), stop, CheckpointHook(interval=10)])
    runner.train()
    assert runner.epoch == epochs
    assert names(tmp_path) == [f'epoch_{epochs}.pth', 'latest.pth']  # what it stopped at is saved


def test_early_stopping_goes_on_counting_after_a_resume(tmp_path):
    scores = [.5, .4, .3, .2, .1]

    def run(name, length, values, resume=None):
        hooks = [evaluation(values), EarlyStoppingHook('bbox_mAP', patience=3), CheckpointHook(interval=1)]
        runner = toy_runner(tmp_path / name, length, hooks=hooks)
        if resume:
            runner.resume(str(resume))
        runner.train()
        return runner.epoch
    assert run('whole', 9, scores) == 4
    assert run('part', 3, scores) == 3
    # The checkpoint of epoch 3 was written before its evaluation, which is made up for.
    assert run('rest', 9, scores[2:], resume=tmp_path / 'part' / 'epoch_3.pth') == 4


def test_early_stopping_on_the_validation_loss(tmp_path):
    hook = EarlyStoppingHook('loss_cls', patience=1, min_delta=100.)
    runner = toy_runner(tmp_path, 9, hooks=[hook], workflow=[('train', 1), ('val', 1)],
                        validation_loader=toy_loader(5, shuffle=False))
    runner.train()
    assert runner.epoch == 2


def test_wrong_early_stopping(tmp_path):
    with pytest.raises(ConfigError, match="monitor 'bbox_map' is no metric .*did you mean 'bbox_mAP'"):
        toy_runner(tmp_path, 3, hooks=[evaluation([.1] * 3), EarlyStoppingHook('bbox_map')]).train()
    with pytest.raises(ConfigError, match='patience 0'):
        EarlyStoppingHook('bbox_mAP', patience=0)


def test_2x_hooks_are_known():
    assert HOOKS.build(dict(type='NumClassCheckHook')) is not None
    assert HOOKS.build(dict(type='CheckInvalidLossHook', interval=50)) is not None
    with pytest.raises(ConfigError, match='CheckInvalidLossHook.interval'):
        HOOKS.build(dict(type='CheckInvalidLossHook', interval=0))
