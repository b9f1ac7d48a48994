"""Which ground truth a box is matched to (Ren et al. 2015, section 3.1.2), in bounded memory.

Letters: N boxes (anchors or proposals), G ground-truth boxes, M boxes to be ignored, C chunks of n
boxes.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from boxdet.errors import ArgumentError, ConfigError
from boxdet.geometry.boxes import at_least_float32, box_overlaps
from boxdet.registry import BBOX_ASSIGNERS, IOU_CALCULATORS, Cfg

# Values of AssignResult.gt_inds below the first match, which is 1 (mmdetection's numbers).
IGNORED = -1
BACKGROUND = 0

# Overlaps (G, n) computed at once: on the CPU they should stay in its cache, on a GPU launches should be few.
_CHUNK_CPU, _CHUNK_GPU = 1 << 16, 1 << 24
# Boxes of a chunk at least: what is remembered of each chunk is then a thousandth of all overlaps.
_LEAST_STEP = 1024


@dataclass
class AssignResult:
    """What N boxes are matched to.

    Args:
        num_gts: G.
        gt_inds: (N,) int64: i + 1 for ground truth i, ``BACKGROUND`` (0), or ``IGNORED`` (-1), neither good nor bad.
        max_overlaps: (N,) overlap with the best ground truth; -1 for boxes that lie in an ignored region.
        labels: (N,) int64 class of the matched ground truth, -1 where there is none; None if no classes were given.
    """
    num_gts: int
    gt_inds: torch.Tensor
    max_overlaps: torch.Tensor
    labels: torch.Tensor | None = None

    def with_gt(self, gt_labels: torch.Tensor | None) -> AssignResult:
        """The result for the G ground-truth boxes, each matched to itself, followed by the N boxes."""
        own = torch.arange(1, self.num_gts + 1, device=self.gt_inds.device)
        labels = self.labels
        if labels is not None:
            assert gt_labels is not None  # the labels of the boxes are taken from them
            labels = torch.cat([gt_labels.to(labels), labels])
        return AssignResult(self.num_gts, torch.cat([own, self.gt_inds]),
                            torch.cat([self.max_overlaps.new_ones(self.num_gts), self.max_overlaps]), labels)


@IOU_CALCULATORS.register_module()
class BboxOverlaps2D:
    """IoU, IoF or GIoU of boxes.

    Args:
        scale: in half precision boxes are divided by this first, since areas above 65504 have no float16.
        dtype: ``'fp16'`` computes in half precision; None as the boxes come, in float32 at least.

    Raises:
        ConfigError: another dtype.
    """

    def __init__(self, scale: float = 1.0, dtype: str | None = None):
        if dtype not in (None, 'fp16'):
            raise ConfigError(f"BboxOverlaps2D: dtype is None or 'fp16', not '{dtype}'")
        self.scale = scale
        self.dtype = dtype

    def __call__(self, bboxes1: torch.Tensor, bboxes2: torch.Tensor, mode: str = 'iou',
                 is_aligned: bool = False) -> torch.Tensor:
        """Overlap (N, M) of boxes (N, 4) and (M, 4), or (N,) when aligned; a fifth column (a score) is left out.

        Boxes (B, N, 4) and (B, M, 4), of several images, give (B, N, M) or (B, N).

        Raises:
            ValueError: an unknown mode, aligned boxes of different lengths, or of different numbers of images.
        """
        if bboxes1.dim() > 2:
            if bboxes1.shape[:-2] != bboxes2.shape[:-2]:
                raise ArgumentError(f'boxes {tuple(bboxes1.shape)} and {tuple(bboxes2.shape)} are of different numbers '
                                    'of images')
            found = [self(one, other, mode, is_aligned) for one, other in zip(bboxes1, bboxes2)]
            count = bboxes1.shape[-2:-1] if is_aligned else (bboxes1.shape[-2], bboxes2.shape[-2])
            return torch.stack(found) if found else bboxes1.new_zeros((*bboxes1.shape[:-2], *count))
        first, second = self._prepare(bboxes1), self._prepare(bboxes2)
        overlaps = box_overlaps(first, second, mode, is_aligned)
        # Half precision saves memory on GPUs; on the CPU what follows has no fast half arithmetic.
        return overlaps.float() if self.dtype == 'fp16' and not overlaps.is_cuda else overlaps

    def _prepare(self, boxes: torch.Tensor) -> torch.Tensor:
        boxes = boxes[..., :4]
        if self.dtype == 'fp16':
            return (boxes / self.scale).half()
        return at_least_float32(boxes)

    def __repr__(self) -> str:
        return f'BboxOverlaps2D(scale={self.scale}, dtype={self.dtype})'


@BBOX_ASSIGNERS.register_module()
class MaxIoUAssigner:
    """Match each box with the ground truth it overlaps most.

    1. every box is ignored; 2. overlaps within the range of ``neg_iou_thr`` make it background; 3. an overlap of at
    least ``pos_iou_thr`` matches it; 4. with ``match_low_quality``, every ground truth also takes the boxes that
    overlap it most, a later ground truth winning over an earlier one and over step 3.

    Without ground truth every box is background, also in ignored regions, as in mmdetection.

    Args:
        pos_iou_thr: overlap from which a box is matched.
        neg_iou_thr: below this overlap a box is background; or (lower, upper), the lower one included. 0 stands for
            the boxes that overlap nothing: mmdetection takes it literally and finds no background at all.
        min_pos_iou: overlap from which a ground truth takes its best boxes in step 4.
        gt_max_assign_all: in step 4 all boxes of equal best overlap; else the first of them.
        ignore_iof_thr: boxes of which more than this part lies in an ignored region take no part; <= 0 for none.
        ignore_wrt_candidates: that part is of the box's area; else of the ignored region's.
        match_low_quality: do step 4.
        gpu_assign_thr: accepted from mmdetection's configs, where many ground truths went to the CPU to save memory;
            here memory is bounded for any number of them.
        iou_calculator: config of the overlap.

    Raises:
        ConfigError: a threshold outside [0, 1] or an empty range.
    """

    def __init__(self, pos_iou_thr: float, neg_iou_thr: float | Sequence[float], min_pos_iou: float = 0.0,
                 gt_max_assign_all: bool = True, ignore_iof_thr: float = -1, ignore_wrt_candidates: bool = True,
                 match_low_quality: bool = True, gpu_assign_thr: float = -1,
                 iou_calculator: Cfg | Callable[..., torch.Tensor] | None = None):
        self.pos_iou_thr = pos_iou_thr
        self.neg_iou_thr = neg_iou_thr
        self.min_pos_iou = min_pos_iou
        self.gt_max_assign_all = gt_max_assign_all
        self.ignore_iof_thr = ignore_iof_thr
        self.ignore_wrt_candidates = ignore_wrt_candidates
        self.match_low_quality = match_low_quality
        self.gpu_assign_thr = gpu_assign_thr
        self.iou_calculator = IOU_CALCULATORS.build(iou_calculator or dict(type='BboxOverlaps2D'))
        self._check()

    def _check(self) -> None:
        negative = self.neg_iou_thr
        if isinstance(negative, Sequence) and (len(negative) != 2 or negative[0] >= negative[1]):
            raise ConfigError(f'MaxIoUAssigner: neg_iou_thr is a number or (lower, upper), not {self.neg_iou_thr}')
        limits: dict[str, Sequence[float]] = dict(
            pos_iou_thr=[self.pos_iou_thr], min_pos_iou=[self.min_pos_iou],
            neg_iou_thr=negative if isinstance(negative, Sequence) else [negative])
        for name, values in limits.items():
            if not all(0 <= value <= 1 for value in values):
                raise ConfigError(f'MaxIoUAssigner: {name} is in [0, 1], not {getattr(self, name)}')

    @torch.no_grad()
    def assign(self, bboxes: torch.Tensor, gt_bboxes: torch.Tensor, gt_bboxes_ignore: torch.Tensor | None = None,
               gt_labels: torch.Tensor | None = None) -> AssignResult:
        """Match boxes (N, 4), a fifth column being left out, with ``gt_bboxes`` (G, 4) of labels (G,).

        Args:
            bboxes: (N, 4) or (N, 5) candidates.
            gt_bboxes: (G, 4) ground truth.
            gt_bboxes_ignore: (M, 4) regions to be ignored, or None.
            gt_labels: (G,), or None where only objectness is asked for.
        """
        num_gts = len(gt_bboxes)
        gt_inds = bboxes.new_full((len(bboxes),), IGNORED, dtype=torch.long)
        kind = torch.promote_types(at_least_float32(bboxes).dtype, at_least_float32(gt_bboxes).dtype)
        max_overlaps = bboxes.new_zeros(len(bboxes), dtype=kind)
        labels = None if gt_labels is None else torch.full_like(gt_inds, -1)
        if not num_gts or not len(bboxes):
            return AssignResult(num_gts, gt_inds.fill_(BACKGROUND), max_overlaps, labels)
        bboxes = bboxes[..., :4]
        chunks = self._chunks(len(bboxes), num_gts, bboxes.is_cuda)
        # Written in place: small tensors kept from each round would leave the heap in pieces, several times the size.
        best = max_overlaps.new_zeros(len(chunks), num_gts)                                  # (C, G)
        best_box = gt_inds.new_zeros(len(chunks), num_gts)                                   # (C, G)
        for i, part in enumerate(chunks):
            overlaps = self._overlaps(bboxes[part], gt_bboxes, gt_bboxes_ignore)             # (G, n)
            max_overlaps[part], argmax = overlaps.max(dim=0)
            gt_inds[part] = self._thresholds(max_overlaps[part], argmax)
            if self.match_low_quality:
                best[i], best_box[i] = overlaps.max(dim=1)
                best_box[i] += part.start
        if self.match_low_quality:
            match = self._best_boxes if self.gt_max_assign_all else self._first_best_box
            taken = match(best, best_box, chunks, bboxes, gt_bboxes, max_overlaps)
            gt_inds = torch.where(taken > 0, taken, gt_inds)
        if labels is not None and gt_labels is not None:
            labels = torch.where(gt_inds > 0, gt_labels.long()[(gt_inds - 1).clamp(min=0)], labels)
        return AssignResult(num_gts, gt_inds, max_overlaps, labels)

    @staticmethod
    def _chunks(num_boxes: int, num_gts: int, is_cuda: bool) -> list[slice]:
        step = max((_CHUNK_GPU if is_cuda else _CHUNK_CPU) // num_gts, _LEAST_STEP)
        return [slice(start, min(start + step, num_boxes)) for start in range(0, num_boxes, step)]

    def _overlaps(self, bboxes: torch.Tensor, gt_bboxes: torch.Tensor,
                  ignored: torch.Tensor | None) -> torch.Tensor:
        """Overlaps (G, n) of a chunk, -1 for boxes in ignored regions."""
        overlaps = self.iou_calculator(gt_bboxes, bboxes)
        if self.ignore_iof_thr > 0 and ignored is not None and len(ignored):
            if self.ignore_wrt_candidates:
                covered = self._most_covered(bboxes, ignored)
            else:
                covered = self.iou_calculator(ignored, bboxes, mode='iof').amax(dim=0)
            overlaps.masked_fill_(covered > self.ignore_iof_thr, -1)
        return overlaps

    def _most_covered(self, bboxes: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        """The largest part (n,) of each box that lies in one of the ignored regions."""
        step = max((_CHUNK_GPU if bboxes.is_cuda else _CHUNK_CPU) // len(bboxes), 1)
        parts = [self.iou_calculator(bboxes, some, mode='iof').amax(dim=1) for some in ignored.split(step)]
        return torch.stack(parts).amax(dim=0)

    def _thresholds(self, overlaps: torch.Tensor, argmax: torch.Tensor) -> torch.Tensor:
        """Steps 1 to 3 of the rule for boxes of best overlap (n,) with ground truth ``argmax`` (n,)."""
        if isinstance(self.neg_iou_thr, Sequence):
            negative = (overlaps >= self.neg_iou_thr[0]) & (overlaps < self.neg_iou_thr[1])
        elif self.neg_iou_thr == 0:
            negative = overlaps == 0
        else:
            negative = (overlaps >= 0) & (overlaps < self.neg_iou_thr)
        result = torch.full_like(argmax, IGNORED).masked_fill_(negative, BACKGROUND)
        return torch.where(overlaps >= self.pos_iou_thr, argmax + 1, result)

    def _first_best_box(self, best: torch.Tensor, best_box: torch.Tensor, chunks: Sequence[slice],
                        bboxes: torch.Tensor, gt_bboxes: torch.Tensor, max_overlaps: torch.Tensor) -> torch.Tensor:
        """Step 4 with the first best box of each ground truth; arguments and result as of ``_best_boxes``."""
        value, chunk = best.max(dim=0)  # (G,); the first of equals
        wants = _numbers(value >= self.min_pos_iou)
        box = best_box.gather(0, chunk[None])[0]                                             # (G,)
        return max_overlaps.new_zeros(len(bboxes), dtype=torch.long).scatter_reduce_(0, box, wants, 'amax')

    def _best_boxes(self, best: torch.Tensor, best_box: torch.Tensor, chunks: Sequence[slice], bboxes: torch.Tensor,
                    gt_bboxes: torch.Tensor, max_overlaps: torch.Tensor) -> torch.Tensor:
        """Step 4 with every best box of each ground truth.

        Args:
            best: (C, G) best overlap in each of C chunks.
            best_box: (C, G) place of the first box that has it.
            chunks: the slices of ``bboxes``.
            bboxes: (N, 4).
            gt_bboxes: (G, 4).
            max_overlaps: (N,), -1 for boxes in ignored regions.

        Returns:
            (N,) the last ground truth, as i + 1, that takes the box; 0 for none.
        """
        highest = best.amax(dim=0)                                                           # (G,)
        # Overlaps are computed again, but only of a ground truth with the few chunks that hold its best boxes.
        chunk, gt = ((best == highest) & (highest >= self.min_pos_iou)).nonzero(as_tuple=True)
        taken = max_overlaps.new_zeros(len(bboxes), dtype=torch.long)
        counts = chunk.bincount(minlength=len(chunks)).tolist()
        for part, rows in zip(chunks, gt.split(counts)):
            if len(rows):
                overlaps = self.iou_calculator(gt_bboxes[rows], bboxes[part])                # (g, n)
                equal = (overlaps == highest[rows, None]) & (max_overlaps[part] >= 0)
                # The last ground truth wins: of all that want a box, the one of the largest number.
                taken[part] = torch.where(equal, rows[:, None] + 1, 0).amax(dim=0)
        return taken

    def __repr__(self) -> str:
        return (f'MaxIoUAssigner(pos_iou_thr={self.pos_iou_thr}, neg_iou_thr={self.neg_iou_thr}, '
                f'min_pos_iou={self.min_pos_iou}, match_low_quality={self.match_low_quality}, '
                f'ignore_iof_thr={self.ignore_iof_thr})')


def _numbers(chosen: torch.Tensor) -> torch.Tensor:
    """(G,) ``index + 1`` of the ground truths that are ``chosen`` (G,), 0 for the others."""
    return torch.arange(1, len(chosen) + 1, device=chosen.device) * chosen
