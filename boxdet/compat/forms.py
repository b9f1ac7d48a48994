"""Between boxdet's values and mmdetection 2.x's: image metas, ground truth, proposals, samples, results.

Letters: B images, N boxes of an image, P positive and Q negative samples of an image, K classes.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from boxdet.matching import assigner
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.registry import MATCHING
from boxdet.structures.batch import Batch, ImageMeta, SampledRois
from boxdet.structures.instances import Instances


def has_own(part: Any, *names: str) -> bool:
    """Whether the class of ``part`` has a method of these names that a plug-in brings."""
    owners = [owner for owner in type(part).__mro__ if not owner.__module__.startswith(('boxdet.', 'torch.'))]
    return any(name in vars(owner) for owner in owners for name in names)


def unpacked(value: Any) -> Any:
    """What DataContainers hold, in lists and tuples too; anything else as it is."""
    if hasattr(value, 'data') and hasattr(value, 'cpu_only'):
        value = value.data
        return unpacked(value[0]) if isinstance(value, list) and len(value) == 1 else unpacked(value)
    if isinstance(value, (list, tuple)):
        return [unpacked(one) for one in value]
    return value


def meta_dict(meta: ImageMeta) -> dict[str, Any]:
    """2.x's ``img_metas`` entry."""
    known = {f.name: getattr(meta, f.name) for f in fields(meta) if f.name != 'extra'}
    return {**{name: value for name, value in known.items() if value is not None}, **meta.extra}


def metas_of(img_metas: Sequence[Mapping[str, Any] | ImageMeta]) -> list[ImageMeta]:
    """The other way."""
    return [meta if isinstance(meta, ImageMeta) else ImageMeta.from_dict(meta) for meta in img_metas]


def as_training_inputs(batch: Batch) -> dict[str, Any]:
    """The keywords of ``forward_train``: ``img``, ``img_metas``, ``gt_bboxes``, ``gt_labels`` and others.

    Raises:
        ValueError: a batch without ground truth.
    """
    if batch.gt is None:
        raise ValueError('forward_train: this batch has no ground truth')
    shape = tuple(batch.images.shape[-2:])
    values = dict(img=batch.images, img_metas=[{**meta_dict(meta), 'batch_input_shape': shape} for meta in batch.metas],
                  gt_bboxes=[gt.bboxes for gt in batch.gt])
    for field, key in (('labels', 'gt_labels'), ('masks', 'gt_masks'), ('keypoints', 'gt_keypoints')):
        if all(field in gt for gt in batch.gt):
            values[key] = [getattr(gt, field) for gt in batch.gt]
    if batch.ignored is not None:
        values['gt_bboxes_ignore'] = batch.ignored
    if batch.semantic_seg is not None:
        values['gt_semantic_seg'] = batch.semantic_seg
    if batch.proposals is not None:
        values['proposals'] = as_rows(batch.proposals)
    return values


def as_batch(img: torch.Tensor, img_metas: Sequence[Any], gt_bboxes: Sequence[torch.Tensor] | None = None,
             gt_labels: Sequence[torch.Tensor] | None = None, gt_bboxes_ignore: Sequence[torch.Tensor] | None = None,
             gt_masks: Sequence[Any] | None = None, proposals: Sequence[torch.Tensor] | None = None,
             gt_semantic_seg: torch.Tensor | None = None, gt_keypoints: Sequence[torch.Tensor] | None = None) -> Batch:
    """A Batch of the arguments of 2.x's ``forward_train`` or ``simple_test``."""
    gt = None if gt_bboxes is None else as_ground_truth(gt_bboxes, gt_labels, gt_masks, gt_keypoints)
    return Batch(images=img, metas=metas_of(img_metas), gt=gt, ignored=as_ignored(gt_bboxes_ignore, gt_bboxes),
                 proposals=None if proposals is None else as_instances(proposals), semantic_seg=gt_semantic_seg)


def as_ground_truth(gt_bboxes: Sequence[torch.Tensor], gt_labels: Sequence[torch.Tensor] | None,
                    gt_masks: Sequence[Any] | None = None,
                    gt_keypoints: Sequence[torch.Tensor] | None = None) -> list[Instances]:
    """B objects of 2.x's lists; without labels they are all of class 0."""
    found = []
    for i, boxes in enumerate(gt_bboxes):
        labels = boxes.new_zeros(len(boxes), dtype=torch.long) if gt_labels is None else gt_labels[i]
        more = {} if gt_masks is None else dict(masks=gt_masks[i])
        more.update({} if gt_keypoints is None else dict(keypoints=gt_keypoints[i]))
        found.append(Instances(bboxes=boxes, labels=labels, **more))
    return found


def as_ignored(regions: Sequence[torch.Tensor | None] | None,
               gt_bboxes: Sequence[torch.Tensor] | None) -> list[torch.Tensor] | None:
    """B boxes to ignore; 2.x has None where an image has none."""
    if regions is None or gt_bboxes is None:
        return None
    return [boxes.new_zeros(0, 4) if own is None else own for own, boxes in zip(regions, gt_bboxes)]


def as_rows(proposals: Sequence[Instances]) -> list[torch.Tensor]:
    """B proposals (N, 5): x1, y1, x2, y2, score."""
    return [torch.cat([p.bboxes, p.scores[:, None]], dim=1) for p in proposals]


def as_instances(rows: Sequence[torch.Tensor]) -> list[Instances]:
    """B Instances(bboxes, scores) of boxes (N, 4 or 5)."""
    return [Instances(bboxes=own[:, :4], scores=own[:, 4] if own.shape[1] > 4 else own.new_ones(len(own)))
            for own in rows]


def bbox2roi(bbox_list: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rois (R, 5) of boxes (N, 4 or 5) of B images."""
    return boxes_to_rois([boxes[:, :4] for boxes in bbox_list])


def bbox2result(bboxes: torch.Tensor | np.ndarray, labels: torch.Tensor | np.ndarray,
                num_classes: int) -> list[np.ndarray]:
    """K float32 arrays (n, 5) of boxes (N, 5) and labels (N,)."""
    if len(bboxes) == 0:
        return [np.zeros((0, 5), dtype=np.float32) for _ in range(num_classes)]
    bboxes, labels = (v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in (bboxes, labels))
    return [bboxes[labels == k, :] for k in range(num_classes)]


class AssignResult(assigner.AssignResult):
    """The assigners' result, with 2.x's ``random``."""

    @classmethod
    def random(cls, num_preds: int | None = None, num_gts: int | None = None, p_ignore: float = 0.3,
               p_assigned: float = 0.5, p_use_label: float = 0.5, num_classes: int = 20,
               rng: np.random.RandomState | int | None = None) -> AssignResult:
        """A result of chance, for tests.

        Args:
            num_preds: N; None for a number up to 16.
            num_gts: G; None for a number up to 8.
            p_ignore: how often a box without a ground truth is ignored.
            p_assigned: how often a box has a ground truth.
            p_use_label: how often there are labels.
            num_classes: K.
            rng: where random numbers come from, or a seed.
        """
        drawn = rng if isinstance(rng, np.random.RandomState) else np.random.RandomState(rng)
        count = int(drawn.randint(17)) if num_preds is None else num_preds
        objects = int(drawn.randint(9)) if num_gts is None else num_gts
        rest = np.where(drawn.rand(count) < p_ignore, assigner.IGNORED, assigner.BACKGROUND)
        has_gt = (drawn.rand(count) < p_assigned) & (objects > 0)
        inds = np.where(has_gt, drawn.randint(1, max(objects, 1) + 1, count), rest)
        classes = np.append(drawn.randint(num_classes, size=objects), -1)  # the last: of none
        labels = torch.from_numpy(classes[np.where(has_gt, inds - 1, -1)]) if drawn.rand() < p_use_label else None
        return cls(objects, torch.from_numpy(inds), torch.from_numpy(drawn.rand(count).astype(np.float32)), labels)


@dataclass
class SamplingResult(SampledRois):
    """SampledRois by 2.x's names as well."""
    num_gts: int = 0

    @classmethod
    def of(cls, drawn: SampledRois, num_gts: int = 0) -> SamplingResult:
        """The same samples."""
        return cls(**{f.name: getattr(drawn, f.name) for f in fields(SampledRois)}, num_gts=num_gts)

    @classmethod
    def random(cls, rng: np.random.RandomState | int | None = None, **kwargs: Any) -> SamplingResult:
        """Samples of chance, for tests; ``kwargs`` are those of ``AssignResult.random``."""
        drawn = rng if isinstance(rng, np.random.RandomState) else np.random.RandomState(rng)
        assigned = AssignResult.random(rng=drawn, **kwargs)
        boxes, truths = (torch.from_numpy(np.sort(drawn.rand(count, 2, 2), axis=1).reshape(-1, 4)).float()
                         for count in (len(assigned.gt_inds), assigned.num_gts))
        labels = None if assigned.labels is None else torch.from_numpy(drawn.randint(0, 20, assigned.num_gts))
        sampler = MATCHING.build(dict(type='RandomSampler', num=32, pos_fraction=0.5, add_gt_as_proposals=False))
        return cls.of(sampler.sample(assigned, boxes, truths, labels), assigned.num_gts)

    @property
    def bboxes(self) -> torch.Tensor:
        """(P + Q, 4)."""
        return self.boxes

    @property
    def pos_bboxes(self) -> torch.Tensor:
        """(P, 4)."""
        return self.pos_boxes

    @property
    def neg_bboxes(self) -> torch.Tensor:
        """(Q, 4)."""
        return self.neg_boxes

    @property
    def pos_gt_bboxes(self) -> torch.Tensor:
        """(P, 4)."""
        return self.pos_gt_boxes

    @property
    def pos_assigned_gt_inds(self) -> torch.Tensor:
        """(P,)."""
        return self.pos_gt_index

    @property
    def info(self) -> dict[str, Any]:
        """What there is to print."""
        return dict(pos_inds=self.pos_inds, neg_inds=self.neg_inds, pos_bboxes=self.pos_bboxes,
                    neg_bboxes=self.neg_bboxes, pos_is_gt=self.pos_is_gt, num_gts=self.num_gts,
                    pos_assigned_gt_inds=self.pos_assigned_gt_inds)
