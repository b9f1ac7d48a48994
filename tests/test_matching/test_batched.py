"""Boxes of several images at once, as 2.x's calculator and coder take them."""
import pytest
import torch

from boxdet.matching.assigner import BboxOverlaps2D
from boxdet.matching.box_coder import DeltaXYWHBBoxCoder


def boxes(*shape):
    corner = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(shape[1]))
    return torch.cat([corner, corner + 0.5], dim=-1)


def test_overlaps_of_several_images():
    first, second, overlaps = boxes(2, 5), boxes(2, 3), BboxOverlaps2D()
    found = overlaps(first, second)
    assert found.shape == (2, 5, 3)
    for i in range(2):
        torch.testing.assert_close(found[i], overlaps(first[i], second[i]))
    assert overlaps(first, first, is_aligned=True).tolist() == torch.ones(2, 5).tolist()
    assert overlaps(first[:0], second[:0]).shape == (0, 5, 3)
    with pytest.raises(ValueError, match='different numbers of images'):
        overlaps(first, second[:1])


@pytest.mark.parametrize('shapes', [(1, 1), [(1, 1), (0.8, 1)], torch.tensor([[1, 1], [1, 1]])])
def test_decoding_of_several_images(shapes):
    coder, rows = DeltaXYWHBBoxCoder(), boxes(2, 4)
    deltas = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0))
    found = coder.decode(rows, deltas, max_shape=shapes)
    assert found.shape == (2, 4, 8)
    for i in range(2):
        own = shapes if isinstance(shapes[0], int) else tuple(float(v) for v in shapes[i])
        torch.testing.assert_close(found[i], coder.decode(rows[i], deltas[i], max_shape=own))
