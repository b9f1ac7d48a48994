"""A small folder in Pascal VOC's shape, drawn for the tests."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_xml(path: Path, objects: list[dict], size: tuple | None = (128, 96), extra: str = '') -> None:
    """An annotation file; objects are dicts of name, box (xmin, ymin, xmax, ymax as written) and perhaps difficult."""
    text = '<annotation><folder>VOC</folder>' + extra
    if size is not None:
        text += f'<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>'
    for one in objects:
        corners = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), one['box']))
        difficult = f"<difficult>{one['difficult']}</difficult>" if 'difficult' in one else ''
        text += f"<object><name>{one['name']}</name>{difficult}<bndbox>{corners}</bndbox></object>"
    path.write_text(text + '</annotation>', encoding='utf-8')


def draw(root: Path, names: list[str], split: str = 'trainval', seed: int = 0, classes: tuple = ('cat', 'dog')) -> Path:
    """Images of 128 x 96 pixels (every third one is turned) with two rectangles each, annotated from 1.

    Adds to the list SPLIT.txt.
    """
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k, name in enumerate(names):
        width, height = (96, 128) if k % 3 == 2 else (128, 96)
        image, objects = np.full((height, width, 3), rng.integers(0, 80, 3), np.uint8), []
        for j in range(2):
            x, y = int(rng.integers(0, width - 45)), int(rng.integers(0, height - 35))
            cv2.rectangle(image, (x, y), (x + 39, y + 29), rng.integers(100, 255, 3).tolist(), -1)
            objects.append(dict(name=classes[(k + j) % len(classes)], box=(x + 1, y + 1, x + 40, y + 30), difficult=0))
        cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), image)
        write_xml(root / f'Annotations/{name}.xml', objects, (width, height))
    with open(root / f'ImageSets/Main/{split}.txt', 'a') as file:
        file.write(''.join(f'{name}\n' for name in names))
    return root
