"""detectron2's Faster, Mask, Keypoint and Cascade R-CNN: on a pyramid (FPN), stage 4 (C4), the dilated stage 5 (DC5).

Norms are batch norms, or group norms in the backbone, the pyramid and the heads.

Classes and boxes are in boxdet's order already (the background is the last class). Files are ``.pth``, or the model
zoo's ``.pkl`` with the weights under 'model'.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

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

NAME = 'detectron2'
_WHAT = "detectron2's R-CNN"

# boxdet's names to detectron2's; 'BODY' becomes backbone.bottom_up below a pyramid, and backbone without one.
_RULES = (
    (r'^roi_head\.shared_head\.layer4', 'roi_heads.res5'),
    (r'^backbone\.(conv1|[bg]n1)', r'BODY.stem.\1'),
    (r'^backbone\.layer(\d+)', lambda m: f'BODY.res{int(m[1]) + 1}'),
    (r'\.[bg]n(\d)\.', r'.conv\1.norm.'),
    (r'\.downsample\.0\.', '.shortcut.'),
    (r'\.downsample\.1\.', '.shortcut.norm.'),
    (r'^neck\.lateral_convs\.(\d+)\.', lambda m: f'backbone.fpn_lateral{int(m[1]) + 2}.'),
    (r'^neck\.fpn_convs\.(\d+)\.', lambda m: f'backbone.fpn_output{int(m[1]) + 2}.'),
    (r'^rpn_head\.rpn_conv', 'proposal_generator.rpn_head.conv'),
    (r'^rpn_head\.rpn_cls', 'proposal_generator.rpn_head.objectness_logits'),
    (r'^rpn_head\.rpn_reg', 'proposal_generator.rpn_head.anchor_deltas'),
    (r'^roi_head\.bbox_head\.((?:\d+\.)?)shared_convs\.(\d+)\.',
     lambda m: f'roi_heads.box_head.{m[1]}conv{int(m[2]) + 1}.'),
    (r'^roi_head\.bbox_head\.((?:\d+\.)?)shared_fcs\.(\d+)', lambda m: f'roi_heads.box_head.{m[1]}fc{int(m[2]) + 1}'),
    (r'^roi_head\.bbox_head\.((?:\d+\.)?)fc_cls', r'roi_heads.box_predictor.\1cls_score'),
    (r'^roi_head\.bbox_head\.((?:\d+\.)?)fc_reg', r'roi_heads.box_predictor.\1bbox_pred'),
    (r'^roi_head\.mask_head\.convs\.(\d+)\.', lambda m: f'roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.'),
    (r'^roi_head\.mask_head\.upsample', 'roi_heads.mask_head.deconv'),
    (r'^roi_head\.mask_head\.conv_logits', 'roi_heads.mask_head.predictor'),
    (r'^roi_head\.keypoint_head\.convs\.(\d+)\.', lambda m: f'roi_heads.keypoint_head.conv_fcn{int(m[1]) + 1}.'),
    (r'^roi_head\.keypoint_head\.upsample', 'roi_heads.keypoint_head.score_lowres'),
    # A convolution has its norm inside.
    (r'(\d)\.conv\.', r'\1.'),
    (r'(\d)\.gn\.', r'\1.norm.'),
)
# Constants that older files hold beside the weights, which are settings of the config here; ImageNet's classifier.
LEFT_OUT = re.compile(r'pixel_mean$|pixel_std$|.*anchor_generator\.cell_anchors\.|(?:stem\.)?fc(?:1000)?[._]')


def recognises(names: Iterable[str]) -> bool:
    """Whether the entries are named as detectron2 names them."""
    # 'backbone.stem.0' is a deep stem of boxdet's own (ResNetV1d, Res2Net, ResNeSt).
    return any(name.startswith(('backbone.bottom_up.', 'backbone.stem.conv1.', 'backbone.res2.',
                                'proposal_generator.', 'stem.conv1.norm.')) for name in names)


def to_boxdet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A detectron2 state dict under boxdet's names.

    Those of a backbone alone, ImageNet's R-50.pkl, come without ``backbone.``, as the weights of backbones do.

    Raises:
        CheckpointError: entries too many or too few, by name.
    """
    state = {name: value for name, value in state.items() if not LEFT_OUT.match(name)}
    bare = any(name.startswith('stem.') for name in state)
    if bare:
        state = {f'backbone.{name}': value for name, value in state.items()}
    pyramid = any(name.startswith(('backbone.bottom_up.', 'backbone.fpn_')) for name in state)
    stage_in_head = any(name.startswith('roi_heads.res5.') for name in state)
    masks = any(name.startswith('roi_heads.mask_head.') for name in state)
    architecture = Architecture(
        blocks=count_blocks(state, r'(?:backbone|backbone\.bottom_up|roi_heads)\.res(\d+)\.(\d+)\.'),
        bottleneck=any(re.match(r'backbone\.(?:bottom_up\.)?res2\.\d+\.conv3', name) for name in state),
        stage_in_head=stage_in_head, pyramid=pyramid,
        box_fcs=None if bare else (
            count(state, r'roi_heads\.box_head\.(?:0\.)?fc(\d+)\.') or (0 if stage_in_head else 2)),
        rpn=not bare,
        stages=count(state, r'roi_heads\.box_predictor\.(\d+)\.') or 0,
        box_convs=count(state, r'roi_heads\.box_head\.(?:0\.)?conv(\d+)\.') or 0,
        norm='bn' if any(name.endswith('.running_mean') for name in state) else 'gn',
        head_norm='gn' if any(re.match(r'backbone\.fpn_lateral\d\.norm\.', name) for name in state) else '',
        mask_convs=(count(state, r'roi_heads\.mask_head\.mask_fcn(\d+)\.') or 0) if masks else None,
        keypoint_convs=count(state, r'roi_heads\.keypoint_head\.conv_fcn(\d+)\.'))
    found = take_names(state, architecture.entries(), lambda name: _theirs(name, pyramid), _WHAT)
    return {name.removeprefix('backbone.'): value for name, value in found.items()} if bare else found


def from_boxdet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back: detectron2's names. Counters of batch norms, which frozen ones have not, are left out.

    Raises:
        CheckpointError: detectron2 has no such model, or none that is read here.
    """
    found = Architecture.of_boxdet(state)
    architecture = replace(found, box_fcs=found.box_fcs or (0 if found.stage_in_head else 2), rpn=True, rpn_convs=1,
                           head_biases=False)
    return give_names(without_counters(state), architecture.entries(),
                      lambda name: _theirs(name, found.pyramid), _WHAT)


def _theirs(name: str, pyramid: bool) -> str:
    return rename(name, _RULES).replace('BODY', 'backbone.bottom_up' if pyramid else 'backbone')
