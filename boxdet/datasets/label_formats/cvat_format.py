"""CVAT's XML 1.1, for images and for videos.

The source is ``annotations.xml`` or a folder with it. Shapes of one label in one group are one object, as CVAT's own
COCO export has it. A ``skeleton`` is an object with keypoints. Attributes ``is_crowd`` and ``difficult`` count as
COCO's and Pascal VOC's flags.
"""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np

from boxdet.datasets.label_formats.labels import (
    ImageFinder,
    LabelledImage,
    LabelledObject,
    LabelSet,
    ReadOptions,
    decode_rle,
    ellipse,
    encode_mask,
    flat,
    open_image,
    rotated_box,
    truthy,
    turn_upright,
)
from boxdet.errors import DataError
from boxdet.files.writing import write_whole

_SHAPES = ('box', 'polygon', 'mask', 'ellipse', 'skeleton', 'points', 'polyline', 'cuboid')


def recognises(source: Path) -> bool:
    """Whether this is CVAT's XML, or a folder with it."""
    return bool(_files(source))


def _files(source: Path) -> list[Path]:
    paths = [source] if source.is_file() else sorted(source.glob('*.xml'))
    return [path for path in paths if path.suffix.lower() == '.xml' and _is_cvat(path)]


def _is_cvat(path: Path) -> bool:
    with path.open('rb') as file:
        head = file.read(2000)
    return b'<annotations' in head and (b'<version>' in head or b'<meta>' in head)


def read(source: Path, options: ReadOptions) -> LabelSet:
    """Read CVAT's XML; of several files in a folder each is a split, named as the file is."""
    files = _files(source)
    if not files:
        raise DataError(f"{source}: no file of CVAT's in it")
    labels = LabelSet()
    for path in files:
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise DataError(f'{path}: not XML ({error})') from error
        _read_meta(labels, root)
        finder = ImageFinder(options.images, path.parent)
        for name, size, split, shapes in [*_images(root), *_frames(root)]:
            split = split or (path.stem if len(files) > 1 else None)
            image = open_image(labels, finder.find(name), name, split)
            if image is None:
                continue
            labels.images.append(image)
            _read_shapes(labels, image, shapes, size or image.size)
            turn_upright(image, size, labels)
    if not labels.images:
        raise DataError(f'{source}: none of its images is there; name their folder with --images')
    return labels


def _read_meta(labels: LabelSet, root: ElementTree.Element) -> None:
    """Categories in the order of the task's labels; those of a skeleton's points are its keypoints."""
    entries = [label for label in root.iter('label') if label.find('name') is not None]
    for label in entries:
        name, parent = label.findtext('name', '').strip(), label.findtext('parent', '').strip()
        if parent:
            labels.keypoints.setdefault(parent, []).append(name)
        elif name:
            labels.category(name)


def _images(root: ElementTree.Element) -> Iterator[tuple[str, tuple[int, int] | None, str | None, list]]:
    for image in root.iter('image'):
        size = (int(float(image.get('width', 0))), int(float(image.get('height', 0))))
        subset = (image.get('subset') or 'default').lower()
        split = {'training': 'train', 'validation': 'val', 'default': None}.get(subset, subset)
        shapes = [shape for shape in image if shape.tag in _SHAPES]
        yield image.get('name', ''), size if all(size) else None, split, shapes


def _frames(root: ElementTree.Element) -> Iterator[tuple[str, tuple[int, int] | None, str | None, list]]:
    """The frames of a video with the shapes of its tracks, by the names that CVAT exports frames under."""
    frames: dict[int, list] = defaultdict(list)
    for track in root.iter('track'):
        for shape in track:
            if shape.tag in _SHAPES and not truthy(shape.get('outside', '0')):
                shape.set('label', track.get('label', ''))
                shape.set('group_id', track.get('group_id', ''))
                frames[int(shape.get('frame', 0))].append(shape)
    size = root.find('.//original_size')
    whole = None if size is None else (int(size.findtext('width', '0')), int(size.findtext('height', '0')))
    for number in sorted(frames):
        yield f'frame_{number:06d}', whole, None, frames[number]


def _read_shapes(labels: LabelSet, image: LabelledImage, shapes: Sequence[ElementTree.Element],
                 size: tuple[int, int]) -> None:
    joined: dict[tuple[str, str], LabelledObject] = {}
    for number, shape in enumerate(shapes):
        where = f'{image.path.name}: {shape.tag} {number}'
        name = shape.get('label', '').strip()
        if not name:
            labels.skip('a shape without a label', where)
            continue
        one = LabelledObject(labels.category(name))
        problem = _take_shape(labels, one, shape, size)
        if problem:
            labels.skip(problem, where)
            continue
        flags = {attribute.get('name', '').lower(): attribute.text or '' for attribute in shape.findall('attribute')}
        one.crowd = truthy(flags.get('is_crowd', flags.get('iscrowd', '')))
        one.difficult = truthy(flags.get('difficult', ''))
        group = shape.get('group_id') or '0'
        if group == '0':
            image.objects.append(one)
        elif (group, name) in joined:
            joined[group, name].join(one)
        else:
            joined[group, name] = one
            image.objects.append(one)


def _take_shape(labels: LabelSet, one: LabelledObject, shape: ElementTree.Element, size: tuple[int, int]) -> str | None:
    """Fill ``one`` from a shape; or say why it cannot be."""
    if shape.tag == 'box':
        x0, y0, x1, y1 = (float(shape.get(key, 'nan')) for key in ('xtl', 'ytl', 'xbr', 'ybr'))
        if not math.isfinite(x0 + y0 + x1 + y1):
            return 'a box without corners'
        degrees = float(shape.get('rotation', 0))
        if degrees:
            one.polygons = [rotated_box(x0, y0, x1 - x0, y1 - y0, degrees, ((x0 + x1) / 2, (y0 + y1) / 2))]
        else:
            one.bbox = (x0, y0, x1 - x0, y1 - y0)
    elif shape.tag == 'polygon':
        points = _points(shape)
        if len(points) < 3:
            return f"a 'polygon' of {len(points)} points"
        one.polygons = [flat(points)]
    elif shape.tag == 'ellipse':
        cx, cy, rx, ry = (float(shape.get(key, 0)) for key in ('cx', 'cy', 'rx', 'ry'))
        one.polygons = [ellipse(cx, cy, rx, ry, float(shape.get('rotation', 0)))]
    elif shape.tag == 'mask':
        one.rle = encode_mask(_mask(shape, size))
    elif shape.tag == 'skeleton':
        _take_skeleton(labels, one, shape)
        if not any(v for _, _, v in one.keypoints):
            return 'a skeleton without a visible point'
    else:
        return f"a '{shape.tag}' has no area"
    return None


def _points(shape: ElementTree.Element) -> list[tuple[float, float]]:
    texts = [point.split(',') for point in shape.get('points', '').split(';') if point.strip()]
    return [(float(x), float(y)) for x, y in texts]


def _take_skeleton(labels: LabelSet, one: LabelledObject, shape: ElementTree.Element) -> None:
    names = labels.keypoints.setdefault(one.category, [])
    found = {}
    for point in shape.findall('points'):
        name = point.get('label', '').strip()
        if name not in names:
            names.append(name)
        places = _points(point)
        if places and not truthy(point.get('outside', '0')):
            found[name] = (*places[0], 1 if truthy(point.get('occluded', '0')) else 2)
    one.keypoints = [found.get(name, (0.0, 0.0, 0)) for name in names]


def _mask(shape: ElementTree.Element, size: tuple[int, int]) -> np.ndarray:
    """The mask of the whole image: run lengths, background first, row by row within a window."""
    left, top, width, height = (round(float(shape.get(key, 0))) for key in ('left', 'top', 'width', 'height'))
    runs = np.array([int(run) for run in shape.get('rle', '').split(',') if run.strip()], dtype=np.int64)
    part = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    if part.size != width * height:
        part = np.resize(np.pad(part, (0, max(width * height - part.size, 0))), width * height)
    whole = np.zeros((size[1], size[0]), dtype=bool)
    seen = part.reshape(height, width)[max(-top, 0):, max(-left, 0):]
    seen = seen[:max(size[1] - max(top, 0), 0), :max(size[0] - max(left, 0), 0)]
    whole[max(top, 0):max(top, 0) + seen.shape[0], max(left, 0):max(left, 0) + seen.shape[1]] = seen
    return whole


# ------------------------------------------------------------------------------------------------- writing

def write(data: dict[str, Any], out: Path, images: Path) -> dict[str, int]:
    """Write ``annotations.xml`` (CVAT for images 1.1) of COCO's dict, and links to the images beside it.

    Keypoints become a skeleton, masks CVAT's masks, polygons polygons in one group, other objects boxes.

    Args:
        data: a COCO data set, or predictions in its form.
        out: the folder.
        images: folder that ``file_name`` is relative to.

    Returns:
        reason -> number of objects that lost something.
    """
    from boxdet.datasets.label_formats.writing import annotations_by_image, check_image_names, link_image

    check_image_names(data, beside=False)
    categories = {category['id']: category for category in data['categories']}
    counts: dict[str, int] = {}
    lines = ['<?xml version="1.0" encoding="utf-8"?>', '<annotations>', '  <version>1.1</version>',
             '  <meta><task><labels>']
    for category in data['categories']:
        lines += _label_lines(category)
    lines.append('  </labels></task></meta>')
    for number, (image, found) in enumerate(annotations_by_image(data)):
        link_image(images / image['file_name'], out / 'images' / image['file_name'])
        lines.append(f'  <image id="{number}" name={quoteattr(image["file_name"])} width="{image["width"]}" '
                     f'height="{image["height"]}">')
        for group, annotation in enumerate(found, 1):
            lines += _shape_lines(annotation, categories[annotation['category_id']], group)
            lost = dict(
                score='confidences left out: the form has none',
                keypoints='objects with keypoints: a skeleton holds no box, polygon or mask beside them')
            for key, note in lost.items():
                if annotation.get(key) is not None:
                    counts[note] = counts.get(note, 0) + 1
        lines.append('  </image>')
    write_whole(out / 'annotations.xml', '\n'.join([*lines, '</annotations>', '']))
    return counts


def _label_lines(category: Mapping[str, Any]) -> list[str]:
    from xml.sax.saxutils import escape

    def label(name: str, kind: str, parent: str = '') -> str:
        inner = f'<parent>{escape(parent)}</parent>' if parent else ''
        return (f'    <label><name>{escape(name)}</name><type>{kind}</type><attributes></attributes>{inner}</label>')
    names = category.get('keypoints') or []
    kind = 'skeleton' if names else 'any'
    return [label(category['name'], kind), *(label(name, 'points', category['name']) for name in names)]


def _shape_lines(annotation: Mapping[str, Any], category: Mapping[str, Any], group: int) -> list[str]:
    name = f'label={quoteattr(category["name"])} source="file" occluded="0" z_order="0"'
    crowd = '<attribute name="is_crowd">true</attribute>' if annotation.get('iscrowd') else ''
    segmentation, keypoints = annotation.get('segmentation'), annotation.get('keypoints')
    if keypoints and category.get('keypoints'):
        points = [f'      <points label={quoteattr(key)} source="file" outside="{int(not keypoints[i + 2])}" '
                  f'occluded="{int(keypoints[i + 2] == 1)}" points="{keypoints[i]:.2f},{keypoints[i + 1]:.2f}"/>'
                  for key, i in zip(category['keypoints'], range(0, len(keypoints), 3))]
        return [f'    <skeleton {name}>', *points, '    </skeleton>']
    if isinstance(segmentation, Mapping):
        return [f'    <mask {name} {_mask_attributes(decode_rle(dict(segmentation)))}>{crowd}</mask>']
    if segmentation:
        together = f' group_id="{group}"' if len(segmentation) > 1 else ''
        return [f'    <polygon {name}{together} points="{_points_text(polygon)}">{crowd}</polygon>'
                for polygon in segmentation]
    x, y, w, h = annotation['bbox']
    return [f'    <box {name} xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}">{crowd}</box>']


def _points_text(polygon: Sequence[float]) -> str:
    return ';'.join(f'{x:.2f},{y:.2f}' for x, y in zip(polygon[0::2], polygon[1::2]))


def _mask_attributes(mask: np.ndarray) -> str:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 'rle="1" left="0" top="0" width="1" height="1"'
    part = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].astype(bool)
    values = part.flatten()
    edges = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff(np.concatenate(([0], edges, [values.size])))
    text = ', '.join(map(str, [0, *runs] if values[0] else runs))
    return (f'rle="{text}" left="{columns[0]}" top="{rows[0]}" width="{part.shape[1]}" height="{part.shape[0]}"')
