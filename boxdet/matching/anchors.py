"""Anchors: boxes of fixed shapes on a grid (Ren et al. 2015, section 3.1.1; octaves from Lin et al. 2017, RetinaNet).

Letters: L levels, A anchors a cell, H, W height and width of a level, S scales, Q ratios.
"""
from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch

from boxdet.errors import ArgumentError, ConfigError
from boxdet.registry import ANCHOR_GENERATORS

# Sets of grids that are remembered; a set for 800x1333 pixels on five levels is 4 MB.
_REMEMBERED = 16


@ANCHOR_GENERATORS.register_module()
class AnchorGenerator:
    """Anchors of every cell of L feature maps.

    Args:
        strides: L strides in pixels, a number or (horizontal, vertical).
        ratios: height / width of the anchors.
        scales: sizes as multiples of the base size; or else ``octave_base_scale`` and ``scales_per_octave`` together:
            ``octave_base_scale * 2 ** (i / scales_per_octave)``.
        base_sizes: L base sizes in pixels; the smaller stride of each level by default.
        scale_major: order of the A anchors of a cell: the scales of the first ratio first; else the ratios of the
            first scale first.
        centers: L points (x, y) that the first cell's anchors stand on.
        center_offset: where no ``centers`` are given: this part of the base size, in [0, 1].

    Raises:
        ConfigError: scales and octaves are both given or both missing, a list is not L long, or an offset is wrong.

    >>> generator = AnchorGenerator(strides=[16], ratios=[1.0], scales=[1.0], base_sizes=[9])
    >>> generator.grid_priors([(2, 2)], device='cpu')[0].tolist()[:2]
    [[-4.5, -4.5, 4.5, 4.5], [11.5, -4.5, 20.5, 4.5]]
    """

    def __init__(self, strides: Sequence[float | Sequence[float]], ratios: Sequence[float],
                 scales: Sequence[float] | None = None, base_sizes: Sequence[float] | None = None,
                 scale_major: bool = True, octave_base_scale: float | None = None,
                 scales_per_octave: int | None = None, centers: Sequence[Sequence[float]] | None = None,
                 center_offset: float = 0.0):
        self.strides = [(s, s) if isinstance(s, (int, float)) else tuple(s) for s in strides]
        self.base_sizes = [min(s) for s in self.strides] if base_sizes is None else list(base_sizes)
        self.scales = _scales(scales, octave_base_scale, scales_per_octave)
        self.ratios = list(ratios)
        if not self.ratios or not len(self.scales):
            raise ConfigError('AnchorGenerator: scales and ratios name one number each at least')
        self.scale_major = scale_major
        self.centers = centers
        self.center_offset = center_offset
        self._check()
        self.base_anchors = [self._base_anchors(level) for level in range(self.num_levels)]
        self._grids: OrderedDict[tuple, list[torch.Tensor]] = OrderedDict()

    def _check(self) -> None:
        if len(self.base_sizes) != self.num_levels:
            raise ConfigError(f'AnchorGenerator: {len(self.base_sizes)} base_sizes for {self.num_levels} strides')
        if self.centers is not None and len(self.centers) != self.num_levels:
            raise ConfigError(f'AnchorGenerator: {len(self.centers)} centers for {self.num_levels} strides')
        if not 0 <= self.center_offset <= 1:
            raise ConfigError(f'AnchorGenerator: center_offset is in [0, 1], not {self.center_offset}')
        if self.center_offset != 0 and self.centers is not None:
            raise ConfigError('AnchorGenerator: give centers or center_offset, not both')

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.strides)

    @property
    def num_base_priors(self) -> list[int]:
        """A of each level."""
        return [len(anchors) for anchors in self.base_anchors]

    @property
    def num_base_anchors(self) -> list[int]:
        """A of each level, under the name that 2.x gave it first."""
        return self.num_base_priors

    def _base_anchors(self, level: int) -> torch.Tensor:
        """The anchors (A, 4) of a level's first cell."""
        size = self.base_sizes[level]
        # On the CPU whatever the default device: models are built on the meta device too.
        scales = torch.tensor(self.scales, dtype=torch.float32, device='cpu')                # (S,)
        tall = torch.tensor(self.ratios, dtype=torch.float32, device='cpu').sqrt()           # (Q,)
        wide = 1 / tall
        if self.scale_major:
            widths, heights = (size * side[:, None] * scales[None] for side in (wide, tall))        # (Q, S)
        else:
            widths, heights = (size * scales[:, None] * side[None] for side in (wide, tall))        # (S, Q)
        x, y = (self.center_offset * size,) * 2 if self.centers is None else self.centers[level]
        half_w, half_h = 0.5 * widths.flatten(), 0.5 * heights.flatten()                     # (A,)
        return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)

    def grid_priors(self, featmap_sizes: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32,
                    device: torch.device | str = 'cuda') -> list[torch.Tensor]:
        """L tensors (H * W * A, 4): row by row, the A anchors of a cell together.

        The last few sets are remembered and handed out again to the same thread and stream: do not write into them.

        Args:
            featmap_sizes: L pairs (H, W).
            dtype: of the anchors.
            device: where they are wanted.
        """
        if len(featmap_sizes) != self.num_levels:
            raise ArgumentError(f'{len(featmap_sizes)} feature maps for {self.num_levels} strides')
        if torch.compiler.is_compiling():  # in a graph sizes may be symbols, and nothing may outlive its making
            return self._made(featmap_sizes, dtype, device)
        sizes, device = tuple((int(h), int(w)) for h, w in featmap_sizes), _numbered(device)
        key = (sizes, dtype, device, *line_of_work(device))
        grids = self._grids.get(key)
        if grids is None:
            # Grids outlive the call: made in inference mode, they could not take part in a later training step.
            with torch.inference_mode(False):
                grids = self._made(sizes, dtype, device)
            self._grids[key] = grids
        # Threads may share the generator: what one of them is about to touch another may have thrown away.
        with contextlib.suppress(KeyError):
            self._grids.move_to_end(key)
            while len(self._grids) > _REMEMBERED:
                self._grids.popitem(last=False)
        return list(grids)

    def grid_anchors(self, featmap_sizes: Sequence[tuple[int, int]],
                     device: torch.device | str = 'cuda') -> list[torch.Tensor]:
        """``grid_priors`` under the name that 2.x gave it first."""
        return self.grid_priors(featmap_sizes, device=device)

    def _made(self, sizes: Sequence[tuple[int, int]], dtype: torch.dtype,
              device: torch.device | str) -> list[torch.Tensor]:
        steps = self._steps(sizes)
        return [self._grid(level, size, steps[level], dtype, device) for level, size in enumerate(sizes)]

    def _steps(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
        """L distances in pixels from cell to cell, (horizontal, vertical), for maps of these sizes."""
        return self.strides  # type: ignore[return-value]  # two numbers each

    def _grid(self, level: int, size: tuple[int, int], step: tuple[float, float], dtype: torch.dtype,
              device: torch.device | str) -> torch.Tensor:
        height, width = size
        base = self.base_anchors[level].to(device=device, dtype=dtype, non_blocking=True)                      # (A, 4)
        x = torch.arange(width, device=device).to(dtype) * step[0]
        y = torch.arange(height, device=device).to(dtype) * step[1]
        x, y = x[None].expand(height, width), y[:, None].expand(height, width)
        corners = torch.stack([x, y, x, y], dim=-1)[:, :, None] + base                       # (H, W, A, 4)
        return corners.reshape(-1, 4)

    def valid_flags(self, featmap_sizes: Sequence[tuple[int, int]], pad_shape: Sequence[int],
                    device: torch.device | str = 'cuda') -> list[torch.Tensor]:
        """L masks (H * W * A,) bool of the anchors whose cell begins inside an image of (height, width, ...) pixels."""
        flags = []
        for (height, width), stride, count in zip(featmap_sizes, self.strides, self.num_base_priors):
            inside = torch.zeros(height, width, count, dtype=torch.bool, device=device)
            inside[:math.ceil(pad_shape[0] / stride[1]), :math.ceil(pad_shape[1] / stride[0])] = True
            flags.append(inside.flatten())
        return flags

    def __getstate__(self) -> dict:
        # Copies and pickles leave the remembered grids behind.
        return {**self.__dict__, '_grids': OrderedDict()}

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(strides={self.strides}, ratios={self.ratios}, scales={self.scales}, '
                f'base_sizes={self.base_sizes}, scale_major={self.scale_major}, centers={self.centers}, '
                f'center_offset={self.center_offset})')


@ANCHOR_GENERATORS.register_module()
class TorchvisionAnchorGenerator(AnchorGenerator):
    """Anchors as ``torchvision.models.detection`` lays them; arguments as in ``AnchorGenerator``.

    Corners are rounded to whole pixels. A level's cells are as far apart as the input's size divided by the level's,
    rounded down: 61 pixels for the 13 rows of the last level of an input 800 pixels high, and not 64. The input's size
    is that of the finest level times its stride.
    """

    def _base_anchors(self, level: int) -> torch.Tensor:
        return super()._base_anchors(level).round()

    def _steps(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
        height, width = sizes[0][0] * self.strides[0][1], sizes[0][1] * self.strides[0][0]
        return [(width // w, height // h) for h, w in sizes]


def _numbered(device: torch.device | str) -> torch.device:
    """``device`` with its number: 'cuda' alone is whichever GPU is the current one."""
    device = torch.device(device)
    if device.type == 'cuda' and device.index is None and torch.cuda.is_available():
        return torch.device('cuda', torch.cuda.current_device())
    return device


def _scales(scales: Sequence[float] | None, octave_base_scale: float | None,
            scales_per_octave: int | None) -> list[float]:
    if scales is not None and octave_base_scale is None and scales_per_octave is None:
        return list(scales)
    if scales is not None or octave_base_scale is None or scales_per_octave is None:
        raise ConfigError('AnchorGenerator: give either scales, or octave_base_scale and scales_per_octave')
    return [octave_base_scale * 2 ** (i / scales_per_octave) for i in range(scales_per_octave)]


def line_of_work(device: torch.device) -> tuple[int, int]:
    """This thread and its current stream on ``device``: work of one such pair is done in the order it is given in.

    What is remembered for the next call, such as a grid, is remembered for one line of work. Another one could read it
    before it is written, or after its memory was given to something else.
    """
    stream = 0
    if device.type == 'cuda' and torch.cuda.is_initialized():
        stream = torch.cuda.current_stream(device).cuda_stream
    return threading.get_ident(), stream
