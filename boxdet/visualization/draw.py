"""Instances drawn on an image with OpenCV: masks, outlines, boxes, skeletons and labels.

Everything scales with the image, so that a thumbnail and a 12-megapixel photo are equally readable. Masks are
filled on one copy of the image, which is blended in once.

Letters: N instances, J joints, H and W the image.
"""
from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import cv2
import numpy as np

from boxdet.errors import DataError, UserError
from boxdet.geometry.keypoints import HALF_PIXEL
from boxdet.structures.instances import Instances
from boxdet.visualization.mask_windows import mask_windows
from boxdet.visualization.palette import (Color, ColorSpec, PaletteSpec, class_color, class_colors, parse_color,
                                          readable_on)

_MASK_OPACITY = 0.42
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_JOINT_THRESHOLD = 0.05  # detectron2's: a joint of a lower score is a guess
_SUBPIXEL_BITS = 3


def draw_instances(image: np.ndarray, instances: Instances, class_names: Sequence[str] | None = None,
                   score_thr: float = 0.3, palette: PaletteSpec = None, thickness: float | None = None,
                   font_scale: float | None = None, show_mask: bool = True,
                   bbox_color: ColorSpec | None = None, text_color: ColorSpec | None = None,
                   mask_color: ColorSpec | None = None, skeleton: Sequence[tuple[int, int]] = (),
                   joint_thr: float = _JOINT_THRESHOLD) -> np.ndarray:
    """Draw ``instances`` on a copy of ``image``.

    Args:
        image: (H, W, 3) uint8 in BGR order, or (H, W) grey.
        instances: ``bboxes`` in pixels of ``image``, ``labels``, and where they have them ``scores``, ``masks`` and
            ``keypoints``.
        class_names: name of each label.
        score_thr: instances with a score at or below it are left out; without ``scores`` all are drawn.
        palette: see ``palette.class_colors``; fixed vivid colours without it.
        thickness, font_scale: line width in pixels and OpenCV's font scale; from the image's size without
            them.
        bbox_color, text_color, mask_color: one RGB colour (or its name) for all boxes, texts, masks.
        skeleton: joints, counted from 0, that lines connect.
        joint_thr: joints with a score (or, of ground truth, a visibility) at or below it are left out.

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
        _draw_joints(canvas, arrays['keypoints'][order], boxes[order], skeleton, joint_thr, width)
    texts = [
        _label_text(k, None if scores is None else float(scores[i]), class_names)
        for i, k in enumerate(labels)]
    scale = max(0.36, unit / 1700) if font_scale is None else font_scale
    text = None if text_color is None else parse_color(text_color)
    _draw_labels(canvas, [corners[i] for i in order[::-1]], [texts[i] for i in order[::-1]],
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


def _label_text(label: int, score: float | None, class_names: Sequence[str] | None) -> str:
    known = class_names is not None and label < len(class_names)
    name = str(class_names[label]) if known else f'class {label}'
    return name if score is None else f'{name} {score:.2f}'


def _draw_masks(canvas: np.ndarray, masks: object, colors: Sequence[Color], width: int) -> np.ndarray:
    """Blend the masks in, large ones below small ones, and draw their outlines."""
    height, wide = canvas.shape[:2]
    outlines = []
    for window, color in zip(mask_windows(masks), colors):
        if window is None:
            continue
        left, top, mask = window
        if left + mask.shape[1] > wide or top + mask.shape[0] > height:
            raise DataError(f'a mask reaches to ({left + mask.shape[1]}, {top + mask.shape[0]}), beyond the '
                            f'{wide}x{height} image: masks are of another image size')
        found, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
        outlines.append((mask.size, found, _bgr(color)))
    if not outlines:
        return canvas
    outlines.sort(key=lambda outline: -outline[0])
    filled = canvas.copy()
    for _, found, color in outlines:
        cv2.drawContours(filled, found, -1, color, cv2.FILLED)
    cv2.addWeighted(filled, _MASK_OPACITY, canvas, 1 - _MASK_OPACITY, 0, dst=canvas)
    for _, found, color in outlines:
        light = tuple((v + 255) // 2 for v in color)  # tells neighbours of one class apart
        smooth = [cv2.approxPolyDP(outline, 0.7, True) for outline in found]
        # Smoothed edges cost four times as much on wide lines, where they are hardly seen.
        cv2.drawContours(canvas, smooth, -1, light, width, cv2.LINE_AA if width == 1 else cv2.LINE_8)
    return canvas


def _draw_joints(canvas: np.ndarray, keypoints: np.ndarray, boxes: np.ndarray, skeleton: Sequence[tuple[int, int]],
                 threshold: float, width: int) -> None:
    """Draw the joints (N, J, 3) and bones of N instances, the later ones on top; one colour a bone and a joint.

    Lines are thinner on small objects, whose joints would else be one blot. All bones of a colour and thickness are one
    call.
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
    for i, joint in zip(*(index.tolist() for index in np.nonzero(seen))):
        spot, radius = points[i, joint].tolist(), int(dots[i])
        if extent[i] > 80:  # on a small object there is no room for a rim
            cv2.circle(canvas, spot, radius + (1 << _SUBPIXEL_BITS), (255, 255, 255), cv2.FILLED, cv2.LINE_8,
                       _SUBPIXEL_BITS)
        cv2.circle(canvas, spot, radius, _bgr(class_color(joint)), cv2.FILLED, cv2.LINE_8, _SUBPIXEL_BITS)


def _draw_segments(canvas: np.ndarray, segments: np.ndarray, color: Color, thickness: int) -> None:
    """Lines (n, 2, 2) from point to point, in fractions of pixels."""
    if len(segments):
        # Smoothed edges cost eight times as much on wide lines, where they are hardly seen.
        kind = cv2.LINE_AA if thickness == 1 else cv2.LINE_8
        cv2.polylines(canvas, list(np.ascontiguousarray(segments)), False, color, thickness, kind, _SUBPIXEL_BITS)


def _draw_labels(canvas: np.ndarray, corners: Sequence[Sequence[int]], texts: Sequence[str],
                 colors: Sequence[Color], text_color: Color | None, scale: float, width: int) -> None:
    """Draw the labels, the first ones (highest scores) having the choice of place and lying on top."""
    placed = np.zeros((len(texts), 4))
    strokes = max(1, round(scale * 1.6))
    margin = max(2, round(scale * 5))
    sizes = {text: cv2.getTextSize(text, _FONT, scale, strokes) for text in set(texts)}
    for i, (box, text) in enumerate(zip(corners, texts)):
        (w, h), baseline = sizes[text]
        placed[i] = _place(box, w + 2 * margin, h + baseline + margin, placed[:i], canvas.shape, width)
    for i in range(len(texts) - 1, -1, -1):
        x0, y0, x1, y1 = placed[i].astype(int).tolist()
        (_, h), _ = sizes[texts[i]]
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), _bgr(colors[i]), cv2.FILLED)
        color = readable_on(colors[i]) if text_color is None else text_color
        cv2.putText(canvas, texts[i], (x0 + margin, y0 + margin // 2 + 1 + h), _FONT, scale, _bgr(color),
                    strokes, cv2.LINE_AA)


def _place(box: Sequence[int], w: int, h: int, placed: np.ndarray, shape: Sequence[int],
           width: int) -> np.ndarray:
    """Choose where the label plate (w, h) of ``box`` goes: xyxy inside the image, away from the plates
    ``placed``.
    """
    x0, y0, x1, y1 = box
    half = width // 2
    left, right = x0 - half, x1 + half + 1 - w
    above, below, inside_top, inside_bottom = y0 - half - h, y1 + half + 1, y0 - half, y1 + half + 1 - h
    corners = np.array([(left, above), (left, inside_top), (right, above), (left, below), (right, inside_top),
                        (right, below), (left, inside_bottom), (right, inside_bottom)], dtype=float)
    fitted = np.maximum(np.minimum(corners, (shape[1] - w, shape[0] - h)), 0)
    spots = np.concatenate([fitted, fitted + (w, h)], axis=1)
    # A label pushed back into the image may no longer touch its box: that costs as overlap does.
    cost = np.abs(fitted - corners).sum(axis=1) / h + 0.05 * np.arange(len(spots))
    if w > x1 - x0 or 2 * h > y1 - y0:
        cost[[1, 4, 6, 7]] += 0.5  # inside a small box the plate would hide the object
    if len(placed):
        overlap = (np.minimum(spots[:, None, 2:], placed[None, :, 2:])
                   - np.maximum(spots[:, None, :2], placed[None, :, :2])).clip(min=0)
        cost += 10 * overlap.prod(axis=2).sum(axis=1) / (w * h)
    return spots[int(cost.argmin())]


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 in BGR order.

    Raises:
        DataError: the file is missing, empty, or no image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
    if not data:
        raise DataError(f'{path}: the file is empty')
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f'{path}: not an image that OpenCV can read')
    return image


def write_image(image: np.ndarray, path: str | os.PathLike) -> None:
    """Write ``image`` (BGR) in the format that the ending of ``path`` names; folders are made.

    Raises:
        DataError: an ending that OpenCV does not write, or a folder that does not take the file.
    """
    path = Path(path)
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"{path}: OpenCV writes no '{path.suffix}' pictures (.jpg and .png are usual)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise DataError(f'cannot write {path}: {error.strerror}') from error


def show(image: np.ndarray, win_name: str = '', wait_time: float = 0) -> int:
    """Show ``image`` (BGR) in a window for ``wait_time`` seconds, 0 until a key is pressed.

    Returns:
        the key's code, -1 for none.

    Raises:
        UserError: no display, or an OpenCV built without windows.
    """
    problem = _display_problem()
    if problem:
        raise UserError(
            f'cannot open a window: {problem}; write the picture to a file instead (out_file, --out-file, '
            '--show-dir)')
    try:
        cv2.imshow(win_name or 'boxdet', image)
        return cv2.waitKey(max(1, round(wait_time * 1000)) if wait_time else 0)
    except cv2.error as error:
        raise UserError(
            'cannot open a window: this OpenCV is built without windows (opencv-python-headless); install '
            'opencv-python, or write the picture to a file instead') from error


def _display_problem() -> str:
    """Why no window can open, '' when one can. Qt ends the whole process without a display, so ask
    beforehand.
    """
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
