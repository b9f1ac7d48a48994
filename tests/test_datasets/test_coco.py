"""CocoDataset: annotations, classes, filtering, and one clear line for each kind of broken file."""
import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from boxdet.datasets import build_dataset
from boxdet.datasets.api_wrappers import COCO
from boxdet.datasets.class_names import COCO_CATEGORY_IDS, COCO_CLASSES
from boxdet.datasets.coco import CocoDataset
from boxdet.datasets.files import Records
from boxdet.errors import ConfigError, DataError

CATEGORIES = [dict(id=3, name='date'), dict(id=1, name='fig'), dict(id=7, name='hazelnut')]


def annotation(number, image=1, category=3, box=(10, 20, 30, 40), **more):
    return dict(id=number, image_id=image, category_id=category, bbox=list(box), area=box[2] * box[3], iscrowd=0,
                segmentation=[[box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]], **more)


def image(number, width=100, height=80):
    return dict(id=number, file_name=f'{number}.jpg', width=width, height=height)


def write(tmp_path, annotations, images=None, categories=CATEGORIES, **more):
    path = tmp_path / 'instances.json'
    data = dict(images=images or [image(1), image(2, 60, 90)], annotations=annotations, categories=categories, **more)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return str(path)


def open_dataset(path, **more):
    return CocoDataset(path, [], **{'classes': ('date', 'fig', 'hazelnut'), **more})


def test_annotations_are_2x(tmp_path):
    crowd = {**annotation(5, box=(0, 0, 50, 50)), 'iscrowd': 1, 'segmentation': dict(size=[80, 100], counts=[8000])}
    path = write(tmp_path, [annotation(1), annotation(2, category=1, box=(1.5, 2.5, 3, 4)), crowd,
                            annotation(9, image=2, category=7)])
    dataset = open_dataset(path)
    info = dataset.get_ann_info(0)
    assert info['bboxes'].dtype == np.float32 and info['labels'].dtype == np.int64
    assert info['bboxes'].tolist() == [[10, 20, 40, 60], [1.5, 2.5, 4.5, 6.5]]
    assert info['labels'].tolist() == [0, 1]
    assert info['bboxes_ignore'].tolist() == [[0, 0, 50, 50]]
    assert info['masks'] == [annotation(1)['segmentation'], annotation(2, box=(1.5, 2.5, 3, 4))['segmentation']]
    assert info['seg_map'] == '1.png'
    assert dataset.get_cat_ids(0) == [3, 1, 3]
    assert dataset.img_info(1)['filename'] == '2.jpg' and dataset.data_infos[0]['width'] == 100
    assert dataset.flag.tolist() == [1, 0]
    assert dataset.img_ids == [1, 2] and dataset.cat_ids == [3, 1, 7]
    assert dataset.metainfo['CLASSES'] == ('date', 'fig', 'hazelnut') and len(dataset.metainfo['PALETTE']) == 3


def test_class_maps_of_names_with_dots_and_without(tmp_path):
    names = ['a.b/1.jpg', 'plain']
    images = [{**image(i + 1), 'file_name': name} for i, name in enumerate(names)]
    dataset = open_dataset(write(tmp_path, [annotation(1), annotation(2, image=2)], images), seg_suffix='_map.png')
    assert [dataset.get_ann_info(i)['seg_map'] for i in (0, 1)] == ['a.b/1_map.png', 'plain_map.png']


def test_labels_follow_the_order_of_classes(tmp_path):
    path = write(tmp_path, [annotation(1), annotation(2, category=1), annotation(3, category=7)])
    dataset = open_dataset(path, classes=['hazelnut', 'date'])
    assert dataset.CLASSES == ('hazelnut', 'date') and dataset.cat_ids == [7, 3]
    assert dataset.get_ann_info(0)['labels'].tolist() == [1, 0]
    names = tmp_path / 'names.txt'
    names.write_text('fig\n')
    assert open_dataset(path, classes=str(names)).get_ann_info(0)['labels'].tolist() == [0]


def test_wrong_classes(tmp_path):
    path = write(tmp_path, [annotation(1)])
    with pytest.raises(ConfigError, match=r"classes=\('date',\)"):
        open_dataset(path, classes='date')
    with pytest.raises(DataError, match="class 'hazelnutt'.*instances.json.*did you mean 'hazelnut'"):
        open_dataset(path, classes=('date', 'hazelnutt'))
    with pytest.raises(DataError, match='none of the 80 classes.*date, fig, hazelnut'):
        open_dataset(path, classes=None)
    with pytest.raises(ConfigError, match="'fig' more than once"):
        open_dataset(path, classes=('fig', 'fig'))
    with pytest.raises(ConfigError, match='list of names'):
        open_dataset(path, classes=(1, 2))


def test_a_file_with_some_of_the_default_classes(tmp_path):
    path = write(tmp_path, [annotation(1, category=18)], categories=[dict(id=18, name='dog')])
    dataset = open_dataset(path, classes=None)
    assert dataset.get_ann_info(0)['labels'].tolist() == [COCO_CLASSES.index('dog')]
    assert len(dataset.cat_ids) == len(set(dataset.cat_ids)) == 80
    assert len(dataset.filter_report['missing_classes']) == 79


def test_filtering(tmp_path):
    images = [image(1), image(2), image(3), image(4, 20, 90), image(5)]
    path = write(tmp_path, [annotation(1), annotation(2, image=3, category=7), annotation(3, image=4),
                            annotation(4, image=5, box=(3, 3, 0, 8)), annotation(5, image=99)], images)
    dataset = open_dataset(path, classes=('date', 'fig'))
    assert dataset.img_ids == [1, 5]  # as in 2.x an object too small to train on keeps its image
    assert len(dataset.get_ann_info(1)['bboxes']) == 0
    report = dataset.filter_report
    assert (report['images'], report['kept'], report['empty'], report['without_wanted_class'], report['too_small'],
            report['without_image'], report['degenerate_boxes']) == (5, 2, 1, 1, 1, 1, [4])
    assert len(open_dataset(path, filter_empty_gt=False)) == 4
    assert len(open_dataset(path, min_size=10)) == 4
    assert len(open_dataset(path, test_mode=True)) == 5


@pytest.mark.parametrize('box', [(10, 10, 0, 5), (10, 10, -4, 5), (10, 10, 5, 0.5), (200, 10, 5, 5), (-9, 10, 5, 5)])
def test_degenerate_boxes_are_dropped_and_counted(tmp_path, box):
    dataset = open_dataset(write(tmp_path, [annotation(1), {**annotation(2), 'bbox': list(box)},
                                            {**annotation(3), 'area': 0}, annotation(4, ignore=True)]))
    assert len(dataset.get_ann_info(0)['labels']) == 1
    assert dataset.filter_report['degenerate_boxes'] == [2, 3]


@pytest.mark.parametrize('broken, message', [
    (dict(bbox=[1, 2, float('nan'), 4]), 'annotation 17 has a box that is not finite'),
    (dict(bbox=[1, 2, 3]), "annotation 17 has no 'bbox' of four numbers"),
    (dict(bbox=None), "annotation 17 has no 'bbox'"),
    (dict(bbox=['a', 2, 3, 4]), "annotation 17 has no 'bbox'"),
    (dict(category_id=55), 'annotation 17 is of category 55, which is not among'),
    (dict(id=1), 'annotation id 1 is used more than once'),
])
def test_broken_annotations_are_named(tmp_path, broken, message):
    with pytest.raises(DataError, match=message) as error:
        open_dataset(write(tmp_path, [annotation(1), {**annotation(17), **broken}]))
    assert 'instances.json' in str(error.value)


def test_broken_files(tmp_path):
    with pytest.raises(DataError, match='image id 1 is used more than once'):
        open_dataset(write(tmp_path, [], [image(1), image(1)]))
    incomplete = annotation(17)
    del incomplete['category_id']
    with pytest.raises(DataError, match="annotation 17 has no 'category_id'"):
        open_dataset(write(tmp_path, [incomplete]))
    with pytest.raises(DataError, match="no 'images'"):
        path = tmp_path / 'a.json'
        path.write_text('{"annotations": []}')
        open_dataset(str(path))
    with pytest.raises(DataError, match='image 3 has no .width'):
        open_dataset(write(tmp_path, [], [dict(id=3, file_name='a.jpg')]))
    with pytest.raises(DataError, match=r"images\[0\] needs"):
        open_dataset(write(tmp_path, [], [dict(id=3)]))
    with pytest.raises(DataError, match="no 'annotations'"):
        open_dataset(write(tmp_path, None))
    with pytest.raises(DataError, match='no such file'):
        open_dataset(str(tmp_path / 'nothing.json'))


TO_COCO = 'tools/dataset_converters/to_coco.py converts it'
TASK = dict(id=1, data=dict(image='/data/upload/1.jpg'))


@pytest.mark.parametrize('content, form, remedy', [
    (dict(version='6.3', flags={}, shapes=[dict(label='date', points=[[1, 2], [3, 4]])], imagePath='1.jpg'),
     'labelme', TO_COCO),
    ({'_via_settings': {}, '_via_img_metadata': {'1.jpg99': dict(filename='1.jpg', regions=[])}}, 'VIA', TO_COCO),
    ({'1.jpg99': dict(filename='1.jpg', size=99, regions=[], file_attributes={})}, 'VIA', TO_COCO),
    ([dict(TASK, annotations=[dict(result=[])])], 'Label Studio', TO_COCO),
    ([dict(TASK, predictions=[dict(result=[])])], 'Label Studio', TO_COCO),
    ([dict(id=1, image='/data/upload/1.jpg', label=[], annotator=1, annotation_id=3)], 'Label Studio', TO_COCO),
    ([dict(image_id=1, category_id=3, bbox=[1, 2, 3, 4], score=0.5)], 'a list of results', "under 'annotations'"),
    ([annotation(1)], 'a list of annotations', "under 'annotations'"),
    ([dict(filename='1.jpg', width=100, height=80, ann=dict(bboxes=[[1, 2, 3, 4]], labels=[0]))], 'middle format',
     "type='CustomDataset' reads"),
    (dict(type='FeatureCollection', features=[dict(type='Feature', geometry=None)]), 'GeoJSON',
     'convert them to pixels of the images')])
@pytest.mark.parametrize('test_mode', [False, True])
def test_files_of_another_form_are_named(tmp_path, content, form, remedy, test_mode):
    (tmp_path / 'labels.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"labels\.json: no 'images' list; .* not a COCO annotation file but ") as told:
        open_dataset(str(tmp_path / 'labels.json'), test_mode=test_mode)
    assert form in str(told.value) and remedy in str(told.value) and '\n' not in str(told.value)


@pytest.mark.parametrize('name, text', [
    ('annotations.xml', '<annotations><version>1.1</version></annotations>'), ('1.txt', '0 0.5 0.5 0.2 0.5\n'),
    ('labels.csv', 'filename,class,xmin,ymin,xmax,ymax\n'), ('data.yaml', 'names: [date]\n')])
def test_files_that_are_no_json_name_the_converter(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}:1: not valid JSON .* are converted by tools/.*/to_coco\.py$"):
        open_dataset(str(tmp_path / name))


def test_a_compressed_file_is_named(tmp_path):
    packed = tmp_path / 'instances.json.gz'
    packed.write_bytes(gzip.compress(Path(write(tmp_path, [annotation(1)])).read_bytes()))
    with pytest.raises(DataError, match=r'instances\.json\.gz: compressed by gzip: unpack it \(gunzip\)$'):
        open_dataset(str(packed))


def test_a_file_without_annotations_serves_for_testing(tmp_path):
    dataset = open_dataset(write(tmp_path, None), test_mode=True)
    assert len(dataset) == 2 and dataset.cat_ids == [3, 1, 7] and not dataset.coco.anns
    bare = open_dataset(write(tmp_path, None, categories=None), test_mode=True, classes=None)
    assert bare.cat_ids == list(COCO_CATEGORY_IDS) and len(bare.cat_ids) == 80 and bare.cat_ids[-1] == 90
    assert bare.coco.getImgIds() == [1, 2]


def test_in_test_mode_masks_are_kept_once(tmp_path):
    """As arrays, in ``coco`` only; what they are is the same, also in a worker that gets no ``coco``."""
    path = write(tmp_path, [annotation(4, image=2), annotation(1), annotation(2, category=1, box=(1.5, 2.5, 3, 4))])
    training, testing = open_dataset(path), open_dataset(path, test_mode=True)
    for dataset in (testing, pickle.loads(pickle.dumps(testing))):
        assert [dataset.get_ann_info(i)['masks'] for i in (0, 1)] == [training.get_ann_info(i)['masks'] for i in (0, 1)]
        polygon, = dataset.coco.anns[2]['segmentation']
        assert polygon.dtype == np.float64 and polygon.tolist() == [1.5, 2.5, 4.5, 2.5, 1.5, 6.5]
        assert dataset.coco.annToRLE(dataset.coco.anns[2]) == training.coco.annToRLE(training.coco.anns[2])


@pytest.mark.parametrize('segmentation', [
    [['1', '2', '3', '4', '5', '6']], [1, 2, 3, 4], [], [[10**400, 1, 2, 3, 4, 5]], None, 'text'])
def test_masks_that_are_no_polygons_stay_as_they_are(tmp_path, segmentation):
    path = write(tmp_path, [{**annotation(1), 'segmentation': segmentation}])
    assert open_dataset(path, test_mode=True).coco.anns[1]['segmentation'] == segmentation
    assert open_dataset(path, test_mode=True).get_ann_info(0)['masks'] == [segmentation if segmentation != [] else None]


class OwnReader(CocoDataset):
    """``load_annotations`` as mmdetection 2.x's plug-ins write it."""

    def load_annotations(self, ann_file):
        self.coco = COCO(ann_file)
        self.cat_ids = self.coco.get_cat_ids(cat_names=self.CLASSES)
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        self.img_ids = self.coco.get_img_ids()
        infos = []
        for image_id in self.img_ids:
            info = self.coco.load_imgs([image_id])[0]
            info['filename'] = info['file_name']
            infos.append(info)
        return infos


def same_annotations(one, other):
    return len(one) == len(other) and all(
        one.get_ann_info(i)[key] == other.get_ann_info(i)[key] if isinstance(one.get_ann_info(i)[key], (list, str))
        else np.array_equal(one.get_ann_info(i)[key], other.get_ann_info(i)[key])
        for i in range(len(one)) for key in ('bboxes', 'labels', 'bboxes_ignore', 'masks', 'seg_map', 'names'))


@pytest.mark.parametrize('test_mode', [False, True])
def test_load_annotations_as_2x_subclasses_write_it(tmp_path, test_mode):
    crowd = {**annotation(5, box=(0, 0, 50, 50)), 'iscrowd': 1, 'segmentation': dict(size=[80, 100], counts=[8000])}
    images = [image(4), image(1), image(2, 60, 90), image(3, 20, 20)]
    path = write(tmp_path, [annotation(1), annotation(2, category=1, box=(1.5, 2.5, 3, 4)), crowd,
                            annotation(9, image=2, category=7)], images)
    dataset = OwnReader(path, [], classes=('date', 'fig', 'hazelnut'), test_mode=test_mode)
    usual = open_dataset(path, test_mode=test_mode)
    assert dataset.img_ids == usual.img_ids
    assert usual.img_ids == ([4, 1, 2, 3] if test_mode else [1, 2])
    if not test_mode:
        assert dataset.get_ann_info(0)['labels'].tolist() == [0, 1] and dataset.get_cat_ids(1) == [7]
        assert same_annotations(dataset, usual)
        assert dataset.filter_report.items() <= usual.filter_report.items()
    assert set(dataset.coco.imgToAnns) == {1, 2} and dataset.coco.img_ann_map is dataset.coco.imgToAnns
    assert pickle.loads(pickle.dumps(dataset)).coco.imgs.keys() == dataset.coco.imgs.keys()


def test_what_a_subclass_changes_in_what_super_read_counts(tmp_path):
    path = write(tmp_path, [annotation(1), annotation(2, category=1), annotation(3, image=2, category=7)])

    class Merged(CocoDataset):
        CLASSES = ('date', 'fruit')

        def load_annotations(self, ann_file):
            infos = super().load_annotations(ann_file)
            self.cat2label = {3: 0, 1: 1, 7: 1}
            return infos

    merged = Merged(path, [])
    assert [merged.get_ann_info(i)['labels'].tolist() for i in range(2)] == [[0, 1], [1]]
    assert len(merged.get_ann_info(1)['masks']) == 1 and merged.get_ann_info(1)['masks'][0]

    class Repeated(CocoDataset):
        def load_annotations(self, ann_file):
            first, second = super().load_annotations(ann_file)
            return [second, dict(first, weather='rain'), second]

    repeated = Repeated(path, [], classes=('date', 'fig', 'hazelnut'))
    assert [repeated.get_ann_info(i)['labels'].tolist() for i in range(3)] == [[2], [0, 1], [2]]
    assert repeated.img_ids == [2, 1, 2] and repeated.img_info(1)['weather'] == 'rain'

    class Filtered(CocoDataset):
        def _filter_imgs(self, min_size=32):
            kept = [i for i in super()._filter_imgs(min_size) if self.data_infos[i]['width'] < 100]
            self.img_ids = [self.img_ids[i] for i in kept]
            return kept

    filtered = Filtered(path, [], classes=('date', 'fig', 'hazelnut'))
    assert filtered.img_ids == [2] and filtered.get_ann_info(0)['labels'].tolist() == [2]

    class Foreign(CocoDataset):
        def load_annotations(self, ann_file):
            return self.infos

    Foreign.infos = [dict(filename='a.jpg', width=64, height=64)]
    with pytest.raises(DataError, match='Foreign.load_annotations neither called super.* nor set self.coco'):
        Foreign(path, [])
    assert len(Foreign(path, [], test_mode=True)) == 1

    class Unknown(CocoDataset):
        def load_annotations(self, ann_file):
            return [*super().load_annotations(ann_file), self.more]

    for more, message in ((dict(id=9, filename='x.jpg'), 'returned image 9, which is not in the file'),
                          (dict(filename='x.jpg'), "entry 2 of what Unknown.load_annotations .* needs an 'id'")):
        Unknown.more = more
        with pytest.raises(DataError, match=message):
            Unknown(path, [], classes=('date', 'fig', 'hazelnut'))


def test_data_root_is_joined(tmp_path):
    write(tmp_path, [annotation(1)])
    dataset = build_dataset(dict(type='CocoDataset', ann_file='instances.json', img_prefix='images', pipeline=[],
                                 data_root=str(tmp_path), seg_prefix='/abs', classes=('date',)))
    assert dataset.img_prefix == str(tmp_path / 'images') and dataset.seg_prefix == '/abs' and len(dataset) == 1


def test_coco_mini_equals_pycocotools(shared_data, capsys):
    root = shared_data / 'coco_mini'
    dataset = CocoDataset(str(root / 'annotations/instances_train2017.json'), [], img_prefix=str(root / 'train2017'))
    assert dataset.filter_report['images'] == 100 and dataset.filter_report['empty'] == 2 and len(dataset) == 98
    for i, image_id in enumerate(dataset.img_ids):
        expected = [a for a in dataset.coco.imgToAnns[image_id] if not a['iscrowd']]
        found = dataset.get_ann_info(i)
        assert found['labels'].tolist() == [COCO_CATEGORY_IDS.index(a['category_id']) for a in expected]
        xywh = np.array([a['bbox'] for a in expected]).reshape(-1, 4)
        assert np.allclose(found['bboxes'], np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), atol=1e-4)
        assert found['masks'] == [a['segmentation'] for a in expected]
    assert capsys.readouterr().out == ''


def test_stock_pipelines_on_coco_mini(shared_data):
    root = shared_data / 'coco_mini'
    norm = dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
    train = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
             dict(type='Resize', img_scale=(1333, 800), keep_ratio=True), dict(type='RandomFlip', flip_ratio=0.5), norm,
             dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'),
             dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])]
    dataset = CocoDataset(str(root / 'annotations/instances_train2017.json'), train, img_prefix=str(root / 'train2017'))
    sample = dataset[3]
    assert sample['img'].dtype == torch.float32 and sample['img'].shape[1] % 32 == sample['img'].shape[2] % 32 == 0
    assert sample['gt_masks'].height == sample['img'].shape[1] and len(sample['gt_masks']) == len(sample['gt_labels'])
    boxes = torch.from_numpy(sample['gt_masks'].bboxes())
    assert (boxes - sample['gt_bboxes']).abs().max() < 4  # the masks moved with the boxes


def test_missing_image_is_named(tmp_path):
    dataset = CocoDataset(write(tmp_path, [annotation(1)]), [dict(type='LoadImageFromFile')], classes=('date',),
                          img_prefix=str(tmp_path))
    with pytest.raises(DataError, match='1.jpg: no such file'):
        dataset[0]


def test_records():
    items = [dict(a=1, b=[1.5, 'x']), None, [3]]
    records = Records(items)
    assert list(records) == items and records[-1] == [3] and records[1:] == items[1:] and records.nbytes > 0
    records[0]['a'] = 2
    assert records[0]['a'] == 1
    with pytest.raises(IndexError):
        records[3]
    assert len(Records([])) == 0


def test_some_images_for_a_quick_look(tmp_path):
    images = [image(i) for i in range(1, 11)]
    path = write(tmp_path, [annotation(i, image=i) for i in range(1, 11)], images=images)
    for test_mode in (False, True):
        dataset = open_dataset(path, max_images=4, test_mode=test_mode)
        assert [info['id'] for info in dataset.data_infos] == dataset.img_ids == [1, 3, 6, 8]
        assert dataset.get_ann_info(2)['names'][0].endswith('annotation 6')
        assert (dataset.filter_report['images'], dataset.filter_report['beyond_max_images']) == (10, 6)
        assert len(open_dataset(path, max_images=99, test_mode=test_mode)) == 10
    with pytest.raises(ConfigError, match='max_images is a whole number, 1 at least, not 0'):
        open_dataset(path, max_images=0)
