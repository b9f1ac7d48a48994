"""YOLO's text files: a line an object, numbers relative to the image (Ultralytics' detect, segment and pose; Darknet).

The source is ``data.yaml`` or a folder with it, Darknet's ``obj.data``, or a folder with ``images`` and ``labels``
(or both in one folder) and ``classes.txt``. A label file stands beside its image, with the last ``images`` of the
path replaced by ``labels``.

A line holds the class and 4 numbers (box: centre, width, height), 5 (with a confidence), an even number from 6 on
(polygon), or 4 and the keypoints where ``data.yaml`` has a ``kpt_shape``.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boxdet.datasets.label_formats.labels import (
    LabelledImage,
    LabelledObject,
    LabelSet,
    ReadOptions,
    files_with,
    image_files,
    open_image,
    pairs,
)
from boxdet.errors import DataError
from boxdet.files.writing import write_whole

_SLACK = 0.01  # rounding may put a corner this far outside the image
_NAME_FILES = ('classes.txt', 'obj.names', 'labels.txt', '_darknet.labels')


def recognises(source: Path) -> bool:
    """Whether this is a YOLO data set."""
    if source.is_file():
        return source.suffix.lower() in ('.yaml', '.yml') or source.name == 'obj.data'
    if _yaml_of(source) is not None or (source / 'obj.data').is_file():
        return True
    texts = (path for path in files_with(source, '.txt') if path.name not in _NAME_FILES)
    return any(_looks_like_labels(path) for path, _ in zip(texts, range(20)))


def _looks_like_labels(path: Path) -> bool:
    words = path.read_text(encoding='utf-8-sig', errors='replace').split('\n', 1)[0].split()
    try:
        return len(words) >= 5 and all(math.isfinite(float(word)) for word in words)
    except ValueError:
        return False


def _yaml_of(folder: Path) -> Path | None:
    names = [folder / name for name in ('data.yaml', 'data.yml', 'dataset.yaml')]
    others = sorted(folder.glob('*.yaml')) + sorted(folder.glob('*.yml'))
    for path in [path for path in names if path.is_file()] + others:
        content = _read_yaml(path)
        if isinstance(content, Mapping) and 'names' in content:
            return path
    return None


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: not YAML ({" ".join(str(error).split())})') from error


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read a YOLO data set; ``options.classes`` name the classes where no file does."""
    labels = LabelSet()
    config = source if source.is_file() else _yaml_of(source)
    darknet = source if source.name == 'obj.data' else source / 'obj.data'
    kpt_shape = None
    if config is not None and config.suffix.lower() in ('.yaml', '.yml'):
        content = _read_yaml(config)
        if not isinstance(content, Mapping) or 'names' not in content:
            raise DataError(f"{config}: no 'names': it is not a YOLO data set's description")
        names, kpt_shape, splits = _names(content['names'], config), content.get('kpt_shape'), _splits(content, config)
        splits = splits or _splits_of_folders(options.images or config.parent)  # supervision's file names none
    elif darknet.is_file():
        names, splits = _darknet(darknet)
    else:
        names = list(options.classes) or _names_beside(source)
        splits = _splits_of_folders(options.images or source)
    if kpt_shape is not None:
        _take_keypoints(labels, names, kpt_shape, content)
    for name in names:
        labels.category(name)
    seen: set[Path] = set()
    owners: dict[Path, Path] = {}
    root = source if source.is_dir() else source.parent
    for place, (split, images) in enumerate(splits):
        twin = next((name for name, others in splits[:place] if others == images), None)
        if twin is not None:
            labels.note(f"'{split}' names the same images as '{twin}': read once", str(source))
            continue
        for path in images:
            if path.resolve() in seen:
                labels.skip('listed in two splits: kept in the first', str(path))
                continue
            seen.add(path.resolve())
            file = label_file(path, root)
            if owners.setdefault(file, path) != path and file.is_file():
                labels.note(f'has one label file with {owners[file].name}: objects are taken for both', str(path))
            _read_image(labels, path, split, names, kpt_shape, file)
    if not labels.images:
        raise DataError(f'{source}: no images; name their folder with --images')
    return labels


def _take_keypoints(labels: LabelSet, names: Sequence[str], kpt_shape: Any, content: Mapping[str, Any]) -> None:
    count = int(kpt_shape[0])
    given = content.get('kpt_names') or {}
    for number, name in enumerate(names):
        own = given.get(number) if isinstance(given, Mapping) else given
        labels.keypoints[name] = [str(n) for n in own] if own else [f'keypoint_{i}' for i in range(1, count + 1)]


def _names(names: Any, path: Path) -> list[str]:
    if isinstance(names, Mapping):
        numbers = [int(key) for key in names]
        if sorted(numbers) != list(range(len(numbers))):
            raise DataError(f"{path}: 'names' must be numbered from 0 without gaps, not {sorted(numbers)}")
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: 'names' must list the classes")
    return [str(name) for name in names]


def _splits(content: Mapping[str, Any], config: Path) -> list[tuple[str | None, list[Path]]]:
    root = Path(str(content.get('path') or '.'))
    if not root.is_absolute():
        root = config.parent / root if (config.parent / root).exists() else config.parent
    splits: list[tuple[str | None, list[Path]]] = []
    for split in ('train', 'val', 'test'):
        entries = content.get(split)
        if entries is None and split == 'val':
            entries = content.get('valid')
        images: list[Path] = []
        for entry in [entries] if isinstance(entries, str) else entries or []:
            images += _images_at(_place(root, entry, config), config)
        if images:
            splits.append((split, images))
    return splits


def _place(root: Path, entry: str, config: Path) -> Path:
    entry = entry.replace('\\', '/')
    # Roboflow writes '../train/images' for a folder beside data.yaml; Ultralytics reads it so, too.
    candidates = [root / entry, config.parent / entry, config.parent / entry.removeprefix('../')]
    for place in candidates:
        if place.exists():
            return place
    raise DataError(f"{config}: '{entry}' is not there (looked for {candidates[0]})")


def _images_at(place: Path, config: Path) -> list[Path]:
    if place.is_dir():
        return image_files(place)
    images = []
    for line in place.read_text(encoding='utf-8-sig').splitlines():
        line = line.strip().replace('\\', '/')
        if line:
            # Darknet's lists begin with data/, which is the folder of the list.
            tries = [Path(line), place.parent / line, config.parent / line, config.parent / line.removeprefix('data/')]
            images.append(next((path for path in tries if path.is_file()), place.parent / line))
    return images


def _darknet(path: Path) -> tuple[list[str], list[tuple[str | None, list[Path]]]]:
    pairs_ = (line.split('=', 1) for line in path.read_text(encoding='utf-8-sig').splitlines() if '=' in line)
    content = {key.strip(): value.strip() for key, value in pairs_}
    if 'names' not in content:
        raise DataError(f"{path}: no line 'names = FILE'")

    def beside(name: str) -> Path:
        tries = (path.parent / name, path.parent / name.removeprefix('data/'), Path(name))
        return next((place for place in tries if place.exists()), tries[0])
    names = _read_names(beside(content['names']))
    splits: list[tuple[str | None, list[Path]]] = [
        ('val' if key == 'valid' else key, _images_at(beside(content[key]), path))
        for key in ('train', 'valid', 'test') if key in content and beside(content[key]).exists()]
    return names, splits


def _names_beside(folder: Path) -> list[str]:
    for place in (folder, folder / 'labels', folder.parent):
        for name in _NAME_FILES:
            if (place / name).is_file():
                return _read_names(place / name)
    raise DataError(f'{folder}: no data.yaml, obj.data or {_NAME_FILES[0]} names the classes; name them with --classes')


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f'{path}: no such file of class names')
    names = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
    return [name for name in names if name]


def _splits_of_folders(folder: Path) -> list[tuple[str | None, list[Path]]]:
    """The images of a folder by the split that a folder on their way is named after; None for the others."""
    by_split: dict[str | None, list[Path]] = {}
    for path in image_files(folder):
        parts = [part.lower() for part in path.relative_to(folder).parts[:-1]]
        split = next((dict(valid='val', validation='val').get(part, part) for part in parts
                      if part in ('train', 'val', 'valid', 'validation', 'test')), None)
        by_split.setdefault(split, []).append(path)
    return list(by_split.items())


def label_file(image: Path, root: Path) -> Path:
    """Where the labels of an image stand: beside it, or in ``labels`` where its path has ``images``."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == 'images':
            parts[i] = 'labels'
            break
    elsewhere = Path(*parts).with_suffix('.txt')
    for path in (elsewhere, image.with_suffix('.txt'), root / 'labels' / f'{image.stem}.txt'):
        if path.is_file():
            return path
    return elsewhere


def _read_image(labels: LabelSet, path: Path, split: str | None, names: Sequence[str], kpt_shape: Any,
                file: Path) -> None:
    image = open_image(labels, path if path.is_file() else None, str(path), split)
    if image is None:
        return
    labels.images.append(image)
    if not file.is_file():
        return  # an image without objects
    seen = set()
    for number, line in enumerate(file.read_text(encoding='utf-8-sig', errors='replace').splitlines(), 1):
        where = f'{file.name}:{number}'
        if not line.strip():
            continue
        if tuple(line.split()) in seen:
            labels.skip('the same line again', where)
            continue
        seen.add(tuple(line.split()))
        found = _read_line(labels, line, names, kpt_shape, image, where)
        if found is not None:
            image.objects.append(found)


def _read_line(labels: LabelSet, line: str, names: Sequence[str], kpt_shape: Any, image: LabelledImage,
               where: str) -> LabelledObject | None:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        labels.skip('not numbers', where)
        return None
    number, rest = values[0], values[1:]
    if number != int(number) or not 0 <= number < len(names):
        labels.skip(f'no class {line.split()[0]} among {len(names)}', where)
        return None
    if not all(math.isfinite(value) for value in values):
        labels.skip('numbers that are not finite', where)
        return None
    width, height = image.size
    found = LabelledObject(names[int(number)])
    per_keypoint = int(kpt_shape[1]) if kpt_shape else 0
    if kpt_shape and len(rest) == 4 + int(kpt_shape[0]) * per_keypoint:
        points = [rest[i:i + per_keypoint] for i in range(4, len(rest), per_keypoint)]
        found.keypoints = [_keypoint(point, width, height) for point in points]
        rest = rest[:4]
    if len(rest) in (4, 5):
        if not _relative(rest[:4]):
            labels.skip('numbers that are not relative to the image (0 to 1)', where)
            return None
        cx, cy, w, h = rest[:4]
        found.bbox = ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
        found.score = rest[4] if len(rest) == 5 else None
        return found
    if len(rest) >= 6 and len(rest) % 2 == 0:
        if not _relative(rest):
            labels.skip('numbers that are not relative to the image (0 to 1)', where)
            return None
        found.polygons = [[value * side for point in pairs(rest) for value, side in zip(point, (width, height))]]
        return found
    labels.skip(f'{len(rest)} numbers after the class: neither a box, a polygon, nor keypoints', where)
    return None


def _relative(values: Sequence[float]) -> bool:
    return all(-_SLACK <= value <= 1 + _SLACK for value in values)


def _keypoint(point: Sequence[float], width: int, height: int) -> tuple[float, float, int]:
    x, y = point[:2]
    visible = int(point[2]) if len(point) > 2 else 2 * int(x > 0 or y > 0)
    return (x * width, y * height, visible) if visible else (0.0, 0.0, 0)


# ------------------------------------------------------------------------------------------------- writing

def write(data: dict[str, Any], out: Path, images: Path) -> dict[str, int]:
    """Write COCO's dict as a YOLO data set: ``data.yaml``, ``labels/``, and links to the images in ``images/``.

    An object with polygons becomes a polygon (the largest of several; masks become outlines), one with keypoints a
    pose, any other a box. Crowds are left out: the form has none.

    Args:
        data: a COCO data set, or predictions put into its form (``from_coco.with_results``).
        out: the folder.
        images: folder that ``file_name`` is relative to.

    Returns:
        reason -> number of objects that were left out or simplified.
    """
    from boxdet.datasets.label_formats.writing import annotations_by_image, check_image_names, link_image, outlines

    check_image_names(data, beside=True)
    counts: dict[str, int] = {}
    numbers = {category['id']: i for i, category in enumerate(data['categories'])}
    keypoints = max((len(category.get('keypoints') or ()) for category in data['categories']), default=0)
    for image, found in annotations_by_image(data):
        name = image['file_name']
        link_image(images / name, out / 'images/train' / name)
        lines = []
        for annotation in found:
            if annotation.get('iscrowd'):
                counts['crowds left out'] = counts.get('crowds left out', 0) + 1
                continue
            lines.append(_line(annotation, image, numbers, keypoints, outlines, counts))
        write_whole(out / 'labels/train' / Path(name).with_suffix('.txt'), ''.join(f'{line}\n' for line in lines))
    head = ['path: .', 'train: images/train', 'val: images/train']
    if keypoints:
        head.append(f'kpt_shape: [{keypoints}, 3]')
    names = ''.join(f'  {i}: {_quoted(category["name"])}\n' for i, category in enumerate(data['categories']))
    write_whole(out / 'data.yaml', '\n'.join(head) + '\nnames:\n' + names)
    return counts


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def _line(annotation: Mapping[str, Any], image: Mapping[str, Any], numbers: Mapping[int, int], keypoints: int,
          outlines: Any, counts: dict[str, int]) -> str:
    width, height = image['width'], image['height']
    x, y, w, h = annotation['bbox']
    box = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    polygons = [] if keypoints else outlines(annotation, image)
    if keypoints:
        points = list(annotation.get('keypoints') or [0] * 3 * keypoints) + [0] * 3 * keypoints
        values = box + [v for i in range(0, 3 * keypoints, 3)
                        for v in (points[i] / width, points[i + 1] / height, points[i + 2])]
    elif polygons:
        if len(polygons) > 1:
            key = 'objects of several polygons: the largest was written'
            counts[key] = counts.get(key, 0) + 1
        values = [value / side for point in pairs(polygons[0]) for value, side in zip(point, (width, height))]
    else:
        values = box
    # A confidence has a place beside a box only.
    if annotation.get('score') is not None and values is box:
        values = [*box, annotation['score']]
    return ' '.join([str(numbers[annotation['category_id']]), *(f'{value:.6g}' for value in values)])
