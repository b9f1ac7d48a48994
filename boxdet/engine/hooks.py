"""What happens around the iterations: learning rate, checkpoints, evaluation. (Logs: loggers.py.)

A hook of one's own derives from ``Hook`` and joins by ``@HOOKS.register_module()`` and ``custom_hooks``; its stages are
mmengine's (``before_run, before_train, before_train_epoch, before_train_iter, after_train_iter, after_train_epoch,
after_val_epoch, after_train, after_run``), called with the runner and whatever else they name.
"""
from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from boxdet.checkpoints.io import remove_partial_files
from boxdet.engine.distributed import broadcast_buffers, broadcast_object, is_main, unwrap
from boxdet.engine.environment import random_states, set_random_states
from boxdet.engine.evaluation_loop import run_inference
from boxdet.engine.learning_rate import LrSchedule
from boxdet.errors import ConfigError, nearest
from boxdet.registry import HOOKS

__all__ = ['CheckInvalidLossHook', 'CheckpointHook', 'EvaluationHook', 'Hook', 'LrUpdaterHook', 'NumClassCheckHook']


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

    def before_train_iter(self, runner: Any) -> None:
        for group, base in zip(runner.optimizer.param_groups, self._base):
            group['lr'] = self.schedule.rate(base, runner.progress)


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves ``epoch_N.pth`` or ``iter_N.pth`` and points ``latest.pth`` to it: 2.x's ``checkpoint_config``.

    Args:
        interval: epochs (iterations without ``by_epoch``) between checkpoints; -1 saves the last one only.
        by_epoch: count epochs.
        save_optimizer: keep what a resume needs besides the weights.
        out_dir: default the work_dir; else a folder of the work_dir's name is made in it.
        max_keep_ckpts: delete older ones beyond so many; -1 keeps all. The newest and the best are never deleted.
        save_last: also save when the training ends.
    """
    priority = 'NORMAL'

    def __init__(self, interval: int = -1, by_epoch: bool = True, save_optimizer: bool = True,
                 out_dir: str | None = None, max_keep_ckpts: int = -1, save_last: bool = True):
        if interval == 0 or max_keep_ckpts == 0:
            raise ConfigError('checkpoint_config: interval and max_keep_ckpts must not be 0 (-1 means never and all)')
        self.interval, self.by_epoch, self.save_optimizer = interval, by_epoch, save_optimizer
        self.out_dir, self.max_keep_ckpts, self.save_last = out_dir, max_keep_ckpts, save_last
        self._folder = Path()

    def before_run(self, runner: Any) -> None:
        self._folder = output_folder(self.out_dir, runner.work_dir)
        if is_main() and self._folder.is_dir():
            remove_partial_files(self._folder)

    def after_train_epoch(self, runner: Any) -> None:
        epoch = runner.epoch + 1
        if self.by_epoch and (self._is_due(epoch) or self.save_last and epoch == runner.max_epochs):
            self._save(runner, f'epoch_{epoch}.pth')

    def after_train_iter(self, runner: Any) -> None:
        count = runner.iter + 1
        if not self.by_epoch and (self._is_due(count) or self.save_last and count == runner.max_iters):
            self._save(runner, f'iter_{count}.pth')

    def _is_due(self, count: int) -> bool:
        return self.interval > 0 and count % self.interval == 0

    def _save(self, runner: Any, name: str) -> None:
        runner.logger.info('Saving checkpoint %s', name)
        path = runner.save_checkpoint(self._folder / name, save_optimizer=self.save_optimizer)
        if is_main():
            point_to(self._folder / 'latest.pth', path)
            if self.max_keep_ckpts > 0:
                self._delete_old(name)

    def _delete_old(self, newest: str) -> None:
        kind, _, number = newest.removesuffix('.pth').partition('_')
        found = {int(match.group(1)): path for path in self._folder.glob(f'{kind}_*.pth')
                 if (match := re.fullmatch(rf'{kind}_(\d+)\.pth', path.name))}
        # Files with higher numbers are of a longer training before this one: not ours to delete.
        older = sorted(n for n in found if n <= int(number))
        for n in older[:-self.max_keep_ckpts]:
            found[n].unlink(missing_ok=True)


def output_folder(out_dir: str | None, work_dir: str) -> Path:
    """Where files go: the work_dir, or the folder of its name inside ``out_dir``."""
    return Path(work_dir) if out_dir is None else Path(out_dir) / Path(work_dir).name


def point_to(link: Path, target: Path) -> None:
    """Make ``link`` a symbolic link to its sibling ``target`` in one step; a copy where links are not to be had."""
    temporary = link.with_name(f'.{link.name}.{os.getpid()}.partial')
    temporary.unlink(missing_ok=True)
    try:
        os.symlink(target.name, temporary)
    except OSError:
        shutil.copyfile(target, temporary)
    os.replace(temporary, link)


_GREATER = ('acc', 'top', 'AR@', 'auc', 'precision', 'mAP', 'mDice', 'mIoU', 'mAcc', 'aAcc', 'recall')
_LESS = ('loss',)


@HOOKS.register_module()
class EvaluationHook(Hook):
    """Runs the detector over the validation set and logs the metrics: 2.x's ``evaluation``.

    Args:
        dataset: the validation set. dataloader: its images in order.
        evaluate: ``evaluate(dataset, results, logger=…, **options) -> dict`` of metrics.
        interval: epochs (iterations without ``by_epoch``) between evaluations.
        start: the first one, counted likewise; 0 evaluates before training.
        save_best: keep the checkpoint of the best value of this metric; 'auto' takes the first one.
        rule: 'greater' or 'less'; found from the metric's name when None.
        out_dir: where the best checkpoint goes, see ``CheckpointHook``.
        progress: show the images' progress.
        **options: of ``evaluate``: metric, classwise, …

    Raises:
        ConfigError: an option out of range; later, a metric ``save_best`` that the evaluation does not give.
    """
    priority = 'LOW'

    def __init__(self, dataset: Any, dataloader: Any, evaluate: Callable[..., Mapping[str, Any]], interval: int = 1,
                 start: int | None = None, by_epoch: bool = True, save_best: str | None = None,
                 rule: str | None = None, out_dir: str | None = None, progress: bool = True, **options: Any):
        if interval < 1 or (start is not None and start < 0):
            raise ConfigError(f'evaluation: interval {interval} must be 1 at least, start {start} not negative')
        if rule not in (None, 'greater', 'less'):
            raise ConfigError(f"evaluation.rule '{rule}' is neither 'greater' nor 'less'")
        self.dataset, self.dataloader, self.evaluate, self.options = dataset, dataloader, evaluate, options
        self.interval, self.start, self.by_epoch = interval, start, by_epoch
        self.save_best, self.rule, self.out_dir, self.progress = save_best, rule, out_dir, progress

    def before_train(self, runner: Any) -> None:
        done = runner.epoch if self.by_epoch else runner.iter
        begins_here = self.start is not None and done >= self.start
        # A checkpoint is written before its evaluation: the best score it holds lacks its own.
        unscored = self.save_best is not None and done > 0 and self._is_due(done)
        if begins_here or unscored:
            self._run(runner, done, runner.epoch, runner.iter)

    def after_train_epoch(self, runner: Any) -> None:
        if self.by_epoch and self._is_due(runner.epoch + 1):
            self._run(runner, runner.epoch + 1, runner.epoch + 1, runner.iter)

    def after_train_iter(self, runner: Any) -> None:
        if not self.by_epoch and self._is_due(runner.iter + 1):
            self._run(runner, runner.iter + 1, runner.epoch + 1, runner.iter + 1)

    def _is_due(self, count: int) -> bool:
        if self.start is None:
            return count % self.interval == 0
        return count >= self.start and (count - self.start) % self.interval == 0

    def _run(self, runner: Any, count: int, epoch: int, step: int) -> None:
        """Evaluate; neither the random numbers nor the mode of the training notice."""
        runner.loss_watch.flush()
        states, model = random_states(), unwrap(runner.model)
        broadcast_buffers(model)
        results = run_inference(model, self.dataloader, runner.device, progress=self.progress)
        metrics = None
        if is_main():
            metrics = dict(self.evaluate(self.dataset, results, logger=runner.logger, **self.options))
        metrics = broadcast_object(metrics)
        model.train()
        set_random_states(states)
        runner.report_metrics(metrics, epoch, step, len(self.dataloader))
        if self.save_best is not None:
            self._keep_best(runner, metrics, count)

    def _keep_best(self, runner: Any, metrics: Mapping[str, Any], count: int) -> None:
        name = next(iter(metrics), None) if self.save_best == 'auto' else self.save_best
        if name not in metrics:
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
        runner.save_checkpoint(path)
        runner.logger.info('the best %s so far: %.4f at %s %d, saved as %s', name, score, unit, count, path.name)
        if is_main() and previous and Path(previous) != path:
            Path(previous).unlink(missing_ok=True)

    def _is_better(self, name: str, score: float, best: float | None) -> bool:
        if best is None or not math.isfinite(score):
            return math.isfinite(score)
        return score < best if (self.rule or rule_of(name)) == 'less' else score > best


def rule_of(metric: str) -> str:
    """Whether a metric is good when 'greater' or 'less', from its name.

    Raises:
        ConfigError: the name does not tell.
    """
    for rule, parts in (('less', _LESS), ('greater', _GREATER)):
        if any(part.lower() in metric.lower() for part in parts):
            return rule
    raise ConfigError(f"evaluation.save_best '{metric}': say evaluation.rule='greater' or 'less'")


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
