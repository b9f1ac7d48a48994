"""Instances drawn on an image with OpenCV: masks, outlines, boxes, skeletons and labels.

Everything scales with the image, so that a thumbnail and a 12-megapixel photo are equally readable. Masks are
filled on one copy of the image, which is blended in once.

Letters: N instances, J keypoints, H and W the image.
"""
from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxdet.errors import ConfigError, DataError, UserError
from boxdet.geometry.keypoints import HALF_PIXEL
from boxdet.structures.instances import Instances
from boxdet.visualization.mask_windows import mask_outlines
from boxdet.visualization.palette import (
    Color,
    ColorSpec,
    PaletteSpec,
    class_color,
    class_colors,
    parse_color,
    readable_on,
)

CLOSED = -2  # in place of a key's code: the window was closed
END = (CLOSED, 27, ord('q'), ord('Q'))  # what ``show`` returns when the user wants no more: 27 is Esc

_MASK_OPACITY = 0.42
_FONT = cv2.FONT_HERSHEY_SIMPLEX
KEYPOINT_THRESHOLD = 0.05  # detectron2's: a keypoint of a lower score is a guess
_SUBPIXEL_BITS = 3
_LOOK_AT_WINDOW = 0.1  # seconds until it is noticed that the user closed it
_LEAST_FONT_SCALE = 0.31  # letters of seven pixels
# Of a place for a label: that part of it lies on another label, that it hides an object, and that it is less usual than
# the ones before (see _label_spots; the last four do not touch the box).
_COVERING_COST, _HIDING_COST = 10., 3.
_SPOT_COSTS = np.concatenate([0.05 * np.arange(14), 1.2 + 0.05 * np.arange(4)])


def draw_instances(image: np.ndarray, instances: Instances, class_names: Sequence[str] | None = None,
                   score_thr: float = 0.3, palette: PaletteSpec = None, thickness: float | None = None,
                   font_scale: float | None = None, show_mask: bool = True,
                   bbox_color: ColorSpec | None = None, text_color: ColorSpec | None = None,
                   mask_color: ColorSpec | None = None, skeleton: Sequence[tuple[int, int]] = (),
                   keypoint_thr: float = KEYPOINT_THRESHOLD) -> np.ndarray:
    """Draw ``instances`` on a copy of ``image``.

    Args:
        image: (H, W, 3) uint8 in BGR order, or (H, W) grey.
        instances: ``bboxes`` in pixels of ``image``, ``labels``, and where they have them ``scores``, ``masks`` and
            ``keypoints``.
        class_names: name of each label.
        score_thr: instances with a score at or below it are left out; without ``scores`` all are drawn.
        palette: see ``palette.class_colors``; fixed vivid colours without it.
        thickness: line width in pixels; from the image's size by default.
        font_scale: OpenCV's font scale; from the image's size by default.
        show_mask: draw ``masks`` where the instances have them.
        bbox_color: one RGB colour (or its name) for all boxes.
        text_color: the same for all texts.
        mask_color: the same for all masks.
        skeleton: keypoints, counted from 0, that lines connect.
        keypoint_thr: keypoints with a score (or, of ground truth, a visibility) at or below it are left out.

    Returns:
        (H, W, 3) uint8 in BGR order.

    Raises:
        DataError: not such an image, or masks of another size.
    """
    canvas = _canvas(image)
    if 'scores' in instances:
        instances = instances[instances.scores > score_thr]
    if not len(instances):
        return canvas
    arrays = instances.numpy()
    boxes, labels, scores = arrays['bboxes'], arrays['labels'].tolist(), arrays.get('scores')
    colors = class_colors(palette, max(labels) + 1)
    unit = sqrt(canvas.shape[0] * canvas.shape[1])
    width = max(1, round(0.9 + unit / 700)) if thickness is None else max(1, round(thickness))
    order = np.argsort(scores, kind='stable') if scores is not None else np.arange(len(labels))
    if show_mask and 'masks' in instances:
        fills = [parse_color(mask_color)] * len(labels) if mask_color is not None else [
            colors[k] for k in labels]
        canvas = _draw_masks(canvas, instances.masks, fills, max(1, width - 1))
    box_colors = [parse_color(bbox_color)] * len(labels) if bbox_color is not None else [
        colors[k] for k in labels]
    corners = np.rint(boxes).astype(int).tolist()
    for i in order:
        x0, y0, x1, y1 = corners[i]
        cv2.rectangle(canvas, (x0, y0), (x1, y1), _bgr(box_colors[i]), width, cv2.LINE_8)
    if 'keypoints' in instances:
        _draw_keypoints(canvas, arrays['keypoints'][order], boxes[order], skeleton, keypoint_thr, width)
    texts = [
        label_text(k, None if scores is None else float(scores[i]), class_names)
        for i, k in enumerate(labels)]
    scale = max(_LEAST_FONT_SCALE, unit / 1700) if font_scale is None else font_scale
    text = None if text_color is None else parse_color(text_color)
    _draw_labels(canvas, np.array(corners)[order[::-1]], [texts[i] for i in order[::-1]],
                 [box_colors[i] for i in order[::-1]], text, scale, width)
    return canvas


def _canvas(image: np.ndarray) -> np.ndarray:
    """A contiguous (H, W, 3) uint8 copy."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise DataError(
            f'an image to draw on is a uint8 array, not {getattr(image, "dtype", type(image).__name__)}')
    if image.ndim == 2 or image.ndim == 3 and image.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR)
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise DataError(f'an image to draw on is (H, W, 3) or (H, W), not {image.shape}')
    return np.array(image[:, :, :3], order='C')


def _bgr(color: Color) -> Color:
    return color[2], color[1], color[0]


def label_text(label: int, score: float | None, class_names: Sequence[str] | None) -> str:
    """What is written at an object: its class, and its score if it has one."""
    known = () if class_names is None else class_names
    name = str(known[label]) if label < len(known) else f'class {label}'
    return name if score is None else f'{name} {score:.2f}'


def _draw_masks(canvas: np.ndarray, masks: object, colors: Sequence[Color], width: int) -> np.ndarray:
    """Blend the masks in, large ones below small ones, and draw their outlines."""
    height, wide = canvas.shape[:2]
    shapes = []
    for traced, color in zip(mask_outlines(masks), colors):
        if traced is None:
            continue
        (left, top, right, bottom), rings = traced
        if right > wide or bottom > height:
            raise DataError(f'a mask reaches to ({right}, {bottom}), beyond the {wide}x{height} image: masks are of '
                            'another image size')
        shapes.append(((right - left) * (bottom - top), rings, _bgr(color)))
    if not shapes:
        return canvas
    shapes.sort(key=lambda shape: -shape[0])
    filled = canvas.copy()
    for _, rings, color in shapes:
        cv2.drawContours(filled, rings, -1, color, cv2.FILLED)
    cv2.addWeighted(filled, _MASK_OPACITY, canvas, 1 - _MASK_OPACITY, 0, dst=canvas)
    for _, rings, color in shapes:
        light = tuple((v + 255) // 2 for v in color)  # tells neighbours of one class apart
        # Smoothed edges cost four times as much on wide lines, where they are hardly seen.
        cv2.drawContours(canvas, rings, -1, light, width, cv2.LINE_AA if width == 1 else cv2.LINE_8)
    return canvas


def _draw_keypoints(canvas: np.ndarray, keypoints: np.ndarray, boxes: np.ndarray, skeleton: Sequence[tuple[int, int]],
                    threshold: float, width: int) -> None:
    """Draw the keypoints (N, J, 3) and bones of N instances, the later ones on top; one colour a bone and a keypoint.

    Lines are thinner on small objects, whose keypoints would else be one blot. All bones of a colour and thickness
    are one call.
    """
    height, wide = canvas.shape[:2]
    place = np.clip(np.nan_to_num(keypoints[..., :2] - HALF_PIXEL), (-wide, -height), (2 * wide, 2 * height))
    points = np.rint(place * (1 << _SUBPIXEL_BITS)).astype(np.int32)                     # (N, J, 2)
    seen = keypoints[..., 2] > threshold                                                 # (N, J)
    extent = np.sqrt(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1))
    thickness = np.clip(np.rint(extent / 50), 1, 2 * width).astype(int)                  # (N,)
    for t in np.unique(thickness).tolist():
        for start, end in skeleton:
            chosen = (thickness == t) & seen[:, start] & seen[:, end]
            _draw_segments(canvas, points[chosen][:, [start, end]], _bgr(class_color(max(start, end))), t)
    dots = np.where(extent > 80, thickness + 1, 1) << _SUBPIXEL_BITS                     # (N,) radius
    for i, keypoint in zip(*(index.tolist() for index in np.nonzero(seen))):
        spot, radius = points[i, keypoint].tolist(), int(dots[i])
        if extent[i] > 80:  # on a small object there is no room for a rim
            cv2.circle(canvas, spot, radius + (1 << _SUBPIXEL_BITS), (255, 255, 255), cv2.FILLED, cv2.LINE_8,
                       _SUBPIXEL_BITS)
        cv2.circle(canvas, spot, radius, _bgr(class_color(keypoint)), cv2.FILLED, cv2.LINE_8, _SUBPIXEL_BITS)


def _draw_segments(canvas: np.ndarray, segments: np.ndarray, color: Color, thickness: int) -> None:
    """Lines (n, 2, 2) from point to point, in fractions of pixels."""
    if len(segments):
        # Smoothed edges cost eight times as much on wide lines, where they are hardly seen.
        kind = cv2.LINE_AA if thickness == 1 else cv2.LINE_8
        cv2.polylines(canvas, list(np.ascontiguousarray(segments)), False, color, thickness, kind, _SUBPIXEL_BITS)


def _draw_labels(canvas: np.ndarray, corners: np.ndarray, texts: Sequence[str], colors: Sequence[Color],
                 text_color: Color | None, scale: float, width: int) -> None:
    """Draw the labels of boxes (N, 4), the first ones (highest scores) having the choice of place and lying on top."""
    strokes = max(1, round(scale * 1.6))
    margin = max(1, round(scale * 5))
    measured = {text: cv2.getTextSize(text, _FONT, scale, strokes) for text in set(texts)}
    sizes = np.array([(w + 2 * margin, h + baseline + margin) for (w, h), baseline in map(measured.__getitem__, texts)])
    plates = place_labels(corners, sizes, canvas.shape[:2], width).astype(int).tolist()
    for i in range(len(texts) - 1, -1, -1):
        x0, y0, x1, y1 = plates[i]
        (_, h), _ = measured[texts[i]]
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), _bgr(colors[i]), cv2.FILLED)
        color = readable_on(colors[i]) if text_color is None else text_color
        cv2.putText(canvas, texts[i], (x0 + margin, y0 + margin // 2 + 1 + h), _FONT, scale, _bgr(color),
                    strokes, cv2.LINE_AA)


def place_labels(boxes: np.ndarray, sizes: np.ndarray, image_hw: tuple[int, int], width: int) -> np.ndarray:
    """Choose where the label plates go: inside the image, away from one another, and off small objects.

    Each plate in turn takes the cheapest of the spots around and in its box.

    Args:
        boxes: (N, 4) pixels, best first.
        sizes: (N, 2) width and height of the plates.
        image_hw: height and width of the image.
        width: of the boxes' lines.

    Returns:
        (N, 4) plates, xyxy.
    """
    height, wide = image_hw
    (w, h), area = sizes.T[:, :, None], sizes.prod(axis=1)
    wanted_x, wanted_y = _label_spots(boxes, sizes, width)
    x, y = np.clip(wanted_x, 0, np.maximum(wide - w, 0)), np.clip(wanted_y, 0, np.maximum(height - h, 0))
    spots = np.stack([x, y, x + w, y + h])                                                # (4, N, S)
    # A label pushed back into the image may no longer touch its box: that costs as overlap does.
    cost = (np.abs(x - wanted_x) + np.abs(y - wanted_y)) / h + _SPOT_COSTS                # (N, S)
    inside = np.clip(boxes, 0, (wide, height, wide, height))
    covered = np.maximum(inside[:, 2:] - inside[:, :2], 1).prod(axis=1)
    for box, pixels in zip(inside.tolist(), covered.tolist()):
        if pixels < 10 * area.max():  # the plate would hide the object
            cost += _HIDING_COST / pixels * _overlap(spots, box)
    plates = np.empty((len(boxes), 4))
    for i, (chosen, pixels) in enumerate(zip(plates, area)):
        chosen[:] = spots[:, i, cost[i].argmin()]
        cost[i + 1:] += _COVERING_COST / pixels * _overlap(spots[:, i + 1:], chosen.tolist())
    return plates


def _label_spots(boxes: np.ndarray, sizes: np.ndarray, width: int) -> np.ndarray:
    """X and y (2, N, S) of the upper left corners of the places for a plate at each box, the most usual ones first."""
    half = width // 2
    (x0, y0), (x1, y1), (w, h) = (boxes[:, :2] - half).T, (boxes[:, 2:] + half + 1).T, sizes.T
    left, right, middle, before, after = x0, x1 - w, (x0 + x1 - w) // 2, x0 - w, x1
    above, below, top, bottom = y0 - h, y1, y0, y1 - h
    spots = ((left, above), (left, top), (right, above), (left, below), (right, top), (right, below), (left, bottom),
             (right, bottom), (middle, above), (middle, below), (after, top), (before, top), (after, bottom),
             (before, bottom), (left, above - h), (left, below + h), (right, above - h), (right, below + h))
    return np.array(spots, dtype=np.float32).transpose(1, 2, 0).copy()


def _overlap(spots: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Square pixels that spots (4, ...) share with ``box``."""
    x0, y0, x1, y1 = box
    wide = np.minimum(spots[2], x1) - np.maximum(spots[0], x0)
    high = np.minimum(spots[3], y1) - np.maximum(spots[1], y0)
    return np.maximum(wide, 0) * np.maximum(high, 0)


def read_image(source: Any, image_hw: tuple[int, int] | None = None) -> np.ndarray:
    """An image in any form as (H, W, 3) uint8 in BGR order.

    Args:
        source: a file name, the bytes of an image file, or a PIL image; an array is returned as it is.
        image_hw: height and width of the image that a result is of. What is no array is turned upright by its EXIF
            orientation, unless it has this size only as it is stored: so it was read for the result.

    Raises:
        DataError: the file is missing, empty, or no image; or of another size either way.
    """
    if isinstance(source, np.ndarray):
        return source
    name, content = _content(source)
    image = _decode(content, name, upright=True)
    if image_hw is None or image.shape[:2] == tuple(image_hw):
        return image
    stored = _decode(content, name, upright=False)
    if stored.shape[:2] != tuple(image_hw):
        raise DataError(f'{name}: the result is of an image of {image_hw[1]}x{image_hw[0]} pixels, this one has '
                        f'{image.shape[1]}x{image.shape[0]}')
    return stored


def _content(source: Any) -> tuple[str, Any]:
    """What a message calls ``source``, and its bytes, or the PIL image that it is."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, content = 'the image', bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise DataError(f'{name}: {error.strerror}') from error
    elif any(kind.__module__.startswith('PIL.') for kind in type(source).__mro__):
        return getattr(source, 'filename', '') or 'the image', source
    else:
        raise DataError(f'an image is a file name, an array, bytes or a PIL image, not {type(source).__name__}')
    if not content:
        raise DataError(f'{name}: the file is empty')
    return name, content


def _decode(content: Any, name: str, upright: bool) -> np.ndarray:
    if not isinstance(content, bytes):
        from PIL import ImageOps
        turned = ImageOps.exif_transpose(content) if upright else content
        return np.ascontiguousarray(np.asarray(turned.convert('RGB'))[:, :, ::-1])
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None:
        raise DataError(f'{name}: not an image that OpenCV can read')
    return image


def write_image(image: np.ndarray, path: str | os.PathLike) -> None:
    """Write ``image`` (BGR) in the format that the ending of ``path`` names; folders are made.

    Raises:
        DataError: an ending that OpenCV does not write, or a folder that does not take the file.
    """
    path = Path(path)
    _check_ending(path)
    data = cv2.imencode(path.suffix, image)[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f'cannot write {path}: {error.strerror}') from error


def check_out_file(path: str | os.PathLike, endings: Sequence[str] = ()) -> None:
    """Find out before the work whether ``write_image`` will write ``path``; its folder is made.

    Args:
        path: the file that will be written.
        endings: others, that somebody else writes: '.pdf'.

    Raises:
        DataError: as ``write_image``.
    """
    path = Path(path)
    if path.suffix.lower() not in endings:
        _check_ending(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'cannot write {path}: {error.strerror}') from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DataError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'Permission denied'}")


def _check_ending(path: Path) -> None:
    if not path.suffix or not cv2.haveImageWriter(f'a{path.suffix}'):
        raise DataError(f"{path}: OpenCV writes no '{path.suffix}' images (.jpg and .png are usual)")


def check_score_thr(score_thr: float) -> None:
    """Raise ConfigError when ``--score-thr`` is no score."""
    if not 0 <= score_thr <= 1:  # true of nan, too
        raise ConfigError(f'--score-thr {score_thr:g}: scores are from 0 to 1')


def show(image: np.ndarray, win_name: str = '', wait_time: float = 0) -> int:
    """Show ``image`` (BGR) in a window for ``wait_time`` seconds, 0 until a key is pressed.

    Returns:
        the key's code, -1 for none, CLOSED when the user has closed the window; those ``in END`` ask for the end.

    Raises:
        UserError: no display, or an OpenCV built without windows.
    """
    problem = _display_problem()
    if problem:
        raise UserError(
            f'cannot open a window: {problem}; write the image to a file instead (out_file, --out-file, '
            '--show-dir)')
    _lend_fonts()
    try:
        cv2.imshow(win_name or 'boxdet', image)
        return _wait(win_name or 'boxdet', wait_time or float('inf'))
    except cv2.error as error:
        raise UserError(
            'cannot open a window: this OpenCV is built without windows (opencv-python-headless); install '
            'opencv-python, or write the image to a file instead') from error


def _lend_fonts() -> None:
    """Where OpenCV names a folder of fonts that its wheel lacks, name matplotlib's: Qt complains of texts otherwise."""
    if not os.path.isdir(os.environ.get('QT_QPA_FONTDIR', '.')) and importlib.util.find_spec('matplotlib'):
        import matplotlib
        os.environ['QT_QPA_FONTDIR'] = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf')


def _wait(win_name: str, seconds: float) -> int:
    """Wait for a key or the window's end, as ``show``; OpenCV's own endless waiting outlives the window."""
    end = time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        key = cv2.waitKey(max(1, round(1000 * min(left, _LOOK_AT_WINDOW))))
        if key >= 0:
            return key
        if not _is_open(win_name):
            return CLOSED
        if time.monotonic() >= end:
            return -1


def _is_open(win_name: str) -> bool:
    try:
        return cv2.getWindowProperty(win_name, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt's answer when its last window is gone
        return False


def _display_problem() -> str:
    """Why no window can open, '' when one can; ask first, as Qt ends the whole process without a display."""
    if not sys.platform.startswith('linux') or os.environ.get('WAYLAND_DISPLAY'):
        return ''
    display = os.environ.get('DISPLAY', '')
    if not display:
        return 'there is no display (DISPLAY is not set)'
    host, _, number = display.rpartition(':')
    number = number.split('.')[0]
    try:
        if not number.isdigit():
            raise OSError('not of the form host:number')
        if host in ('', 'unix'):
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(2)
                link.connect(f'/tmp/.X11-unix/X{number}')
        else:
            socket.create_connection((host, 6000 + int(number)), timeout=2).close()
    except OSError as error:
        return f"the display '{display}' does not answer ({error})"
    return ''
