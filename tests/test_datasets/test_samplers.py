"""Samplers: groups, epochs, ranks and resuming."""
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from boxdet.datasets import CustomDataset, RepeatDataset, build_dataloader
from boxdet.datasets.samplers import (
    ClassAwareSampler,
    DistributedGroupSampler,
    DistributedSampler,
    GroupSampler,
    InfiniteGroupSampler,
    SampleKey,
)
from boxdet.errors import ConfigError


class Fake(SimpleNamespace):
    def __len__(self):
        return len(self.flag)


DATASET = Fake(flag=np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1], dtype=np.uint8))  # 3 + 8


def indices(sampler):
    return [key.index for key in sampler]


def test_batches_are_of_one_group_and_hold_everything():
    sampler = GroupSampler(DATASET, 2, seed=3)
    found = indices(sampler)
    assert len(found) == len(sampler) == 12
    assert all(DATASET.flag[a] == DATASET.flag[b] for a, b in zip(found[0::2], found[1::2]))
    counts = Counter(found)
    assert set(counts) == set(range(11)) and sorted(counts.values()) == [1] * 10 + [2]
    assert next(iter(sampler)) == SampleKey(found[0], 3, 0)


def test_the_order_follows_from_seed_and_epoch():
    first = GroupSampler(DATASET, 2, seed=3)
    np.random.seed(5)
    again = indices(GroupSampler(DATASET, 2, seed=3))
    assert indices(first) == indices(first) == again
    assert indices(GroupSampler(DATASET, 2, seed=4)) != again
    first.set_epoch(1)
    assert indices(first) != again and [k.epoch for k in first] == [1] * 12


@pytest.mark.parametrize('kind', [GroupSampler, DistributedGroupSampler])
def test_two_ranks_see_what_one_sees(kind):
    one = indices(kind(DATASET, 2, 1, 0, seed=3))
    ranks = [indices(kind(DATASET, 1, 2, rank, seed=3)) for rank in range(2)]
    assert [i for pair in zip(*ranks) for i in pair] == one


def test_groups_smaller_than_a_batch():
    found = indices(GroupSampler(Fake(flag=np.array([0, 1, 1, 1])), 8, seed=0))
    assert sorted(Counter(found).values()) == [2, 3, 3, 8] and len(found) == 16
    assert indices(GroupSampler(Fake(flag=np.zeros(0, dtype=np.uint8)), 2)) == []


def test_sequential_over_ranks():
    found = [indices(DistributedSampler(DATASET, 4, rank, shuffle=False)) for rank in range(4)]
    assert found == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 0]]
    assert indices(DistributedSampler(Fake(flag=np.zeros(1)), 4, 3, shuffle=False)) == [0]
    shuffled = [i for rank in range(4) for i in indices(DistributedSampler(DATASET, 4, rank, seed=1))]
    assert set(shuffled) == set(range(11)) and shuffled[:3] != [0, 4, 8]
    with pytest.raises(ValueError):
        DistributedSampler(DATASET, 2, 2)


def test_resuming_in_the_middle_of_an_epoch():
    sampler = GroupSampler(DATASET, 2, seed=3)
    sampler.set_epoch(4)
    whole = indices(sampler)
    sampler.advance(6)
    state = sampler.state_dict()
    other = GroupSampler(DATASET, 2, seed=0)
    other.load_state_dict(state)
    other.set_epoch(4)  # the runner says it again
    assert indices(other) == whole[6:]
    other.set_epoch(5)
    assert len(indices(other)) == 12
    halves = [GroupSampler(DATASET, 1, 2, rank, seed=3) for rank in range(2)]
    for half in halves:
        half.load_state_dict(state)
    assert [i for pair in zip(*map(indices, halves)) for i in pair] == whole[6:]


def test_infinite():
    sampler = InfiniteGroupSampler(DATASET, 2, seed=3)
    keys = [key for key, _ in zip(sampler, range(30))]
    assert [k.epoch for k in keys] == [0] * 12 + [1] * 12 + [2] * 6
    plain = GroupSampler(DATASET, 2, seed=3)
    plain.set_epoch(1)
    assert [k.index for k in keys[12:24]] == indices(plain)
    sampler.advance(26)
    assert [key for key, _ in zip(sampler, range(4))] == keys[26:]


def test_batches_of_any_aspect():
    flag = np.array([0, 1] * 8, dtype=np.uint8)
    grouped, mixed = (GroupSampler(Fake(flag=flag), 4, seed=3, by_aspect=value).order(0).reshape(-1, 4)
                      for value in (True, False))
    assert all(len(set(flag[batch])) == 1 for batch in grouped)
    assert any(len(set(flag[batch])) == 2 for batch in mixed) and sorted(mixed.ravel()) == list(range(16))


class ByClass(Fake):
    def get_cat2imgs(self):
        return {0: [0, 1, 2, 3, 4], 1: [5], 2: [], 3: [6, 0]}


# mmdetection 2.28.2's ClassAwareSampler on the same images, seed + epoch, ranks, images of a class, batch: its order.
ORDERS_OF_2X = {
    (0, 0, 1, 1, 1): [[0, 3, 5, 5, 6, 1, 0, 6, 5, 4, 0]],
    (3, 2, 2, 1, 2): [[6, 5, 2, 0, 5, 0], [5, 6, 4, 0, 5, 3]],
    (1, 0, 1, 2, 2): [[5, 5, 0, 6, 4, 1, 6, 0, 3, 0, 5, 5]]}


@pytest.mark.parametrize('seed, epoch, ranks, each, batch', list(ORDERS_OF_2X))
def test_classes_come_evenly_in_the_order_of_2x(seed, epoch, ranks, each, batch):
    data = ByClass(flag=np.zeros(11))
    samplers = [ClassAwareSampler(data, batch, ranks, rank, seed, each) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert [indices(sampler) for sampler in samplers] == ORDERS_OF_2X[seed, epoch, ranks, each, batch]
    assert [len(sampler) for sampler in samplers] == [len(own) for own in ORDERS_OF_2X[seed, epoch, ranks, each, batch]]


def test_drawing_classes_evenly_is_resumed_and_told(tmp_path, caplog):
    boxes = np.array([[0, 0, 40, 40]], np.float32)
    infos = [dict(filename=f'{i}.png', width=64, height=64,
                  ann=dict(bboxes=boxes, labels=np.array([int(i == 5)]))) for i in range(6)]

    class Data(CustomDataset):
        def load_annotations(self, ann_file):
            return infos

    data = RepeatDataset(Data('', [], classes=('a', 'b', 'c')), 2)
    assert data.get_cat2imgs() == {0: [0, 1, 2, 3, 4, 6, 7, 8, 9, 10], 1: [5, 11], 2: []}
    with caplog.at_level('INFO', 'boxdet'):
        loader = build_dataloader(data, 2, 0, seed=3, class_aware_sampler=dict(num_sample_class=1))
        endless = build_dataloader(data, 2, 0, seed=3, class_aware_sampler={}, runner_type='IterBasedRunner').sampler
    assert caplog.messages[0] == ('class_aware_sampler: 12 images an epoch, 1 of a class in turn; 2 classes with 2 to '
                                  '10 images, 1 without')
    whole = indices(loader.sampler)
    assert sum(i in (5, 11) for i in whole) == 6
    loader.sampler.advance(4)
    other = ClassAwareSampler(data, 2)
    other.load_state_dict(loader.sampler.state_dict())
    assert indices(other) == whole[4:]
    stream = iter(endless)
    assert [next(stream).index for _ in range(12)] == whole and next(stream).epoch == 1
    with pytest.raises(ConfigError, match="num_sample_class alone, no 'num_samples'; did you mean 'num_sample_class'"):
        build_dataloader(data, 2, 0, class_aware_sampler=dict(num_samples=1))
    with pytest.raises(ConfigError, match='num_sample_class is a whole number, 1 at least, not 0'):
        ClassAwareSampler(data, num_sample_class=0)
    with pytest.raises(ConfigError, match='takes every image once'):
        build_dataloader(data, 2, 0, shuffle=False, class_aware_sampler={})
