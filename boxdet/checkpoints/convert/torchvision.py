"""torchvision's ``fasterrcnn_``, ``maskrcnn_`` and ``keypointrcnn_resnet50_fpn``, and the first two's ``_v2``.

Their class 0 is the background (see ``classes``).
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from boxdet.checkpoints.convert.architecture import Architecture, count, count_blocks, give_names, rename, take_names
from boxdet.checkpoints.convert.classes import BOXES, MASKS, background_first, background_last, refuse_class_agnostic

NAME = 'torchvision'
_WHAT = "torchvision's R-CNN"

# boxdet's names to torchvision's.
_RULES = (
    (r'^backbone\.', 'backbone.body.'),
    (r'^neck\.lateral_convs\.(\d+)\.', r'backbone.fpn.inner_blocks.\1.'),
    (r'^neck\.fpn_convs\.(\d+)\.', r'backbone.fpn.layer_blocks.\1.'),
    (r'^rpn_head\.rpn_conv\.(\d+)\.conv', r'rpn.head.conv.\1.0'),
    (r'^rpn_head\.rpn_conv', 'rpn.head.conv.0.0'),
    (r'^rpn_head\.rpn_cls', 'rpn.head.cls_logits'),
    (r'^rpn_head\.rpn_reg', 'rpn.head.bbox_pred'),
    (r'^roi_head\.bbox_head\.shared_convs\.(\d+)\.', r'roi_heads.box_head.\1.'),
    (r'^roi_head\.bbox_head\.shared_fcs\.(\d+)', r'roi_heads.box_head.FC\1'),
    (r'^roi_head\.bbox_head\.fc_cls', 'roi_heads.box_predictor.cls_score'),
    (r'^roi_head\.bbox_head\.fc_reg', 'roi_heads.box_predictor.bbox_pred'),
    (r'^roi_head\.mask_head\.convs\.(\d+)\.', r'roi_heads.mask_head.\1.'),
    (r'^roi_head\.mask_head\.upsample', 'roi_heads.mask_predictor.conv5_mask'),
    (r'^roi_head\.mask_head\.conv_logits', 'roi_heads.mask_predictor.mask_fcn_logits'),
    # A ReLU stands between two convolutions and has a number, too.
    (r'^(backbone\.fpn\.\w+|roi_heads\.(?:box|mask)_head)((?:\.\d+)+)\.conv\.', r'\1\2.0.'),
    (r'^(backbone\.fpn\.\w+|roi_heads\.(?:box|mask)_head)((?:\.\d+)+)\.bn\.', r'\1\2.1.'),
    (r'^roi_head\.keypoint_head\.convs\.(\d+)\.conv', lambda m: f'roi_heads.keypoint_head.{2 * int(m[1])}'),
    (r'^roi_head\.keypoint_head\.upsample', 'roi_heads.keypoint_predictor.kps_score_lowres'),
)
# Names up to torchvision 0.12, in which the published files are written, to today's.
_OLD_NAMES = (
    (r'^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$', r'\1.0.\2'),
    (r'^rpn\.head\.conv\.(weight|bias)$', r'rpn.head.conv.0.0.\1'),
    (r'^roi_heads\.mask_head\.mask_fcn(\d+)\.', lambda m: f'roi_heads.mask_head.{int(m[1]) - 1}.0.'),
)
LEFT_OUT = re.compile('(?!)')  # nothing


def recognises(names: Iterable[str]) -> bool:
    """Whether the entries are named as torchvision names them: maskrcnn-benchmark, too, has a ``backbone.body``."""
    return any(name.startswith(('backbone.body.conv1.', 'backbone.fpn.inner_blocks.')) for name in names)


def to_boxdet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A torchvision state dict under boxdet's names and with boxdet's order of classes.

    Raises:
        CheckpointError: entries too many or too few, by name, or of shapes that do not go together.
    """
    state = {rename(name, _OLD_NAMES): value for name, value in state.items()}
    box_convs = count(state, r'roi_heads\.box_head\.(\d+)\.0\.') or 0
    architecture = Architecture(
        blocks=count_blocks(state, r'backbone\.body\.layer(\d+)\.(\d+)\.'),
        bottleneck=any(re.match(r'backbone\.body\.layer1\.\d+\.conv3', name) for name in state),
        stage_in_head=False, pyramid=True, box_fcs=1 if box_convs else 2, box_convs=box_convs,
        mask_convs=count(state, r'roi_heads\.mask_head\.(\d+)\.'),
        keypoint_convs=count(state, r'roi_heads\.keypoint_head\.(\d+)\.'),
        head_norm='bn' if 'backbone.fpn.inner_blocks.0.1.weight' in state else '',
        rpn_convs=count(state, r'rpn\.head\.conv\.(\d+)\.') or 1)
    return background_last(take_names(state, architecture.entries(), lambda n: _theirs(n, architecture), _WHAT))


def from_boxdet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back: torchvision's names and classes.

    Raises:
        CheckpointError: torchvision has no such model.
    """
    found = Architecture.of_boxdet(state)
    architecture = Architecture(
        blocks=found.blocks, bottleneck=found.bottleneck, stage_in_head=False, pyramid=True,
        box_fcs=1 if found.box_convs else 2, mask_convs=found.mask_convs or None,
        keypoint_convs=found.keypoint_convs or None, box_convs=found.box_convs,
        head_norm='bn' if found.head_norm == 'bn' else '', rpn_convs=found.rpn_convs)
    theirs = give_names(background_first(state), architecture.entries(), lambda n: _theirs(n, architecture), _WHAT)
    refuse_class_agnostic(state, (BOXES, MASKS), _WHAT)
    return theirs


def _theirs(name: str, architecture: Architecture) -> str:
    # Among convolutions the linear layer has a number, after that of the flattening.
    first = architecture.box_convs + 1 if architecture.box_convs else 6
    prefix = '' if architecture.box_convs else 'fc'
    return re.sub(r'\.FC(\d+)\.', lambda m: f'.{prefix}{int(m[1]) + first}.', rename(name, _RULES))
