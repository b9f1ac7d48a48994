"""What a detector asks of its parts: one Protocol a part.

A part of one's own needs no base class of boxdet's: it is registered, and has what its Protocol has. Every part but
coders, assigners, samplers and anchor generators is a ``torch.nn.Module``, whose ``forward`` is here ``__call__``; one
with an ``init_weights()`` has it called before training. What a part may offer beyond this is declared as an attribute
(``boxdet.abilities``), and so are the settings that it reads (``train_settings`` and ``test_settings``, see
``models.settings``).

Letters: B images, H, W height and width of the batch, L levels, C channels, N boxes of an image, M its ignored boxes,
G its ground-truth boxes, R rois of the batch (all images' boxes, images in order), P positive rois, K classes (label K
is the background), J keypoints, h, w height and width of what a head reads or gives.

Boxes are (x0, y0, x1, y1), continuous, in pixels of the network's input. A roi is (image of the batch, x0, y0, x1, y1).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from boxdet.matching.assigner import AssignResult
from boxdet.structures.batch import ImageMeta, SampledRois
from boxdet.structures.instances import Instances

Losses = Mapping[str, 'torch.Tensor | list[torch.Tensor]']  # what has 'loss' in its name is summed; the rest is logged


@runtime_checkable
class Backbone(Protocol):
    """From images to features."""

    def __call__(self, images: torch.Tensor, /) -> Sequence[torch.Tensor]:
        """Map images (B, 3, H, W) to levels (B, C, h, w), the finest first."""


@runtime_checkable
class Neck(Protocol):
    """From the backbone's levels to those that the heads read; a detector may do without.

    May declare ``frees_levels``.
    """

    def __call__(self, levels: Sequence[torch.Tensor], /) -> Sequence[torch.Tensor]:
        """Map levels (B, C, h, w) to L levels (B, C, h, w), the finest first."""


@runtime_checkable
class RPNHead(Protocol):
    """Proposals from features, ``model.rpn_head``.

    What ``__call__`` returns is its own affair: the detector unpacks it in front of the other arguments of ``loss`` and
    ``predict``. Reads ``train_cfg.rpn``; ``train_cfg.rpn_proposal`` and ``test_cfg.rpn`` come as ``settings``.

    May declare ``fixed_size_prediction``.
    """

    def __call__(self, feats: Sequence[torch.Tensor], /) -> tuple[Any, ...]:
        """Map L levels (B, C, h, w) to outputs, such as objectness (B, A, h, w) and deltas (B, A * 4, h, w) of each."""

    def loss(self, cls_scores: Any, bbox_preds: Any, gt: Sequence[Instances], ignored: Sequence[torch.Tensor] | None,
             metas: Sequence[ImageMeta], batch_hw: tuple[int, int]) -> Losses:
        """Return the losses by name.

        Args:
            cls_scores: the first of the outputs.
            bbox_preds: the second.
            gt: B objects: bboxes (G, 4), labels (G,).
            ignored: B boxes (M, 4) to leave out, or None.
            metas: B images.
            batch_hw: (H, W) of the padded batch.
        """

    def predict(self, cls_scores: Any, bbox_preds: Any, metas: Sequence[ImageMeta], settings: Any) -> list[Instances]:
        """Return B Instances(bboxes (N, 4), scores (N,)), best first.

        Args:
            cls_scores: the first of the outputs.
            bbox_preds: the second.
            metas: B images.
            settings: what the class declares as ``test_settings``.
        """


@runtime_checkable
class RoIHead(Protocol):
    """The second stage, ``model.roi_head``. Reads ``train_cfg.rcnn`` and ``test_cfg.rcnn``.

    May declare ``fixed_size_prediction``, ``with_keypoint`` (it then has a ``keypoint_head``, ``keypoint_heatmaps`` and
    ``add_keypoints`` as ``StandardRoIHead``) and ``wants_semantic_seg`` (``loss`` then takes ``semantic_seg=`` too).
    ``last_bbox_head``, ``classify`` and ``mask_probs`` are for test-time augmentation, which merges what several views
    give.

    Attributes:
        with_bbox: whether it predicts boxes.
        with_mask: whether it predicts masks.
        last_bbox_head: the box head whose deltas make the results.
    """
    with_bbox: bool
    with_mask: bool
    last_bbox_head: BoxHead

    def loss(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances], gt: Sequence[Instances],
             ignored: Sequence[torch.Tensor] | None, metas: Sequence[ImageMeta]) -> Losses:
        """Return the losses by name.

        Args:
            feats: L levels (B, C, h, w).
            proposals: B Instances(bboxes (N, 4), scores (N,)).
            gt: B objects: bboxes (G, 4), labels (G,)[, masks, keypoints (G, J, 3)].
            ignored: B boxes (M, 4); proposals on them are left out. None for none.
            metas: B images.
        """

    def predict(self, feats: Sequence[torch.Tensor], proposals: Sequence[Instances],
                metas: Sequence[ImageMeta]) -> list[Instances]:
        """Return B Instances(bboxes (N, 4), scores (N,), labels (N,)), best first.

        With masks they hold ``mask_probs`` (N, h, w) too, probabilities within each box; with keypoints ``keypoints``
        (N, J, 3): x, y, score.
        """

    def classify(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor],
                 metas: Sequence[ImageMeta]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
        """Look at boxes (N, 4) of B images.

        Returns:
            the boxes that the deltas refer to, B of (N, 4); class logits (R, K + 1); deltas (R, 4 or K * 4) or None.
        """

    def mask_probs(self, feats: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor],
                   labels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mask probabilities (R, h, w) within boxes (N, 4) of labels (N,) of B images."""


@runtime_checkable
class RoIExtractor(Protocol):
    """Features of rois.

    Attributes:
        num_inputs: how many levels it reads.
        out_channels: C of the result.
    """
    num_inputs: int
    out_channels: int

    def __call__(self, feats: Sequence[torch.Tensor], rois: torch.Tensor, /) -> torch.Tensor:
        """Pool L levels (B, C, ., .) over rois (R, 5) to (R, C, h, w)."""


@runtime_checkable
class BoxHead(Protocol):
    """Class scores and box deltas of rois, ``roi_head.bbox_head``.

    May declare ``fixed_size_prediction``, with a ``predict_padded`` as that of ``BBoxHead``: it takes a
    ``geometry.nms.Suppression``, and ``predict`` is the same with the exact one.

    Attributes:
        num_classes: K.
    """
    num_classes: int

    def __call__(self, x: torch.Tensor, /) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Map roi features (R, C, h, w) to class logits (R, K + 1) and deltas (R, 4 or K * 4)."""

    def targets(self, samples: Sequence[SampledRois], settings: Any) -> Any:
        """What the samples of B images should have predicted, for ``loss``.

        Args:
            samples: B images' rois, drawn by the sampler.
            settings: the RoI head's ``train_cfg``, of its stage in a cascade.

        Returns:
            an object with ``labels`` (R,) in [0, K] and ``pos_index`` (P,), the places of the positives among the R.
        """

    def loss(self, cls_score: torch.Tensor | None, bbox_pred: torch.Tensor | None, targets: Any) -> Losses:
        """Return the losses by name, scalars."""

    def predict(self, boxes: torch.Tensor, cls_score: torch.Tensor, bbox_pred: torch.Tensor | None,
                image_hw: tuple[int, int], settings: Any) -> Instances:
        """Results of one image, best first: Instances(bboxes, scores, labels).

        Args:
            boxes: (N, 4) its proposals.
            cls_score: (N, K + 1).
            bbox_pred: (N, 4 or K * 4) or None.
            image_hw: height and width of the image, to which boxes are clipped.
            settings: the RoI head's ``test_cfg``.
        """

    def probabilities(self, cls_score: torch.Tensor) -> torch.Tensor:
        """Class probabilities (R, K + 1) from scores (R, K + 1)."""

    def decode(self, boxes: torch.Tensor, bbox_pred: torch.Tensor | None, image_hw: tuple[int, int]) -> torch.Tensor:
        """Boxes (N, 4 or K * 4): boxes (N, 4) moved by deltas (N, 4 or K * 4) and clipped to the image."""

    def refine(self, boxes: torch.Tensor, labels: torch.Tensor, bbox_pred: torch.Tensor,
               image_hw: tuple[int, int]) -> torch.Tensor:
        """Boxes (N, 4) moved by the deltas for labels (N,) in [0, K): the proposals of a cascade's next stage."""


@runtime_checkable
class MaskHead(Protocol):
    """Masks of rois, ``roi_head.mask_head``. May declare ``res_layer``."""

    def forward_labels(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Map roi features (R, C, ., .) to the mask logits (R, h, w) of each roi's label (R,)."""

    def targets(self, samples: Sequence[SampledRois], gt: Sequence[Instances], settings: Any) -> torch.Tensor:
        """The masks (P, h, w) in {0, 1} that the positives of B images should have predicted.

        Args:
            samples: B images' rois, drawn by the sampler.
            gt: B objects with ``masks``.
            settings: the RoI head's ``train_cfg``, of its stage in a cascade.
        """

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> Losses:
        """Return the losses of logits (P, h, w) by name."""

    def predict(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Map roi features (R, C, ., .) to the mask probabilities (R, h, w) of labels (R,)."""


@runtime_checkable
class KeypointHead(Protocol):
    """Keypoints of rois, ``roi_head.keypoint_head``.

    May declare ``flip_pairs``, ``skeleton`` and ``fixed_size_prediction``, with a ``predict_padded`` as that of
    ``KeypointRCNNHead``.

    Attributes:
        num_keypoints: J.
    """
    num_keypoints: int

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        """Map roi features (R, C, ., .) to heatmap logits (R, J, h, w)."""

    def targets(self, samples: Sequence[SampledRois], gt: Sequence[Instances]) -> Any:
        """What the positives of B images should have predicted, for ``loss``.

        Args:
            samples: B images' rois, drawn by the sampler.
            gt: B objects with ``keypoints`` (G, J, 3): x, y, visibility.

        Returns:
            an object with ``rois`` (P,) bool, the positives that there is something to learn from; indexed with it, it
            gives what those should have predicted.
        """

    def loss(self, logits: torch.Tensor, targets: Any, full_sample: float) -> Losses:
        """Return the losses of logits (P, J, h, w) by name.

        Args:
            logits: of the positives with something to learn from.
            targets: theirs.
            full_sample: keypoints of a batch with all the positives it may have; 0 where the sampler knows none.
        """

    def predict(self, heatmaps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Keypoints (R, J, 3), as x, y and score, from heatmap logits (R, J, h, w) in boxes (R, 4)."""


@runtime_checkable
class BoxCoder(Protocol):
    """Boxes as deltas from other boxes, ``bbox_coder``."""

    def encode(self, bboxes: torch.Tensor, gt_bboxes: torch.Tensor) -> torch.Tensor:
        """Return the deltas (N, 4) that move boxes (N, 4) to others (N, 4)."""

    def decode(self, bboxes: torch.Tensor, pred_bboxes: torch.Tensor,
               max_shape: Sequence[int] | None = None) -> torch.Tensor:
        """Return boxes (N, 4) moved by deltas (N, 4 or K * 4), clipped to ``max_shape`` (height, width) if given."""


@runtime_checkable
class AnchorGenerator(Protocol):
    """The boxes that an RPN starts from, ``anchor_generator``.

    Attributes:
        num_base_priors: anchors a cell, one number a level.
    """
    num_base_priors: list[int]

    def grid_priors(self, featmap_sizes: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32,
                    device: torch.device | str = 'cpu') -> list[torch.Tensor]:
        """Return the anchors (h * w * A, 4) of levels of these sizes (h, w)."""

    def valid_flags(self, featmap_sizes: Sequence[tuple[int, int]], pad_shape: Sequence[int],
                    device: torch.device | str = 'cpu') -> list[torch.Tensor]:
        """Return which anchors lie on an image padded to ``pad_shape``: (h * w * A,) bool a level."""


@runtime_checkable
class Assigner(Protocol):
    """Which ground truth a box is matched to, ``assigner``."""

    def assign(self, bboxes: torch.Tensor, gt_bboxes: torch.Tensor, gt_bboxes_ignore: torch.Tensor | None = None,
               gt_labels: torch.Tensor | None = None) -> AssignResult:
        """Match boxes (N, 4) of an image.

        Args:
            bboxes: (N, 4).
            gt_bboxes: (G, 4).
            gt_bboxes_ignore: (M, 4) boxes on which the N are neither right nor wrong.
            gt_labels: (G,); None for an RPN.
        """


@runtime_checkable
class Sampler(Protocol):
    """Which of the matched boxes enter the loss, ``sampler``. May declare ``ranks_by_loss``."""

    def sample(self, assign_result: AssignResult, bboxes: torch.Tensor, gt_bboxes: torch.Tensor,
               gt_labels: torch.Tensor | None = None) -> SampledRois:
        """Draw from the boxes of an image.

        Args:
            assign_result: what they are matched to.
            bboxes: (N, 4).
            gt_bboxes: (G, 4).
            gt_labels: (G,); None for an RPN.
        """


Pool = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]  # from levels and rois (R, 5) to (R, C, h, w)
