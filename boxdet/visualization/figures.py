"""Figures on paper and screen: the curves of a training from its JSON log, and sheets of images.

Matplotlib is imported when a figure is made, and used without a display.
"""
from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxdet.errors import DataError
from boxdet.files.writing import write_whole
from boxdet.visualization.palette import class_color

Curve = tuple[list[float], list[float]]  # x in epochs (or iterations), y


def read_log(path: str | os.PathLike) -> tuple[list[dict], list[dict]]:
    """Read a training's JSON log, one object a line: the rows of mode 'train' and those of mode 'val'.

    Lines without ``mode`` (the environment, the config) are left out, and so is a last line cut short by a
    crash.

    Raises:
        DataError: the file is missing or holds no such rows.
    """
    rows = []
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, Mapping) and row.get('mode') in ('train', 'val'):
            rows.append(dict(row))
    if not rows:
        raise DataError(f"{path}: no training or validation rows (JSON objects with a 'mode') in it")
    return [r for r in rows if r['mode'] == 'train'], [r for r in rows if r['mode'] == 'val']


def curves(rows: Sequence[Mapping[str, Any]], epoch_length: int | None = None) -> dict[str, Curve]:
    """The numeric values of log rows by key.

    Args:
        rows: of a JSON log.
        epoch_length: iterations of an epoch: x is then the number of epochs behind a row, ``iter`` being
            counted within its epoch; None: x is ``iter``.
    """
    found: dict[str, Curve] = {}
    for row in rows:
        if epoch_length is None:
            x = float(row.get('iter', 0))
        else:
            within = row.get('iter', epoch_length) if row['mode'] == 'train' else epoch_length
            x = row['epoch'] - 1 + within / epoch_length
        for key, value in row.items():
            if isinstance(value,
                          (int, float)) and not isinstance(value, bool) and key not in ('epoch', 'iter'):
                xs, ys = found.setdefault(key, ([], []))
                xs.append(x)
                ys.append(float(value))
    return found


def epoch_length(train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]]) -> int | None:
    """Iterations of an epoch as far as the log shows them; None where ``iter`` runs on over the epochs."""
    if not all('epoch' in row for row in (*train, *val)):
        return None
    iters = [row['iter'] for row in train if 'iter' in row]
    if len({row['epoch'] for row in train}) > 1 and all(a < b for a, b in zip(iters, iters[1:])):
        return None
    return max(iters, default=1)


def unfinished_epoch(train: Sequence[Mapping[str, Any]]) -> tuple[int, int, int] | None:
    """The last epoch of a log where it ends before the others do, its iterations, and theirs; None for a whole one.

    Of a single epoch, or where ``iter`` runs on over the epochs, a log does not tell.
    """
    last: dict[int, int] = {}
    for row in train:
        if 'epoch' in row and 'iter' in row:
            last[row['epoch']] = max(last.get(row['epoch'], 0), row['iter'])
    newest = max(last, default=0)
    most = max((count for epoch, count in last.items() if epoch != newest), default=0)
    return (newest, last[newest], most) if newest and last[newest] < most else None


def training_curves(log: str | os.PathLike, out_file: str | os.PathLike, title: str = '') -> Path:
    """Draw the losses, the learning rate and the validation metrics of a JSON log; the ending names the format.

    Raises:
        DataError: the log holds nothing to draw.
    """
    train, val = read_log(log)
    length = epoch_length(train, val)
    trained, validated = curves(train, length), curves(val, length)
    metrics = {k: v for k, v in validated.items() if 'mAP' in k or k.startswith(('AR@', 'recall'))}
    figure, axes = new_figure(3 if metrics else 2)
    _draw_losses(axes[0], {k: v for k, v in trained.items() if 'loss' in k})
    _draw_lines(axes[1], {k: v for k, v in trained.items() if k.startswith('lr')}, 'learning rate', marker='')
    if metrics:
        main = {k: v
                for k, v in metrics.items()
                if k.endswith(('mAP', 'mAP_50', 'mAP_75')) or 'AR@' in k} or metrics
        _draw_lines(axes[2], main, 'validation', marker='o')
        axes[2].set_ylim(0, max(1e-3, min(1.0, 1.15 * max(max(y) for _, y in main.values()))))
    for axis in axes:
        axis.set_xlabel('iteration' if length is None else 'epoch')
    if title:
        figure.suptitle(title, fontsize=12, fontweight='bold')
    return save_figure(figure, out_file)


def new_figure(columns: int, width: float = 5.2, height: float = 4.0) -> tuple[Any, Any]:
    """A figure without a display, and its ``columns`` axes; sizes of one in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(color='#e4e4e8', linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
    return figure, axes


def _draw_losses(axis: Any, losses: Mapping[str, Curve]) -> None:
    parts = {k: v for k, v in losses.items() if k != 'loss'}
    _draw_lines(axis, parts, 'losses', marker='')
    for key, (x, y) in losses.items():
        if key not in parts:
            axis.plot(x, y, color='#22222a', linewidth=2.2, label='total')
    if losses:
        axis.set_yscale('log')
        axis.yaxis.set_major_formatter('{x:g}')
        axis.yaxis.set_minor_formatter('')
        # Losses cross the whole panel: the legend stands below it.
        axis.legend(frameon=False, fontsize=8, ncol=3, loc='upper center', bbox_to_anchor=(0.5, -0.16))


def _draw_lines(axis: Any, lines: Mapping[str, Curve], title: str, marker: str) -> None:
    axis.set_title(title, fontsize=11)
    for k, (key, (x, y)) in enumerate(sorted(lines.items())):
        color = tuple(0.88 * v / 255 for v in class_color(k))
        axis.plot(x, y, color=color, linewidth=1.6, marker=marker, markersize=4, label=key)
    if len(lines) > 1 or marker:
        axis.legend(frameon=False, fontsize=8)


def save_figure(figure: Any, out_file: str | os.PathLike) -> Path:
    """Write ``figure``, whole or not at all; the ending names the format.

    Raises:
        DataError: an unknown ending, or a folder that does not take the file.
    """
    out_file = Path(out_file)
    kind = out_file.suffix.removeprefix('.').lower() or 'png'
    try:
        write_whole(out_file, lambda file: figure.savefig(file, dpi=130, format=kind))
    except ValueError as error:
        raise DataError(f"{out_file}: figures have no format '{out_file.suffix}' "
                        '(.png, .pdf and .svg are usual)') from error
    return out_file


def image_grid(images: Sequence[np.ndarray], columns: int = 0, tile: int = 420, titles: Sequence[str] = (),
               gap: int = 8) -> np.ndarray:
    """Lay BGR images out on a white sheet, each fitted into a square of ``tile`` pixels with its shape kept.

    Args:
        images: (H, W, 3) uint8 each.
        columns: 0 for as many as make the sheet about 4:3.
        tile: side of a square in pixels.
        titles: a line below each image.
        gap: pixels between squares.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: no images.
    """
    if not images:
        raise DataError('no images for the sheet')
    columns = columns or int(np.ceil(np.sqrt(len(images) * 1.34)))
    columns = min(columns, len(images))
    rows, caption = -(-len(images) // columns), 26 if titles else 0
    fitted = [_fit(image, tile) for image in images]
    heights = [max(f.shape[0] for f in fitted[r * columns:(r + 1) * columns]) for r in range(rows)]
    sheet = np.full((sum(heights) + rows * (gap + caption) + gap, columns * (tile + gap) + gap, 3), 255,
                    np.uint8)
    top = gap
    for r in range(rows):
        for c, image in enumerate(fitted[r * columns:(r + 1) * columns]):
            left = gap + c * (tile + gap) + (tile - image.shape[1]) // 2
            y = top + (heights[r] - image.shape[0]) // 2
            sheet[y:y + image.shape[0], left:left + image.shape[1]] = image
            if r * columns + c < len(titles):
                cv2.putText(sheet, titles[r * columns + c], (gap + c * (tile + gap), top + heights[r] + 18),
                            cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 34, 34), 1, cv2.LINE_AA)
        top += heights[r] + gap + caption
    return sheet


def _fit(image: np.ndarray, tile: int) -> np.ndarray:
    scale = tile / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
