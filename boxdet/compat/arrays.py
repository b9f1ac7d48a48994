"""Functions on tensors and masks of ``mmdet.core``, ``mmdet.models.utils`` and ``mmdet.utils``.

Letters: N masks or boxes, K classes, L levels.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from boxdet.errors import ArgumentError
from boxdet.structures.masks import BitmapMasks, PolygonMasks, RleMasks

_FLIPPED = {'horizontal': [3], 'vertical': [2], 'diagonal': [2, 3]}


def mask2ndarray(mask: BitmapMasks | PolygonMasks | RleMasks | Tensor | np.ndarray) -> np.ndarray:
    """Masks (N, H, W) of any kind as an array.

    Raises:
        TypeError: of another kind.
    """
    if isinstance(mask, (BitmapMasks, PolygonMasks, RleMasks)):
        return mask.to_bitmaps()
    if isinstance(mask, Tensor):
        return mask.detach().cpu().numpy()
    if not isinstance(mask, np.ndarray):
        raise TypeError(f'masks are BitmapMasks, PolygonMasks, RleMasks, a tensor or an array, not {type(mask)}')
    return mask


def center_of_mass(mask: Tensor, esp: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Row and column of the mean of a mask (H, W), weighted by its values; ``esp`` keeps an empty one from 0 / 0."""
    rows, cols = (torch.arange(side, device=mask.device) for side in mask.shape)
    total = mask.sum().clamp(min=esp)
    return (mask.sum(dim=1) * rows).sum() / total, (mask.sum(dim=0) * cols).sum() / total


def flip_tensor(src_tensor: Tensor, flip_direction: str) -> Tensor:
    """Maps (B, C, H, W) mirrored 'horizontal', 'vertical' or 'diagonal' (both)."""
    assert src_tensor.dim() == 4, f'maps are (B, C, H, W), not {tuple(src_tensor.shape)}'
    assert flip_direction in _FLIPPED, f"flip direction '{flip_direction}' is none of {', '.join(_FLIPPED)}"
    return src_tensor.flip(_FLIPPED[flip_direction])


def select_single_mlvl(mlvl_tensors: Sequence[Tensor], batch_id: int, detach: bool = True) -> list[Tensor]:
    """The maps of image ``batch_id`` of L maps of all images."""
    found = [level[batch_id] for level in mlvl_tensors]
    return [level.detach() for level in found] if detach else found


def filter_scores_and_topk(scores: Tensor, score_thr: float, topk: int,
                           results: dict[str, Any] | list[Any] | Tensor | None = None) -> tuple[Any, ...]:
    """The ``topk`` highest scores above ``score_thr``.

    Args:
        scores: (N, K).
        score_thr: what a score is above.
        topk: how many at most.
        results: a tensor of N rows, or a list or dict of such, of which the rows of the chosen scores are taken.

    Returns:
        scores, classes and rows (n,) each, best first, and the chosen ``results`` or None.

    Raises:
        ValueError: ``results`` of another kind.
    """
    rows, labels = (scores > score_thr).nonzero(as_tuple=True)
    best, order = scores[rows, labels].sort(descending=True)
    best, order = best[:topk], order[:topk]
    rows, labels = rows[order], labels[order]
    if isinstance(results, Mapping):
        chosen: Any = {name: value[rows] for name, value in results.items()}
    elif isinstance(results, list):
        chosen = [value[rows] for value in results]
    elif results is None or isinstance(results, Tensor):
        chosen = results if results is None else results[rows]
    else:
        raise ArgumentError(f'results are a tensor, a list or a dict of tensors, not {type(results)}')
    return best, labels, rows, chosen


def mask_matrix_nms(masks: Tensor, labels: Tensor, scores: Tensor, filter_thr: float = -1, nms_pre: int = -1,
                    max_num: int = -1, kernel: str = 'gaussian', sigma: float = 2.0,
                    mask_area: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matrix NMS (Wang et al. 2020, SOLOv2): scores decay by the overlap with better masks of the same class.

    Args:
        masks: (N, H, W) of 0 and 1.
        labels: (N,).
        scores: (N,).
        filter_thr: decayed scores below it are left out; -1 for none.
        nms_pre: how many of the best masks are looked at; -1 for all.
        max_num: how many are returned; -1 for all.
        kernel: how a score decays, 'gaussian' or 'linear'.
        sigma: of the gaussian kernel.
        mask_area: (N,) pixels of the masks.

    Returns:
        scores (n,), labels (n,), masks (n, H, W), best first, and their rows (n,) in what was given.

    Raises:
        ValueError: another kernel.
    """
    assert len(labels) == len(masks) == len(scores), 'one label and one score a mask'
    area = masks.flatten(1).sum(dim=1).float() if mask_area is None else mask_area
    assert len(area) == len(masks), 'one area a mask'
    if kernel not in ('gaussian', 'linear'):
        raise ArgumentError(f"mask_matrix_nms: kernel is 'gaussian' or 'linear', not '{kernel}'")
    if not len(masks):
        return scores, labels, masks, torch.zeros_like(labels)
    keep = scores.argsort(descending=True)
    keep = keep[:nms_pre] if nms_pre > 0 else keep
    scores, labels, masks, area = scores[keep], labels[keep], masks[keep], area[keep]
    flat = masks.flatten(1).float()
    inter = flat @ flat.T
    iou = inter / (area[:, None] + area[None] - inter)
    iou = (iou * (labels[:, None] == labels[None])).triu(diagonal=1)      # (better, worse) of one class
    worst = iou.amax(dim=0)[:, None]                                      # of the better one, with those before it
    decay = torch.exp(-sigma * (iou ** 2 - worst ** 2)) if kernel == 'gaussian' else (1 - iou) / (1 - worst)
    scores = scores * decay.amin(dim=0)
    if filter_thr > 0:
        left = (scores >= filter_thr).nonzero().squeeze(1)
        scores, labels, masks, keep = scores[left], labels[left], masks[left], keep[left]
    order = scores.argsort(descending=True)
    order = order[:max_num] if max_num > 0 else order
    return scores[order], labels[order], masks[order], keep[order]


def interpolate_as(source: Tensor, target: Tensor | np.ndarray, mode: str = 'bilinear',
                   align_corners: bool = False) -> Tensor:
    """``source`` (..., h, w) in the height and width of ``target`` (..., H, W)."""
    size = tuple(target.shape[-2:])
    whole = source[None] if source.dim() == 3 else source
    whole = F.interpolate(whole, size=size, mode=mode, align_corners=align_corners)
    return whole[0] if source.dim() == 3 else whole


def sigmoid_geometric_mean(x: Tensor, y: Tensor) -> Tensor:
    """The square root of the product of both sigmoids."""
    return (0.5 * (F.logsigmoid(x) + F.logsigmoid(y))).exp()


def cast_tensors(value: Any, dst_type: torch.dtype | torch.device | None = None,
                 src_type: torch.dtype | torch.device | None = None) -> Any:
    """``mmdet.utils.memory.cast_tensor_type``: tensors in lists, tuples and dicts, to a type or a device.

    Args:
        value: tensors, lists, tuples and dicts of them; anything else stays as it is.
        dst_type: what they become.
        src_type: only tensors that are of it.
    """
    assert dst_type is not None, 'dst_type is the type or the device that tensors become'
    if isinstance(value, Tensor):
        is_other = src_type is not None and src_type not in (value.dtype, value.device)
        return value if is_other else value.to(dst_type)
    if isinstance(value, dict):
        return type(value)((key, cast_tensors(one, dst_type, src_type)) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(cast_tensors(one, dst_type, src_type) for one in value)
    return value


class AvoidOOM:
    """Call a function again when a GPU's memory does not suffice: in half precision, then on the CPU.

    Args:
        to_cpu: try the CPU last.
        test: leave the first try out.
    """

    def __init__(self, to_cpu: bool = True, test: bool = False):
        self.to_cpu, self.test = to_cpu, test

    def retry_if_cuda_oom(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """``func`` with these tries; the result is of the type and on the device of its first tensor."""
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            given = next(_tensors((args, kwargs)), torch.zeros(()))
            tries = [] if self.test else [(args, kwargs)]
            tries.append(cast_tensors((args, kwargs), torch.half, given.dtype))
            for own_args, own_kwargs in tries:
                try:
                    return cast_tensors(func(*own_args, **own_kwargs), given.dtype, torch.half)
                except torch.cuda.OutOfMemoryError:
                    torch.cuda.empty_cache()
            if self.to_cpu:
                args, kwargs = cast_tensors((args, kwargs), torch.device('cpu'))
            return cast_tensors(func(*args, **kwargs), given.device)
        return wrapped


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from _tensors(one)
