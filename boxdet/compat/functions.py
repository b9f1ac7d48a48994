"""Functions of ``mmdet.core`` and ``mmdet.utils`` that plug-ins and scripts call."""
from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from boxdet.errors import ConfigError
from boxdet.geometry import boxes as box_geometry
from boxdet.models.losses import accuracy, weight_reduce_loss
from boxdet.registry import MATCHING
from boxdet.structures.instances import Instances
from boxdet.structures.masks import BitmapMasks


def multi_apply(func: Callable, *args: Iterable, **kwargs: Any) -> tuple[list, ...]:
    """The results of ``func`` over the zipped ``args``, a list for each of its return values."""
    call = partial(func, **kwargs) if kwargs else func
    return tuple(map(list, zip(*map(call, *args))))


def unmap(data: torch.Tensor, count: int, inds: torch.Tensor, fill: float = 0) -> torch.Tensor:
    """``data`` at the places that the bools ``inds`` (count,) pick, ``fill`` elsewhere."""
    whole = data.new_full((count, *data.shape[1:]), fill)
    whole[inds.bool()] = data
    return whole


def images_to_levels(target: Sequence[torch.Tensor], num_levels: Sequence[int]) -> list[torch.Tensor]:
    """B tensors of all levels as L tensors of all images."""
    return list(torch.stack(list(target)).split(list(num_levels), dim=1))


def reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor.div_(dist.get_world_size()), op=dist.ReduceOp.SUM)
    return tensor


def bbox_overlaps(bboxes1: Any, bboxes2: Any, mode: str = 'iou', is_aligned: bool = False, eps: float = 1e-6,
                  use_legacy_coordinate: bool = False) -> Any:
    """IoU, IoF or GIoU of boxes (..., N, 4) and (..., M, 4).

    Arrays give an array; of them ``use_legacy_coordinate`` says that the last pixel belongs to a box.
    """
    if isinstance(bboxes1, np.ndarray):
        border = np.array([0, 0, 1, 1], dtype=np.float32) if use_legacy_coordinate else 0
        first, second = (torch.from_numpy(np.asarray(b, dtype=np.float32) + border) for b in (bboxes1, bboxes2))
        return bbox_overlaps(first, second, mode, is_aligned, eps).numpy()
    if mode not in ('iou', 'iof', 'giou'):
        raise AssertionError(f'Unsupported mode {mode}')
    return MATCHING.build(dict(type='BboxOverlaps2D'))(bboxes1, bboxes2, mode, is_aligned)


def bbox_flip(bboxes: torch.Tensor, img_shape: Sequence[int], direction: str = 'horizontal') -> torch.Tensor:
    """Boxes (..., 4K) of the mirrored image."""
    flat = bboxes.reshape(-1, bboxes.shape[-1])
    return box_geometry.flip_boxes(flat, img_shape, direction).reshape(bboxes.shape)


def bbox_mapping(bboxes: torch.Tensor, img_shape: Any, scale_factor: Any, flip: bool,
                 flip_direction: str = 'horizontal') -> torch.Tensor:
    """Boxes of the original image in the network's input."""
    moved = bboxes * bboxes.new_tensor(np.asarray(scale_factor))
    return bbox_flip(moved, img_shape, flip_direction) if flip else moved


def bbox_mapping_back(bboxes: torch.Tensor, img_shape: Any, scale_factor: Any, flip: bool,
                      flip_direction: str = 'horizontal') -> torch.Tensor:
    """The other way."""
    moved = bbox_flip(bboxes, img_shape, flip_direction) if flip else bboxes
    return (moved.view(-1, 4) / moved.new_tensor(np.asarray(scale_factor))).view(bboxes.shape)


def bbox_cxcywh_to_xyxy(bbox: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) as corners."""
    center, size = bbox[..., :2], bbox[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def bbox_xyxy_to_cxcywh(bbox: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) as centre and size."""
    return torch.cat([(bbox[..., :2] + bbox[..., 2:]) / 2, bbox[..., 2:] - bbox[..., :2]], dim=-1)


def roi2bbox(rois: torch.Tensor) -> list[torch.Tensor]:
    """Boxes (n, 4) of each image that rois (R, 5) are of."""
    return [rois[rois[:, 0] == i, 1:] for i in rois[:, 0].unique()]


def bbox2distance(points: torch.Tensor, bbox: torch.Tensor, max_dis: float | None = None,
                  eps: float = 0.1) -> torch.Tensor:
    """Distances (N, 4) of points (N, 2) to the left, top, right and bottom of boxes (N, 4)."""
    found = torch.cat([points - bbox[:, :2], bbox[:, 2:] - points], dim=-1)
    return found if max_dis is None else found.clamp(min=0, max=max_dis - eps)


def distance2bbox(points: torch.Tensor, distance: torch.Tensor, max_shape: Any = None) -> torch.Tensor:
    """Boxes (..., N, 4) of points (..., N, 2) and distances (..., N, 4)."""
    center = points[..., :2]
    found = torch.cat([center - distance[..., :2], center + distance[..., 2:]], dim=-1)
    if max_shape is None:
        return found
    shape = torch.as_tensor(max_shape)[..., :2].to(found).flip(-1)          # width, height
    limit = torch.cat([shape, shape], dim=-1)
    if found.dim() == 3 and limit.dim() == 2:
        assert len(limit) == len(found), f'shapes of {len(limit)} images for boxes of {len(found)}'
        limit = limit[:, None]
    return torch.minimum(found.clamp(min=0), limit.expand_as(found))


def bbox_rescale(bboxes: torch.Tensor, scale_factor: float = 1.0) -> torch.Tensor:
    """Boxes (N, 4), or rois (N, 5), grown about their centres."""
    head, boxes = bboxes[:, :-4], bboxes[:, -4:]
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * scale_factor
    return torch.cat([head, center - half, center + half], dim=1)


def encode_mask_results(mask_results: Any) -> list[list[dict]]:
    """K lists of RLE dicts of K lists of (H, W) bool arrays."""
    from pycocotools import mask as coco_masks
    own = mask_results[0] if isinstance(mask_results, tuple) else mask_results
    return [[one if isinstance(one, dict) else coco_masks.encode(np.asfortranarray(one, dtype=np.uint8))
             for one in of_class] for of_class in own]


def mask2bbox(masks: torch.Tensor) -> torch.Tensor:
    """Boxes (N, 4) around masks (N, H, W)."""
    boxes = BitmapMasks(masks.cpu().numpy().astype(np.uint8), *masks.shape[1:]).bboxes()
    return torch.from_numpy(boxes).to(masks.device)


def mask_target(pos_proposals_list: Sequence[torch.Tensor], pos_assigned_gt_inds_list: Sequence[torch.Tensor],
                gt_masks_list: Sequence[Any], cfg: Any) -> torch.Tensor:
    """Target masks (P, h, w) of the positives of B images."""
    size = (cfg.mask_size, cfg.mask_size) if isinstance(cfg.mask_size, int) else tuple(cfg.mask_size)
    found = [masks.roi_targets(boxes, size, inds, boxes.device) for boxes, inds, masks
             in zip(pos_proposals_list, pos_assigned_gt_inds_list, gt_masks_list) if len(boxes)]
    return torch.cat(found) if found else pos_proposals_list[0].new_zeros((0, *size))


def split_combined_polys(polys: Sequence, poly_lens: Sequence, polys_per_mask: Sequence) -> list[list[list]]:
    """Polygons that were joined into one array an image, apart again."""
    found = []
    for points, lengths, counts in zip(polys, poly_lens, polys_per_mask):
        ends = np.cumsum(np.asarray(lengths, dtype=int)).tolist()
        parts = [points[start:end] for start, end in zip([0, *ends], ends)]
        stops = np.cumsum(np.asarray(counts, dtype=int)).tolist()
        found.append([parts[start:stop] for start, stop in zip([0, *stops], stops)])
    return found


def build_from_matching(cfg: Any, **default_args: Any) -> Any:
    """Build an assigner, sampler, box coder, anchor generator or IoU calculator."""
    return MATCHING.build(cfg, **default_args)


def build_sampler(cfg: Any, **default_args: Any) -> Any:
    """Build a sampler."""
    return MATCHING.build(cfg, **default_args)


def weighted_loss(loss_func: Callable) -> Callable:
    """Give an elementwise loss the keywords ``weight``, ``reduction`` and ``avg_factor``."""
    def wrapper(pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, reduction: str = 'mean',
                avg_factor: float | None = None, **kwargs: Any) -> torch.Tensor:
        return weight_reduce_loss(loss_func(pred, target, **kwargs), weight, reduction, avg_factor)
    wrapper.__name__, wrapper.__doc__ = loss_func.__name__, loss_func.__doc__
    return wrapper


def reduce_loss(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """The mean, the sum or the loss itself."""
    return loss if reduction == 'none' else {'mean': loss.mean(), 'sum': loss.sum()}[reduction]


class Accuracy(nn.Module):
    """``accuracy`` as a module."""

    def __init__(self, topk: int | Sequence[int] = (1,), thresh: float | None = None):
        super().__init__()
        self.topk, self.thresh = topk, thresh

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> Any:
        """Top-k accuracy in percent."""
        return accuracy(pred, target, self.topk, self.thresh)


def imshow_det_bboxes(img: Any, bboxes: Any = None, labels: Any = None, segms: Any = None,
                      class_names: Sequence[str] | None = None, score_thr: float = 0, bbox_color: Any = None,
                      text_color: Any = None, mask_color: Any = None, thickness: float = 2, font_size: float = 8,
                      win_name: str = '', show: bool = True, wait_time: float = 0,
                      out_file: str | None = None) -> np.ndarray:
    """Draw boxes (N, 4 or 5), labels (N,) and masks (N, H, W); 2.x's keywords."""
    from boxdet.visualization import draw
    image = draw.read_image(img)
    rows = np.zeros((0, 5), np.float32) if bboxes is None else np.asarray(bboxes, dtype=np.float32)
    scores = rows[:, 4] if rows.shape[1] > 4 else np.ones(len(rows), np.float32)
    fields: dict[str, Any] = dict(bboxes=torch.from_numpy(rows[:, :4]), scores=torch.from_numpy(scores),
                                  labels=torch.as_tensor(np.asarray(labels), dtype=torch.long))
    if segms is not None and len(segms):
        fields['masks'] = BitmapMasks(np.asarray(segms).astype(np.uint8), *image.shape[:2]).to_rle()
    drawing = draw.draw_instances(image, Instances(image.shape[:2], **fields), class_names, score_thr,
                                  mask_color or bbox_color, thickness=thickness, font_scale=font_size / 22)
    if out_file is not None:
        draw.write_image(drawing, out_file)
    if show:
        draw.show(drawing, win_name, wait_time)
    return drawing


def eval_map(det_results: Sequence[Sequence[np.ndarray]], annotations: Sequence[Mapping], scale_ranges: Any = None,
             iou_thr: float = 0.5, ioa_thr: float | None = None, dataset: Any = None, logger: Any = None,
             tpfp_fn: Any = None, nproc: int = 4, use_legacy_coordinate: bool = False,
             use_group_of: bool = False) -> tuple[Any, list[dict[str, Any]]]:
    """Pascal VOC's mean average precision of results by class.

    Args:
        det_results: K arrays (n, 5) of each image.
        annotations: 'bboxes' (N, 4), 'labels' (N,) and, of objects that do not count, 'bboxes_ignore' (M, 4) with
            'labels_ignore' (M,), of each image.
        scale_ranges: pairs of square roots of areas; the values are then lists, one a range.
        iou_thr: overlap of a hit.
        ioa_thr: refused, of OpenImages.
        dataset: 'voc07' measures at 11 points; classes or None measure the area.
        logger: not used.
        tpfp_fn: refused, a rule of one's own.
        nproc: not used, it takes one process.
        use_legacy_coordinate: boxes are a pixel longer than their corners say.
        use_group_of: refused, of OpenImages.

    Returns:
        the mean over the classes that have objects; 'num_gts', 'num_dets', 'recall', 'precision', 'ap' of each class.

    Raises:
        ConfigError: another rule of what is a hit (``tpfp_fn``, OpenImages' and ImageNet's).
    """
    from boxdet.compat.evaluation import with_scores
    from boxdet.evaluation.voc import average_precision, match
    others = dataset in ('det', 'vid', 'oid_v6', 'oid_challenge')
    if others or tpfp_fn is not None or ioa_thr is not None or use_group_of:
        raise ConfigError("eval_map: hits are Pascal VOC's; tpfp_fn, ioa_thr, use_group_of and the data sets 'det', "
                          "'vid' and 'oid' have other rules")
    assert len(det_results) == len(annotations)
    num_classes, none = len(det_results[0]), dict(bboxes_ignore=np.zeros((0, 4)), labels_ignore=np.zeros(0, int))
    found = [Instances.from_per_class([with_scores(rows) for rows in one]) for one in det_results]
    matches = match([{**none, **one} for one in annotations], found, num_classes, float(use_legacy_coordinate))
    rule = '11points' if dataset == 'voc07' else 'area'
    judged = [matches.judged(iou_thr, sizes) for sizes in ([None] if scale_ranges is None else scale_ranges)]
    rows = []
    for label in range(num_classes):
        own, columns = matches.labels == label, []
        for right, wrong, counted in judged:
            objects = int((counted & (matches.gt_labels == label)).sum())
            hits, misses = np.cumsum(right[own]), np.cumsum(wrong[own])
            recall, precision = hits / max(objects, 1), hits / np.maximum(hits + misses, 1)
            columns.append((objects, recall, precision, average_precision(recall, precision, rule)))
        several = [np.array(column) for column in zip(*columns)]
        counts, recall, precision, ap = columns[0] if scale_ranges is None else several
        rows.append(dict(num_gts=counts, num_dets=int(own.sum()), recall=recall, precision=precision, ap=ap))
    counts, values = (np.array([np.atleast_1d(row[key]) for row in rows]) for key in ('num_gts', 'ap'))
    means = [float(ap[of > 0].mean()) if (of > 0).any() else 0.0 for of, ap in zip(counts.T, values.T)]
    return (means[0] if scale_ranges is None else means), rows


# ---------------------------------------------------------------------------------------------- mmdet.utils


def find_latest_checkpoint(path: str, suffix: str = 'pth') -> str | None:
    """The newest checkpoint of a folder."""
    folder = Path(path)
    latest = folder / f'latest.{suffix}'
    if latest.exists():
        return str(latest)
    def number(file: Path) -> int:
        digits = re.findall(r'_(\d+)$', file.stem)
        return int(digits[-1]) if digits else -1
    found = sorted(folder.glob(f'*.{suffix}'), key=number)
    return str(found[-1]) if found else None


def digit_version(version_str: str) -> list[int]:
    """The numbers of a version, as a list, which mmdet's is and mmcv's is not."""
    from mmengine.utils import digit_version as numbers
    return [*numbers(version_str)]


def get_device() -> str:
    """'cuda' where there is a GPU."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def update_data_root(cfg: Any, logger: Any = None) -> None:
    """Put $MMDET_DATASETS in the place of ``data_root`` in every path of ``cfg.data``."""
    root = os.environ.get('MMDET_DATASETS')
    if not root or 'data_root' not in cfg:
        return
    old = cfg.data_root

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(moved(one) for one in value)
        return value.replace(old, root) if isinstance(value, str) else value
    cfg.data = moved(cfg.data)
    cfg.data_root = root


def split_batch(img: torch.Tensor, img_metas: Sequence[Mapping], kwargs: Mapping[str, Any]) -> dict[str, dict]:
    """A batch of images of several tags, a batch for each."""
    tags = [meta['tag'] for meta in img_metas]
    groups = {}
    for tag in set(tags):
        index = [i for i, one in enumerate(tags) if one == tag]
        own = dict(img=img[index], img_metas=[img_metas[i] for i in index], tag=[tag] * len(index))
        for key, value in kwargs.items():
            own[key] = value[index] if isinstance(value, torch.Tensor) else [value[i] for i in index]
        groups[tag] = own
    return groups


def get_caller_name() -> str:
    """The function, or ``Class.method``, that called the one that asks."""
    frame = sys._getframe(2)
    owner = frame.f_locals.get('self')
    return frame.f_code.co_name if owner is None else f'{type(owner).__name__}.{frame.f_code.co_name}'


def log_img_scale(img_scale: Sequence[int], shape_order: str = 'hw', skip_square: bool = False) -> bool:
    """Log an image's size as height and width; False where it is square and ``skip_square``.

    Raises:
        ValueError: ``shape_order`` is neither 'hw' nor 'wh'.
    """
    if shape_order not in ('hw', 'wh'):
        raise ValueError(f"shape_order is 'hw' or 'wh', not '{shape_order}'")
    height, width = img_scale if shape_order == 'hw' else reversed(img_scale)
    if skip_square and height == width:
        return False
    logging.getLogger('boxdet').info('image shape: height=%d, width=%d in %s', height, width, get_caller_name())
    return True
