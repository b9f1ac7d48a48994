"""Loading: from file names and annotations to arrays."""
from __future__ import annotations

import http.client
import io
import os.path
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from boxdet.datasets.files import check_color_type, check_file_client, decode_image, read_bytes
from boxdet.errors import ConfigError, DataError
from boxdet.registry import PIPELINES
from boxdet.structures.masks import BitmapMasks, PolygonMasks, usable_polygons


def read_image(path: str, backend: str = 'disk') -> np.ndarray:
    """The bytes (n,) uint8 of an image's file; what begins with http:// or https:// is downloaded.

    Raises:
        DataError: it is missing, empty or unreadable.
    """
    try:
        return read_bytes(path, 'http' if path.lower().startswith(('http://', 'https://')) else backend)
    except http.client.HTTPException as error:
        raise DataError(f'{path}: cannot be downloaded ({error})') from error


def _start(results: dict, image: np.ndarray) -> dict:
    results['img'] = image
    results['img_shape'] = image.shape
    results['ori_shape'] = image.shape
    results['img_fields'] = ['img']
    return results


@PIPELINES.register_module()
class LoadImageFromFile:
    """Read ``img_info['filename']`` under ``img_prefix``; an http(s) address is downloaded.

    Args:
        to_float32: convert to float32 at once.
        color_type: mmcv's flag; 'color' turns the image upright by its EXIF orientation.
        channel_order: 'bgr' or 'rgb'.
        file_client_args: ``dict(backend='disk')`` or ``dict(backend='http')``.

    Raises:
        DataError: a missing, truncated or undecodable file, by name.
    """

    def __init__(self, to_float32: bool = False, color_type: str = 'color', channel_order: str = 'bgr',
                 file_client_args: dict | None = None):
        check_color_type(color_type)
        if channel_order not in ('bgr', 'rgb'):
            raise ConfigError(f"channel_order '{channel_order}' is neither 'bgr' nor 'rgb'")
        self.to_float32 = to_float32
        self.color_type = color_type
        self.channel_order = channel_order
        self.backend = check_file_client(file_client_args)

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        name = results['img_info']['filename']
        prefix = results.get('img_prefix')
        path = os.path.join(prefix, name) if prefix else name
        image = decode_image(read_image(path, self.backend), path, self.color_type, self.channel_order)
        results['filename'] = path
        results['ori_filename'] = name
        return _start(results, image.astype(np.float32) if self.to_float32 else image)


@PIPELINES.register_module()
class LoadImageFromWebcam(LoadImageFromFile):
    """Take ``results['img']``, an array (H, W, 3) that is there already, e.g. a video's frame."""

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        image = results['img']
        results['filename'] = results['ori_filename'] = None
        return _start(results, image.astype(np.float32) if self.to_float32 else image)


@PIPELINES.register_module()
class LoadMultiChannelImageFromFiles:
    """Read the files ``img_info['filename']``, a list, under ``img_prefix``, and stack them as the last axis.

    Args:
        to_float32: convert to float32 at once.
        color_type: mmcv's flag, 'unchanged' for files of one channel.
        file_client_args: ``dict(backend='disk')`` or ``dict(backend='http')``.

    Raises:
        DataError: a missing, truncated or undecodable file, by name, or files of different shapes.
    """

    def __init__(self, to_float32: bool = False, color_type: str = 'unchanged', file_client_args: dict | None = None):
        check_color_type(color_type)
        self.to_float32, self.color_type = to_float32, color_type
        self.backend = check_file_client(file_client_args)

    def __call__(self, results: dict) -> dict:
        """Set 'img' (H, W, ..., C) of C files, and what goes with it."""
        names, prefix = list(results['img_info']['filename']), results.get('img_prefix')
        paths = [os.path.join(prefix, name) if prefix else name for name in names]
        images = [decode_image(read_image(path, self.backend), path, self.color_type) for path in paths]
        for path, image in zip(paths, images):
            if image.shape != images[0].shape:
                raise DataError(f'{path} is an image of shape {image.shape}, and {paths[0]} one of {images[0].shape}: '
                                'channels of one image have one shape')
        image = np.stack(images, axis=-1)
        results['filename'], results['ori_filename'] = paths, names
        _start(results, image.astype(np.float32) if self.to_float32 else image)
        results['pad_shape'], results['scale_factor'] = image.shape, 1.0
        return results


PIPELINES.register_module(name='LoadImage', module=LoadImageFromWebcam)


@PIPELINES.register_module()
class LoadAnnotations:
    """Copy boxes, labels, masks and keypoints from ``ann_info``; read the semantic map, a file of classes by pixel.

    Args:
        with_bbox, with_label, with_mask, with_seg, with_keypoint: what to load.
        poly2mask: masks become BitmapMasks, else PolygonMasks. Either is drawn only when its pixels are asked for.
        denorm_bbox: the annotations' boxes are relative to the image's size.
        file_client_args: where semantic maps are read from.

    Raises:
        DataError: an RLE mask where polygons are wanted; masks of a size other than the image's; a semantic map that is
            missing, in colour or of another size. An object without a mask keeps its box, and the mask head learns
            nothing from it. Boxes of an image of another size (turned by its EXIF orientation, say) are a warning.
    """

    def __init__(self, with_bbox: bool = True, with_label: bool = True, with_mask: bool = False,
                 with_seg: bool = False, poly2mask: bool = True, denorm_bbox: bool = False,
                 file_client_args: dict | None = None, with_keypoint: bool = False):
        self.with_bbox = with_bbox
        self.with_label = with_label
        self.with_mask = with_mask
        self.with_keypoint = with_keypoint
        self.with_seg = with_seg
        self.poly2mask = poly2mask
        self.denorm_bbox = denorm_bbox
        self.backend = check_file_client(file_client_args)
        self._warned_of_size = False

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        if self.with_bbox:
            self._load_boxes(results)
        if self.with_label:
            results['gt_labels'] = results['ann_info']['labels'].copy()
        if self.with_mask:
            results['gt_masks'] = self._load_masks(results)
            results['mask_fields'].append('gt_masks')
        if self.with_keypoint:
            self._load_keypoints(results)
        if self.with_seg:
            self._load_semantic_map(results)
        return results

    def _load_boxes(self, results: dict) -> None:
        annotations = results['ann_info']
        results['gt_bboxes'] = annotations['bboxes'].copy()
        results['bbox_fields'].append('gt_bboxes')
        if annotations.get('bboxes_ignore') is not None:
            results['gt_bboxes_ignore'] = annotations['bboxes_ignore'].copy()
            results['bbox_fields'].append('gt_bboxes_ignore')
        if self.denorm_bbox:
            height, width = results['img_shape'][:2]
            size = np.array([width, height, width, height], dtype=np.float32)
            for key in results['bbox_fields']:
                results[key] = (results[key] * size).astype(np.float32)
        elif not self.with_mask and not self._warned_of_size and (wrong := _other_size(results)):
            self._warned_of_size = True
            warnings.warn(f"{wrong}: its boxes lie elsewhere if the image was turned or resized since; "
                          "LoadImageFromFile(color_type='color_ignore_orientation') leaves EXIF orientation aside",
                          stacklevel=2)

    def _load_masks(self, results: dict) -> BitmapMasks | PolygonMasks:
        info, annotations = results['img_info'], results['ann_info']
        if 'masks' not in annotations:
            raise DataError(f"{info.get('filename')}: with_mask=True, and this data set has boxes only")
        size = int(info['height']), int(info['width'])
        if wrong := _other_size(results):
            raise DataError(wrong)
        names = annotations.get('names') or [f"{info.get('filename')}: mask {i}"
                                             for i in range(len(annotations['masks']))]
        if self.poly2mask:
            return BitmapMasks.from_coco(annotations['masks'], *size, names=names)
        return PolygonMasks([_polygons(mask, name) for mask, name in zip(annotations['masks'], names)], *size)

    def _load_keypoints(self, results: dict) -> None:
        if 'keypoints' not in results['ann_info']:
            raise ConfigError(f"LoadAnnotations(with_keypoint=True): the data set brings no keypoints for "
                              f"{results['img_info'].get('filename')}; a CocoKeypointDataset does")
        results['gt_keypoints'] = results['ann_info']['keypoints'].copy()
        results.setdefault('keypoint_fields', []).append('gt_keypoints')

    def _load_semantic_map(self, results: dict) -> None:
        if 'seg_map' not in results['ann_info']:
            raise DataError(f"{results['img_info'].get('filename')}: with_seg=True, and this data set has no semantic "
                            'maps')
        name, prefix = results['ann_info']['seg_map'], results.get('seg_prefix')
        path = os.path.join(prefix, name) if prefix else name
        try:
            encoded = read_bytes(path, self.backend)
        except DataError as error:
            raise error if prefix else DataError(f'{error}; the data set was given no seg_prefix') from None
        classes = _indices(decode_image(encoded, path, 'unchanged').squeeze(), encoded)
        if classes is None:
            raise DataError(f'{path}: a colour image and no semantic map, which has one number a pixel')
        if 'img_shape' in results and classes.shape != tuple(results['img_shape'][:2]):
            raise DataError(f'{path}: the semantic map has {classes.shape[0]} x {classes.shape[1]} pixels (height x '
                            f"width), its image {results['img_shape'][0]} x {results['img_shape'][1]}")
        results['gt_semantic_seg'] = classes
        results['seg_fields'].append('gt_semantic_seg')


def _indices(decoded: np.ndarray, encoded: np.ndarray) -> np.ndarray | None:
    """(H, W) class of each pixel, None for a colour image; of a palette, which OpenCV turns into colours, the index."""
    if decoded.ndim == 2:
        return decoded
    from PIL import Image  # only such files need it
    with Image.open(io.BytesIO(encoded.tobytes())) as image:
        return np.array(image) if image.mode == 'P' else None


def _other_size(results: dict) -> str:
    """What to say where the loaded image has another size than its annotations say; '' where it has not."""
    info, loaded = results.get('img_info', {}), results.get('img_shape')
    if loaded is None or not (info.get('height') and info.get('width')):
        return ''
    size = int(info['height']), int(info['width'])
    if tuple(loaded[:2]) == size:
        return ''
    return (f"{results.get('filename') or info.get('filename')}: the image has {loaded[0]} x {loaded[1]} pixels "
            f'(height x width), its annotations say {size[0]} x {size[1]}')


def _polygons(mask: Any, name: str) -> list[np.ndarray]:
    """Polygons with an even number of values and at least three points; none of an object that nobody drew."""
    if mask is None:
        return []
    if isinstance(mask, dict):
        raise DataError(f'{name} is an RLE mask; poly2mask=False needs polygons')
    return [np.asarray(p, dtype=np.float64) for p in usable_polygons(mask, name)]


@PIPELINES.register_module()
class LoadProposals:
    """Take proposals computed beforehand, (P, 4) or (P, 5) with scores; their first four columns are kept as 2.x does.

    Args:
        num_max_proposals: only the first so many.

    Raises:
        DataError: proposals of another shape.
    """

    def __init__(self, num_max_proposals: int | None = None):
        self.num_max_proposals = num_max_proposals

    def __call__(self, results: dict) -> dict:
        """Change the sample (see the class)."""
        proposals = np.asarray(results['proposals'], dtype=np.float32)
        if proposals.ndim != 2 or proposals.shape[1] not in (4, 5):
            raise DataError(f"{results.get('proposal_file')}: proposals of {results['img_info'].get('filename')} have "
                            f'shape {proposals.shape}, not (P, 4) or (P, 5)')
        proposals = proposals[:self.num_max_proposals, :4]
        results['proposals'] = proposals.copy() if len(proposals) else np.zeros((1, 4), dtype=np.float32)
        results['bbox_fields'].append('proposals')
        return results


@PIPELINES.register_module()
class FilterAnnotations:
    """Drop objects that have become too small, e.g. by Resize and RandomCrop.

    A sample that had no object to begin with is handed on as it is.

    Args:
        min_gt_bbox_wh: (w, h) in pixels; a box must be wider and higher.
        min_gt_mask_area: pixels that a mask must have at least.
        by_box, by_mask: which of the two count; with both an object must pass both.
        keep_empty: 2.x's name for the opposite: True returns None when no object is left, so that another image is
            taken; False hands the sample on without objects.

    Raises:
        ConfigError: neither ``by_box`` nor ``by_mask``, or the sample does not hold what is to be measured.
    """

    def __init__(self, min_gt_bbox_wh: Sequence[float] = (1., 1.), min_gt_mask_area: float = 1, by_box: bool = True,
                 by_mask: bool = False, keep_empty: bool = True):
        if not (by_box or by_mask):
            raise ConfigError('FilterAnnotations needs by_box=True or by_mask=True')
        if not isinstance(min_gt_bbox_wh, Sequence) or len(min_gt_bbox_wh) != 2:
            raise ConfigError(f'FilterAnnotations.min_gt_bbox_wh is (w, h), not {min_gt_bbox_wh}')
        self.min_gt_bbox_wh = tuple(min_gt_bbox_wh)
        self.min_gt_mask_area = min_gt_mask_area
        self.by_box = by_box
        self.by_mask = by_mask
        self.keep_empty = keep_empty

    def __call__(self, results: dict) -> dict | None:
        """Change the sample (see the class)."""
        measured = ['gt_bboxes'] * self.by_box + ['gt_masks'] * self.by_mask
        for key in measured:
            if key not in results:
                raise ConfigError(f"FilterAnnotations: the sample has no '{key}'; LoadAnnotations loads it")
        if len(results[measured[-1]]) == 0:
            return results
        keep = np.ones(len(results[measured[-1]]), dtype=bool)
        if self.by_box:
            boxes = results['gt_bboxes']
            keep &= ((boxes[:, 2:] - boxes[:, :2]) > self.min_gt_bbox_wh).all(axis=1)
        if self.by_mask:
            keep &= results['gt_masks'].areas >= self.min_gt_mask_area
        for key in ('gt_bboxes', 'gt_labels', 'gt_masks', 'gt_keypoints'):
            if key in results:
                results[key] = results[key][np.flatnonzero(keep)]
        return None if self.keep_empty and not keep.any() else results
