"""Losses: summed, read without making the GPU wait, the training stopped at the first one that is no number."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from boxdet.errors import UserError


class TrainingError(UserError):
    """A training that cannot go on: a loss is NaN or infinite."""


def total_loss(losses: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum a detector's losses.

    Args:
        losses: tensors or lists of tensors (one a level) by name.

    Returns:
        the sum of what has 'loss' in its name, and every value as a detached scalar (lists summed) with the sum as
        'loss'.

    Raises:
        TypeError: a value that is neither. ValueError: nothing is called a loss.
    """
    values: dict[str, torch.Tensor] = {}
    for name, value in losses.items():
        if isinstance(value, torch.Tensor):
            values[name] = value.mean()
        elif isinstance(value, (list, tuple)) and all(isinstance(v, torch.Tensor) for v in value) and value:
            values[name] = sum(v.mean() for v in value)
        else:
            raise TypeError(f"loss '{name}' is a {type(value).__name__}, not a tensor or a list of them")
    parts = [value for name, value in values.items() if 'loss' in name]
    if not parts:
        raise ValueError(f"the model returned no value with 'loss' in its name: {sorted(values)}")
    total = cast(torch.Tensor, sum(parts))
    return total, {**{name: value.detach() for name, value in values.items()}, 'loss': total.detach()}


class LogBuffer:
    """Sums of named numbers since the start of the training.

    A reader remembers a ``snapshot`` and asks for the means since then, so that several may read at their own pace.

    Attributes:
        output: values that a hook wants told as they are, as in mmcv 1.x: with the next entry of the log, or with
            ``ready = True`` at the end of the stage. Told ones are taken out.
    """

    def __init__(self) -> None:
        self._totals: dict[str, tuple[float, int]] = {}
        self.output: dict[str, Any] = {}
        self.ready = False

    def update(self, values: Mapping[str, float], count: int = 1) -> None:
        """Add values, each with the weight ``count``."""
        for name, value in values.items():
            total, seen = self._totals.get(name, (0., 0))
            self._totals[name] = total + float(value) * count, seen + count

    def clear_told(self) -> None:
        """Forget the ``output`` that was told."""
        if self.ready:
            self.output.clear()
            self.ready = False

    def snapshot(self) -> dict[str, tuple[float, int]]:
        """What was added so far, for ``means_since``."""
        return dict(self._totals)

    def means_since(self, snapshot: Mapping[str, tuple[float, int]] | None = None) -> dict[str, float]:
        """The means of what was added after ``snapshot`` (of everything for None), in the order of first appearance."""
        means = {}
        for name, (total, count) in self._totals.items():
            before, seen = (snapshot or {}).get(name, (0., 0))
            if count > seen:
                means[name] = (total - before) / (count - seen)
        return means


class LossWatch:
    """Takes each iteration's losses off the device and looks at them.

    On the CPU at once. On a GPU the values are copied beside the computation and looked at when the next iteration's
    arrive: nothing waits for the GPU within an iteration, at the price of noticing one iteration late.
    """

    def __init__(self, buffer: LogBuffer, device: torch.device):
        self._buffer = buffer
        self._deferred = device.type == 'cuda'
        self._pending: list[tuple[int, list[str], torch.Tensor, Any, Sequence[Any]]] = []

    def record(self, iteration: int, values: Mapping[str, torch.Tensor], metas: Sequence[Any]) -> None:
        """Take the scalars ``values`` of iteration ``iteration`` on the images ``metas``.

        Raises:
            TrainingError: a loss (on a GPU: of the iteration before) is NaN or infinite.
        """
        # A head may count something on the CPU while the losses are on the GPU: all go where the latter are.
        device = next((value.device for value in values.values() if value.device.type != 'cpu'), torch.device('cpu'))
        packed = torch.stack([value.detach().float().to(device, non_blocking=True) for value in values.values()])
        if not self._deferred:
            self._look(iteration, list(values), packed.tolist(), metas)
            return
        host, copied = _start_copy(packed)
        while self._pending and self._pending[0][0] < iteration:
            self._look_at_oldest()
        self._pending.append((iteration, list(values), host, copied, metas))

    def flush(self) -> None:
        """Wait for and look at what is still on its way; before a log line, a checkpoint, the end of an epoch."""
        while self._pending:
            self._look_at_oldest()

    def _look_at_oldest(self) -> None:
        iteration, names, host, copied, metas = self._pending.pop(0)
        copied.synchronize()
        self._look(iteration, names, host.tolist(), metas)

    def _look(self, iteration: int, names: Sequence[str], values: Sequence[float], metas: Sequence[Any]) -> None:
        by_name = dict(zip(names, values))
        if any('loss' in name and not math.isfinite(value) for name, value in by_name.items()):
            files = ', '.join(str(meta.filename) for meta in metas)
            parts = ', '.join(f'{name} {value:.4g}' for name, value in by_name.items())
            raise TrainingError(f'the loss is not finite at iteration {iteration}: {parts}; images: {files}; '
                                'see docs/troubleshooting.md#the-loss-is-nan')
        # With a loss scale a gradient norm may overflow now and then: that update is not made, and counts in no mean.
        self._buffer.update({name: value for name, value in by_name.items() if math.isfinite(value)})


def _start_copy(values: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Copy from the GPU beside the computation; returns where to, and the event after which it is there."""
    host = torch.empty(values.shape, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied
