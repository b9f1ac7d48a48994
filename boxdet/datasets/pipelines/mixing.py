"""Transforms that mix several images; ``datasets.wrappers.MultiImageMixDataset`` brings them the others."""
from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import cv2
import numpy as np

from boxdet.datasets.pipelines.formatting import PAD_VAL
from boxdet.datasets.pipelines.geometric import alike, inside
from boxdet.datasets.warps import (
    BOXES,
    FIELD_KINDS,
    IMAGES,
    Crop,
    Flip,
    Place,
    Scale,
    Warp,
    clip_boxes,
    companions,
    keep_objects,
    move_fields,
)
from boxdet.errors import ConfigError
from boxdet.registry import PIPELINES
from boxdet.structures.masks import BitmapMasks, PolygonMasks


@PIPELINES.register_module()
class CopyPaste:
    """Paste objects of another image over this one (simple copy-paste, Ghiasi et al. 2021, section 3).

    Objects that the pasted ones cover lose those pixels; one that hardly shows any more is dropped. Semantic maps are
    pasted likewise. Without masks in the samples whole boxes are pasted.

    Args:
        max_num_pasted: paste fewer objects than this.
        bbox_occluded_thr: an object stays when no side of its box moved by more pixels; or
        mask_occluded_thr: when more pixels of it are visible.
        selected: draw how many objects to paste, and which; False pastes all.

    Raises:
        ConfigError: the images differ in size, or masks are polygons.
    """

    def __init__(self, max_num_pasted: int = 100, bbox_occluded_thr: float = 10, mask_occluded_thr: float = 300,
                 selected: bool = True):
        if max_num_pasted < 1:
            raise ConfigError(f'CopyPaste.max_num_pasted {max_num_pasted}: it is 1 at least')
        self.max_num_pasted = max_num_pasted
        self.bbox_occluded_thr = bbox_occluded_thr
        self.mask_occluded_thr = mask_occluded_thr
        self.selected = selected

    def get_indexes(self, dataset: Sized) -> int:
        """Which image to paste from."""
        return int(np.random.randint(0, len(dataset)))

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        source = _others(results, 1, 'CopyPaste')[0]
        if source['img'].shape != results['img'].shape:
            raise ConfigError(f"CopyPaste: images of {source['img'].shape} and {results['img'].shape}; a "
                              'Pad(size=...) in the inner pipeline makes them one size')
        chosen = np.arange(len(source['gt_bboxes']))
        if self.selected:
            count = np.random.randint(0, min(len(chosen) + 1, self.max_num_pasted))
            chosen = np.random.choice(len(chosen), size=count, replace=False)
        return self._paste(results, source, chosen) if len(chosen) else results

    def _paste(self, results: dict, source: dict, chosen: np.ndarray) -> dict:
        """``results`` with the objects ``chosen`` (n,) of ``source`` in front."""
        pasted = _masks(source)[chosen]
        region = pasted.union()
        left = _masks(results).without(region)
        boxes, areas = left.bboxes(), left.areas
        unmoved = (np.abs(boxes - results['gt_bboxes']) <= self.bbox_occluded_thr).all(axis=1)
        # Unlike 2.x, nothing stays of which nothing shows: a box without an area makes the box loss infinite.
        visible = (unmoved | (areas > self.mask_occluded_thr)) & (areas > 0)
        results['img'] = cv2.copyTo(source['img'], region, results['img'].copy())
        for key in results.get('seg_fields', []):
            results[key] = cv2.copyTo(source[key], region, results[key].copy())
        results['gt_bboxes'] = np.concatenate([boxes[visible], source['gt_bboxes'][chosen]])
        results['gt_labels'] = np.concatenate([results['gt_labels'][visible], source['gt_labels'][chosen]])
        if 'gt_masks' in results:
            results['gt_masks'] = BitmapMasks.cat([left[visible], pasted])
        if 'gt_keypoints' in results:
            below = _hidden_under(results['gt_keypoints'][visible], region)
            results['gt_keypoints'] = np.concatenate([below, source['gt_keypoints'][chosen]])
        return results


def _hidden_under(keypoints: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Keypoints (N, J, 3) of which those that lie in ``region`` (H, W) are hidden: visibility 1 in place of 2."""
    column, row = (np.clip(keypoints[..., axis].astype(np.int64), 0, region.shape[1 - axis] - 1) for axis in (0, 1))
    hidden = keypoints.copy()
    hidden[..., 2] = np.where(region[row, column] > 0, np.minimum(keypoints[..., 2], 1), keypoints[..., 2])
    return hidden


def _masks(results: dict) -> BitmapMasks:
    """The sample's masks, or its boxes as masks."""
    if 'gt_masks' not in results:
        return BitmapMasks.from_boxes(results['gt_bboxes'], *results['img'].shape[:2])
    if not isinstance(results['gt_masks'], BitmapMasks):
        raise ConfigError('CopyPaste cuts pixels out of masks: LoadAnnotations needs poly2mask=True')
    return results['gt_masks']


def _others(results: dict, count: int, who: str) -> list[dict]:
    """The samples to mix in."""
    others = results.get('mix_results') or []
    if len(others) != count:
        raise ConfigError(f'{who} mixes in {count} image{"s" * (count > 1)}, got {len(others)}: it belongs into the '
                          'pipeline of a MultiImageMixDataset')
    return others


def _object_fields(results: dict) -> list[str]:
    """Keys of boxes and of what belongs to them."""
    boxes = FIELD_KINDS[BOXES].keys(results)
    return list(dict.fromkeys([*boxes, *(key for name in boxes for key in companions(results, name))]))


def _joined(key: str, samples: Sequence[dict], who: str) -> Any:
    """What all samples have under ``key``, in order."""
    for sample in samples:
        if sample.get(key) is None:
            raise ConfigError(f"{who}: {sample.get('ori_filename')} has no '{key}', which other images have")
    values = [sample[key] for sample in samples]
    return type(values[0]).cat(values) if isinstance(values[0], (BitmapMasks, PolygonMasks)) else np.concatenate(values)


def _move_objects(sample: dict, warp: Warp) -> None:
    """Move all but images and semantic maps."""
    move_fields(sample, warp, [kind for kind in FIELD_KINDS if kind not in (IMAGES, 'seg_fields')])


def _fitted(image_hw: Sequence[int], scale_hw: Sequence[int]) -> Scale:
    """As large as fits into ``scale_hw``, sizes rounded down as 2.x does."""
    ratio = min(scale_hw[0] / image_hw[0], scale_hw[1] / image_hw[1])
    height, width = image_hw
    return Scale(out_hw=(max(int(height * ratio), 1), max(int(width * ratio), 1)), in_hw=(height, width), ratio=ratio)


def _check_scale(name: str, img_scale: Any) -> tuple[int, int]:
    if not isinstance(img_scale, (tuple, list)) or len(img_scale) != 2:
        raise ConfigError(f'{name}.img_scale is (h, w), not {img_scale!r}')
    return int(img_scale[0]), int(img_scale[1])


@PIPELINES.register_module()
class Mosaic:
    """Four images about a random point of a canvas twice as large as ``img_scale`` (YOLOv4, Bochkovskiy et al. 2020).

    Each is resized to fit into ``img_scale``; what reaches beyond the canvas is cut off. Masks, keypoints and semantic
    maps go along, which 2.x leaves as they were.

    Args:
        img_scale: (h, w) of an image.
        center_ratio_range: bounds of where the four meet, as a share of ``img_scale``.
        min_bbox_size: objects that are left no wider or higher are dropped; only where ``skip_filter`` is False.
        bbox_clip_border: clip boxes to the canvas.
        skip_filter: drop only objects that are outside.
        pad_val: colour of what stays empty.
        prob: how often.

    Raises:
        ConfigError: a value out of range, or no MultiImageMixDataset around it.
    """

    def __init__(self, img_scale: Sequence[int] = (640, 640), center_ratio_range: Sequence[float] = (0.5, 1.5),
                 min_bbox_size: float = 0, bbox_clip_border: bool = True, skip_filter: bool = True,
                 pad_val: float = 114, prob: float = 1.0):
        if not 0 <= prob <= 1:
            raise ConfigError(f'Mosaic.prob {prob} does not lie between 0 and 1')
        self.img_scale = _check_scale('Mosaic', img_scale)
        self.center_ratio_range = center_ratio_range[0], center_ratio_range[1]
        self.min_bbox_size, self.bbox_clip_border, self.skip_filter = min_bbox_size, bbox_clip_border, skip_filter
        self.pad_val, self.prob = pad_val, prob

    def get_indexes(self, dataset: Sized) -> list[int]:
        """Which images to mix in."""
        return [int(np.random.randint(0, len(dataset))) for _ in range(3)]

    def __call__(self, results: dict) -> dict:
        """Make the mosaic, or leave the image."""
        if np.random.uniform(0, 1) > self.prob:
            return results
        samples = [dict(sample) for sample in (results, *_others(results, 3, 'Mosaic'))]
        canvas_hw = 2 * self.img_scale[0], 2 * self.img_scale[1]
        centre_x = int(np.random.uniform(*self.center_ratio_range) * self.img_scale[1])
        centre_y = int(np.random.uniform(*self.center_ratio_range) * self.img_scale[0])
        canvases = self._canvases(results, canvas_hw)
        for place, sample in enumerate(samples):
            self._lay(sample, canvases, canvas_hw, (centre_y, centre_x), left=place % 2 == 0, above=place < 2)
        joined = {key: _joined(key, samples, 'Mosaic') for key in _object_fields(results)}
        results.update(canvases, **joined)
        results['img_shape'] = results['pad_shape'] = results['img'].shape
        for key in FIELD_KINDS[BOXES].keys(results):
            boxes = clip_boxes(results[key], canvas_hw) if self.bbox_clip_border else results[key]
            results[key] = boxes
            large = ((boxes[:, 2:] - boxes[:, :2]) > self.min_bbox_size).all(axis=1)
            keep_objects(results, key, inside(boxes, canvas_hw) & (large | self.skip_filter))
        return results

    def _canvases(self, results: dict, hw: tuple[int, int]) -> dict[str, np.ndarray]:
        """Empty images and semantic maps of size ``hw``."""
        fills = {**dict.fromkeys(FIELD_KINDS['seg_fields'].keys(results), PAD_VAL['seg']),
                 **dict.fromkeys(FIELD_KINDS[IMAGES].keys(results), self.pad_val)}
        return {key: np.full((*hw, *results[key].shape[2:]), fill, results[key].dtype) for key, fill in fills.items()}

    def _lay(self, sample: dict, canvases: dict[str, np.ndarray], canvas_hw: tuple[int, int], centre: tuple[int, int],
             left: bool, above: bool) -> None:
        """Resize ``sample`` and lay it with a corner on ``centre`` (y, x); its objects move, its pixels are copied."""
        scale = _fitted(sample['img'].shape[:2], self.img_scale)
        top, start = (middle - side if before else middle for middle, side, before in
                      zip(centre, scale.out_hw, (above, left)))
        first_y, first_x = max(-top, 0), max(-start, 0)
        last_y, last_x = (min(size, end - at) for size, end, at in zip(scale.out_hw, canvas_hw, (top, start)))
        window = (first_x, first_y, last_x, last_y)
        crop = Crop.of(window, scale.out_hw, clip=False)
        place = Place(out_hw=canvas_hw, top=top + first_y, left=start + first_x)
        for warp in (scale, crop, place):
            _move_objects(sample, warp)
        rows = slice(place.top, place.top + crop.out_hw[0])
        columns = slice(place.left, place.left + crop.out_hw[1])
        for key, canvas in canvases.items():
            as_map = key in sample.get('seg_fields', ())
            part = crop.seg(scale.seg(sample[key])) if as_map else crop.image(scale.image(sample[key]))
            canvas[rows, columns] = part


@PIPELINES.register_module()
class MixUp:
    """The mean of the image and another, which is resized, flipped and cut at random (YOLOX, Ge et al. 2021).

    The objects of both stay, with masks and keypoints; the semantic map stays the first image's.

    Args:
        img_scale: (h, w) of the canvas on which the other image is laid.
        ratio_range: bounds of the factor by which the canvas is resized.
        flip_ratio: how often it is flipped.
        pad_val: colour of what stays empty on it.
        max_iters: how many images are tried to find one with objects.
        min_bbox_size: with
        min_area_ratio: and
        max_aspect_ratio: what is left of an object must look like, see ``geometric.alike``; only where ``skip_filter``
            is False.
        bbox_clip_border: clip boxes to the image.
        skip_filter: drop only objects that are outside.

    Raises:
        ConfigError: a value out of range, or no MultiImageMixDataset around it.
    """

    def __init__(self, img_scale: Sequence[int] = (640, 640), ratio_range: Sequence[float] = (0.5, 1.5),
                 flip_ratio: float = 0.5, pad_val: float = 114, max_iters: int = 15, min_bbox_size: float = 5,
                 min_area_ratio: float = 0.2, max_aspect_ratio: float = 20, bbox_clip_border: bool = True,
                 skip_filter: bool = True):
        if max_iters < 1:
            raise ConfigError(f'MixUp.max_iters {max_iters}: it is 1 at least')
        self.dynamic_scale = _check_scale('MixUp', img_scale)
        self.ratio_range, self.flip_ratio, self.pad_val = (ratio_range[0], ratio_range[1]), flip_ratio, pad_val
        self.max_iters = max_iters
        self.min_bbox_size, self.min_area_ratio = min_bbox_size, min_area_ratio
        self.max_aspect_ratio = max_aspect_ratio
        self.bbox_clip_border, self.skip_filter = bbox_clip_border, skip_filter

    def get_indexes(self, dataset: Any) -> int:
        """Which image to mix in: the first drawn that has objects."""
        for _ in range(self.max_iters):
            index = int(np.random.randint(0, len(dataset)))
            if len(dataset.get_ann_info(index)['bboxes']):
                break
        return index

    def __call__(self, results: dict) -> dict:
        """Mix the other image in."""
        other = dict(_others(results, 1, 'MixUp')[0])
        if not len(other['gt_bboxes']):
            return results
        for sample in (results, other):  # no boxes may be an empty list
            sample.update({key: np.reshape(sample[key], (-1, 4)) for key in FIELD_KINDS[BOXES].keys(sample)})
        target_hw = results['img'].shape[:2]
        factor = np.random.uniform(*self.ratio_range)
        flip = np.random.uniform(0, 1) < self.flip_ratio
        height, width = self.dynamic_scale
        jittered = max(int(height * factor), 1), max(int(width * factor), 1)
        warps = [_fitted(other['img'].shape[:2], self.dynamic_scale),
                 Place(out_hw=self.dynamic_scale, img_fill=self.pad_val),
                 Scale(out_hw=jittered, in_hw=self.dynamic_scale, ratio=factor, clip=self.bbox_clip_border)]
        for warp in [*warps, *([Flip(out_hw=jittered, direction='horizontal')] if flip else [])]:
            move_fields(other, warp)
        whole = {key: other[key] for key in FIELD_KINDS[BOXES].keys(other)}
        self._cut(other, target_hw)
        for key, before in whole.items():
            keep_objects(other, key, self._kept(before, other[key], target_hw))
        for key in FIELD_KINDS[IMAGES].keys(results):
            mixed = 0.5 * results[key].astype(np.float32) + 0.5 * other[key].astype(np.float32)
            results[key] = mixed.astype(results[key].dtype)
        results.update({key: _joined(key, [results, other], 'MixUp') for key in _object_fields(results)})
        results['img_shape'] = results['pad_shape'] = results['img'].shape
        for key in FIELD_KINDS[BOXES].keys(results):
            keep_objects(results, key, inside(results[key], target_hw))
        return results

    def _cut(self, other: dict, target_hw: Sequence[int]) -> None:
        """Bring ``other`` to the size ``target_hw``: zeros are added below and on the right, then a part is drawn."""
        height, width = (max(sides) for sides in zip(other['img'].shape, target_hw))
        move_fields(other, Place(out_hw=(height, width)))
        top = int(np.random.randint(0, height - target_hw[0])) if height > target_hw[0] else 0
        left = int(np.random.randint(0, width - target_hw[1])) if width > target_hw[1] else 0
        window = (left, top, left + target_hw[1], top + target_hw[0])
        move_fields(other, Crop.of(window, (height, width), clip=self.bbox_clip_border))

    def _kept(self, before: np.ndarray, after: np.ndarray, hw: Sequence[int]) -> np.ndarray:
        if self.skip_filter:
            return inside(after, hw)
        return alike(before, after, self.min_bbox_size, self.min_area_ratio, self.max_aspect_ratio)
