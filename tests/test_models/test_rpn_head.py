"""The RPN against a slow way of computing the same, and its options."""
from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou, nms

from boxdet.errors import ConfigError
from boxdet.geometry.nms import EXACT
from boxdet.models.rpn_head import ProposalSettings, best_of_batch
from boxdet.registry import HEADS
from boxdet.structures.instances import Instances
from tests.test_models import tiny_models

HW = (96, 128)
SIZES = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
PROPOSE = ProposalSettings(nms_pre=40, max_per_img=30)


def build(**changes):
    torch.manual_seed(1)
    train = dict(tiny_models.train_cfg()['rpn'],
                 sampler=dict(type='RandomSampler', num=10 ** 7, pos_fraction=1.0, neg_pos_ub=-1,
                              add_gt_as_proposals=False))
    train |= changes.pop('train', {})
    head = HEADS.build(tiny_models.rpn_head(train_cfg=train, test_cfg=PROPOSE, **changes))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return head


def levels(batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 16, *size, generator=generator) for size in SIZES]


def slow_loss(head, outs, batch, border: float = -1):
    """Anchor by anchor over all of them, as the papers say it; one image at a time."""
    scores, deltas = ([o.permute(0, 2, 3, 1).reshape(2, -1, n) for o in out] for out, n in zip(outs, (1, 4)))
    anchors = head.anchors(outs[0])
    sizes, every = [len(a) for a in anchors], torch.cat(anchors)
    cls_sum, box_sum, count = [0.0] * 5, [0.0] * 5, 0
    for i, (gt, ignored) in enumerate(zip(batch.gt, batch.ignored)):
        inside = torch.ones(len(every), dtype=torch.bool)
        if border >= 0:
            limit = torch.tensor([HW[1] + border, HW[0] + border])
            inside = (every[:, :2] >= -border).all(1) & (every[:, 2:] < limit).all(1)
        label = torch.full((len(every),), -1)
        target = torch.zeros(len(every), 4)
        if len(gt):
            overlap = box_iou(every, gt.bboxes)
            if len(ignored):
                inter = (torch.min(every[:, None, 2:], ignored[:, 2:])
                         - torch.max(every[:, None, :2], ignored[:, :2])).clamp(min=0).prod(-1)
                overlap[(inter / (every[:, 2:] - every[:, :2]).prod(-1)[:, None]).max(1).values > 0.5] = -1
            overlap[~inside] = -1
            best, own = overlap.max(1)
            label[(best >= 0) & (best < 0.3)] = 0
            label[best >= 0.7] = 1
            for g in range(len(gt)):
                top = overlap[:, g].max()
                if top >= 0.3:
                    taken = overlap[:, g] == top
                    label[taken], own[taken] = 1, g
            target = gt.bboxes[own]
        else:
            label[:] = 0
        label[~inside] = -1
        positive = label == 1
        count += max(int(positive.sum()), 1) + max(int((label == 0).sum()), 1)
        aim = head.bbox_coder.encode(every, target)
        for level, part in enumerate(torch.arange(len(every)).split(sizes)):
            use = part[label[part] >= 0]
            logits = torch.cat([s[i] for s in scores])[use, 0]
            cls_sum[level] += F.binary_cross_entropy_with_logits(logits, label[use].float(), reduction='sum')
            use = part[positive[part]]
            box_sum[level] += (torch.cat([d[i] for d in deltas])[use] - aim[use]).abs().sum()
    return [torch.as_tensor(s / count) for s in cls_sum], [torch.as_tensor(s / count) for s in box_sum]


@pytest.mark.parametrize('counts, crowds, border', [((3, 2), (0, 0), -1), ((3, 0), (2, 0), -1),
                                                    ((4, 1), (0, 1), 0), ((0, 0), (0, 1), 0),
                                                    ((2, 2), (0, 0), 10)])
def test_losses_are_those_of_the_definition(counts, crowds, border):
    head = build(train=dict(allowed_border=border))
    batch = tiny_models.batch(counts, crowds)
    outs = head(levels())
    assert [tuple(o.shape) for o in outs[0]] == [(2, 3, *s) for s in SIZES]
    losses = head.loss(*outs, batch.gt, batch.ignored, batch.metas, HW)
    cls, box = slow_loss(head, outs, batch, border)
    torch.testing.assert_close(torch.stack(losses['loss_rpn_cls']), torch.stack(cls), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.stack(losses['loss_rpn_bbox']), torch.stack(box), rtol=1e-4, atol=1e-6)
    tiny_models.total(losses).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_padding_of_a_smaller_image_takes_no_part():
    head, batch = build(), tiny_models.batch((1, 1))
    batch.metas[1] = tiny_models.meta(64, 96)
    outs = head(levels())
    flags = head.inside_flags(outs[0], head.anchors(outs[0]), batch.metas, HW)
    assert flags[0] is None
    assert int(flags[1].sum()) == 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
    targets = head.targets(torch.cat(head.anchors(outs[0])), flags, batch.gt, batch.ignored)
    count = sum(3 * h * w for h, w in SIZES)
    second = targets.index[targets.index >= count] - count
    assert flags[1][second].all()


def test_random_samples_have_the_size_asked_for():
    head = build(train=dict(sampler=dict(type='RandomSampler', num=20, pos_fraction=0.5)))
    batch, outs = tiny_models.batch((3, 2)), head(levels())
    targets = head.targets(torch.cat(head.anchors(outs[0])), [None, None], batch.gt, None)
    assert len(targets.index) == 40 and targets.avg_factor == 40 and 0 < targets.num_pos <= 20


def test_the_samplers_default_of_adding_ground_truth_is_off_and_on_is_an_error():
    head = build(train=dict(sampler=dict(type='RandomSampler', num=20, pos_fraction=0.5)))
    assert not head.sampler.add_gt_as_proposals
    with pytest.raises(ConfigError, match='add_gt_as_proposals'):
        build(train=dict(
            sampler=dict(type='RandomSampler', num=9, pos_fraction=0.5, add_gt_as_proposals=True)))


def test_without_a_sampler_all_anchors_count_by_the_positives():
    head = build(train=dict(sampler=None))
    batch, outs = tiny_models.batch((3, 0)), head(levels())
    targets = head.targets(torch.cat(head.anchors(outs[0])), [None, None], batch.gt, batch.ignored)
    assert targets.avg_factor == targets.num_pos + 1


def test_pos_weight_and_debug(caplog):
    batch, feats = tiny_models.batch((3, 2)), levels()
    plain = build()
    heavy = build(train=dict(pos_weight=3.0, debug=True))
    outs = plain(feats)
    with caplog.at_level(logging.INFO):
        losses = [
            h.loss(*outs, batch.gt, batch.ignored, batch.metas, HW)['loss_rpn_cls'] for h in (plain, heavy)
        ]
    targets = plain.targets(torch.cat(plain.anchors(outs[0])), [None, None], batch.gt, batch.ignored)
    logits = torch.cat([o.permute(0, 2, 3, 1).reshape(2, -1) for o in outs[0]], dim=1).flatten()
    positive = F.binary_cross_entropy_with_logits(logits[targets.index[:targets.num_pos]],
                                                  torch.ones(targets.num_pos),
                                                  reduction='sum') / targets.avg_factor
    torch.testing.assert_close(sum(losses[1]) - sum(losses[0]), 2 * positive)
    assert 'image 0 has 3 objects' in caplog.text


def test_boxes_may_be_compared_in_pixels():
    head = build(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss', loss_weight=1.0))
    batch, outs = tiny_models.batch((2, 0)), head(levels())
    losses = head.loss(*outs, batch.gt, batch.ignored, batch.metas, HW)
    targets = head.targets(torch.cat(head.anchors(outs[0])), [None, None], batch.gt, batch.ignored)
    deltas = torch.cat([o.permute(0, 2, 3, 1).reshape(2, -1, 4) for o in outs[1]], dim=1).flatten(0, 1)
    boxes = head.bbox_coder.decode(targets.anchors, deltas[targets.index[:targets.num_pos]])
    expected = head.loss_bbox(boxes, targets.gt_boxes, avg_factor=targets.avg_factor)
    torch.testing.assert_close(sum(losses['loss_rpn_bbox']), expected)


def slow_proposals(head, outs, meta, settings):
    """One image: the best of each level, decoded, suppressed level by level, the best of all."""
    kept = []
    for score, delta, anchors in zip(*outs, head.anchors(outs[0])):
        score = score[0].permute(1, 2, 0).reshape(-1).sigmoid()
        delta = delta[0].permute(1, 2, 0).reshape(-1, 4)
        best = score.argsort(descending=True)[:settings.nms_pre if settings.nms_pre > 0 else None]
        boxes = head.bbox_coder.decode(anchors[best], delta[best], max_shape=meta.img_shape)
        rows = torch.cat([boxes, score[best, None]], dim=1)
        rows = rows[((rows[:, 2:4] - rows[:, :2]) > settings.min_bbox_size).all(1)]
        kept.append(rows[nms(rows[:, :4].double(), rows[:, 4].double(), settings.nms['iou_threshold'])])
        if settings.nms_post > 0:
            kept[-1] = kept[-1][:settings.nms_post]
    rows = torch.cat(kept)
    return rows[rows[:, 4].argsort(descending=True)][:settings.max_per_img]


@pytest.mark.parametrize('settings', [
    PROPOSE,
    ProposalSettings(nms_pre=15, max_per_img=1000, min_bbox_size=6),
    ProposalSettings(nms_pre=-1, max_per_img=200, nms_post=9)
])
def test_proposals_are_those_of_the_definition_also_in_a_batch(settings):
    head = build().eval()
    outs = head(levels())
    metas = [tiny_models.meta(), tiny_models.meta(64, 96)]
    found = head.predict(*outs, metas, settings)
    for i, (own, meta) in enumerate(zip(found, metas)):
        rows = slow_proposals(head, [[o[i:i + 1] for o in out] for out in outs], meta, settings)
        torch.testing.assert_close(own.bboxes, rows[:, :4])
        torch.testing.assert_close(own.scores, rows[:, 4])
        assert own.image_size == meta.img_shape[:2]
        assert (own.bboxes[:, 2] <= meta.img_shape[1]).all()


def test_suppression_across_levels_and_without_limits():
    head, metas = build().eval(), [tiny_models.meta()]
    outs = head(levels(1))
    by_level = head.predict(*outs, metas, ProposalSettings(nms_pre=50, max_per_img=0))[0]
    joint = ProposalSettings(nms_pre=50, max_per_img=0, nms_across_levels=True)
    across = head.predict(*outs, metas, joint)[0]
    keep = nms(by_level.bboxes, by_level.scores, 0.7)
    assert len(across) <= len(keep) < len(by_level)
    overlap = box_iou(across.bboxes, across.bboxes).fill_diagonal_(0)
    assert overlap.max() <= 0.7


def test_the_best_of_a_batch():
    metas = [tiny_models.meta()] * 2
    head = build().eval()
    outs = head(levels())
    every = head.predict(*outs, metas, PROPOSE)
    best = head.predict(*outs, metas, ProposalSettings(nms_pre=40, max_per_img=30, max_per_batch=25))
    assert sum(map(len, best)) == 25
    scores = torch.cat([p.scores for p in every]).sort(descending=True).values
    assert min(p.scores.min() for p in best if len(p)) >= scores[24]
    few = torch.tensor([[0.5, -1], [-1, -1], [0.3, 0.2]])
    assert best_of_batch(few, 2).tolist() == [[True, False], [False, False], [True, False]]
    assert best_of_batch(few, 10).all()


def test_softmax_scores_have_two_outputs():
    head = build(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)).eval()
    batch, outs = tiny_models.batch((1, 1)), head(levels())
    assert outs[0][0].shape == (2, 6, 24, 32)
    losses = head.loss(*outs, batch.gt, batch.ignored, batch.metas, HW)
    targets = head.targets(torch.cat(head.anchors(outs[0])), [None, None], batch.gt, batch.ignored)
    logits = torch.cat([o.permute(0, 2, 3, 1).reshape(2, -1, 2) for o in outs[0]], dim=1)
    logits = logits.flatten(0, 1)[targets.index]
    labels = (torch.arange(len(logits)) >= targets.num_pos).long()
    expected = F.cross_entropy(logits, labels, reduction='sum') / targets.avg_factor
    torch.testing.assert_close(sum(losses['loss_rpn_cls']), expected)
    scores = head.predict(*outs, batch.metas)[0].scores
    assert (scores >= 0).all() and (scores <= 1).all()


def test_several_convolutions_have_their_own_names():
    names = set(build(num_convs=2).state_dict())
    assert {'rpn_conv.0.conv.weight', 'rpn_conv.1.conv.bias', 'rpn_cls.weight', 'rpn_reg.bias'} <= names
    assert build(num_convs=2)(levels())[1][0].shape == (2, 12, 24, 32)


def test_initial_weights():
    head = HEADS.build(tiny_models.rpn_head(in_channels=64, feat_channels=64))
    head.init_weights()
    assert abs(head.rpn_conv.weight.std() - 0.01) < 0.001 and not head.rpn_cls.bias.any()


@pytest.mark.parametrize('changes, message',
                         [(dict(num_classes=2), 'num_classes must be 1'),
                          (dict(train_cfg=dict(sampler=None)), "needs an 'assigner'"),
                          (dict(train_cfg=dict(alowed_border=0)), "did you mean 'allowed_border'"),
                          (dict(feat_chanels=3), "did you mean 'feat_channels'")])
def test_wrong_configs(changes, message):
    with pytest.raises(ConfigError, match=message):
        HEADS.build(tiny_models.rpn_head(**changes))


def test_anchors_at_the_border_by_hand():
    head, meta = build(train=dict(allowed_border=2)), tiny_models.meta(20, 30)
    anchors = torch.tensor([[-2., -2, 5, 5], [-2.1, 0, 5, 5], [0, -2.1, 5, 5], [5, 5, 31.9, 21.9], [5, 5, 32, 9],
                            [5, 5, 9, 22], [5, 5, 9, 9]])
    flags = head.inside_flags([torch.zeros(1, 1, 7, 1)], [anchors], [meta], tuple(meta.pad_shape[:2]))
    assert flags[0].tolist() == [True, False, False, True, False, False, True]


@pytest.mark.parametrize('sampler, expected', [(dict(type='RandomSampler', num=9, pos_fraction=1.0), (2 + 1) + (1 + 3)),
                                               (None, 2 + 1)])
def test_what_the_losses_are_divided_by(sampler, expected):
    """Two positives and no negative, then no object and three negatives: none of these counts is below one."""
    head = build(train=dict(sampler=sampler))
    anchors = torch.tensor([[0., 0, 10, 10], [20, 20, 40, 40], [50, 50, 70, 70]])
    batch = tiny_models.batch((2, 0))
    gt = [replace_boxes(batch.gt[0], anchors[:2]), batch.gt[1]]
    inside = [torch.tensor([True, True, False]), None]
    assert head.targets(anchors, inside, gt, None).avg_factor == expected


def replace_boxes(objects, boxes):
    return Instances(objects.image_size, objects.num_classes, bboxes=boxes, labels=objects.labels)


def test_one_proposal_a_level_and_an_image():
    head, metas = build().eval(), [tiny_models.meta()] * 2
    outs = head(levels())
    by_level = head.predict(*outs, metas, ProposalSettings(nms_pre=40, max_per_img=0, nms_post=1))
    assert [len(found) for found in by_level] == [5, 5]
    every = head.predict(*outs, metas, ProposalSettings(nms_pre=40, max_per_img=0))
    first = head.predict(*outs, metas, ProposalSettings(nms_pre=40, max_per_img=1))
    for few, best, whole in zip(by_level, first, every):
        assert len(best) == 1 and len(whole) > 5
        assert torch.equal(best.bboxes, whole.bboxes[:1]) and torch.equal(few.bboxes[:1], best.bboxes)


def test_proposals_are_wider_and_higher_than_the_least():
    head, metas = build().eval(), [tiny_models.meta()]
    outs = head(levels(1))
    sizes = [(p.bboxes[:, 2:] - p.bboxes[:, :2]) for p in (
        head.predict(*outs, metas, ProposalSettings(nms=dict(type='nms', iou_threshold=1.0), max_per_img=0,
                                                    min_bbox_size=least))[0] for least in (0, 12))]
    assert len(sizes[1]) == int((sizes[0] > 12).all(dim=1).sum()) < int((sizes[0] > 12).any(dim=1).sum())


def test_what_an_rpn_needs_for_training():
    head = HEADS.build(tiny_models.rpn_head())
    batch = tiny_models.batch((1,))
    with pytest.raises(ConfigError, match="model.train_cfg needs 'rpn'"):
        head.loss(*head(levels(1)), batch.gt, batch.ignored, batch.metas, HW)
    with pytest.raises(ConfigError, match="needs an 'assigner'"):
        HEADS.build(tiny_models.rpn_head(train_cfg=dict(sampler=None)))
    with pytest.raises(ConfigError, match='num_classes must be 1, not 2'):
        HEADS.build(tiny_models.rpn_head(num_classes=2))


def test_anchors_may_be_given_for_each_image():
    head, metas = build().eval(), [tiny_models.meta()] * 2
    outs = head(levels())
    given = [torch.stack([own, own + torch.tensor([8., 0, 8, 0])]) for own in head.anchors(outs[0])]
    for settings in (PROPOSE, ProposalSettings(nms_pre=-1, max_per_img=30)):
        usual, own = (head.predict_padded(*outs, metas, settings, EXACT, anchors) for anchors in (None, given))
        assert torch.equal(own.fields['bboxes'][0], usual.fields['bboxes'][0])
        assert not torch.equal(own.fields['bboxes'][1], usual.fields['bboxes'][1])
