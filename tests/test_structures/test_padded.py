"""Instances in tensors of a fixed size."""

import pytest
import torch

from boxdet.structures.batch import image_sizes
from boxdet.structures.instances import Instances, PaddedInstances, image_rows, joined, of_images, split_like


def some(count: int) -> Instances:
    return Instances((10, 20), 3, bboxes=torch.rand(count, 4), scores=torch.rand(count), labels=torch.arange(count))


def test_there_and_back():
    parts = [some(2), some(0), some(5)]
    padded = PaddedInstances.of(parts)
    assert padded.bboxes.shape == (3, 5, 4) and padded.valid.sum(dim=1).tolist() == [2, 0, 5] and padded.settled
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


def test_lists_and_tensors_mean_the_same():
    boxes, shift, sizes = torch.rand(2, 3, 4) * 20, torch.rand(2, 3, 1), [(5, 9), (7, 2)]

    def moved(own, by, size):
        if not isinstance(size, torch.Tensor):
            size = torch.tensor([size])
        return (own + by)[:, :2].minimum(size.flip(-1))

    def each(sizes, boxes, shift):
        return of_images([moved(*rows) for rows in image_rows(sizes, boxes, shift)], sizes, boxes)

    as_tensor, as_list = each(sizes, boxes, shift), each(sizes, list(boxes), list(shift))
    assert torch.equal(as_tensor, torch.stack(as_list))
    assert torch.equal(each(torch.tensor(sizes), boxes, shift), as_tensor)
    assert torch.equal(joined(boxes), joined(list(boxes))) and torch.equal(split_like(joined(boxes), boxes), boxes)
    ragged = [boxes[0], boxes[1, :1]]
    assert all(torch.equal(a, b) for a, b in zip(split_like(joined(ragged), ragged), ragged))
    assert image_sizes(torch.tensor(sizes)).tolist() == [list(size) for size in sizes]
