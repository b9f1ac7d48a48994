"""Detectron.pytorch's R-CNNs: Detectron's models and conventions under the names of PyTorch modules.

Files are ``.pth`` with 'model', 'step' and 'optimizer'. Each entry is renamed to the Detectron blob that the project
maps it to (its ``detectron_weight_mapping``), and read as Detectron's. Class 0 is the background.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from boxdet.checkpoints.convert import detectron
from boxdet.checkpoints.convert.architecture import count_blocks, rename
from boxdet.errors import CheckpointError

NAME = 'Detectron.pytorch'
_WHAT = "Detectron.pytorch's R-CNN"

# Entries that nothing maps: fixed filters of the bilinear enlargement, and copies of stage 5 that the mask head shares.
LEFT_OUT = re.compile(r'Keypoint_Outs\.upsample\.|Mask_Head\.res5\.')
_LEAVES = dict(weight='w', bias='b')


def recognises(names: Iterable[str]) -> bool:
    """Whether the entries are named as Detectron.pytorch names them."""
    return any(name.startswith(('Conv_Body.', 'Box_Head.', 'Box_Outs.')) for name in names)


def to_boxdet(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A Detectron.pytorch state dict under boxdet's names and with boxdet's order of classes.

    Raises:
        CheckpointError: entries too many or too few, by Detectron's names, or of shapes that do not go together.
    """
    rules = _rules(state)
    return detectron.to_boxdet({_blob(name, rules): value for name, value in state.items()
                                if not LEFT_OUT.match(name)}, _WHAT)


def from_boxdet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back.

    Raises:
        CheckpointError: Detectron has no such model.
    """
    blobs = detectron.from_boxdet(state, _WHAT)
    body = 'Conv_Body.conv_body.' if any(name.startswith('fpn_') for name in blobs) else 'Conv_Body.'
    blocks = count_blocks(blobs, r'res(\d+)_(\d+)_branch')
    norms = any('_gn_' in name for name in blobs if name.startswith(('fpn_', 'head_conv', '_mask_fcn')))
    rules = _rules_of(body, blocks, norms, 'gn' if 'conv1_gn_s' in blobs else 'bn')
    names = _every_name(body, blocks, norms, in_head=body == 'Conv_Body.')
    theirs = {_blob(name, rules): name for name in names}
    missing = [name for name in blobs if name not in theirs]
    if missing:
        raise CheckpointError(f'this model cannot be written for {_WHAT}: it has no place for {missing[0]}')
    return {theirs[name]: value for name, value in blobs.items()}


def _rules(names: Iterable[str]) -> tuple:
    names = list(names)
    body = 'Conv_Body.conv_body.' if any(name.startswith('Conv_Body.conv_body.') for name in names) else 'Conv_Body.'
    blocks = count_blocks(names, rf'(?:{re.escape(body)}|Box_Head\.)res([2-9])\.(\d+)\.')
    norms = any(re.match(r'Conv_Body\.(?:conv_top|posthoc_modules\.\d+)\.1\.|Box_Head\.convs\.4\.weight', name)
                for name in names) and not any(re.match(r'Box_Head\.convs\.2\.weight', name) for name in names)
    return _rules_of(body, blocks, norms, 'gn' if f'{body}res1.gn1.weight' in names else 'bn')


def _rules_of(body: str, blocks: tuple[int, ...], norms: bool, body_norm: str) -> tuple:
    """Patterns of the project's names, without their last part, and the blobs that they stand for.

    Args:
        body: prefix of the ResNet's entries.
        blocks: residual blocks of each stage; the pyramid's blobs are called after the last ones.
        norms: pyramid and heads have group norms, which have numbers of their own in a sequence.
        body_norm: 'bn' or 'gn', of the ResNet.
    """
    sums = [f'res{stage + 2}_{number - 1}_sum' for stage, number in enumerate(blocks)][::-1]  # the topmost first
    step = 3 if norms else 2  # convolution[, norm], ReLU

    def layer(prefix: str, offset: int = 1):
        return lambda m: f'{prefix}{int(m[1]) // step + offset}' + ('_gn' if norms and int(m[1]) % step == 1 else '')

    def part(match: re.Match) -> str:
        return '_gn' if match[match.re.groups] == '.1' else ''
    return (
        (rf'^{re.escape(body)}res1\.conv1$', 'conv1'),
        (rf'^{re.escape(body)}res1\.bn1$', 'res_conv1_bn'),
        (rf'^{re.escape(body)}res1\.gn1$', 'conv1_gn'),
        (rf'^(?:{re.escape(body)}|Box_Head\.)res(\d)\.(\d+)\.', r'res\1_\2_'),
        (r'^(res\d_\d+)_downsample\.0$', r'\1_branch1'),
        (r'^(res\d_\d+)_downsample\.1$', rf'\1_branch1_{body_norm}'),
        (r'^(res\d_\d+)_(conv|bn|gn)(\d)$',
         lambda m: f"{m[1]}_branch2{'abc'[int(m[3]) - 1]}" + (f'_{m[2]}' if m[2] != 'conv' else '')),
        (r'^Conv_Body\.conv_top((?:\.\d)?)$', lambda m: f'fpn_inner_{sums[0]}{part(m)}'),
        (r'^Conv_Body\.topdown_lateral_modules\.(\d)\.conv_lateral((?:\.\d)?)$',
         lambda m: f'fpn_inner_{sums[int(m[1]) + 1]}_lateral{part(m)}'),
        (r'^Conv_Body\.posthoc_modules\.(\d)((?:\.\d)?)$', lambda m: f'fpn_{sums[int(m[1])]}{part(m)}'),
        (r'^RPN\.FPN_RPN_conv$', 'conv_rpn_fpn2'),
        (r'^RPN\.FPN_RPN_cls_score$', 'rpn_cls_logits_fpn2'),
        (r'^RPN\.FPN_RPN_bbox_pred$', 'rpn_bbox_pred_fpn2'),
        (r'^RPN\.RPN_conv$', 'conv_rpn'),
        (r'^RPN\.RPN_cls_score$', 'rpn_cls_logits'),
        (r'^RPN\.RPN_bbox_pred$', 'rpn_bbox_pred'),
        (r'^Box_Head\.fc([12])$', lambda m: f'fc{int(m[1]) + 5}'),
        (r'^Box_Head\.fc$', 'fc6'),
        (r'^Box_Head\.convs\.(\d+)$', layer('head_conv')),
        (r'^Box_Outs\.', ''),
        (r'^Mask_Head\.conv_fcn\.(\d+)$', layer('_mask_fcn' if norms else '_[mask]_fcn')),
        (r'^Mask_Head\.upconv5?$', 'conv5_mask'),
        (r'^Mask_Outs\.classify$', 'mask_fcn_logits'),
        (r'^Keypoint_Head\.conv_fcn\.(\d+)$', lambda m: f'conv_fcn{int(m[1]) // 2 + 1}'),
        (r'^Keypoint_Outs\.classify$', 'kps_score_lowres'),
        (r'^Keypoint_Outs\.deconv$', 'kps_deconv'),
    )


def _blob(name: str, rules: tuple) -> str:
    stem, _, leaf = name.rpartition('.')
    blob = rename(stem, rules)
    if blob == stem:
        return name  # unknown: told under the name that it has
    leaves = dict(_LEAVES, weight='s') if blob.endswith(('_bn', '_gn')) else _LEAVES
    return f'{blob}_{leaves.get(leaf, leaf)}'


def _every_name(body: str, blocks: tuple[int, ...], norms: bool, in_head: bool) -> Iterable[str]:
    """All names that a model of the project may have."""
    stems = [f'{body}res1.{part}1' for part in ('conv', 'bn', 'gn')]
    for stage, number in enumerate(blocks, 2):
        place = 'Box_Head.' if in_head and stage == len(blocks) + 1 and stage == 5 else body
        for block in range(number):
            stems += [f'{place}res{stage}.{block}.{part}{i}' for part in ('conv', 'bn', 'gn') for i in (1, 2, 3)]
        stems += [f'{place}res{stage}.0.downsample.{i}' for i in (0, 1)]
    inner = ('.0', '.1') if norms else ('',)
    for i in inner:
        stems.append(f'Conv_Body.conv_top{i}')
        stems += [f'Conv_Body.topdown_lateral_modules.{level}.conv_lateral{i}' for level in range(len(blocks) - 1)]
        stems += [f'Conv_Body.posthoc_modules.{level}{i}' for level in range(len(blocks))]
    rpn = 'RPN.RPN_' if in_head else 'RPN.FPN_RPN_'
    stems += [f'{rpn}{part}' for part in ('conv', 'cls_score', 'bbox_pred')]
    step = 3 if norms else 2
    numbers = [step * i + k for i in range(8) for k in range(step - 1)]
    stems += [f'Box_Head.convs.{i}' for i in numbers] + [f'Mask_Head.conv_fcn.{i}' for i in numbers]
    stems += [f'Keypoint_Head.conv_fcn.{2 * i}' for i in range(8)]
    convs = ('Box_Head.fc',) if norms else ('Box_Head.fc1', 'Box_Head.fc2')
    stems += [*convs, 'Box_Outs.cls_score', 'Box_Outs.bbox_pred',
              'Mask_Head.upconv5' if in_head else 'Mask_Head.upconv', 'Mask_Outs.classify', 'Keypoint_Outs.classify',
              'Keypoint_Outs.deconv']
    return [f'{stem}.{leaf}' for stem in stems for leaf in ('weight', 'bias')]

