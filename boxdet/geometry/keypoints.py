"""Keypoints: heatmaps and flips.

The half-pixel rule, stated here and nowhere else: keypoints are continuous coordinates, in which pixel i of an image or
of a heatmap covers [i, i + 1) and has its centre at i + 0.5. A keypoint at x lies in the heatmap cell
floor((x - x0) * W / w) of a box [x0, x0 + w); a cell c stands for the place x0 + (c + 0.5) * w / W (Heckbert 1990;
Detectron). Annotation and result files such as COCO's count pixels: ``HALF_PIXEL`` is added to what is read from them
(``CocoKeypointDataset.keypoint_offset``) and taken off what is written (``Instances.to_coco``).

Letters: R rois, J keypoints, H, W height and width of heatmaps.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from boxdet.geometry.boxes import at_least_float32

HALF_PIXEL = 0.5


def encode_heatmaps(keypoints: torch.Tensor, boxes: torch.Tensor,
                    heatmap_hw: int | tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The heatmap cell of each keypoint, for a cross entropy over the cells.

    Args:
        keypoints: (R, J, 3) x, y, visibility (0 for not labelled).
        boxes: (R, 4).
        heatmap_hw: H and W, or both in one number.

    Returns:
        cells: (R, J) int64 in [0, H * W), row by row; 0 where not valid.
        valid: (R, J) bool: labelled, and inside the box; a keypoint on its right or lower edge counts as inside.
    """
    height, width = (heatmap_hw, heatmap_hw) if isinstance(heatmap_hw, int) else heatmap_hw
    x, x_inside = _cell(keypoints[..., 0], boxes[:, 0:1], boxes[:, 2:3], width)
    y, y_inside = _cell(keypoints[..., 1], boxes[:, 1:2], boxes[:, 3:4], height)
    valid = x_inside & y_inside & (keypoints[..., 2] > 0)
    return torch.where(valid, y * width + x, 0), valid


def _cell(place: torch.Tensor, start: torch.Tensor, end: torch.Tensor,
          count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells (R, J) of places (R, J) on axes of ``count`` cells from start to end (R, 1), and whether they exist."""
    cell = ((place - start) * (count / (end - start))).floor()
    cell = torch.where(place == end, count - 1, cell)
    inside = (cell >= 0) & (cell < count)                                                # False for NaN too
    return torch.where(inside, cell, 0).long(), inside


def decode_heatmaps(heatmaps: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of each keypoint: the highest point of its heatmap enlarged (bicubic) to the box's size in pixels.

    Equal to Detectron and torchvision, which enlarge the rois one by one; here those of equal size go together, and
    the sizes reach the host in one copy.

    Args:
        heatmaps: (R, J, H, W) logits.
        boxes: (R, 4).

    Returns:
        keypoints: (R, J, 2) x and y. scores: (R, J) the logit there.
    """
    num_rois, num_keypoints = heatmaps.shape[:2]
    heatmaps, boxes = at_least_float32(heatmaps.detach()), at_least_float32(boxes.detach())
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)  # (R, 2) width, height
    pixels = size.ceil()
    keypoints = boxes.new_zeros(num_rois, num_keypoints, 2)
    scores = heatmaps.new_zeros(num_rois, num_keypoints)
    for (height, width), index in _rois_by_size(pixels):
        enlarged = F.interpolate(heatmaps[index], size=(height, width), mode='bicubic', align_corners=False)
        scores[index], place = enlarged.flatten(2).max(dim=-1)                           # (r, J)
        row = torch.div(place, width, rounding_mode='floor')
        cell = torch.stack([place - row * width, row], dim=-1)                           # (r, J, 2)
        keypoints[index] = (cell + HALF_PIXEL) * (size[index] / pixels[index])[:, None] + boxes[index, None, :2]
    return keypoints, scores


def _rois_by_size(pixels: torch.Tensor) -> list[tuple[tuple[int, int], torch.Tensor]]:
    """Each size (height, width) among ``pixels`` (R, 2), whole widths and heights, with the places (r,) that have it.

    Two copies between device and host, however many sizes there are.
    """
    members = defaultdict(list)
    for i, (width, height) in enumerate(pixels.long().tolist()):
        members[height, width].append(i)
    places = torch.tensor([i for index in members.values() for i in index], dtype=torch.long)
    parts = places.to(pixels.device, non_blocking=True).split([len(index) for index in members.values()])
    return list(zip(members, parts))


def decode_in_two_steps(heatmaps: torch.Tensor, boxes: torch.Tensor,
                        side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``decode_heatmaps``, without asking how large the boxes are: every tensor has a known size.

    Enlarging all rois to the largest one would take gigabytes. So the first step looks at twice as many pixels of a box
    as its heatmap has cells, evenly spread over it, and the second at every pixel around the ``_PEAKS`` best. A box
    that has no more pixels is seen whole in the first. The highest point is missed where more summits than that look
    higher in the first step: of random noise, but not of the smooth maps that networks make.

    Args:
        heatmaps: (R, J, H, W) logits.
        boxes: (R, 4).
        side: no box is wider or higher than this, in pixels.

    Returns:
        keypoints: (R, J, 2) x and y. scores: (R, J) the logit there.
    """
    heatmaps, boxes = at_least_float32(heatmaps), at_least_float32(boxes)
    cells = heatmaps.shape[2:]
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).flip(1)                            # (R, 2) height, width
    pixels = size.ceil()[:, :, None]                                                     # (R, 2, 1)
    maps = F.pad(heatmaps, (2, 2, 2, 2), mode='replicate')
    spread = [_spread(pixels[:, axis], 2 * cells[axis]) for axis in (0, 1)]              # (R, 2H), (R, 2W)
    down, across = (_cubic(spread[axis], pixels[:, axis], cells[axis])[:, None] for axis in (0, 1))
    coarse = down @ maps @ across.mT                                                     # (R, J, 2H, 2W)
    summits = torch.where(coarse == F.max_pool2d(coarse, 3, stride=1, padding=1), coarse, -torch.inf)
    best = summits.flatten(2).topk(_PEAKS, dim=-1).indices.flatten(1)                    # (R, J * peaks)
    reach = torch.arange(side // (2 * min(cells)) + 2, device=boxes.device)
    around = torch.cat([-reach[1:].flip(0), reach])                                      # (T,)
    peaks = torch.div(best, 2 * cells[1], rounding_mode='floor'), best % (2 * cells[1])
    rows, columns = ((spread[axis].gather(1, peaks[axis])[..., None] + around).clamp(min=0)
                     .minimum(pixels[:, axis, None] - 1).unflatten(1, (-1, _PEAKS)) for axis in (0, 1))
    down, across = (_cubic(at, pixels[:, axis, None, None], cells[axis]) for axis, at in enumerate((rows, columns)))
    of_rows, column = (down @ maps[:, :, None] @ across.mT).max(dim=-1)                  # (R, J, peaks, T)
    scores, row = of_rows.flatten(2).max(dim=-1)                                         # (R, J), row among all peaks'
    cell = torch.stack([columns.gather(3, column), rows], dim=-1).flatten(2, 3)          # (R, J, peaks * T, 2) x, y
    cell = cell.gather(2, row[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)          # (R, J, 2)
    return (cell + HALF_PIXEL) * (size / pixels[..., 0]).flip(1)[:, None] + boxes[:, None, :2], scores


_PEAKS = 8


def _spread(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """(R, count) of the pixels 0, 1, ... of an axis with ``pixels`` (R, 1): all of them, or evenly spread ones."""
    each = torch.arange(count, device=pixels.device) + 0.5
    return (each * pixels.clamp(min=count) / count).floor().minimum(pixels - 1)


def _cubic(pixel: torch.Tensor, pixels: torch.Tensor, cells: int) -> torch.Tensor:
    """(..., T, cells + 4): how much each cell counts at pixels (..., T) of an axis enlarged to ``pixels`` (..., 1).

    As torch's bicubic enlargement (a = -0.75) of an axis with two more cells at either end.
    """
    place = (pixel + 0.5) * (cells / pixels) - 0.5
    t = (place[..., None] - torch.arange(-2, cells + 2, device=pixel.device)).abs()
    near, far = (1.25 * t - 2.25) * t * t + 1, -0.75 * (((t - 5) * t + 8) * t - 4)
    return torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))


def heatmap_probabilities(heatmaps: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Detectron's score of keypoints: the exponential of ``logits`` (R, J) over the sum of the heatmaps' (R, J, H, W).

    The logit was found on the enlarged heatmap and the sum is over the small one, so that large and small objects can
    be compared; where the enlarging overshoots it exceeds 1.
    """
    return (-(at_least_float32(heatmaps.detach()).flatten(2) - logits[..., None]).logsumexp(dim=-1)).exp()


def flip_keypoints(keypoints: torch.Tensor, shape: Sequence[int], flip_pairs: Sequence[tuple[int, int]],
                   direction: str = 'horizontal') -> torch.Tensor:
    """Mirror keypoints (..., J, 2 or 3) with their image of ``shape`` (H, W, ...); left and right ones change places.

    ``direction`` 'diagonal' turns the image by half a circle: no mirror, and every keypoint keeps its name.
    """
    x, y, rest = keypoints[..., :1], keypoints[..., 1:2], keypoints[..., 2:]
    x = shape[1] - x if direction != 'vertical' else x
    y = shape[0] - y if direction != 'horizontal' else y
    return torch.cat([x, y, rest], dim=-1)[..., _order(keypoints.shape[-2], flip_pairs, direction), :]


def flip_heatmaps(heatmaps: torch.Tensor, flip_pairs: Sequence[tuple[int, int]],
                  direction: str = 'horizontal') -> torch.Tensor:
    """Mirror heatmaps (..., J, H, W) as ``flip_keypoints`` mirrors keypoints."""
    axes = dict(horizontal=(-1,), vertical=(-2,), diagonal=(-2, -1))[direction]
    return heatmaps[..., _order(heatmaps.shape[-3], flip_pairs, direction), :, :].flip(axes)


def _order(num_keypoints: int, flip_pairs: Sequence[tuple[int, int]], direction: str) -> list[int]:
    return list(range(num_keypoints)) if direction == 'diagonal' else flip_order(num_keypoints, flip_pairs)


def flip_order(num_keypoints: int, flip_pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Which keypoint stands in each of the J places after a flip.

    Raises:
        ValueError: a pair names a keypoint that does not exist, or one that another pair has.

    >>> flip_order(5, [(1, 2), (3, 4)])
    [0, 2, 1, 4, 3]
    """
    named = [keypoint for pair in flip_pairs for keypoint in pair]
    if len(set(named)) != len(named) or not all(0 <= keypoint < num_keypoints for keypoint in named):
        raise ValueError(f'flip pairs {list(flip_pairs)} do not pair {num_keypoints} keypoints')
    order = list(range(num_keypoints))
    for left, right in flip_pairs:
        order[left], order[right] = right, left
    return order
