"""What samplers that choose by losses (OHEM) get to see: one number a box, of softmax and of sigmoid losses."""
import pytest
import torch
from torch.nn import functional as F

from boxdet.engine.config import load_config
from boxdet.models import build_head
from boxdet.models.standard_roi_head import box_losses


@pytest.mark.parametrize('loss', [
    dict(use_sigmoid=False), dict(use_sigmoid=True), dict(type='FocalLoss', use_sigmoid=True)])
def test_one_loss_a_box(tiny_detector, loss):
    cfg = load_config(tiny_detector.config).model.roi_head
    cfg.bbox_head.loss_cls = {'type': 'CrossEntropyLoss', **loss}
    torch.manual_seed(0)
    head = build_head(cfg)
    boxes = torch.tensor([[4., 4, 60, 50], [10, 20, 90, 80], [0, 0, 30, 30]])
    feats = [torch.randn(2, 32, 128 // s, 128 // s) for s in (4, 8, 16, 32)]
    labels = torch.tensor([0, 2, 1])
    with torch.no_grad():
        found = box_losses(head.bbox_head, head.box_forward, feats, 1, boxes, labels)['loss_cls']
        background = box_losses(head.bbox_head, head.box_forward, feats, 1, boxes, None)['loss_cls']
        rois = torch.cat([torch.ones(3, 1), boxes], dim=1)
        scores, _, _ = head.box_forward(feats, rois)
    assert found.shape == background.shape == (3,) and not torch.equal(found, background)
    if loss == dict(use_sigmoid=True):
        answers = F.one_hot(labels, 4).float()
        expected = F.binary_cross_entropy_with_logits(scores, answers, reduction='none').sum(dim=1)
        torch.testing.assert_close(found, expected)
    elif loss == dict(use_sigmoid=False):
        torch.testing.assert_close(found, F.cross_entropy(scores, labels, reduction='none'))
