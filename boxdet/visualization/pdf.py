"""An image with its detections as a PDF: the image embedded, boxes, outlines and labels as lines and text.

Matplotlib is imported when a page is made, and used without a display, by one thread at a time.
"""
from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxdet.errors import DataError
from boxdet.structures.instances import Instances
from boxdet.visualization.draw import KEYPOINT_THRESHOLD, label_text, place_labels
from boxdet.visualization.mask_windows import mask_windows
from boxdet.visualization.palette import PaletteSpec, class_color, class_colors, readable_on

_INCHES = 8.  # of the page's longer side
_MASK_OPACITY = 0.4
_FONT_POINTS = 6
_MARGIN = 0.8  # points around a label's text
_matplotlib = threading.Lock()  # its fonts are not safe in threads


def write_pdf(image: np.ndarray, instances: Instances, path: str | os.PathLike,
              class_names: Sequence[str] | None = None, score_thr: float = 0.3, palette: PaletteSpec = None,
              skeleton: Sequence[tuple[int, int]] = (), keypoint_thr: float = KEYPOINT_THRESHOLD) -> None:
    """Write a page of the image's shape.

    Args:
        image: (H, W, 3) uint8 in BGR order.
        instances: ``bboxes``, ``labels``, ``scores`` and perhaps ``masks`` and ``keypoints``, in pixels of ``image``.
        path: the file to write.
        class_names: name of each label.
        score_thr: what scores this or less is left out.
        palette: see ``palette.class_colors``.
        skeleton: keypoints, counted from 0, that lines connect.
        keypoint_thr: keypoints that score this or less are left out.

    Raises:
        DataError: the folder does not take the file.
    """
    with _matplotlib:
        figure = _page(image, instances[instances.scores > score_thr], class_names, palette, skeleton, keypoint_thr)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format='pdf', dpi=max(image.shape[:2]) / _INCHES)
        except OSError as error:
            raise DataError(f'cannot write {path}: {error.strerror or error}') from error


def _page(image: np.ndarray, shown: Instances, class_names: Sequence[str] | None, palette: PaletteSpec,
          skeleton: Sequence[tuple[int, int]], keypoint_thr: float) -> Any:
    """The figure of a page with all of ``shown``; the rest as of ``write_pdf``."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    inches = _INCHES / max(height, width)
    figure = Figure(figsize=(width * inches, height * inches))
    FigureCanvasPdf(figure)
    axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
    # pixel (0, 0) reaches from 0 to 1, as boxes count
    axes.imshow(image[:, :, ::-1], extent=(0, width, height, 0), interpolation='none')
    shown = shown[np.argsort(shown.numpy()['scores'], kind='stable')]  # the best on top
    colors = class_colors(palette, max(len(class_names or ()), int(shown.labels.max()) + 1 if len(shown) else 1))
    for window, label in zip(mask_windows(shown.masks) if 'masks' in shown else (), shown.labels.tolist()):
        if window is not None:
            _draw_mask(axes, window, _unit(colors[label]))
    _draw_boxes(axes, shown, [label_text(label, score, class_names) for label, score in zip(
        shown.labels.tolist(), shown.scores.tolist())], [colors[label] for label in shown.labels.tolist()],
                (height, width), 1 / 72 / inches)
    if 'keypoints' in shown:
        _draw_keypoints(axes, shown.numpy()['keypoints'], skeleton, keypoint_thr)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def _unit(color: Sequence[int]) -> tuple[float, ...]:
    return tuple(v / 255 for v in color)


def _draw_mask(axes: Any, window: tuple[int, int, np.ndarray], color: tuple[float, ...]) -> None:
    """One path of all outlines; holes stay open, for they turn the other way."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    left, top, mask = window
    found, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    rings = [np.concatenate([points[:, 0], points[:1, 0]]) + 0.5 for points in found if len(points) > 2]
    if rings:
        outline = Outline.make_compound_path(*(Outline(ring, closed=True) for ring in rings))
        axes.add_artist(PathPatch(outline, facecolor=(*color, _MASK_OPACITY), edgecolor=color, linewidth=0.6))


def _draw_keypoints(axes: Any, keypoints: np.ndarray, skeleton: Sequence[tuple[int, int]], threshold: float) -> None:
    """The bones and keypoints (N, J, 3) in the colours that ``draw`` gives them, as lines and dots with a rim."""
    from matplotlib.collections import LineCollection

    places, seen = keypoints[..., :2], keypoints[..., 2] > threshold
    for start, end in skeleton:
        bones = places[seen[:, start] & seen[:, end]][:, [start, end]]
        axes.add_collection(LineCollection(list(bones), colors=[_unit(class_color(max(start, end)))], linewidths=1.4),
                            autolim=False)
    for keypoint in range(keypoints.shape[1]):
        x, y = places[seen[:, keypoint], keypoint].T
        axes.plot(x, y, linestyle='none', marker='o', markersize=3, markeredgewidth=0.5, markeredgecolor='white',
                  color=_unit(class_color(keypoint)))


def _draw_boxes(axes: Any, shown: Instances, texts: Sequence[str], colors: Sequence[Sequence[int]],
                image_hw: tuple[int, int], point: float) -> None:
    """Boxes, the best last, and their labels on plates that keep off one another.

    Args:
        axes: of the page, in pixels of the image.
        shown: N objects, the best last.
        texts: N labels.
        colors: N RGB colours.
        image_hw: height and width of the image.
        point: pixels of a point.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Rectangle
    from matplotlib.textpath import TextPath

    for (x0, y0, x1, y1), color in zip(shown.bboxes.tolist(), colors):
        axes.add_artist(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=_unit(color), linewidth=1.2))
    font = FontProperties(size=_FONT_POINTS)
    # The hull of the letters' control points holds them, and is found at once; their exact extents take a quarter of
    # the page's time.
    widths = {text: TextPath((0, 0), text, prop=font).vertices[:, 0].max() for text in set(texts)}
    sizes = np.array([(widths[text] + 2 * _MARGIN, 1.25 * _FONT_POINTS + _MARGIN) for text in texts]) * point
    best_first = np.arange(len(texts))[::-1]
    plates = np.empty((len(texts), 4))
    if len(texts):
        boxes = shown.numpy()['bboxes'].astype(float)
        plates[best_first] = place_labels(boxes[best_first], sizes[best_first].reshape(-1, 2), image_hw, 1)
    for (x0, y0, x1, y1), text, color in zip(plates.tolist(), texts, colors):
        axes.add_artist(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=_unit(color), edgecolor='none', zorder=3))
        axes.text(x0 + _MARGIN * point, (y0 + y1) / 2, text, fontproperties=font, zorder=3, clip_on=True,
                  color=_unit(readable_on((color[0], color[1], color[2]))), verticalalignment='center_baseline')
