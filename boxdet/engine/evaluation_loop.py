"""A detector over every image of a loader: for the evaluation in training and for testing."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from boxdet.engine.distributed import gather_objects, get_dist_info, in_order, is_main, unwrap
from boxdet.structures.instances import Instances

OnResult = Callable[[int, Any, Instances], None]  # (index in the data set, ImageMeta, result)


@torch.no_grad()
def run_inference(model: nn.Module, loader: Any, device: torch.device | str, progress: bool = True,
                  on_result: OnResult | None = None) -> list[Instances] | None:
    """Predict every image of ``loader``, in the order of its data set.

    Args:
        model: detector on ``device``; left in evaluation mode.
        loader: yields Batches, or lists of Batches that are views of the same images (test-time augmentation). With
            several ranks each has its share: the indices that its sampler names.
        device: where the batches go.
        progress: tell how far it is: a bar on a terminal, else a line now and then.
        on_result: called with every image's index, meta and result as they come, on the rank that has it.

    Returns:
        one result an image, on the CPU; with several ranks on rank 0 only, None on the others.
    """
    model = unwrap(model).eval()
    total = len(loader.dataset)
    indices = _indices(loader)
    found: list[tuple[int, Instances]] = []
    shown = Progress(total, get_dist_info()[1]) if progress and is_main() else None
    for batch in loader:
        views = [view.to(device) for view in batch] if isinstance(batch, list) else batch.to(device)
        metas = views[0].metas if isinstance(views, list) else views.metas
        results = model(views, mode='predict', rescale=True)
        if len(results) != len(metas):
            raise RuntimeError(f'the detector returned {len(results)} results for {len(metas)} images')
        for meta, result in zip(metas, results):
            index = next(indices)
            result = result.to('cpu')
            if on_result is not None:
                on_result(index, meta, result)
            found.append((index, result))
        if shown is not None:
            shown.advance(len(metas))
    if shown is not None:
        shown.close()
    parts = gather_objects(found)
    return None if parts is None else in_order(parts, total)


def _indices(loader: Any) -> Iterator[int]:
    """The data-set index of each image to come: this rank's share when there are several."""
    if get_dist_info()[1] == 1:
        return iter(range(len(loader.dataset)))
    # Iterating a sampler once more does not move the loader; ours yield keys that hold the index.
    # A list, made before the loader starts: a sampler's iterator begins where the loader has come to.
    return iter([key.index if isinstance(key, tuple) else key for key in loader.sampler])


class Progress:
    """``[####      ] 400/5000, 12.3 images/s, 0:06:14 left`` on one line of a terminal; plain lines elsewhere.

    Args:
        total: images to come, of all ranks. ranks: each counts for so many.
    """

    def __init__(self, total: int, ranks: int = 1, stream: Any = None, seconds_between: float = 30.):
        self.total, self.ranks, self.done = total, ranks, 0
        self.stream = stream or sys.stdout
        self.on_terminal = self.stream.isatty()
        self._between = 0.1 if self.on_terminal else seconds_between
        self._began = self._told = time.monotonic()

    def advance(self, count: int) -> None:
        """``count`` more images are done on this rank."""
        self.done = min(self.done + count * self.ranks, self.total)
        now = time.monotonic()
        if now - self._told >= self._between:
            self._told = now
            self._write()

    def close(self) -> None:
        """Say the last word."""
        self._write()
        if self.on_terminal:
            self.stream.write('\n')
            self.stream.flush()

    def _write(self) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = self.done / seconds
        left = int((self.total - self.done) / rate) if rate else 0
        text = (f'{self.done}/{self.total} images, {rate:.1f} images/s, '
                f'{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left')
        if self.on_terminal:
            filled = 30 * self.done // max(self.total, 1)
            self.stream.write(f"\r[{'#' * filled}{' ' * (30 - filled)}] {text} ")
        else:
            self.stream.write(text + '\n')
        self.stream.flush()
