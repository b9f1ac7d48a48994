"""What happens around the iterations: learning rate, checkpoints, evaluation; logs are in loggers.py.

A hook of one's own derives from ``Hook`` and joins by ``@HOOKS.register_module()`` and ``custom_hooks``: see
hook_stages.py, and docs/extending.md.
"""
from __future__ import annotations

import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boxdet.abilities import ability
from boxdet.engine.distributed import broadcast_buffers, broadcast_object, is_main, unwrap
from boxdet.engine.environment import random_states, set_random_states
from boxdet.engine.evaluation_loop import run_inference
from boxdet.engine.hook_stages import Hook
from boxdet.engine.learning_rate import LrSchedule
from boxdet.errors import CheckpointError, ConfigError, nearest
from boxdet.evaluation.chosen_classes import ChosenClasses
from boxdet.files.writing import Replacement, remove_partial_files
from boxdet.registry import HOOKS

__all__ = ['HOOKS', 'CheckInvalidLossHook', 'CheckpointHook', 'EarlyStoppingHook', 'EvaluationHook', 'Hook',
           'LrUpdaterHook', 'NumClassCheckHook']


@HOOKS.register_module()
class LrUpdaterHook(Hook):
    """Sets every group's learning rate before each iteration; keywords are ``LrSchedule``'s (2.x's ``lr_config``)."""
    priority = 'VERY_HIGH'

    def __init__(self, **lr_config: Any):
        self.schedule = LrSchedule(**lr_config)
        self._base: list[float] = []

    def before_run(self, runner: Any) -> None:
        groups = runner.optimizer.param_groups
        for group, rate in zip(groups, self.schedule.base_rates([group['lr'] for group in groups])):
            group.setdefault('initial_lr', rate)  # there already after a resume: the optimizer's state holds it
        self._base = [group['initial_lr'] for group in groups]

    def before_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # hooks are called with what they take
        for group, base in zip(runner.optimizer.param_groups, self._base):
            group['lr'] = self.schedule.rate(base, runner.progress)


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves ``epoch_N.pth`` or ``iter_N.pth`` and points ``latest.pth`` to it: 2.x's ``checkpoint_config``.

    Args:
        interval: epochs (iterations without ``by_epoch``) between checkpoints; None saves the last one only, -1 none.
        by_epoch: count epochs.
        save_optimizer: keep what a resume needs besides the weights.
        out_dir: default the work_dir; else a folder of the work_dir's name is made in it.
        max_keep_ckpts: delete older ones beyond so many; -1 keeps all. The newest and the best are never deleted.
        save_last: also save when the training ends; by default unless ``interval`` is -1.
        create_symlink: point ``latest.pth`` to the newest.
    """
    priority = 'NORMAL'

    def __init__(self, interval: int | None = None, by_epoch: bool = True, save_optimizer: bool = True,
                 out_dir: str | None = None, max_keep_ckpts: int = -1, save_last: bool | None = None,
                 create_symlink: bool = True):
        if interval == 0 or max_keep_ckpts == 0:
            raise ConfigError('checkpoint_config: interval and max_keep_ckpts must not be 0 (-1 means never and all)')
        self.interval, self.by_epoch, self.save_optimizer = interval, by_epoch, save_optimizer
        self.out_dir, self.max_keep_ckpts = out_dir, max_keep_ckpts
        self.save_last = interval != -1 if save_last is None else save_last
        self.create_symlink = create_symlink
        self._folder = Path()

    def before_run(self, runner: Any) -> None:
        self._folder = runner.checkpoint_folder = output_folder(self.out_dir, runner.work_dir)
        self._saved_at = -1
        if is_main() and self._folder.is_dir():
            remove_partial_files(self._folder)
            self._finish_last_save(runner)

    def _finish_last_save(self, runner: Any) -> None:
        """After a resume: what a process that was killed just behind its last checkpoint had still to do."""
        resumed = runner.resumed_from
        if resumed is None or 'interrupted_ckpt' in runner.meta['hook_msgs']:
            return
        if resumed.parent == self._folder.resolve() and re.fullmatch(r'(epoch|iter)_\d+\.pth', resumed.name):
            self._make_newest(resumed)

    def after_train_epoch(self, runner: Any) -> None:
        epoch = runner.epoch + 1
        if self.by_epoch and (self._is_due(epoch) or self.save_last and epoch == runner.max_epochs):
            self._save(runner, f'epoch_{epoch}.pth')

    def after_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # hooks are called with what they take
        count = runner.iter + 1
        if not self.by_epoch and (self._is_due(count) or self.save_last and count == runner.max_iters):
            self._save(runner, f'iter_{count}.pth')

    def after_train(self, runner: Any) -> None:
        # A training that ended before its time, by early stopping, has not had its last checkpoint.
        if self.save_last and runner.iter != self._saved_at and runner.iter < runner.max_iters:
            self._save(runner, f'epoch_{runner.epoch}.pth' if self.by_epoch else f'iter_{runner.iter}.pth')

    def _is_due(self, count: int) -> bool:
        return self.interval is not None and self.interval > 0 and count % self.interval == 0

    def _save(self, runner: Any, name: str) -> None:
        runner.logger.info('Saving checkpoint %s', name)
        interrupted = runner.meta['hook_msgs'].pop('interrupted_ckpt', None)
        path = runner.write_checkpoint(self._folder / name, self.save_optimizer)
        self._saved_at = runner.train_loop.completed()['iter']
        if is_main():
            self._make_newest(path, interrupted)

    def _make_newest(self, path: Path, interrupted: str | None = None) -> None:
        """Point ``latest.pth`` to a checkpoint that can be read, then delete those that are too many."""
        if self.create_symlink:
            point_to(self._folder / 'latest.pth', path)
        if self.max_keep_ckpts > 0:
            if interrupted and Path(interrupted) != path:
                Path(interrupted).unlink(missing_ok=True)
            self._delete_old(path.name)

    def _delete_old(self, newest: str) -> None:
        # The new file has been read back (``write_checkpoint``, or a resume), so that a good one is always left.
        kind, _, number = newest.removesuffix('.pth').partition('_')
        found = {int(match.group(1)): path for path in self._folder.glob(f'{kind}_*.pth')
                 if (match := re.fullmatch(rf'{kind}_(\d+)\.pth', path.name))}
        # Files with higher numbers are of a longer training before this one: not ours to delete.
        older = sorted(n for n in found if n <= int(number))
        for n in older[:-self.max_keep_ckpts]:
            found[n].unlink(missing_ok=True)


def output_folder(out_dir: str | None, work_dir: str | Path) -> Path:
    """Where files go: the work_dir, or the folder of its name inside ``out_dir``."""
    return Path(work_dir) if out_dir is None else Path(out_dir) / Path(work_dir).name


def point_to(link: Path, target: Path) -> None:
    """Make ``link`` a symbolic link to its sibling ``target`` in one step; a copy where links are not to be had."""
    new = Replacement(link, CheckpointError)
    try:
        os.symlink(target.name, new.part)
    except OSError:
        shutil.copyfile(target, new.part)
    new.rename()


def is_zero(metrics: Mapping[str, Any]) -> bool:
    """Whether an evaluation gave mean average precisions, and none of them is above 0."""
    values = [value for name, value in metrics.items() if name.endswith(('mAP', 'AP50', 'mAP_50'))
              and isinstance(value, (int, float))]
    return bool(values) and max(values) <= 0


_GREATER = ('acc', 'top', 'AR@', 'auc', 'precision', 'mAP', 'mDice', 'mIoU', 'mAcc', 'aAcc', 'recall')
_LESS = ('loss',)


@HOOKS.register_module()
class EvaluationHook(Hook):
    """Runs the detector over the validation set and logs the metrics: 2.x's ``evaluation``.

    Args:
        dataset: the validation set.
        dataloader: its images in order.
        evaluate: ``evaluate(dataset, results, logger=…, **options) -> dict`` of metrics.
        interval: epochs (iterations without ``by_epoch``) between evaluations.
        start: the first one, counted likewise; 0 evaluates before training.
        dynamic_intervals: pairs (milestone, interval): from that count on another interval.
        save_best: keep the checkpoint of the best value of this metric; 'auto' takes the first one.
        rule: 'greater' or 'less'; found from the metric's name when None.
        greater_keys: metrics, or parts of their names, that are good when greater, in place of the usual ones.
        less_keys: likewise those that are good when less.
        out_dir: where the best checkpoint goes, see ``CheckpointHook``.
        progress: show the images' progress.
        tmpdir: see ``run_inference``.
        gpu_collect: 2.x's, has no effect (docs/distributed.md).
        broadcast_bn_buffer: evaluate rank 0's BN statistics on every rank, which are those of the checkpoint.
        **options: of ``evaluate``: metric, classwise, …

    Raises:
        ConfigError: an option out of range; later, a metric ``save_best`` that the evaluation does not give.
    """
    priority = 'LOW'

    def __init__(self, dataset: Any, dataloader: Any, evaluate: Callable[..., Mapping[str, Any]], interval: int = 1,
                 start: int | None = None, by_epoch: bool = True, save_best: str | None = None,
                 rule: str | None = None, out_dir: str | None = None, progress: bool = True, tmpdir: str | None = None,
                 gpu_collect: bool = False, broadcast_bn_buffer: bool = True,
                 dynamic_intervals: Sequence[Sequence[int]] | None = None,
                 greater_keys: str | Sequence[str] | None = None, less_keys: str | Sequence[str] | None = None,
                 **options: Any):
        if gpu_collect:
            warnings.warn('evaluation.gpu_collect has no effect: results travel between the processes on the CPU',
                          stacklevel=2)
        if interval < 1 or (start is not None and start < 0):
            raise ConfigError(f'evaluation: interval {interval} must be 1 at least, start {start} not negative')
        if rule not in (None, 'greater', 'less'):
            raise ConfigError(f"evaluation.rule '{rule}' is neither 'greater' nor 'less'")
        pairs = dynamic_intervals or ()
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2
                   and all(isinstance(n, int) and n >= 1 for n in pair) for pair in pairs):
            raise ConfigError('evaluation.dynamic_intervals is a list of pairs (milestone, interval) of whole numbers, '
                              f'1 at least, such as [(10, 1)]; not {dynamic_intervals!r}')
        self.dynamic_intervals = sorted((milestone, every) for milestone, every in pairs)
        self.greater_keys, self.less_keys = greater_keys, less_keys
        self.dataset, self.dataloader, self.evaluate, self.options = dataset, dataloader, evaluate, options
        self.interval, self.start, self.by_epoch = interval, start, by_epoch
        self.save_best, self.rule, self.out_dir, self.progress = save_best, rule, out_dir, progress
        self.tmpdir, self.broadcast_bn_buffer = tmpdir, broadcast_bn_buffer

    def before_train(self, runner: Any) -> None:
        if self.by_epoch and runner.inner_iter:  # within an epoch nothing is due
            return
        done = runner.epoch if self.by_epoch else runner.iter
        begins_here = self.start is not None and done >= self.start
        # A checkpoint is written before its evaluation: what it holds of scores lacks its own.
        scores_count = self.save_best is not None or any(ability(hook, 'needs_scores') for hook in runner.hooks)
        if begins_here or scores_count and done > 0 and self._is_due(done):
            self._run(runner, done, runner.epoch, runner.iter)

    def after_train_epoch(self, runner: Any) -> None:
        if self.by_epoch and self._is_due(runner.epoch + 1):
            self._run(runner, runner.epoch + 1, runner.epoch + 1, runner.iter)

    def after_train_iter(self, runner: Any) -> None:  # type: ignore[override]  # hooks are called with what they take
        if not self.by_epoch and self._is_due(runner.iter + 1):
            self._run(runner, runner.iter + 1, runner.epoch + 1, runner.iter + 1)

    def _is_due(self, count: int) -> bool:
        interval = next((every for milestone, every in reversed(self.dynamic_intervals) if milestone <= count),
                        self.interval)
        if self.start is None:
            return count % interval == 0
        return count >= self.start and (count - self.start) % interval == 0

    def _run(self, runner: Any, count: int, epoch: int, step: int) -> None:
        """Evaluate; neither the random numbers nor the mode of the training notice."""
        runner.loss_watch.flush()
        states, model = random_states(), unwrap(runner.model)
        runner.call_hook('before_val')
        runner.call_hook('before_val_epoch')
        if self.broadcast_bn_buffer:
            broadcast_buffers(model)
        chosen = ChosenClasses.of(model, self.dataset)
        results = run_inference(model, self.dataloader, runner.device, progress=self.progress, tmpdir=self.tmpdir,
                                convert=None if chosen is None else chosen.relabelled)
        metrics = None
        if is_main():
            metrics = dict(self.evaluate(self.dataset, results, logger=runner.logger, **self.options))
        metrics = broadcast_object(metrics)
        runner.call_hook('after_val')
        runner.set_training()
        set_random_states(states)
        runner.report_metrics(metrics, epoch, step, len(self.dataloader))
        if is_zero(metrics):
            runner.logger.warning('nothing was found that counts: see docs/troubleshooting.md#the-ap-is-0')
        if self.save_best is not None:
            self._keep_best(runner, metrics, count)

    def _keep_best(self, runner: Any, metrics: Mapping[str, Any], count: int) -> None:
        name = next(iter(metrics), None) if self.save_best == 'auto' else self.save_best
        if name is None or name not in metrics:
            raise ConfigError(f"evaluation.save_best '{name}' is no metric of this evaluation"
                              f'{nearest(str(name), metrics)}; it gives {", ".join(metrics)}')
        score, messages = float(metrics[name]), runner.meta['hook_msgs']
        if not self._is_better(name, score, messages.get('best_score')):
            return
        previous = messages.get('best_ckpt')
        folder = output_folder(self.out_dir, runner.work_dir)
        unit = 'epoch' if self.by_epoch else 'iter'
        path = folder / f"best_{name.replace('/', '_')}_{unit}_{count}.pth"
        messages.update(best_score=score, best_ckpt=str(path))
        runner.write_checkpoint(path)
        runner.logger.info('the best %s so far: %.4f at %s %d, saved as %s', name, score, unit, count, path.name)
        if is_main() and previous and Path(previous) != path:
            Path(previous).unlink(missing_ok=True)

    def _is_better(self, name: str, score: float, best: float | None) -> bool:
        if best is None or not math.isfinite(score):
            return math.isfinite(score)
        rule = self.rule or rule_of(name, self.greater_keys, self.less_keys)
        return score < best if rule == 'less' else score > best


def rule_of(metric: str, greater_keys: str | Sequence[str] | None = None,
            less_keys: str | Sequence[str] | None = None) -> str:
    """Whether a metric is good when 'greater' or 'less', from its name.

    Args:
        metric: the name.
        greater_keys: names, or parts of names, of those that are good when greater; the usual ones when None.
        less_keys: likewise when less.

    Raises:
        ConfigError: the name does not tell.
    """
    given = [(rule, [keys] if isinstance(keys, str) else keys)
             for rule, keys in (('greater', greater_keys), ('less', less_keys)) if keys is not None]
    rules = [*given, *((rule, keys) for rule, keys in (('less', _LESS), ('greater', _GREATER))
                       if rule not in dict(given))]
    for rule, keys in rules:
        if metric in keys:
            return rule
    for rule, keys in rules:
        if any(key.lower() in metric.lower() for key in keys):
            return rule
    raise ConfigError(f"evaluation.save_best '{metric}': say evaluation.rule='greater' or 'less'")


@HOOKS.register_module()
class EarlyStoppingHook(Hook):
    """Ends the training when a metric has not become better for some evaluations; mmengine's keywords.

    Args:
        monitor: the metric, or with ``workflow=[..., ('val', 1)]`` the validation loss.
        rule: 'greater' or 'less'; found from the metric's name when None.
        min_delta: what counts as better: more than this.
        patience: evaluations without anything better.
        check_finite: also end at a value that is NaN or infinite.
        stopping_threshold: also end when the metric is as good as this.
    """
    priority = 'LOW'
    needs_scores = True

    def __init__(self, monitor: str, rule: str | None = None, min_delta: float = 0., patience: int = 5,
                 check_finite: bool = True, stopping_threshold: float | None = None):
        if rule not in (None, 'greater', 'less') or patience < 1 or min_delta < 0:
            raise ConfigError(f"EarlyStoppingHook: rule '{rule}' must be 'greater' or 'less', patience {patience} 1 at "
                              f'least, min_delta {min_delta} not negative')
        self.monitor, self.sign = monitor, -1 if (rule or rule_of(monitor)) == 'less' else 1
        self.min_delta, self.patience, self.check_finite = min_delta, patience, check_finite
        self.stopping_threshold = stopping_threshold
        self._others: list[set[str]] = []  # names that came without the one looked for

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any], epoch: int) -> None:
        if self.monitor not in metrics:
            self._check_name(metrics, runner)
            return
        score = float(metrics[self.monitor])
        # Plain values in the checkpoint's meta: a resume goes on counting.
        state = runner.meta['hook_msgs'].setdefault('early_stopping', dict(best=None, waited=0))
        reason = self._judge(score, state)
        if reason:
            runner.logger.info('early stopping after epoch %d: %s %s', epoch, self.monitor, reason)
            runner.train_loop.stop_training = True

    def _judge(self, score: float, state: dict[str, Any]) -> str:
        """Note the score; why to stop, or ''."""
        if not math.isfinite(score):
            state['waited'] += 1
            return f'is {score}' if self.check_finite else ''
        if state['best'] is None or self.sign * (score - state['best']) > self.min_delta:
            state.update(best=score, waited=0)
        else:
            state['waited'] += 1
        if self.stopping_threshold is not None and self.sign * (score - self.stopping_threshold) >= 0:
            return f'is {score:g}, as good as asked for'
        if state['waited'] >= self.patience:
            return f"was not better than {state['best']:g} for {state['waited']} evaluations"
        return ''

    def _check_name(self, metrics: Mapping[str, Any], runner: Any) -> None:
        # Metrics and validation losses come by the same way; a name that neither has comes with none of them.
        if set(metrics) in self._others and not runner.meta['hook_msgs'].get('early_stopping'):
            names = sorted(set().union(*self._others))
            raise ConfigError(f"EarlyStoppingHook.monitor '{self.monitor}' is no metric of this training"
                              f'{nearest(self.monitor, names)}; it gives {", ".join(names)}')
        self._others.append(set(metrics))


@HOOKS.register_module()
class NumClassCheckHook(Hook):
    """2.x's name, in most configs, for what preflight.py checks before every training: heads against classes."""


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """2.x's name for what every iteration does here: a loss that is NaN or infinite ends the training.

    Args:
        interval: 2.x looked every so many iterations; here it is 1 at most, so a smaller check is never asked for.
    """

    def __init__(self, interval: int = 50):
        if interval < 1:
            raise ConfigError(f'CheckInvalidLossHook.interval is {interval}; it must be 1 at least')
