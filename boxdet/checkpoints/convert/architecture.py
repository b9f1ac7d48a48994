"""What a state dict says of its model, and from that the name of every entry that boxdet's model would have.

A format's module reads an ``Architecture`` off the names of its entries and knows, for each of boxdet's names, its own.
So every entry that should be there is known, and the odd ones can be named.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from boxdet.checkpoints.loading import as_tensor
from boxdet.errors import CheckpointError, nearest

_PLAIN = ('weight', 'bias')
_NORM = ('weight', 'bias', 'running_mean', 'running_var')
NORM_EPS = 1e-5  # of boxdet's batch norms, if the config does not say otherwise
_COUNTER = 'num_batches_tracked'  # plain batch norms have one, frozen ones have not


@dataclass(frozen=True)
class Architecture:
    """A two-stage detector on a ResNet, or a part of one.

    Args:
        blocks: residual blocks of each stage.
        bottleneck: three convolutions a block, and not two.
        stage_in_head: the last stage belongs to the second stage (C4).
        pyramid: there is an FPN over all stages.
        box_fcs: linear layers before the outputs; None without a box head.
        mask_convs, keypoint_convs: convolutions of these heads; None where there is no such head.
        rpn: there is a region proposal network.
        box_convs: convolutions before the linear layers.
        norm: of the backbone: 'bn', 'gn', or 'affine', a batch norm of which scale and shift are written only.
        head_norm: 'gn' or 'bn' where the convolutions of pyramid, box and mask head have norms; else ''.
        head_biases: convolutions with norms have biases, too (tensorpack's).
        rpn_convs: convolutions of the region proposal network.
        stages: box heads in a row (a cascade); 0 for the one of other models.
    """
    blocks: tuple[int, ...]
    bottleneck: bool
    stage_in_head: bool
    pyramid: bool
    box_fcs: int | None
    mask_convs: int | None
    keypoint_convs: int | None
    rpn: bool = True
    box_convs: int = 0
    norm: str = 'bn'
    head_norm: str = ''
    head_biases: bool = False
    rpn_convs: int = 1
    stages: int = 0

    @classmethod
    def of_boxdet(cls, names: Iterable[str]) -> Architecture:
        """What boxdet's names of entries say."""
        names = list(names)

        def head(which: str, convs: str = 'convs') -> int | None:
            there = any(name.startswith(f'roi_head.{which}.') for name in names)
            stage = r'(?:0\.)?' if which == 'bbox_head' else ''
            return (count(names, rf'roi_head\.{which}\.{stage}{convs}\.(\d+)\.') or 0) if there else None
        norms = {match[1] for match in map(re.compile(r'(?:neck|roi_head)\..*\.(gn|bn)\.').match, names) if match}
        return cls(
            blocks=count_blocks(names, r'(?:backbone|roi_head\.shared_head)\.layer(\d+)\.(\d+)\.'),
            bottleneck='backbone.layer1.0.conv3.weight' in names,
            stage_in_head=any(name.startswith('roi_head.shared_head.') for name in names),
            pyramid=any(name.startswith('neck.') for name in names),
            box_fcs=head('bbox_head', 'shared_fcs'), mask_convs=head('mask_head'), keypoint_convs=head('keypoint_head'),
            rpn=any(name.startswith('rpn_head.') for name in names), box_convs=head('bbox_head', 'shared_convs') or 0,
            norm='gn' if 'backbone.gn1.weight' in names else 'bn',
            head_norm=min(norms, default=''),
            head_biases=bool(norms) and 'neck.lateral_convs.0.conv.bias' in names,
            rpn_convs=count(names, r'rpn_head\.rpn_conv\.(\d+)\.') or 1,
            stages=count(names, r'roi_head\.bbox_head\.(\d+)\.fc_cls\.') or 0)

    def entries(self) -> Iterator[str]:
        """The names of boxdet's entries, but for the counters of batch norms."""
        yield from self._backbone()
        for stem in self._head_convs():
            yield f'{stem}.conv.weight'
            leaves = _NORM if self.head_norm == 'bn' else _PLAIN
            if self.head_norm:
                yield from (f'{stem}.{self.head_norm}.{leaf}' for leaf in leaves)
            if self.head_biases or not self.head_norm:
                yield f'{stem}.conv.bias'
        several = [f'rpn_conv.{i}.conv' for i in range(self.rpn_convs)] if self.rpn_convs > 1 else ['rpn_conv']
        plain = [f'rpn_head.{part}' for part in (*several, 'rpn_cls', 'rpn_reg') if self.rpn]
        for head in self._box_heads():
            plain += [f'{head}.shared_fcs.{i}' for i in range(self.box_fcs or 0)]
            plain += [f'{head}.fc_cls', f'{head}.fc_reg']
        if self.mask_convs is not None:
            plain += ['roi_head.mask_head.upsample', 'roi_head.mask_head.conv_logits']
        if self.keypoint_convs is not None:
            plain += [f'roi_head.keypoint_head.convs.{i}.conv' for i in range(self.keypoint_convs)]
            plain += ['roi_head.keypoint_head.upsample']
        yield from (f'{stem}.{leaf}' for stem in plain for leaf in _PLAIN)

    def _box_heads(self) -> Iterator[str]:
        if self.box_fcs is not None:
            yield from ([f'roi_head.bbox_head.{stage}' for stage in range(self.stages)] or ['roi_head.bbox_head'])

    def _head_convs(self) -> Iterator[str]:
        for i in range(len(self.blocks) if self.pyramid else 0):
            yield from (f'neck.{part}.{i}' for part in ('lateral_convs', 'fpn_convs'))
        yield from (f'{head}.shared_convs.{i}' for head in self._box_heads() for i in range(self.box_convs))
        yield from (f'roi_head.mask_head.convs.{i}' for i in range(self.mask_convs or 0))

    def _backbone(self) -> Iterator[str]:
        kind = 'gn' if self.norm == 'gn' else 'bn'
        pairs = [('backbone.conv1', f'backbone.{kind}1')]
        for stage, blocks in enumerate(self.blocks, start=1):
            in_head = self.stage_in_head and stage == len(self.blocks)
            parent = f"{'roi_head.shared_head' if in_head else 'backbone'}.layer{stage}"
            for block in range(blocks):
                pairs += [(f'{parent}.{block}.conv{n}', f'{parent}.{block}.{kind}{n}')
                          for n in range(1, 4 if self.bottleneck else 3)]
                # Two-convolution blocks keep the first stage's 64 channels: no shortcut convolution there.
                if block == 0 and (self.bottleneck or stage > 1):
                    pairs.append((f'{parent}.0.downsample.0', f'{parent}.0.downsample.1'))
        for conv, norm in pairs:
            yield f'{conv}.weight'
            yield from (f'{norm}.{leaf}' for leaf in (_NORM if self.norm == 'bn' else _PLAIN))


def count_blocks(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """Blocks of each stage by ``pattern``, whose two groups are the numbers of stage and block.

    The lowest number of a stage counts as the first.
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


def take_names(state: Mapping[str, Any], entries: Iterable[str], theirs: Callable[[str], str],
               what: str) -> dict[str, torch.Tensor]:
    """The state dict under boxdet's names.

    Args:
        state: tensors, or arrays that become some.
        entries: boxdet's names.
        theirs: the format's name for each.
        what: of whom the weights are, for the message.

    Raises:
        CheckpointError: entries too many or too few; it names them and what they may have been meant for. Or one is
            no array.
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
        raise CheckpointError(f'these are nearly the weights of {what}, but ' + '; '.join(
            [f'{name} is unknown{nearest(name, missing)}' for name in unknown[:5]]
            + [f'{len(unknown) - 5} more are unknown'] * (len(unknown) > 5)
            + [f'{name} is missing' for name in missing[:5]]
            + [f'{len(missing) - 5} more are missing'] * (len(missing) > 5)))
    return {ours[name]: as_tensor(name, value) for name, value in state.items()}


def give_names(state: Mapping[str, torch.Tensor], entries: Iterable[str], theirs: Callable[[str], str],
               what: str) -> dict[str, torch.Tensor]:
    """The state dict under the format's names: the way back of ``take_names``.

    Args:
        state: boxdet's weights.
        entries: boxdet's names of the model that the format has. Counters of batch norms may come with them.
        theirs: the format's name for each.
        what: the format, for the message.

    Raises:
        CheckpointError: the model has other entries; it names those that the format lacks and those that it needs.
    """
    known = dict.fromkeys(entries)
    counters = {name for name in state if name.replace(_COUNTER, 'running_mean') in known and name not in known}
    lacking, needed = [n for n in state if n not in known and n not in counters], [n for n in known if n not in state]
    if lacking or needed:
        parts = [f'it {verb} {names[0]}' + f' and {len(names) - 1} more entries' * (len(names) > 1)
                 for verb, names in (('has no place for', lacking), ('needs', needed)) if names]
        raise CheckpointError(f'this model cannot be written for {what}: ' + ', and '.join(parts))
    return {theirs(name): value for name, value in state.items()}


def without_counters(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries without the counters of batch norms, which frozen ones have not."""
    return {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
