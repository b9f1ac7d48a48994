"""Images and masks as a web page holds them: a JPEG in the text of the page, outlines as SVG paths."""
from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from boxdet.visualization.mask_windows import mask_windows


def embedded_jpeg(image: np.ndarray, side: int, quality: int = 82) -> tuple[str, tuple[int, int], float]:
    """``image`` (H, W, 3) uint8 BGR, its longer side no more than ``side``.

    Returns:
        the ``data:`` address, (width, height) of the embedded image, and its scale.
    """
    height, width = image.shape[:2]
    scale = min(side / max(height, width), 1.)
    if scale < 1:
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    coded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    address = 'data:image/jpeg;base64,' + base64.b64encode(coded).decode('ascii')
    return address, (image.shape[1], image.shape[0]), scale


def outline_path(rle: Mapping[str, Any], scale: float = 1.) -> str:
    """The outlines of a COCO RLE as the ``d`` of an SVG path, '' for an empty mask; holes are outlines, too."""
    window = next(iter(mask_windows([rle])))
    if window is None:
        return ''
    left, top, mask = window
    found, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    lines = (cv2.approxPolyDP(outline, 0.8 / scale, True)[:, 0] * scale for outline in found)
    return ''.join('M' + 'L'.join(f'{x:.0f} {y:.0f}' for x, y in line) + 'Z' for line in lines if len(line) > 2)
