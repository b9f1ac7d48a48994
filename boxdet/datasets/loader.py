"""The loader: worker processes that turn samples into batches, reproducibly and without running over the machine."""
from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from boxdet.abilities import ability
from boxdet.datasets.collate import collate
from boxdet.datasets.samplers import (
    ClassAwareSampler,
    DistributedSampler,
    EpochSampler,
    GroupSampler,
    InfiniteClassAwareSampler,
    InfiniteGroupSampler,
    SampleKey,
    distributed_place,
)
from boxdet.errors import ConfigError, DataError, UserError, nearest
from boxdet.structures.batch import Batch


class _Failed:
    """A user's error on its way out of a worker: torch would wrap it in a traceback."""

    def __init__(self, error: UserError):
        self.error = error


class _Replaced:
    """A sample (or a batch) with the reasons why it stands in for others that cannot be read."""

    def __init__(self, content: Any, reasons: Sequence[str]):
        self.content, self.reasons = content, list(reasons)

    def pin_memory(self) -> _Replaced:
        return _Replaced(self.content.pin_memory(), self.reasons)


_MOST_REPLACEMENTS = 20  # unreadable images in a row: then it is not a few files that are broken


class _SeededSamples(Dataset):
    """Samples by SampleKey.

    The random state of each follows from its key, so that neither the number of workers nor what was drawn before
    matters.
    """

    def __init__(self, dataset: Any, may_replace: bool = False):
        self.dataset = dataset
        self.may_replace = may_replace
        self._compact = ability(dataset, 'gives_compact')

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict | _Replaced | _Failed:
        # Without workers this is the training process, whose own random numbers must not depend on the data.
        with contextlib.nullcontext() if get_worker_info() else _kept_random_state():
            seed = int(np.random.SeedSequence([key.seed, key.epoch, key.index]).generate_state(1)[0])
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            return self._sample(key.index)

    def _sample(self, index: int) -> dict | _Replaced | _Failed:
        reasons: list[str] = []
        while True:
            try:
                sample = self.dataset.sample(index, compact=True) if self._compact else self.dataset[index]
                return _Replaced(sample, reasons) if reasons else sample
            except UserError as error:
                reasons.append(str(error))
                if not self.may_replace or not isinstance(error, DataError) or len(reasons) > _MOST_REPLACEMENTS:
                    return _Failed(error)
            index = self._another(index)

    def _another(self, index: int) -> int:
        """Another image, which fits into the same batch; it follows from the sample's seed."""
        flag = ability(self.dataset, 'flag')
        fitting = np.arange(len(self)) if flag is None else np.flatnonzero(flag == flag[index])
        return int(np.random.choice(fitting))


@contextlib.contextmanager
def _kept_random_state() -> Iterator[None]:
    python, numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(of_torch)


def _collate_or_fail(samples: Sequence[Any]) -> Any:
    failed = next((s for s in samples if isinstance(s, _Failed)), None)
    if failed:
        return failed
    reasons = [reason for s in samples if isinstance(s, _Replaced) for reason in s.reasons]
    batch = collate([s.content if isinstance(s, _Replaced) else s for s in samples])
    return _Replaced(batch, reasons) if reasons else batch


class BatchLoader(DataLoader):
    """A DataLoader of Batches that tells its sampler how far it has come, and says clearly what went wrong.

    ``len`` is the number of batches of an epoch; ``unreadable`` tells of the images so far for which others were taken.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[Batch | list[Batch]]:  # type: ignore[override]  # torch promises its own class
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except RuntimeError as error:
                if 'exited unexpectedly' in str(error) or 'is killed by signal' in str(error):
                    raise DataError(_dead_worker(str(error), self.num_workers)) from error
                raise
            if isinstance(batch, _Failed):
                raise batch.error
            if isinstance(batch, _Replaced):
                self._tell(batch.reasons)
                batch = batch.content
            self._note(len(batch[0] if isinstance(batch, list) else batch))
            yield batch
        if isinstance(self.sampler, EpochSampler):
            self.sampler.finish()

    def _tell(self, reasons: Sequence[str]) -> None:
        """Log what is new (an image comes again in every epoch), and end the training when it is too much."""
        most = _most_errors(self.dataset.dataset)  # type: ignore[attr-defined]  # the one that prepares samples
        for reason in reasons:
            if reason in self.unreadable:
                continue
            self.unreadable.append(reason)
            if len(self.unreadable) > most:
                raise DataError(f'{len(self.unreadable)} images could not be read, more than max_errors={most}; the '
                                f'last one: {reason}')
            logging.getLogger('boxdet').warning("on_error='skip': image %d of at most %d is skipped: %s",
                                                len(self.unreadable), most, reason)

    def _note(self, count: int) -> None:
        if isinstance(self.sampler, EpochSampler):
            self.sampler.advance(count)


def _parts(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers, or the data set itself."""
    inside = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    for part in inside:
        yield from _parts(part)
    if not inside:
        yield dataset


def _may_replace(dataset: Any) -> bool:
    return all(ability(part, 'on_error') == 'skip' for part in _parts(dataset))


def _most_errors(dataset: Any) -> int:
    return sum(part.max_errors for part in _parts(dataset))


def _dead_worker(message: str, workers: int) -> str:
    free = os.statvfs('/dev/shm') if os.path.isdir('/dev/shm') else None
    memory = f'; /dev/shm has {free.f_bavail * free.f_frsize >> 20} MiB left' if free else ''
    return (f'a data-loading process died ({message.splitlines()[0]}); the usual cause is too little memory or shared '
            f'memory{memory}. Fewer than workers_per_gpu={workers} need less; workers_per_gpu=0 shows other causes')


def _start_worker(worker_id: int) -> None:
    # One thread each: the workers are as many as the cores that are to be busy.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Slurm sends its signals to every process of a job. The training then wants one more batch and a checkpoint, so a
    # worker lives on for a while; the training process ends it as ever.
    if hasattr(signal, 'SIGUSR1'):  # not on Windows
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(*_: Any) -> None:
    timer = threading.Timer(_SECONDS_TO_FINISH, os._exit, (0,))
    timer.daemon = True
    timer.start()


_SECONDS_TO_FINISH = 30.  # what Slurm gives a job between SIGTERM and SIGKILL


def build_dataloader(dataset: Any, samples_per_gpu: int, workers_per_gpu: int, num_gpus: int = 1, dist: bool = False,
                     shuffle: bool = True, seed: int | None = None, runner_type: str = 'EpochBasedRunner',
                     persistent_workers: bool = False, rank: int | None = None, world_size: int | None = None,
                     group_by_aspect: bool = True, class_aware_sampler: Mapping | None = None,
                     **kwargs: Any) -> BatchLoader:
    """Make the loader of a data set.

    Args:
        dataset: what to load.
        samples_per_gpu: images a batch.
        workers_per_gpu: worker processes; 0 loads in this process.
        num_gpus: multiplies both when not ``dist``, as in 2.x.
        dist: this process is one of several.
        shuffle: random batches of one aspect group, anew every epoch; else every image once, in order.
        seed: of the order and of random transforms.
        runner_type: 'IterBasedRunner' gives batches without an end.
        persistent_workers: keep workers from epoch to epoch.
        group_by_aspect: False makes shuffled batches of images of any aspect, as mmdetection 3.x does without its
            AspectRatioBatchSampler.
        class_aware_sampler: ``dict(num_sample_class=1)``: shuffled batches in which every class is drawn as often as
            any other (``ClassAwareSampler``), of images of any aspect.
        rank: number of this process; asked of torch.distributed when left out.
        world_size: how many there are; likewise.
        **kwargs: for torch's DataLoader: prefetch_factor, pin_memory (True when there is a GPU), drop_last, ...

    Returns:
        a loader of Batches (lists of Batches with MultiScaleFlipAug). Its ``sampler`` has ``set_epoch``, ``state_dict``
        and ``load_state_dict``.

    Raises:
        ConfigError: a ``class_aware_sampler`` for a data set that cannot tell its labels, or without ``shuffle``.
    """
    if rank is None or world_size is None:
        rank, world_size = distributed_place() if dist else (0, 1)
    factor = 1 if dist else num_gpus
    batch_size, workers = samples_per_gpu * factor, workers_per_gpu * factor
    if seed is None:  # every rank must come to the same
        seed = 0 if world_size > 1 else torch.initial_seed() % 2 ** 31
    place = rank, world_size
    if class_aware_sampler is None:
        sampler = _build_sampler(dataset, batch_size, *place, shuffle, seed, runner_type, group_by_aspect)
    elif not shuffle:
        raise ConfigError('class_aware_sampler draws at random; this loader takes every image once, in order')
    else:
        sampler = _class_aware(dataset, batch_size, *place, seed, runner_type, class_aware_sampler)
    # Without a GPU in use nothing is page-locked: that would occupy one that belongs to somebody else.
    options = dict(pin_memory=torch.cuda.is_initialized(), collate_fn=_collate_or_fail,
                   # Its own generator: torch would draw a number from the global one for each epoch.
                   generator=torch.Generator().manual_seed(seed), worker_init_fn=_start_worker)
    if workers:
        options.update(persistent_workers=persistent_workers, prefetch_factor=2)
    if 'worker_init_fn' in kwargs:
        kwargs = {**kwargs, 'worker_init_fn': partial(_start_worker_and, kwargs['worker_init_fn'])}
    samples = _SeededSamples(dataset, may_replace=shuffle and _may_replace(dataset))
    return BatchLoader(samples, batch_size=batch_size, sampler=sampler, num_workers=workers, **{**options, **kwargs})


def _class_aware(dataset: Any, batch_size: int, rank: int, world_size: int, seed: int, runner_type: str,
                 options: Mapping) -> ClassAwareSampler:
    unknown = next((key for key in options if key != 'num_sample_class'), None)
    if unknown is not None:
        raise ConfigError(f"class_aware_sampler takes num_sample_class alone, no '{unknown}'"
                          f"{nearest(unknown, ['num_sample_class'])}")
    kind = InfiniteClassAwareSampler if runner_type == 'IterBasedRunner' else ClassAwareSampler
    sampler = kind(dataset, batch_size, world_size, rank, seed, **options)
    counts = [len(own) for own in sampler.images.values()]
    logging.getLogger('boxdet').info(
        'class_aware_sampler: %d images an epoch, %d of a class in turn; %d classes with %d to %d images, %d without',
        len(sampler) * world_size, sampler.num_sample_class, len(counts), min(counts), max(counts), sampler.absent)
    return sampler


def _start_worker_and(then: Any, worker_id: int) -> None:
    _start_worker(worker_id)
    then(worker_id)


def data_set_of(loader: Any) -> Any:
    """The data set that a loader reads: ``loader.dataset``, or what ``build_dataloader`` was given."""
    return loader.dataset.dataset if isinstance(loader.dataset, _SeededSamples) else loader.dataset


def _build_sampler(dataset: Any, batch_size: int, rank: int, world_size: int, shuffle: bool, seed: int,
                   runner_type: str, by_aspect: bool) -> EpochSampler:
    if not shuffle:
        return DistributedSampler(dataset, world_size, rank, shuffle=False, seed=seed)
    if ability(dataset, 'flag') is None:
        return DistributedSampler(dataset, world_size, rank, shuffle=True, seed=seed)
    kind = InfiniteGroupSampler if runner_type == 'IterBasedRunner' else GroupSampler
    return kind(dataset, batch_size, world_size, rank, seed, by_aspect)
