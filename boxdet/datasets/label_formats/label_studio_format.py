"""Label Studio's JSON and JSON-MIN exports.

Places are percentages of the image. A polygon whose parent is one of the same label is a part of it. The results of
one ``id`` belong together (a geometry, and a label from another tag); keypoints belong to the region that their
``parentID`` names. Of several annotations of a task the one marked as ground truth counts, else the last one that was
not cancelled.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np

from boxdet.datasets.label_formats.labels import (
    IMAGE_SUFFIXES,
    ImageFinder,
    LabelledImage,
    LabelledObject,
    LabelSet,
    ReadOptions,
    ellipse,
    encode_mask,
    flat,
    open_image,
    rotated_box,
    turn_upright,
)
from boxdet.errors import DataError
from boxdet.files.json_text import read_json
from boxdet.files.writing import write_whole

_GEOMETRY = ('rectangle', 'polygon', 'brush', 'keypoint', 'ellipse')
_UPLOAD_PREFIX = re.compile(r'^[0-9a-f]{8}-')  # an upload's name gets eight digits of its own


def recognises(source: Path) -> bool:
    """Whether this is Label Studio's JSON, or a folder with it."""
    path = _file_of(source)
    if path is None:
        return False
    with path.open(encoding='utf-8-sig', errors='replace') as file:
        head = file.read(200_000)
    return head.lstrip().startswith('[') and ('"annotations"' in head and '"data"' in head or '"original_width"' in head
                                              or '"annotator"' in head)


def _file_of(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix.lower() == '.json' else None
    return next(iter(sorted(source.glob('*.json'))), None)


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read Label Studio's export."""
    path = _file_of(source)
    if path is None:
        raise DataError(f'{source}: no JSON file in it')
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise DataError(f"{path}: a list of tasks is wanted: export as 'JSON' or 'JSON-MIN'")
    labels = LabelSet()
    finder = ImageFinder(options.images, path.parent)
    for place, task in enumerate(tasks):
        where = f'{path.name}: task {task.get("id", place) if isinstance(task, Mapping) else place}'
        if not isinstance(task, Mapping):
            labels.skip('not a task', where)
            continue
        address, results = _task(labels, task, where)
        if address is None:
            labels.skip('a task without an image', where)
            continue
        image = open_image(labels, _find(finder, address), f'{where}: {address}')
        if image is not None:
            labels.images.append(image)
            _read_results(labels, image, results, where)
    if not labels.images:
        raise DataError(f'{path}: none of its images is there; name their folder with --images')
    return labels


def _task(labels: LabelSet, task: Mapping[str, Any], where: str) -> tuple[str | None, list[Mapping[str, Any]]]:
    """The image's address and the results of a task, of either form."""
    if 'data' not in task:  # JSON-MIN: a list for each tag that gave results
        address = next((value for key, value in task.items() if _is_address(key, value)), None)
        lists = [value for value in task.values() if isinstance(value, list) and value and isinstance(value[0], dict)
                 and 'original_width' in value[0]]
        return address, [_from_min(result) for results in lists for result in results]
    address = next((value for key, value in task['data'].items() if _is_address(key, value)), None)
    done = [a for a in task.get('annotations') or task.get('completions') or [] if not a.get('was_cancelled')]
    if not done:
        return address, []
    chosen = next((a for a in done if a.get('ground_truth')), done[-1])
    if len(done) > 1:
        labels.note('tasks with several annotations: one was taken', where)
    return address, list(chosen.get('result') or [])


def _is_address(key: str, value: Any) -> bool:
    return isinstance(value, str) and (key in ('image', 'img', 'ocr', 'photo')
                                       or Path(urlparse(value).path).suffix.lower() in IMAGE_SUFFIXES)


def _from_min(result: Mapping[str, Any]) -> dict[str, Any]:
    kind = next((key for key in result if key.endswith('labels') and key != 'labels'), 'labels')
    geometry = {'rectanglelabels': 'rectanglelabels', 'polygonlabels': 'polygonlabels'}.get(kind, kind)
    return dict(type=geometry, value=dict(result), original_width=result['original_width'],
                original_height=result['original_height'], id=result.get('id'))


def _find(finder: ImageFinder, address: str) -> Path | None:
    query = parse_qs(urlparse(address).query).get('d')
    name = unquote(query[0] if query else urlparse(address).path).lstrip('/')
    base = name.replace('\\', '/').rsplit('/', 1)[-1]
    return finder.find(name) or finder.find(_UPLOAD_PREFIX.sub('', base))


def _read_results(labels: LabelSet, image: LabelledImage, results: Sequence[Mapping[str, Any]], where: str) -> None:
    objects: dict[Any, LabelledObject] = {}
    points: list[tuple[str, Any, tuple[float, float, int]]] = []
    size = None
    for region, parts in _regions(results):
        value = {key: v for part in parts for key, v in (part.get('value') or {}).items()}
        kind, name = _kind_and_label(parts, value)
        if kind is None:
            labels.skip('results without a place in the image', f'{where}: {parts[0].get("type")}')
            continue
        if name is None:
            labels.skip('regions without a label', f'{where}: {region}')
            continue
        size = (int(parts[0]['original_width']), int(parts[0]['original_height']))
        if kind == 'keypoint':
            parent = next((part['parentID'] for part in parts if part.get('parentID')), None)
            points.append((name, parent, (value['x'] * size[0] / 100, value['y'] * size[1] / 100, 2)))
            continue
        one = LabelledObject(labels.category(name))
        _take_region(one, kind, value, size)
        whole = objects.get(next((part['parentID'] for part in parts if part.get('parentID')), None))
        if whole is not None and whole.category == name and whole.polygons and one.polygons:
            whole.polygons += one.polygons
        else:
            objects[region] = one
    for name, parent, point in points:
        if parent not in objects:
            labels.skip('a keypoint without the region that it belongs to (its parent)', f'{where}: {name}')
            continue
        labels.place_keypoint(objects[parent], name, point)
    image.objects += objects.values()
    turn_upright(image, size, labels)


def _regions(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, list[Mapping[str, Any]]]]:
    """Results by the region that they describe."""
    by_id: dict[Any, list[Mapping[str, Any]]] = {}
    for place, result in enumerate(results):
        if 'original_width' in result:  # choices, texts and relations have no place
            by_id.setdefault(result.get('id') or ('alone', place), []).append(result)
    yield from by_id.items()


def _kind_and_label(parts: Sequence[Mapping[str, Any]], value: Mapping[str, Any]) -> tuple[str | None, str | None]:
    kinds = [str(part.get('type', '')).removesuffix('labels') for part in parts]
    kind = next((kind for kind in kinds if kind in _GEOMETRY), None)
    if kind is None:  # a tag <Labels> gives its own name as the type
        kind = next((shape for key, shape in (('points', 'polygon'), ('rle', 'brush'), ('radiusX', 'ellipse'),
                                              ('width', 'rectangle')) if key in value), None)
    names = [str(name) for key, v in value.items() if key.endswith('labels') and isinstance(v, list) for name in v]
    return kind, names[0] if names else None


def _take_region(one: LabelledObject, kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> None:
    width, height = size
    if kind == 'rectangle':
        x, y, w, h = (value[key] * side / 100 for key, side in
                      (('x', width), ('y', height), ('width', width), ('height', height)))
        degrees = value.get('rotation') or 0
        if degrees:  # about its first corner
            one.polygons = [rotated_box(x, y, w, h, degrees, (x, y))]
        else:
            one.bbox = (x, y, w, h)
    elif kind == 'polygon':
        one.polygons = [flat((x * width / 100, y * height / 100) for x, y in value['points'])]
    elif kind == 'ellipse':
        one.polygons = [ellipse(value['x'] * width / 100, value['y'] * height / 100, value['radiusX'] * width / 100,
                                value['radiusY'] * height / 100, value.get('rotation') or 0)]
    else:
        alpha = decode_brush(value['rle']).reshape(height, width, 4)[:, :, 3]
        one.rle = encode_mask(alpha > 0)


def decode_brush(rle: Sequence[int]) -> np.ndarray:
    """The bytes (H * W * 4,) RGBA of a brush mask.

    The code is a string of bits: the number of values (32), bits a value less one (5), four sizes of lengths less one
    (4 each); then blocks of a bit (a repeated value or a run of different ones), two bits that choose the size, the
    length less one, and the values.
    """
    bits = np.unpackbits(np.asarray(rle, dtype=np.uint8))
    place = 0

    def number(count: int) -> int:
        nonlocal place
        value = int(''.join('1' if bit else '0' for bit in bits[place:place + count]) or '0', 2)
        place += count
        return value
    total, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    values = np.zeros(total, dtype=np.uint8)
    weights = 1 << np.arange(word - 1, -1, -1)
    i = 0
    while i < total:
        repeated = number(1)
        end = min(i + 1 + number(sizes[number(2)]), total)
        if repeated:
            values[i:end] = number(word)
        else:
            count = (end - i) * word
            values[i:end] = bits[place:place + count].reshape(-1, word) @ weights
            place += count
        i = end
    return values


def encode_brush(mask: np.ndarray) -> list[int]:
    """The code of a brush mask (H, W): white with the mask as its alpha, in runs of equal values."""
    values = np.repeat(np.where(mask.flatten() > 0, 255, 0).astype(np.uint8), 4)
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate(([0], edges))
    lengths = np.diff(np.concatenate((starts, [values.size])))
    sizes = (3, 6, 10, 16)
    text = [f'{values.size:032b}', f'{8 - 1:05b}', *(f'{size - 1:04b}' for size in sizes)]
    for start, length in zip(starts, lengths):
        while length > 0:
            part = min(int(length), 1 << 16)
            choice = next(i for i, size in enumerate(sizes) if part <= 1 << size)
            text.append(f'1{choice:02b}{part - 1:0{sizes[choice]}b}{values[start]:08b}')
            length -= part
    bits = ''.join(text)
    bits += '0' * (-len(bits) % 8)
    return np.packbits(np.frombuffer(bits.encode('ascii'), dtype=np.uint8) - ord('0')).tolist()


# ------------------------------------------------------------------------------------------------- writing

def write(data: dict[str, Any], out: Path, images: Path) -> dict[str, int]:
    """Write ``tasks.json`` for Label Studio's import, and ``config.xml``, the labelling setup that it goes with.

    Predictions (annotations with a score) become a task's ``predictions``, ground truth its ``annotations``. Images
    are named by the local storage's addresses, relative to ``images``.

    Args:
        data: a COCO data set, or predictions in its form.
        out: the folder.
        images: the folder to name as local storage in Label Studio.

    Returns:
        reason -> number of objects that lost something.
    """
    from boxdet.datasets.label_formats.writing import annotations_by_image

    categories = {category['id']: category for category in data['categories']}
    counts: dict[str, int] = {}
    tasks = []
    for image, found in annotations_by_image(data):
        results: list[dict[str, Any]] = []
        scores = [annotation['score'] for annotation in found if annotation.get('score') is not None]
        for number, annotation in enumerate(found):
            if annotation.get('iscrowd'):
                counts['crowd flags left out'] = counts.get('crowd flags left out', 0) + 1
            results += _results(annotation, categories[annotation['category_id']], image, f'r{number}')
        task: dict[str, Any] = dict(data=dict(image=f'/data/local-files/?d={image["file_name"]}'))
        if scores:
            task['predictions'] = [dict(model_version='boxdet', score=sum(scores) / len(scores), result=results)]
        else:
            task['annotations'] = [dict(result=results)]
        tasks.append(task)
    write_whole(out / 'tasks.json', json.dumps(tasks, ensure_ascii=False, indent=1))
    write_whole(out / 'config.xml', _setup(data['categories']))
    return counts


def _results(annotation: Mapping[str, Any], category: Mapping[str, Any], image: Mapping[str, Any],
             region: str) -> list[dict[str, Any]]:
    width, height = image['width'], image['height']
    common = dict(original_width=width, original_height=height, image_rotation=0, to_name='image')
    if annotation.get('score') is not None:
        common['score'] = annotation['score']

    def result(kind: str, value: dict[str, Any], name: str, part: str = '', **more: Any) -> dict[str, Any]:
        tag = f'{kind}labels'
        return dict(common, id=f'{region}{part}', type=tag, from_name=kind, value={**value, tag: [name]}, **more)
    segmentation, name = annotation.get('segmentation'), category['name']
    if isinstance(segmentation, Mapping):
        from boxdet.datasets.label_formats.labels import decode_rle

        found = [result('brush', dict(format='rle', rle=encode_brush(decode_rle(dict(segmentation)))), name)]
    elif segmentation:
        found = [result('polygon', dict(points=[[100 * x / width, 100 * y / height]
                                                for x, y in zip(polygon[0::2], polygon[1::2])], closed=True), name,
                        *(() if i == 0 else (f'-{i}',)), **({} if i == 0 else dict(parentID=region)))
                 for i, polygon in enumerate(segmentation)]
    else:
        x, y, w, h = annotation['bbox']
        found = [result('rectangle', dict(x=100 * x / width, y=100 * y / height, width=100 * w / width,
                                          height=100 * h / height, rotation=0), name)]
    keypoints = annotation.get('keypoints') or []
    for i, key in enumerate(category.get('keypoints') or []):
        if len(keypoints) > 3 * i + 2 and keypoints[3 * i + 2]:
            found.append(result('keypoint', dict(x=100 * keypoints[3 * i] / width,
                                                 y=100 * keypoints[3 * i + 1] / height, width=0.5), key, f'-k{i}',
                                parentID=region))
    return found


def _setup(categories: Sequence[Mapping[str, Any]]) -> str:
    from xml.sax.saxutils import quoteattr

    def tag(kind: str, names: Sequence[str]) -> list[str]:
        title = dict(rectangle='RectangleLabels', polygon='PolygonLabels', brush='BrushLabels',
                     keypoint='KeyPointLabels')[kind]
        labels = [f'    <Label value={quoteattr(name)}/>' for name in names]
        return [f'  <{title} name="{kind}" toName="image">', *labels, f'  </{title}>']
    names = [category['name'] for category in categories]
    keypoints = list(dict.fromkeys(key for category in categories for key in category.get('keypoints') or ()))
    lines = ['<View>', '  <Image name="image" value="$image"/>']
    for kind in ('rectangle', 'polygon', 'brush'):
        lines += tag(kind, names)
    if keypoints:
        lines += tag('keypoint', keypoints)
    return '\n'.join([*lines, '</View>', ''])
