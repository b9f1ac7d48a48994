"""Which of the assigned boxes enter the loss.

A RoI head samples with

    sampler.sample(assign_result, boxes, gt_boxes, gt_labels)

and, where ``sampler.ranks_by_loss`` says that losses decide (OHEM), with ``rank_losses=`` too: a callable
``rank_losses(boxes (n, 4), labels (n,) or None) -> {loss key: (n,) loss of each box}``; labels are classes from 0,
None says that all boxes are background. It is called without gradients, only when there are more boxes than wanted,
and at most once for the positive and once for the negative ones.

Letters: N candidates, G ground-truth boxes, P positive and Q negative samples.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from boxdet.errors import ConfigError, nearest
from boxdet.matching.assigner import BACKGROUND, AssignResult
from boxdet.registry import BBOX_SAMPLERS, Cfg
from boxdet.structures.batch import SampledRois

RankLosses = Callable[[torch.Tensor, 'torch.Tensor | None'], Mapping[str, torch.Tensor]]


@BBOX_SAMPLERS.register_module()
class PseudoSampler:
    """Every assigned box enters the loss."""

    ranks_by_loss = False

    def sample(self, assign_result: AssignResult, bboxes: torch.Tensor, gt_bboxes: torch.Tensor,
               gt_labels: torch.Tensor | None = None, rank_losses: RankLosses | None = None) -> SampledRois:
        """See ``RandomSampler.sample``."""
        is_gt = torch.zeros_like(assign_result.gt_inds, dtype=torch.bool)
        return gather(assign_result, bboxes[:, :4], gt_bboxes, is_gt, positives(assign_result),
                       negatives(assign_result))


@BBOX_SAMPLERS.register_module()
class RandomSampler:
    """Draw a fixed number of boxes, a given part of them positive where there are enough.

    Where no more are there than wanted, all are taken and no random number is drawn. Subclasses choose differently by
    ``choose_positives`` and ``choose_negatives``.

    Args:
        num: P + Q at most.
        pos_fraction: part of ``num`` that is positive at most.
        neg_pos_ub: negatives for each positive at most, a missing positive counting as one; negative for no limit.
        add_gt_as_proposals: the ground-truth boxes join the candidates, in front of them.

    Raises:
        ConfigError: a number below 1, or a fraction outside [0, 1].
    """

    ranks_by_loss = False

    def __init__(self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True):
        if num < 1:
            raise ConfigError(f'{type(self).__name__}: num is at least 1, not {num}')
        if not 0 <= pos_fraction <= 1:
            raise ConfigError(f'{type(self).__name__}: pos_fraction is in [0, 1], not {pos_fraction}')
        self.num = num
        self.pos_fraction = pos_fraction
        self.neg_pos_ub = neg_pos_ub
        self.add_gt_as_proposals = add_gt_as_proposals

    @torch.no_grad()
    def sample(self, assign_result: AssignResult, bboxes: torch.Tensor, gt_bboxes: torch.Tensor,
               gt_labels: torch.Tensor | None = None, rank_losses: RankLosses | None = None) -> SampledRois:
        """Draw from candidates (N, 4) that were matched with ``gt_bboxes`` (G, 4).

        Args:
            assign_result: of the candidates.
            bboxes: (N, 4) candidates.
            gt_bboxes: (G, 4).
            gt_labels: (G,), needed where ground truth is added to an assignment with labels.
            rank_losses: see the top of the file.

        Returns:
            SampledRois; ``pos_inds`` and ``neg_inds`` ascend and refer to the candidates, ground truth in front where
            it was added. ``pos_gt_labels`` are 0 where the assignment knows no labels (object or not).
        """
        assign_result, bboxes, is_gt = self.candidates(assign_result, bboxes, gt_bboxes, gt_labels)
        pos = positives(assign_result)
        pos = self._draw(self.choose_positives, pos, int(self.num * self.pos_fraction), assign_result, bboxes,
                         rank_losses)
        neg = self._draw(self.choose_negatives, negatives(assign_result), self.wanted_negatives(len(pos)),
                         assign_result, bboxes, rank_losses)
        return gather(assign_result, bboxes, gt_bboxes[:, :4], is_gt, pos, neg)

    def candidates(self, assign_result: AssignResult, bboxes: torch.Tensor, gt_bboxes: torch.Tensor,
                   gt_labels: torch.Tensor | None) -> tuple[AssignResult, torch.Tensor, torch.Tensor]:
        """The assignment, the boxes (N, 4) and which of them are ground truth (N,), which comes in front if wanted."""
        bboxes, gt_bboxes = bboxes[:, :4], gt_bboxes[:, :4]
        is_gt = torch.zeros(len(bboxes), dtype=torch.bool, device=bboxes.device)
        if not (self.add_gt_as_proposals and len(gt_bboxes)):
            return assign_result, bboxes, is_gt
        if assign_result.labels is not None and gt_labels is None:
            raise ValueError('gt_labels are needed to add ground truth to an assignment with labels')
        return (assign_result.with_gt(gt_labels), torch.cat([gt_bboxes, bboxes]),
                torch.cat([is_gt.new_ones(len(gt_bboxes)), is_gt]))

    def wanted_negatives(self, positive: int) -> int:
        """How many negatives go with so many positives, at most."""
        wanted = self.num - positive
        return wanted if self.neg_pos_ub < 0 else min(wanted, int(self.neg_pos_ub * max(1, positive)))

    @staticmethod
    def _draw(choose: Callable, inds: torch.Tensor, wanted: int, *context: object) -> torch.Tensor:
        if len(inds) <= wanted:
            return inds
        return choose(inds, wanted, *context).sort().values

    def choose_positives(self, inds: torch.Tensor, wanted: int, assign_result: AssignResult, bboxes: torch.Tensor,
                         rank_losses: RankLosses | None) -> torch.Tensor:
        """``wanted`` of the positives ``inds``, of which there are more."""
        return random_choice(inds, wanted)

    def choose_negatives(self, inds: torch.Tensor, wanted: int, assign_result: AssignResult, bboxes: torch.Tensor,
                         rank_losses: RankLosses | None) -> torch.Tensor:
        """``wanted`` of the negatives ``inds``, of which there are more."""
        return random_choice(inds, wanted)


@BBOX_SAMPLERS.register_module()
class InstanceBalancedPosSampler(RandomSampler):
    """Positives from all objects alike (Pang et al. 2019, Libra R-CNN, section 3.1)."""

    def choose_positives(self, inds: torch.Tensor, wanted: int, assign_result: AssignResult, bboxes: torch.Tensor,
                         rank_losses: RankLosses | None) -> torch.Tensor:
        """The same number of each object as far as possible, then any others."""
        _, objects = assign_result.gt_inds[inds].unique(return_inverse=True)
        quota = round(wanted / (int(objects.max()) + 1)) + 1
        return inds[_choose_by_group(objects, quota, wanted)]


@BBOX_SAMPLERS.register_module()
class IoUBalancedNegSampler(RandomSampler):
    """Negatives from all ranges of overlap alike (Pang et al. 2019, Libra R-CNN, section 3.1).

    mmdetection changes ``floor_thr=-1`` to 0 inside its first call, and so leaves negatives that overlap nothing to
    the rest from the second call on; here -1 keeps its meaning.

    Args:
        num: as in RandomSampler.
        pos_fraction: as in RandomSampler.
        neg_pos_ub: as in RandomSampler.
        add_gt_as_proposals: as in RandomSampler.
        floor_thr: negatives of less overlap are drawn at random, those above from ``num_bins`` ranges; with 0 those
            that overlap nothing are drawn at random; -1 draws all from the ranges.
        floor_fraction: part of the negatives drawn from below ``floor_thr``.
        num_bins: ranges of equal width, from ``floor_thr`` to the largest overlap.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, num: int, pos_fraction: float, floor_thr: float = -1, floor_fraction: float = 0,
                 num_bins: int = 3, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True):
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals)
        if not (floor_thr >= 0 or floor_thr == -1):
            raise ConfigError(f'IoUBalancedNegSampler: floor_thr is at least 0, or -1, not {floor_thr}')
        if not 0 <= floor_fraction <= 1:
            raise ConfigError(f'IoUBalancedNegSampler: floor_fraction is in [0, 1], not {floor_fraction}')
        if num_bins < 1:
            raise ConfigError(f'IoUBalancedNegSampler: num_bins is at least 1, not {num_bins}')
        self.floor_thr = floor_thr
        self.floor_fraction = floor_fraction
        self.num_bins = num_bins

    def choose_negatives(self, inds: torch.Tensor, wanted: int, assign_result: AssignResult, bboxes: torch.Tensor,
                         rank_losses: RankLosses | None) -> torch.Tensor:
        """From the ranges first, then from below the floor, then any others."""
        overlaps = assign_result.max_overlaps[inds]
        above = overlaps > self.floor_thr if self.floor_thr <= 0 else overlaps >= self.floor_thr
        ranged, floored = inds[above], inds[~above]
        from_ranges = int(wanted * (1 - self.floor_fraction))
        if len(ranged) > from_ranges:
            highest = assign_result.max_overlaps.max()
            chosen = self._choose_by_range(overlaps[above], highest, from_ranges)
            ranged, rest = ranged[chosen], ranged[_others(chosen, len(ranged))]
        else:
            rest = ranged[:0]
        floor_wanted = wanted - len(ranged)
        if len(floored) > floor_wanted:
            floored = random_choice(floored, floor_wanted)
        return torch.cat([ranged, floored, random_choice(rest, wanted - len(ranged) - len(floored))])

    def _choose_by_range(self, overlaps: torch.Tensor, highest: torch.Tensor, wanted: int) -> torch.Tensor:
        """Places of ``wanted`` of the overlaps (n,), of which there are more."""
        if self.num_bins == 1:
            return random_choice(torch.arange(len(overlaps), device=overlaps.device), wanted)
        floor = max(self.floor_thr, 0)
        width = (highest - floor) / self.num_bins
        edges = floor + width * torch.arange(1, self.num_bins, device=overlaps.device)
        ranges = torch.bucketize(overlaps, edges, right=True)  # (n,) in [0, num_bins)
        return _choose_by_group(ranges, wanted // self.num_bins, wanted)


@BBOX_SAMPLERS.register_module()
class CombinedSampler(RandomSampler):
    """Positives chosen by one sampler, negatives by another.

    Args:
        pos_sampler: config; keywords that it leaves out are the ones given here.
        neg_sampler: likewise.
        num: as in RandomSampler.
        pos_fraction: as in RandomSampler.
        neg_pos_ub: as in RandomSampler.
        add_gt_as_proposals: as in RandomSampler.
    """

    def __init__(self, pos_sampler: Cfg, neg_sampler: Cfg, num: int, pos_fraction: float, neg_pos_ub: float = -1,
                 add_gt_as_proposals: bool = True):
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals)
        shared = dict(num=num, pos_fraction=pos_fraction, neg_pos_ub=neg_pos_ub,
                      add_gt_as_proposals=add_gt_as_proposals)
        self.pos_sampler = BBOX_SAMPLERS.build(pos_sampler, **shared)
        self.neg_sampler = BBOX_SAMPLERS.build(neg_sampler, **shared)
        self.ranks_by_loss = self.pos_sampler.ranks_by_loss or self.neg_sampler.ranks_by_loss

    def choose_positives(self, inds: torch.Tensor, wanted: int, assign_result: AssignResult, bboxes: torch.Tensor,
                         rank_losses: RankLosses | None) -> torch.Tensor:
        """As ``pos_sampler`` chooses."""
        return self.pos_sampler.choose_positives(inds, wanted, assign_result, bboxes, rank_losses)

    def choose_negatives(self, inds: torch.Tensor, wanted: int, assign_result: AssignResult, bboxes: torch.Tensor,
                         rank_losses: RankLosses | None) -> torch.Tensor:
        """As ``neg_sampler`` chooses."""
        return self.neg_sampler.choose_negatives(inds, wanted, assign_result, bboxes, rank_losses)


@BBOX_SAMPLERS.register_module()
class OHEMSampler(RandomSampler):
    """The boxes of the highest loss (Shrivastava et al. 2016).

    Args:
        num: as in RandomSampler.
        pos_fraction: as in RandomSampler.
        neg_pos_ub: as in RandomSampler.
        add_gt_as_proposals: as in RandomSampler.
        loss_key: which of the losses that ``rank_losses`` returns decides.
    """

    ranks_by_loss = True

    def __init__(self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True,
                 loss_key: str = 'loss_cls'):
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals)
        self.loss_key = loss_key

    def choose_positives(self, inds: torch.Tensor, wanted: int, assign_result: AssignResult, bboxes: torch.Tensor,
                         rank_losses: RankLosses | None) -> torch.Tensor:
        """The positives of the highest loss."""
        labels = torch.zeros_like(inds) if assign_result.labels is None else assign_result.labels[inds]
        return self._hardest(inds, wanted, bboxes[inds], labels, rank_losses)

    def choose_negatives(self, inds: torch.Tensor, wanted: int, assign_result: AssignResult, bboxes: torch.Tensor,
                         rank_losses: RankLosses | None) -> torch.Tensor:
        """The negatives of the highest loss."""
        return self._hardest(inds, wanted, bboxes[inds], None, rank_losses)

    def _hardest(self, inds: torch.Tensor, wanted: int, bboxes: torch.Tensor, labels: torch.Tensor | None,
                 rank_losses: RankLosses | None) -> torch.Tensor:
        if rank_losses is None:
            raise ConfigError('OHEMSampler ranks boxes by the loss of a RoI head; it cannot be used without one')
        losses = rank_losses(bboxes, labels)
        if self.loss_key not in losses:
            raise ConfigError(f"OHEMSampler: no loss '{self.loss_key}'{nearest(self.loss_key, losses)}")
        return inds[losses[self.loss_key].topk(wanted).indices]


def positives(assign_result: AssignResult) -> torch.Tensor:
    """Places of the matched boxes, ascending."""
    return (assign_result.gt_inds > BACKGROUND).nonzero().squeeze(1)


def negatives(assign_result: AssignResult) -> torch.Tensor:
    """Places of the background boxes, ascending."""
    return (assign_result.gt_inds == BACKGROUND).nonzero().squeeze(1)


def random_choice(inds: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` different ones of ``inds``, or all of them where there are fewer."""
    if len(inds) <= count:
        return inds
    return inds[torch.randperm(len(inds), device=inds.device)[:count]]


def _others(chosen: torch.Tensor, total: int) -> torch.Tensor:
    """The places in [0, total) that are not ``chosen``."""
    left = torch.ones(total, dtype=torch.bool, device=chosen.device)
    left[chosen] = False
    return left.nonzero().squeeze(1)


def _choose_by_group(groups: torch.Tensor, quota: int, wanted: int) -> torch.Tensor:
    """Places of ``wanted`` of the elements (n,): at most ``quota`` of each group at random, then any others.

    Args:
        groups: (n,) group of each element, from 0; n >= wanted.
        quota: at most so many of a group at first.
        wanted: how many in all.
    """
    shuffled = torch.randperm(len(groups), device=groups.device)
    order = shuffled[groups[shuffled].argsort(stable=True)]  # by group, shuffled inside
    sizes = groups.bincount()
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(groups), device=groups.device) - starts[groups[order]]  # place within its group
    # A second shuffle: when the quotas alone are more than wanted, no group may be the one that is cut.
    again = torch.randperm(len(groups), device=groups.device)
    first = (rank[again] >= quota).to(torch.uint8).argsort(stable=True)
    return order[again[first[:wanted]]]


def gather(assign_result: AssignResult, bboxes: torch.Tensor, gt_bboxes: torch.Tensor, is_gt: torch.Tensor,
           pos: torch.Tensor, neg: torch.Tensor) -> SampledRois:
    """The samples at the places ``pos`` (P,) and ``neg`` (Q,) of matched boxes (N, 4), some of them ground truth."""
    gt_index = assign_result.gt_inds[pos] - 1
    labels = torch.zeros_like(pos) if assign_result.labels is None else assign_result.labels[pos]
    return SampledRois(
        pos_boxes=bboxes[pos], neg_boxes=bboxes[neg], pos_inds=pos, neg_inds=neg, pos_gt_index=gt_index,
        pos_gt_boxes=gt_bboxes[:, :4][gt_index] if len(gt_bboxes) else gt_bboxes.new_zeros(0, 4),
        pos_gt_labels=labels, pos_is_gt=is_gt[pos])
