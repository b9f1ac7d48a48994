"""What a training tells: the text log and its JSON twin, TensorBoard, and trackers where they are installed.

Every logger gets the same entry (``LoggerHook.log``), so that a number has one name everywhere:

* ``mode`` ('train' or 'val'), ``epoch``, ``iter`` (within the epoch; over all for IterBasedRunner), ``lr``
* train, every ``interval`` iterations: ``memory`` (MB, the peak), ``data_time`` (seconds waited for the loader), the
  means of all losses since the entry before, ``grad_norm`` where gradients are clipped, ``time`` (seconds an iteration)
* val: the metrics; ``iter`` is the number of validation batches
"""
from __future__ import annotations

import datetime
import importlib
import json
import math
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from boxdet.engine.distributed import is_main, mean_over_ranks
from boxdet.engine.environment import collect_env
from boxdet.engine.hook_stages import Hook
from boxdet.errors import ConfigError
from boxdet.registry import HOOKS

_WAITING_SHARE = 0.4  # of an iteration spent waiting for data, from which on the log gives a hint


class LoggerHook(Hook):
    """Makes the entries and hands them to ``log`` on rank 0.

    Args:
        interval: iterations between entries.
        ignore_last: no entry for the rest of an epoch that is shorter than ``interval``; an epoch that is shorter as a
            whole gets one at its end.
        by_epoch: iterations are counted within the epoch; for IterBasedRunner False.
        reset_flag: mmcv 1.x's. Either value gives the same: an entry is the mean since the one before it.
    """
    priority = 'VERY_LOW'

    def __init__(self, interval: int = 10, ignore_last: bool = True, by_epoch: bool = True, reset_flag: bool = False):
        if interval < 1:
            raise ConfigError(f'log_config.interval is {interval}; it must be 1 at least')
        self.interval, self.ignore_last, self.by_epoch = interval, ignore_last, by_epoch
        self._seen: dict[str, tuple[float, int]] = {}

    # Hooks are called with what they take.
    def after_train_iter(self, runner: Any, batch_idx: int) -> None:  # type: ignore[override]
        length = runner.train_loop.iters_per_epoch
        count = batch_idx + 1 if self.by_epoch else runner.iter + 1
        rest_is_all = not self.ignore_last or length < self.interval
        is_short = runner.iter + 1 == runner.max_iters < self.interval
        at_end = self.by_epoch and count == length and rest_is_all or is_short
        if count % self.interval and not at_end:
            self._log_ready(runner, count, runner.iter + 1)
            return
        runner.loss_watch.flush()
        means = mean_over_ranks(runner.log_buffer.means_since(self._seen))
        self._seen = runner.log_buffer.snapshot()
        if is_main():
            entry = dict(mode='train', epoch=runner.epoch + 1, iter=count, lr=runner.current_lr()[0],
                         memory=peak_memory(runner.device), data_time=means.pop('data_time'))
            seconds = means.pop('time')
            self.log(runner, {**entry, **means, 'time': seconds, **runner.log_buffer.output}, runner.iter + 1)
        runner.log_buffer.ready = True

    def after_train_epoch(self, runner: Any) -> None:
        self._log_ready(runner, runner.inner_iter, runner.iter)

    def _log_ready(self, runner: Any, count: int, step: int) -> None:
        """What a hook put into ``log_buffer.output`` and said to be ready, as mmcv 1.x's: an entry of a validation."""
        if is_main() and runner.log_buffer.ready and runner.log_buffer.output:
            entry = dict(mode='val', epoch=runner.epoch + 1, iter=count, lr=runner.current_lr()[0])
            self.log(runner, {**entry, **runner.log_buffer.output}, step)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any], epoch: int, step: int, batches: int) -> None:
        if is_main():
            entry = dict(mode='val', epoch=epoch, iter=batches if self.by_epoch else step, lr=runner.current_lr()[0])
            self.log(runner, {**entry, **metrics}, step)

    def log(self, runner: Any, entry: dict[str, Any], step: int) -> None:
        """Write one entry; ``step`` counts iterations from the start of the training."""
        raise TypeError(f'{type(self).__name__} defines no log()')


def peak_memory(device: torch.device) -> int:
    """The most memory in use so far, in MB: the GPU's, or this process's on the CPU; 0 where the system hides it."""
    if device.type == 'cuda':
        return int(torch.cuda.max_memory_allocated(device) / 2 ** 20)
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2 ** 20 if sys.platform == 'darwin' else 2 ** 10))  # bytes there, kilobytes elsewhere


def numbers_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """An entry as trackers name it: 'train/loss', 'val/bbox_mAP', 'learning_rate'; times and texts left out."""
    skipped = ('mode', 'epoch', 'iter', 'lr', 'time', 'data_time', 'memory')
    values = {f"{entry['mode']}/{name}": float(value) for name, value in entry.items()
              if name not in skipped and isinstance(value, (int, float))}
    return {**values, 'learning_rate': entry['lr']}


@HOOKS.register_module()
class TextLoggerHook(LoggerHook):
    """The lines of the log, and one JSON object a line in ``work_dir/<timestamp>.log.json``.

    The file's first line tells the environment, the seed, the classes and the config.
    """

    def __init__(self, interval: int = 10, ignore_last: bool = True, by_epoch: bool = True,
                 interval_exp_name: int = 1000, reset_flag: bool = False):
        super().__init__(interval, ignore_last, by_epoch, reset_flag)
        self.interval_exp_name = interval_exp_name
        self._start = (0., 0)
        self._hinted = False

    def before_train(self, runner: Any) -> None:
        self._start = (time.perf_counter(), runner.iter)

    def before_run(self, runner: Any) -> None:
        if is_main():
            self._write_json(runner, dict(env_info=collect_env(), seed=runner.meta.get('seed'),
                                          exp_name=runner.meta.get('exp_name'), CLASSES=runner.meta.get('CLASSES'),
                                          config=runner.meta.get('config')))

    def log(self, runner: Any, entry: dict[str, Any], step: int) -> None:
        if entry['mode'] == 'train':
            runner.logger.info(self._train_line(runner, dict(entry)))
            self._hint(runner, entry)
        else:
            runner.logger.info(self._val_line(dict(entry)))
        if runner.meta.get('exp_name') and step % self.interval_exp_name == 0:
            runner.logger.info('Exp name: %s', runner.meta['exp_name'])
        self._write_json(runner, {name: round(value, 6) if isinstance(value, float) and math.isfinite(value) else value
                                  for name, value in entry.items()})

    def _train_line(self, runner: Any, entry: dict[str, Any]) -> str:
        del entry['mode']
        epoch, count = entry.pop('epoch'), entry.pop('iter')
        head = (f'Epoch [{epoch}][{count}/{runner.train_loop.iters_per_epoch}]' if self.by_epoch
                else f'Iter [{count}/{runner.max_iters}]')
        began, first = self._start
        seconds = (time.perf_counter() - began) / (runner.iter + 1 - first) * (runner.max_iters - runner.iter - 1)
        line = (f"{head}\tlr: {entry.pop('lr'):.3e}, eta: {datetime.timedelta(seconds=int(seconds))}, "
                f"time: {entry.pop('time'):.3f}, data_time: {entry.pop('data_time'):.3f}, "
                f"memory: {entry.pop('memory')}, ")
        return line + _items(entry)

    def _val_line(self, entry: dict[str, Any]) -> str:
        del entry['mode'], entry['lr']
        epoch, count = entry.pop('epoch'), entry.pop('iter')
        return (f'Epoch(val) [{epoch}][{count}]\t' if self.by_epoch else f'Iter(val) [{count}]\t') + _items(entry)

    def _hint(self, runner: Any, entry: Mapping[str, Any]) -> None:
        # The first entry holds the start of the workers, so it says nothing.
        if not self._hinted and runner.iter >= 2 * self.interval and entry['time'] > 0:
            share = entry['data_time'] / entry['time']
            if share > _WAITING_SHARE:
                self._hinted = True
                runner.logger.warning('%d %% of the time goes into waiting for images: more data.workers_per_gpu may '
                                      'help; see docs/troubleshooting.md#the-data-is-slow', round(100 * share))

    @staticmethod
    def _write_json(runner: Any, entry: Mapping[str, Any]) -> None:
        with open(Path(runner.work_dir) / f'{runner.timestamp}.log.json', 'a', encoding='utf-8') as file:
            file.write(json.dumps(entry) + '\n')


def _items(values: Mapping[str, Any]) -> str:
    return ', '.join(f'{name}: {value:.4f}' if isinstance(value, float) else f'{name}: {value}'
                     for name, value in values.items())


def _import_tracker(package: str, hook: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition('.')[0]
        raise ConfigError(f"log_config: {hook} needs the package '{name}' ({error}): install it (pip install "
                          f'{"tensorboard" if name == "torch" else name}) or take the hook out') from error


@HOOKS.register_module()
class TensorboardLoggerHook(LoggerHook):
    """Event files for TensorBoard, in ``log_dir`` (default ``work_dir/tf_logs``)."""

    def __init__(self, log_dir: str | None = None, interval: int = 10, ignore_last: bool = True, by_epoch: bool = True,
                 reset_flag: bool = False):
        super().__init__(interval, ignore_last, by_epoch, reset_flag)
        self.log_dir = log_dir
        self._writer_class = _import_tracker('torch.utils.tensorboard', 'TensorboardLoggerHook').SummaryWriter
        self._writer: Any = None

    def before_run(self, runner: Any) -> None:
        if is_main():
            self._writer = self._writer_class(self.log_dir or str(Path(runner.work_dir) / 'tf_logs'))

    def log(self, runner: Any, entry: dict[str, Any], step: int) -> None:
        for name, value in numbers_of(entry).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def after_run(self, runner: Any) -> None:
        if self._writer is not None:
            self._writer.close()


@HOOKS.register_module()
class WandbLoggerHook(LoggerHook):
    """Weights & Biases.

    Args:
        init_kwargs: of ``wandb.init``.
        commit: of ``wandb.log``.
        with_step: give wandb the iteration as its step; else it is logged as ``global_step``.
        log_artifact: at the end upload the logs and the config of the work_dir.
        interval, ignore_last, by_epoch, reset_flag: as in ``LoggerHook``.
    """

    def __init__(self, init_kwargs: Mapping | None = None, interval: int = 10, ignore_last: bool = True,
                 by_epoch: bool = True, reset_flag: bool = False, commit: bool | None = None, with_step: bool = True,
                 log_artifact: bool = False):
        super().__init__(interval, ignore_last, by_epoch, reset_flag)
        self.init_kwargs = dict(init_kwargs or {})
        self.with_step, self.log_artifact = with_step, log_artifact
        self._options = {} if commit is None else dict(commit=commit)
        self._wandb = _import_tracker('wandb', 'WandbLoggerHook')

    def before_run(self, runner: Any) -> None:
        if is_main():
            self._wandb.init(**{'dir': runner.work_dir, **self.init_kwargs})

    def log(self, runner: Any, entry: dict[str, Any], step: int) -> None:
        if self.with_step:
            self._wandb.log(numbers_of(entry), step=step, **self._options)
        else:
            self._wandb.log({**numbers_of(entry), 'global_step': step}, **self._options)

    def after_run(self, runner: Any) -> None:
        if not is_main():
            return
        if self.log_artifact:
            artifact = self._wandb.Artifact('work_dir', type='log')
            for path in sorted(Path(runner.work_dir).iterdir()):
                if path.name.endswith(('.log', '.log.json', '.py')):
                    artifact.add_file(str(path))
            self._wandb.log_artifact(artifact)
        self._wandb.finish()


@HOOKS.register_module()
class MMDetWandbHook(WandbLoggerHook):
    """``WandbLoggerHook`` under the name of mmdetection 2.x's, which uploads checkpoints and images too.

    Args:
        log_checkpoint, log_checkpoint_metadata, num_eval_images, bbox_score_thr: have no effect, which it says.
        init_kwargs, interval, ignore_last, by_epoch, reset_flag, commit, with_step, log_artifact: as in
            ``WandbLoggerHook``.
    """

    def __init__(self, init_kwargs: Mapping | None = None, interval: int = 50, log_checkpoint: bool = False,
                 log_checkpoint_metadata: bool = False, num_eval_images: int = 100, bbox_score_thr: float = 0.3,
                 ignore_last: bool = True, by_epoch: bool = True, reset_flag: bool = False, commit: bool | None = None,
                 with_step: bool = True, log_artifact: bool = False):
        super().__init__(init_kwargs, interval, ignore_last, by_epoch, reset_flag, commit, with_step, log_artifact)
        if log_checkpoint or log_checkpoint_metadata or num_eval_images:
            warnings.warn('MMDetWandbHook uploads numbers only, no checkpoints and no images: tools/test.py --show-dir '
                          'draws images; log_checkpoint=False, log_checkpoint_metadata=False, num_eval_images=0 turn '
                          'this message off', stacklevel=2)


@HOOKS.register_module()
class MlflowLoggerHook(LoggerHook):
    """MLflow.

    Args:
        exp_name: the experiment.
        tags: of the run.
        params: of the run.
        log_model: mmcv 1.x's, has no effect, which it says.
        interval, ignore_last, by_epoch, reset_flag: as in ``LoggerHook``.
    """

    def __init__(self, exp_name: str | None = None, tags: Mapping | None = None, params: Mapping | None = None,
                 interval: int = 10, ignore_last: bool = True, by_epoch: bool = True, reset_flag: bool = False,
                 log_model: bool = False):
        super().__init__(interval, ignore_last, by_epoch, reset_flag)
        if log_model:
            warnings.warn('MlflowLoggerHook(log_model=True) has no effect: the checkpoints stay in the work_dir, from '
                          'where mlflow.log_artifact uploads one', stacklevel=2)
        self.exp_name, self.tags, self.params = exp_name, tags, params
        self._mlflow = _import_tracker('mlflow', 'MlflowLoggerHook')

    def before_run(self, runner: Any) -> None:
        if not is_main():
            return
        if self.exp_name is not None:
            self._mlflow.set_experiment(self.exp_name)
        if self.tags is not None:
            self._mlflow.set_tags(dict(self.tags))
        if self.params is not None:
            self._mlflow.log_params(dict(self.params))

    def log(self, runner: Any, entry: dict[str, Any], step: int) -> None:
        self._mlflow.log_metrics({name.replace('@', '_at_'): value for name, value in numbers_of(entry).items()},
                                 step=step)

    def after_run(self, runner: Any) -> None:
        if is_main():
            self._mlflow.end_run()
