import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.matching.assigner import AssignResult, MaxIoUAssigner
from boxdet.matching.sampler import PseudoSampler, _choose_by_group
from boxdet.registry import BBOX_SAMPLERS

KINDS = ['RandomSampler', 'InstanceBalancedPosSampler', 'IoUBalancedNegSampler', 'OHEMSampler']
LIBRA = dict(type='CombinedSampler', pos_sampler=dict(type='InstanceBalancedPosSampler'),
             neg_sampler=dict(type='IoUBalancedNegSampler', floor_thr=-1, floor_fraction=0, num_bins=3))


def assigned(num_pos, num_neg, num_ignored=5, num_gts=3, seed=0):
    """A shuffled assignment with its candidates: (result, boxes, gt_boxes, gt_labels)."""
    g = torch.Generator().manual_seed(seed)
    inds = torch.cat([torch.randint(1, num_gts + 1, (num_pos,), generator=g), torch.zeros(num_neg, dtype=torch.long),
                      torch.full((num_ignored,), -1)])[torch.randperm(num_pos + num_neg + num_ignored, generator=g)]
    overlaps = torch.where(inds > 0, 0.8, torch.rand(len(inds), generator=g) * 0.5)
    labels = torch.arange(num_gts) * 2
    corner = torch.rand(len(inds) + num_gts, 2, generator=g) * 50
    boxes = torch.cat([corner, corner + 10], 1)
    own = torch.where(inds > 0, labels[(inds - 1).clamp(min=0)], -1)
    return AssignResult(num_gts, inds, overlaps, own), boxes[num_gts:], boxes[:num_gts], labels


def losses_of(boxes, labels):
    """A made-up ranking: the further right, the harder."""
    return dict(loss_cls=boxes[:, 0], other=-boxes[:, 0])


def build(kind, **options):
    cfg = dict(LIBRA) if kind == 'CombinedSampler' else dict(type=kind)
    return BBOX_SAMPLERS.build({**cfg, 'num': 64, 'pos_fraction': 0.25, **options})


def check(samples, result, boxes, gt_boxes, add_gt):
    """What must hold whatever was drawn."""
    offset = len(gt_boxes) if add_gt else 0
    inds = torch.cat([torch.arange(1, offset + 1), result.gt_inds])
    candidates = torch.cat([gt_boxes[:offset], boxes])
    assert (inds[samples.pos_inds] > 0).all() and (inds[samples.neg_inds] == 0).all()
    for picked in (samples.pos_inds, samples.neg_inds):
        assert (picked[1:] > picked[:-1]).all()                     # ascending, none twice
    assert torch.equal(samples.pos_boxes, candidates[samples.pos_inds])
    assert torch.equal(samples.neg_boxes, candidates[samples.neg_inds])
    assert torch.equal(samples.boxes, torch.cat([samples.pos_boxes, samples.neg_boxes]))
    assert torch.equal(samples.pos_gt_index, inds[samples.pos_inds] - 1)
    assert torch.equal(samples.pos_gt_boxes, gt_boxes[samples.pos_gt_index])
    assert torch.equal(samples.pos_gt_labels, samples.pos_gt_index * 2)
    assert torch.equal(samples.pos_is_gt, samples.pos_inds < offset)


@pytest.mark.parametrize('kind', [*KINDS, 'CombinedSampler'])
@pytest.mark.parametrize('add_gt', [True, False])
def test_counts_and_contents(kind, add_gt):
    sampler = build(kind, add_gt_as_proposals=add_gt)
    assert sampler.ranks_by_loss == (kind == 'OHEMSampler')
    for num_pos, num_neg in ((40, 200), (4, 200), (40, 10), (0, 200), (40, 0), (0, 0)):
        result, boxes, gts, labels = assigned(num_pos, num_neg)
        samples = sampler.sample(result, boxes, gts, labels, losses_of)
        check(samples, result, boxes, gts, add_gt)
        pos = min(16, num_pos + 3 * add_gt)
        assert len(samples.pos_inds) == pos and len(samples.neg_inds) == min(64 - pos, num_neg)


@pytest.mark.parametrize('kind', [*KINDS, 'CombinedSampler'])
def test_nothing_is_drawn_at_random_when_all_are_wanted(kind):
    result, boxes, gts, labels = assigned(20, 60)
    state = torch.get_rng_state()
    samples = build(kind, num=10 ** 7, pos_fraction=1.0).sample(result, boxes, gts, labels, losses_of)
    assert torch.equal(torch.get_rng_state(), state)
    check(samples, result, boxes, gts, True)
    assert len(samples.pos_inds) == 23 and len(samples.neg_inds) == 60


@pytest.mark.parametrize('kind', [*KINDS, 'CombinedSampler'])
def test_no_ground_truth(kind):
    boxes, gts, labels = torch.rand(30, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    result = MaxIoUAssigner(0.5, 0.5).assign(boxes, gts, None, labels)
    samples = build(kind, num=8).sample(result, boxes, gts, labels, losses_of)
    assert samples.pos_boxes.shape == samples.pos_gt_boxes.shape == (0, 4) and samples.neg_boxes.shape == (8, 4)
    assert samples.pos_gt_labels.dtype == torch.long and samples.boxes.shape == (8, 4)
    none = build(kind).sample(MaxIoUAssigner(0.5, 0.5).assign(boxes[:0], gts), boxes[:0], gts)
    assert none.boxes.shape == (0, 4)


def test_only_ground_truth_when_there_are_no_proposals():
    gts, labels = torch.tensor([[0., 0, 9, 9], [5, 5, 20, 20]]), torch.tensor([7, 8])
    result = MaxIoUAssigner(0.5, 0.5).assign(torch.zeros(0, 4), gts, None, labels)
    samples = build('RandomSampler').sample(result, torch.zeros(0, 5), gts, labels)
    assert torch.equal(samples.pos_boxes, gts) and samples.pos_gt_labels.tolist() == [7, 8] and samples.pos_is_gt.all()
    with pytest.raises(ValueError, match='gt_labels'):
        build('RandomSampler').sample(result, torch.zeros(0, 4), gts)


def test_neg_pos_ub():
    result, boxes, gts, labels = assigned(4, 200)
    draw = build('RandomSampler', add_gt_as_proposals=False, neg_pos_ub=5).sample
    assert len(draw(result, boxes, gts, labels).neg_inds) == 20
    result, boxes, gts, labels = assigned(0, 200)
    assert len(draw(result, boxes, gts, labels).neg_inds) == 5
    assert len(build('RandomSampler', neg_pos_ub=0).sample(result, boxes, gts, labels).neg_inds) == 0


def test_random_draws_are_fair_and_seeded():
    result, boxes, gts, labels = assigned(40, 100)
    sampler, hits = build('RandomSampler', add_gt_as_proposals=False), torch.zeros(len(boxes))
    torch.manual_seed(3)
    first = sampler.sample(result, boxes, gts, labels)
    torch.manual_seed(3)
    assert torch.equal(sampler.sample(result, boxes, gts, labels).neg_inds, first.neg_inds)
    for _ in range(400):
        samples = sampler.sample(result, boxes, gts, labels)
        hits[samples.pos_inds] += 1
        hits[samples.neg_inds] += 1
    assert ((hits[result.gt_inds > 0] / 400 - 16 / 40).abs() < 0.12).all()
    assert ((hits[result.gt_inds == 0] / 400 - 48 / 100).abs() < 0.12).all()
    assert (hits[result.gt_inds < 0] == 0).all()


def test_labels_of_an_assignment_without_labels_are_zero():
    result, boxes, gts, _ = assigned(5, 5)
    result.labels = None
    assert build('RandomSampler').sample(result, boxes, gts).pos_gt_labels.tolist() == [0] * 8


def test_pseudo_sampler_takes_everything():
    result, boxes, gts, _ = assigned(7, 9)
    samples = PseudoSampler().sample(result, boxes, gts)
    check(samples, result, boxes, gts, False)
    assert len(samples.pos_inds) == 7 and len(samples.neg_inds) == 9


def test_instance_balance():
    inds = torch.tensor([1] * 50 + [2] * 3 + [3] * 10 + [0] * 5)
    result = AssignResult(3, inds, torch.ones(68), inds - 1)
    boxes, gts = torch.rand(68, 4), torch.rand(3, 4)
    sampler = build('InstanceBalancedPosSampler', num=18, pos_fraction=1.0, add_gt_as_proposals=False)
    for _ in range(20):
        count = sampler.sample(result, boxes, gts).pos_gt_index.bincount(minlength=3).tolist()
        # round(18 / 3) + 1 = 7 of each, of object 2 only the 3 there are, and one more of any
        assert sum(count) == 18 and count[1] == 3 and count[0] >= 7 and count[2] >= 7


def test_quota_above_what_is_wanted_cuts_no_group_first():
    groups = torch.tensor([0] * 10 + [1] * 10)
    seen = torch.zeros(2)
    for _ in range(300):
        chosen = _choose_by_group(groups, 3, 4)
        assert len(set(chosen.tolist())) == 4
        counts = groups[chosen].bincount(minlength=2)
        assert (counts <= 3).all()
        seen += counts
    assert (seen / 600 - 1).abs().max() < 0.1


@pytest.mark.parametrize('floor_thr,floor_fraction,expected', [
    (-1, 0.0, (12, 12, 12)),                                                  # a third from each range
    (0.2, 0.5, None), (0.0, 0.5, None)])
def test_iou_balance(floor_thr, floor_fraction, expected):
    g = torch.Generator().manual_seed(0)
    overlaps = torch.cat([torch.zeros(300), torch.rand(300, generator=g) * 0.2, 0.2 + torch.rand(60, generator=g) * 0.2,
                          0.4 + torch.rand(60, generator=g) * 0.2])
    result = AssignResult(0, torch.zeros(720, dtype=torch.long), overlaps, None)
    sampler = build('IoUBalancedNegSampler', num=36, pos_fraction=0, floor_thr=floor_thr, floor_fraction=floor_fraction)
    for _ in range(5):
        drawn = overlaps[sampler.sample(result, torch.rand(720, 4), torch.zeros(0, 4)).neg_inds]
        assert len(drawn) == 36
        if expected is not None:
            edges = overlaps.max() * torch.tensor([1 / 3, 2 / 3])
            assert tuple(torch.bucketize(drawn, edges, right=True).bincount(minlength=3).tolist()) == expected
        elif floor_thr > 0:
            assert (drawn < floor_thr).sum() == 18
        else:
            assert (drawn == 0).sum() == 18


def test_iou_balance_keeps_its_meaning_from_call_to_call():
    overlaps = torch.cat([torch.zeros(60), torch.full((30,), 0.4)])
    result = AssignResult(0, torch.zeros(90, dtype=torch.long), overlaps, None)
    sampler = build('IoUBalancedNegSampler', num=30, pos_fraction=0)
    boxes, none = torch.rand(90, 4), torch.zeros(0, 4)
    counts = [(sampler.sample(result, boxes, none).neg_inds < 60).sum().item() for _ in range(9)]
    assert all(count >= 10 for count in counts)                  # the lowest third, each time


def test_ohem_takes_the_hardest_and_asks_once_each():
    result, boxes, gts, labels = assigned(40, 200)
    calls = []

    def ranked(some, classes):
        calls.append((len(some), None if classes is None else classes.tolist()))
        return losses_of(some, classes)
    samples = build('OHEMSampler').sample(result, boxes, gts, labels, ranked)
    assert [n for n, _ in calls] == [43, 200] and calls[1][1] is None and calls[0][1][:3] == [0, 2, 4]
    rest = torch.ones(203 + 40 + 5, dtype=torch.bool)
    rest[samples.neg_inds] = False
    is_negative = torch.cat([torch.zeros(3, dtype=torch.bool), result.gt_inds == 0])
    left = torch.cat([gts, boxes])[rest & is_negative]
    assert samples.neg_boxes[:, 0].min() >= left[:, 0].max()
    easiest = build('OHEMSampler', loss_key='other').sample(result, boxes, gts, labels, ranked)
    assert easiest.neg_boxes[:, 0].max() < samples.neg_boxes[:, 0].min()


def test_ohem_errors():
    result, boxes, gts, labels = assigned(40, 200)
    with pytest.raises(ConfigError, match='RoI head'):
        build('OHEMSampler').sample(result, boxes, gts, labels)
    with pytest.raises(ConfigError, match="did you mean 'loss_cls'"):
        build('OHEMSampler', loss_key='loss_clss').sample(result, boxes, gts, labels, losses_of)
    assert build('CombinedSampler', neg_sampler=dict(type='OHEMSampler')).ranks_by_loss


@pytest.mark.parametrize('options', [dict(num=0), dict(pos_fraction=2), dict(floor_thr=-2), dict(floor_fraction=3),
                                     dict(num_bins=0)])
def test_wrong_options(options):
    with pytest.raises(ConfigError):
        build('IoUBalancedNegSampler', **options)
