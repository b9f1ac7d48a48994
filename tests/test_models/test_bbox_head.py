"""Box heads: layers, targets, losses, results."""
from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.geometry.nms import multiclass_nms
from boxdet.models.bbox_head import RoITestSettings, RoITrainSettings
from boxdet.registry import HEADS
from boxdet.structures.batch import SampledRois
from tests.test_models import tiny_models

HW = (96, 128)
K = tiny_models.CLASSES


def build(**changes):
    torch.manual_seed(0)
    return HEADS.build(tiny_models.bbox_head(**changes))


def plain(**changes):
    cfg = tiny_models.bbox_head(type='BBoxHead', **changes)
    cfg.pop('fc_out_channels')
    torch.manual_seed(0)
    return HEADS.build(cfg)


def some_boxes(count: int, seed: int = 0) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 50
    size = 10 + torch.rand(count, 2, generator=torch.Generator().manual_seed(seed + 1)) * 30
    return torch.cat([corner, corner + size], dim=1)


def sampled(pos: int, neg: int, seed: int = 0) -> SampledRois:
    labels = torch.arange(pos) % K
    return SampledRois(some_boxes(pos, seed), some_boxes(neg, seed + 1), torch.arange(pos), torch.arange(neg),
                       torch.zeros(pos, dtype=torch.long), some_boxes(pos, seed + 2), labels,
                       torch.zeros(pos).bool())


def test_shared_two_fcs():
    head = build()
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items()}
    assert shapes == {
        'fc_cls.weight': (4, 32), 'fc_cls.bias': (4,), 'fc_reg.weight': (12, 32), 'fc_reg.bias': (12,),
        'shared_fcs.0.weight': (32, 16 * 49), 'shared_fcs.0.bias': (32,), 'shared_fcs.1.weight': (32, 32),
        'shared_fcs.1.bias': (32,)}
    assert list(shapes)[:4] == ['fc_cls.weight', 'fc_cls.bias', 'fc_reg.weight', 'fc_reg.bias']
    x = torch.randn(5, 16, 7, 7)
    hidden = F.relu(head.shared_fcs[1](F.relu(head.shared_fcs[0](x.flatten(1)))))
    scores, deltas = head(x)
    torch.testing.assert_close(scores, head.fc_cls(hidden))
    torch.testing.assert_close(deltas, head.fc_reg(hidden))


def test_four_convolutions_and_a_fc_with_group_norm():
    head = build(type='Shared4Conv1FCBBoxHead', conv_out_channels=8, norm_cfg=dict(type='GN', num_groups=2))
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items()}
    assert shapes['shared_convs.0.conv.weight'] == (8, 16, 3, 3)
    assert shapes['shared_convs.3.gn.weight'] == (8,)
    assert shapes['shared_fcs.0.weight'] == (32, 8 * 49) and 'shared_fcs.1.weight' not in shapes
    assert head(torch.randn(2, 16, 7, 7))[0].shape == (2, K + 1)


def test_branches_of_their_own():
    cfg = tiny_models.bbox_head(type='ConvFCBBoxHead', num_shared_convs=1, num_cls_convs=1, num_cls_fcs=1,
                                num_reg_convs=2, conv_out_channels=8)
    head = HEADS.build(cfg)
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items()}
    assert shapes['cls_fcs.0.weight'] == (32, 8 * 49) and shapes['fc_cls.weight'] == (4, 32)
    assert shapes['reg_convs.1.conv.weight'] == (8, 8, 3, 3) and shapes['fc_reg.weight'] == (12, 8 * 49)
    x = torch.randn(2, 16, 7, 7)
    shared = head.shared_convs[0](x)
    expected = head.fc_reg(head.reg_convs[1](head.reg_convs[0](shared)).flatten(1))
    torch.testing.assert_close(head(x)[1], expected)
    with pytest.raises(ConfigError, match='num_shared_fcs'):
        HEADS.build(cfg | dict(num_shared_fcs=1))


def test_average_pooling_and_outputs_left_out():
    head = plain(with_avg_pool=True, reg_class_agnostic=True)
    x = torch.randn(3, 16, 7, 7)
    scores, deltas = head(x)
    torch.testing.assert_close(scores, head.fc_cls(F.avg_pool2d(x, 7).flatten(1)))
    assert deltas.shape == (3, 4)
    assert plain(with_reg=False)(x)[1] is None and 'fc_reg.weight' not in plain(with_reg=False).state_dict()
    assert plain(with_cls=False)(x)[0] is None
    with pytest.raises(ConfigError, match='with_cls or with_reg'):
        plain(with_cls=False, with_reg=False)


def test_another_last_layer():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    from boxdet.registry import LAYERS
    LAYERS.register_module(name='DoubledForTest', module=Doubled)
    try:
        head = build(cls_predictor_cfg=dict(type='DoubledForTest'))
    finally:
        LAYERS.module_dict.pop('DoubledForTest')
    assert isinstance(head.fc_cls, Doubled) and type(head.fc_reg) is nn.Linear


def test_initial_weights():
    head = build(fc_out_channels=256)
    head.init_weights()
    assert abs(head.fc_cls.weight.std() - 0.01) < 0.002 and abs(head.fc_reg.weight.std() - 0.001) < 0.0002
    bound = (6 / (16 * 49 + 256)) ** 0.5
    assert 0.95 * bound < head.shared_fcs[0].weight.abs().max() <= bound
    assert not head.fc_cls.bias.any() and not head.shared_fcs[1].bias.any()


def test_targets_put_positives_first_and_count_images():
    head = build()
    targets = head.targets([sampled(2, 3), sampled(0, 2), sampled(1, 0)], RoITrainSettings(pos_weight=2.5))
    assert targets.labels.tolist() == [0, 1, K, K, K, K, K, 0]
    assert targets.pos_index.tolist() == [0, 1, 7]
    assert targets.label_weights.tolist() == [2.5, 2.5, 1, 1, 1, 1, 1, 2.5]
    assert targets.pos_boxes.shape == targets.pos_gt_boxes.shape == (3, 4)


@pytest.mark.parametrize('agnostic', [False, True])
def test_loss_is_that_of_the_definition(agnostic):
    head = build(reg_class_agnostic=agnostic, loss_bbox=dict(type='SmoothL1Loss', beta=1.0))
    samples = [sampled(3, 4), sampled(1, 2)]
    targets = head.targets(samples, RoITrainSettings())
    scores, deltas = torch.randn(10, K + 1, requires_grad=True), torch.randn(10, 4 if agnostic else 4 * K)
    losses = head.loss(scores, deltas, targets)
    torch.testing.assert_close(losses['loss_cls'], F.cross_entropy(scores, targets.labels))
    assert losses['acc'] == pytest.approx(100 * (scores.argmax(1) == targets.labels).float().mean().item())
    expected = 0
    for row, box, gt in zip(targets.pos_index.tolist(), targets.pos_boxes, targets.pos_gt_boxes):
        own = deltas[row] if agnostic else deltas[row].view(K, 4)[targets.labels[row]]
        aim = head.bbox_coder.encode(box[None], gt[None])[0]
        expected += F.smooth_l1_loss(own, aim, reduction='sum') / 10
    torch.testing.assert_close(losses['loss_bbox'], expected)


def test_boxes_may_be_compared_in_pixels():
    head = build(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss', loss_weight=10.0))
    targets = head.targets([sampled(2, 1)], RoITrainSettings())
    deltas = torch.randn(3, 4 * K)
    own = torch.stack([deltas[i].view(K, 4)[targets.labels[i]] for i in range(2)])
    boxes = head.bbox_coder.decode(targets.pos_boxes, own)
    expected = head.loss_bbox(boxes, targets.pos_gt_boxes, avg_factor=3)
    torch.testing.assert_close(head.loss(None, deltas, targets)['loss_bbox'], expected)


@pytest.mark.parametrize('pos, neg', [(0, 0), (0, 3)])
def test_nothing_to_learn_is_a_zero_in_the_graph(pos, neg):
    head = build()
    x = torch.randn(pos + neg, 16, 7, 7)
    losses = head.loss(*head(x), head.targets([sampled(pos, neg)], RoITrainSettings()))
    assert set(losses) == {'loss_cls', 'acc', 'loss_bbox'} and losses['loss_bbox'] == 0
    (losses['loss_cls'] + losses['loss_bbox']).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_losses_are_float32_from_half_precision():
    head = build().bfloat16()
    targets = head.targets([sampled(2, 2)], RoITrainSettings())
    losses = head.loss(*head(torch.randn(4, 16, 7, 7).bfloat16()), targets)
    assert all(v.dtype == torch.float32 for v in losses.values())


@pytest.mark.parametrize('agnostic', [False, True])
@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_results_are_those_of_decoding_everything(agnostic, kind):
    head = build(reg_class_agnostic=agnostic)
    boxes = some_boxes(40)
    scores, deltas = torch.randn(40, K + 1) * 2, torch.randn(40, 4 if agnostic else 4 * K)
    settings = RoITestSettings(score_thr=0.1, nms=dict(type=kind, iou_threshold=0.5), max_per_img=15)
    found = head.predict(boxes, scores, deltas, HW, settings)
    every = head.bbox_coder.decode(boxes, deltas, max_shape=HW)
    dets, labels = multiclass_nms(every, scores.softmax(1), 0.1, settings.nms, 15)
    torch.testing.assert_close(torch.cat([found.bboxes, found.scores[:, None]], dim=1), dets)
    assert torch.equal(found.labels, labels) and len(found) == 15
    assert found.image_size == HW and found.num_classes == K


def test_results_without_deltas_are_the_clipped_proposals():
    head = plain(with_reg=False)
    boxes = torch.tensor([[-5., 3, 200, 50], [1, 1, 4, 4]])
    scores = torch.tensor([[9., 0, 0, 0], [0, 0, 0, 9]])
    found = head.predict(boxes, scores, None, HW, RoITestSettings())
    assert found.bboxes.tolist() == [[0, 3, 128, 50]] and found.labels.tolist() == [0]


def test_no_limit_and_no_boxes():
    head = build()
    settings = RoITestSettings(score_thr=0.0, max_per_img=0, nms=dict(type='nms', iou_threshold=1.0))
    assert len(head.predict(some_boxes(9), torch.zeros(9, K + 1), torch.zeros(9, 4 * K), HW,
                            settings)) == 9 * K
    none = head.predict(torch.zeros(0, 4), torch.zeros(0, K + 1), torch.zeros(0, 4 * K), HW, settings)
    assert len(none) == 0 and none.labels.dtype == torch.long


def test_refined_boxes_are_those_of_their_label():
    head = build()
    boxes, deltas, labels = some_boxes(6), torch.randn(6, 4 * K), torch.arange(6) % K
    expected = torch.stack([
        head.bbox_coder.decode(boxes[i:i + 1], deltas[i].view(K, 4)[labels[i]][None], max_shape=HW)[0]
        for i in range(6)
    ])
    torch.testing.assert_close(head.refine(boxes, labels, deltas, HW), expected)


def test_debug_says_how_many_were_drawn(caplog):
    with caplog.at_level('INFO'):
        build().targets([sampled(2, 3), sampled(0, 2)], RoITrainSettings(debug=True))
    assert 'of image 0 2 positive and 3 negative proposals' in caplog.text


def test_results_without_area_are_kept_unless_the_settings_say_otherwise():
    head = plain(with_reg=False)
    boxes = torch.tensor([[5., 5, 5, 9], [5, 5, 9, 5], [5, 5, 9, 9]])
    scores = torch.tensor([[9., 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]])
    assert len(head.predict(boxes, scores, None, HW, RoITestSettings())) == 3
    found = head.predict(boxes, scores, None, HW, RoITestSettings(keep_empty=False))
    assert found.labels.tolist() == [2]
    large = head.predict(boxes, scores, None, HW, RoITestSettings(min_bbox_size=3.5))
    assert large.labels.tolist() == [2] and not len(head.predict(boxes, scores, None, HW,
                                                                 RoITestSettings(min_bbox_size=4)))


def test_one_result_of_an_image_is_the_best():
    head, scores = build(), torch.randn(9, K + 1)
    every, first = (head.predict(some_boxes(9), scores, torch.zeros(9, 4 * K), HW, RoITestSettings(
        score_thr=0.0, max_per_img=limit)) for limit in (100, 1))
    assert len(first) == 1 and torch.equal(first.bboxes, every.bboxes[:1])
    assert first.scores == scores.softmax(1)[:, :K].max()


@pytest.mark.parametrize('with_cls, with_reg', [(True, True), (True, False), (False, True)])
def test_an_output_that_is_left_out_has_no_layers(with_cls, with_reg):
    head = plain(with_cls=with_cls, with_reg=with_reg, num_cls_fcs=1, num_reg_fcs=2, fc_out_channels=8)
    assert (len(head.cls_fcs), len(head.reg_fcs)) == (with_cls, 2 * with_reg)
    assert (hasattr(head, 'fc_cls'), hasattr(head, 'fc_reg')) == (with_cls, with_reg)
