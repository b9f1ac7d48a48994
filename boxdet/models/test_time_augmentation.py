"""Several views of the same images, scaled and flipped, seen together: proposals, boxes, masks and keypoints merged.

The views of an image vote in the original image's pixels: proposals are joined and suppressed; each merged
proposal is seen in every view, and its boxes, class probabilities, masks and heatmaps are averaged.

Letters: V views, B images of a view, N boxes of an image, K classes, h, w height and width of a mask-head
output. ``metas[v][i]`` is image i in view v.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from boxdet.abilities import ability
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.nms import batched_nms, multiclass_nms
from boxdet.models.bbox_head import RoITestSettings
from boxdet.models.rpn_head import ProposalSettings
from boxdet.structures.batch import ImageMeta, boxes_to_input, boxes_to_original, flip_heatmaps, flip_masks
from boxdet.structures.instances import Instances


def merge_proposals(proposals: Sequence[Sequence[Instances]], metas: Sequence[Sequence[ImageMeta]],
                    settings: ProposalSettings) -> list[Instances]:
    """Join each image's proposals from V views and suppress what overlaps.

    Returns:
        B Instances(bboxes, scores) in original pixels, best first.
    """
    merged = []
    for own, own_metas in zip(zip(*proposals), zip(*metas)):
        boxes = torch.cat([boxes_to_original(p.bboxes, m) for p, m in zip(own, own_metas)])
        scores = torch.cat([p.scores for p in own])
        dets, _ = batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.long), settings.nms)
        if settings.max_per_img > 0:
            dets = dets[:settings.max_per_img]
        merged.append(Instances(own_metas[0].original_size, bboxes=dets[:, :4], scores=dets[:, 4]))
    return merged


def merge_boxes(roi_head: nn.Module, feats: Sequence[Sequence[torch.Tensor]], proposals: Sequence[Instances],
                metas: Sequence[Sequence[ImageMeta]], settings: RoITestSettings) -> list[Instances]:
    """Average what V views make of the same proposals.

    Args:
        roi_head: classifies the boxes of each view.
        feats: the levels of each view.
        proposals: B, in original pixels.
        metas: B images of each view.
        settings: which results.

    Returns:
        B Instances(bboxes, scores, labels) in original pixels, best first.
    """
    head, counts = roi_head.last_bbox_head, [len(p) for p in proposals]
    boxes: torch.Tensor = 0  # type: ignore[assignment]  # the sum starts at the number 0
    scores: torch.Tensor = 0  # type: ignore[assignment]  # the sum starts at the number 0
    for levels, own in zip(feats, metas):
        rois, logits, deltas = roi_head.classify(
            levels, [boxes_to_input(p.bboxes, meta) for p, meta in zip(proposals, own)], own)
        parts = [None] * len(own) if deltas is None else deltas.split(counts)
        decoded = [boxes_to_original(head.decode(r, d, meta.input_size), meta)
                   for r, d, meta in zip(rois, parts, own)]
        boxes = boxes + torch.cat(decoded)                                              # (R, 4 or K * 4)
        scores = scores + head.probabilities(logits)                                              # (R, K + 1)
    results = []
    for own_boxes, own_scores, meta in zip((boxes / len(feats)).split(counts),
                                           (scores / len(feats)).split(counts), metas[0]):
        dets, labels = multiclass_nms(own_boxes, own_scores, settings.score_thr, settings.nms,
                                      settings.max_per_img)
        results.append(Instances(meta.original_size, head.num_classes, bboxes=dets[:, :4], scores=dets[:, 4],
                                 labels=labels))
    return results


def merge_masks(roi_head: nn.Module, feats: Sequence[Sequence[torch.Tensor]], results: Sequence[Instances],
                metas: Sequence[Sequence[ImageMeta]]) -> list[Instances]:
    """Add ``mask_probs`` (N, h, w), averaged over V views, to results in original pixels."""
    total: torch.Tensor = 0  # type: ignore[assignment]  # the sum starts at the number 0
    counts, labels = [len(r) for r in results], [r.labels for r in results]
    for levels, own in zip(feats, metas):
        boxes = [boxes_to_input(r.bboxes, meta) for r, meta in zip(results, own)]
        probs = roi_head.mask_probs(levels, boxes, labels)
        total = total + torch.cat([flip_masks(p, meta) for p, meta in zip(probs.split(counts), own)])
    return [r.replace(mask_probs=p) for r, p in zip(results, (total / len(feats)).split(counts))]


def merge_keypoints(roi_head: nn.Module, feats: Sequence[Sequence[torch.Tensor]], results: Sequence[Instances],
                    metas: Sequence[Sequence[ImageMeta]]) -> list[Instances]:
    """Add ``keypoints`` (N, J, 3) to results in original pixels, from heatmap logits averaged over V views."""
    head, counts = roi_head.keypoint_head, [len(r) for r in results]
    total: torch.Tensor = 0  # type: ignore[assignment]  # the sum starts at the number 0
    for levels, own in zip(feats, metas):
        boxes = [boxes_to_input(r.bboxes, meta) for r, meta in zip(results, own)]
        heatmaps = at_least_float32(roi_head.keypoint_heatmaps(levels, boxes))                 # (R, J, H, W)
        total = total + torch.cat([flip_heatmaps(h, meta, ability(head, 'flip_pairs'))
                                   for h, meta in zip(heatmaps.split(counts), own)])
    keypoints = head.predict(total / len(feats), torch.cat([r.bboxes for r in results]))
    return [r.replace(keypoints=j) for r, j in zip(results, keypoints.split(counts))]
