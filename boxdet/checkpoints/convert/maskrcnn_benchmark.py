"""maskrcnn-benchmark's Faster, Mask and Keypoint R-CNN.

They stand on a pyramid (FPN) or on stage 4 (C4), with batch norms that are frozen or with group norms.

Files are ``.pth`` with the weights under 'model'. Class 0 is the background (see ``classes``), and its frozen batch
norms divide by the root of the variance without an eps: here it is subtracted from the variances beforehand.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
from boxdet.checkpoints.convert.classes import MASKS, background_first, background_last, refuse_class_agnostic
from boxdet.checkpoints.loading import as_tensor

NAME = 'maskrcnn-benchmark'
_WHAT = "maskrcnn-benchmark's R-CNN"

# boxdet's names to maskrcnn-benchmark's.
_RULES = (
    (r'^roi_head\.shared_head\.', 'roi_heads.box.feature_extractor.head.'),
    (r'^backbone\.(conv1|[bg]n1)\.', r'backbone.body.stem.\1.'),
    (r'^backbone\.layer', 'backbone.body.layer'),
    (r'\.gn(\d)\.', r'.bn\1.'),  # the attribute is called so whatever norm it is
    (r'^neck\.lateral_convs\.(\d+)\.', lambda m: f'backbone.fpn.fpn_inner{int(m[1]) + 1}.'),
    (r'^neck\.fpn_convs\.(\d+)\.', lambda m: f'backbone.fpn.fpn_layer{int(m[1]) + 1}.'),
    (r'^rpn_head\.rpn_conv', 'rpn.head.conv'),
    (r'^rpn_head\.rpn_cls', 'rpn.head.cls_logits'),
    (r'^rpn_head\.rpn_reg', 'rpn.head.bbox_pred'),
    (r'^roi_head\.bbox_head\.shared_fcs\.(\d+)', lambda m: f'roi_heads.box.feature_extractor.fc{int(m[1]) + 6}'),
    (r'^roi_head\.bbox_head\.fc_cls', 'roi_heads.box.predictor.cls_score'),
    (r'^roi_head\.bbox_head\.fc_reg', 'roi_heads.box.predictor.bbox_pred'),
    (r'^roi_head\.mask_head\.convs\.(\d+)\.', lambda m: f'roi_heads.mask.feature_extractor.mask_fcn{int(m[1]) + 1}.'),
    (r'^roi_head\.mask_head\.upsample', 'roi_heads.mask.predictor.conv5_mask'),
    (r'^roi_head\.mask_head\.conv_logits', 'roi_heads.mask.predictor.mask_fcn_logits'),
    (r'^roi_head\.keypoint_head\.convs\.(\d+)\.conv',
     lambda m: f'roi_heads.keypoint.feature_extractor.conv_fcn{int(m[1]) + 1}'),
    (r'^roi_head\.keypoint_head\.upsample', 'roi_heads.keypoint.predictor.kps_score_lowres'),
)
# Anchors are settings of the config here.
LEFT_OUT = re.compile(r'rpn\.anchor_generator\.cell_anchors\.')


def recognises(names: Iterable[str]) -> bool:
    """Whether the entries are named as maskrcnn-benchmark names them."""
    return any(name.startswith(('backbone.body.stem.', 'backbone.fpn.fpn_inner', 'roi_heads.box.predictor.'))
               for name in names)


def to_boxdet(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A maskrcnn-benchmark state dict under boxdet's names, with its order of classes and its eps.

    Raises:
        CheckpointError: entries too many or too few, by name, or of shapes that do not go together.
    """
    state = {name: value for name, value in state.items()
             if not LEFT_OUT.match(name) and not _is_repeated(name, state)}
    stage_in_head = any(name.startswith('roi_heads.box.feature_extractor.head.') for name in state)
    boxes, masks = (any(name.startswith(f'roi_heads.{head}.') for name in state) for head in ('box', 'mask'))
    box_fcs = count(state, r'roi_heads\.box\.feature_extractor\.fc(\d+)\.') or (0 if stage_in_head else 2)
    norms = any(re.search(r'\.(?:fpn_inner|mask_fcn)\d+\.1\.', name) for name in state)
    convs = {name for name in state if name.startswith('roi_heads.box.feature_extractor.xconvs.')}
    architecture = Architecture(
        blocks=count_blocks(
            state, r'(?:backbone\.body|roi_heads\.box\.feature_extractor\.head)\.layer(\d+)\.(\d+)\.'),
        bottleneck=any(re.match(r'backbone\.body\.layer1\.\d+\.conv3', name) for name in state),
        stage_in_head=stage_in_head, pyramid=any(name.startswith('backbone.fpn.') for name in state),
        box_fcs=box_fcs if boxes else None, box_convs=len(convs) // (3 if norms else 2),
        mask_convs=(count(state, r'roi_heads\.mask\.feature_extractor\.mask_fcn(\d+)\.') or 0) if masks else None,
        keypoint_convs=count(state, r'roi_heads\.keypoint\.feature_extractor\.conv_fcn(\d+)\.'),
        norm='bn' if any(name.endswith('.running_mean') for name in state) else 'gn', head_norm='gn' if norms else '')
    found = take_names(state, architecture.entries(), lambda name: _theirs(name, norms), _WHAT)
    return background_last(_with_variances(found, -NORM_EPS))


def from_boxdet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back. Counters of batch norms, which frozen ones have not, are left out.

    Raises:
        CheckpointError: maskrcnn-benchmark has no such model.
    """
    architecture = replace(Architecture.of_boxdet(state), stages=0, rpn_convs=1)
    if not architecture.stage_in_head and architecture.box_fcs is not None:
        architecture = replace(architecture, box_fcs=1 if architecture.box_convs else 2)
    refuse_class_agnostic(state, (MASKS,), _WHAT)
    theirs = give_names(
        _with_variances(background_first(without_counters(state)), NORM_EPS), replace(architecture, rpn=True).entries(),
        lambda name: _theirs(name, bool(architecture.head_norm)), _WHAT)
    if architecture.stage_in_head and architecture.mask_convs is not None:
        theirs.update({name.replace('.box.', '.mask.'): value for name, value in theirs.items()
                       if name.startswith('roi_heads.box.feature_extractor.')})
    return theirs


def _with_variances(state: Mapping[str, torch.Tensor], more: float) -> dict[str, torch.Tensor]:
    return {name: value + more if name.endswith('.running_var') else value for name, value in state.items()}


def _is_repeated(name: str, state: Mapping[str, Any]) -> bool:
    """Heads of C4 that share stage 5 have it under the name of each."""
    twin = re.sub(r'^roi_heads\.(?:mask|keypoint)(\.feature_extractor\.head\.)', r'roi_heads.box\1', name)
    return twin != name and twin in state and torch.equal(as_tensor(name, state[name]), as_tensor(twin, state[twin]))


def _theirs(name: str, norms: bool) -> str:
    """Convolutions of the heads that have norms are sequences of convolution, norm and, among those of boxes, ReLU."""
    step = 3 if norms else 2
    return rename(name, (
        *_RULES,
        (r'^roi_head\.bbox_head\.shared_convs\.(\d+)\.(conv|gn)',
         lambda m: f"roi_heads.box.feature_extractor.xconvs.{step * int(m[1]) + (m[2] == 'gn')}"),
        (r'((?:fpn_inner|fpn_layer|mask_fcn)\d+)\.conv\.', r'\1.0.' if norms else r'\1.'),
        (r'((?:fpn_inner|fpn_layer|mask_fcn)\d+)\.gn\.', r'\1.1.')))
