"""A detector over every image of a loader: for the evaluation in training and for testing."""
from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boxdet.engine.distributed import all_gather_objects, from_other_ranks, get_dist_info, is_main, unwrap
from boxdet.engine.part_times import PartTimes
from boxdet.errors import DataError
from boxdet.evaluation.stored_results import StoredResults
from boxdet.structures.instances import Instances

OnResult = Callable[[int, Any, Instances], None]  # (index in the data set, ImageMeta, result)


@torch.no_grad()
def run_inference(model: nn.Module, loader: Any, device: torch.device | str, progress: bool = True,
                  on_result: OnResult | None = None, tmpdir: str | Path | None = None,
                  convert: Callable[[Instances], Instances] | None = None,
                  times: PartTimes | None = None) -> Sequence[Instances] | None:
    """Predict every image of ``loader``, in the order of its data set.

    Args:
        model: detector on ``device``; left in evaluation mode.
        loader: yields Batches, or lists of Batches that are views of the same images (test-time augmentation). With
            several ranks each has its share: the indices that its sampler names.
        device: where the batches go.
        progress: tell how far it is: a bar on a terminal, else a line now and then.
        on_result: called with every image's index, meta and result as they come, on the rank that has it.
        tmpdir: with several ranks, bring the results together through files in this folder, which every machine sees,
            instead of the connections between the ranks. The files are deleted.
        convert: applied to each result before it is kept, after ``on_result``.
        times: of ``model``, which measures this rank's parts.

    Returns:
        one result an image, packed on the CPU or disk until it is read; with several ranks on rank 0 only, None on
        the others. A copy that padded a rank's share counts once.

    Raises:
        RuntimeError: the detector or a rank did not deliver every image.
    """
    model = unwrap(model).eval()
    total = len(loader.dataset)
    indices = _indices(loader)
    results = StoredResults(total)
    own: list[int] = []
    shown = Progress(total, get_dist_info()[1]) if progress and is_main() else None
    measured = PartTimes(model, device) if times is None else times
    for batch in measured.waiting(loader):
        views = [view.to(device) for view in batch] if isinstance(batch, list) else batch.to(device)
        metas = views[0].metas if isinstance(views, list) else views.metas
        found = model(views, mode='predict', rescale=True)
        measured.begin('output')
        if len(found) != len(metas):
            raise RuntimeError(f'the detector returned {len(found)} results for {len(metas)} images')
        for meta, result in zip(metas, found):
            index = next(indices)
            result = result.to('cpu')
            if on_result is not None:
                on_result(index, meta, result)
            results.put(index, result if convert is None else convert(result))
            own.append(index)
        if shown is not None:
            shown.advance(len(metas))
    measured.begin(None)
    if shown is not None:
        shown.close()
    mine = ((index, data) for index in own if (data := results.packed(index)) is not None)
    for index, data in from_other_ranks(mine) if tmpdir is None else _from_files(mine, Path(tmpdir)):
        results.put_packed(index, data)
    if not is_main():
        return None
    if results.missing():
        raise RuntimeError(f'no rank delivered the results {results.missing()[:5]} of {total}')
    return results


def _from_files(own: Iterable[tuple[int, bytes]], folder: Path) -> Iterator[tuple[int, bytes]]:
    """``from_other_ranks`` through one file a rank: (index, length) as two int64, then so many bytes, and again.

    Raises:
        DataError: the folder cannot be written, or rank 0 does not see what the others wrote.
    """
    rank, world = get_dist_info()
    if rank != 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f'results_{rank}', 'wb') as file:
                for index, data in own:
                    file.write(_ENTRY.pack(index, len(data)) + data)
        except OSError as error:
            raise DataError(f'--tmpdir: cannot write {error.filename or folder}: {error.strerror}') from error
    all_gather_objects(None)  # all are written
    for path in (folder / f'results_{other}' for other in range(1, world if rank == 0 else 1)):
        if not path.exists():
            raise DataError(f'--tmpdir: rank 0 does not see {path}: the folder must be one that all machines share')
        with open(path, 'rb') as file:
            while head := file.read(_ENTRY.size):
                index, length = _ENTRY.unpack(head)
                yield index, file.read(length)
        path.unlink()
    all_gather_objects(None)  # all are read: the next evaluation may write


_ENTRY = struct.Struct('<qq')


def _indices(loader: Any) -> Iterator[int]:
    """The data-set index of each image to come: this rank's share when there are several."""
    if get_dist_info()[1] == 1:
        return iter(range(len(loader.dataset)))
    # Iterating a sampler once more does not move the loader; ours yield keys that hold the index.
    # A list, made before the loader starts: a sampler's iterator begins where the loader has come to.
    return iter([key[0] if isinstance(key, tuple) else key for key in loader.sampler])


class Progress:
    """``[####      ] 400/5000, 12.3 images/s, 0:06:14 left`` on one line of a terminal; plain lines elsewhere.

    Args:
        total: images to come, of all ranks. ranks: each counts for so many. unit: what is counted.
    """

    def __init__(self, total: int, ranks: int = 1, stream: Any = None, seconds_between: float = 30.,
                 unit: str = 'images'):
        self.total, self.ranks, self.unit, self.done = total, ranks, unit, 0
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
        text = (f'{self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, '
                f'{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left')
        if self.on_terminal:
            filled = 30 * self.done // max(self.total, 1)
            self.stream.write(f"\r[{'#' * filled}{' ' * (30 - filled)}] {text} ")
        else:
            self.stream.write(text + '\n')
        self.stream.flush()
