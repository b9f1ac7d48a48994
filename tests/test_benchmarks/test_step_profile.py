"""Operators of a step by part and kind."""
from __future__ import annotations

import torch
from torch import nn

from benchmarks import step_profile
from boxdet.geometry.roi_align import roi_align_rows


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 4, 5)

    def pooled(self, x):
        rois = torch.tensor([[0., 0, 0, 8, 8], [1., 2, 2, 9, 7]])
        return roi_align_rows(x, rois, (2, 2), 1.0, 2, True).flatten(1)

    def forward(self, x):
        return self.head(self.pooled(self.body(x).relu())).square().sum()


def test_operators_belong_to_the_part_that_called_or_differentiates_them():
    model, x = Detector(), torch.randn(2, 3, 32, 32)
    for owner, method, part in ((model.body, 'forward', 'body'), (model, 'pooled', 'pooling'),
                                (model.head, 'forward', 'head'), (model, 'forward', 'all')):
        step_profile.label(owner, method, part)
    model(x).backward()
    found = step_profile.times(lambda: model(x).backward())
    ways = {(part, kind): {way for p, way, k in found if (p, k) == (part, kind)} for part, _, kind in found}
    both = {'forward', 'backward'}
    assert ways['body', 'convolutions'] == ways['head', 'matrix products'] == ways['pooling', 'RoIAlign'] == both
    assert ways['all', 'activations, pooling, upsampling'] == both
    assert {part for part, kind in ways if kind == 'convolutions'} == {'body'}
    assert {part for part, kind in ways if kind == 'RoIAlign'} == {'pooling'}


def test_the_table_has_a_column_a_side_and_sums():
    columns = {'one': {('a', 'forward', 'k'): 1.2, ('b', 'forward', 'k'): 2000.}, 'two': {('a', 'backward', 'l'): 3.}}
    assert step_profile.table(columns, lambda place: place[0], ['b', 'a', 'c']).splitlines() == [
        '| ms | one | two |', '|---|---|---|', '| b | 2,000 | 0 |', '| a | 1 | 3 |', '| **all** | 2,001 | 3 |']
