"""Which images, in which order: a function of seed and epoch, the same for any number of workers.

Letters: R ranks (processes), S images a rank and batch.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from boxdet.errors import ConfigError


class SampleKey(NamedTuple):
    """What a sampler yields: the image, and what its random transforms are seeded with."""
    index: int  # type: ignore[assignment]  # the field hides tuple's method
    seed: int
    epoch: int


class EpochSampler(Sampler):
    """Base: an order of this rank's images for every epoch, resumable at any place.

    Args:
        dataset: anything with a length.
        num_replicas, rank: R and which of them this is.
        seed: of the order, and of the samples' random transforms; the same on every rank.
    """

    def __init__(self, dataset: Any, num_replicas: int = 1, rank: int = 0, seed: int = 0):
        if not 0 <= rank < num_replicas:
            raise ValueError(f'rank {rank} of {num_replicas}')
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.seed = int(seed)
        self.epoch = 0
        self.consumed = 0

    def order(self, epoch: int) -> np.ndarray:
        """(len(self),) image numbers of this rank in ``epoch``."""
        raise TypeError(f'{type(self).__name__} has no order')

    def __len__(self) -> int:
        return len(self.order(self.epoch))

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        for index in self.order(epoch)[self.consumed:].tolist():
            yield SampleKey(index, self.seed, epoch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; nothing changes when it is the epoch that is going on."""
        if epoch != self.epoch:
            self.epoch, self.consumed = int(epoch), 0

    def advance(self, count: int) -> None:
        """The loader has handed out ``count`` more samples (workers have read further ahead)."""
        self.consumed += count

    def finish(self) -> None:
        """The loader has handed out all of the epoch."""
        self.consumed = 0

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch the training is."""
        return dict(epoch=self.epoch, consumed=self.consumed, seed=self.seed, num_replicas=self.num_replicas)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken; with another number of ranks, at the same share of the epoch."""
        self.seed, self.epoch = int(state['seed']), int(state['epoch'])
        self.consumed = int(state['consumed'] * state.get('num_replicas', self.num_replicas) // self.num_replicas)

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])


class GroupSampler(EpochSampler):
    """Batches of one aspect group (``dataset.flag``) each, so that little of a batch is padding.

    Every group is shuffled and filled up to whole batches of R * S by images of its own drawn again; the batches of
    all groups are shuffled, and each rank takes its S images of every batch. So 2 ranks with S = 1 see what 1 rank with
    S = 2 sees.

    Args:
        samples_per_gpu: S.
        by_aspect: False puts all images into one group: batches hold images of any aspect.
    """

    def __init__(self, dataset: Any, samples_per_gpu: int = 1, num_replicas: int = 1, rank: int = 0, seed: int = 0,
                 by_aspect: bool = True):
        super().__init__(dataset, num_replicas, rank, seed)
        self.samples_per_gpu = samples_per_gpu
        flag = dataset.flag if by_aspect else np.zeros(len(dataset), np.uint8)
        self.groups = [np.flatnonzero(flag == value) for value in np.unique(flag)]
        batch = samples_per_gpu * num_replicas
        self._length = sum(math.ceil(len(group) / batch) for group in self.groups) * samples_per_gpu

    def __len__(self) -> int:
        return self._length

    def order(self, epoch: int) -> np.ndarray:
        """(len(self),) image numbers of this rank in ``epoch``."""
        random = self._random(epoch)
        size = self.samples_per_gpu * self.num_replicas
        batches = []
        for group in self.groups:
            shuffled = random.permutation(group)
            missing = -len(group) % size
            # Filling up from the group's start again draws no image twice before each was drawn once.
            batches.append(np.concatenate([shuffled, np.resize(shuffled, missing)]).reshape(-1, size))
        if not batches:
            return np.zeros(0, dtype=np.int64)
        mixed = random.permutation(np.concatenate(batches))                              # (batches, R * S)
        start = self.rank * self.samples_per_gpu
        return mixed[:, start:start + self.samples_per_gpu].ravel()


class DistributedGroupSampler(GroupSampler):
    """GroupSampler under the name and argument order that 2.x has for several ranks."""

    def __init__(self, dataset: Any, samples_per_gpu: int = 1, num_replicas: int | None = None,
                 rank: int | None = None, seed: int = 0):
        found_rank, found_replicas = distributed_place()
        super().__init__(dataset, samples_per_gpu, found_replicas if num_replicas is None else num_replicas,
                         found_rank if rank is None else rank, seed)


class _Endless(EpochSampler):
    """For training by iterations: epoch follows epoch without an end.

    ``consumed`` counts on over the epochs; its length is that of one epoch.
    """

    def __iter__(self) -> Iterator[SampleKey]:
        epochs, start = divmod(self.consumed, max(len(self), 1))
        epoch = self.epoch + epochs
        while len(self):
            for index in self.order(epoch)[start:].tolist():
                yield SampleKey(index, self.seed, epoch)
            epoch, start = epoch + 1, 0


class InfiniteGroupSampler(_Endless, GroupSampler):
    """GroupSampler for training by iterations."""


class ClassAwareSampler(EpochSampler):
    """Every class as often as any other (Shen et al. 2016), in the order of mmdetection 2.28.2.

    Classes come in a random order, over and over, each with ``num_sample_class`` of its images, which come in a random
    order over and over too. Each rank has its part of an epoch of as many images as the data set has.

    Args:
        samples_per_gpu: S; a rank's images are whole batches.
        num_sample_class: images of a class, one after the other.

    Raises:
        ConfigError: a data set without ``get_cat2imgs``, or without an object.
    """

    def __init__(self, dataset: Any, samples_per_gpu: int = 1, num_replicas: int = 1, rank: int = 0, seed: int = 0,
                 num_sample_class: int = 1):
        super().__init__(dataset, num_replicas, rank, seed)
        if not isinstance(num_sample_class, int) or num_sample_class < 1:
            raise ConfigError(f'class_aware_sampler.num_sample_class is a whole number, 1 at least, not '
                              f'{num_sample_class!r}')
        if not hasattr(dataset, 'get_cat2imgs'):
            raise ConfigError(f'class_aware_sampler: {type(dataset).__name__} has no get_cat2imgs')
        images = dataset.get_cat2imgs()
        self.images = {label: own for label, own in images.items() if len(own)}
        self.absent = len(images) - len(self.images)
        if not self.images:
            raise ConfigError(f'class_aware_sampler: no image of {type(dataset).__name__} has an object')
        self.num_sample_class = num_sample_class
        self._length = math.ceil(len(dataset) / (num_replicas * samples_per_gpu)) * samples_per_gpu

    def __len__(self) -> int:
        return self._length

    def order(self, epoch: int) -> np.ndarray:
        """(len(self),) image numbers of this rank in ``epoch``."""
        random = torch.Generator().manual_seed(epoch + self.seed)
        labels = _over_and_over(list(self.images), random)
        images = {label: _over_and_over(own, random) for label, own in self.images.items()}
        total = self._length * self.num_replicas
        # 2.x draws classes in rounds of all of them, and cuts off what is too much.
        rounds = math.ceil(total / len(self.images) / self.num_sample_class)
        drawn = [next(images[label]) for label in islice(labels, rounds * len(self.images))
                 for _ in range(self.num_sample_class)]
        return np.array(drawn[self.rank * self._length:(self.rank + 1) * self._length], dtype=np.int64)


class InfiniteClassAwareSampler(_Endless, ClassAwareSampler):
    """ClassAwareSampler for training by iterations."""


def _over_and_over(values: Sequence[int], random: torch.Generator) -> Iterator[int]:
    """The values in a random order, then in another, ...; the first is drawn at once."""
    def rest(order: torch.Tensor) -> Iterator[int]:
        while True:
            yield from (values[i] for i in order.tolist())
            order = torch.randperm(len(values), generator=random)
    return rest(torch.randperm(len(values), generator=random))


def images_of_labels(dataset: Any) -> dict[int, list[int]]:
    """Numbers of the images of each label, of a data set with ``labels_of``."""
    found: dict[int, list[int]] = {label: [] for label in range(len(dataset.CLASSES or ()))}
    for index in range(len(dataset)):
        for label in set(dataset.labels_of(index)):
            found[label].append(index)
    return found


class DistributedSampler(EpochSampler):
    """Every image once, rank r taking r, r + R, r + 2 R, ...; the last round is filled up from the start.

    Args:
        shuffle: in a new order every epoch.
    """

    def __init__(self, dataset: Any, num_replicas: int = 1, rank: int = 0, shuffle: bool = True, seed: int = 0):
        super().__init__(dataset, num_replicas, rank, seed)
        self.shuffle = shuffle

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.num_replicas)

    def order(self, epoch: int) -> np.ndarray:
        """(len(self),) image numbers of this rank in ``epoch``."""
        count = len(self.dataset)
        order = self._random(epoch).permutation(count) if self.shuffle else np.arange(count)
        return np.resize(order, len(self) * self.num_replicas)[self.rank::self.num_replicas]


def distributed_place() -> tuple[int, int]:
    """(rank, number of ranks) of this process; (0, 1) without torch.distributed."""
    import torch.distributed as dist
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
