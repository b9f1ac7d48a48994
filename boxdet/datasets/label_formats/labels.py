"""The structure that every label format is read into, and its way to COCO's JSON.

Coordinates are absolute pixels of the image as it is loaded: upright, after its EXIF orientation was applied.
"""
from __future__ import annotations

import hashlib
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boxdet.datasets.files import image_size
from boxdet.errors import DataError, nearest

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.jfif', '.jp2', '.ppm')
Point = tuple[float, float]


@dataclass
class LabelledObject:
    """One object.

    Args:
        category: name of its class.
        bbox: (x, y, width, height) in pixels; None where polygons or a mask tell it.
        polygons: [x0, y0, x1, y1, ...] each.
        rle: COCO's RLE of the whole image, in place of polygons.
        keypoints: (x, y, v) for each name in the category's list; v is 0 without a label, 1 hidden, 2 visible.
        crowd: many objects under one label.
        difficult: not to be counted in evaluation (Pascal VOC's flag); written as ``ignore``.
        score: confidence, of predictions only.
    """
    category: str
    bbox: tuple[float, float, float, float] | None = None
    polygons: list[list[float]] = field(default_factory=list)
    rle: dict[str, Any] | None = None
    keypoints: list[tuple[float, float, int]] = field(default_factory=list)
    crowd: bool = False
    difficult: bool = False
    score: float | None = None

    def join(self, part: LabelledObject) -> None:
        """Take in another part of the same object; a box is around all of both."""
        if self.bbox is not None or part.bbox is not None:
            boxes = [box for box in (self._extent(), part._extent()) if box is not None]
            self.bbox = bounding_box([c for x, y, w, h in boxes for c in ((x, y), (x + w, y + h))])
        self.polygons += part.polygons
        if part.rle is not None:
            mask = decode_rle(part.rle)
            self.rle = part.rle if self.rle is None else encode_mask(mask | decode_rle(self.rle))
        self.crowd |= part.crowd
        self.difficult |= part.difficult

    def _extent(self) -> tuple[float, float, float, float] | None:
        if self.bbox is not None:
            return self.bbox
        corners = [point for polygon in self.polygons for point in pairs(polygon)]
        if self.rle is not None:
            rows, columns = np.nonzero(decode_rle(self.rle))
            corners += [(float(columns.min()), float(rows.min())), (float(columns.max() + 1), float(rows.max() + 1))
                        ] if len(rows) else []
        return bounding_box(corners) if corners else None


@dataclass
class LabelledImage:
    """An image and its objects.

    Args:
        path: the image file; it need not exist where ``size`` is given.
        size: (width, height) in pixels.
        objects: what is labelled.
        split: the part of the data set that the source puts it in ('train', 'val', 'test'), if any.
    """
    path: Path
    size: tuple[int, int]
    objects: list[LabelledObject] = field(default_factory=list)
    split: str | None = None


@dataclass
class ReadOptions:
    """What a reader is told beside the source.

    Args:
        images: folder of the images, where they do not lie where the labels say.
        classes: names of the classes, for forms that hold numbers only, and the classes to keep for the others.
        attribute: the attribute that holds an object's class (VIA).
        label_divisor: instance id // label_divisor is the class (PNGs of instance ids); 0 for one class.
    """
    images: Path | None = None
    classes: tuple[str, ...] = ()
    attribute: str | None = None
    label_divisor: int = 0


@dataclass
class LabelSet:
    """What was read from a source.

    Args:
        images: in the source's order.
        categories: names of the classes in the source's order.
        keypoints: names of the keypoints of a category.
        skeletons: pairs of keypoints, counted from 1, of a category.
        left_out: reason -> places (file, line or id) of what was not taken.
        notes: what was taken, but not as it stands.
    """
    images: list[LabelledImage] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    keypoints: dict[str, list[str]] = field(default_factory=dict)
    skeletons: dict[str, list[list[int]]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def category(self, name: str) -> str:
        """``name``, added to the categories where it is new."""
        name = str(name).strip()
        if name not in self.categories:
            self.categories.append(name)
        return name

    def place_keypoint(self, owner: LabelledObject, name: str, point: tuple[float, float, int]) -> None:
        """Give ``owner`` the keypoint ``name``, which joins its category's list where it is new."""
        names = self.keypoints.setdefault(owner.category, [])
        if name not in names:
            names.append(name)
        owner.keypoints += [(0.0, 0.0, 0)] * (len(names) - len(owner.keypoints))
        owner.keypoints[names.index(name)] = point

    def skip(self, reason: str, where: str) -> None:
        """Note that something at ``where`` was left out."""
        self.left_out[reason].append(where)

    def note(self, what: str, where: str) -> None:
        """Note that something at ``where`` was changed while it was read."""
        self.notes[what].append(where)

    def keep_classes(self, names: Sequence[str]) -> None:
        """Leave out the objects of other classes, and put the categories in the order of ``names``.

        Raises:
            DataError: a name that no category has.
        """
        for name in names:
            if name not in self.categories:
                raise DataError(f"class '{name}' is not among the labels' {len(self.categories)} classes"
                                f'{nearest(name, self.categories)}')
        for image in self.images:
            for found in image.objects:
                if found.category not in names:
                    self.skip(f"class '{found.category}' is not among those to keep", image.path.name)
            image.objects = [found for found in image.objects if found.category in names]
        self.categories = list(names)


# ------------------------------------------------------------------------------------------------- images

class ImageFinder:
    """Finds the file of an image that labels name: by its path, by its name, by its stem.

    Args:
        folders: looked through in this order, with the folders within them.
    """

    def __init__(self, *folders: Path | None):
        self.folders = [folder for folder in folders if folder is not None]
        self._by_name: dict[str, list[Path]] | None = None
        self._by_stem: dict[str, list[Path]] = {}

    def find(self, name: str) -> Path | None:
        """The file that ``name`` means, or None. Backslashes count as slashes; any image suffix will do."""
        name = name.replace('\\', '/')
        for folder in self.folders:
            if name and (folder / name).is_file():
                return folder / name
        if self._by_name is None:
            self._index()
        base = name.rsplit('/', 1)[-1]
        stem = base[:-len(Path(base).suffix)] if Path(base).suffix.lower() in IMAGE_SUFFIXES else base
        assert self._by_name is not None
        for found in (self._by_name.get(base), self._by_stem.get(stem)):
            if found:
                return _most_alike(found, name)
        return None

    def _index(self) -> None:
        self._by_name, self._by_stem = defaultdict(list), defaultdict(list)
        for folder in self.folders:
            for path in image_files(folder):
                self._by_name[path.name].append(path)
                self._by_stem[path.stem].append(path)


def _most_alike(paths: Sequence[Path], name: str) -> Path:
    wanted = name.split('/')[::-1]

    def alike(path: Path) -> int:
        parts = path.parts[::-1]
        return next((i for i, (a, b) in enumerate(zip(parts, wanted)) if a != b), len(wanted))
    return max(paths, key=alike)


def image_files(folder: Path) -> list[Path]:
    """Every image file in ``folder`` and the folders within it, sorted; hidden ones are left out."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        found += [Path(place, name) for name in sorted(names)
                  if not name.startswith('.') and Path(name).suffix.lower() in IMAGE_SUFFIXES]
    return found


def stored_orientation(path: Path) -> int:
    """The EXIF orientation of an image file, 1 to 8."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return int(image.getexif().get(0x0112, 1) or 1)
    except Exception:  # no such file, or one that Pillow cannot read: nothing to turn
        return 1


def upright(points: Sequence[Point], size: tuple[int, int], orientation: int) -> list[Point]:
    """Points of an image as stored, ``size`` (width, height), in pixels of the image turned upright."""
    width, height = size
    turn = {1: lambda x, y: (x, y), 2: lambda x, y: (width - x, y), 3: lambda x, y: (width - x, height - y),
            4: lambda x, y: (x, height - y), 5: lambda x, y: (y, x), 6: lambda x, y: (height - y, x),
            7: lambda x, y: (height - y, width - x), 8: lambda x, y: (y, width - x)}[orientation]
    return [turn(x, y) for x, y in points]


def turn_upright(image: LabelledImage, labelled_size: tuple[int, int] | None, labels: LabelSet) -> None:
    """Turn an image's objects upright where they were labelled on the photo as stored.

    Some tools show a photo without its EXIF orientation. It shows in the size that the labels give: that of the file as
    stored, width and height exchanged.
    """
    width, height = image.size
    if labelled_size is None or tuple(labelled_size) == (width, height):
        return
    orientation = stored_orientation(image.path)
    if orientation in (5, 6, 7, 8) and tuple(labelled_size) == (height, width):
        for found in image.objects:
            _turn(found, (height, width), orientation)
        labels.note('labelled on the photo without its EXIF orientation: turned upright', image.path.name)
    else:
        labels.note(f'the labels say {labelled_size[0]}x{labelled_size[1]} pixels, the image has another size; '
                    'the labels were taken as they stand', f'{image.path.name} ({width}x{height})')


def _turn(found: LabelledObject, size: tuple[int, int], orientation: int) -> None:
    if found.bbox is not None:
        x, y, w, h = found.bbox
        found.bbox = bounding_box(upright([(x, y), (x + w, y + h)], size, orientation))
    found.polygons = [flat(upright(pairs(polygon), size, orientation)) for polygon in found.polygons]
    found.keypoints = [(*upright([(x, y)], size, orientation)[0], v) if v else (x, y, v)
                       for x, y, v in found.keypoints]
    if found.rle is not None:
        mask = decode_rle(found.rle)
        turned = {5: lambda m: m.T, 6: lambda m: np.rot90(m, -1), 7: lambda m: np.rot90(m, 2).T,
                  8: lambda m: np.rot90(m, 1)}[orientation](mask)
        found.rle = encode_mask(turned)


# ------------------------------------------------------------------------------------------------- geometry

def pairs(polygon: Sequence[float]) -> list[Point]:
    """[x0, y0, x1, y1, ...] as points."""
    return list(zip(polygon[0::2], polygon[1::2]))


def flat(points: Iterable[Point]) -> list[float]:
    """Points as [x0, y0, x1, y1, ...]."""
    return [float(value) for point in points for value in point]


def bounding_box(points: Iterable[Point]) -> tuple[float, float, float, float]:
    """(x, y, width, height) around points."""
    xs, ys = zip(*points)
    return (float(min(xs)), float(min(ys)), float(max(xs) - min(xs)), float(max(ys) - min(ys)))


def polygon_area(polygon: Sequence[float]) -> float:
    """Area of a simple polygon [x0, y0, ...] in pixels, by the shoelace formula."""
    x, y = np.asarray(polygon[0::2], dtype=float), np.asarray(polygon[1::2], dtype=float)
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0, corners: int = 64) -> list[float]:
    """A polygon of ``corners`` points on an ellipse; ``degrees`` turn it clockwise as the image is seen."""
    angle, turn = np.arange(corners) * (2 * math.pi / corners), math.radians(degrees)
    x, y = rx * np.cos(angle), ry * np.sin(angle)
    return flat(zip(cx + x * math.cos(turn) - y * math.sin(turn), cy + x * math.sin(turn) + y * math.cos(turn)))


def rotated_box(x: float, y: float, width: float, height: float, degrees: float, about: Point) -> list[float]:
    """The corners of a box turned clockwise by ``degrees`` about a point, as a polygon."""
    turn, (ax, ay) = math.radians(degrees), about
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    return flat((ax + (px - ax) * math.cos(turn) - (py - ay) * math.sin(turn),
                 ay + (px - ax) * math.sin(turn) + (py - ay) * math.cos(turn)) for px, py in corners)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed RLE of a mask (H, W), with text counts as JSON wants them."""
    from pycocotools import mask as coco_mask

    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=[int(side) for side in code['size']], counts=code['counts'].decode('ascii'))


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """The mask (H, W) uint8 of COCO's RLE, compressed or not."""
    from pycocotools import mask as coco_mask

    height, width = rle['size']
    if isinstance(rle['counts'], list):
        rle = coco_mask.frPyObjects(rle, height, width)
    return coco_mask.decode(rle)


# ------------------------------------------------------------------------------------------------- COCO

def to_coco(labels: LabelSet, images: Sequence[LabelledImage], root: Path) -> dict[str, Any]:
    """COCO's dict of some images of a LabelSet; category ids count from 1.

    Objects without area in the image are left out and noted in ``labels``; boxes are cut to the image.

    Args:
        labels: the categories, and where to note what is left out.
        images: a split.
        root: ``file_name`` is relative to this folder.
    """
    ids = {name: number for number, name in enumerate(labels.categories, 1)}
    categories: list[dict] = []
    for name, number in ids.items():
        categories.append(dict(id=number, name=name, supercategory='none'))
        if labels.keypoints.get(name):
            categories[-1].update(keypoints=labels.keypoints[name], skeleton=labels.skeletons.get(name, []))
    entries: list[dict] = []
    annotations: list[dict] = []
    for number, image in enumerate(images, 1):
        entries.append(dict(id=number, file_name=relative_name(image.path, root), width=image.size[0],
                            height=image.size[1]))
        for found in image.objects:
            entry = _annotation(found, image)
            if entry is None:
                labels.skip('no area inside the image', f'{image.path.name}: {found.category}')
                continue
            names = labels.keypoints.get(found.category)
            if names and found.keypoints:
                entry['keypoints'] = [value for point in found.keypoints for value in point]
                entry['num_keypoints'] = sum(v > 0 for _, _, v in found.keypoints)
            annotations.append(dict(id=len(annotations) + 1, image_id=number, category_id=ids[found.category],
                                    **entry))
    return dict(images=entries, annotations=annotations, categories=categories)


def relative_name(path: Path, root: Path) -> str:
    """``path`` as written from ``root``, with slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def _annotation(found: LabelledObject, image: LabelledImage) -> dict[str, Any] | None:
    width, height = image.size
    box = found.bbox
    polygons = [polygon for polygon in found.polygons if len(polygon) >= 6]
    area = sum(polygon_area(polygon) for polygon in polygons)
    if found.rle is not None:
        from pycocotools import mask as coco_mask

        code = dict(found.rle, counts=found.rle['counts'].encode('ascii'))
        area, own = float(coco_mask.area(code)), coco_mask.toBbox(code).tolist()
        box = box or tuple(own)
    elif polygons and box is None:
        box = bounding_box(point for polygon in polygons for point in pairs(polygon))
    if box is None:
        seen = [(x, y) for x, y, v in found.keypoints if v]
        box = bounding_box(seen) if len(seen) > 1 else (0.0, 0.0, 0.0, 0.0)
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[0] + box[2], float(width)), min(box[1] + box[3], float(height))
    if not (x1 > x0 and y1 > y0):
        return None
    entry: dict[str, Any] = dict(bbox=[_short(v) for v in (x0, y0, x1 - x0, y1 - y0)],
                                 area=_short(area or (x1 - x0) * (y1 - y0)), iscrowd=int(found.crowd))
    if found.rle is not None:
        entry['segmentation'] = found.rle
    elif polygons:
        inside = [[_short(min(max(v, 0.0), float(side))) for v, side in zip(polygon, (width, height) * len(polygon))]
                  for polygon in polygons]
        entry['segmentation'] = _as_rle(inside, image.size) if found.crowd else inside
    if found.difficult:
        entry['ignore'] = 1
    return entry


def _as_rle(polygons: list[list[float]], size: tuple[int, int]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    code = coco_mask.merge(coco_mask.frPyObjects(polygons, size[1], size[0]))
    return dict(size=list(code['size']), counts=code['counts'].decode('ascii'))


def _short(value: float) -> float:
    return round(float(value), 3)


def split_images(images: Sequence[LabelledImage], val: float, seed: int) -> tuple[list[LabelledImage],
                                                                                  list[LabelledImage]]:
    """Divide images into a training and a validation part.

    Copies of an image (files of the same bytes) stay together. Every class that two different images show is in both
    parts: the rarest classes are dealt out first.

    Args:
        images: all of them.
        val: share of the validation part, between 0 and 1.
        seed: of the random order.
    """
    groups: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in images:
        groups[_fingerprint(image.path)].append(image)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(val * len(images))) if len(order) > 1 else 0
    shows = [{found.category for image in group for found in image.objects} for group in order]
    count = Counter(name for names in shows for name in names)
    chosen: set[int] = set()
    kept: set[int] = set()  # must stay in the training part
    for name, number in sorted(count.items(), key=lambda item: (item[1], item[0])):
        members = [i for i, names in enumerate(shows) if name in names]
        if number < 2:
            kept.update(members)
            continue
        if not chosen.intersection(members):
            free = [i for i in members if i not in kept]
            if free:
                chosen.add(free[0])
        if not kept.intersection(members):
            free = [i for i in members if i not in chosen]
            if free:
                kept.add(free[0])
    for i in range(len(order)):
        if sum(len(order[j]) for j in chosen) >= wanted:
            break
        if i not in kept:
            chosen.add(i)
    validation = {id(image) for i in chosen for image in order[i]}
    return ([image for image in images if id(image) not in validation],
            [image for image in images if id(image) in validation])


def _fingerprint(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return str(path)


# ------------------------------------------------------------------------------------------------- reading

def open_image(labels: LabelSet, path: Path | None, named: str, split: str | None = None) -> LabelledImage | None:
    """A LabelledImage of a file; None, and noted, where the file is missing or no image."""
    if path is None:
        labels.skip('the image file is missing', named)
        return None
    try:
        return LabelledImage(path, image_size(str(path)), split=split)
    except DataError as error:
        labels.skip('the image cannot be read', str(error))
        return None


def files_with(folder: Path, *suffixes: str) -> Iterator[Path]:
    """Files in ``folder`` and the folders within it that end in one of ``suffixes``, sorted."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        yield from (Path(place, name) for name in sorted(names)
                    if not name.startswith('.') and name.lower().endswith(suffixes))


def truthy(value: Any) -> bool:
    """Whether a flag's text or number says yes."""
    return str(value).strip().lower() in ('1', 'true', 'yes', 'y', 'on', '1.0')
