"""Between the two frames: pixels of the network's input, and pixels of the original image.

The models work in the first; users see the second. This is the one place that knows scale factors and flips.
Letters: N boxes of an image, K classes, J keypoints, h, w height and width of a mask-head output, H, W of a heatmap.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import flip_boxes
from boxdet.geometry.keypoints import flip_heatmaps as flip_keypoint_maps
from boxdet.geometry.keypoints import flip_keypoints
from boxdet.structures.batch import ImageMeta
from boxdet.structures.instances import Instances

FlipPairs = Sequence[tuple[int, int]] | None  # keypoints that a mirror swaps; None where nobody said
_FLIPPED_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


def boxes_to_original(boxes: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
    """Boxes (N, 4) or (N, 4K) from network-input to original pixels, an unflipped image."""
    if meta.flip:
        boxes = flip_boxes(boxes, meta.img_shape, meta.flip_direction or 'horizontal')
    return (boxes.reshape(len(boxes), boxes.shape[1] // 4, 4) / _scale(boxes, meta)).reshape(boxes.shape)


def boxes_to_input(boxes: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
    """Boxes (N, 4) from original to network-input pixels: the inverse of ``boxes_to_original``."""
    boxes = boxes * _scale(boxes, meta)
    return flip_boxes(boxes, meta.img_shape, meta.flip_direction or 'horizontal') if meta.flip else boxes


def flip_masks(probs: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
    """Masks (N, h, w) within boxes, turned as ``meta`` says their image was; twice gives them back."""
    return probs.flip(_FLIPPED_AXES[meta.flip_direction or 'horizontal']) if meta.flip else probs


def flip_heatmaps(heatmaps: torch.Tensor, meta: ImageMeta, pairs: FlipPairs) -> torch.Tensor:
    """Heatmaps (N, J, H, W) within boxes, turned as ``meta`` says their image was; twice gives them back."""
    return flip_keypoint_maps(heatmaps, _known(pairs), meta.flip_direction or 'horizontal') if meta.flip else heatmaps


def keypoints_to_original(keypoints: torch.Tensor, meta: ImageMeta, pairs: FlipPairs) -> torch.Tensor:
    """Keypoints (N, J, 3) from network-input to original pixels, an unflipped image."""
    if meta.flip:
        keypoints = flip_keypoints(keypoints, meta.img_shape, _known(pairs), meta.flip_direction or 'horizontal')
    return torch.cat([keypoints[..., :2] / _scale(keypoints, meta)[:2], keypoints[..., 2:]], dim=-1)


def keypoints_to_input(keypoints: torch.Tensor, meta: ImageMeta, pairs: FlipPairs) -> torch.Tensor:
    """Keypoints (N, J, 3) from original to network-input pixels: the inverse of ``keypoints_to_original``."""
    keypoints = torch.cat([keypoints[..., :2] * _scale(keypoints, meta)[:2], keypoints[..., 2:]], dim=-1)
    if not meta.flip:
        return keypoints
    return flip_keypoints(keypoints, meta.img_shape, _known(pairs), meta.flip_direction or 'horizontal')


def _known(pairs: FlipPairs) -> Sequence[tuple[int, int]]:
    if pairs is None:
        raise ConfigError('a flipped view of a keypoint model: model.roi_head.keypoint_head.flip_pairs has to say '
                          'which keypoints a mirror swaps ([] for none)')
    return pairs


def to_original(result: Instances, meta: ImageMeta, pairs: FlipPairs = None) -> Instances:
    """Bring ``bboxes``, ``mask_probs`` and ``keypoints`` of a result to the original image."""
    keypoints = dict(keypoints=keypoints_to_original(result.keypoints, meta, pairs)) if 'keypoints' in result else {}
    return _moved(result.replace(**keypoints), boxes_to_original(result.bboxes, meta), meta, meta.original_size)


def to_input(result: Instances, meta: ImageMeta, pairs: FlipPairs = None) -> Instances:
    """Bring ``bboxes``, ``mask_probs`` and ``keypoints`` of a result to the network's input."""
    keypoints = dict(keypoints=keypoints_to_input(result.keypoints, meta, pairs)) if 'keypoints' in result else {}
    return _moved(result.replace(**keypoints), boxes_to_input(result.bboxes, meta), meta, tuple(meta.img_shape[:2]))


def _moved(result: Instances, boxes: torch.Tensor, meta: ImageMeta, image_size: tuple[int, int]) -> Instances:
    masks = dict(mask_probs=flip_masks(result.mask_probs, meta)) if 'mask_probs' in result else {}
    result = result.replace(bboxes=boxes, **masks)
    result.image_size = image_size
    return result


def _scale(boxes: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
    return torch.from_numpy(np.array(meta.scale_factor, dtype=np.float32)).to(boxes)
