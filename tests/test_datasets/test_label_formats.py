"""Label files of other tools: what their own software wrote is read, and what boxdet writes is read back."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from boxdet.datasets.label_formats import READERS, WRITERS, format_module, read_labels, recognise
from boxdet.datasets.label_formats.label_studio_format import decode_brush, encode_brush
from boxdet.datasets.label_formats.labels import (
    LabelledImage,
    LabelledObject,
    ReadOptions,
    decode_rle,
    encode_mask,
    split_images,
    to_coco,
)
from boxdet.errors import DataError
from tests import voc_folder

FILES = Path(__file__).parent / 'label_files'  # written by labelme 6.3, label-studio-sdk 2.1 and datumaro 1.13


def draw(path, width=100, height=60, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    cv2.imencode(path.suffix, pixels)[1].tofile(path)
    return path


def as_coco(labels, root):
    return to_coco(labels, labels.images, root)


def found(labels, i=0):
    return [(o.category, o.bbox and tuple(round(v, 2) for v in o.bbox)) for o in labels.images[i].objects]


# ------------------------------------------------------------------------------- files of the tools themselves

def test_labelme(tmp_path):
    draw(tmp_path / 'photo.png')
    (tmp_path / 'photo.json').write_bytes((FILES / 'labelme/photo.json').read_bytes())
    assert recognise(tmp_path) == 'labelme'
    labels = read_labels(tmp_path)
    names = [o.category for o in labels.images[0].objects]
    assert sorted(names) == ['ball', 'cat', 'cat', 'cat', 'dog', 'person']
    assert labels.left_out == {"a 'linestrip' has no area": ['photo.json: shape 9']}
    data = as_coco(labels, tmp_path)
    boxes = {}
    for a in data['annotations']:
        boxes.setdefault(data['categories'][a['category_id'] - 1]['name'], []).append(a)
    assert boxes['dog'][0]['bbox'] == [50, 5, 20, 20] and 'segmentation' not in boxes['dog'][0]
    assert boxes['ball'][0]['area'] == pytest.approx(np.pi * 25, rel=0.01)
    cats = sorted(boxes['cat'], key=lambda a: a['bbox'])
    assert cats[0]['bbox'] == [10, 10, 30, 20]
    assert decode_rle(dict(cats[1]['segmentation'])).sum() == 6 * 8 and cats[1]['bbox'] == [23, 42, 8, 6]
    assert len(cats[2]['segmentation']) == 2 and cats[2]['bbox'] == [60, 40, 14, 10]  # one group, one object
    person = boxes['person'][0]
    assert data['categories'][person['category_id'] - 1]['keypoints'] == ['nose', 'foot']
    assert person['keypoints'] == [5, 4, 2, 6, 19, 1]


def test_labelme_names_images_with_backslashes(tmp_path):
    content = json.loads((FILES / 'labelme/photo.json').read_text())
    draw(tmp_path / 'images/größe.png')
    (tmp_path / 'a.json').write_text(json.dumps(dict(content, imagePath='..\\images\\größe.png')))
    assert len(read_labels(tmp_path).images) == 1


def test_cvat_and_yolo_written_by_datumaro():
    for form in ('cvat', 'yolo'):
        folder = next(FILES.glob(f'datumaro_{form}*'))
        assert recognise(folder) == form
        labels = read_labels(folder)
        assert labels.categories == ['cat', 'dog']
        assert [image.split for image in labels.images] == ['train', 'val']
        data = as_coco(labels, folder)
        assert data['annotations'][0]['bbox'] == pytest.approx([10, 12, 30, 20], abs=0.02)
        assert data['images'][0]['width'] == 100
    assert data['annotations'][0]['category_id'] == 1


def test_brush_of_label_studio():
    content = json.loads((FILES / 'label_studio/brush.json').read_text())
    mask = decode_brush(content['rle']).reshape(60, 100, 4)[:, :, 3] > 0
    expected = np.zeros((60, 100), dtype=bool)
    expected[10:20, 30:55] = expected[40:41, 0:7] = True
    assert (mask == expected).all()
    assert (decode_brush(encode_brush(expected)).reshape(60, 100, 4)[:, :, 3] == expected * 255).all()


# ------------------------------------------------------------------------------- there and back

def coco_data(tmp_path):
    mask = np.zeros((60, 100), dtype=np.uint8)
    mask[5:25, 50:80] = 1
    draw(tmp_path / 'images/ünder/a b.png', seed=1)
    draw(tmp_path / 'images/c.jpg', seed=2)
    draw(tmp_path / 'images/empty.jpg', seed=3)
    images = [dict(id=i, file_name=name, width=100, height=60)
              for i, name in enumerate(('ünder/a b.png', 'c.jpg', 'empty.jpg'), 10)]
    annotations = [
        dict(id=1, image_id=10, category_id=7, bbox=[10, 20, 30, 20], area=600, iscrowd=0),
        dict(id=2, image_id=10, category_id=7, bbox=[50, 5, 30, 20], area=600, iscrowd=0,
             segmentation=encode_mask(mask)),
        dict(id=3, image_id=11, category_id=3, bbox=[5, 5, 20, 30], area=600, iscrowd=0,
             segmentation=[[5, 5, 25, 5, 25, 35, 5, 35]])]
    return dict(images=images, annotations=annotations, categories=[dict(id=7, name='cat'), dict(id=3, name="dog's")])


def iou(a, b):
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


@pytest.mark.parametrize('form', WRITERS)
def test_round_trip(tmp_path, form):
    data = coco_data(tmp_path)
    format_module(form).write(data, tmp_path / 'out', tmp_path / 'images')
    source = tmp_path / 'out/tasks.json' if form == 'label_studio' else tmp_path / 'out'
    assert recognise(source) == form
    labels = read_labels(source, options=ReadOptions(images=tmp_path / 'images'))
    assert not labels.left_out and (form == 'yolo' or not labels.notes)  # its val is its train
    back = as_coco(labels, tmp_path / 'images')
    names = {c['id']: c['name'] for c in back['categories']}
    assert set(names.values()) == {'cat', "dog's"}
    files = {i['id']: Path(i['file_name']).name for i in back['images']}
    assert len(back['annotations']) == 3
    if form in ('yolo', 'cvat', 'label_studio', 'labelme'):
        assert sorted(files.values()) == ['a b.png', 'c.jpg', 'empty.jpg']
    for original in data['annotations']:
        name = next(c['name'] for c in data['categories'] if c['id'] == original['category_id'])
        file = next(Path(i['file_name']).name for i in data['images'] if i['id'] == original['image_id'])
        own = [a for a in back['annotations'] if names[a['category_id']] == name and files[a['image_id']] == file]
        best = max(own, key=lambda a: iou(a['bbox'], original['bbox']))
        # Masks become outlines through the centres of pixels in forms without masks.
        assert iou(best['bbox'], original['bbox']) > (0.9 if original['id'] == 2 else 0.999)
        assert bool(best.get('segmentation')) == bool(original.get('segmentation'))


@pytest.mark.parametrize('form', WRITERS)
def test_keypoints_there_and_back(tmp_path, form):
    draw(tmp_path / 'images/a.jpg')
    points = [12, 22, 2, 20, 30, 1 if form in ('yolo', 'labelme', 'cvat') else 2, 0, 0, 0]
    data = dict(images=[dict(id=1, file_name='a.jpg', width=100, height=60)],
                categories=[dict(id=1, name='person', keypoints=['nose', 'hand', 'foot'], skeleton=[])],
                annotations=[dict(id=1, image_id=1, category_id=1, bbox=[10, 20, 30, 20], area=600, iscrowd=0,
                                  keypoints=points, num_keypoints=2)])
    format_module(form).write(data, tmp_path / 'out', tmp_path / 'images')
    source = tmp_path / 'out/tasks.json' if form == 'label_studio' else tmp_path / 'out'
    back = as_coco(read_labels(source, options=ReadOptions(images=tmp_path / 'images')), tmp_path)
    kept = back['annotations'][0]['keypoints']
    assert kept[:6] == pytest.approx(points[:6], abs=0.02) and sum(kept[6:]) == 0
    if form not in ('yolo',):  # its numbers have no names
        assert back['categories'][0]['keypoints'][:2] == ['nose', 'hand']


@pytest.mark.parametrize('form', WRITERS)
def test_each_image_has_labels_of_its_own(tmp_path, form):
    """Images of one name in two folders, or with two endings; nothing is written beside the folder."""
    def written(*names):
        data = dict(images=[dict(id=i, file_name=name, width=100, height=60) for i, name in enumerate(names)],
                    categories=[dict(id=1, name='cat')], annotations=[
                        dict(id=i, image_id=i, category_id=1, bbox=[5 + 30 * i, 5, 20, 30], area=600) for i in (0, 1)])
        out = tmp_path / f'out{len(list(tmp_path.iterdir()))}'
        format_module(form).write(data, out, tmp_path / 'images')
        labels = read_labels(out / 'tasks.json' if form == 'label_studio' else out,
                             options=ReadOptions(images=tmp_path / 'images'))
        return {image.path.resolve().relative_to(tmp_path / 'images').as_posix(): round(image.objects[0].bbox[0])
                for image in labels.images}
    for name in ('a/x.png', 'b/x.png', 'x.png', 'x.jpg'):
        draw(tmp_path / 'images' / name)
    assert written('a/x.png', 'b/x.png') == {'a/x.png': 5, 'b/x.png': 35}
    if form in ('cvat', 'label_studio'):
        assert written('x.png', 'x.jpg') == {'x.png': 5, 'x.jpg': 35}
    else:
        with pytest.raises(DataError, match=r"images 0 \('x.png'\) and 1 \('x.jpg'\) would have one label file: ren"):
            written('x.png', 'x.jpg')
    if form == 'label_studio':
        return
    for name in ('../images/x.png', str(tmp_path / 'images/x.png')):
        with pytest.raises(DataError, match='image 0: file_name .* leads out of the folder that is written'):
            written(name, 'a/x.png')
    with pytest.raises(DataError, match=r"it is there with '/' in place of '\\' \(.*/a/x.png\): correct file_name"):
        written('a\\x.png', 'b/x.png')
    assert not list((tmp_path / 'images').rglob('*.txt')) + list((tmp_path / 'images').rglob('*.json'))


def test_predictions_go_to_label_studio_as_predictions(tmp_path):
    data = coco_data(tmp_path)
    for a in data['annotations']:
        a['score'] = 0.75
    format_module('label_studio').write(data, tmp_path, tmp_path / 'images')
    tasks = json.loads((tmp_path / 'tasks.json').read_text())
    assert tasks[0]['predictions'][0]['result'][0]['score'] == 0.75 and 'annotations' not in tasks[0]
    assert '<Label value="dog\'s"/>' in (tmp_path / 'config.xml').read_text()


def test_supervision_reads_what_is_written_and_is_read(tmp_path):
    """YOLO's files by another library's own reader and writer."""
    supervision = pytest.importorskip('supervision', reason='supervision is not installed')
    data = coco_data(tmp_path)
    (tmp_path / 'images/ünder/a b.png').rename(tmp_path / 'images/ü b.png')  # it reads one folder
    data['images'][0]['file_name'] = 'ü b.png'
    format_module('yolo').write(data, tmp_path / 'out', tmp_path / 'images')
    out = tmp_path / 'out'
    read = supervision.DetectionDataset.from_yolo(str(out / 'images/train'), str(out / 'labels/train'),
                                                  str(out / 'data.yaml'), force_masks=True)
    assert read.classes == ['cat', "dog's"] and len(read) == 3

    def boxes(name):
        found = next(one for path, one in read.annotations.items() if Path(path).name == name)
        return sorted((read.classes[i], *(round(float(v)) for v in box)) for i, box in zip(found.class_id, found.xyxy))
    assert boxes('c.jpg') == [("dog's", 5, 5, 25, 35)] and boxes('empty.jpg') == []
    assert boxes('ü b.png')[0] == ('cat', 10, 20, 40, 40) and len(boxes('ü b.png')) == 2

    read.as_yolo(str(tmp_path / 'sv/images'), str(tmp_path / 'sv/labels'), str(tmp_path / 'sv/data.yaml'))
    labels = read_labels(tmp_path / 'sv')
    assert labels.categories == ['cat', "dog's"] and not labels.left_out
    back = {image.path.name: [o.category for o in image.objects] for image in labels.images}
    assert {name: sorted(names) for name, names in back.items()} == {
        'ü b.png': ['cat', 'cat'], 'c.jpg': ["dog's"], 'empty.jpg': []}


# ------------------------------------------------------------------------------- each form's own ways

def yolo(tmp_path, lines, yaml='names: [cat, dog]\ntrain: images\n', name='images/a.jpg'):
    image = draw(tmp_path / name)
    label = Path(str(image).replace('images', 'labels')).with_suffix('.txt')
    label.parent.mkdir(exist_ok=True, parents=True)
    label.write_text(lines)
    (tmp_path / 'data.yaml').write_text(yaml)
    return read_labels(tmp_path)


def test_yolo_lines(tmp_path):
    labels = yolo(tmp_path, '0 0.5 0.5 0.2 0.5\r\n1 0.1 0.1 0.3 0.1 0.3 0.5\n1.0 0.5 0.5 0.1 0.1 0.9\n'
                  '0 0.5 0.5 0.2 0.5\n2 0.5 0.5 0.1 0.1\n0 50 30 10 10\n0 a b c d\n0 0.5 0.5\n\n')
    assert found(labels)[0] == ('cat', (40, 15, 20, 30))
    assert labels.images[0].objects[1].polygons == [pytest.approx([10, 6, 30, 6, 30, 30])]
    assert labels.images[0].objects[2].score == 0.9
    assert dict(labels.left_out) == {
        'the same line again': ['a.txt:4'], 'no class 2 among 2': ['a.txt:5'], 'not numbers': ['a.txt:7'],
        'numbers that are not relative to the image (0 to 1)': ['a.txt:6'],
        '2 numbers after the class: neither a box, a polygon, nor keypoints': ['a.txt:8']}


def test_yolo_one_label_file_of_two_is_told(tmp_path):
    draw(tmp_path / 'images/a.png')
    labels = yolo(tmp_path, '0 0.5 0.5 0.2 0.5\n')
    assert [len(image.objects) for image in labels.images] == [1, 1]
    assert dict(labels.notes) == {'has one label file with a.jpg: objects are taken for both': [
        str(tmp_path / 'images/a.png')]}


def test_yolo_poses(tmp_path):
    labels = yolo(tmp_path, '0 0.5 0.5 0.2 0.5 0.1 0.5 2 0 0 0\n', 'names: {0: p}\ntrain: images\nkpt_shape: [2, 3]\n')
    assert labels.images[0].objects[0].keypoints == [(10, 30, 2), (0, 0, 0)]
    assert labels.keypoints['p'] == ['keypoint_1', 'keypoint_2']


@pytest.mark.parametrize('given', [False, True])
def test_yolo_of_supervision_names_no_splits(tmp_path, given):
    (tmp_path / 'data.yaml').write_text('nc: 2\nnames: [cat, dog]\n')
    (tmp_path / 'labels').mkdir()
    draw(tmp_path / 'images/a.png')
    (tmp_path / 'labels/a.txt').write_text('1 0.5 0.5 0.2 0.5\n')
    labels = read_labels(tmp_path, options=ReadOptions(images=tmp_path / 'images' if given else None))
    assert found(labels) == [('dog', (40, 15, 20, 30))]


def test_yolo_of_roboflow_and_of_darknet(tmp_path):
    one = tmp_path / 'roboflow'
    labels = yolo(one, '0 0.5 0.5 0.2 0.5\n', 'train: ../train/images\nval: ../train/images\nnc: 1\nnames: [cat]\n',
                  'train/images/x.jpg')
    assert labels.images[0].split == 'train' and labels.notes  # the same images as validation: told
    two = tmp_path / 'darknet'
    draw(two / 'obj_train_data/a.png')
    (two / 'obj_train_data/a.txt').write_text('1 0.5 0.5 0.2 0.5\n')
    (two / 'obj.names').write_text('cat\ndog\n')
    (two / 'train.txt').write_text('data/obj_train_data/a.png\n')
    (two / 'obj.data').write_text('classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n')
    assert found(read_labels(two)) == [('dog', (40, 15, 20, 30))]
    three = tmp_path / 'bare'
    draw(three / 'images/val/a.JPG')
    (three / 'labels/val').mkdir(parents=True)
    (three / 'labels/val/a.txt').write_text('0 0.5 0.5 0.2 0.5\n')
    assert recognise(three) == 'yolo'
    with pytest.raises(DataError, match='name them with --classes'):
        read_labels(three)
    labels = read_labels(three, options=ReadOptions(classes=('cat',)))
    assert found(labels) == [('cat', (40, 15, 20, 30))] and labels.images[0].split == 'val'


def test_photos_labelled_without_their_exif_orientation(tmp_path):
    pixels = np.zeros((60, 100, 3), dtype=np.uint8)
    pixels[10:20, 70:90] = 255  # of the photo as stored
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / 'photo.jpg', exif=exif, quality=95)
    shape = dict(label='cat', points=[[70, 10], [90, 20]], shape_type='rectangle', group_id=None, flags={})
    content = dict(version='4', flags={}, shapes=[shape], imagePath='photo.jpg', imageData=None, imageWidth=100,
                   imageHeight=60)
    (tmp_path / 'photo.json').write_text(json.dumps(content))
    labels = read_labels(tmp_path)
    assert labels.images[0].size == (60, 100) and labels.notes
    x, y, w, h = (round(v) for v in labels.images[0].objects[0].bbox)
    upright = cv2.imread(str(tmp_path / 'photo.jpg'))
    assert upright[y:y + h, x:x + w].mean() > 240 and upright.mean() < 20
    content.update(imageWidth=60, imageHeight=100)  # labelled upright, as labelme does since version 3
    (tmp_path / 'photo.json').write_text(json.dumps(content))
    assert read_labels(tmp_path).images[0].objects[0].bbox == (70, 10, 20, 10)


def test_cvat_shapes(tmp_path):
    draw(tmp_path / 'a.png')
    (tmp_path / 'annotations.xml').write_text('''<annotations><version>1.1</version><meta><task><labels>
      <label><name>cat</name></label><label><name>body</name><type>skeleton</type></label>
      <label><name>head</name><type>points</type><parent>body</parent></label>
      <label><name>tail</name><type>points</type><parent>body</parent></label></labels></task></meta>
      <image id="0" name="a.png" width="100" height="60">
      <box label="cat" xtl="40" ytl="20" xbr="60" ybr="30" rotation="90" group_id="0">
      <attribute name="is_crowd">true</attribute></box>
      <mask label="cat" rle="2, 3, 5" left="10" top="20" width="5" height="2"/>
      <polygon label="cat" points="1,1;9,1;9,9" group_id="4"/>
      <polygon label="cat" points="20,1;29,1;29,9" group_id="4"/>
      <skeleton label="body"><points label="tail" points="7,8" occluded="1"/>
      <points label="head" outside="1" points="3,4"/>
      <points label="head" points="3,4"/></skeleton>
      <polyline label="cat" points="1,1;2,2"/><tag label="cat"/></image></annotations>''')
    labels = read_labels(tmp_path)
    data = as_coco(labels, tmp_path)
    boxes = [a['bbox'] for a in data['annotations']]
    assert boxes[0] == pytest.approx([45, 15, 10, 20]) and data['annotations'][0]['iscrowd'] == 1
    mask = decode_rle(dict(data['annotations'][1]['segmentation']))
    assert mask[20, 12:15].all() and mask.sum() == 3
    assert len(data['annotations'][2]['segmentation']) == 2
    assert data['annotations'][3]['keypoints'] == [3, 4, 2, 7, 8, 1]
    assert list(labels.left_out) == ["a 'polyline' has no area"]


def test_cvat_tracks(tmp_path):
    draw(tmp_path / 'frames/frame_000002.png')
    (tmp_path / 'annotations.xml').write_text(
        '<annotations><version>1.1</version><meta><task><labels><label><name>cat</name></label></labels>'
        '</task></meta><track id="0" label="cat"><box frame="2" outside="0" xtl="1" ytl="2" xbr="11" ybr="22"/>'
        '<box frame="3" outside="1" xtl="1" ytl="2" xbr="11" ybr="22"/></track></annotations>')
    assert found(read_labels(tmp_path)) == [('cat', (1, 2, 10, 20))]


def region(kind, value, **more):
    return dict(type=kind, value=value, original_width=100, original_height=60, image_rotation=0, **more)


def test_label_studio(tmp_path):
    draw(tmp_path / 'media/my photo.jpg')
    results = [
        region('rectanglelabels', dict(x=10, y=50, width=20, height=10, rotation=90, rectanglelabels=['cat']), id='a'),
        region('rectangle', dict(x=10, y=50, width=20, height=10, rotation=0), id='b'),
        region('labels', dict(x=10, y=50, width=20, height=10, labels=['dog']), id='b'),
        region('ellipselabels', dict(x=50, y=50, radiusX=10, radiusY=10, ellipselabels=['cat']), id='c'),
        region('keypointlabels', dict(x=12, y=52, width=1, keypointlabels=['nose']), id='k', parentID='b'),
        dict(type='choices', value=dict(choices=['good']), id='z')]
    tasks = [dict(id=5, data=dict(image='/data/upload/1/12ab34cd-my%20photo.jpg'), annotations=[
        dict(was_cancelled=True, result=[]), dict(was_cancelled=False, result=results)]),
        dict(id=6, data=dict(image='/data/upload/1/gone.jpg'), annotations=[])]
    (tmp_path / 'export.json').write_text(json.dumps(tasks))
    assert recognise(tmp_path / 'export.json') == 'label_studio'
    labels = read_labels(tmp_path / 'export.json')
    boxes = [a['bbox'] for a in as_coco(labels, tmp_path)['annotations']]
    assert boxes[0] == pytest.approx([4, 30, 6, 20])  # turned about its first corner
    assert boxes[1] == [10, 30, 20, 6] and labels.images[0].objects[1].category == 'dog'
    assert boxes[2] == pytest.approx([40, 24, 20, 12], abs=0.1)
    assert labels.images[0].objects[1].keypoints == [(12, pytest.approx(31.2), 2)]
    assert list(labels.left_out) == ['the image file is missing']
    mini = [dict(id=5, image='/data/upload/1/12ab34cd-my%20photo.jpg', annotator=1, label=[
        dict(x=10, y=50, width=20, height=10, rotation=0, rectanglelabels=['cat'], original_width=100,
             original_height=60)])]
    (tmp_path / 'export.json').write_text(json.dumps(mini))
    assert found(read_labels(tmp_path / 'export.json')) == [('cat', (10, 30, 20, 6))]


def test_via(tmp_path):
    draw(tmp_path / 'a.jpg')
    regions = [dict(shape_attributes=dict(name='rect', x=1, y=2, width=10, height=20),
                    region_attributes=dict(kind='cat', color='red')),
               dict(shape_attributes=dict(name='polygon', all_points_x=[1, 9, 9], all_points_y=[1, 1, 9]),
                    region_attributes=dict(kind='dog', color='red')),
               dict(shape_attributes=dict(name='point', cx=1, cy=1), region_attributes=dict(kind='dog'))]
    entry = dict(filename='a.jpg', size=1, file_attributes={}, regions=regions)
    (tmp_path / 'via.json').write_text(json.dumps({'_via_settings': {}, '_via_img_metadata': {'a.jpg1': entry}}))
    assert recognise(tmp_path) == 'via'
    with pytest.raises(DataError, match='color, kind.*--attribute'):
        read_labels(tmp_path)
    labels = read_labels(tmp_path, options=ReadOptions(attribute='kind'))
    assert [name for name, _ in found(labels)] == ['cat', 'dog'] and labels.left_out
    (tmp_path / 'via.json').unlink()
    (tmp_path / 'via.csv').write_text(
        'filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n'
        'a.jpg,1,"{}",1,0,"{""name"":""rect"",""x"":1,""y"":2,""width"":10,""height"":20}","{""class"":""cat""}"\n')
    assert found(read_labels(tmp_path)) == [('cat', (1, 2, 10, 20))]


def test_open_images(tmp_path):
    draw(tmp_path / 'images/0a1b.jpg')
    (tmp_path / 'class-descriptions-boxable.csv').write_text('/m/01,Cat\n')
    (tmp_path / 'validation-annotations-bbox.csv').write_text(
        'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n'
        '0a1b,x,/m/01,1,0.1,0.5,0.1,0.6,0,0,1,0,0\n')
    labels = read_labels(tmp_path)
    assert found(labels) == [('Cat', (10, 6, 40, 30))]
    assert labels.images[0].objects[0].crowd and labels.images[0].split == 'val'


def test_voc(tmp_path):
    voc_folder.draw(tmp_path, ['ä b', 'c'], split='train')
    voc_folder.draw(tmp_path, ['d'], split='val', seed=1)
    voc_folder.write_xml(tmp_path / 'Annotations/d.xml', [dict(name='kätzchen', box=(1, 1, 40, 30), difficult=1)])
    voc_folder.write_xml(tmp_path / 'Annotations/gone.xml', [])
    assert recognise(tmp_path) == 'voc'
    labels = read_labels(tmp_path)
    assert labels.categories == ['cat', 'dog', 'kätzchen'] and list(labels.left_out) == ['the image file is missing']
    assert [(i.path.name, i.split, len(i.objects)) for i in labels.images] == [
        ('c.jpg', 'train', 2), ('d.jpg', 'val', 1), ('ä b.jpg', 'train', 2)]
    last, = labels.images[1].objects
    assert last.bbox == (0, 0, 39, 29) and last.difficult  # its pixels count from 1
    assert next(a for a in as_coco(labels, tmp_path)['annotations'] if a['category_id'] == 3)['ignore'] == 1
    assert recognise(tmp_path / 'Annotations/c.xml') == 'voc'


@pytest.mark.parametrize(('text', 'box'), [
    ('filename,xmin,ymin,xmax,ymax,class\na.jpg,1,2,11,22,cat\n', (1, 2, 10, 20)),
    ('image;label;x;y;w;h\na.jpg;cat;1;2;10;20\n', (1, 2, 10, 20)),
    ('filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,100,60,cat,1,2,11,22\n', (1, 2, 10, 20)),
    ('file_name,class,xmin,ymin,xmax,ymax\na.jpg,cat,0.1,0.1,0.5,0.6\n', (10, 6, 40, 30))])
def test_csv(tmp_path, text, box):
    draw(tmp_path / 'a.jpg')
    (tmp_path / 'labels.csv').write_text(text)
    assert recognise(tmp_path) == 'csv'
    assert found(read_labels(tmp_path)) == [('cat', box)]


def test_masks_as_pngs(tmp_path):
    draw(tmp_path / 'images/a.jpg')
    ids = np.zeros((60, 100), dtype=np.uint16)
    ids[10:20, 10:30], ids[40:50, 50:60] = 1001, 2001
    (tmp_path / 'masks').mkdir()
    cv2.imwrite(str(tmp_path / 'masks/a_mask.png'), ids)
    labels = read_labels(tmp_path, options=ReadOptions(classes=('no', 'cat', 'dog'), label_divisor=1000))
    assert [a['bbox'] for a in as_coco(labels, tmp_path)['annotations']] == [[10, 10, 20, 10], [50, 40, 10, 10]]
    assert [o.category for o in labels.images[0].objects] == ['cat', 'dog']
    one = tmp_path / 'cells/nucleus'
    draw(one / 'images/nucleus.png')
    (one / 'masks').mkdir()
    for i, part in enumerate((1001, 2001)):
        cv2.imwrite(str(one / f'masks/{i}.png'), (ids == part).astype(np.uint8) * 255)
    labels = read_labels(tmp_path / 'cells', 'instance_pngs', ReadOptions(classes=('cell',)))
    assert [o.category for o in labels.images[0].objects] == ['cell', 'cell']


# ------------------------------------------------------------------------------- splits, objects without area

def test_split_keeps_copies_together_and_shows_every_class(tmp_path):
    images = []
    for i in range(20):
        path = draw(tmp_path / f'{i}.png', seed=i // 2)  # each photo twice
        names = {'cat', 'rare' if i in (0, 5) else 'cat', 'dog'}
        images.append(LabelledImage(path, (100, 60), [LabelledObject(name, (1, 1, 5, 5)) for name in sorted(names)]))
    train, val = split_images(images, 0.2, seed=3)
    assert len(train) + len(val) == 20 and 4 <= len(val) <= 6

    def photos(part):
        return {int(image.path.stem) // 2 for image in part}
    assert not photos(train) & photos(val)
    for part in (train, val):
        assert {o.category for image in part for o in image.objects} == {'cat', 'rare', 'dog'}
    assert split_images(images, 0.2, seed=3)[1] == val


def test_objects_without_area_are_counted(tmp_path):
    labels = yolo(tmp_path, '0 0.5 0.5 0 0.1\n0 1.0 1.0 0.02 0.02\n')
    data = as_coco(labels, tmp_path)
    assert [a['bbox'] for a in data['annotations']] == [[99, 59.4, 1, 0.6]]
    assert labels.left_out == {'no area inside the image': ['a.jpg: cat']}


def test_unknown_forms(tmp_path):
    (tmp_path / 'notes.txt').write_text('hello')
    with pytest.raises(DataError, match='none of the known formats'):
        recognise(tmp_path)
    with pytest.raises(DataError, match="did you mean 'yolo'"):
        read_labels(tmp_path, 'yolo8')
    with pytest.raises(DataError, match='no such file or folder'):
        recognise(tmp_path / 'missing')
    for name in READERS:
        assert callable(format_module(name).read)


def test_a_box_of_joined_parts_is_around_all_of_them():
    from boxdet.datasets.label_formats.labels import LabelledObject, encode_mask
    mask = np.zeros((40, 60), np.uint8)
    mask[30:35, 50:55] = 1
    parts = [dict(polygons=[[1., 1, 9, 1, 9, 9]]), dict(bbox=(20., 5, 10, 8), crowd=True), dict(rle=encode_mask(mask))]
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        whole = LabelledObject('cat', **{key: list(value) if key == 'polygons' else value
                                         for key, value in parts[order[0]].items()})
        for i in order[1:]:
            whole.join(LabelledObject('cat', **parts[i]))
        assert whole.bbox == (1, 1, 54, 34) and whole.crowd and whole.polygons == parts[0]['polygons']
    whole = LabelledObject('cat', polygons=[[1., 1, 9, 1, 9, 9]])
    whole.join(LabelledObject('cat', polygons=[[2., 2, 9, 2, 9, 9]]))
    assert whole.bbox is None and len(whole.polygons) == 2
