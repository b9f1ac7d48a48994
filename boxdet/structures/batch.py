"""What the loader hands to a detector, and what the sampler hands to the RoI heads.

And the way between two frames: models work in pixels of the network's input, users see those of the original image.
This is the one place that knows scale factors and flips.

Letters: B images, N boxes of an image, M ignored boxes, P positive and Q negative samples of an image, K classes, J
keypoints, h, w height and width of a semantic map or a mask-head output, H, W of a heatmap.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from typing import Any, overload

import numpy as np
import torch

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import flip_boxes
from boxdet.geometry.keypoints import flip_heatmaps as flip_keypoint_maps
from boxdet.geometry.keypoints import flip_keypoints
from boxdet.structures.instances import Instances

FlipPairs = Sequence[tuple[int, int]] | None  # keypoints that a mirror swaps; None where it is not known
_FLIPPED_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@dataclass(frozen=True)
class ImageMeta:
    """Where an image came from and what was done to it; the entries of 2.x's ``img_metas`` dict.

    Shapes are (height, width, channels) as in 2.x. ``scale_factor`` (4,) float32 is what x, y, x, y of the original
    were multiplied by. ``extra`` holds what a user's pipeline collected beyond these.
    """
    filename: str | None = None
    ori_filename: str | None = None
    ori_shape: tuple[int, ...] | None = None
    img_shape: tuple[int, ...] | None = None
    pad_shape: tuple[int, ...] | None = None
    scale_factor: np.ndarray = field(default_factory=lambda: np.ones(4, dtype=np.float32))
    flip: bool = False
    flip_direction: str | None = None
    img_norm_cfg: Mapping[str, Any] | None = None
    image_id: int | str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, meta: Mapping[str, Any]) -> ImageMeta:
        """Read 2.x's ``img_metas`` dict; keys that are no field go to ``extra``."""
        known = {f.name for f in dataclass_fields(cls)} - {'extra'}
        values = {k: v for k, v in meta.items() if k in known}
        if 'scale_factor' in values:
            values['scale_factor'] = np.broadcast_to(np.asarray(values['scale_factor'], dtype=np.float32), (4,))
        return cls(**values, extra={k: v for k, v in meta.items() if k not in known})

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image as it was loaded."""
        height, width = self._shape('ori_shape')[:2]
        return int(height), int(width)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the image as the network sees it, without padding."""
        height, width = self._shape('img_shape')[:2]
        return height, width

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of the image with the padding of the pipeline."""
        height, width = self._shape('pad_shape')[:2]
        return height, width

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = getattr(self, name)
        if shape is None:
            raise ConfigError(f"image {self.filename}: its meta has no '{name}': Collect's meta_keys leave it out")
        return shape


@dataclass
class Batch:
    """Images of one padded size with what is known of them.

    Args:
        images: (B, 3, H, W) float32 as the network sees them, or uint8 with the channels in the network's order: then
            ``to`` normalises them by their ``img_norm_cfg`` on the device, a quarter of the bytes having travelled.
        metas: B.
        gt: B Instances(bboxes (N, 4), labels (N,)[, masks, keypoints]) in network-input pixels, or None in testing.
        ignored: B tensors (M, 4): crowd regions and boxes to be ignored; None when ``gt`` is.
        proposals: B Instances(bboxes, scores) computed beforehand, for Fast R-CNN.
        semantic_seg: (B, 1, h, w) class of each pixel (``gt_semantic_seg``), 255 where it is not known and in the
            padding (or what ``DefaultFormatBundle.pad_val`` says); h, w are the images' by SegRescale's factor.
    """
    images: torch.Tensor
    metas: list[ImageMeta]
    gt: list[Instances] | None = None
    ignored: list[torch.Tensor] | None = None
    proposals: list[Instances] | None = None
    semantic_seg: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.metas)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """Move to ``device`` and make the images what the network sees: normalised float32, padding zero.

        Args:
            device: where to.
            non_blocking: copy beside the computation; to the CPU it always waits, as what comes there is read at once.
        """
        non_blocking = non_blocking and torch.device(device).type != 'cpu'
        images = self.images.to(device, non_blocking=non_blocking)
        if images.dtype == torch.uint8:
            images = normalize_images(images, self.metas)
        return replace(
            self, images=images,
            gt=None if self.gt is None else [g.to(device, non_blocking) for g in self.gt],
            ignored=None if self.ignored is None else [b.to(device, non_blocking=non_blocking) for b in self.ignored],
            proposals=None if self.proposals is None else [p.to(device, non_blocking) for p in self.proposals],
            semantic_seg=None if self.semantic_seg is None else self.semantic_seg.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Page-lock images and semantic maps, so that their copy to a GPU runs beside the computation."""
        return replace(self, images=self.images.pin_memory(),
                       semantic_seg=None if self.semantic_seg is None else self.semantic_seg.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the tensors until ``stream``, which was handed them, is done with them."""
        parts = [*(self.gt or ()), *(self.proposals or ())]
        fields = [value for part in parts for value in part.fields.values() if isinstance(value, torch.Tensor)]
        maps = () if self.semantic_seg is None else (self.semantic_seg, )
        for tensor in (self.images, *maps, *(self.ignored or ()), *fields):
            tensor.record_stream(stream)


def normalize_images(images: torch.Tensor, metas: Sequence[ImageMeta]) -> torch.Tensor:
    """Normalise uint8 images (B, 3, H, W) each by its ``img_norm_cfg`` (mean, std); padding becomes 0.

    The channels are in the network's order already (``datasets.collate`` turns BGR into RGB where ``to_rgb`` says so).
    The same numbers as the pipeline's ``Normalize`` followed by ``Pad``. The result lies in memory channels last.
    """
    pixels = images.permute(0, 2, 3, 1).to(torch.float32, memory_format=torch.contiguous_format)  # (B, H, W, 3)
    norms = [_norm_of(meta) for meta in metas]
    first = norms[0]
    if all(norm is first or _same_norm(norm, first) for norm in norms):
        normalize_pixels_(pixels, first['mean'], first['std'])
    else:
        for image, norm in zip(pixels, norms):
            normalize_pixels_(image, norm['mean'], norm['std'])
    for image, meta in zip(pixels, metas):
        height, width = meta.input_size
        image[height:] = 0
        image[:height, width:] = 0
    return pixels.permute(0, 3, 1, 2)


def _norm_of(meta: ImageMeta) -> Mapping[str, Any]:
    if meta.img_norm_cfg is None:
        raise ConfigError(f'image {meta.filename}: uint8 images need an img_norm_cfg, which says how to normalise them')
    return meta.img_norm_cfg


def _same_norm(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return np.array_equal(one['mean'], other['mean']) and np.array_equal(one['std'], other['std'])


def normalize_pixels_(pixels: torch.Tensor, mean: Sequence[float] | np.ndarray,
                      std: Sequence[float] | np.ndarray) -> torch.Tensor:
    """``(pixels - mean) * (1 / std)`` in place, each step rounded to float32.

    Args:
        pixels: (..., H, W, C) float32, each row of which is one stretch of memory.
        mean: (C,) numbers.
        std: (C,) numbers.
    """
    *_, width, channels = pixels.shape
    # Whole rows at once: a broadcast over three channels alone is several times slower.
    rows = pixels.view(*pixels.shape[:-2], width * channels)
    scale = (1.0 / np.asarray(std, dtype=np.float64)).astype(np.float32)
    tiled = (np.tile(np.asarray(v, dtype=np.float32), width) for v in (mean, scale))
    shift, factor = (torch.from_numpy(v).to(pixels.device, non_blocking=True) for v in tiled)
    rows.sub_(shift).mul_(factor)
    return pixels


@dataclass
class SampledRois:
    """The candidates of one image that take part in the loss.

    Args:
        pos_boxes: (P, 4) positive candidates.
        neg_boxes: (Q, 4) negative ones.
        pos_inds: (P,) places of the positives among the candidates given to the sampler.
        neg_inds: (Q,) places of the negatives.
        pos_gt_index: (P,) the ground truth that each positive is matched to; pos_gt_boxes (P, 4) and pos_gt_labels
            (P,) are its box and label.
        pos_is_gt: (P,) bool, whether the positive is a ground-truth box added as a proposal.
        neg_weights: (Q,) how much each negative counts in the loss of the classification; None: all alike.
    """
    pos_boxes: torch.Tensor
    neg_boxes: torch.Tensor
    pos_inds: torch.Tensor
    neg_inds: torch.Tensor
    pos_gt_index: torch.Tensor
    pos_gt_boxes: torch.Tensor
    pos_gt_labels: torch.Tensor
    pos_is_gt: torch.Tensor
    neg_weights: torch.Tensor | None = None

    @property
    def boxes(self) -> torch.Tensor:
        """(P + Q, 4): the positives, then the negatives."""
        return torch.cat([self.pos_boxes, self.neg_boxes])

    def with_positives(self, index: torch.Tensor) -> SampledRois:
        """With the positives at ``index`` (p,) alone."""
        names = ('pos_boxes', 'pos_inds', 'pos_gt_index', 'pos_gt_boxes', 'pos_gt_labels', 'pos_is_gt')
        return replace(self, **{name: getattr(self, name)[index] for name in names})


@overload
def image_sizes(metas: torch.Tensor) -> torch.Tensor: ...


@overload
def image_sizes(metas: Sequence[ImageMeta]) -> list[tuple[int, int]]: ...


def image_sizes(metas: Sequence[ImageMeta] | torch.Tensor) -> list[tuple[int, int]] | torch.Tensor:
    """(height, width) of B images, from their metas.

    A tensor (B, 2) of them stays one: where a graph is made of a model, the number of images need not be known.
    """
    return metas if isinstance(metas, torch.Tensor) else [meta.input_size for meta in metas]


# ---------------------------------------------------------------------------------------------- two frames


def boxes_to_original(boxes: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
    """Boxes (N, 4) or (N, 4K) from network-input to original pixels, an unflipped image."""
    if meta.flip:
        boxes = flip_boxes(boxes, meta.input_size, meta.flip_direction or 'horizontal')
    return (boxes.reshape(len(boxes), boxes.shape[1] // 4, 4) / _scale(boxes, meta)).reshape(boxes.shape)


def boxes_to_input(boxes: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
    """Boxes (N, 4) from original to network-input pixels: the inverse of ``boxes_to_original``."""
    boxes = boxes * _scale(boxes, meta)
    return flip_boxes(boxes, meta.input_size, meta.flip_direction or 'horizontal') if meta.flip else boxes


def flip_masks(probs: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
    """Masks (N, h, w) within boxes, turned as ``meta`` says their image was; twice gives them back."""
    return probs.flip(_FLIPPED_AXES[meta.flip_direction or 'horizontal']) if meta.flip else probs


def flip_heatmaps(heatmaps: torch.Tensor, meta: ImageMeta, pairs: FlipPairs) -> torch.Tensor:
    """Heatmaps (N, J, H, W) within boxes, turned as ``meta`` says their image was; twice gives them back."""
    return flip_keypoint_maps(heatmaps, _known(pairs), meta.flip_direction or 'horizontal') if meta.flip else heatmaps


def keypoints_to_original(keypoints: torch.Tensor, meta: ImageMeta, pairs: FlipPairs) -> torch.Tensor:
    """Keypoints (N, J, 3) from network-input to original pixels, an unflipped image."""
    if meta.flip:
        keypoints = flip_keypoints(keypoints, meta.input_size, _known(pairs), meta.flip_direction or 'horizontal')
    return torch.cat([keypoints[..., :2] / _scale(keypoints, meta)[:2], keypoints[..., 2:]], dim=-1)


def keypoints_to_input(keypoints: torch.Tensor, meta: ImageMeta, pairs: FlipPairs) -> torch.Tensor:
    """Keypoints (N, J, 3) from original to network-input pixels: the inverse of ``keypoints_to_original``."""
    keypoints = torch.cat([keypoints[..., :2] * _scale(keypoints, meta)[:2], keypoints[..., 2:]], dim=-1)
    if not meta.flip:
        return keypoints
    return flip_keypoints(keypoints, meta.input_size, _known(pairs), meta.flip_direction or 'horizontal')


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
    return _moved(result.replace(**keypoints), boxes_to_input(result.bboxes, meta), meta, meta.input_size)


def _moved(result: Instances, boxes: torch.Tensor, meta: ImageMeta, image_size: tuple[int, int]) -> Instances:
    masks = dict(mask_probs=flip_masks(result.mask_probs, meta)) if 'mask_probs' in result else {}
    result = result.replace(bboxes=boxes, **masks)
    result.image_size = image_size
    return result


def _scale(boxes: torch.Tensor, meta: ImageMeta) -> torch.Tensor:
    factors = np.array(meta.scale_factor, dtype=np.float32)
    if boxes.dtype == torch.float64 and meta.ori_shape is not None and meta.img_shape is not None:
        # The stored factors are ratios of sides, rounded to float32; a box on the image's edge is to stay there.
        exact = np.tile([new / old for new, old in zip(meta.img_shape[1::-1], meta.ori_shape[1::-1])], 2)
        factors = np.where(exact.astype(np.float32) == factors, exact, factors)
    return torch.from_numpy(factors).to(boxes)
