"""Input that is broken or odd, kind by kind: one clear line, or a rule. docs/broken_input.md is this file's outcome.

``python -m tests.test_datasets.test_broken_input`` prints the tables of the document anew.
"""
from __future__ import annotations

import json
import math
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from boxdet.datasets import build_dataset
from boxdet.engine.preflight import check_files
from boxdet.errors import UserError
from tests.voc_folder import draw, write_xml

DOCUMENT = Path(__file__).resolve().parents[2] / 'docs/broken_input.md'


class Case(NamedTuple):
    """A kind of input, and a function that meets it in a folder of its own and tells the rule, if nothing is raised."""
    section: str
    kind: str
    meet: Callable[[Path], str | None]


CASES: list[Case] = []


def case(section: str, kind: str):
    def register(function):
        CASES.append(Case(section, kind, function))
        return function
    return register


def outcome(one: Case, folder: Path) -> tuple[str, str]:
    """('error', its line), ('warning', its line) or ('rule', what holds)."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        try:
            rule = one.meet(folder)
        except UserError as error:
            return 'error', _without(folder, str(error))
    told = [str(w.message) for w in seen if w.category is UserWarning]
    return ('warning', _without(folder, told[0])) if told else ('rule', rule)


def _without(folder: Path, line: str) -> str:
    return line.replace(f'{folder}/', '').replace(str(folder), 'DIR')


# ---------------------------------------------------------------------------------- what the cases start from

def draw_image(folder: Path, name: str = 'a.png', height: int = 80, width: int = 100, **options) -> Path:
    """An image whose left half is dark and whose right half is bright."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[:, width // 2:] = 200
    path = folder / name
    Image.fromarray(pixels).save(path, **options)
    return path


def annotation(**changes) -> dict:
    whole = dict(id=17, image_id=1, category_id=3, bbox=[10, 20, 30, 40], area=1200, iscrowd=0,
                 segmentation=[[10, 20, 40, 20, 40, 60, 10, 60]])
    return {key: value for key, value in {**whole, **changes}.items() if value != 'absent'}


def coco(folder: Path, annotations: list | None = None, images: list | None = None, categories: list | None = None,
         steps: tuple = ('LoadImageFromFile', dict(type='LoadAnnotations')), **options):
    """A CocoDataset of the image a.png and one annotation of class 'cat', 17, unless the case says otherwise."""
    if not (folder / 'a.png').exists():
        draw_image(folder)
    data = dict(images=images or [dict(id=1, file_name='a.png', width=100, height=80)],
                annotations=[annotation()] if annotations is None else annotations,
                categories=categories or [dict(id=3, name='cat'), dict(id=4, name='dog')])
    (folder / 'instances.json').write_text(json.dumps(data))
    return open_coco(folder, steps, **options)


def as_step(step: str | dict) -> dict:
    return dict(type=step) if isinstance(step, str) else step


def open_coco(folder: Path, steps: tuple = (), **options):
    pipeline = [as_step(step) for step in steps]
    return build_dataset({'type': 'CocoDataset', 'ann_file': str(folder / 'instances.json'), 'img_prefix': str(folder),
                          'classes': ('cat', 'dog'), 'pipeline': pipeline, 'filter_empty_gt': False, **options})


def loaded(folder: Path, path: Path) -> np.ndarray:
    """The image as a pipeline loads it."""
    return coco(folder, images=[dict(id=1, file_name=path.name, width=100, height=80)])[0]['img']


MASKS = ('LoadImageFromFile', dict(type='LoadAnnotations', with_mask=True))


def masks_of(folder: Path, segmentation, **changes) -> list[int]:
    return coco(folder, [annotation(segmentation=segmentation, **changes)], steps=MASKS)[0]['gt_masks'].areas.tolist()


def voc(folder: Path, objects: list[dict] | None = None, raw: bytes | None = None, **options):
    """A VOCDataset of one image; ``raw``: the bytes of its XML file."""
    root = draw(folder, ['a'])
    if objects is not None:
        write_xml(root / 'Annotations/a.xml', objects)
    if raw is not None:
        (root / 'Annotations/a.xml').write_bytes(raw)
    return build_dataset({
        'type': 'VOCDataset', 'ann_file': str(root / 'ImageSets/Main/trainval.txt'), 'img_prefix': str(root),
        'year': 2012, 'pipeline': [], 'filter_empty_gt': False, 'classes': ('cat', 'dog'), **options})


def middle(folder: Path, ann: dict | None, suffix: str = 'json', **options):
    entry = dict(filename='a.png', width=100, height=80, **({} if ann is None else dict(ann=ann)))
    path = folder / f'middle.{suffix}'
    path.write_bytes(json.dumps([entry]).encode() if suffix == 'json' else pickle.dumps([entry]))
    return build_dataset(dict(type='CustomDataset', ann_file=str(path), classes=('cat', 'dog'), pipeline=[],
                              filter_empty_gt=False, **options))


# ---------------------------------------------------------------------------------- images

@case('Images', 'JPEG that breaks off')
def _(folder):
    path = draw_image(folder, 'a.jpg')
    path.write_bytes(path.read_bytes()[:500])
    loaded(folder, path)


@case('Images', 'PNG that breaks off')
def _(folder):
    path = draw_image(folder)
    path.write_bytes(path.read_bytes()[:150])
    loaded(folder, path)


@case('Images', 'file of no bytes')
def _(folder):
    (folder / 'b.png').write_bytes(b'')
    loaded(folder, folder / 'b.png')


@case('Images', 'text in an image file')
def _(folder):
    (folder / 'b.png').write_text('<html>404</html>')
    loaded(folder, folder / 'b.png')


@case('Images', 'missing file, before a training')
def _(folder):
    check_files(coco(folder, images=[dict(id=1, file_name='b.png', width=100, height=80)]), 'data.train')


@case('Images', 'missing file, when it is read')
def _(folder):
    loaded(folder, folder / 'a.pn')


@case('Images', 'folder in place of a file')
def _(folder):
    (folder / 'b.png').mkdir()
    loaded(folder, folder / 'b.png')


@case('Images', 'turned by EXIF, annotations of the upright image')
def _(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    path = draw_image(folder, 'a.jpg', height=100, width=80, exif=exif)
    image = loaded(folder, path)
    assert image.shape == (80, 100, 3) and image[5, 50].mean() < 100 < image[75, 50].mean()
    return 'turned upright, so that its annotations fit'


@case('Images', 'turned by EXIF, boxes of the image as stored')
def _(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded(folder, draw_image(folder, 'a.jpg', exif=exif))


@case('Images', 'CMYK')
def _(folder):
    path = folder / 'a.jpg'
    pixels = Image.open(draw_image(folder)).convert('CMYK')
    pixels.save(path, quality=95)
    image = loaded(folder, path)
    assert image.shape == (80, 100, 3) and image[40, 20].max() < 90 and image[40, 80].min() > 160
    return 'converted to three channels'


@case('Images', 'grey')
def _(folder):
    Image.open(draw_image(folder)).convert('L').save(folder / 'b.png')
    image = loaded(folder, folder / 'b.png')
    assert image.shape == (80, 100, 3) and (image[40, 20] == 40).all()
    return 'three equal channels'


@case('Images', '16 bits a channel')
def _(folder):
    cv2.imwrite(str(folder / 'b.png'), np.full((80, 100), 0x8040, np.uint16))
    image = loaded(folder, folder / 'b.png')
    assert image.dtype == np.uint8 and (image == 0x80).all()
    return 'the upper 8 bits'


@case('Images', 'transparent (RGBA)')
def _(folder):
    pixels = Image.open(draw_image(folder)).convert('RGBA')
    pixels.putalpha(0)
    pixels.save(folder / 'b.png')
    assert (loaded(folder, folder / 'b.png')[40, 20] == 40).all()
    return 'the colours are taken, transparency is left out'


@case('Images', 'palette')
def _(folder):
    Image.open(draw_image(folder)).quantize(4).save(folder / 'b.png')
    assert abs(int(loaded(folder, folder / 'b.png')[40, 20, 0]) - 40) <= 2
    return 'its colours'


@case('Images', 'name with spaces and letters beyond ASCII')
def _(folder):
    assert loaded(folder, draw_image(folder, 'zwei Käfer (1).png')).shape == (80, 100, 3)
    return 'an ordinary name'


@case('Images', 'another size than the annotations say, boxes')
def _(folder):
    loaded(folder, draw_image(folder, 'b.png', height=40, width=50))


@case('Images', 'another size than the annotations say, masks')
def _(folder):
    draw_image(folder, height=40, width=50)
    coco(folder, steps=MASKS)[0]


# ---------------------------------------------------------------------------------- the COCO file

@case('COCO file', 'missing')
def _(folder):
    (folder / 'instance.json').write_text('{}')
    open_coco(folder)


@case('COCO file', 'folder in place of it')
def _(folder):
    (folder / 'instances.json').mkdir()
    open_coco(folder)


@case('COCO file', 'no bytes')
def _(folder):
    (folder / 'instances.json').write_bytes(b'')
    open_coco(folder)


@case('COCO file', 'breaks off')
def _(folder):
    coco(folder)
    path = folder / 'instances.json'
    path.write_text(path.read_text()[:120])
    open_coco(folder)


@case('COCO file', 'not UTF-8')
def _(folder):
    (folder / 'instances.json').write_bytes('{"images": [{"file_name": "Käfer.jpg"}]}'.encode('latin-1'))
    open_coco(folder)


@case('COCO file', 'begins with a byte order mark')
def _(folder):
    coco(folder)
    path = folder / 'instances.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert len(open_coco(folder)) == 1
    return 'it is passed over'


@case('COCO file', 'a list (predictions, say)')
def _(folder):
    (folder / 'instances.json').write_text('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]')
    open_coco(folder)


@case('COCO file', "no 'annotations', in training")
def _(folder):
    (folder / 'instances.json').write_text('{"images": [], "categories": []}')
    open_coco(folder)


@case('COCO file', "no 'categories', in training")
def _(folder):
    (folder / 'instances.json').write_text('{"images": [], "annotations": []}')
    open_coco(folder)


@case('COCO file', 'image id twice')
def _(folder):
    coco(folder, images=[dict(id=1, file_name='a.png', width=100, height=80)] * 2)


@case('COCO file', 'annotation id twice')
def _(folder):
    coco(folder, [annotation(), annotation()])


@case('COCO file', 'category id twice')
def _(folder):
    coco(folder, categories=[dict(id=3, name='cat'), dict(id=3, name='dog')])


@case('COCO file', 'two categories of one name')
def _(folder):
    coco(folder, categories=[dict(id=3, name='cat'), dict(id=4, name='dog'), dict(id=9, name='cat')])


@case('COCO file', 'category without a name')
def _(folder):
    coco(folder, categories=[dict(id=3, name='cat'), dict(id=4)])


@case('COCO file', 'image without a file name')
def _(folder):
    coco(folder, images=[dict(id=1, width=100, height=80)])


@case('COCO file', 'image without a width, in training')
def _(folder):
    coco(folder, images=[dict(id=1, file_name='a.png', height=80)])


@case('COCO file', 'width that is text')
def _(folder):
    coco(folder, images=[dict(id=1, file_name='a.png', width='wide', height=80)])


@case('COCO file', 'negative width')
def _(folder):
    coco(folder, images=[dict(id=1, file_name='a.png', width=-100, height=80)])


@case('COCO file', 'ids that are text, the same everywhere')
def _(folder):
    dataset = coco(folder, [annotation(id='x7', image_id='a')], [dict(id='a', file_name='a.png', width=100, height=80)])
    assert dataset.get_ann_info(0)['names'] == [f'{folder}/instances.json: annotation x7']
    return 'ids may be text'


def read_as_usual(dataset) -> str:
    assert dataset.get_ann_info(0)['labels'].tolist() == [0] and dataset.cat_ids == [3, 4]
    assert [type(i) for i in (*dataset.cat_ids, *dataset.get_cat_ids(0))] == [int] * 3
    return 'read as the numbers that they are'


@case('COCO file', "image ids that are numbers in 'images' and text in 'annotations'")
def _(folder):
    return read_as_usual(coco(folder, [annotation(image_id='1')]))


@case('COCO file', 'category ids that are text')
def _(folder):
    return read_as_usual(coco(folder, [annotation(category_id='3')],
                              categories=[dict(id='3', name='cat'), dict(id='4', name='dog')]))


@case('COCO file', "category ids that are text in 'annotations' only")
def _(folder):
    return read_as_usual(coco(folder, [annotation(category_id='3')]))


@case('COCO file', 'ids and sizes that are numbers with a point (pandas)')
def _(folder):
    dataset = coco(folder, [annotation(id=17., image_id=1., category_id=3.)],
                   [dict(id=1., file_name='a.png', width=100., height=80.)],
                   [dict(id=3., name='cat'), dict(id=4., name='dog')])
    assert dataset.annotation_facts.ids.tolist() == [17] and type(dataset.img_ids[0]) is int
    return read_as_usual(dataset)


@case('COCO file', 'category ids that are text and no numbers')
def _(folder):
    coco(folder, [annotation(category_id='c')], categories=[dict(id='c', name='cat'), dict(id='4', name='dog')])


@case('COCO file', 'category names that are numbers')
def _(folder):
    dataset = coco(folder, categories=[dict(id=3, name=7), dict(id=4, name=8)], classes=('7', '8'))
    assert dataset.get_ann_info(0)['labels'].tolist() == [0]
    return "their texts: 7 is '7'"


@case('COCO file', 'category name that is null')
def _(folder):
    coco(folder, categories=[dict(id=3, name='cat'), dict(id=4, name=None)])


@case('COCO file', 'image id that is null')
def _(folder):
    coco(folder, images=[dict(id=None, file_name='a.png', width=100, height=80)])


@case('COCO file', 'image id that is a list')
def _(folder):
    coco(folder, images=[dict(id=[1], file_name='a.png', width=100, height=80)])


@case('COCO file', 'file name that is a number')
def _(folder):
    coco(folder, images=[dict(id=1, file_name=1, width=100, height=80)])


@case('COCO file', 'width that is infinite')
def _(folder):
    coco(folder, images=[dict(id=1, file_name='a.png', width=math.inf, height=80)])


@case('COCO file', "'annotations' that is null")
def _(folder):
    (folder / 'instances.json').write_text('{"images": [], "annotations": null, "categories": []}')
    open_coco(folder)


@case('COCO file', 'ids beyond 64 bits')
def _(folder):
    dataset = coco(folder, [annotation(id=2**70)])
    assert dataset.get_ann_info(0)['names'] == [f'{folder}/instances.json: annotation {2**70}']
    return 'ids may be of any size'


@case('COCO file', 'classes that the file does not have')
def _(folder):
    coco(folder, classes=('cat', 'dgo'))


# ---------------------------------------------------------------------------------- COCO annotations

@case('COCO annotations', 'of an unknown category')
def _(folder):
    coco(folder, [annotation(category_id=55)])


@case('COCO annotations', 'of an image that is not listed')
def _(folder):
    dataset = coco(folder, [annotation(), annotation(id=18, image_id=99)])
    assert dataset.filter_report['without_image'] == 1 and len(dataset.get_ann_info(0)['labels']) == 1
    return "left out; a training warns of them (data.without-image)"


@case('COCO annotations', 'all of images that are not listed')
def _(folder):
    coco(folder, [annotation(image_id=99)])


@case('COCO annotations', "without 'category_id'")
def _(folder):
    coco(folder, [annotation(category_id='absent')])


@case('COCO annotations', 'that is null')
def _(folder):
    coco(folder, [annotation(), None])


@case('COCO annotations', "'category_id' that is a list")
def _(folder):
    coco(folder, [annotation(category_id=[3])])


@case('COCO annotations', "'image_id' that is null")
def _(folder):
    coco(folder, [annotation(image_id=None)])


@case('COCO annotations', "'id' that is a list")
def _(folder):
    coco(folder, [annotation(id=[17])])


@case('COCO annotations', "'iscrowd' that is text")
def _(folder):
    dataset = coco(folder, [annotation(iscrowd='0'), annotation(id=18, iscrowd='1')])
    assert dataset.annotation_facts.crowd.tolist() == [False, True]
    return "'0' and 'false' are no crowd, '1' and 'true' are one"


@case('COCO annotations', "'iscrowd' of another text")
def _(folder):
    coco(folder, [annotation(iscrowd='maybe')])


@case('COCO annotations', "without 'bbox'")
def _(folder):
    coco(folder, [annotation(bbox='absent')])


@case('COCO annotations', "'bbox' of three numbers")
def _(folder):
    coco(folder, [annotation(bbox=[1, 2, 3])])


@case('COCO annotations', "'bbox' as text")
def _(folder):
    coco(folder, [annotation(bbox='10,20,30,40')])


@case('COCO annotations', 'box with NaN')
def _(folder):
    coco(folder, [annotation(bbox=[1, 2, math.nan, 4])])


@case('COCO annotations', 'box with infinity')
def _(folder):
    coco(folder, [annotation(bbox=[1, 2, math.inf, 4])])


@case('COCO annotations', 'negative width')
def _(folder):
    assert coco(folder, [annotation(bbox=[40, 20, -30, 40])]).filter_report['degenerate_boxes'] == [17]
    return 'left out; a training warns with the ids'


@case('COCO annotations', 'box without area')
def _(folder):
    assert coco(folder, [annotation(bbox=[40, 20, 0, 40])]).filter_report['degenerate_boxes'] == [17]
    return 'left out; a training warns with the ids'


@case('COCO annotations', 'box outside the image')
def _(folder):
    assert coco(folder, [annotation(bbox=[200, 20, 30, 40])]).filter_report['degenerate_boxes'] == [17]
    return 'left out; a training warns with the ids'


@case('COCO annotations', 'box partly outside the image')
def _(folder):
    assert coco(folder, [annotation(bbox=[90, 20, 30, 40])]).get_ann_info(0)['bboxes'].tolist() == [[90, 20, 120, 60]]
    return 'kept as it is, as 2.x does; Resize clips it (bbox_clip_border)'


@case('COCO annotations', "'area' that is no number")
def _(folder):
    coco(folder, [annotation(area='big')])


@case('COCO annotations', "'area' of 0")
def _(folder):
    assert coco(folder, [annotation(area=0)]).filter_report['degenerate_boxes'] == [17]
    return 'left out; a training warns with the ids'


def nobody_drew(folder, segmentation) -> str:
    sample = coco(folder, [annotation(segmentation=segmentation)], steps=MASKS)[0]
    assert sample['gt_masks'].absent.tolist() == [True] and len(sample['gt_bboxes']) == 1
    return 'its box is learned, its mask is not; a training tells how many there are'


@case('COCO annotations', "without 'segmentation', masks wanted")
def _(folder):
    return nobody_drew(folder, 'absent')


@case('COCO annotations', 'polygon of two points')
def _(folder):
    return nobody_drew(folder, [[10, 20, 40, 20]])


@case('COCO annotations', 'polygon with an odd count of numbers')
def _(folder):
    masks_of(folder, [[10, 20, 40, 20, 40, 60, 10]])


@case('COCO annotations', 'polygon that is not in a list of polygons')
def _(folder):
    masks_of(folder, [10, 20, 40, 20, 40, 60])


@case('COCO annotations', "'segmentation' of an empty list, masks wanted")
def _(folder):
    return nobody_drew(folder, [])


@case('COCO annotations', 'polygon with NaN')
def _(folder):
    masks_of(folder, [[10, 20, 40, math.nan, 40, 60]])


@case('COCO annotations', 'polygon with a corner at a thousand million')
def _(folder):
    masks_of(folder, [[10, 20, 1e9, 20, 40, 60]])


@case('COCO annotations', 'one usable polygon, and one of two points')
def _(folder):
    assert masks_of(folder, [[10, 20, 40, 20, 40, 60, 10, 60], [10, 20, 40, 20]])[0] == pytest.approx(1200, rel=0.06)
    return 'the usable ones make the mask'


@case('COCO annotations', 'RLE of another size')
def _(folder):
    masks_of(folder, dict(size=[100, 80], counts=[8000]))


@case('COCO annotations', 'RLE whose counts do not fill its size')
def _(folder):
    masks_of(folder, dict(size=[80, 100], counts=[10, 20]))


@case('COCO annotations', 'compressed RLE of other counts than its size')
def _(folder):
    masks_of(folder, dict(size=[80, 100], counts='06000000'))


@case('COCO annotations', 'compressed RLE that breaks off')
def _(folder):
    whole = coco_masks.encode(np.asfortranarray(np.eye(80, 100, dtype=np.uint8)))['counts'].decode()
    masks_of(folder, dict(size=[80, 100], counts=whole[:-3]))


@case('COCO annotations', 'RLE without counts')
def _(folder):
    masks_of(folder, dict(size=[80, 100]))


@case('COCO annotations', 'RLE whose counts are null')
def _(folder):
    masks_of(folder, dict(size=[80, 100], counts=None))


@case('COCO annotations', 'RLE with a count below 0')
def _(folder):
    masks_of(folder, dict(size=[80, 100], counts=[-10, 10, 8000]))


@case('COCO annotations', 'RLE whose counts are numbers with a point')
def _(folder):
    assert masks_of(folder, dict(size=[80, 100], counts=[100., 50., 7850.])) == [50]
    return 'read as the numbers that they are'


@case('COCO annotations', 'crowd with a polygon')
def _(folder):
    info = coco(folder, [annotation(iscrowd=1)]).get_ann_info(0)
    assert info['bboxes_ignore'].tolist() == [[10, 20, 40, 60]] and len(info['bboxes']) == 0
    return 'a region to ignore, as any crowd'


@case('COCO annotations', 'keypoints of a wrong length')
def _(folder):
    coco(folder, [annotation(keypoints=[1, 2, 2], num_keypoints=1)], type='CocoKeypointDataset')


# ---------------------------------------------------------------------------------- VOC

@case('VOC files', 'annotation file missing')
def _(folder):
    draw(folder, ['a'])
    (folder / 'Annotations/a.xml').rename(folder / 'Annotations/b.xml')
    build_dataset(dict(type='XMLDataset', ann_file=str(folder / 'ImageSets/Main/trainval.txt'), img_prefix=str(folder),
                       classes=('cat',), pipeline=[]))


@case('VOC files', 'no bytes')
def _(folder):
    voc(folder, raw=b'')


@case('VOC files', 'breaks off')
def _(folder):
    voc(folder, raw=b'<annotation><object><name>cat</name>')


@case('VOC files', 'not UTF-8, and says nothing of it')
def _(folder):
    voc(folder, raw='<annotation><owner>Käfer</owner></annotation>'.encode('latin-1'))


@case('VOC files', 'latin-1, and says so')
def _(folder):
    text = '<?xml version="1.0" encoding="latin-1"?><annotation><owner>Käfer</owner></annotation>'
    assert len(voc(folder, raw=text.encode('latin-1'))) == 1
    return 'read as it says'


@case('VOC files', 'other XML (a web page)')
def _(folder):
    voc(folder, raw=b'<html><body>404</body></html>')


@case('VOC files', 'document type, entities')
def _(folder):
    voc(folder, raw=b'<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>')


@case('VOC files', 'without objects')
def _(folder):
    assert len(voc(folder, [])) == 1 and len(voc(folder / 'b', [], filter_empty_gt=True)) == 0
    return 'an image without objects: left out of training by filter_empty_gt'


@case('VOC files', "without <size>, or with zeros")
def _(folder):
    dataset = voc(folder, raw=b'<annotation><size><width>0</width></size></annotation>')
    assert dataset.img_info(0)['width'] == 128
    return "the image's own size, from its header"


@case('VOC files', '<size> that is text')
def _(folder):
    voc(folder, raw=b'<annotation><size><width>wide</width></size></annotation>')


@case('VOC files', 'difficult object')
def _(folder):
    info = voc(folder, [dict(name='cat', box=(1, 2, 40, 30), difficult=1)]).get_ann_info(0)
    assert info['bboxes_ignore'].tolist() == [[0, 1, 39, 29]] and len(info['bboxes']) == 0
    return "to 'bboxes_ignore': not learned, and neither right nor wrong in the evaluation"


@case('VOC files', 'object without a name')
def _(folder):
    voc(folder, raw=b'<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>'
                    b'<ymax>9</ymax></bndbox></object><object/></annotation>')


@case('VOC files', 'object without a box')
def _(folder):
    voc(folder, raw=b'<annotation><object><name>cat</name></object></annotation>')


@case('VOC files', 'box without a corner')
def _(folder):
    voc(folder, raw=b'<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>')


@case('VOC files', 'coordinate that is text')
def _(folder):
    voc(folder, [dict(name='cat', box=('left', 2, 40, 30))])


@case('VOC files', 'coordinate NaN')
def _(folder):
    voc(folder, [dict(name='cat', box=(1, 2, 'nan', 30))])


@case('VOC files', 'coordinates with fractions')
def _(folder):
    info = voc(folder, [dict(name='cat', box=(1.7, 2.2, 40.9, 30))]).get_ann_info(0)
    assert info['bboxes'].tolist() == [[0, 1, 39, 29]]
    return 'cut off, as 2.x does, before 1 is subtracted; zero_based=True keeps them'


@case('VOC files', 'coordinates that count from 0')
def _(folder):
    voc(folder, [dict(name='cat', box=(0, 0, 40, 30))])


@case('VOC files', 'corners the wrong way round')
def _(folder):
    assert voc(folder, [dict(name='cat', box=(40, 2, 1, 30))]).filter_report['degenerate_boxes'] == ['a.xml object 1']
    return 'left out; a training warns with file and object'


@case('VOC files', 'name that is no class')
def _(folder):
    voc(folder, [dict(name='cat', box=(1, 2, 40, 30)), dict(name='unicorn', box=(1, 2, 40, 30))], classes=None)


@case('VOC files', 'name that is no class, classes given')
def _(folder):
    dataset = voc(folder, [dict(name='cat', box=(1, 2, 40, 30)), dict(name='unicorn', box=(1, 2, 40, 30))])
    assert dataset.filter_report['objects_of_other_classes'] == 1
    return "left out: classes narrow the data set ('objects_of_other_classes' in the log of a training)"


@case('VOC files', 'name that nearly is a class')
def _(folder):
    voc(folder, [dict(name='Cat', box=(1, 2, 40, 30)), dict(name='dog', box=(1, 2, 40, 30))])


@case('VOC files', 'list of images without a line')
def _(folder):
    draw(folder, ['a'], 'other')
    (folder / 'ImageSets/Main/trainval.txt').write_text('\n')
    build_dataset(dict(type='XMLDataset', ann_file=str(folder / 'ImageSets/Main/trainval.txt'), img_prefix=str(folder),
                       classes=('cat',), pipeline=[]))


@case('VOC files', 'image listed twice')
def _(folder):
    draw(folder, ['a'])
    voc(folder)


@case('VOC files', "one class's list (image and mark)")
def _(folder):
    draw(folder, ['a'], 'other')
    (folder / 'ImageSets/Main/cat_train.txt').write_text('a -1\n')
    build_dataset(dict(type='XMLDataset', ann_file=str(folder / 'ImageSets/Main/cat_train.txt'), img_prefix=str(folder),
                       classes=('cat',), pipeline=[]))


@case('VOC files', "year that the paths do not tell")
def _(folder):
    voc(folder, year=None)


@case('VOC files', 'masks wanted')
def _(folder):
    voc(folder, pipeline=list(map(as_step, MASKS)))[0]


@case('VOC files', 'semantic maps wanted')
def _(folder):
    voc(folder, pipeline=[as_step(MASKS[0]), dict(type='LoadAnnotations', with_seg=True)])[0]


# ---------------------------------------------------------------------------------- middle format and lists

@case('Middle format', 'boxes and labels in different numbers')
def _(folder):
    middle(folder, dict(bboxes=[[1, 2, 3, 4]], labels=[])).get_ann_info(0)


@case('Middle format', 'label beyond the classes')
def _(folder):
    middle(folder, dict(bboxes=[[1, 2, 30, 40]], labels=[2])).get_ann_info(0)


@case('Middle format', 'boxes as x, y, width, height')
def _(folder):
    middle(folder, dict(bboxes=[[50, 60, 30, 40]], labels=[0])).get_ann_info(0)


@case('Middle format', 'box with NaN')
def _(folder):
    middle(folder, dict(bboxes=[[1, 2, math.nan, 4]], labels=[0])).get_ann_info(0)


@case('Middle format', 'box of three numbers')
def _(folder):
    middle(folder, dict(bboxes=[[1, 2, 3]], labels=[0])).get_ann_info(0)


@case('Middle format', "image without 'ann'")
def _(folder):
    middle(folder, None).get_ann_info(0)


@case('Middle format', 'pickle that would run code')
def _(folder):
    class Harm:
        def __reduce__(self):
            return print, ('harm',)
    middle(folder, dict(bboxes=[], labels=[], more=Harm()), 'pkl')


@case('Middle format', 'file of another kind')
def _(folder):
    (folder / 'middle.txt').write_text('a')
    build_dataset(dict(type='CustomDataset', ann_file=str(folder / 'middle.txt'), classes=('cat',), pipeline=[]))


@case('Middle format', 'list of class names not UTF-8')
def _(folder):
    (folder / 'names.txt').write_bytes('Käfer'.encode('latin-1'))
    coco(folder, classes=str(folder / 'names.txt'))


# ---------------------------------------------------------------------------------- tests

def documented() -> dict[tuple[str, str], tuple[str, str]]:
    """The tables of the document: (section, kind) to (what happens, the line)."""
    found, section = {}, ''
    for line in DOCUMENT.read_text(encoding='utf-8').splitlines():
        if line.startswith('## '):
            section = line[3:]
        cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
        if len(cells) == 3 and cells[1] in ('error', 'warning', 'rule'):
            found[section, cells[0]] = cells[1], cells[2].strip('`').strip()
    return found


def as_row(one: Case, what: str, line: str) -> str:
    quoted = f'`` {line} ``' if '`' in line else f'`{line}`'
    return f'| {one.kind} | {what} | {quoted if what != "rule" else line} |'


@pytest.fixture(scope='module')
def document():
    return documented()


@pytest.mark.parametrize('one', CASES, ids=[f'{c.section}: {c.kind}' for c in CASES])
def test_what_the_document_says_happens(one, tmp_path, document):
    what, line = outcome(one, tmp_path)
    assert '\n' not in line and str(tmp_path) not in line
    assert (what, line) == document[one.section, one.kind]


def test_every_row_is_tried(document):
    assert set(document) == {(one.section, one.kind) for one in CASES} and len(document) == len(CASES) >= 80


def print_tables() -> None:
    """Print the tables as they are to stand in the document."""
    section = None
    for one in CASES:
        if one.section != section:
            section = one.section
            print(f'\n## {section}\n\n| kind | what happens | the line, or the rule |\n|---|---|---|')
        with tempfile.TemporaryDirectory() as folder:
            print(as_row(one, *outcome(one, Path(folder))))


if __name__ == '__main__':
    print_tables()
