"""COCO's own JSON, to be split or to lose classes."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxdet.datasets.label_formats.labels import (
    ImageFinder,
    LabelledImage,
    LabelledObject,
    LabelSet,
    ReadOptions,
    decode_rle,
    encode_mask,
)
from boxdet.errors import DataError
from boxdet.files.json_text import read_json


def recognises(source: Path) -> bool:
    """Whether this is a COCO file, or a folder with one (a Roboflow export: a file for each split)."""
    return bool(_files(source))


def _files(source: Path) -> list[Path]:
    paths = [source] if source.is_file() else [*sorted(source.glob('*.json')), *sorted(source.glob('*/*.json'))]
    return [path for path in paths if path.suffix.lower() == '.json' and _is_coco(path)]


def _is_coco(path: Path) -> bool:
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(1 << 20)
        file.seek(max(0, size - (1 << 20)))
        ends = head + file.read()
    return head.lstrip().startswith(b'{') and b'"images"' in ends and (
        b'"categories"' in ends or b'"annotations"' in ends) and b'"shapes"' not in head[:4096]


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read COCO's JSON; the folder or the name of a file tells its split where there are several."""
    files = _files(source)
    if not files:
        raise DataError(f'{source}: not a COCO file')
    labels = LabelSet()
    for path in files:
        named = f'{path.parent.name} {path.stem}'.lower()
        own = [name for name in ('train', 'val', 'test') if name in named and len(files) > 1]
        split = own[0] if own else None
        _read_file(labels, path, split, options)
    return labels


def _read_file(labels: LabelSet, path: Path, split: str | None, options: ReadOptions) -> None:
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get('images'), list):
        raise DataError(f"{path}: no list of 'images'")
    names = {}
    for category in content.get('categories') or []:
        names[category['id']] = labels.category(category['name'])
        if category.get('keypoints'):
            labels.keypoints[category['name']] = list(category['keypoints'])
            labels.skeletons[category['name']] = list(category.get('skeleton') or [])
    # The usual layout has the images in folders beside 'annotations'.
    finder = ImageFinder(options.images, path.parent, path.parent.parent if path.parent.name == 'annotations' else None)
    images = {}
    for entry in content['images']:
        found = finder.find(entry['file_name'])
        if found is None:
            labels.skip('the image file is missing', f"image {entry['id']}: {entry['file_name']}")
            continue
        size = (int(entry['width']), int(entry['height']))
        images[entry['id']] = LabelledImage(found, size, split=split)
        labels.images.append(images[entry['id']])
    for annotation in content.get('annotations') or []:
        where = f"annotation {annotation.get('id')}"
        image = images.get(annotation.get('image_id'))
        if image is None:
            labels.skip('annotations of images that are not there', where)
        elif annotation.get('category_id') not in names:
            labels.skip('annotations of no category', where)
        else:
            image.objects.append(_object(annotation, names[annotation['category_id']], image))
    if not images:
        raise DataError(f"{path}: none of its {len(content['images'])} images is there; name their folder with "
                        '--images')


def _object(annotation: Mapping[str, Any], name: str, image: LabelledImage) -> LabelledObject:
    found = LabelledObject(name, crowd=bool(annotation.get('iscrowd')), difficult=bool(annotation.get('ignore')))
    if annotation.get('bbox'):
        x, y, w, h = map(float, annotation['bbox'])
        found.bbox = (x, y, w, h)
    segmentation = annotation.get('segmentation')
    if isinstance(segmentation, Mapping):
        counts = segmentation['counts']
        found.rle = encode_mask(decode_rle(dict(segmentation))) if isinstance(counts, list) else dict(segmentation)
    elif segmentation:
        found.polygons = [list(map(float, polygon)) for polygon in segmentation]
    values = annotation.get('keypoints') or []
    found.keypoints = [(float(values[i]), float(values[i + 1]), int(values[i + 2])) for i in range(0, len(values), 3)]
    return found
