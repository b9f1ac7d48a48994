"""What a hook is: the stages that call it, and mmcv 1.x's helpers inside it.

Two older ways lead to a stage besides its own name: mmcv 1.x's ``before_epoch``, ``after_epoch``, ``before_iter`` and
``after_iter``, which stand for those of training and validation alike, and mmengine's ``_before_epoch(runner, mode)``
and the like. A method of the stage's own name takes the place of both, as it does there.
"""
from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.hooks import Hook as _MMEngineHook

from boxdet.abilities import overrides
from boxdet.errors import nearest

# Every stage that something calls, in the order of a training.
STAGES = ('before_run', 'after_load_checkpoint', 'before_train', 'before_train_epoch', 'before_train_iter',
          'after_train_iter', 'after_train_epoch', 'before_val', 'before_val_epoch', 'before_val_iter',
          'after_val_iter', 'after_val', 'after_val_epoch', 'before_save_checkpoint', 'after_train', 'after_run')
_SHARED = {stage: stage.replace('_train', '').replace('_val', '') for stage in STAGES
           if stage.endswith(('_epoch', '_iter'))}  # before_train_epoch: before_epoch


class Hook(_MMEngineHook):
    """What happens around the iterations; a subclass overrides stages.

    A method takes ``(self, runner)`` and those of the stage's keywords that it names: ``batch_idx``, ``data_batch``,
    ``outputs`` of an iteration (after it), ``metrics``, ``epoch``, ``step``, ``batches`` of ``after_val_epoch``,
    ``checkpoint``.
    """

    def before_epoch(self, runner: Any) -> None:
        """Before an epoch of training, and of the workflow's validation."""

    def after_epoch(self, runner: Any) -> None:
        """After an epoch of training, and of the workflow's validation."""

    def before_iter(self, runner: Any) -> None:
        """Before an iteration of training, and of the workflow's validation."""

    def after_iter(self, runner: Any) -> None:
        """After an iteration of training, and of the workflow's validation."""

    # What super().before_train_epoch(runner) and the like lead to; mmengine's iterations insist on their number.

    def _before_epoch(self, runner: Any, mode: str = 'train') -> None:
        self.before_epoch(runner)

    def _after_epoch(self, runner: Any, mode: str = 'train') -> None:
        self.after_epoch(runner)

    def _before_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        self.before_iter(runner)

    def _after_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        self.after_iter(runner)

    def before_train_iter(self, runner: Any, batch_idx: int = 0, data_batch: Any = None) -> None:
        self._before_iter(runner, batch_idx, data_batch, mode='train')

    def after_train_iter(self, runner: Any, batch_idx: int = 0, data_batch: Any = None, outputs: Any = None) -> None:
        self._after_iter(runner, batch_idx, data_batch, outputs, mode='train')

    def before_val_iter(self, runner: Any, batch_idx: int = 0, data_batch: Any = None) -> None:
        self._before_iter(runner, batch_idx, data_batch, mode='val')

    def after_val_iter(self, runner: Any, batch_idx: int = 0, data_batch: Any = None, outputs: Any = None) -> None:
        self._after_iter(runner, batch_idx, data_batch, outputs, mode='val')

    # mmcv 1.x's helpers. Inside a stage the current iteration and epoch are not counted yet.

    def every_n_iters(self, runner: Any, n: int) -> bool:
        """Whether this iteration of the training is the n-th, the 2n-th, …; never for n < 1."""
        return n > 0 and (runner.iter + 1) % n == 0

    def every_n_inner_iters(self, runner: Any, n: int) -> bool:
        """As ``every_n_iters``, counted within the epoch; mmengine hands over ``batch_idx`` for the runner."""
        done = runner if isinstance(runner, int) else runner.inner_iter
        return n > 0 and (done + 1) % n == 0

    def end_of_epoch(self, runner: Any, batch_idx: int | None = None) -> bool:
        """Whether this iteration is the epoch's last; mmengine hands over ``dataloader, batch_idx``."""
        if batch_idx is not None:
            return batch_idx + 1 == len(runner)
        return runner.inner_iter + 1 == (len(runner.data_loader) if runner.mode == 'val'
                                         else runner.train_loop.iters_per_epoch)

    def is_last_epoch(self, runner: Any) -> bool:
        """Whether this epoch is the training's last."""
        return runner.epoch + 1 == runner.max_epochs

    def is_last_iter(self, runner: Any) -> bool:
        """Whether this iteration is the training's last."""
        return runner.iter + 1 == runner.max_iters

    def get_triggered_stages(self) -> list[str]:
        """The stages in which this hook does something, in their order."""
        return [stage for stage in STAGES if method_of(self, stage) is not None]


def method_of(hook: Any, stage: str, shared: bool = True) -> Callable | None:
    """What ``stage`` calls of ``hook``; None where it does nothing there.

    Args:
        hook: of any class.
        stage: one of ``STAGES``.
        shared: ``before_epoch`` and its like count as a method of this stage.
    """
    own = getattr(hook, stage, None)
    if own is None or _is_own(hook, stage):
        return own
    name = _SHARED.get(stage)
    if name is None:
        return None
    if shared and _is_own(hook, name):
        return getattr(hook, name)
    # mmengine's own stage leads to its underscored one; ours to before_epoch.
    return own if _is_own(hook, f'_{name}') else None


def _is_own(hook: Any, method: str) -> bool:
    return overrides(hook, method, Hook, _MMEngineHook)


def idle_methods(hook: Any) -> Iterator[str]:
    """For each method that is named like a stage and that no stage calls: that, with the nearest stage."""
    known = (*STAGES, *dict.fromkeys(_SHARED.values()))
    for name in dir(type(hook)):
        method = getattr(type(hook), name)
        if name in known or not inspect.isfunction(method) or not _is_own(hook, name):
            continue
        if name.startswith(('before_', 'after_')) or difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            yield f'{type(hook).__name__}.{name}: no stage calls this method{nearest(name, known)}'
