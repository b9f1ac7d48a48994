"""Parts of the vision transformers: patches, and tokens to maps and back.

B images, C channels, N tokens of an image: the h * w pixels of a map, row by row.
"""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from boxdet.errors import ConfigError
from boxdet.models.layers import build_norm_layer
from boxdet.registry import Cfg

Size = tuple[int, int]  # (h, w)


def image_size(pretrain_img_size: int | Sequence[int]) -> Size:
    """The (h, w) of ``pretrain_img_size``, a side or both.

    Raises:
        ConfigError: another number of sides.
    """
    size = _pair(pretrain_img_size)
    if len(size) != 2:
        raise ConfigError(f'pretrain_img_size={tuple(size)}; it is a side or (h, w)')
    return size[0], size[1]


class PatchEmbed(nn.Module):
    """A strided convolution that makes a token of each patch; keys ``projection`` and ``norm``.

    Args:
        in_channels: of the map.
        embed_dims: of a token.
        kernel_size: side of a patch.
        stride: pixels from patch to patch.
        padding: as of a convolution; None pads zeros at the bottom and right until patches cover the map.
        norm_cfg: of the tokens; None for no norm.
    """

    def __init__(self, in_channels: int, embed_dims: int, kernel_size: int, stride: int, padding: int | None = None,
                 norm_cfg: Cfg | None = None):
        super().__init__()
        self.fills = padding is None
        self.projection = nn.Conv2d(in_channels, embed_dims, kernel_size, stride=stride, padding=padding or 0)
        self.norm = None if norm_cfg is None else build_norm_layer(norm_cfg, embed_dims)[1]

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Map (B, C, H, W) to tokens (B, N, embed_dims) and their (h, w)."""
        if self.fills:
            x = fill_up(x, self.projection.kernel_size, self.projection.stride)
        x = self.projection(x)
        size = x.shape[2], x.shape[3]
        tokens = to_tokens(x)
        return tokens if self.norm is None else self.norm(tokens), size


def fill_up(x: Tensor, kernel_size: int | Sequence[int], stride: int | Sequence[int]) -> Tensor:
    """Pad maps (B, C, H, W) with zeros at the bottom and right so that windows of this size and stride cover them."""
    missing = []
    for side, kernel, step in zip(x.shape[2:], _pair(kernel_size), _pair(stride)):
        windows = -(-side // step)
        missing.append(max((windows - 1) * step + kernel - side, 0))
    return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x


def to_tokens(x: Tensor) -> Tensor:
    """Maps (B, C, h, w) as tokens (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: Size) -> Tensor:
    """Tokens (B, N, C) as maps (B, C, h, w)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *size)
