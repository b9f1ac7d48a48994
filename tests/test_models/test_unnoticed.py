"""Changes of the source that no test noticed once: each fails one here."""
from __future__ import annotations

import math

import torch

from boxdet.geometry.nms_rounds import IN_ROUNDS
from boxdet.models import build_head, build_loss
from boxdet.models.bbox_head import RoITestSettings
from tests.test_models import tiny_models


@torch.no_grad()
def test_masks_pass_the_shared_head_too():
    torch.manual_seed(0)
    feats, rois = [torch.randn(1, 256, 6, 8)], torch.tensor([[0, 4., 4, 90, 70], [0, 20, 10, 60, 90]])
    for own in (None, tiny_models.extractor(14, [16], 256)):
        cfg = tiny_models.c4_mask_rcnn()['roi_head'] | dict(mask_roi_extractor=own)
        head = build_head(cfg).eval()
        extractor = head.bbox_roi_extractor if own is None else head.mask_roi_extractor
        expected = head.shared_head(extractor(feats, rois))
        torch.testing.assert_close(head.mask_features(feats, rois), expected)
        assert expected.shape[1] == 512


def test_the_trade_off_of_ciou_is_a_constant_of_the_gradient():
    pred = torch.tensor([[10., 10, 50, 40], [20, 20, 70, 50]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[12., 8, 50, 44], [22, 18, 66, 52]], dtype=torch.float64)
    build_loss(dict(type='CIoULoss', reduction='sum'))(pred, target).backward()
    free = pred.detach().clone().requires_grad_()
    inter = (torch.minimum(free[:, 2:], target[:, 2:]) - torch.maximum(free[:, :2], target[:, :2])).prod(1)
    area, other = ((b[:, 2:] - b[:, :2]).prod(1) for b in (free, target))
    iou = inter / (area + other - inter)
    hull = torch.maximum(free[:, 2:], target[:, 2:]) - torch.minimum(free[:, :2], target[:, :2])
    shift = (free[:, :2] + free[:, 2:] - target[:, :2] - target[:, 2:]) / 2
    ratio = [((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1])).atan() for b in (target, free)]
    aspect = 4 / math.pi ** 2 * (ratio[0] - ratio[1]) ** 2
    assert (iou > 0.5).all()
    alpha = (aspect / (1 - iou + aspect)).detach()
    (1 - iou + shift.square().sum(1) / hull.square().sum(1) + alpha * aspect).sum().backward()
    torch.testing.assert_close(pred.grad, free.grad, rtol=1e-5, atol=1e-8)


def test_a_score_that_equals_the_threshold_is_too_low():
    head = build_head(tiny_models.bbox_head(num_classes=1)).eval()
    boxes, scores, deltas = torch.tensor([[4., 4, 30, 30]]), torch.zeros(1, 2), torch.zeros(1, 4)  # 0.5 and 0.5
    for threshold, count in ((0.5, 0), (0.499, 1)):
        settings = RoITestSettings(score_thr=threshold)
        assert len(head.predict(boxes, scores, deltas, (64, 64), settings)) == count
        padded = head.predict_padded([boxes], torch.ones(1, 1, dtype=torch.bool), scores, deltas, [(64, 64)], settings,
                                     IN_ROUNDS)
        assert padded.valid.sum() == count
