"""Draws a folder in Cityscapes' shape: images, polygons, and the ground truth that cityscapesscripts makes."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

SIZE = 256, 128  # width, height: Cityscapes' shape, an eighth of its size
_CITIES = dict(train=('aachen', 'bochum'), val=('frankfurt', 'lindau'), test=('berlin',))
# Drawn one over the other, as the annotators do. Names ending in 'group' are areas of many objects.
_THINGS = ('car', 'person', 'bus', 'rider', 'bicycle', 'truck', 'motorcycle', 'train', 'cargroup', 'persongroup',
           'caravan', 'license plate')


def draw(folder: Path, per_city: int = 2, seed: int = 0) -> Path:
    """Draw train, val and test splits into ``folder``; test has the ground truth that Cityscapes ships: all void."""
    pytest.importorskip('cityscapesscripts', reason='cityscapesscripts makes the ground truth of the drawn folder')
    rng = np.random.default_rng(seed)
    for split, cities in _CITIES.items():
        for city in cities:
            for number in range(per_city):
                objects = [('out of roi', _box(0, 0, *SIZE))] if split == 'test' else _scene(rng, number)
                _write(folder, split, city, f'{city}_{number:06d}_000019', objects, rng)
    return folder


def _scene(rng: np.random.Generator, number: int) -> list[tuple[str, np.ndarray]]:
    width, height = SIZE
    objects = [('sky', _box(0, 0, width, 50)), ('building', _box(0, 30, width, 80)),
               ('road', _box(0, 80, width, height)), ('ego vehicle', _box(0, height - 8, width, height))]
    names = [_THINGS[(number + k) % 8] for k in range(3)] + list(rng.choice(_THINGS, size=6))
    for name in names:
        w, h = int(rng.integers(14, 70)), int(rng.integers(12, 44))
        x, y = int(rng.integers(-8, width - w + 8)), int(rng.integers(40, height - h - 4))
        corners = np.array([[x, y + h // 3], [x + w // 3, y], [x + w, y + h // 4], [x + w - 2, y + h], [x + 1, y + h]])
        objects.append((name, corners))
    return objects


def _box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _write(folder: Path, split: str, city: str, stem: str, objects: list, rng: np.random.Generator) -> None:
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.helpers.labels import name2label
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    images, truth = folder / 'leftImg8bit' / split / city, folder / 'gtFine' / split / city
    images.mkdir(parents=True, exist_ok=True)
    truth.mkdir(parents=True, exist_ok=True)
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for name, corners in objects:
        color = name2label[name.removesuffix('group')].color[::-1]
        cv2.fillPoly(image, [corners.astype(np.int32)], tuple(map(int, color)))
    noisy = image.astype(np.int16) + rng.integers(-20, 20, image.shape, dtype=np.int16)
    cv2.imwrite(str(images / f'{stem}_leftImg8bit.png'), noisy.clip(0, 255).astype(np.uint8))
    polygons = truth / f'{stem}_gtFine_polygons.json'
    polygons.write_text(json.dumps(dict(
        imgWidth=SIZE[0], imgHeight=SIZE[1],
        objects=[dict(label=name, polygon=corners.tolist()) for name, corners in objects])))
    annotation = Annotation()
    annotation.fromJsonFile(str(polygons))
    ids = np.array(createInstanceImage(annotation, 'ids')).astype(np.uint16)
    cv2.imwrite(str(truth / f'{stem}_gtFine_instanceIds.png'), ids)  # their own save() fails with Pillow 13
    json2labelImg(str(polygons), str(truth / f'{stem}_gtFine_labelIds.png'))
    json2labelImg(str(polygons), str(truth / f'{stem}_gtFine_color.png'), 'color')


def converter() -> ModuleType:
    """tools/dataset_converters/cityscapes.py as a module."""
    path = Path(__file__).resolve().parent.parent / 'tools/dataset_converters/cityscapes.py'
    spec = importlib.util.spec_from_file_location('boxdet_convert_cityscapes', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_and_convert(folder: Path) -> Path:
    """``draw``, with the annotation files in ``folder/annotations``."""
    draw(folder)
    converter().main([str(folder), '--out-dir', str(folder / 'annotations')])
    return folder
