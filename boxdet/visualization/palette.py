"""Colours: one fixed colour for each class, and the ways in which a caller may name others.

Colours are (red, green, blue) tuples of 0..255 wherever a caller sees them, as in mmdetection 2.x's palettes;
only the drawing itself turns them round for OpenCV.
"""
from __future__ import annotations

import colorsys
import random
from collections.abc import Sequence

from boxdet.errors import UserError, nearest

Color = tuple[int, int, int]
ColorSpec = str | Sequence[int]
PaletteSpec = str | Sequence[int] | Sequence[Sequence[int]] | None

# Told apart at a glance, also where two classes touch; further classes are generated.
_FIRST = ((255, 59, 92), (0, 166, 255), (46, 204, 64), (255, 176, 0), (178, 79, 255), (0, 209, 178),
          (255, 112, 32), (240, 80, 200), (140, 200, 0), (70, 100, 255), (0, 224, 255), (255, 221, 51))
_NAMED = dict(black=(0, 0, 0), white=(255, 255, 255), red=(255, 0, 0), green=(0, 255, 0), blue=(0, 0, 255),
              cyan=(0, 255, 255), yellow=(255, 255, 0), magenta=(255, 0, 255), orange=(255, 140, 0),
              gray=(128, 128, 128))
_GOLDEN_RATIO = 0.61803398875  # steps of it fill the colour circle evenly however many are taken


def class_color(label: int) -> Color:
    """The colour of class ``label``: vivid, and the same in every image."""
    if label < len(_FIRST):
        return _FIRST[label]
    step = label - len(_FIRST)
    saturation, value = ((0.85, 1.0), (0.95, 0.82), (0.62, 1.0))[step % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.03 + step * _GOLDEN_RATIO) % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def voc_color(label: int) -> Color:
    """Pascal VOC's colour of class ``label``: the bits of its index (from 1) dealt to the channels."""
    index, color = label + 1, [0, 0, 0]
    for bit in range(7, -1, -1):
        for channel in range(3):
            color[channel] |= ((index >> channel) & 1) << bit
        index >>= 3
    return color[0], color[1], color[2]


def parse_color(color: ColorSpec) -> Color:
    """Read a name ('green'), '#rrggbb', or three numbers 0..255 in RGB order.

    Raises:
        UserError: none of these.
    """
    if isinstance(color, str):
        text = color.strip().lower()
        if text in _NAMED:
            return _NAMED[text]
        if len(text) == 7 and text[0] == '#' and all(c in '0123456789abcdef' for c in text[1:]):
            return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
        raise UserError(
            f"unknown colour '{color}': give #rrggbb or one of {', '.join(_NAMED)}{nearest(text, _NAMED)}")
    values = tuple(int(v) for v in color)
    if len(values) != 3 or not all(0 <= v <= 255 for v in values):
        raise UserError(f'a colour is three numbers 0..255 (red, green, blue), not {tuple(color)}')
    return values


def class_colors(palette: PaletteSpec, num_classes: int) -> list[Color]:
    """One RGB colour for each of ``num_classes`` classes.

    Args:
        palette: None or 'vivid' for the fixed vivid colours, 'voc' for Pascal VOC's, 'random' (the same
            random ones every time), one colour for all classes (see ``parse_color``), or a list of colours,
            one a class; classes beyond the end of a list start it over.
        num_classes: K.

    Raises:
        UserError: not a palette.
    """
    if palette is None or palette == 'vivid':
        return [class_color(k) for k in range(num_classes)]
    if palette == 'voc':
        return [voc_color(k) for k in range(num_classes)]
    if palette == 'random':
        draw = random.Random(42)
        return [(draw.randrange(256), draw.randrange(256), draw.randrange(256)) for _ in range(num_classes)]
    if isinstance(palette, str) or len(palette) == 3 and not _is_color(palette[0]):
        return [parse_color(palette)] * num_classes  # type: ignore[arg-type]  # one colour, as the condition says
    if not palette:
        raise UserError('the palette is empty')
    colors = [parse_color(c) for c in palette]  # type: ignore[arg-type]  # colours, as the condition says
    return [colors[k % len(colors)] for k in range(num_classes)]


def _is_color(item: object) -> bool:
    return isinstance(item, (str, Sequence)) or hasattr(item, '__len__')


def readable_on(color: Color) -> Color:
    """Black or white, whichever stands out more on ``color`` (relative luminance as WCAG 2 defines it)."""
    linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.25 else (255, 255, 255)
