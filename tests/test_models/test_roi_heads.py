"""The second stage as a whole: sampling, shared layers, cascades, OHEM."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import StandardRoIHead, box_losses, mask_loss, mask_samples
from boxdet.registry import HEADS
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances
from boxdet.structures.masks import BitmapMasks
from tests.test_models import tiny_models

K = tiny_models.CLASSES
ALL = dict(num=10 ** 7, pos_fraction=1.0)


def build(cfg: dict, **train):
    torch.manual_seed(0)
    stages = [tiny_models.rcnn_train(iou, **ALL, **train) for iou in (0.5, 0.6, 0.7)]
    rcnn = stages if cfg['type'] == 'CascadeRoIHead' else stages[0]
    head = HEADS.build(cfg, train_cfg=rcnn, test_cfg=tiny_models.test_cfg(0.3)['rcnn'])
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return head


def feats(batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    return [torch.randn(batch, 16, *s, generator=generator).requires_grad_() for s in sizes]


def proposals(batch, jitter: float = 8.0) -> list[Instances]:
    """Boxes around the objects of a batch, and as many anywhere."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for gt in batch.gt:
        near = gt.bboxes.repeat(6, 1)
        near = near + (torch.rand(near.shape, generator=generator) - 0.5) * jitter
        far = torch.rand(6, 2, generator=generator) * 50
        boxes = torch.cat([near, torch.cat([far, far + 25], dim=1)])
        found.append(Instances(bboxes=boxes, scores=torch.ones(len(boxes))))
    return found


def test_losses_of_the_standard_head():
    cfg = tiny_models.mask_rcnn()['roi_head']
    head, batch = build(cfg), tiny_models.batch((2, 1))
    given, levels = proposals(batch), feats()
    losses = head.loss(levels, given, batch.gt, batch.ignored, batch.metas)
    assert set(losses) == {'loss_cls', 'acc', 'loss_bbox', 'loss_mask'}
    # The same by hand: ground truth joins the proposals, those of IoU >= 0.5 are positive.
    from torchvision.ops import box_iou
    boxes, labels, count = [], [], 0
    for own, gt in zip(given, batch.gt):
        candidates = torch.cat([gt.bboxes, own.bboxes])
        best, index = box_iou(candidates, gt.bboxes).max(1)
        positive = best >= 0.5
        boxes.append(torch.cat([candidates[positive], candidates[~positive]]))
        labels.append(torch.cat([gt.labels[index[positive]], torch.full((int((~positive).sum()),), K)]))
        count += int(positive.sum())
    scores, _ = head.bbox_head(head.bbox_roi_extractor(levels, boxes_to_rois(boxes)))
    torch.testing.assert_close(losses['loss_cls'], F.cross_entropy(scores, torch.cat(labels)))
    assert count > 3
    tiny_models.total(losses).backward()
    assert all(f.grad is not None for f in levels[:4])


def test_ignored_regions_take_proposals_out():
    head, batch = build(tiny_models.faster_rcnn()['roi_head']), tiny_models.batch((2, 1), (1, 1))
    given, seen = proposals(batch), []
    original = head.sampler.sample
    head.sampler.sample = lambda matched, *args: seen.append(matched) or original(matched, *args)
    head.loss(feats(), given, batch.gt, batch.ignored, batch.metas)
    assert any((m.gt_inds == -1).any() for m in seen)


def test_one_extractor_and_shared_layers_for_both_heads():
    cfg = tiny_models.c4_mask_rcnn()['roi_head']
    head, batch = build(cfg), tiny_models.batch((2, 1))
    head.train_cfg = head.train_cfg.__class__(**{**vars(head.train_cfg), 'mask_size': 14})
    assert head.with_shared_head and head.shares_extractor and head.with_mask
    assert not any(k.startswith(('mask_roi', 'bbox_roi')) for k in head.state_dict())
    assert 'shared_head.layer4.0.conv1.weight' in head.state_dict()
    levels = [torch.randn(2, 256, 6, 8)]
    head.train()
    assert not head.shared_head.layer4[0].bn1.training  # norm_eval
    losses = head.loss(levels, proposals(batch), batch.gt, batch.ignored, batch.metas)
    assert losses['loss_mask'] > 0
    results = head.eval().predict(levels, proposals(batch), batch.metas)
    assert [len(r) for r in results] == [len(r.mask_probs) for r in results]
    assert results[0].mask_probs.shape[1:] == (14, 14)


@pytest.mark.parametrize('family', ['mask_rcnn', 'cascade_mask_rcnn', 'c4_mask_rcnn'])
def test_the_mask_head_learns_from_as_many_positives_as_the_settings_say(family):
    size = 14 if family == 'c4_mask_rcnn' else 28
    head, batch = build(getattr(tiny_models, family)()['roi_head']), tiny_models.batch((2, 1))
    if family == 'cascade_mask_rcnn':
        head.stage_settings = [replace(s, mask_samples=3) for s in head.stage_settings]
    else:
        head.train_cfg = replace(head.train_cfg, mask_size=size, mask_samples=3)
    seen, mask_heads = [], [head.mask_head] if hasattr(head.mask_head, 'loss') else list(head.mask_head)
    for mask_head in mask_heads:
        targets = mask_head.targets
        mask_head.targets = lambda samples, *rest, targets=targets: seen.append(samples) or targets(samples, *rest)
    levels = [torch.randn(2, 256, 6, 8, requires_grad=True)] if family == 'c4_mask_rcnn' else feats()
    losses = head.loss(levels, proposals(batch), batch.gt, batch.ignored, batch.metas)
    assert len(seen) == len(mask_heads) and all(len(s.pos_boxes) <= 3 for samples in seen for s in samples)
    assert len(seen[0][0].pos_boxes) == len(seen[0][0].pos_gt_labels) == 3
    tiny_models.total(losses).backward()


def test_mask_samples_are_rows_of_the_positives():
    generator = torch.Generator().manual_seed(0)
    samples = [SampledRois(*(torch.rand(n, 4, generator=generator) for n in (count, 2)), torch.arange(count),
                           torch.arange(2), torch.arange(count), torch.rand(count, 4), torch.arange(count),
                           torch.ones(count, dtype=torch.bool)) for count in (7, 2, 0)]
    every = torch.cat([s.pos_boxes for s in samples])
    for most, expected in ((4, (4, 2, 0)), (1, (1, 1, 0)), (-1, (7, 2, 0)), (9, (7, 2, 0))):
        drawn, index = mask_samples(samples, StandardRoIHead.train_settings(mask_samples=most))
        assert tuple(len(s.pos_boxes) for s in drawn) == expected
        assert torch.equal(torch.cat([s.pos_boxes for s in drawn]), every[index])
        assert all(torch.equal(s.pos_boxes, own.pos_boxes[s.pos_inds]) for s, own in zip(drawn, samples))


def test_cascade_stages_refine_the_samples_and_drop_ground_truth():
    head, batch = build(tiny_models.cascade_mask_rcnn()['roi_head']), tiny_models.batch((2, 1))
    seen = []
    for stage, (assigner, _) in enumerate(head.matching):
        def assign(boxes, *args, original=assigner.assign, stage=stage):
            seen.append((stage, boxes))
            return original(boxes, *args)
        assigner.assign = assign
    given = proposals(batch)
    losses = head.loss(feats(), given, batch.gt, batch.ignored, batch.metas)
    assert list(losses) == [
        f's{s}.{n}' for s in range(3) for n in ('loss_cls', 'acc', 'loss_bbox', 'loss_mask')
    ]
    assert [s for s, _ in seen] == [0, 0, 1, 1, 2, 2]
    # Every sampler takes all: a stage hands on as many boxes as it was given, without the ground truth it
    # added.
    for i in range(2):
        assert [len(b) for s, b in seen[i::2]] == [len(given[i])] * 3
        boxes = seen[2 + i][1]
        assert (boxes >= 0).all() and (boxes[:, 2] <= 128).all() and (boxes[:, 3] <= 96).all()
    tiny_models.total(losses).backward()


def test_a_cascades_keypoint_head_learns_from_the_last_stage():
    """With one stage, that is what the standard head does; with three, the boxes are others."""
    one, cascade = tiny_models.keypoint_rcnn()['roi_head'], tiny_models.cascade_mask_rcnn()['roi_head']
    for name in ('mask_head', 'mask_roi_extractor'):
        del cascade[name]
    cascade |= {key: one[key] for key in ('keypoint_head', 'keypoint_roi_extractor')}
    batch = tiny_models.batch((3, 2), keypoints=5)
    given, levels, single = proposals(batch), feats(), build(one)
    found = {}
    for stages in (1, 3):
        torch.manual_seed(0)
        head = HEADS.build(cascade | dict(num_stages=stages, stage_loss_weights=[1] * stages, bbox_head=cascade[
            'bbox_head'][:stages]), train_cfg=[tiny_models.rcnn_train(0.5, **ALL) for _ in range(stages)],
            test_cfg=tiny_models.test_cfg(0.0)['rcnn'])
        for name, weights in single.keypoint_head.state_dict().items():
            head.keypoint_head.state_dict()[name].copy_(weights)
        found[stages] = head.loss(levels, given, batch.gt, None, batch.metas)['loss_keypoint']
    standard = single.loss(levels, given, batch.gt, None, batch.metas)['loss_keypoint']
    torch.testing.assert_close(found[1], standard)
    assert found[3].isfinite() and found[3] != standard
    results = head.predict(levels, given, batch.metas)
    assert head.with_keypoint and all(r.keypoints.shape == (len(r), 5, 3) for r in results)


def test_cascade_losses_are_weighted_but_not_the_accuracy():
    cfg = tiny_models.cascade_mask_rcnn()['roi_head']
    one, other = build(cfg), build(cfg | dict(stage_loss_weights=[2, 1, 1]))
    batch = tiny_models.batch((2, 1))
    first, second = (h.loss(feats(), proposals(batch), batch.gt, batch.ignored, batch.metas)
                     for h in (one, other))
    for name, factor in dict(loss_cls=(2, 2, 4), loss_bbox=(2, 2, 4), loss_mask=(2, 2, 4),
                             acc=(1, 1, 1)).items():
        for stage in range(3):
            torch.testing.assert_close(second[f's{stage}.{name}'], first[f's{stage}.{name}'] * factor[stage])


def test_cascade_results_average_scores_and_masks():
    head, batch = build(tiny_models.cascade_mask_rcnn()['roi_head']).eval(), tiny_models.batch((2, 1))
    levels, boxes = feats(1), proposals(batch)[0].bboxes
    metas, hw = batch.metas[:1], (96, 128)
    with torch.no_grad():
        result = head.predict(levels, [Instances(bboxes=boxes, scores=torch.ones(len(boxes)))], metas)[0]
        logits = []
        for stage in range(3):
            pooled = head.bbox_roi_extractor[stage](levels, boxes_to_rois([boxes]))
            scores, deltas = head.bbox_head[stage](pooled)
            logits.append(scores)
            if stage < 2:
                boxes = head.bbox_head[stage].bbox_coder.decode(boxes, deltas, max_shape=hw)
        expected = head.bbox_head[2].predict(boxes, sum(logits) / 3, deltas, hw, head.test_cfg)
        torch.testing.assert_close(result.bboxes, expected.bboxes)
        assert len(result) and torch.equal(result.labels, expected.labels)
        rois = boxes_to_rois([expected.bboxes])
        masks = [m(e(levels, rois)).sigmoid()[torch.arange(len(rois)), expected.labels]
                 for m, e in zip(head.mask_head, head.mask_roi_extractor)]
        torch.testing.assert_close(result.mask_probs, sum(masks) / 3)


def test_ohem_takes_the_hardest():
    cfg = tiny_models.faster_rcnn()['roi_head']
    head = build(cfg, type='OHEMSampler')
    head.sampler.num, head.sampler.pos_fraction = 12, 0.25
    batch, levels = tiny_models.batch((2, 1)), feats()
    given, drawn = proposals(batch), []
    original = head.sampler.sample
    head.sampler.sample = lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1]
    head.loss(levels, given, batch.gt, batch.ignored, batch.metas)
    for i, (own, gt, sample) in enumerate(zip(given, batch.gt, drawn)):
        assert len(sample.pos_boxes) == 3
        candidates = torch.cat([gt.bboxes, own.bboxes])
        matched = head.assigner.assign(own.bboxes, gt.bboxes, None, gt.labels).with_gt(gt.labels)
        scores, _ = head.bbox_head(
            head.bbox_roi_extractor([f[i:i + 1] for f in levels], boxes_to_rois([candidates])))
        labels = torch.where(matched.labels >= 0, matched.labels, K)
        losses = F.cross_entropy(scores, labels, reduction='none')
        positive, negative = matched.gt_inds > 0, matched.gt_inds == 0
        for chosen, group, count in ((sample.pos_inds, positive, 3), (sample.neg_inds, negative, 9)):
            if int(group.sum()) > count:
                hardest = losses.masked_fill(~group, -1).topk(count).indices.sort().values
                assert torch.equal(chosen, hardest)


@pytest.mark.parametrize('change, message',
                         [(dict(num_stages=2), 'must be a list of 2'),
                          (dict(stage_loss_weights=[1, 1]), 'stage_loss_weights must be a list'),
                          (dict(shared_head=dict(type='ResLayer', depth=18)), 'no shared_head'),
                          (dict(bbox_head=None), 'needs bbox_head')])
def test_wrong_cascades(change, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny_models.cascade_mask_rcnn()['roi_head'] | change)


def test_wrong_training_settings():
    cfg = tiny_models.faster_rcnn()['roi_head']
    with pytest.raises(ConfigError, match="needs 'sampler'"):
        HEADS.build(cfg, train_cfg=dict(assigner=tiny_models.rcnn_train()['assigner']))
    with pytest.raises(ConfigError, match='for CascadeRoIHead'):
        HEADS.build(cfg, train_cfg=[tiny_models.rcnn_train()])
    with pytest.raises(ConfigError, match='train_cfg.rcnn must be a list of 3'):
        HEADS.build(tiny_models.cascade_mask_rcnn()['roi_head'], train_cfg=tiny_models.rcnn_train())


def test_objects_that_nobody_drew_are_left_out_of_the_mask_loss():
    torch.manual_seed(0)
    head = HEADS.build(tiny_models.mask_head())
    boxes, square = torch.tensor([[2., 2, 20, 20], [30, 30, 60, 50]]), [[2, 2, 20, 2, 20, 20, 2, 20]]
    settings, pooled = StandardRoIHead.train_settings(mask_size=28), torch.randn(2, 16, 14, 14)

    def loss(rows, segmentations):
        index = torch.tensor(rows)
        drawn = SampledRois(pos_boxes=boxes[index], neg_boxes=boxes[:0], pos_gt_boxes=boxes[index],
                            pos_gt_labels=index, pos_gt_index=index, pos_inds=index, neg_inds=index[:0],
                            pos_is_gt=index >= 0)
        gt = Instances((64, 64), bboxes=boxes, labels=torch.arange(2),
                       masks=BitmapMasks.from_coco(segmentations, 64, 64))
        return mask_loss(head, pooled[index], [drawn], [gt], settings)['loss_mask']
    assert torch.equal(loss([0, 1], [square, None]), loss([0], [square, None]))
    assert not torch.equal(loss([0, 1], [square, square]), loss([0], [square, square]))
    assert loss([1], [square, None]) == 0
    nothing = dict(size=[64, 64], counts=[64 * 64])  # drawn, and empty: learned as any other
    assert not torch.equal(loss([0, 1], [square, nothing]), loss([0], [square, nothing]))


@pytest.mark.parametrize('sigmoid', [False, True])
def test_losses_that_rank_boxes_are_one_number_a_box(sigmoid):
    head = HEADS.build(tiny_models.bbox_head(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=sigmoid)))
    boxes, labels = torch.tensor([[0., 0, 20, 20], [5, 5, 40, 40], [9, 9, 30, 50]]), torch.tensor([0, 2, 1])
    scores, seen = torch.randn(3, tiny_models.CLASSES + 1), []

    def forward(feats, rois):
        seen.append((feats[0].shape, rois.tolist()))
        return scores, None
    found = box_losses(head, forward, [torch.zeros(2, 4, 8, 8)], 1, boxes, labels)['loss_cls']
    each = head.loss_cls(scores, labels, reduction_override='none')
    torch.testing.assert_close(found, each.sum(dim=1) if sigmoid else each)
    background = box_losses(head, forward, [torch.zeros(2, 4, 8, 8)], 1, boxes, None)['loss_cls']
    assert found.shape == background.shape == (3,) and not torch.equal(found, background)
    assert seen[0] == ((1, 4, 8, 8), [[0, *box] for box in boxes.tolist()])
