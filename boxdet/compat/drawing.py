"""Drawing functions of ``mmdet.core.visualization`` beside ``imshow_det_bboxes``."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mmcv
import numpy as np

from boxdet.compat.arrays import mask2ndarray
from boxdet.compat.functions import imshow_det_bboxes
from boxdet.datasets.cityscapes import CityscapesDataset
from boxdet.visualization import draw
from boxdet.visualization.palette import class_colors


def color_val_matplotlib(color: Any) -> tuple[float, ...]:
    """Matplotlib's form, RGB of 0..1, of a colour of mmcv: a name, a grey value, or BGR of 0..255.

    Raises:
        TypeError: none of these.
        AssertionError: a value beyond 255.
    """
    return tuple(value / 255 for value in mmcv.color_val(color)[::-1])


def palette_val(palette: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """Matplotlib's form, 0..1, of RGB colours of 0..255."""
    return [tuple(value / 255 for value in color) for color in palette]


def get_palette(palette: Any, num_classes: int) -> list[tuple[int, ...]]:
    """RGB colours of the classes.

    Args:
        palette: a list of colours, which is returned; one colour for all, RGB or a name; 'random' or None; 'citys';
            'coco' or 'voc', for which boxdet has its own colours.
        num_classes: K.
    """
    if isinstance(palette, list):
        return palette
    own: dict[Any, Any] = {None: 'random', 'coco': None, 'citys': CityscapesDataset.PALETTE}
    return [*class_colors(own.get(palette, palette), num_classes)]


def imshow_gt_det_bboxes(img: Any, annotation: Mapping[str, Any], result: Any,
                         class_names: Sequence[str] | None = None, score_thr: float = 0,
                         gt_bbox_color: Any = (61, 102, 255), gt_text_color: Any = (200, 200, 200),
                         gt_mask_color: Any = (61, 102, 255), det_bbox_color: Any = (241, 101, 72),
                         det_text_color: Any = (200, 200, 200), det_mask_color: Any = (241, 101, 72),
                         thickness: float = 2, font_size: float = 13, win_name: str = '', show: bool = True,
                         wait_time: float = 0, out_file: str | None = None,
                         overlay_gt_pred: bool = True) -> np.ndarray:
    """Draw the ground truth, and over it (or beside it) a result.

    Args:
        img: path or image.
        annotation: 'gt_bboxes' (N, 4), 'gt_labels' (N,) and, where there are any, 'gt_masks' of any kind.
        result: K arrays (n, 5), or a pair with K lists of masks.
        class_names: name of each label.
        score_thr: what has a score at or below it is left out.
        gt_bbox_color: of the ground truth's boxes.
        gt_text_color: of its labels.
        gt_mask_color: of its masks.
        det_bbox_color: of the result's boxes.
        det_text_color: of its labels.
        det_mask_color: of its masks.
        thickness: line width in pixels.
        font_size: of the labels.
        win_name: of the window.
        show: open a window.
        wait_time: seconds that it stays, 0 for until a key.
        out_file: where the drawing goes.
        overlay_gt_pred: on one image; else on two, side by side.

    Returns:
        (H, W, 3) uint8 in BGR order; twice as wide side by side.

    Raises:
        TypeError: a result or masks of another form.
    """
    if not isinstance(result, (list, tuple)):
        raise TypeError(f'a result is a list, or a pair with masks, not {type(result)}')
    image = draw.read_image(img)
    masks = annotation.get('gt_masks')
    style: dict[str, Any] = dict(class_names=class_names, thickness=thickness, font_size=font_size, show=False)
    truth = imshow_det_bboxes(image, annotation['gt_bboxes'], annotation['gt_labels'],
                              None if masks is None else mask2ndarray(masks), bbox_color=gt_bbox_color,
                              text_color=gt_text_color, mask_color=gt_mask_color, **style)
    boxes, segms = result if isinstance(result, tuple) else (result, None)
    labels = np.concatenate([np.full(len(rows), k) for k, rows in enumerate(boxes)])
    found = [one for of_class in segms or () for one in of_class]
    drawing = imshow_det_bboxes(truth if overlay_gt_pred else image, np.vstack(boxes), labels,
                                np.stack(found) if found else None, score_thr=score_thr, bbox_color=det_bbox_color,
                                text_color=det_text_color, mask_color=det_mask_color, **style)
    if not overlay_gt_pred:
        drawing = np.concatenate([truth, drawing], axis=1)
    if out_file is not None:
        draw.write_image(drawing, out_file)
    if show:
        draw.show(drawing, win_name, wait_time)
    return drawing
