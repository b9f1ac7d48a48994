import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import box_overlaps
from boxdet.registry import IOU_CALCULATORS


def boxes(n, seed):
    corner = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 300
    return torch.cat([corner, corner + 60], 1)


def test_scores_are_left_out_and_half_becomes_full():
    calculator = IOU_CALCULATORS.build(dict(type='BboxOverlaps2D'))
    a, b = boxes(3, 0), boxes(5, 1)
    with_scores = torch.cat([a, torch.full((3, 1), 1e9)], 1)
    assert torch.equal(calculator(with_scores, b), box_overlaps(a, b))
    assert calculator(a.bfloat16(), b.bfloat16(), mode='giou').dtype == torch.float32
    assert calculator(a[:0], b).shape == (0, 5) and calculator(a, b[:0]).shape == (3, 0)


def test_fp16_with_scale_is_close_and_does_not_overflow():
    a, b = boxes(20, 0) * 5, boxes(30, 1) * 5                    # areas of 90,000 square pixels
    half = IOU_CALCULATORS.build(dict(type='BboxOverlaps2D', scale=512., dtype='fp16'))(a, b)
    assert torch.allclose(half, box_overlaps(a, b), atol=0.02) and half.dtype == torch.float32
    with pytest.raises(ConfigError, match='fp8'):
        IOU_CALCULATORS.build(dict(type='BboxOverlaps2D', dtype='fp8'))


def test_no_image_has_no_overlaps_of_the_usual_shape():
    calculator = IOU_CALCULATORS.build(dict(type='BboxOverlaps2D'))
    none, others = torch.zeros(0, 3, 4), torch.zeros(0, 5, 4)
    assert calculator(none, others).shape == (0, 3, 5) and calculator(none, none, is_aligned=True).shape == (0, 3)
