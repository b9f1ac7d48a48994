"""Prime Sample Attention (Cao et al. 2020): samples weigh by their rank among those of the same object or place.

Letters: B images, N boxes, R rois, P positive and Q negative ones, K classes.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from boxdet.abilities import ability
from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32, box_overlaps
from boxdet.matching.assigner import AssignResult
from boxdet.matching.sampler import RandomSampler, RankLosses, gather, negatives, positives, random_choice
from boxdet.models import contracts
from boxdet.models.bbox_head import BBoxHead, BoxTargets, RoITrainSettings
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import StandardRoIHead, draw_samples
from boxdet.registry import BBOX_SAMPLERS, HEADS
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances

# From boxes (N, 4) of an image: class probabilities (N, K), boxes (N, 4) of the best class, the loss (N,) of each as
# background.
Predictions = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PISATrainSettings(RoITrainSettings):
    """``RoITrainSettings`` with the reweighing of positives and the loss that both branches share.

    Args:
        isr: ``k`` and ``bias`` of ``reweighted``; None: positives are not reweighed.
        carl: ``k`` and ``bias`` of ``carl_loss``; None: there is no such loss.
    """
    isr: Mapping[str, float] | None = None
    carl: Mapping[str, float] | None = None


@HEADS.register_module()
class PISARoIHead(StandardRoIHead):
    """A RoI head that reweighs its samples; arguments as in ``StandardRoIHead``."""

    train_settings = PISATrainSettings

    def draw(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None) -> list[SampledRois]:
        """See ``StandardRoIHead``; the sampler may ask what the box head makes of boxes."""
        if not ability(self.sampler, 'ranks_by_prediction'):
            return super().draw(feats, boxes, gt, ignored)
        return draw_samples(self.assigner, self.sampler, boxes, gt, ignored,
                            predictions=partial(self._predictions, feats))

    def _predictions(self, feats: Sequence[torch.Tensor], image: int,
                     boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``Predictions``; the boxes are of one image of the batch."""
        head = self.bbox_head
        scores, deltas, _ = self.box_forward([feat[image:image + 1] for feat in feats], boxes_to_rois([boxes]))
        probs = head.probabilities(scores)[:, :head.num_classes]
        background = torch.full((len(boxes),), head.num_classes, device=boxes.device)
        loss = head.loss_cls(at_least_float32(scores), background, reduction_override='none')
        moved = head.bbox_coder.decode(boxes, head.deltas_of(deltas, probs.argmax(dim=1)))
        return probs, moved, loss.flatten(1).sum(dim=1) if loss.dim() > 1 else loss

    def bbox_losses(self, feats: Sequence[torch.Tensor], samples: Sequence[SampledRois], scores: torch.Tensor,
                    deltas: torch.Tensor | None, targets: BoxTargets) -> contracts.Losses:
        """See ``StandardRoIHead``; and ``loss_carl``."""
        settings = self.train_cfg
        if settings.isr is None and settings.carl is None:
            return super().bbox_losses(feats, samples, scores, deltas, targets)
        if deltas is None:
            raise ConfigError('model.train_cfg.rcnn: isr and carl read box deltas; the bbox_head has with_reg=False')
        if settings.isr is not None:
            targets = reweighted(self.bbox_head, scores.detach(), deltas.detach(), samples, targets, **settings.isr)
        losses = super().bbox_losses(feats, samples, scores, deltas, targets)
        if settings.carl is None:
            return losses
        return {**losses, 'loss_carl': carl_loss(self.bbox_head, scores, deltas, targets, **settings.carl)}


def reweighted(head: BBoxHead, scores: torch.Tensor, deltas: torch.Tensor, samples: Sequence[SampledRois],
               targets: BoxTargets, k: float = 2, bias: float = 0) -> BoxTargets:
    """Targets whose positives are weighted by the hierarchical rank of their IoU (ISR-P, section 4.2).

    The loss of all positives together stays as it was.

    Args:
        head: the box head.
        scores: (R, K + 1).
        deltas: (R, 4 or K * 4).
        samples: B images' rois.
        targets: theirs.
        k: power of the weights.
        bias: least weight, before the power.
    """
    if not len(targets.pos_index):
        return targets
    labels = targets.labels[targets.pos_index]
    most_objects = max(int(s.pos_gt_index.max()) + 1 for s in samples if len(s.pos_gt_index))
    objects = torch.cat([s.pos_gt_index + i * most_objects for i, s in enumerate(samples)])              # (P,)
    coder = head.bbox_coder
    found = coder.decode(targets.pos_boxes, at_least_float32(head.deltas_of(deltas[targets.pos_index], labels)))
    wanted = coder.decode(targets.pos_boxes, coder.encode(targets.pos_boxes, targets.pos_gt_boxes))
    ious = box_overlaps(found, wanted, is_aligned=True)
    most = labels.bincount().max()
    # The best of every object first, then the second best of every object, and so on; of each class by itself.
    rank = _rank_in_group(ious + (most - _rank_in_group(ious, objects)), labels)
    weights = targets.label_weights.to(ious.dtype)
    before = weights[targets.pos_index]
    after = (bias + before * ((most - rank) / most) * (1 - bias)).pow(k)
    loss = head.loss_cls(at_least_float32(scores[targets.pos_index]), labels, reduction_override='none')
    loss = loss.flatten(1).sum(dim=1) if loss.dim() > 1 else loss
    after = after * ((loss * before).sum() / (loss * after).sum())
    return replace(targets, label_weights=weights.index_copy(0, targets.pos_index, after.to(weights.dtype)))


def carl_loss(head: BBoxHead, scores: torch.Tensor, deltas: torch.Tensor, targets: BoxTargets, k: float = 1,
              bias: float = 0.2, sigmoid: bool = False) -> torch.Tensor:
    """The box loss with positives weighted by their score; its gradient reaches the scores too (CARL, section 4.3).

    Args:
        head: the box head.
        scores: (R, K + 1).
        deltas: (R, 4 or K * 4).
        targets: of the rois.
        k: power of the weights.
        bias: least weight, before the power.
        sigmoid: scores are of a sigmoid and not of a softmax.
    """
    scores = at_least_float32(scores)
    if not len(targets.pos_index):
        return scores.sum() * 0
    labels = targets.labels[targets.pos_index]
    probs = scores[targets.pos_index].sigmoid() if sigmoid else scores[targets.pos_index].softmax(dim=1)
    weights = (bias + (1 - bias) * probs.gather(1, labels[:, None])).pow(k)              # (P, 1)
    weights = weights * (len(labels) / weights.sum())
    found = at_least_float32(head.deltas_of(deltas[targets.pos_index], labels))
    wanted = head.bbox_coder.encode(targets.pos_boxes, targets.pos_gt_boxes)
    loss = head.loss_bbox(found, wanted, reduction_override='none')                      # (P, 4)
    return (loss * weights).sum() / len(targets.labels)


@BBOX_SAMPLERS.register_module()
class ScoreHLRSampler(RandomSampler):
    """Negatives of high score, and weights for them by their rank among those at one place (ISR-N, section 4.2).

    For a ``PISARoIHead``, which lets it ask the box head.

    Args:
        num: as in ``RandomSampler``.
        pos_fraction: as in ``RandomSampler``.
        neg_pos_ub: as in ``RandomSampler``.
        add_gt_as_proposals: as in ``RandomSampler``.
        k: power of the weights.
        bias: least weight, before the power.
        score_thr: negatives of a lower score are drawn at random, where there are not enough others.
        iou_thr: predicted boxes of this IoU are at one place.
    """

    ranks_by_prediction = True

    def __init__(self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True,
                 k: float = 0.5, bias: float = 0, score_thr: float = 0.05, iou_thr: float = 0.5):
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals)
        self.k, self.bias, self.score_thr, self.iou_thr = k, bias, score_thr, iou_thr

    @torch.no_grad()
    def sample(self, assign_result: AssignResult, bboxes: torch.Tensor, gt_bboxes: torch.Tensor,
               gt_labels: torch.Tensor | None = None, rank_losses: RankLosses | None = None,
               predictions: Predictions | None = None) -> SampledRois:
        """As ``RandomSampler.sample``; the samples have ``neg_weights``, and losses are not asked for.

        Raises:
            ConfigError: there are no ``predictions``: it is not the sampler of a ``PISARoIHead``.
        """
        if predictions is None:
            raise ConfigError("ScoreHLRSampler asks the box head what it makes of boxes: it needs type='PISARoIHead'")
        assign_result, bboxes, is_gt = self.candidates(assign_result, bboxes, gt_bboxes, gt_labels)
        pos = random_choice(positives(assign_result), int(self.num * self.pos_fraction)).sort().values
        neg, wanted = negatives(assign_result), self.wanted_negatives(len(pos))
        weights = None
        if len(neg):
            chosen, weights = self._choose(*predictions(bboxes[neg]), min(wanted, len(neg)))
            order = neg[chosen].argsort()
            neg, weights = neg[chosen][order], weights[order]
        drawn = gather(assign_result, bboxes, gt_bboxes[:, :4], is_gt, pos, neg)
        return replace(drawn, neg_weights=weights)

    def _choose(self, probs: torch.Tensor, boxes: torch.Tensor, loss: torch.Tensor,
                wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Places and weights (q,) of ``wanted`` of the Q negatives; what is known of them as in ``Predictions``."""
        best = probs.max(dim=1).values
        high, low = ((best > self.score_thr) == is_high for is_high in (True, False))
        high, low = high.nonzero().squeeze(1), low.nonzero().squeeze(1)
        if not len(high):
            chosen = random_choice(torch.arange(len(best), device=best.device), wanted)
            return chosen, best.new_ones(len(chosen))
        rank = _rank_at_place(boxes[high], best[high], self.iou_thr)
        order = (best[high] - rank).argsort(descending=True)[:wanted]
        chosen = torch.cat([high[order], random_choice(low, wanted - len(order))])
        bound = max(wanted, len(high))
        weights = (bound - torch.arange(len(order), device=best.device)).to(best.dtype) / bound
        weights = torch.cat([weights, weights.min().expand(len(chosen) - len(order))]) if len(order) else weights
        weights = (self.bias + (1 - self.bias) * weights).pow(self.k)
        return chosen, weights * (loss[chosen].sum() / (loss[chosen] * weights).sum())


def _rank_in_group(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The rank (n,) from 0, the highest, of each value (n,) within its group (n,)."""
    order = values.argsort(descending=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = groups.bincount()
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(len(values), device=values.device) - starts[groups[order]]
    return torch.empty_like(places).scatter(0, order, places)


def _rank_at_place(boxes: torch.Tensor, scores: torch.Tensor, iou_thr: float) -> torch.Tensor:
    """The rank (n,) from 0 of boxes (n, 4) by scores (n,) among those that suppress one another."""
    order = scores.argsort(descending=True)
    same = (box_overlaps(boxes[order], boxes[order]) >= iou_thr).cpu()
    free, rank = torch.ones(len(order), dtype=torch.bool), torch.zeros(len(order), dtype=torch.long)
    for i in range(len(order)):
        if free[i]:
            here = same[i] & free
            here[i] = True
            rank[here] = torch.arange(int(here.sum()))
            free &= ~here
    return torch.empty_like(order).scatter(0, order, rank.to(order.device))
