"""Where the time of an inference goes: data, backbone, RPN, boxes, masks, keypoints, output."""
from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

PARTS = ('data', 'backbone', 'RPN', 'boxes', 'masks', 'keypoints', 'output')
# Which part of a detector's work begins when one of these modules runs; those not named here belong to what runs.
_BEGINS = {'backbone': 'backbone', 'neck': 'backbone', 'rpn_head': 'RPN', 'roi_head.bbox_roi_extractor': 'boxes',
           'roi_head.bbox_head': 'boxes', 'roi_head.mask_roi_extractor': 'masks', 'roi_head.mask_head': 'masks',
           'roi_head.keypoint_roi_extractor': 'keypoints', 'roi_head.keypoint_head': 'keypoints'}


class PartTimes:
    """Measures the parts of an inference while it is entered.

    A part lasts from the first of its modules that runs to the first of another part: what a head computes of its
    outputs, suppression for instance, is the head's. On a GPU the parts are told by events of its queue, so that
    nothing waits for the sake of measuring.

    Args:
        model: detector on its device.
        device: where it is.

    Attributes:
        seconds: by part, those that ran in the order of ``PARTS``.

    >>> times = PartTimes(nn.Identity(), 'cpu')
    >>> with times:
    ...     for batch in times.waiting([1, 2]):
    ...         times.begin('output')
    >>> list(times.seconds)
    ['data', 'output']
    """

    def __init__(self, model: nn.Module, device: torch.device | str):
        self._model, self._device = model, torch.device(device)
        self._on_gpu = self._device.type == 'cuda'
        self._totals = dict.fromkeys(PARTS, 0.)
        self._ran: set[str] = set()
        self._marks: list[tuple[str | None, Any]] = []  # (part that begins, when), since the last reckoning
        self._current: str | None = None
        self._hooks = ExitStack()

    @property
    def seconds(self) -> dict[str, float]:
        """By part, those that ran."""
        return {part: self._totals[part] for part in PARTS if part in self._ran}

    def begin(self, part: str | None) -> None:
        """From now on time is that of ``part``; None for nobody's."""
        if part == self._current:
            return
        self._current = part
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """``batches``; the time that each takes to come is that of 'data'."""
        batches = iter(batches)
        while True:
            self.begin('data')
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._reckon()
            yield batch

    def __enter__(self) -> PartTimes:
        for name, module in self._model.named_modules():
            part = next((part for prefix, part in _BEGINS.items() if f'{name}.'.startswith(f'{prefix}.')), None)
            if part is not None:
                handle = module.register_forward_pre_hook(lambda *_, part=part: self.begin(part))
                self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.close()
        self.begin(None)
        self._reckon()

    def _reckon(self) -> None:
        """Add up what was marked; the last mark stays, its part goes on."""
        if self._on_gpu and self._marks:
            self._marks[-1][1].synchronize()
        for (part, begun), (_, ended) in zip(self._marks, self._marks[1:]):
            if part is not None:
                self._totals[part] += begun.elapsed_time(ended) / 1000 if self._on_gpu else ended - begun
                self._ran.add(part)
        self._marks = self._marks[-1:]


def told(seconds: dict[str, float], images: int) -> str:
    """One line: the seconds an image of each part, and of all."""
    parts = ' + '.join(f'{part} {value / max(images, 1):.4f}' for part, value in seconds.items())
    return f'seconds an image: {parts} = {sum(seconds.values()) / max(images, 1):.4f}'
