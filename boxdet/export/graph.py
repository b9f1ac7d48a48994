"""The detector as a module from images and their sizes to tensors of one size: what is exported.

Prediction is the detector's own ``detect_padded``; here are only what comes before it (normalisation, padding) and what
follows (results in order, zeros where there is none).

Letters: B images, H, W height and width of the batch, n results of an image at most, N results of the batch.
"""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.abilities import ability
from boxdet.errors import ConfigError
from boxdet.export.suppression import OnnxSuppression
from boxdet.models.bbox_head import RoITestSettings
from boxdet.models.folding import PRECISIONS, cast_weights
from boxdet.structures.batch import Batch

MASKS = ('logits', 'paste')
CANDIDATES = 4096


@dataclass(frozen=True)
class InputFormat:
    """What the network wants of an RGB image.

    Args:
        mean: of the three channels, in the network's order.
        std: likewise.
        rgb: whether the network's order is RGB, and not BGR.
        divisor: height and width are padded to multiples of it, with zeros after the normalisation.
        scale: (long, short) side in pixels that images fit into, or (width, height) that they are brought to; None
            where they keep their size, 'unknown' where the config resizes them in another way.
        keep_ratio: which of the two ``scale`` is.
    """
    mean: Sequence[float]
    std: Sequence[float]
    rgb: bool = True
    divisor: int = 1
    scale: tuple[int, int] | str | None = None
    keep_ratio: bool = True


class DetectionGraph(nn.Module):
    """A copy of a detector with normalisation inside, for images (B, 3, H, W) in RGB.

    Args:
        model: a two-stage detector; it is not changed.
        inputs: what its network wants.
        suppression: OnnxSuppression, or a subclass, which is made with ``CANDIDATES`` and the number of classes.
        masks: 'logits' for the small mask of each box, 'paste' for masks (H, W) of the whole network input.
        exact: results (N, ...) of all images one after the other, and not (B, n, ...) filled up with zeros.
        precision: 'fp32' or 'fp16'; boxes and scores are float32 either way.

    Raises:
        ConfigError: a detector or settings without results of a fixed size, or another value of these.
    """

    def __init__(self, model: nn.Module, inputs: InputFormat, suppression: type[OnnxSuppression] = OnnxSuppression,
                 masks: str = 'logits', exact: bool = False, precision: str = 'fp32'):
        super().__init__()
        if masks not in MASKS:
            raise ConfigError(f"masks is one of {', '.join(MASKS)}, not '{masks}'")
        if precision not in ('fp32', 'fp16'):
            raise ConfigError(f"precision of an export is fp32 or fp16, not '{precision}'")
        _refuse_what_has_no_size(model)
        if masks == 'paste' and not model.with_mask:
            raise ConfigError(f"export: masks='paste', and a {type(model).__name__} has no mask_head")
        self.inputs, self.masks, self.exact = inputs, masks, exact
        self.suppression = suppression(CANDIDATES, model.roi_head.last_bbox_head.num_classes)
        self._check_suppression(model)
        self.model = cast_weights(_for_a_graph(model), PRECISIONS[precision])
        self.register_buffer('mean', torch.tensor(inputs.mean, dtype=torch.float32)[:, None, None], persistent=False)
        scale = 1 / torch.tensor(inputs.std, dtype=torch.float64)
        self.register_buffer('scale', scale.float()[:, None, None], persistent=False)

    def _check_suppression(self, model: nn.Module) -> None:
        for section in ('rpn', 'rcnn'):
            cfg = getattr(model.test_cfg, section).nms
            if not self.suppression.supports(cfg):
                raise ConfigError(f"export: model.test_cfg.{section}.nms is {dict(cfg)}; a graph has type='nms' "
                                  'without max_num only')

    @property
    def output_names(self) -> list[str]:
        """Names of the results, in their order."""
        names = ['boxes', 'scores', 'labels', 'count', 'settled']
        if self.model.with_mask:
            names.append('mask_logits' if self.masks == 'logits' else 'masks')
        if self.model.with_keypoint:
            names.append('keypoints')
        return names

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Detect.

        Args:
            images: (B, 3, H, W) uint8 or float32 in [0, 255], RGB; what is beyond an image's size is not looked at.
            sizes: (B, 2) int64, (height, width) of each image in them.

        Returns:
            as ``output_names``: boxes (B, n, 4) in pixels of ``images``, best first; scores (B, n); labels (B, n)
            int64, -1 where there is no result; count (B,) int64 of results; settled () bool, False where more
            candidates than could be looked at may have hidden results; mask logits (B, n, h, w), or masks
            (B, n, H, W) bool; keypoints (B, n, J, 3), x, y and score.
        """
        height, width = images.shape[-2:]
        pixels = self._normalized(images, sizes)
        model = self.model
        feats = model.extract_feat(pixels)
        # A graph is made of sizes, a tensor.
        found = model.detect_padded(feats, Batch(pixels, sizes), self.suppression)  # type: ignore[arg-type]
        fields, valid = dict(found.fields), found.valid
        if model.with_keypoint:
            heatmaps = model.roi_head.keypoint_heatmaps(feats, fields['bboxes']).float()
            keypoints = model.roi_head.keypoint_head.predict_padded(heatmaps, fields['bboxes'].flatten(0, 1),
                                                                    torch.sym_max(height, width))
            fields['keypoints'] = keypoints.unflatten(0, valid.shape)
        if not model.test_cfg.rcnn.keep_empty:  # boxes without area are taken out last: close the gaps
            order = torch.where(valid, fields['scores'], -1.0).topk(valid.shape[1], dim=1).indices
            valid = valid.gather(1, order)
            fields = {name: value.gather(1, _like(order, value)) for name, value in fields.items()}
        out = [torch.where(_like(valid, fields['bboxes']), fields['bboxes'], 0.0),
               torch.where(valid, fields['scores'], 0.0), torch.where(valid, fields['labels'], -1)]
        rest = []
        if model.with_mask and self.masks == 'logits':
            rest.append(torch.logit(fields['mask_probs'].float(), eps=1e-6))
        elif model.with_mask:
            masks = paste(fields['mask_probs'].float(), out[0], (height, width), **pasting(model))
            rest.append(masks & valid[..., None, None])
        if model.with_keypoint:
            rest.append(torch.where(_like(valid, fields['keypoints']), fields['keypoints'], 0.0))
        if self.exact:
            rows = valid.flatten().nonzero().squeeze(1)
            out, rest = ([value.flatten(0, 1).index_select(0, rows) for value in values] for values in (out, rest))
        return (*out, valid.sum(dim=1), found.settled, *rest)

    def _normalized(self, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """What the network sees: normalised, padded with zeros. As ``structures.batch.normalize_images``."""
        height, width = images.shape[-2:]
        pixels = images.float()
        if not self.inputs.rgb:
            pixels = pixels.flip(1)
        pixels = (pixels - self.mean) * self.scale
        rows = torch.arange(height, device=images.device) < sizes[:, :1]                 # (B, H)
        columns = torch.arange(width, device=images.device) < sizes[:, 1:]               # (B, W)
        pixels = torch.where(rows[:, None, :, None] & columns[:, None, None], pixels, 0.0)
        divisor = self.inputs.divisor
        if divisor > 1:
            pixels = F.pad(pixels, (0, -width % divisor, 0, -height % divisor))
        return pixels


def pasting(model: nn.Module) -> dict[str, Any]:
    """``threshold`` and ``whole_pixels`` of ``paste`` and ``paste_to_rle``, as the detector has them."""
    # A head with settings of its own may leave them out.
    threshold, whole_pixels = (getattr(model.test_cfg.rcnn, name, getattr(RoITestSettings, name))
                               for name in ('mask_thr_binary', 'paste_whole_pixels'))
    return dict(threshold=threshold, whole_pixels=whole_pixels)


def paste(probs: torch.Tensor, boxes: torch.Tensor, image_hw: tuple[int, int], threshold: float,
          whole_pixels: bool = False) -> torch.Tensor:
    """Masks (B, n, H, W) bool of probabilities (B, n, h, w) within boxes (B, n, 4), as ``geometry.masks.paste_to_rle``.

    Enlarging along an axis is linear, a matrix of weights a box: no grid of points (H, W) is made.
    """
    weights = _whole_pixel_weights if whole_pixels else _weights
    down = weights(boxes[..., 1:2], boxes[..., 3:4], image_hw[0], probs.shape[-2])       # (B, n, H, h)
    across = weights(boxes[..., 0:1], boxes[..., 2:3], image_hw[1], probs.shape[-1])     # (B, n, W, w)
    return down @ probs @ across.transpose(-1, -2) >= threshold


def _weights(start: torch.Tensor, end: torch.Tensor, pixels: int, cells: int) -> torch.Tensor:
    """(..., pixels, cells): how much each cell of [start, end] (..., 1) counts at the centre of each pixel."""
    pixel = torch.arange(pixels, device=start.device)
    place = (pixel + 0.5 - start) / (end - start).clamp(min=1e-6) * cells - 0.5          # (..., pixels)
    # The pixels around a box without extent take the middle of the mask.
    around = (pixel >= start.floor() - 1) & (pixel < end.ceil() + 1)
    place = torch.where(end > start, place, torch.where(around, (cells - 1) / 2, -2.0))
    return _shares(place, cells)


def _whole_pixel_weights(start: torch.Tensor, end: torch.Tensor, pixels: int, cells: int) -> torch.Tensor:
    """Likewise, of the box enlarged by half a cell on each side and cut to whole pixels."""
    half, centre = (end - start) * 0.5 * ((cells + 2) / cells), (end + start) * 0.5
    first, last = (centre - half).trunc(), (centre + half).trunc()
    size = (last - first + 1).clamp(min=1)
    pixel = torch.arange(pixels, device=start.device) - first                            # (..., pixels)
    place = ((pixel + 0.5) * ((cells + 2) / size) - 0.5).clamp(0, cells + 1) - 1
    return _shares(torch.where((pixel >= 0) & (pixel < size), place, -2.0), cells)


def _shares(place: torch.Tensor, cells: int) -> torch.Tensor:
    """(..., cells): how much each cell counts at places (...) in units of cells, whose centres are whole numbers."""
    return (1 - (place[..., None] - torch.arange(cells, device=place.device)).abs()).clamp(min=0)


def _like(values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Values (B, n) over the further dimensions of ``other`` (B, n, ...)."""
    for _ in range(other.dim() - values.dim()):
        values = values[..., None]
    return values.expand_as(other)


def _for_a_graph(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32, whose parts work on tensors of one size and with torchvision's operators."""
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    model.to(memory_format=torch.contiguous_format)
    model.memory_format = torch.contiguous_format  # type: ignore[assignment]  # torch types it as Tensor | Module
    for module in model.modules():
        for name in ('pools_every_level', 'use_torchvision'):
            if hasattr(module, name):
                setattr(module, name, True)
    return model


def _refuse_what_has_no_size(model: nn.Module) -> None:
    kind = type(model).__name__
    if not (getattr(model, 'with_rpn', False) and getattr(model, 'with_roi_head', False)):
        raise ConfigError(f'export: a {kind} has no rpn_head or no roi_head; two-stage detectors are exported')
    heads = dict(rpn_head=model.rpn_head, roi_head=model.roi_head)
    heads['roi_head.bbox_head'] = model.roi_head.last_bbox_head
    if model.with_keypoint:
        heads['roi_head.keypoint_head'] = model.roi_head.keypoint_head
    for name, head in heads.items():
        if not ability(head, 'fixed_size_prediction'):
            raise ConfigError(f'export: model.{name} is a {type(head).__name__}, which declares no '
                              'fixed_size_prediction: it has no results of one size')
    for section, limit in (('rpn', 'nms_pre'), ('rpn', 'max_per_img'), ('rcnn', 'max_per_img')):
        if getattr(getattr(model.test_cfg, section), limit, 0) <= 0:
            raise ConfigError(f'export: model.test_cfg.{section}.{limit} sets no limit; a graph needs one, such as '
                              f"{dict(nms_pre=1000, max_per_img=1000 if section == 'rpn' else 100)[limit]}")
