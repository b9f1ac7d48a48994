"""Charts of the analysis tools: curves of logs, the confusion matrix, precision and recall by cause of error.

Matplotlib is imported when a chart is made, and used without a display where a file is asked for.

Letters: K classes, A object sizes, R levels of recall, C causes of error.
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxdet.errors import ConfigError, UserError, nearest
from boxdet.visualization.figures import Curve, new_figure, save_figure
from boxdet.visualization.palette import class_color

_MOST_NUMBERS = 30  # classes; the cells of a larger matrix are too small for a number
_CAUSE_COLORS = ('#08306b', '#2171b5', '#6baed6', '#fdd0a2', '#fd8d3c', '#a63603', '#d9d9e0')


def log_curves(lines: Mapping[str, Curve], out_file: str | os.PathLike | None, title: str = '', x_label: str = 'epoch',
               dark: bool = False) -> Path | None:
    """Draw ``lines`` by name into one panel, into a file or (None) a window.

    Raises:
        DataError: the file cannot be written. UserError: no window can open.
    """
    figure, (axis,) = new_figure(1, 7.2, 4.4) if out_file is not None else _window()
    ink, paper, grid = ('#e8e8ee', '#20222a', '#3a3d48') if dark else ('#22222a', '#ffffff', '#e4e4e8')
    figure.set_facecolor(paper)
    axis.set_facecolor(paper)
    axis.grid(color=grid, linewidth=0.8)
    for number, (name, (x, y)) in enumerate(lines.items()):
        shade = 1.0 if dark else 0.88
        axis.plot(x, y, color=tuple(shade * v / 255 for v in class_color(number)), linewidth=1.7, label=name,
                  marker='o' if len(x) < 40 else '', markersize=3.5)
    axis.set_xlabel(x_label, color=ink)
    axis.tick_params(colors=ink)
    for spine in axis.spines.values():
        spine.set_color(ink)
    axis.set_title(title, color=ink, fontsize=12, fontweight='bold')
    axis.legend(frameon=False, fontsize=9, labelcolor=ink)
    if out_file is not None:
        return save_figure(figure, out_file)
    _show()
    return None


def confusion_figure(matrix: np.ndarray, names: Sequence[str], out_file: str | os.PathLike | None, title: str = '',
                     color_theme: str = 'plasma') -> Path | None:
    """Draw a confusion matrix, each row in percent of its objects, with the numbers where they fit.

    Args:
        matrix: (K + 1, K + 1) counts; rows are the truth, columns the detections, background last.
        names: K.
        out_file: None shows a window.
        title: above the matrix.
        color_theme: name of a matplotlib colour map.

    Raises:
        ConfigError: unknown theme.
    """
    import matplotlib

    if color_theme not in matplotlib.colormaps:
        raise ConfigError(f"unknown color theme '{color_theme}'{nearest(color_theme, matplotlib.colormaps)}")
    names = [*names, 'background']
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(4.6, 0.42 * len(names) + 1.8) if len(names) <= _MOST_NUMBERS else min(22, 0.17 * len(names) + 3)
    figure, (axis,) = new_figure(1, side + 1, side) if out_file is not None else _window(side + 1, side)
    axis.grid(False)
    colors = matplotlib.colormaps[color_theme]
    image = axis.imshow(percent, cmap=colors, vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label('% of the row')
    bar.outline.set_visible(False)
    size = 9 if len(names) <= 14 else 7.5 if len(names) <= _MOST_NUMBERS else 5.5
    axis.set_xticks(range(len(names)), names, rotation=45 if len(names) <= _MOST_NUMBERS else 90, ha='left',
                    fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.tick_params(length=0, labeltop=True, labelbottom=False, top=False)
    if len(names) > _MOST_NUMBERS:
        axis.set_xticks(range(len(names)), names, rotation=90, ha='center', fontsize=size)
    axis.spines[:].set_visible(False)
    axis.set_ylabel('ground truth')
    axis.set_xlabel('detection')
    axis.set_title(title, fontsize=11)
    if len(names) <= _MOST_NUMBERS:
        _number_cells(axis, percent, matrix, colors, size)
    if out_file is not None:
        return save_figure(figure, out_file)
    _show()
    return None


def _number_cells(axis: Any, percent: np.ndarray, matrix: np.ndarray, colors: Any, size: float) -> None:
    for row, column in zip(*np.nonzero(matrix)):
        red, green, blue, _ = colors(percent[row, column] / 100)
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
        axis.text(column, row, f'{percent[row, column]:.0f}', ha='center', va='center', fontsize=size,
                  color='#111118' if bright else '#ffffff')


def error_figure(curves: np.ndarray, causes: Sequence[str], sizes: Sequence[str], objects: Sequence[int],
                 out_file: str | os.PathLike, title: str) -> Path:
    """Precision over recall, one panel a size, filled between the curves of ``causes`` (one more excused each).

    Args:
        curves: (C, R, A), 0 where there is nothing.
        causes: C names.
        sizes: A names.
        objects: A counts.
        out_file: the figure; its ending names the format.
        title: above the panels.
    """
    figure, axes = new_figure(len(sizes), 3.9, 4.3)
    recall = np.linspace(0, 1, curves.shape[1])
    for a, (axis, size) in enumerate(zip(axes, sizes)):
        below = np.zeros(curves.shape[1])
        for cause, color, curve in zip(causes, _CAUSE_COLORS, curves[:, :, a]):
            axis.fill_between(recall, below, curve, where=curve >= below, color=color, linewidth=0,
                              label=f'{cause} {curve.mean():.3f}')
            axis.plot(recall, curve, color='#22222a', linewidth=0.5)
            below = np.maximum(below, curve)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel='recall', title=f'{size}: {objects[a]} objects')
        axis.legend(loc='upper center', bbox_to_anchor=(0.5, -0.14), ncol=2, frameon=False, fontsize=8,
                    title='area below')
    axes[0].set_ylabel('precision')
    figure.suptitle(title, fontsize=13, fontweight='bold')
    return save_figure(figure, out_file)


def bar_figure(values: np.ndarray, causes: Sequence[str], sizes: Sequence[str], out_file: str | os.PathLike,
               title: str) -> Path:
    """Bars of ``values`` (C, A), grouped by size."""
    figure, (axis,) = new_figure(1, 8.0, 4.0)
    axis.grid(False, axis='x')
    width = 0.8 / len(causes)
    for c, (cause, color) in enumerate(zip(causes, _CAUSE_COLORS)):
        places = np.arange(len(sizes)) + (c - (len(causes) - 1) / 2) * width
        bars = axis.bar(places, values[c], width * 0.94, color=color, label=cause)
        axis.bar_label(bars, fmt='%.2f', fontsize=6, padding=1)
    axis.set_xticks(range(len(sizes)), sizes)
    axis.set(ylim=(0, 1.08), ylabel='area below the curve')
    axis.set_title(title, fontsize=12, fontweight='bold')
    axis.legend(frameon=False, fontsize=8, ncol=len(causes), loc='upper center', bbox_to_anchor=(0.5, -0.08))
    return save_figure(figure, out_file)


def area_histogram(areas: np.ndarray, out_file: str | os.PathLike, title: str) -> Path:
    """How many objects have which side (the root of their area), with COCO's limits of size."""
    figure, (axis,) = new_figure(1, 7.2, 3.6)
    axis.hist(np.sqrt(areas), bins=60, color='#2171b5')
    for limit in (32, 96):
        axis.axvline(limit, color='#a63603', linewidth=1, linestyle='--')
    axis.set(xlabel='root of the area, pixels (dashed: 32 and 96)', ylabel='objects')
    axis.set_title(title, fontsize=12, fontweight='bold')
    return save_figure(figure, out_file)


def _window(width: float = 7.2, height: float = 4.4) -> tuple[Any, Any]:
    """A figure that ``_show`` shows."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(width, height), layout='constrained')
    return figure, (axis,)


def _show() -> None:
    import matplotlib
    from matplotlib import pyplot

    if matplotlib.get_backend().lower() in ('agg', 'pdf', 'svg', 'ps', 'cairo', 'template'):
        pyplot.close()
        raise UserError('cannot open a window: no display (matplotlib draws into files only here); name a file to '
                        'write '
                        'instead')
    pyplot.show()
