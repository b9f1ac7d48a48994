"""tensorpack's FasterRCNN: C4, FPN, group norms, cascades, and the ImageNet bodies that they start from.

Files are ``.npz`` of TensorFlow's variables. Kernels are (h, w, in, out), those of linear layers (in, out). The
example runs channels first, so its first linear layer reads (C, h, w) as boxdet's does. Class 0 is the background;
boxes by class have four rows for it, masks have none.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from boxdet.checkpoints.convert.architecture import (
    Architecture,
    count,
    count_blocks,
    give_names,
    rename,
    take_names,
    without_counters,
)
from boxdet.errors import CheckpointError

NAME = 'tensorpack'
_WHAT = "tensorpack's FasterRCNN"

# boxdet's names, without their last part, to tensorpack's.
_RULES = (
    (r'^backbone\.(?:conv|bn|gn)1$', lambda m: 'conv0' + ('' if 'conv' in m[0] else f'/{m[0][-3:-1]}')),
    (r'^(?:backbone|roi_head\.shared_head)\.layer(\d+)\.(\d+)\.', lambda m: f'group{int(m[1]) - 1}/block{m[2]}/'),
    (r'/(bn|gn)(\d)$', r'/conv\2/\1'),
    (r'/downsample\.0$', '/convshortcut'),
    (r'/downsample\.1$', '/convshortcut/NORM'),
    (r'^neck\.lateral_convs\.(\d+)\.conv$', lambda m: f'fpn/lateral_1x1_c{int(m[1]) + 2}'),
    (r'^neck\.fpn_convs\.(\d+)\.conv$', lambda m: f'fpn/posthoc_3x3_p{int(m[1]) + 2}'),
    (r'^neck\.(lateral|fpn)_convs\.(\d+)\.gn$',
     lambda m: f"fpn/gn_{dict(lateral='c', fpn='p')[m[1]]}{int(m[2]) + 2}"),
    (r'^rpn_head\.rpn_conv$', 'rpn/conv0'),
    (r'^rpn_head\.rpn_cls$', 'rpn/class'),
    (r'^rpn_head\.rpn_reg$', 'rpn/box'),
    (r'^roi_head\.bbox_head\.(\d+)\.(fc_cls|fc_reg)$', lambda m: f'cascade_rcnn_stage{int(m[1]) + 1}/outputs/{m[2]}'),
    (r'^roi_head\.bbox_head\.(\d+)\.', lambda m: f'cascade_rcnn_stage{int(m[1]) + 1}/head/'),
    (r'^roi_head\.bbox_head\.(fc_cls|fc_reg)$', r'OUTPUTS/\1'),
    (r'^roi_head\.bbox_head\.', 'fastrcnn/'),
    (r'/fc_cls$', '/class'),
    (r'/fc_reg$', '/box'),
    (r'/shared_convs\.(\d+)\.(conv|gn)$', r'/\2\1'),
    (r'/shared_fcs\.(\d+)$', lambda m: f'/FC{int(m[1]) + 6}'),
    (r'^roi_head\.mask_head\.convs\.(\d+)\.conv$', r'maskrcnn/fcn\1'),
    (r'^roi_head\.mask_head\.convs\.(\d+)\.gn$', r'maskrcnn/gn\1'),
    (r'^roi_head\.mask_head\.upsample$', 'maskrcnn/deconv'),
    (r'^roi_head\.mask_head\.conv_logits$', 'maskrcnn/conv'),
)
_LEAVES = dict(weight='W', bias='b')
_NORM_LEAVES = dict(weight='gamma', bias='beta', running_mean='mean/EMA', running_var='variance/EMA')
# What training leaves beside the weights, and ImageNet's classifier.
LEFT_OUT = re.compile(r'(?:.*/)?(?:global_step|learning_rate|.*Momentum|.*/Adam(?:_\d)?)$|linear/[Wb]$|'
                       r'(?:EMA|loss|apply_gradients|beta\d_power)(?:/|$)')


def recognises(names: Iterable[str]) -> bool:
    """Whether the entries are named as tensorpack names them."""
    return any(re.match(r'conv0/W(?::0)?$|group\d+/block\d+/conv\d/W(?::0)?$', name) for name in names)


def to_boxdet(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Rename tensorpack's variables: under boxdet's names, in its layout and order of classes.

    Those of a backbone alone come without ``backbone.``, as the weights of backbones do.

    Raises:
        CheckpointError: entries too many or too few, by name, or of shapes that do not go together.
    """
    named = {name.removesuffix(':0'): value for name, value in state.items()}
    named = {name: value for name, value in named.items() if not LEFT_OUT.match(name)}
    found = _read(named)
    ours = take_names(named, found.entries(), lambda name: _theirs(name, found), _WHAT)
    ours = {name: _from_tensorflow(value) for name, value in ours.items()}
    if not found.rpn:
        return {name.removeprefix('backbone.'): value for name, value in ours.items()}
    return _background_last(ours)


def _read(names: Iterable[str]) -> Architecture:
    names = list(names)

    def any_is(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)
    pyramid, rpn = any_is('fpn/'), any_is('rpn/')
    head = r'(?:fastrcnn|cascade_rcnn_stage1/head)'
    norms = any_is(r'fpn/gn_|maskrcnn/gn|.*/gn\d+/')
    return Architecture(
        blocks=count_blocks(names, r'group(\d+)/block(\d+)/'), bottleneck=any_is(r'group0/block0/conv3/'),
        stage_in_head=rpn and not pyramid, pyramid=pyramid,
        box_fcs=(count(names, rf'{head}/fc(\d*)/') or 0) if rpn else None,
        box_convs=count(names, rf'{head}/conv(\d+)/') or 0,
        mask_convs=(count(names, r'maskrcnn/fcn(\d+)/') or 0) if any_is('maskrcnn/') else None, keypoint_convs=None,
        rpn=rpn, norm='gn' if any_is(r'(?:conv0|group\d+/.*)/gn/') else 'bn', head_norm='gn' if norms else '',
        head_biases=norms, stages=count(names, r'cascade_rcnn_stage(\d+)/') or 0)


def from_boxdet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back. Counters of batch norms are left out.

    Raises:
        CheckpointError: tensorpack has no such model.
    """
    found = replace(Architecture.of_boxdet(state), keypoint_convs=None, rpn_convs=1)
    if found.box_fcs is None:
        raise CheckpointError(f'this model cannot be written for {_WHAT}: it has no box head')
    ours = {name: _to_tensorflow(value) for name, value in _background_first(without_counters(state)).items()}
    return give_names(ours, found.entries(), lambda name: _theirs(name, found), _WHAT)


def _theirs(name: str, found: Architecture) -> str:
    stem, _, leaf = name.rpartition('.')
    theirs = rename(stem, _RULES)
    theirs = theirs.replace('NORM', found.norm).replace('OUTPUTS', 'fastrcnn/outputs' if found.pyramid else 'fastrcnn')
    # A head with convolutions has one linear layer, called 'fc'.
    theirs = re.sub(r'/FC(\d+)$', '/fc' if found.box_convs else r'/fc\1', theirs)
    is_norm = re.search(r'/(?:bn|gn(?:\d+|_[cp]\d)?)$', theirs)
    return f'{theirs}/{(_NORM_LEAVES if is_norm else _LEAVES).get(leaf, leaf)}'


def _from_tensorflow(value: torch.Tensor) -> torch.Tensor:
    """(h, w, in, out) to (out, in, h, w), which serves for enlargements as well, and (in, out) to (out, in)."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.dim())
    return value if order is None else value.permute(order).contiguous()


def _to_tensorflow(value: torch.Tensor) -> torch.Tensor:
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.dim())
    return value if order is None else value.permute(order).contiguous()


def _background_last(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = {_head(name): len(value) for name, value in state.items() if name.endswith('.fc_cls.bias')}
    found = {}
    for name, value in state.items():
        if '.fc_cls.' in name:
            value = torch.cat([value[1:], value[:1]])
        elif '.fc_reg.' in name and len(value) != 4:
            if len(value) != 4 * rows[_head(name)]:
                raise CheckpointError(f'{name} has {len(value)} rows; {rows[_head(name)]} classes with the background '
                                      f'make {4 * rows[_head(name)]}')
            value = value[4:].clone()
        found[name] = value
    return found


def _background_first(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = {_head(name): len(value) for name, value in state.items() if name.endswith('.fc_cls.bias')}
    found = {}
    for name, value in state.items():
        if '.fc_cls.' in name:
            value = torch.cat([value[-1:], value[:-1]])
        elif '.fc_reg.' in name and (len(value) != 4 or rows[_head(name)] == 2 and not _is_cascade(name)):
            value = torch.cat([value.new_zeros(4, *value.shape[1:]), value])
        found[name] = value
    return found


def _head(name: str) -> str:
    return name.rpartition('.fc_')[0]


def _is_cascade(name: str) -> bool:
    return re.match(r'roi_head\.bbox_head\.\d+\.', name) is not None


def arrays(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What ``numpy.savez`` writes into the file that tensorpack loads, of the result of ``from_boxdet``."""
    return {name: value.cpu().numpy() for name, value in state.items()}
