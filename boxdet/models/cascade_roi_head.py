"""Cascade R-CNN's second stage: box heads in a row, each on the boxes of the one before (Cai and Vasconcelos 2018).

Letters: B images, R rois of the batch, N boxes of an image, K classes, C channels, h, w of the features.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

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
from boxdet.models.settings import PerStage, read_section
from boxdet.models.standard_roi_head import (
    add_keypoints,
    add_masks,
    box_losses,
    build_matching,
    draw_samples,
    keypoint_loss,
    mask_loss,
    mask_samples,
    predict_boxes,
    predict_padded,
)
from boxdet.registry import HEADS, ROI_EXTRACTORS, Cfg, Registry
from boxdet.structures.batch import ImageMeta, SampledRois, image_sizes
from boxdet.structures.instances import Instances, OfImages, PaddedInstances, image_rows, joined, of_images, split_like


@HEADS.register_module()
class CascadeRoIHead(nn.Module):
    """Stages of a box head and, if wanted, a mask head each, with matching that asks for a larger overlap in each.

    There is one keypoint head, if any: it learns from the samples of the last stage, and predicts within the results.

    Args:
        num_stages: how many.
        stage_loss_weights: what each stage's losses are multiplied by.
        bbox_roi_extractor: a list of configs, one a stage, or one config for all.
        bbox_head: likewise.
        mask_roi_extractor: likewise; without one the mask heads pool as the box heads do.
        mask_head: likewise; None for boxes only.
        shared_head: not for cascades.
        train_cfg: a list of RoITrainSettings (or what a subclass declares as ``train_settings``) or dicts of them, one
            a stage; None where the head is not trained.
        test_cfg: RoITestSettings (``test_settings``) or a dict of them.
        pretrained: not for cascades: only a shared head would use it.
        init_cfg: initial weights.
        keypoint_roi_extractor: config; without one the keypoint head pools as the last box head does.
        keypoint_head: config; None for no keypoints.

    Raises:
        ConfigError: a list whose length is not ``num_stages``, missing parts, or a shared head.
    """

    train_settings = PerStage(RoITrainSettings)
    test_settings = RoITestSettings
    fixed_size_prediction = True

    def __init__(self, num_stages: int, stage_loss_weights: Sequence[float],
                 bbox_roi_extractor: Cfg | Sequence[Cfg] | None = None, bbox_head: Cfg | Sequence[Cfg] | None = None,
                 mask_roi_extractor: Cfg | Sequence[Cfg] | None = None, mask_head: Cfg | Sequence[Cfg] | None = None,
                 shared_head: None = None, train_cfg: Sequence[RoITrainSettings | Cfg] | None = None,
                 test_cfg: RoITestSettings | Cfg | None = None, pretrained: str | None = None,
                 init_cfg: InitCfg = None, keypoint_roi_extractor: Cfg | contracts.RoIExtractor | None = None,
                 keypoint_head: Cfg | contracts.KeypointHead | None = None):
        super().__init__()
        if bbox_head is None or bbox_roi_extractor is None:
            raise ConfigError('model.roi_head needs bbox_head and bbox_roi_extractor')
        if shared_head is not None or pretrained is not None:
            raise ConfigError('CascadeRoIHead takes no shared_head, and no pretrained= for one')
        self.num_stages = num_stages
        self.stage_loss_weights = _one_a_stage(list(stage_loss_weights), num_stages, 'stage_loss_weights')
        self.train_cfg = read_section(self, 'train_settings', train_cfg, 'train_cfg.rcnn')
        self.test_cfg = read_section(self, 'test_settings', test_cfg, 'test_cfg.rcnn')
        self.bbox_roi_extractor = _build_stages(ROI_EXTRACTORS, bbox_roi_extractor, num_stages,
                                                'bbox_roi_extractor')
        self.bbox_head = _build_stages(HEADS, bbox_head, num_stages, 'bbox_head')
        if mask_head is not None:
            self.mask_head = _build_stages(HEADS, mask_head, num_stages, 'mask_head')
            if mask_roi_extractor is not None:
                self.mask_roi_extractor = _build_stages(ROI_EXTRACTORS, mask_roi_extractor, num_stages,
                                                        'mask_roi_extractor')
        if keypoint_head is not None:
            self.keypoint_head = HEADS.build(keypoint_head)
            if keypoint_roi_extractor is not None:
                self.keypoint_roi_extractor = ROI_EXTRACTORS.build(keypoint_roi_extractor)
        settings: Sequence[RoITrainSettings | None] = [None] * num_stages
        if self.train_cfg is not None:
            settings = _one_a_stage(self.train_cfg, num_stages, 'train_cfg.rcnn')
        self.matching = [build_matching(s) for s in settings]
        self.ranks_by_loss = [ability(sampler, 'ranks_by_loss') for _, sampler in self.matching]
        self.stage_settings = settings
        self.init_cfg = init_cfg

    @property
    def with_bbox(self) -> bool:
        """Always True; as in 2.x."""
        return True

    @property
    def with_mask(self) -> bool:
        """Whether there are mask heads."""
        return hasattr(self, 'mask_head')

    @property
    def with_keypoint(self) -> bool:
        """Whether there is a keypoint head."""
        return hasattr(self, 'keypoint_head')

    @property
    def with_shared_head(self) -> bool:
        """Always False; as in 2.x."""
        return False

    @property
    def shares_extractor(self) -> bool:
        """Whether the mask heads read the box heads' features."""
        return not hasattr(self, 'mask_roi_extractor')

    @property
    def last_bbox_head(self) -> nn.Module:
        """The box head whose deltas make the results."""
        return self.bbox_head[-1]

    def settings_of(self, stage: int) -> RoITrainSettings:
        """What a stage is trained with.

        Raises:
            ConfigError: the head was built without ``train_cfg``.
        """
        settings = self.stage_settings[stage]
        if settings is None:
            raise ConfigError("model.train_cfg needs 'rcnn' for training")
        return settings

    def init_weights(self) -> None:
        """Run ``init_cfg``, its own and its parts'."""
        initialize(self)

    def context(self, feats: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The levels with what a subclass adds to them once for all stages; returned as they are if they have it."""
        return feats

    def box_forward(self, stage: int, feats: Sequence[torch.Tensor],
                    rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores (R, K + 1) and deltas of rois (R, 5) in a stage, and the features (R, C, h, w) behind them."""
        pooled = self.bbox_roi_extractor[stage](feats, rois)
        return *self.bbox_head[stage](pooled), pooled

    def mask_features(self, stage: int, feats: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """What the mask head of a stage reads: (R, C, h, w) for rois (R, 5)."""
        extractors = self.bbox_roi_extractor if self.shares_extractor else self.mask_roi_extractor
        return extractors[stage](feats, rois)

    def keypoint_features(self, feats: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """What the keypoint head reads: (R, C, h, w) for rois (R, 5)."""
        own = hasattr(self, 'keypoint_roi_extractor')
        return (self.keypoint_roi_extractor if own else self.bbox_roi_extractor[-1])(feats, rois)

    # ------------------------------------------------------------------------------------------ training

    def loss(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None, metas: Sequence[ImageMeta]) -> dict[str, torch.Tensor]:
        """Return ``s0.loss_cls``, ``s0.acc``, ``s0.loss_bbox``[, ``s0.loss_mask``] and so on for each stage.

        With a keypoint head, ``loss_keypoint`` too.

        Args: as in ``StandardRoIHead.loss``.
        """
        losses, boxes = {}, [p.bboxes for p in proposals]
        for stage, weight in enumerate(self.stage_loss_weights):
            head, settings = self.bbox_head[stage], self.settings_of(stage)
            forward = partial(self.box_forward, stage)
            rank = partial(box_losses, head, forward, feats) if self.ranks_by_loss[stage] else None
            samples = draw_samples(*self.matching[stage], boxes, gt, ignored, rank)
            scores, deltas, pooled = forward(feats, boxes_to_rois([s.boxes for s in samples]))
            targets = head.targets(samples, settings)
            parts = head.loss(scores, deltas, targets)
            if self.with_mask:
                drawn, index = mask_samples(samples, settings)
                if self.shares_extractor:
                    pooled = pooled[targets.pos_index[index]]
                else:
                    pooled = self.mask_features(stage, feats, boxes_to_rois([s.pos_boxes for s in drawn]))
                parts.update(self.mask_losses(stage, feats, pooled, drawn, gt))
            losses.update({f's{stage}.{name}': value * weight if 'loss' in name else value
                           for name, value in parts.items()})
            if stage + 1 < self.num_stages:
                boxes = next_boxes(head, samples, scores, deltas, targets, metas)
        return {**losses, **self.keypoint_losses(feats, samples, gt)}

    def keypoint_losses(self, feats: Sequence[torch.Tensor], samples: Sequence[SampledRois],
                        gt: Sequence[Instances]) -> contracts.Losses:
        """``loss_keypoint`` of samples of B images; nothing without a keypoint head."""
        return keypoint_loss(self, feats, samples, gt, self.matching[-1][1]) if self.with_keypoint else {}

    def mask_losses(self, stage: int, feats: Sequence[torch.Tensor], pooled: torch.Tensor,
                    samples: Sequence[SampledRois], gt: Sequence[Instances]) -> dict[str, torch.Tensor]:
        """The losses of a stage's mask branch from the pooled features (P, C, h, w) of the positives of B images."""
        return mask_loss(self.mask_head[stage], pooled, samples, gt, self.settings_of(stage))

    # ------------------------------------------------------------------------------------------ results

    def predict(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances],
                metas: Sequence[ImageMeta]) -> list[Instances]:
        """As ``StandardRoIHead.predict``: the last stage's boxes, class logits averaged over the stages."""
        feats = self.context(feats)
        boxes, scores, deltas = self.classify(feats, [p.bboxes for p in proposals], metas)
        results = predict_boxes(self.last_bbox_head, boxes, scores, deltas, metas, self.test_cfg)
        results = add_masks(self, feats, results) if self.with_mask else results
        return self.add_keypoints(feats, results) if self.with_keypoint else results

    def add_keypoints(self, feats: Sequence[torch.Tensor], results: Sequence[Instances]) -> list[Instances]:
        """As ``StandardRoIHead.add_keypoints``."""
        return add_keypoints(self, feats, results)

    def keypoint_heatmaps(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor]) -> torch.Tensor:
        """As ``StandardRoIHead.keypoint_heatmaps``."""
        return self.keypoint_head(self.keypoint_features(feats, boxes_to_rois(boxes)))

    def predict_padded(self, feats: Sequence[torch.Tensor], proposals: PaddedInstances,
                       metas: Sequence[ImageMeta] | torch.Tensor, suppression: Suppression) -> PaddedInstances:
        """As ``StandardRoIHead.predict_padded``."""
        return predict_padded(self, self.context(feats), proposals, metas, suppression)

    def classify(self, feats: Sequence[torch.Tensor], boxes: OfImages,
                 metas: Sequence[ImageMeta] | torch.Tensor,
                 ) -> tuple[OfImages, torch.Tensor, torch.Tensor]:
        """Run the box heads on boxes (N, 4) of B images, a list or one tensor (B, N, 4) of them.

        Returns:
            the boxes that the last stage saw, as ``boxes`` came; class logits (R, K + 1) averaged over the stages; the
            last stage's deltas.
        """
        total: torch.Tensor = 0  # type: ignore[assignment]  # the sum starts at the number 0
        sizes = image_sizes(metas)
        for stage, head in enumerate(self.bbox_head):
            scores, deltas, _ = self.box_forward(stage, feats, boxes_to_rois(boxes))
            total = total + at_least_float32(scores)
            if stage + 1 < self.num_stages:
                labels = best_class(head, scores)
                rows = image_rows(sizes, boxes, split_like(labels, boxes), split_like(deltas, boxes))
                boxes = of_images([head.refine(*own) for own in rows], sizes, boxes)
        return boxes, total / self.num_stages, deltas

    def mask_fields(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                    labels: Sequence[torch.Tensor] | torch.Tensor, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """As ``StandardRoIHead.mask_fields``."""
        return dict(mask_probs=self.mask_probs(feats, boxes, labels))

    def mask_probs(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor] | torch.Tensor,
                   labels: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """As ``StandardRoIHead.mask_probs``, averaged over the stages."""
        rois, labels = boxes_to_rois(boxes), joined(labels)
        return sum(head.predict(self.mask_features(stage, feats, rois), labels)
                   for stage, head in enumerate(self.mask_head)) / self.num_stages


def best_class(head: nn.Module, scores: torch.Tensor) -> torch.Tensor:
    """The class (R,) in [0, K) that scores (R, K + 1) of a box head are highest for."""
    # The largest score is of the largest probability, which may have underflown: only other activations are applied.
    custom = ability(getattr(head, 'loss_cls', None), 'custom_activation')
    return (head.probabilities(scores) if custom else scores)[:, :-1].argmax(dim=1)


@torch.no_grad()
def next_boxes(head: nn.Module, samples: Sequence[SampledRois], scores: torch.Tensor, deltas: torch.Tensor,
                targets: BoxTargets, metas: Sequence[ImageMeta]) -> list[torch.Tensor]:
    """The proposals of the next stage (N, 4) of B images: what this one made of its samples.

    Those that were ground truth are left out.

    Args:
        head: the stage's box head.
        samples: B images' rois, R in all.
        scores: (R, K + 1).
        deltas: (R, 4 or K * 4).
        targets: of the samples.
        metas: B images.
    """
    # A negative has no class: it moves by the deltas of its most probable one.
    labels = torch.where(targets.labels == head.num_classes, best_class(head, scores), targets.labels)
    counts = [len(s.pos_boxes) + len(s.neg_boxes) for s in samples]
    boxes = []
    for drawn, label, delta, meta in zip(samples, labels.split(counts), deltas.split(counts), metas):
        moved = head.refine(drawn.boxes, label, delta, meta.input_size)
        # Positives come first; those that were ground truth are dropped, all negatives stay.
        dropped = drawn.pos_is_gt.new_zeros(len(moved))
        dropped[:len(drawn.pos_is_gt)] = drawn.pos_is_gt
        boxes.append(moved[~dropped])
    return boxes


def _one_a_stage(values: object, num_stages: int, name: str) -> list:
    if not isinstance(values, (list, tuple)) or len(values) != num_stages:
        count = len(values) if isinstance(values, (list, tuple)) else 'one'
        raise ConfigError(f'{name} must be a list of {num_stages}, one a stage, not of {count}')
    return list(values)


def _build_stages(registry: Registry, cfg: Cfg | Sequence[Cfg], num_stages: int, name: str) -> nn.ModuleList:
    stages = _one_a_stage(cfg, num_stages, name) if isinstance(cfg, (list, tuple)) else [cfg] * num_stages
    return nn.ModuleList(registry.build(stage) for stage in stages)
