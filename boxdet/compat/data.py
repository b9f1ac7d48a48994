"""Transforms and data sets under mmdetection 2.x's names whose 2.x methods are called, and may be called.

As ``compat.models`` does it for models: each class here is one of boxdet's with the methods of 2.x beside its own.
While a plug-in overrides none of them, boxdet's own path is taken. Shapes (H, W, ...), scales (w, h), boxes xyxy
(N, 4).
"""
from __future__ import annotations

import inspect
import os.path
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from boxdet.compat.forms import has_own
from boxdet.datasets import coco
from boxdet.datasets.pipelines import geometric, loading, mixing
from boxdet.datasets.warps import BOXES, IMAGES, Scale, Warp, flip_boxes, move_fields
from boxdet.errors import ConfigError
from boxdet.evaluation.predictions import from_coco_predictions
from boxdet.files.writing import write_json
from boxdet.geometry.masks import rescaled_hw
from boxdet.structures.masks import BitmapMasks, PolygonMasks

MASKS, MAPS = 'mask_fields', 'seg_fields'


class Transform2x:
    """What every transform of 2.x has: a ``repr`` of its arguments."""

    def __repr__(self) -> str:
        names = [name for name in _parameters(type(self)) if hasattr(self, name)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


def _parameters(cls: type) -> list[str]:
    """The arguments of the first constructor in line that names its own."""
    for owner in cls.__mro__:
        if '__init__' in vars(owner):
            parameters = list(inspect.signature(vars(owner)['__init__']).parameters.values())[1:]
            if not any(one.kind is one.VAR_POSITIONAL for one in parameters):
                return [one.name for one in parameters]
    return []


class _ByKind(Transform2x, geometric.GeometricTransform):
    """A geometric transform of which 2.x has a method for each kind of fields, called in the order of ``methods``."""
    methods: Mapping[str, str] = {}

    def move_kind(self, kind: str, results: dict, warp: Warp) -> None:
        """As the transform's; by 2.x's methods, where a plug-in brings one of them."""
        if kind in self.methods and has_own(self, *self.methods.values()):
            getattr(self, self.methods[kind])(results)
        else:
            super().move_kind(kind, results, warp)


class Resize2x(_ByKind, geometric.Resize):
    """2.x's methods of ``Resize``: the image's reads ``results['scale']``, the others ``results['scale_factor']``."""
    methods = {IMAGES: '_resize_img', BOXES: '_resize_bboxes', MASKS: '_resize_masks', MAPS: '_resize_seg'}

    @staticmethod
    def random_select(img_scales: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], int]:
        """One of the scales, and which."""
        index = int(np.random.randint(len(img_scales)))
        return img_scales[index], index

    @staticmethod
    def random_sample(img_scales: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], None]:
        """A longer and a shorter side between those of the scales."""
        return geometric.draw_between(img_scales), None

    @staticmethod
    def random_sample_ratio(img_scale: tuple[int, int],
                            ratio_range: Sequence[float]) -> tuple[tuple[int, int], None]:
        """The scale times a ratio of the range."""
        return geometric.draw_ratio(img_scale, ratio_range), None

    def _draw_scale(self) -> tuple[tuple[int, int], int | None]:
        if not has_own(self, '_random_scale', 'random_select', 'random_sample', 'random_sample_ratio'):
            return super()._draw_scale()
        drawn: dict[str, Any] = {}
        self._random_scale(drawn)
        return drawn['scale'], drawn.get('scale_idx')

    def _random_scale(self, results: dict) -> None:
        """Set 'scale' and 'scale_idx'."""
        if self.img_scale is None:
            raise ConfigError('Resize: neither img_scale nor a scale in the sample')
        drawn: tuple[tuple[int, int], int | None]
        if self.ratio_range is not None:
            drawn = self.random_sample_ratio(self.img_scale[0], self.ratio_range)
        elif len(self.img_scale) == 1:
            drawn = self.img_scale[0], 0
        else:
            by_value = self.multiscale_mode == 'value'
            drawn = self.random_select(self.img_scale) if by_value else self.random_sample(self.img_scale)
        results['scale'], results['scale_idx'] = drawn

    def _resize_img(self, results: dict) -> None:
        """Resize the images, and note their shape and ``scale_factor``."""
        for key in results.get('img_fields', ['img']):
            hw = results[key].shape[:2]
            out_hw = rescaled_hw(hw, results['scale']) if self.keep_ratio else tuple(results['scale'][::-1])
            warp = Scale(out_hw=out_hw, in_hw=hw, interpolation=self.interpolation, backend=self.backend)
            results[key] = warp.image(results[key])
            results['img_shape'] = results['pad_shape'] = results[key].shape
            results['scale_factor'], results['keep_ratio'] = warp.factor, self.keep_ratio

    def _resize_bboxes(self, results: dict) -> None:
        """Multiply boxes by 'scale_factor'."""
        for key in results.get(BOXES, []):
            boxes = results[key] * results['scale_factor']
            results[key] = geometric.clip_boxes(boxes, results['img_shape']) if self.bbox_clip_border else boxes

    def _resize_masks(self, results: dict) -> None:
        """Bring masks to the size of the image."""
        for key in results.get(MASKS, []):
            if results[key] is not None:
                results[key] = results[key].resize(tuple(results['img_shape'][:2]))

    def _resize_seg(self, results: dict) -> None:
        """Likewise semantic maps, by nearest neighbour."""
        for key in results.get(MAPS, []):
            results[key] = geometric.resize_map(results[key], tuple(results['img_shape'][:2]))


class RandomFlip2x(_ByKind, geometric.RandomFlip):
    """2.x's ``bbox_flip``."""
    methods = {BOXES: 'bbox_flip'}

    def _flip_boxes(self, results: dict) -> None:
        for key in results.get(BOXES, []):
            results[key] = self.bbox_flip(results[key], results['img_shape'], results['flip_direction'])

    def bbox_flip(self, bboxes: np.ndarray, img_shape: Sequence[int], direction: str) -> np.ndarray:
        """Boxes (..., 4K) of the mirrored image."""
        if direction not in geometric.FLIP_DIRECTIONS:
            raise ValueError(f"Invalid flipping direction '{direction}'")
        return flip_boxes(bboxes, img_shape, direction)

    def move_kind(self, kind: str, results: dict, warp: Warp) -> None:
        """As the transform's; boxes by ``bbox_flip``, where a plug-in brings one."""
        if kind == BOXES and has_own(self, 'bbox_flip'):
            self._flip_boxes(results)
        else:
            super().move_kind(kind, results, warp)


class Pad2x(_ByKind, geometric.Pad):
    """2.x's methods of ``Pad``, which read, after the image, ``results['pad_shape']``."""
    methods = {IMAGES: '_pad_img', MASKS: '_pad_masks', MAPS: '_pad_seg'}

    def __init__(self, size: Sequence[int] | None = None, size_divisor: int | None = None, pad_to_square: bool = False,
                 pad_val: float | dict | None = None):
        if isinstance(pad_val, (int, float)):
            warnings.warn(f'pad_val={pad_val} fills the image alone; 2.x writes dict(img={pad_val}, masks=0, seg=255)',
                          DeprecationWarning, stacklevel=2)
        super().__init__(size, size_divisor, pad_to_square, pad_val)

    def _fill(self, results: dict, kind: str, out_hw: tuple[int, int]) -> None:
        fill = self.pad_val
        move_fields(results, geometric.Place(out_hw=out_hw, img_fill=fill['img'], seg_fill=fill['seg'],
                                             mask_fill=fill['masks']), [kind])

    def _pad_img(self, results: dict) -> None:
        """Pad the images, and note their shape."""
        key = geometric.first_image(results)
        self._fill(results, IMAGES, self._target(results[key].shape[:2]))
        results['pad_shape'] = results[key].shape
        results['pad_fixed_size'], results['pad_size_divisor'] = self.size, self.size_divisor

    def _pad_masks(self, results: dict) -> None:
        """Pad masks to the size of the image."""
        self._fill(results, MASKS, tuple(results['pad_shape'][:2]))

    def _pad_seg(self, results: dict) -> None:
        """Likewise semantic maps."""
        self._fill(results, MAPS, tuple(results['pad_shape'][:2]))


class RandomCrop2x(Transform2x, geometric.RandomCrop):
    """2.x's methods of ``RandomCrop``."""
    bbox2label = dict(gt_bboxes='gt_labels', gt_bboxes_ignore='gt_labels_ignore')
    bbox2mask = dict(gt_bboxes='gt_masks', gt_bboxes_ignore='gt_masks_ignore')

    def __call__(self, results: dict) -> dict | None:
        """As the transform's; by 2.x's methods, where a plug-in brings one."""
        if not has_own(self, '_get_crop_size', '_crop_data'):
            return super().__call__(results)
        size = self._get_crop_size(results[geometric.first_image(results)].shape[:2])
        return self._crop_data(results, size, self.allow_negative_crop)

    def _get_crop_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """(h, w) of the part, for an image of ``image_size`` (h, w)."""
        return self._draw_size(*image_size)

    def _crop_data(self, results: dict, crop_size: Sequence[int], allow_negative_crop: bool) -> dict | None:
        """Cut a part of ``crop_size`` (h, w) at a random place; None where no box is left."""
        height, width = crop_size
        return self.crop_at_random(results, height, width, allow_negative_crop)


class RandomAffine2x(Transform2x, geometric.RandomAffine):
    """2.x's ``filter_gt_bboxes``."""

    def _kept(self, scale: float, hw: Sequence[int], before: np.ndarray, after: np.ndarray) -> np.ndarray:
        if self.skip_filter or not has_own(self, 'filter_gt_bboxes'):
            return super()._kept(scale, hw, before, after)
        return geometric.inside(after, hw) & self.filter_gt_bboxes(before * scale, after)

    def filter_gt_bboxes(self, origin_bboxes: np.ndarray, wrapped_bboxes: np.ndarray) -> np.ndarray:
        """(N,) bool: which boxes (N, 4) still look like themselves, of those before, scaled, and after."""
        return geometric.alike(origin_bboxes, wrapped_bboxes, self.min_bbox_size, self.min_area_ratio,
                               self.max_aspect_ratio)


class MixUp2x(Transform2x, mixing.MixUp):
    """2.x's ``_filter_box_candidates``."""

    def _kept(self, before: np.ndarray, after: np.ndarray, hw: Sequence[int]) -> np.ndarray:
        if self.skip_filter or not has_own(self, '_filter_box_candidates'):
            return super()._kept(before, after, hw)
        return self._filter_box_candidates(before.T, after.T)

    def _filter_box_candidates(self, bbox1: np.ndarray, bbox2: np.ndarray) -> np.ndarray:
        """(N,) bool: which boxes (4, N) still look like themselves, of those before and after."""
        return geometric.alike(bbox1.T, bbox2.T, self.min_bbox_size, self.min_area_ratio, self.max_aspect_ratio)


class _Loader(Transform2x):
    """The attributes that 2.x's loaders have."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        bound = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        self.file_client_args = dict(bound.get('file_client_args') or dict(backend='disk'))
        self.file_client = None


class LoadImage2x(_Loader, loading.LoadImageFromFile):
    """2.x's loader of images."""


class LoadAnnotations2x(_Loader, loading.LoadAnnotations):
    """2.x's methods of ``LoadAnnotations``, each of which takes and returns the sample."""

    def __call__(self, results: dict) -> dict | None:  # type: ignore[override]  # 2.x's may drop the image
        """Load what is asked for."""
        for wanted, load in ((self.with_bbox, self._load_bboxes), (self.with_label, self._load_labels),
                             (self.with_mask, self._load_masks), (self.with_keypoint, self._load_gt_keypoints),
                             (self.with_seg, self._load_semantic_seg)):
            loaded = load(results) if wanted else results
            if loaded is None:
                return None
            results = loaded
        return results

    def _load_bboxes(self, results: dict) -> dict | None:
        """'gt_bboxes' and 'gt_bboxes_ignore'; None drops the image."""
        self._load_boxes(results)
        return results

    def _load_labels(self, results: dict) -> dict:
        """'gt_labels'."""
        results['gt_labels'] = results['ann_info']['labels'].copy()
        return results

    def _load_masks(self, results: dict) -> dict:  # type: ignore[override]  # 2.x's returns the sample
        """'gt_masks'."""
        size = results['img_info']['height'], results['img_info']['width']
        if not has_own(self, '_poly2mask', 'process_polygons'):
            results['gt_masks'] = super()._load_masks(results)
        elif self.poly2mask:
            results['gt_masks'] = BitmapMasks(
                [self._poly2mask(one, *size) for one in results['ann_info']['masks']], *size)
        else:
            results['gt_masks'] = PolygonMasks(
                [self.process_polygons(one) for one in results['ann_info']['masks']], *size)
        results[MASKS].append('gt_masks')
        return results

    def _poly2mask(self, mask_ann: Any, img_h: int, img_w: int) -> np.ndarray:
        """The bitmap (H, W) of a COCO segmentation."""
        return BitmapMasks.from_coco([mask_ann], img_h, img_w).to_ndarray()[0]

    def process_polygons(self, polygons: Sequence[Any]) -> list[np.ndarray]:
        """Those that have an even number of values and three points at least."""
        arrays = [np.array(polygon) for polygon in polygons]
        return [polygon for polygon in arrays if len(polygon) % 2 == 0 and len(polygon) >= 6]

    def _load_semantic_seg(self, results: dict) -> dict:
        """'gt_semantic_seg'."""
        self._load_semantic_map(results)
        return results

    def _load_gt_keypoints(self, results: dict) -> dict:
        self._load_keypoints(results)
        return results


class CocoDataset2x(coco.CocoDataset):
    """2.x's methods of ``CocoDataset``."""
    cat_ids: list[int]  # once the file is read
    cat2label: dict[int, int]

    def get_ann_info(self, idx: int) -> dict:
        """As the data set's; of ``_parse_ann_info``, where a plug-in brings one."""
        if not has_own(self, '_parse_ann_info'):
            return super().get_ann_info(idx)
        info = self.data_infos[idx]
        return self._parse_ann_info(info, self.coco.load_anns(self.coco.get_ann_ids(img_ids=[info['id']])))

    def _parse_ann_info(self, img_info: Mapping[str, Any], ann_info: Sequence[Mapping[str, Any]]) -> dict:
        """Boxes, labels, ignored boxes and segmentations of COCO annotations ``ann_info`` of an image."""
        kept: dict[bool, list[Mapping]] = {False: [], True: []}
        for ann in ann_info:
            x, y, w, h = ann['bbox']
            inside = [min(start + side, limit) - max(start, 0) for start, side, limit
                      in ((x, w, img_info['width']), (y, h, img_info['height']))]
            usable = min(inside) > 0 and min(w, h) >= 1 and ann.get('area', w * h) > 0
            if usable and not ann.get('ignore') and ann['category_id'] in self.cat_ids:
                kept[bool(ann.get('iscrowd'))].append(ann)
        boxes = {crowd: np.array([[a['bbox'][0], a['bbox'][1], a['bbox'][0] + a['bbox'][2],
                                   a['bbox'][1] + a['bbox'][3]] for a in own], np.float32).reshape(-1, 4)
                 for crowd, own in kept.items()}
        return dict(bboxes=boxes[False], bboxes_ignore=boxes[True],
                    labels=np.array([self.cat2label[a['category_id']] for a in kept[False]], dtype=np.int64),
                    masks=[a.get('segmentation') for a in kept[False]],
                    seg_map=img_info['filename'].rsplit('.', 1)[0] + self.seg_suffix)

    def xyxy2xywh(self, bbox: np.ndarray) -> list[float]:
        """COCO's form of a box (4,) or row (5,)."""
        x0, y0, x1, y1 = np.asarray(bbox).tolist()[:4]
        return [x0, y0, x1 - x0, y1 - y0]

    def _json_row(self, image_id: Any, row: np.ndarray, category: int, score: float | None = None) -> dict[str, Any]:
        return dict(image_id=image_id, bbox=self.xyxy2xywh(row), score=float(row[4] if score is None else score),
                    category_id=category)

    def _proposal2json(self, results: Sequence[np.ndarray]) -> list[dict]:
        """COCO's predictions of proposals (n, 5), an array an image."""
        return [self._json_row(image_id, row, 1) for image_id, rows in zip(self.img_ids, results) for row in rows]

    def _det2json(self, results: Sequence[Sequence[np.ndarray]]) -> list[dict]:
        """COCO's predictions of boxes by class."""
        return [self._json_row(image_id, row, self.cat_ids[label]) for image_id, result in zip(self.img_ids, results)
                for label, rows in enumerate(result) for row in rows]

    def _segm2json(self, results: Sequence[tuple]) -> tuple[list[dict], list[dict]]:
        """COCO's predictions of boxes, and of masks."""
        masks = []
        for image_id, (boxes, segms) in zip(self.img_ids, results):
            codes, scores = segms if isinstance(segms, tuple) else (segms, [rows[:, 4] for rows in boxes])
            for label, rows in enumerate(boxes):
                for row, code, score in zip(rows, codes[label], scores[label]):
                    counts = code['counts'].decode() if isinstance(code['counts'], bytes) else code['counts']
                    masks.append(dict(self._json_row(image_id, row, self.cat_ids[label], score),
                                      segmentation=dict(size=list(code['size']), counts=counts)))
        return self._det2json([boxes for boxes, _ in results]), masks

    def results2json(self, results: Sequence[Any], outfile_prefix: str) -> dict[str, str]:
        """Write COCO's prediction files; the paths by what they hold."""
        if isinstance(results[0], tuple):
            boxes, masks = self._segm2json(results)
            content = dict(bbox=boxes, segm=masks)
        elif isinstance(results[0], list):
            content = dict(bbox=self._det2json(results))
        elif isinstance(results[0], np.ndarray):
            content = dict(proposal=self._proposal2json(results))
        else:
            raise TypeError('invalid type of results')
        paths = {kind: f'{outfile_prefix}.{kind}.json' for kind in content}
        for kind, rows in content.items():
            write_json(paths[kind], rows)
        return {**({'proposal': paths['bbox']} if 'bbox' in paths else {}), **paths}

    def __init_subclass__(cls, **options: Any):
        """Where a plug-in brings what writes the results, its files are what is measured."""
        super().__init_subclass__(**options)
        if not cls.__module__.startswith('boxdet.') and _JSON_METHODS & set(vars(cls)):
            for name, method in (('format_results', _format_results), ('evaluate', _evaluate)):
                if not any(name in vars(owner) for owner in cls.__mro__[:cls.__mro__.index(CocoDataset2x)]):
                    setattr(cls, name, method)


_JSON_METHODS = {'results2json', '_det2json', '_segm2json', '_proposal2json', 'xyxy2xywh'}


def _format_results(self: Any, results: Iterable[Any], jsonfile_prefix: str | None = None, **options: Any) -> Any:
    """``results2json``'s paths, and the folder of the files that are not kept."""
    folder = tempfile.TemporaryDirectory() if jsonfile_prefix is None else None
    prefix = os.path.join(folder.name, 'results') if folder else jsonfile_prefix
    return self.results2json(list(results), prefix), folder


def _evaluate(self: Any, results: Iterable[Any], metric: Any = None, logger: Any = None,
              jsonfile_prefix: str | None = None, **options: Any) -> dict[str, Any]:
    """As every data set's, of what ``results2json`` wrote."""
    paths, folder = self.format_results(results, jsonfile_prefix)
    path = next(paths[kind] for kind in ('segm', 'bbox', 'proposal') if kind in paths)
    found = from_coco_predictions(path, self.img_ids, self.cat_ids)
    if folder is not None:
        folder.cleanup()
    return super(CocoDataset2x, self).evaluate(found, metric, logger, **options)


# Which methods a class of boxdet's gets: those of the first whose last base it derives from.
FORMS: tuple[type, ...] = (Resize2x, RandomFlip2x, Pad2x, RandomCrop2x, RandomAffine2x, MixUp2x,
                            LoadAnnotations2x, LoadImage2x, CocoDataset2x)
