"""3x3 convolutions and their gradients with a quarter of the multiplications, for many pixels on the CPU.

F(4x4, 3x3) of Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks", section 4.3: tiles of 6x6
pixels give 4x4 outputs. Each tile is turned into 36 numbers, a matrix product over the channels is made for each of the
36, and the result is turned back. The polynomials behind it are taken at 0, +-3/4, +-3/2 and infinity (Cook and Toom):
of simple fractions these keep rounding lowest, at half of what the usual 0, +-1, +-2 give (Barabasz et al. 2020, "Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks"): 1e-5 of the largest output in
float32; in bfloat16 1 % of a typical output, where the direct way has a quarter of that.

The gradient of what is read is such a convolution, too, with the weights turned round. That of the weights takes the
same tiles: their 36 numbers and those of the output's gradient are multiplied, summed over the tiles, and turned back.

Letters: B images, C channels read, O written, H, W of the map, T tiles at a time.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_READ, _WRITE = 6, 4  # pixels a side
_A, _B = 3 / 4, 3 / 2  # the points
_INPUT = torch.tensor([[_A ** 2 * _B ** 2, 0, -_A ** 2 - _B ** 2, 0, 1, 0],
                       [0, -_A * _B ** 2, -_B ** 2, _A, 1, 0], [0, _A * _B ** 2, -_B ** 2, -_A, 1, 0],
                       [0, -_B * _A ** 2, -_A ** 2, _B, 1, 0], [0, _B * _A ** 2, -_A ** 2, -_B, 1, 0],
                       [0, _A ** 2 * _B ** 2, 0, -_A ** 2 - _B ** 2, 0, 1]], device='cpu')
_OUTPUT = torch.tensor([[1, 1, 1, 1, 1, 0], [0, _A, -_A, _B, -_B, 0], [0, _A ** 2, _A ** 2, _B ** 2, _B ** 2, 0],
                        [0, _A ** 3, -_A ** 3, _B ** 3, -_B ** 3, 1]], device='cpu')
_WEIGHT = torch.tensor([[1 / (_A ** 2 * _B ** 2), 0, 0],
                        *([v / (2 * p ** 2 * (p ** 2 - q ** 2)) for v in (1, s * p, p ** 2)]
                          for p, q in ((_A, _B), (_B, _A)) for s in (1, -1)), [0, 0, 1]], device='cpu')
# Both axes at once, as one matrix product over the 36 pixels of a tile.
_INPUT_2D, _OUTPUT_2D, _WEIGHT_2D = (torch.kron(m, m) for m in (_INPUT, _OUTPUT, _WEIGHT))

_LEAST_CHANNELS = 128   # with fewer, turning tiles costs more than the products save
_LEAST_PIXELS = 2_000   # of all images; below, turning the weights does
_LEAST_SAVED = 3        # times fewer products; small maps waste what outer tiles reach beyond them
_TILES_AT_ONCE = 256    # what is in work stays in the processor's cache


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind: 3x3, stride 1, padding 1, many channels."""
    return (conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1) and conv.dilation == (1, 1)
            and conv.groups == 1 and conv.padding_mode == 'zeros'
            and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether ``conv3x3`` can take ``x`` (B, C, H, W) now and is faster: for many pixels on the CPU."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu'):
        return False
    if x.device.type != 'cpu' or x.dtype != weight.dtype or not _faster_in(x.dtype):
        return False
    if x.dtype != torch.float32 and torch.is_grad_enabled():
        return False  # sums of gradients would be kept in half precision
    images, _, height, width = x.shape
    pixels, (down, across) = height * width, _grid(height, width)
    return images * pixels >= _LEAST_PIXELS and 9 * pixels >= _LEAST_SAVED * _READ ** 2 * down * across


@functools.cache
def _faster_in(dtype: torch.dtype) -> bool:
    """Whether this processor leaves something to save; AMX multiplies faster than tiles are turned."""
    if dtype == torch.bfloat16:
        return not getattr(torch.cpu, 'get_capabilities', dict[str, bool])().get('amx_bf16', False)
    return dtype == torch.float32


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x (B, C, H, W) with weight (O, C, 3, 3), padding 1; (B, O, H, W) in channels-last memory.

    All of float32 or all of bfloat16: sums are kept in float32 either way, what is between them in the type. Gradients
    are computed the same way; only once, not gradients of gradients.
    """
    out: Tensor = _Conv3x3.apply(x, weight, bias)
    return out


class _Conv3x3(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (_convolve(gradient, weight.flip(2, 3).transpose(0, 1)) if for_x else None,
                _weight_gradient(x, gradient) if for_weight else None,
                gradient.sum((0, 2, 3)) if for_bias else None)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    batch, channels, height, width = x.shape
    outputs = len(weight)
    turned = (_WEIGHT_2D @ weight.float().permute(2, 3, 1, 0).reshape(9, -1)).view(-1, channels, outputs).to(x.dtype)
    to_products, from_products = _INPUT_2D.to(x.dtype), _OUTPUT_2D.to(x.dtype)
    down, across = _grid(height, width)
    pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    out = torch.empty(batch, outputs, height, width, dtype=x.dtype, memory_format=torch.channels_last)
    shift = x.new_zeros(outputs) if bias is None else bias
    for images, first, count in _blocks(batch, down, across):
        values = to_products @ _tiles(pixels[images], first, count, across)          # (36, T * C)
        values = torch.bmm(values.view(_READ ** 2, -1, channels), turned)            # (36, T, O)
        values = from_products @ values.view(_READ ** 2, -1)                         # (16, T * O)
        values = values.view(_WRITE, _WRITE, -1, count, across, outputs).permute(2, 3, 0, 4, 1, 5)
        written = out.permute(0, 2, 3, 1)[images, first * _WRITE:(first + count) * _WRITE]
        for row_tiles, rows in _parts(written.shape[1]):
            for column_tiles, columns in _parts(width):
                torch.add(values[:, row_tiles, :rows, column_tiles, :columns], shift,
                          out=_tiled(_tiled(written, 1, row_tiles, rows), 3, column_tiles, columns))
    return out


def _parts(size: int) -> Iterator[tuple[slice, int]]:
    """The tiles along an axis of ``size`` pixels, and the pixels that each writes: the last may reach beyond."""
    whole, rest = divmod(size, _WRITE)
    if whole:
        yield slice(0, whole), _WRITE
    if rest:
        yield slice(whole, whole + 1), rest


def _tiled(pixels: Tensor, axis: int, tiles: slice, size: int) -> Tensor:
    """The pixels of ``tiles`` along ``axis``, which becomes two: tiles, and ``size`` pixels of each."""
    start = tiles.start * _WRITE
    return pixels.narrow(axis, start, (tiles.stop - tiles.start) * size).unflatten(axis, (-1, size))


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient (O, C, 3, 3) of the weight, from x (B, C, H, W) and the gradient of the output (B, O, H, W)."""
    batch, channels, height, width = x.shape
    outputs = gradient.shape[1]
    down, across = _grid(height, width)
    pixels, written = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    total = x.new_zeros(_READ ** 2, channels, outputs)
    for images, first, count in _blocks(batch, down, across):
        values = (_INPUT_2D @ _tiles(pixels[images], first, count, across)).view(_READ ** 2, -1, channels)
        rows = written[images, first * _WRITE:(first + count) * _WRITE]
        rows = F.pad(rows, (0, 0, 0, across * _WRITE - width, 0, count * _WRITE - rows.shape[1])).contiguous()
        rows = rows.view(-1, count, _WRITE, across, _WRITE, outputs).permute(2, 4, 0, 1, 3, 5)
        products = (_OUTPUT_2D.T @ rows.reshape(_WRITE ** 2, -1)).view(_READ ** 2, -1, outputs)
        torch.baddbmm(total, values.transpose(1, 2), products, out=total)
    turned_back = _WEIGHT_2D.T @ total.view(_READ ** 2, -1)
    return turned_back.view(3, 3, channels, outputs).permute(3, 2, 0, 1)


def _grid(height: int, width: int) -> tuple[int, int]:
    """How many tiles cover a map, down and across."""
    return -(-height // _WRITE), -(-width // _WRITE)


def _blocks(batch: int, down: int, across: int) -> Iterator[tuple[slice, int, int]]:
    """What is computed at once, of maps of down x across tiles: (images, first row of tiles, rows)."""
    several = max(_TILES_AT_ONCE // (down * across), 1)
    rows = down if several > 1 else max(_TILES_AT_ONCE // across, 1)
    for image in range(0, batch, several):
        for first in range(0, down, rows):
            yield slice(image, min(image + several, batch)), first, min(rows, down - first)


def _tiles(pixels: Tensor, first: int, count: int, across: int) -> Tensor:
    """The tiles of images (B, H, W, C) in ``count`` rows from row ``first`` on, (36, T * C); zeros outside."""
    height, width = pixels.shape[1:3]
    top = first * _WRITE - 1
    bottom = top + count * _WRITE + 2
    strip = F.pad(pixels[:, max(top, 0):min(bottom, height)],
                  (0, 0, 1, 1 + across * _WRITE - width, max(-top, 0), max(bottom - height, 0))).contiguous()
    image_step, row_step, pixel_step, _ = strip.stride()
    return strip.as_strided((_READ, _READ, len(strip), count, across, strip.shape[3]),
                            (row_step, pixel_step, image_step, row_step * _WRITE, pixel_step * _WRITE, 1)
                            ).reshape(_READ ** 2, -1)
