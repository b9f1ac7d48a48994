"""Detectron's (Caffe2) R-CNNs on a pyramid (FPN) or on stage 4 (C4), and the ImageNet backbones that they start from.

Files are ``.pkl`` with arrays, there called blobs, under 'blobs'. Class 0 is the background (see ``classes``). A frozen
batch norm is a scale and a shift, AffineChannel: here a batch norm of mean 0 and variance 1. Stage 5 of C4 is the box
head's, and is called like one of the backbone.
"""
from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from boxdet.checkpoints.convert.architecture import (
    NORM_EPS,
    Architecture,
    count,
    count_blocks,
    give_names,
    rename,
    take_names,
    without_counters,
)
from boxdet.checkpoints.convert.classes import background_first, background_last

NAME = 'Detectron'
_WHAT = "Detectron's R-CNN"

# boxdet's names, without their last part, to Detectron's. FPN, the RPN's ending and what norms are called: _theirs.
_RULES = (
    (r'^backbone\.(conv1|bn1|gn1)$', lambda m: dict(conv1='conv1', bn1='res_conv1_bn', gn1='conv1_gn')[m[1]]),
    (r'^(?:backbone|roi_head\.shared_head)\.layer(\d+)\.(\d+)\.', lambda m: f'res{int(m[1]) + 1}_{m[2]}_'),
    (r'^(res\d+_\d+)_(conv|bn|gn)(\d)$',
     lambda m: f"{m[1]}_branch2{'abc'[int(m[3]) - 1]}" + (f'_{m[2]}' if m[2] != 'conv' else '')),
    (r'^(res\d+_\d+)_downsample\.0$', r'\1_branch1'),
    (r'^(res\d+_\d+)_downsample\.1$', r'\1_branch1_NORM'),
    (r'^rpn_head\.rpn_conv$', 'conv_rpnLEVEL'),
    (r'^rpn_head\.rpn_cls$', 'rpn_cls_logitsLEVEL'),
    (r'^rpn_head\.rpn_reg$', 'rpn_bbox_predLEVEL'),
    (r'^roi_head\.bbox_head\.shared_convs\.(\d+)\.', lambda m: f'head_conv{int(m[1]) + 1}.'),
    (r'^roi_head\.bbox_head\.shared_fcs\.(\d+)$', lambda m: f'fc{int(m[1]) + 6}'),
    (r'^roi_head\.bbox_head\.fc_cls$', 'cls_score'),
    (r'^roi_head\.bbox_head\.fc_reg$', 'bbox_pred'),
    (r'^roi_head\.mask_head\.convs\.(\d+)\.', lambda m: f'MASK_fcn{int(m[1]) + 1}.'),
    (r'^roi_head\.mask_head\.upsample$', 'conv5_mask'),
    (r'^roi_head\.mask_head\.conv_logits$', 'mask_fcn_logits'),
    (r'^roi_head\.keypoint_head\.convs\.(\d+)\.', lambda m: f'conv_fcn{int(m[1]) + 1}.'),
    (r'^roi_head\.keypoint_head\.upsample$', 'kps_score_lowres'),
)
_LEAVES = dict(weight='w', bias='b')
_NORM_LEAVES = dict(weight='s', bias='b', running_mean='rm', running_var='riv')
# What training leaves beside the weights, ImageNet's classifier, a bias that nothing reads, and the filter of the fixed
# bilinear enlargement of heatmaps.
LEFT_OUT = re.compile(r'.*_momentum$|lr$|weight_order$|(?:fc1000|pred|kps_score)_[wb]$|conv1_b$')


def recognises(names: Iterable[str]) -> bool:
    """Whether the entries are named as Detectron names them."""
    return any(re.match(r'res\d+_\d+_branch[12]', name) for name in names)


def to_boxdet(state: Mapping[str, Any], what: str = _WHAT) -> dict[str, torch.Tensor]:
    """Detectron's blobs under boxdet's names and with boxdet's order of classes.

    Those of a backbone alone come without ``backbone.``, as the weights of backbones do.

    Raises:
        CheckpointError: entries too many or too few, by name, or of shapes that do not go together.
    """
    state = {name: value for name, value in state.items() if not LEFT_OUT.match(name)}
    architecture = _read(state)
    spellings: list[tuple[str, str]] = [(r'^_(?:\[mask\]|mask)_', f'{_mask_prefix(architecture)}_')]
    if architecture.pyramid:  # of which one level is used, and its RPN is called as without a pyramid
        spellings.append((r'^(conv_rpn|rpn_cls_logits|rpn_bbox_pred)_([wb])$', r'\1_fpn2_\2'))
    state = {rename(name, spellings): value for name, value in state.items()}
    found = take_names(state, architecture.entries(), lambda name: _theirs(name, architecture), what)
    if architecture.norm == 'affine':
        found = _as_batch_norms(found)
    if architecture.rpn or architecture.box_fcs is not None:
        return background_last(found)
    return {name.removeprefix('backbone.'): value for name, value in found.items()}


def _read(names: Iterable[str]) -> Architecture:
    names = list(names)

    def any_is(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)
    pyramid, boxes = any_is('fpn_'), any_is('(?:cls_score|bbox_pred|fc[67])_')
    fcs = count(names, r'fc([67])_')
    return Architecture(
        blocks=count_blocks(names, r'res(\d+)_(\d+)_branch'), bottleneck=True,
        stage_in_head=boxes and not pyramid and fcs is None, pyramid=pyramid,
        box_fcs=(fcs or (2 if pyramid else 0)) if boxes else None, box_convs=count(names, r'head_conv(\d+)_') or 0,
        mask_convs=((count(names, r'_(?:\[mask\]|mask)_fcn(\d+)_') or 0)
                    if any_is(r'_\[mask\]_|_mask_fcn|conv5_mask_|mask_fcn_logits_') else None),
        keypoint_convs=count(names, r'conv_fcn(\d+)_'), rpn=any_is('(?:conv_)?rpn_'),
        norm='gn' if any_is(r'res2_.*_gn_s') else 'bn' if any_is(r'res2_.*_bn_riv') else 'affine',
        head_norm='gn' if any_is(r'(?:fpn_|head_conv|_mask_fcn).*_gn_s') else '')


def _as_batch_norms(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the mean and variance with which a batch norm is its scale and shift only."""
    found = {}
    for name, value in state.items():
        found[name] = value
        norm = re.fullmatch(r'(.*\.(?:bn\d|downsample\.1))\.weight', name)
        if norm:
            found[f'{norm[1]}.running_mean'] = torch.zeros_like(value)
            found[f'{norm[1]}.running_var'] = torch.full_like(value, 1 - NORM_EPS)
    return found


def from_boxdet(state: Mapping[str, torch.Tensor], what: str = _WHAT) -> dict[str, torch.Tensor]:
    """The way back. Batch norms become a scale and a shift.

    Raises:
        CheckpointError: Detectron has no such model.
    """
    architecture = replace(Architecture.of_boxdet(state), bottleneck=True, stages=0, rpn_convs=1)
    if architecture.norm == 'bn':
        state, architecture = _without_statistics(without_counters(state)), replace(architecture, norm='affine')
    return give_names(background_first(state), architecture.entries(), lambda name: _theirs(name, architecture), what)


def _without_statistics(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = dict(state)
    for stem in [name.removesuffix('.running_var') for name in state if name.endswith('.running_var')]:
        mean, variance = found.pop(f'{stem}.running_mean'), found.pop(f'{stem}.running_var')
        weight, bias = found[f'{stem}.weight'], found[f'{stem}.bias']
        scale = weight.double() / (variance.double() + NORM_EPS).sqrt()
        found[f'{stem}.weight'] = scale.to(weight)
        found[f'{stem}.bias'] = (bias.double() - mean.double() * scale).to(bias)
    return found


def _theirs(name: str, architecture: Architecture) -> str:
    stem, _, leaf = name.rpartition('.')
    theirs = rename(stem, (*_RULES, (r'^neck\.(lateral|fpn)_convs\.(\d+)\.', _pyramid_rule(architecture.blocks)),
                           (r'\.conv$', ''), (r'\.gn$', '_gn')))
    theirs = theirs.replace('NORM', 'gn' if architecture.norm == 'gn' else 'bn')
    theirs = theirs.replace('LEVEL', '_fpn2' if architecture.pyramid else '')
    theirs = theirs.replace('MASK', _mask_prefix(architecture))
    leaves = _NORM_LEAVES if theirs.endswith(('_bn', '_gn')) else _LEAVES
    return f'{theirs}_{leaves.get(leaf, leaf)}'


def _pyramid_rule(blocks: tuple[int, ...]) -> Callable[[re.Match], str]:
    """Levels are called after the last block of the stage that they read, and the topmost has nothing beside it."""
    def name(match: re.Match) -> str:
        level = int(match[2])
        source = f'res{level + 2}_{blocks[level] - 1}_sum'
        if match[1] == 'fpn':
            return f'fpn_{source}.'
        return f'fpn_inner_{source}' + ('_lateral.' if level < len(blocks) - 1 else '.')
    return name


def _mask_prefix(architecture: Architecture) -> str:
    return '_mask' if architecture.head_norm else '_[mask]'


def pickled(state: Mapping[str, torch.Tensor]) -> bytes:
    """The file that Detectron reads, with blobs from ``from_boxdet``.

    Python 2 can load it: protocol 2, and the name that numpy's module had then.
    """
    raw = pickle.dumps(dict(blobs={name: value.cpu().numpy() for name, value in state.items()}), protocol=2)
    return raw.replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n', 1)
