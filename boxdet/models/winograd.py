"""3x3 convolutions with a quarter of the multiplications, for large maps on the CPU in float32.

F(4x4, 3x3) of Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks", section 4.3: tiles of 6x6 pixels
give 4x4 outputs. Each tile is turned into 36 numbers, a matrix product over the channels is made for each of the 36, and the
result is turned back. Rounding is some four times that of the direct way, 1e-5 of the largest output.

Letters: B images, C channels read, O written, H, W of the map, T tiles at a time.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_READ, _WRITE = 6, 4  # pixels a side
_INPUT = torch.tensor([[4., 0., -5., 0., 1., 0.], [0., -4., -4., 1., 1., 0.], [0., 4., -4., -1., 1., 0.],
                       [0., -2., -1., 2., 1., 0.], [0., 2., -1., -2., 1., 0.], [0., 4., 0., -5., 0., 1.]], device='cpu')
_WEIGHT = torch.tensor([[1 / 4, 0., 0.], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
                        [1 / 24, -1 / 12, 1 / 6], [0., 0., 1.]], device='cpu')
_OUTPUT = torch.tensor([[1., 1., 1., 1., 1., 0.], [0., 1., -1., 2., -2., 0.], [0., 1., 1., 4., 4., 0.],
                        [0., 1., -1., 8., -8., 1.]], device='cpu')
# Both axes at once, as one matrix product over the 36 pixels of a tile.
_INPUT_2D, _OUTPUT_2D = torch.kron(_INPUT, _INPUT), torch.kron(_OUTPUT, _OUTPUT)

_LEAST_CHANNELS = 128   # with fewer, turning tiles costs more than the products save
_LEAST_PIXELS = 10_000  # of a map; below, turning the weights does, or what the outer tiles throw away
_TILES_AT_ONCE = 256    # what is in work stays in the processor's cache


class WinogradConv2d(nn.Conv2d):
    """``nn.Conv2d``, by the fast way where that is one: see ``suits``; other maps and modes go the usual way."""

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether a convolution is of the kind: 3x3, stride 1, padding 1, many channels."""
        return (type(conv) is nn.Conv2d and conv.kernel_size == (3, 3) and conv.stride == (1, 1)
                and conv.padding == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
                and conv.padding_mode == 'zeros' and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        usual = (x.device.type != 'cpu' or x.dtype != torch.float32 or self.weight.dtype != torch.float32
                 or torch.is_grad_enabled() or torch.is_autocast_enabled('cpu') or torch.compiler.is_compiling()
                 or x.shape[2] * x.shape[3] < _LEAST_PIXELS)
        return super().forward(x) if usual else conv3x3(x, self.weight, self.bias)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x (B, C, H, W) with weight (O, C, 3, 3), padding 1; (B, O, H, W) in channels-last memory."""
    batch, channels, height, width = x.shape
    outputs = len(weight)
    turned = torch.einsum('ij,ocjk,lk->ilco', _WEIGHT, weight, _WEIGHT).reshape(_READ ** 2, channels, outputs)
    down, across = -(-height // _WRITE), -(-width // _WRITE)  # tiles
    pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    out = x.new_empty(batch, down * _WRITE, across * _WRITE, outputs)
    shift = x.new_zeros(outputs) if bias is None else bias
    rows = max(_TILES_AT_ONCE // across, 1)
    for image in range(batch):
        for first in range(0, down, rows):
            count = min(rows, down - first)
            tiles = _tiles(pixels[image], first * _WRITE - 1, count, across)
            values = _INPUT_2D @ tiles.reshape(_READ ** 2, -1)                           # (36, T * C)
            values = torch.bmm(values.view(_READ ** 2, -1, channels), turned)            # (36, T, O)
            values = _OUTPUT_2D @ values.view(_READ ** 2, -1)                            # (16, T * O)
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
