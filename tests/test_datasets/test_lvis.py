"""LVIS data sets: where images lie in v0.5 and v1, classes from the file, 1203 of them, and odd files."""
import json

import numpy as np
import pytest
from torch import nn

from boxdet.datasets import DATASETS, build_dataset
from boxdet.datasets.lvis import LVISDataset, LVISV05Dataset, LVISV1Dataset
from boxdet.engine.preflight import check_num_classes
from boxdet.errors import ConfigError, DataError


def lvis(images=None, annotations=None, classes=3):
    images = images or [dict(id=1, coco_url='http://images.cocodataset.org/train2017/000000391895.jpg'),
                        dict(id=2, coco_url='http://images.cocodataset.org/val2017/000000000009.jpg')]
    entry = dict(width=60, height=50, neg_category_ids=[], not_exhaustive_category_ids=[])
    return dict(
        images=[{**entry, **image} for image in images],
        categories=[dict(id=k + 1, name=f'thing_{k}', frequency='rcf'[k % 3], synset='x') for k in range(classes)],
        annotations=annotations if annotations is not None else [
            dict(id=1, image_id=1, category_id=2, bbox=[1, 2, 20, 30], area=500, segmentation=[[1, 2, 21, 2, 21, 32]]),
            dict(id=2, image_id=2, category_id=3, bbox=[1, 2, 20, 30], area=500, segmentation=[[1, 2, 21, 2, 21, 32]])])


def write(tmp_path, data, name='lvis.json'):
    (tmp_path / name).write_text(json.dumps(data))
    return str(tmp_path / name)


def test_names_of_2x():
    assert DATASETS.get('LVISDataset') is DATASETS.get('LVISV05Dataset') is LVISDataset is LVISV05Dataset
    assert DATASETS.get('LVISV1Dataset') is LVISV1Dataset and issubclass(LVISV1Dataset, LVISDataset)


def test_v1_images_lie_where_their_url_says(tmp_path):
    dataset = LVISV1Dataset(write(tmp_path, lvis()), [], img_prefix='data/lvis_v1/')
    assert [i['filename'] for i in dataset.data_infos] == ['train2017/000000391895.jpg', 'val2017/000000000009.jpg']
    other = lvis([dict(id=1, file_name='mine/1.jpg'),
                  dict(id=2, coco_url='https://images.cocodataset.org/val2017/7.jpg')])
    dataset = LVISV1Dataset(write(tmp_path, other), [])
    assert [i['filename'] for i in dataset.data_infos] == ['mine/1.jpg', 'val2017/7.jpg']


def test_v05_images_have_the_names_of_coco_2017(tmp_path):
    data = lvis([dict(id=1, file_name='COCO_val2014_000000391895.jpg', coco_url='http://x/y.jpg'),
                 dict(id=2, file_name='000000000009.jpg')])
    dataset = LVISV05Dataset(write(tmp_path, data), [])
    assert [i['filename'] for i in dataset.data_infos] == ['000000391895.jpg', '000000000009.jpg']


def test_classes_are_the_files_in_its_order_or_those_given(tmp_path):
    data = lvis()
    data['categories'] = data['categories'][::-1]
    path = write(tmp_path, data)
    dataset = LVISV1Dataset(path, [])
    assert dataset.CLASSES == ('thing_2', 'thing_1', 'thing_0') and dataset.cat_ids == [3, 2, 1]
    assert [dataset.get_ann_info(i)['labels'].tolist() for i in (0, 1)] == [[1], [0]]
    assert LVISV1Dataset.CLASSES is None, 'a file must not name the classes of the next one'
    narrow = LVISV1Dataset(path, [], classes=['thing_1'])
    assert narrow.CLASSES == ('thing_1',) and narrow.img_ids == [1] and narrow.get_ann_info(0)['labels'].tolist() == [0]
    with pytest.raises(DataError, match="class 'thing_7' is not among the categories of"):
        LVISV1Dataset(path, [], classes=['thing_7'])
    del data['annotations']
    assert len(LVISV1Dataset(write(tmp_path, data), [], test_mode=True)) == 2


def test_1203_classes_open_and_are_compared_with_the_heads(tmp_path):
    annotations = [dict(id=k + 1, image_id=1 + k % 2, category_id=k + 1, bbox=[1, 2, 20, 30], area=500)
                   for k in range(1203)]
    dataset = LVISV1Dataset(write(tmp_path, lvis(annotations=annotations, classes=1203)), [])
    assert len(dataset.CLASSES) == 1203 and len(dataset.get_palette()) == 1203
    assert dataset.get_ann_info(0)['labels'].tolist() == list(range(0, 1203, 2))
    head = nn.Module()
    head.bbox_head = nn.Identity()
    head.bbox_head.num_classes = 1203
    check_num_classes(head, dataset)
    head.bbox_head.num_classes = 1230
    with pytest.raises(ConfigError, match='model.bbox_head.num_classes = 1230: the training data has 1203 classes '
                                          r'\(thing_0, thing_1, .*, thing_4, …\); set num_classes to 1203'):
        check_num_classes(head, dataset)


def test_rare_classes_are_repeated_and_sets_joined(tmp_path):
    images = [dict(id=i, coco_url=f'http://x/{i}.jpg') for i in range(9)]
    rows = [dict(id=i + 1, image_id=i, category_id=1 if i else 2, bbox=[1, 2, 20, 30], area=500) for i in range(9)]
    path = write(tmp_path, lvis(images, rows))
    cfg = dict(type='LVISV1Dataset', ann_file=path, pipeline=[])
    balanced = build_dataset(dict(type='ClassBalancedDataset', oversample_thr=1.0, dataset=cfg))
    assert balanced.repeat_indices.tolist() == [0] * 3 + [i for i in range(1, 9) for _ in range(2)]
    joined = build_dataset({**cfg, 'ann_file': [path, path]})
    assert len(joined) == 18 and joined.CLASSES == ('thing_0', 'thing_1', 'thing_2')
    fewer = write(tmp_path, lvis(images, rows, classes=2), 'fewer.json')
    with pytest.raises(ConfigError, match='data sets of different classes'):
        build_dataset({**cfg, 'ann_file': [path, fewer]})


@pytest.mark.parametrize('change, message', [
    (lambda d: d.pop('categories'), "no 'categories', from which LVISV1Dataset takes its classes; give classes"),
    (lambda d: d['categories'].append(dict(id=9, name='thing_1')), 'category name thing_1 is used more than once'),
    (lambda d: d['categories'].append(dict(id=1, name='new')), 'category id 1 is used more than once'),
    (lambda d: d['images'][1].pop('coco_url'), r"images\[1\] needs an 'id' and a 'file_name'"),
    (lambda d: d['images'].append(d['images'][0]), 'image id 1 is used more than once'),
    (lambda d: d['annotations'][0].update(category_id=8), 'annotation 1 is of category 8'),
    (lambda d: d['annotations'][1].update(bbox=[1, 2, float('nan'), 4]), 'annotation 2 has a box that is not finite'),
])
def test_odd_files_are_named(tmp_path, change, message):
    data = lvis()
    change(data)
    with pytest.raises(DataError, match=message) as error:
        LVISV1Dataset(write(tmp_path, data), [])
    assert 'lvis.json' in str(error.value)


def test_annotations_of_images_that_are_not_there_are_counted(tmp_path):
    data = lvis()
    data['annotations'].append({**data['annotations'][0], 'id': 3, 'image_id': 77})
    dataset = LVISV1Dataset(write(tmp_path, data), [])
    assert dataset.filter_report['without_image'] == 1 and len(dataset) == 2
    assert np.array_equal(dataset.get_ann_info(0)['bboxes'], [[1, 2, 21, 32]])
