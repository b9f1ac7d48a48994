"""What a state dict says of its model, and from that the name of every entry that boxdet's model would have.

A format's module reads an ``Architecture`` off the names of its entries and knows, for each of boxdet's names, its own.
So every entry that should be there is known, and the odd ones can be named.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from boxdet.errors import CheckpointError, nearest

_PLAIN = ('weight', 'bias')
_NORM = ('weight', 'bias', 'running_mean', 'running_var')
_COUNTER = 'num_batches_tracked'  # plain batch norms have one, frozen ones have not


@dataclass(frozen=True)
class Architecture:
    """A two-stage detector on a ResNet.

    Args:
        blocks: residual blocks of each stage.
        bottleneck: three convolutions a block, and not two.
        stage_in_head: the last stage belongs to the second stage (C4).
        pyramid: there is an FPN over all stages.
        box_fcs: linear layers before the outputs.
        mask_convs, keypoint_convs: convolutions of these heads; None where there is no such head.
    """
    blocks: tuple[int, ...]
    bottleneck: bool
    stage_in_head: bool
    pyramid: bool
    box_fcs: int
    mask_convs: int | None
    keypoint_convs: int | None

    def entries(self) -> Iterator[str]:
        """The names of boxdet's entries, but for the counters of batch norms."""
        yield from self._backbone()
        levels = range(len(self.blocks) if self.pyramid else 0)
        plain = [f'neck.{part}.{i}.conv' for i in levels for part in ('lateral_convs', 'fpn_convs')]
        plain += [f'rpn_head.{part}' for part in ('rpn_conv', 'rpn_cls', 'rpn_reg')]
        plain += [f'roi_head.bbox_head.shared_fcs.{i}' for i in range(self.box_fcs)]
        plain += ['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg']
        if self.mask_convs is not None:
            plain += [f'roi_head.mask_head.convs.{i}.conv' for i in range(self.mask_convs)]
            plain += ['roi_head.mask_head.upsample', 'roi_head.mask_head.conv_logits']
        if self.keypoint_convs is not None:
            plain += [f'roi_head.keypoint_head.convs.{i}.conv' for i in range(self.keypoint_convs)]
            plain += ['roi_head.keypoint_head.upsample']
        yield from (f'{stem}.{leaf}' for stem in plain for leaf in _PLAIN)

    def _backbone(self) -> Iterator[str]:
        pairs = [('backbone.conv1', 'backbone.bn1')]
        for stage, count in enumerate(self.blocks, start=1):
            in_head = self.stage_in_head and stage == len(self.blocks)
            parent = f"{'roi_head.shared_head' if in_head else 'backbone'}.layer{stage}"
            for block in range(count):
                pairs += [(f'{parent}.{block}.conv{n}', f'{parent}.{block}.bn{n}')
                          for n in range(1, 4 if self.bottleneck else 3)]
                # Two-convolution blocks keep the first stage's 64 channels: no shortcut convolution there.
                if block == 0 and (self.bottleneck or stage > 1):
                    pairs.append((f'{parent}.0.downsample.0', f'{parent}.0.downsample.1'))
        for conv, norm in pairs:
            yield f'{conv}.weight'
            yield from (f'{norm}.{leaf}' for leaf in _NORM)


def count_blocks(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """Blocks of each stage by ``pattern``, whose two groups are the numbers of stage (the first one counts as the
    first) and block.
    """
    found: dict[int, int] = {}
    for match in filter(None, map(re.compile(pattern).match, names)):
        stage, block = int(match[1]), int(match[2])
        found[stage] = max(found.get(stage, 0), block + 1)
    return tuple(found.get(stage, 0) for stage in range(min(found), max(found) + 1)) if found else ()


def count(names: Iterable[str], pattern: str) -> int | None:
    """How many layers there are whose number is the group of ``pattern``; None for none."""
    return len({match[1] for match in map(re.compile(pattern).match, names) if match}) or None


def rename(name: str, rules: Iterable[tuple[str, str | Callable]]) -> str:
    """``name`` after every rule, a pattern and what stands for it, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def take_names(state: Mapping[str, torch.Tensor], entries: Iterable[str], theirs: Callable[[str], str],
               what: str) -> dict[str, torch.Tensor]:
    """The state dict under boxdet's names.

    Args:
        entries: boxdet's names. theirs: the format's name for each.
        what: of whom the weights are, for the message.

    Raises:
        CheckpointError: entries too many or too few; it names them and what they may have been meant for.
    """
    ours = {}
    for entry in entries:
        ours[theirs(entry)] = entry
        if entry.endswith('running_mean'):
            counter = entry.replace('running_mean', _COUNTER)
            if theirs(counter) in state:
                ours[theirs(counter)] = counter
    unknown = [name for name in state if name not in ours]
    missing = [name for name in ours if name not in state]
    if unknown or missing:
        raise CheckpointError('; '.join(
            [f'these are nearly the weights of {what}, but']
            + [f'{name} is unknown{nearest(name, missing)}' for name in unknown[:5]]
            + [f'{len(unknown) - 5} more are unknown'] * (len(unknown) > 5)
            + [f'{name} is missing' for name in missing[:5]]
            + [f'{len(missing) - 5} more are missing'] * (len(missing) > 5)))
    return {ours[name]: value for name, value in state.items()}
