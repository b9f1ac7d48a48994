"""Augmentations of other libraries, for those who have installed them: albumentations, imagecorruptions, InstaBoost.

Letters: N objects, M boxes of all fields together, H, W height and width of the image, J keypoints of an object.
"""
from __future__ import annotations

import importlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boxdet.datasets.warps import BOXES, FIELD_KINDS, IMAGES, clip_boxes, companions, visible_keypoints
from boxdet.errors import ConfigError, nearest
from boxdet.registry import PIPELINES
from boxdet.structures.masks import BitmapMasks


def _library(name: str, who: str, install: str | None = None) -> Any:
    """The module ``name``.

    Raises:
        ConfigError: it is not installed, or fails to be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name == 'pkg_resources':  # newer setuptools are without it
            install = '"setuptools<81"'
        raise ConfigError(f'{who} needs {name} ({error}): pip install {install or name}') from None


@PIPELINES.register_module()
class Albu:
    """Transforms of albumentations, applied to the whole sample.

    Images, all boxes, masks, keypoints and semantic maps go along. What albumentations drops, by its ``BboxParams``,
    goes with its label, mask and keypoints; a mirror swaps keypoints by the data set's ``flip_pairs``. Polygons become
    bitmaps. Random numbers follow from the sample's seed, as in all transforms.

    Args:
        transforms: configs, ``dict(type='ShiftScaleRotate', p=0.5, ...)``; ``type`` is albumentations' name, or a
            class. ``transforms`` inside (``OneOf``, ...) are configs too.
        bbox_params: config of ``BboxParams``, ``dict(type='BboxParams', min_visibility=0.3)``; 2.x's 'format' is
            'pascal_voc', and its 'label_fields' and 'filter_lost_elements' are not needed: everything is filtered.
        keymap: our keys by albumentations' names, for further fields: ``dict(gt_depth='mask')`` treats 'gt_depth' as a
            mask, 'image' as an image. 2.x's default entries may be there.
        update_pad_shape: 2.x's; ``pad_shape`` is always that of the new image.
        skip_img_without_anno: drop the sample when no object of ``gt_bboxes`` is left.

    Raises:
        ConfigError: albumentations is not installed, or has no such transform.
    """
    own_types = ('transforms', 'bbox_params')  # albumentations'

    def __init__(self, transforms: Sequence[Mapping[str, Any]], bbox_params: Mapping[str, Any] | None = None,
                 keymap: Mapping[str, str] | None = None, update_pad_shape: bool = False,
                 skip_img_without_anno: bool = False):
        self.library = _library('albumentations', 'Albu')
        self.transforms = [self._built(transform) for transform in transforms]
        params = dict(bbox_params or {})
        for key in ('type', 'filter_lost_elements', 'label_fields'):
            params.pop(key, None)
        if params.setdefault('format', 'pascal_voc') != 'pascal_voc':
            raise ConfigError(f"Albu.bbox_params: boxes are xyxy in pixels, which is 'pascal_voc' and not "
                              f"'{params['format']}'")
        self.bbox_params = self._made('BboxParams', {**params, 'label_fields': ['box_rows']})
        self.further = {key: kind for key, kind in (keymap or {}).items() if key not in _OWN_KEYS}
        for key, kind in self.further.items():
            if kind not in ('mask', 'image'):
                raise ConfigError(f"Albu.keymap: '{key}' is treated as 'mask' or 'image', not as '{kind}'")
        self.update_pad_shape = update_pad_shape
        self.skip_img_without_anno = skip_img_without_anno
        self._composed: dict[tuple[tuple[str, str], ...], Any] = {}

    def _built(self, cfg: Mapping[str, Any]) -> Any:
        if not isinstance(cfg, Mapping) or 'type' not in cfg:
            raise ConfigError(f"Albu.transforms: {cfg!r} is no config with a 'type'")
        options = {key: [self._built(one) for one in value] if key == 'transforms' else value
                   for key, value in cfg.items() if key != 'type'}
        return self._made(cfg['type'], options)

    def _made(self, kind: Any, options: Mapping[str, Any]) -> Any:
        if isinstance(kind, str):
            cls = getattr(self.library, kind, None)
            if cls is None:
                raise ConfigError(f"Albu: albumentations {self.library.__version__} has no '{kind}'"
                                  f'{nearest(kind, dir(self.library))}')
        else:
            cls = kind
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f'Albu: {kind}({", ".join(options)}): {" ".join(str(error).split())}') from None

    def __call__(self, results: dict) -> dict | None:
        """Transform the sample; None where ``skip_img_without_anno`` drops it."""
        boxes = _Boxes(results)
        keypoints = {key: results[key] for key in FIELD_KINDS['keypoint_fields'].keys(results)}
        masks = {key: _bitmaps(results[key]) for key in FIELD_KINDS['mask_fields'].keys(results)}
        targets = {**dict.fromkeys((key for key in FIELD_KINDS[IMAGES].keys(results) if key != 'img'), 'mask'),
                   **dict.fromkeys(FIELD_KINDS['seg_fields'].keys(results), 'mask'),
                   **{key: kind for key, kind in self.further.items() if key in results}}
        old_hw = results['img'].shape[:2]
        points = [values[..., :2].reshape(-1, 2) for values in keypoints.values()]
        found = self._compose(targets)(
            image=results['img'], **{key: results[key] for key in targets}, bboxes=boxes.values, box_rows=boxes.rows,
            keypoints=np.concatenate([_axes(old_hw), *points]),
            **({'masks': [mask for own in masks.values() for mask in own]} if any(masks.values()) else {}))  # 1.x: some
        image = np.ascontiguousarray(found['image'])
        hw = image.shape[:2]
        results.update({key: np.ascontiguousarray(found[key]) for key in targets}, img=image)
        moved = np.asarray(found['keypoints'], dtype=np.float32)[:, :2]
        self._put_keypoints(results, keypoints, moved, hw)
        start = 0
        for key, own in masks.items():
            results[key] = BitmapMasks([np.asarray(m) for m in found.get('masks', ())[start:start + len(own)]], *hw)
            start += len(own)
        boxes.put_back(results, np.asarray(found['bboxes'], dtype=np.float32).reshape(-1, 4),
                       np.asarray(found['box_rows'], dtype=np.int64))
        results['pad_shape'] = image.shape
        if hw != old_hw or 'img_shape' not in results:
            results['img_shape'] = image.shape
        return None if self.skip_img_without_anno and not len(results.get('gt_bboxes', ())) else results

    def _compose(self, targets: Mapping[str, str]) -> Any:
        key = tuple(sorted(targets.items()))
        if key not in self._composed:
            self._composed[key] = self.library.Compose(
                self.transforms, bbox_params=self.bbox_params, additional_targets=dict(targets),
                keypoint_params=self.library.KeypointParams(format='xy', remove_invisible=False))
        composed = self._composed[key]
        if hasattr(composed, 'set_random_seed'):  # newer versions draw from a generator of their own
            composed.set_random_seed(int(np.random.randint(2 ** 31)))
        else:  # 1.x from Python's
            random.seed(int(np.random.randint(2 ** 31)))
        return composed

    @staticmethod
    def _put_keypoints(results: dict, keypoints: Mapping[str, np.ndarray], moved: np.ndarray,
                       hw: tuple[int, int]) -> None:
        """Write the keypoints of all fields back; the first three of ``moved`` tell a mirror."""
        (x, y), start = (moved[1:3] - moved[0]), 3
        mirrored = x[0] * y[1] - x[1] * y[0] < 0
        pairs = results.get('flip_pairs')
        if mirrored and keypoints and pairs is None:
            raise ConfigError('Albu: a mirror, and the data set does not say which keypoints it swaps: set its '
                              'flip_pairs ([] for none)')
        for key, old in keypoints.items():
            new = old.copy()
            new[..., :2] = moved[start:start + old[..., 0].size].reshape(old[..., :2].shape)
            start += old[..., 0].size
            order = np.arange(old.shape[1])
            for one, other in pairs or () if mirrored else ():
                order[[one, other]] = other, one
            results[key] = visible_keypoints(new[:, order], hw)


_OWN_KEYS = ('img', 'gt_bboxes', 'gt_masks', 'gt_semantic_seg', 'gt_labels')


def _axes(hw: tuple[int, int]) -> np.ndarray:
    """(3, 2) the middle of an image and a pixel to its right and below it."""
    return np.array([[0, 0], [1, 0], [0, 1]], dtype=np.float32) + (hw[1] / 2, hw[0] / 2)


def _bitmaps(masks: Any) -> list[np.ndarray]:
    return list(masks if isinstance(masks, BitmapMasks) else masks.to_bitmap())


class _Boxes:
    """All boxes of a sample as albumentations takes them, and the way back.

    Attributes:
        values: (M, 4) float32, clipped, each with an area.
        rows: M numbers of boxes, counted through all fields.
    """

    def __init__(self, results: dict):
        self._counts = {key: len(results[key]) for key in FIELD_KINDS[BOXES].keys(results)}
        every = np.concatenate([results[key][:, :4] for key in self._counts] or [np.zeros((0, 4), np.float32)])
        every = clip_boxes(every.astype(np.float32, copy=False), results['img'].shape)
        kept = (every[:, 2:] > every[:, :2]).all(axis=1)
        self.values, self.rows = every[kept], np.flatnonzero(kept).tolist()

    def put_back(self, results: dict, values: np.ndarray, rows: np.ndarray) -> None:
        """Write what is left of the boxes, and the rows of what belongs to them."""
        first = 0
        for key, count in self._counts.items():
            own = (rows >= first) & (rows < first + count)
            left = rows[own] - first
            results[key] = values[own]
            for other in companions(results, key):
                results[other] = results[other][left]
            first += count


@PIPELINES.register_module()
class Corrupt:
    """Corrupt the image as in ImageNet-C (Hendrycks and Dietterich 2019), by imagecorruptions.

    Args:
        corruption: name, e.g. 'gaussian_noise'.
        severity: from 1 to 5.

    Raises:
        ConfigError: imagecorruptions is not installed, has no such corruption, or fails in it.
    """

    def __init__(self, corruption: str, severity: int = 1):
        self.library = _library('imagecorruptions', 'Corrupt')
        known = self.library.get_corruption_names('all')
        if corruption not in known:
            raise ConfigError(f"Corrupt.corruption '{corruption}' is none of {', '.join(known)}"
                              f'{nearest(corruption, known)}')
        if severity not in range(1, 6):
            raise ConfigError(f'Corrupt.severity {severity} is not 1, 2, 3, 4 or 5')
        self.corruption, self.severity = corruption, severity

    def __call__(self, results: dict) -> dict:
        """Corrupt the image of the sample."""
        try:
            results['img'] = self.library.corrupt(results['img'].astype(np.uint8), corruption_name=self.corruption,
                                                  severity=self.severity)
        except (AttributeError, TypeError) as error:  # of numpy or scikit-image newer than it knows
            raise ConfigError(f"Corrupt: imagecorruptions fails in '{self.corruption}' with the installed versions of "
                              f'numpy and scikit-image ({error})') from error
        return results


@PIPELINES.register_module()
class InstaBoost:
    """Move objects within the image and fill their places (Fang et al. 2019), by instaboostfast.

    It stands between LoadImageFromFile and LoadAnnotations, and changes ``ann_info``.

    Args:
        action_candidate: 'normal', 'horizontal', 'vertical', 'skip'.
        action_prob: probability of each.
        scale: bounds of the scale.
        dx: largest shift as the object's width / dx.
        dy: largest shift as the object's height / dy.
        theta: bounds of the turn in degrees.
        color_prob: how often colours are changed.
        hflag: draw places by a heatmap.
        aug_ratio: how often.

    Raises:
        ConfigError: instaboostfast is not installed, or the annotations have no masks, or keypoints.
    """

    def __init__(self, action_candidate: Sequence[str] = ('normal', 'horizontal', 'skip'),
                 action_prob: Sequence[float] = (1, 0, 0), scale: Sequence[float] = (0.8, 1.2), dx: float = 15,
                 dy: float = 15, theta: Sequence[float] = (-1, 1), color_prob: float = 0.5, hflag: bool = False,
                 aug_ratio: float = 0.5):
        self.library = _library('instaboostfast', 'InstaBoost')
        if not 0 <= aug_ratio <= 1:
            raise ConfigError(f'InstaBoost.aug_ratio {aug_ratio} does not lie between 0 and 1')
        self.cfg = self.library.InstaBoostConfig(tuple(action_candidate), tuple(action_prob), tuple(scale), dx, dy,
                                                 tuple(theta), color_prob, hflag)
        self.aug_ratio = aug_ratio

    def __call__(self, results: dict) -> dict:
        """Move the objects of the sample, or not."""
        if not np.random.choice([0, 1], p=[1 - self.aug_ratio, self.aug_ratio]):
            return results
        info = results['ann_info']
        if 'masks' not in info or 'keypoints' in info:
            raise ConfigError(f"InstaBoost moves masks, and no keypoints; {results['img_info'].get('filename')} has "
                              f"{', '.join(info)}")
        names = info.get('names') or [''] * len(info['labels'])
        objects = [dict(category_id=label, segmentation=mask, bbox=[x1, y1, x2 - x1, y2 - y1], name=name)
                   for label, mask, (x1, y1, x2, y2), name in zip(info['labels'], info['masks'], info['bboxes'], names)]
        image = results['img']
        objects, changed = self.library.get_new_data(objects, image.astype(np.uint8), self.cfg, background=None)
        objects = [one for one in objects if one['bbox'][2] > 0 and one['bbox'][3] > 0]
        sides = np.array([one['bbox'] for one in objects], dtype=np.float32).reshape(-1, 4)
        results['img'] = changed.astype(image.dtype)
        results['ann_info'] = {**info, 'bboxes': np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1),
                               'labels': np.array([one['category_id'] for one in objects], dtype=np.int64),
                               'masks': [one['segmentation'] for one in objects],
                               'names': [one.get('name', '') for one in objects]}
        return results
