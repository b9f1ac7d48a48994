"""models/contracts.py says what our own parts have, and what a detector asks."""
from __future__ import annotations

import inspect

import pytest

from boxdet.models import build_detector, contracts
from boxdet.registry import MATCHING, MODELS
from tests.test_models import tiny_models

PARTS = [
    (contracts.Backbone, MODELS, 'ResNet'), (contracts.Backbone, MODELS, 'ResNeXt'),
    (contracts.Backbone, MODELS, 'VGG'), (contracts.Neck, MODELS, 'FPN'), (contracts.RPNHead, MODELS, 'RPNHead'),
    (contracts.RoIHead, MODELS, 'StandardRoIHead'), (contracts.RoIHead, MODELS, 'CascadeRoIHead'),
    (contracts.RoIExtractor, MODELS, 'SingleRoIExtractor'), (contracts.RoIExtractor, MODELS, 'GenericRoIExtractor'),
    (contracts.BoxHead, MODELS, 'BBoxHead'), (contracts.BoxHead, MODELS, 'Shared2FCBBoxHead'),
    (contracts.MaskHead, MODELS, 'FCNMaskHead'), (contracts.KeypointHead, MODELS, 'KeypointRCNNHead'),
    (contracts.BoxCoder, MATCHING, 'DeltaXYWHBBoxCoder'), (contracts.AnchorGenerator, MATCHING, 'AnchorGenerator'),
    (contracts.Assigner, MATCHING, 'MaxIoUAssigner'), (contracts.Sampler, MATCHING, 'RandomSampler'),
    (contracts.Sampler, MATCHING, 'PseudoSampler'), (contracts.Sampler, MATCHING, 'OHEMSampler'),
]


def methods(contract: type) -> list[str]:
    return [name for name, value in vars(contract).items()
            if inspect.isfunction(value) and (name == '__call__' or not name.startswith('_'))]


@pytest.mark.parametrize('contract, where, name', PARTS, ids=lambda value: getattr(value, '__name__', str(value)))
def test_a_part_has_every_method_with_its_arguments(contract, where, name):
    cls = where.get(name)
    assert methods(contract)
    for method in methods(contract):
        asked = list(inspect.signature(getattr(contract, method)).parameters.values())
        has = list(inspect.signature(getattr(cls, 'forward' if method == '__call__' else method)).parameters.values())
        assert len(has) >= len(asked)
        for wanted, own in zip(asked[1:], has[1:]):
            assert wanted.kind is wanted.POSITIONAL_ONLY or wanted.name == own.name, method
        assert all(own.default is not own.empty for own in has[len(asked):]), method


def test_built_parts_fulfil_their_contracts():
    model = build_detector(tiny_models.mask_rcnn())
    head = model.roi_head
    for part, contract in ((model.backbone, contracts.Backbone), (model.neck, contracts.Neck),
                           (model.rpn_head, contracts.RPNHead), (head, contracts.RoIHead),
                           (build_detector(tiny_models.cascade_mask_rcnn()).roi_head, contracts.RoIHead),
                           (head.bbox_head, contracts.BoxHead), (head.mask_head, contracts.MaskHead),
                           (build_detector(tiny_models.keypoint_rcnn()).roi_head.keypoint_head, contracts.KeypointHead),
                           (head.bbox_roi_extractor, contracts.RoIExtractor), (head.assigner, contracts.Assigner),
                           (head.sampler, contracts.Sampler), (head.bbox_head.bbox_coder, contracts.BoxCoder),
                           (model.rpn_head.anchor_generator, contracts.AnchorGenerator)):
        assert isinstance(part, contract)
    assert not isinstance(head, contracts.BoxHead) and not isinstance(head.bbox_head, contracts.RoIHead)
