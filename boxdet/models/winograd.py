"""3x3 convolutions with a quarter of the multiplications, for large maps on the CPU.

F(4x4, 3x3) of Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks", section 4.3: tiles of 6x6
pixels give 4x4 outputs. Each tile is turned into 36 numbers, a matrix product over the channels is made for each of the
36, and the result is turned back. The polynomials behind it are taken at 0, +-3/4, +-3/2 and infinity (Cook and Toom):
of simple fractions these keep rounding lowest, at half of what the usual 0, +-1, +-2 give (Barabasz et al. 2020, "Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks"): 1e-5 of the largest output in
float32; in bfloat16 1 % of a typical output, where the direct way has a quarter of that.

Letters: B images, C channels read, O written, H, W of the map, T tiles at a time.
"""
from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
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
_LEAST_PIXELS = 3_000   # of a map; below, turning the weights does, or what the outer tiles throw away
_TILES_AT_ONCE = 256    # what is in work stays in the processor's cache


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind: 3x3, stride 1, padding 1, many channels."""
    return (conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1) and conv.dilation == (1, 1)
            and conv.groups == 1 and conv.padding_mode == 'zeros'
            and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether ``conv3x3`` can take ``x`` (B, C, H, W) now and is faster: for large maps on the CPU, no gradients."""
    return not (x.device.type != 'cpu' or x.dtype != weight.dtype or not _faster_in(x.dtype)
                or torch.is_grad_enabled() or torch.is_autocast_enabled('cpu') or torch.compiler.is_compiling()
                or x.shape[2] * x.shape[3] < _LEAST_PIXELS)


@functools.cache
def _faster_in(dtype: torch.dtype) -> bool:
    """Whether this processor leaves something to save; AMX multiplies faster than tiles are turned."""
    if dtype == torch.bfloat16:
        return not getattr(torch.cpu, 'get_capabilities', dict[str, bool])().get('amx_bf16', False)
    return dtype == torch.float32


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x (B, C, H, W) with weight (O, C, 3, 3), padding 1; (B, O, H, W) in channels-last memory.

    All of float32 or all of bfloat16: sums are kept in float32 either way, what is between them in the type.
    """
    batch, channels, height, width = x.shape
    outputs = len(weight)
    turned = (_WEIGHT_2D @ weight.float().permute(2, 3, 1, 0).reshape(9, -1)).view(-1, channels, outputs).to(x.dtype)
    to_products, from_products = _INPUT_2D.to(x.dtype), _OUTPUT_2D.to(x.dtype)
    down, across = -(-height // _WRITE), -(-width // _WRITE)  # tiles
    pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    out = x.new_empty(batch, down * _WRITE, across * _WRITE, outputs)
    shift = x.new_zeros(outputs) if bias is None else bias
    rows = max(_TILES_AT_ONCE // across, 1)
    for image in range(batch):
        for first in range(0, down, rows):
            count = min(rows, down - first)
            tiles = _tiles(pixels[image], first * _WRITE - 1, count, across)
            values = to_products @ tiles.reshape(_READ ** 2, -1)                         # (36, T * C)
            values = torch.bmm(values.view(_READ ** 2, -1, channels), turned)            # (36, T, O)
            values = from_products @ values.view(_READ ** 2, -1)                         # (16, T * O)
            place = out[image, first * _WRITE:(first + count) * _WRITE].view(count, _WRITE, across, _WRITE, outputs)
            values = values.view(_WRITE, _WRITE, count, across, outputs).permute(2, 0, 3, 1, 4)
            torch.add(values, shift, out=place)
    return out[:, :height, :width].permute(0, 3, 1, 2)


def _tiles(pixels: Tensor, top: int, down: int, across: int) -> Tensor:
    """The tiles (6, 6, down, across, C) of an image (H, W, C) from row ``top`` on; zeros outside."""
    height, width, channels = pixels.shape
    bottom = top + down * _WRITE + 2
    strip = F.pad(pixels[max(top, 0):min(bottom, height)],
                  (0, 0, 1, 1 + across * _WRITE - width, max(-top, 0), max(bottom - height, 0))).contiguous()
    row_step, pixel_step, _ = strip.stride()
    return strip.as_strided((_READ, _READ, down, across, channels),
                            (row_step, pixel_step, row_step * _WRITE, pixel_step * _WRITE, 1))
