"""Transforms that mix several images; ``datasets.wrappers.MultiImageMixDataset`` brings them the others."""
from __future__ import annotations

from collections.abc import Sized

import cv2
import numpy as np

from boxdet.errors import ConfigError
from boxdet.registry import PIPELINES
from boxdet.structures.masks import BitmapMasks


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
        others = results.get('mix_results') or []
        if len(others) != 1:
            raise ConfigError(f'CopyPaste mixes in one image, got {len(others)}: it belongs into the pipeline of a '
                              'MultiImageMixDataset')
        source = others[0]
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


def _hidden_under(joints: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Joints (N, J, 3) of which those that lie in ``region`` (H, W) are hidden: visibility 1 in place of 2."""
    column, row = (np.clip(joints[..., axis].astype(np.int64), 0, region.shape[1 - axis] - 1) for axis in (0, 1))
    hidden = joints.copy()
    hidden[..., 2] = np.where(region[row, column] > 0, np.minimum(joints[..., 2], 1), joints[..., 2])
    return hidden


def _masks(results: dict) -> BitmapMasks:
    """The sample's masks, or its boxes as masks."""
    if 'gt_masks' not in results:
        return BitmapMasks.from_boxes(results['gt_bboxes'], *results['img'].shape[:2])
    if not isinstance(results['gt_masks'], BitmapMasks):
        raise ConfigError('CopyPaste cuts pixels out of masks: LoadAnnotations needs poly2mask=True')
    return results['gt_masks']
