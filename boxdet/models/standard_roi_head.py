"""The second stage: pool the proposals, classify and move their boxes, predict masks and keypoints.

Ren et al. 2015; He et al. 2017.

Letters: B images, R rois of the batch, P positive rois, N boxes of an image, K classes, J keypoints, C channels,
h, w of the features, H, W of heatmaps.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from boxdet.abilities import ability
from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.nms import Suppression
from boxdet.models import contracts
from boxdet.models.bbox_head import BoxTargets, RoITestSettings, RoITrainSettings
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.settings import read_section
from boxdet.registry import HEADS, MATCHING, ROI_EXTRACTORS, SHARED_HEADS, Cfg
from boxdet.structures.batch import ImageMeta, SampledRois, image_sizes
from boxdet.structures.instances import Instances, OfImages, PaddedInstances, joined


@HEADS.register_module()
class StandardRoIHead(nn.Module):
    """One box head and, if wanted, one mask head and one keypoint head.

    Args:
        bbox_roi_extractor: config.
        bbox_head: config.
        mask_roi_extractor: config; without one the mask head reads the box features.
        mask_head: config; None for boxes only.
        shared_head: config of layers that all roi features pass first.
        train_cfg: RoITrainSettings (or what a subclass declares as ``train_settings``) or a dict of them; None where
            the head is not trained.
        test_cfg: RoITestSettings (``test_settings``) or a dict of them.
        pretrained: weights of the shared head, 2.x's older way to say its ``init_cfg``.
        init_cfg: initial weights.
        keypoint_roi_extractor: config; without one the keypoint head reads the box features.
        keypoint_head: config; None for no keypoints.

    Raises:
        ConfigError: parts that need one another are missing.
    """

    train_settings = RoITrainSettings
    test_settings = RoITestSettings
    fixed_size_prediction = True

    def __init__(self, bbox_roi_extractor: Cfg | contracts.RoIExtractor | None = None,
                 bbox_head: Cfg | contracts.BoxHead | None = None,
                 mask_roi_extractor: Cfg | contracts.RoIExtractor | None = None,
                 mask_head: Cfg | contracts.MaskHead | None = None, shared_head: Cfg | nn.Module | None = None,
                 train_cfg: RoITrainSettings | Cfg | None = None, test_cfg: RoITestSettings | Cfg | None = None,
                 pretrained: str | None = None, init_cfg: InitCfg = None,
                 keypoint_roi_extractor: Cfg | contracts.RoIExtractor | None = None,
                 keypoint_head: Cfg | contracts.KeypointHead | None = None):
        super().__init__()
        if bbox_head is None or bbox_roi_extractor is None:
            raise ConfigError('model.roi_head needs bbox_head and bbox_roi_extractor')
        self.train_cfg = read_section(self, 'train_settings', train_cfg, 'train_cfg.rcnn')
        self.test_cfg = read_section(self, 'test_settings', test_cfg, 'test_cfg.rcnn')
        if shared_head is not None:
            # An init_cfg of its own stands: what is given beside the config fills only what that leaves out.
            weights = dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)) if pretrained else {}
            self.shared_head = SHARED_HEADS.build(shared_head, **weights)
        self.bbox_roi_extractor = ROI_EXTRACTORS.build(bbox_roi_extractor)
        self.bbox_head = HEADS.build(bbox_head)
        if mask_head is not None:
            self.mask_head = HEADS.build(mask_head)
            if mask_roi_extractor is not None:
                self.mask_roi_extractor = ROI_EXTRACTORS.build(mask_roi_extractor)
                self.mask_roi_extractor.for_convolutions = True
            elif self.with_shared_head and ability(self.mask_head, 'res_layer') is not None:
                raise ConfigError('model.roi_head: a mask_head with a res_layer of its own needs a mask_roi_extractor: '
                                  'the box features have passed the shared_head')
        if keypoint_head is not None:
            self.keypoint_head = HEADS.build(keypoint_head)
            if keypoint_roi_extractor is not None:
                self.keypoint_roi_extractor = ROI_EXTRACTORS.build(keypoint_roi_extractor)
        self.assigner, self.sampler = build_matching(self.train_cfg)
        self.ranks_by_loss = ability(self.sampler, 'ranks_by_loss')
        self.init_cfg = init_cfg

    @property
    def with_bbox(self) -> bool:
        """Always True; as in 2.x."""
        return True

    @property
    def with_mask(self) -> bool:
        """Whether there is a mask head."""
        return hasattr(self, 'mask_head')

    @property
    def with_keypoint(self) -> bool:
        """Whether there is a keypoint head."""
        return hasattr(self, 'keypoint_head')

    @property
    def with_shared_head(self) -> bool:
        """Whether roi features pass shared layers first."""
        return hasattr(self, 'shared_head')

    @property
    def shares_extractor(self) -> bool:
        """Whether the mask head reads the box head's features."""
        return not hasattr(self, 'mask_roi_extractor')

    @property
    def last_bbox_head(self) -> nn.Module:
        """The box head whose deltas make the results."""
        return self.bbox_head

    def init_weights(self) -> None:
        """Run ``init_cfg``, its own and its parts'."""
        initialize(self)

    def box_features(self, feats: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """What the box head reads: (R, C, h, w) for rois (R, 5)."""
        pooled = self.bbox_roi_extractor(feats, rois)
        return self.shared_head(pooled) if self.with_shared_head else pooled

    def box_forward(self, feats: Sequence[torch.Tensor],
                    rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Scores (R, K + 1) and deltas (R, 4 or K * 4) of rois (R, 5), and the features (R, C, h, w) behind them."""
        pooled = self.box_features(feats, rois)
        return *self.bbox_head(pooled), pooled

    def mask_features(self, feats: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """What the mask head reads: (R, C, h, w) for rois (R, 5)."""
        if self.shares_extractor:
            return self.box_features(feats, rois)
        pooled = self.mask_roi_extractor(feats, rois)
        shared = self.with_shared_head and ability(self.mask_head, 'res_layer') is None
        return self.shared_head(pooled) if shared else pooled

    def keypoint_features(self, feats: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """What the keypoint head reads: (R, C, h, w) for rois (R, 5)."""
        if not hasattr(self, 'keypoint_roi_extractor'):
            return self.box_features(feats, rois)
        pooled = self.keypoint_roi_extractor(feats, rois)
        return self.shared_head(pooled) if self.with_shared_head else pooled

    # ------------------------------------------------------------------------------------------ training

    def loss(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None, metas: Sequence[ImageMeta]) -> contracts.Losses:
        """Return ``loss_cls``, ``acc``, ``loss_bbox`` and, with the heads for it, ``loss_mask``, ``loss_keypoint``.

        Args:
            feats: the neck's levels, (B, C, ., .) each.
            proposals: B Instances(bboxes, scores).
            gt: B objects.
            ignored: B boxes (M, 4); proposals on them are left out.
            metas: B images.
        """
        samples = self.draw(feats, [p.bboxes for p in proposals], gt, ignored)
        scores, deltas, pooled = self.box_forward(feats, boxes_to_rois([s.boxes for s in samples]))
        targets = self.bbox_head.targets(samples, self.train_cfg)
        losses = dict(self.bbox_losses(feats, samples, scores, deltas, targets))
        if self.with_mask:
            drawn, index = mask_samples(samples, self.train_cfg)
            if self.shares_extractor:
                pooled = pooled[targets.pos_index[index]]
            else:
                pooled = self.mask_features(feats, boxes_to_rois([s.pos_boxes for s in drawn]))
            losses.update(self.mask_losses(feats, pooled, drawn, gt))
        if self.with_keypoint:
            losses.update(keypoint_loss(self, feats, samples, gt, self.sampler))
        return losses

    def draw(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None) -> list[SampledRois]:
        """The samples that B images' boxes (N, 4) are learnt from, by assigner and sampler."""
        rank = partial(box_losses, self.bbox_head, self.box_forward, feats) if self.ranks_by_loss else None
        return draw_samples(self.assigner, self.sampler, boxes, gt, ignored, rank)

    def bbox_losses(self, feats: Sequence[torch.Tensor], samples: Sequence[SampledRois], scores: torch.Tensor,
                    deltas: torch.Tensor | None, targets: BoxTargets) -> contracts.Losses:
        """The losses of the box branch from what the box head made of the samples of B images."""
        return self.bbox_head.loss(scores, deltas, targets)

    def mask_losses(self, feats: Sequence[torch.Tensor], pooled: torch.Tensor, samples: Sequence[SampledRois],
                    gt: Sequence[Instances]) -> dict[str, torch.Tensor]:
        """The losses of the mask branch from the pooled features (P, C, h, w) of the positives of B images."""
        return mask_loss(self.mask_head, pooled, samples, gt, self.train_cfg)

    # ------------------------------------------------------------------------------------------ results

    def predict(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances],
                metas: Sequence[ImageMeta]) -> list[Instances]:
        """Return B Instances(bboxes, scores, labels), in network-input pixels and best first.

        With a mask head they also hold ``mask_probs`` (N, h, w): probabilities within each box; with a keypoint
        head ``keypoints`` (N, J, 3): x, y, score.
        """
        boxes, scores, deltas = self.classify(feats, [p.bboxes for p in proposals], metas)
        results = predict_boxes(self.bbox_head, boxes, scores, deltas, metas, self.test_cfg)
        results = add_masks(self, feats, results) if self.with_mask else results
        return self.add_keypoints(feats, results) if self.with_keypoint else results

    def add_keypoints(self, feats: Sequence[torch.Tensor], results: Sequence[Instances]) -> list[Instances]:
        """B results with their ``keypoints`` (N, J, 3), on the device of the features."""
        return add_keypoints(self, feats, results)

    def predict_padded(self, feats: Sequence[torch.Tensor], proposals: PaddedInstances,
                       metas: Sequence[ImageMeta] | torch.Tensor, suppression: Suppression) -> PaddedInstances:
        """``predict`` in tensors of one size; keypoints are left to ``add_keypoints``.

        Args:
            feats: the neck's levels.
            proposals: of B images.
            metas: of B images, or their (height, width) as a tensor (B, 2).
            suppression: how many candidates are looked at, and how they are suppressed.
        """
        return predict_padded(self, feats, proposals, metas, suppression)

    def classify(self, feats: Sequence[torch.Tensor], boxes: OfImages,
                 metas: Sequence[ImageMeta] | torch.Tensor,
                 ) -> tuple[OfImages, torch.Tensor, torch.Tensor | None]:
        """Run the box head on boxes (N, 4) of B images, a list or one tensor (B, N, 4) of them.

        Returns:
            the boxes that the deltas refer to, as ``boxes`` came; class logits (R, K + 1); deltas (R, 4 or K * 4) or
            None.
        """
        scores, deltas, _ = self.box_forward(feats, boxes_to_rois(boxes))
        return boxes, scores, deltas

    def mask_fields(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                    labels: Sequence[torch.Tensor] | torch.Tensor, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the mask branch gives results: fields of R rows, that are added or put in the place of those there are.

        Args:
            feats: the neck's levels.
            boxes: (N, 4) of B images, a list or one tensor (B, N, 4) of them.
            labels: (N,) of B images, likewise.
            scores: (R,).
        """
        return dict(mask_probs=self.mask_probs(feats, boxes, labels))

    def mask_probs(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                   labels: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """Probabilities (R, h, w) within the boxes (N, 4), in network-input pixels, of labels (N,) of B images."""
        pooled = self.mask_features(feats, boxes_to_rois(boxes))
        return self.mask_head.predict(pooled, joined(labels))

    def keypoint_heatmaps(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Heatmap logits (R, J, H, W) within the boxes (N, 4) of B images, in network-input pixels."""
        return self.keypoint_head(self.keypoint_features(feats, boxes_to_rois(boxes)))


# ---------------------------------------------------------------------------------------------- shared with cascades


def build_matching(settings: RoITrainSettings | None) -> tuple[contracts.Assigner | None, contracts.Sampler | None]:
    """Build assigner and sampler of ``train_cfg.rcnn``; (None, None) where there is no training.

    Raises:
        ConfigError: one of them is missing.
    """
    if settings is None:
        return None, None
    for name in ('assigner', 'sampler'):
        if getattr(settings, name) is None:
            raise ConfigError(f"model.train_cfg.rcnn needs '{name}'")
    return MATCHING.build(settings.assigner), MATCHING.build(settings.sampler)


@torch.no_grad()
def draw_samples(assigner: contracts.Assigner | None, sampler: contracts.Sampler | None,
                 boxes: Sequence[torch.Tensor], gt: Sequence[Instances], ignored: Sequence[torch.Tensor] | None,
                 rank_losses: Callable[..., Mapping[str, torch.Tensor]] | None = None,
                 predictions: Callable[[int, torch.Tensor], Any] | None = None) -> list[SampledRois]:
    """Match the proposals of B images with their ground truth, and draw those that enter the loss.

    Args:
        assigner: matches the boxes of an image.
        sampler: draws from them.
        boxes: B proposals (N, 4).
        gt: B objects.
        ignored: B boxes (M, 4), or None.
        rank_losses: for a sampler that declares ``ranks_by_loss`` (OHEM): ``rank_losses(image, boxes, labels)`` gives
            it the losses of boxes of an image.
        predictions: for a sampler that declares ``ranks_by_prediction`` (PISA): ``predictions(image, boxes)`` gives it
            what the box head makes of boxes of an image.
    """
    if assigner is None or sampler is None:
        raise ConfigError("model.train_cfg needs 'rcnn' for training")
    asked = {name: ask for name, ask in (('rank_losses', rank_losses), ('predictions', predictions)) if ask is not None}
    samples = []
    for i, (own, objects) in enumerate(zip(boxes, gt)):
        regions = None if ignored is None else ignored[i]
        matched = assigner.assign(own, objects.bboxes, regions, objects.labels)
        of_image = {name: partial(ask, i) for name, ask in asked.items()}
        samples.append(sampler.sample(matched, own, objects.bboxes, objects.labels, **of_image))
    return samples


def box_losses(bbox_head: nn.Module, forward: Callable, feats: Sequence[torch.Tensor], image: int,
               boxes: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """``loss_cls`` (N,) of boxes (N, 4) of one image of the batch; without ``labels`` they are background.

    ``forward(feats, rois)`` is the RoI head's ``box_forward``.
    """
    scores = forward([f[image:image + 1] for f in feats], boxes_to_rois([boxes]))[0]
    if labels is None:
        labels = torch.full((len(boxes),), bbox_head.num_classes, device=boxes.device)
    losses = bbox_head.loss_cls(at_least_float32(scores), labels, reduction_override='none')
    return dict(loss_cls=losses.flatten(1).sum(dim=1) if losses.dim() > 1 else losses)  # a sigmoid's (N, K + 1)


def mask_samples(samples: Sequence[SampledRois],
                 settings: RoITrainSettings) -> tuple[Sequence[SampledRois], slice | torch.Tensor]:
    """The samples of B images that the mask head learns from, and the places (p,) of their positives among all."""
    most = settings.mask_samples
    if most <= 0 or all(len(s.pos_boxes) <= most for s in samples):
        return samples, slice(None)
    chosen = [torch.randperm(len(s.pos_boxes), device=s.pos_boxes.device)[:most] for s in samples]
    begins = accumulate((len(s.pos_boxes) for s in samples), initial=0)
    return ([s.with_positives(index) for s, index in zip(samples, chosen)],
            torch.cat([index + begin for index, begin in zip(chosen, begins)]))


def mask_loss(mask_head: nn.Module, pooled: torch.Tensor, samples: Sequence[SampledRois],
              gt: Sequence[Instances], settings: RoITrainSettings,
              forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The mask head's loss on the features (P, C, h, w) of the positives; objects without a mask are left out.

    ``forward(pooled, labels)`` gives the logits (P, h, w), in the place of the head's ``forward_labels``.
    """
    forward = mask_head.forward_labels if forward is None else forward
    labels = torch.cat([s.pos_gt_labels for s in samples])
    targets = mask_head.targets(samples, gt, settings)
    known = have_masks(samples, gt)
    if known is not None:
        pooled, labels, targets = pooled[known], labels[known], targets[known]
    return mask_head.loss(forward(pooled, labels), targets)


def have_masks(samples: Sequence[SampledRois], gt: Sequence[Instances]) -> torch.Tensor | None:
    """(P,) bool: the positives whose object has a mask; None where all have."""
    absent = [torch.from_numpy(objects.masks.absent) if hasattr(objects.masks, 'absent')
              else torch.zeros(len(objects), dtype=torch.bool) for objects in gt]
    if not any(bool(one.any()) for one in absent):
        return None
    return torch.cat([~one.to(s.pos_gt_index.device)[s.pos_gt_index] for one, s in zip(absent, samples)])


def predict_padded(roi_head: nn.Module, feats: Sequence[torch.Tensor], proposals: PaddedInstances,
                   metas: Sequence[ImageMeta] | torch.Tensor, suppression: Suppression) -> PaddedInstances:
    """Boxes, scores, labels and, with a mask head, ``mask_probs`` (B, n, h, w); see ``StandardRoIHead``."""
    boxes, scores, deltas = roi_head.classify(feats, proposals.bboxes, metas)
    found = roi_head.last_bbox_head.predict_padded(boxes, proposals.valid, scores, deltas, image_sizes(metas),
                                                   roi_head.test_cfg, suppression)
    if roi_head.with_mask:
        fields = roi_head.mask_fields(feats, found.bboxes, found.fields['labels'], found.fields['scores'].flatten())
        found = found.replace(**{name: value.unflatten(0, found.valid.shape) for name, value in fields.items()})
    return replace(found, settled=found.settled & proposals.settled)


def add_masks(roi_head: nn.Module, feats: Sequence[torch.Tensor], results: Sequence[Instances]) -> list[Instances]:
    """B results with the fields that the mask branch gives them."""
    counts = [len(r) for r in results]
    fields = roi_head.mask_fields(feats, [r.bboxes for r in results], [r.labels for r in results],
                                  torch.cat([r.scores for r in results]))
    parts = zip(*(value.split(counts) for value in fields.values()))
    return [r.replace(**dict(zip(fields, own))) for r, own in zip(results, parts)]


def keypoint_loss(roi_head: nn.Module, feats: Sequence[torch.Tensor], samples: Sequence[SampledRois],
                  gt: Sequence[Instances], sampler: contracts.Sampler | None) -> contracts.Losses:
    """The keypoint head's loss on those positives that hold a labelled keypoint; ``sampler`` drew the samples."""
    head = roi_head.keypoint_head
    targets = head.targets(samples, gt)
    rois = boxes_to_rois([s.pos_boxes for s in samples])[targets.rois]
    logits = head(roi_head.keypoint_features(feats, rois))
    # Positives that a full sample has, where the sampler knows a number.
    positives = getattr(sampler, 'num', 0) * getattr(sampler, 'pos_fraction', 0)
    return head.loss(logits, targets[targets.rois], len(samples) * positives * head.num_keypoints)


def add_keypoints(roi_head: nn.Module, feats: Sequence[torch.Tensor], results: Sequence[Instances]) -> list[Instances]:
    """B results with their ``keypoints`` (N, J, 3), on the device of the features."""
    results = [r.to(feats[0].device, non_blocking=True) for r in results]
    boxes = [r.bboxes for r in results]
    keypoints = roi_head.keypoint_head.predict(roi_head.keypoint_heatmaps(feats, boxes), torch.cat(boxes))
    return [r.replace(keypoints=j) for r, j in zip(results, keypoints.split([len(r) for r in results]))]


def predict_boxes(bbox_head: nn.Module, boxes: Sequence[torch.Tensor], scores: torch.Tensor,
                  deltas: torch.Tensor | None, metas: Sequence[ImageMeta],
                  settings: RoITestSettings) -> list[Instances]:
    """The box head's results for B images from its outputs (R, ...) on their boxes."""
    counts = [len(b) for b in boxes]
    parts = [None] * len(boxes) if deltas is None else deltas.split(counts)
    return [bbox_head.predict(own, score, delta, meta.input_size, settings)
            for own, score, delta, meta in zip(boxes, scores.split(counts), parts, metas)]
