"""The order of classes: the background is the first one where Caffe's heirs count, and the last one here.

As class 0 the background has rows of boxes and masks, too, which nothing reads: they are dropped on the way in and zero
on the way out. A head that predicts one box for all classes has two of them there, the first for the background; one
that predicts one mask for all has a single one. K classes.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch

from boxdet.errors import CheckpointError

SCORES, BOXES, MASKS = (f'roi_head.{head}.' for head in
                        ('bbox_head.fc_cls', 'bbox_head.fc_reg', 'mask_head.conv_logits'))


def background_last(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """From K + 1 rows of scores with the background first, 4 (K + 1) or 8 of boxes, and K + 1 or 1 of masks.

    Args:
        state: entries under boxdet's names.

    Raises:
        CheckpointError: other numbers of rows.
    """
    scores = state.get(f'{SCORES}weight')
    count = scores.shape[0] if scores is not None and scores.dim() else 0
    expected = {SCORES: (count,), BOXES: (4 * count, 8), MASKS: (count, 1)}
    found = {}
    for name, value in state.items():
        head = next((head for head in expected if name.startswith(head)), None)
        if head and (count < 2 or not value.dim() or value.shape[0] not in expected[head]):
            raise CheckpointError(f'{name} has the shape {tuple(value.shape)}, and there are {count} rows of scores, '
                                  'one of them for the background')
        found[name] = _moved(head, value) if head else value
    return found


def _moved(head: str, value: torch.Tensor) -> torch.Tensor:
    if head == SCORES:
        return torch.cat([value[1:], value[:1]])
    if head == BOXES:
        return value[4:].clone()
    return value[1:].clone() if len(value) > 1 else value


def background_first(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back. The boxes and masks of the background are zeros."""
    agnostic = class_agnostic(state)
    found = {}
    for name, value in state.items():
        if name.startswith(SCORES):
            value = torch.cat([value[-1:], value[:-1]])
        elif name.startswith(BOXES) or (name.startswith(MASKS) and f'{MASKS}weight' not in agnostic):
            rows = 4 if name.startswith(BOXES) else 1
            value = torch.cat([value.new_zeros(rows, *value.shape[1:]), value])
        found[name] = value
    return found


def class_agnostic(state: Mapping[str, torch.Tensor]) -> list[str]:
    """The weights, under boxdet's names, of heads that predict one box or one mask for several classes."""
    scores = state.get(f'{SCORES}weight')
    several = scores is not None and len(scores) > 2
    return [f'{head}weight' for head, rows in ((BOXES, 4), (MASKS, 1))
            if several and f'{head}weight' in state and len(state[f'{head}weight']) == rows]


def refuse_class_agnostic(state: Mapping[str, torch.Tensor], heads: tuple[str, ...], what: str) -> None:
    """Let through what has a box or mask for each class.

    Args:
        state: boxdet's weights.
        heads: of BOXES and MASKS, those of which the format has a box or mask for each class only.
        what: the format, for the message.

    Raises:
        CheckpointError: one of them is for all classes together.
    """
    for name in class_agnostic(state):
        if name.startswith(heads):
            raise CheckpointError(f'this model cannot be written for {what}: {name} is of all classes together, and '
                                  'there every class has its own')
