"""Instances in tensors of a fixed size."""

import pytest
import torch

from boxdet.structures.instances import Instances
from boxdet.structures.padded import PaddedInstances


def some(count: int) -> Instances:
    return Instances((10, 20), 3, bboxes=torch.rand(count, 4), scores=torch.rand(count), labels=torch.arange(count))


def test_there_and_back():
    parts = [some(2), some(0), some(5)]
    padded = PaddedInstances.of(parts)
    assert padded.bboxes.shape == (3, 5, 4) and padded.valid.sum(dim=1).tolist() == [2, 0, 5] and padded.certain
    back = padded.to_host().instances([(10, 20)] * 3, 3)
    for one, other in zip(parts, back):
        assert one.image_size == other.image_size and other.num_classes == 3
        assert all(torch.equal(other.fields[name], value) for name, value in one.fields.items())


@pytest.mark.parametrize('counts', [(0,), (0, 0)])
def test_nothing_at_all(counts):
    padded = PaddedInstances.of([some(count) for count in counts])
    assert [len(r) for r in padded.instances([(10, 20)] * len(counts))] == list(counts)


def test_valid_rows_may_lie_anywhere():
    padded = PaddedInstances(dict(bboxes=torch.arange(12.0).view(1, 3, 4)), torch.tensor([[True, False, True]]),
                             torch.tensor(True)).replace(scores=torch.tensor([[3.0, 2, 1]]))
    result, = padded.instances([(5, 5)])
    assert result.scores.tolist() == [3, 1] and result.bboxes[1].tolist() == [8, 9, 10, 11]
    assert not padded.given(torch.tensor(False)).certain and padded.certain
