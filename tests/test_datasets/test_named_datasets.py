"""Objects365, DeepFashion, WIDER Face and Open Images from small files in the forms in which they are published."""
import json
import pickle
import re

import cv2
import numpy as np
import pytest
import torch

from boxdet.datasets import build_dataset
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation import evaluate
from boxdet.structures.instances import Instances
from tests.voc_folder import write_xml

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]


def coco(folder, kind, names, files=('a.jpg', 'b.jpg'), **options):
    content = dict(images=[dict(id=i, file_name=name, width=64, height=48) for i, name in enumerate(files)],
                   annotations=[dict(id=i, image_id=i, category_id=30 + i % 2, bbox=[4, 4, 20, 20], area=400, iscrowd=0)
                                for i in range(len(files))],
                   categories=[dict(id=30 + i, name=name) for i, name in reversed(list(enumerate(names)))])
    (folder / 'ann.json').write_text(json.dumps(content))
    return build_dataset(dict(type=kind, ann_file=str(folder / 'ann.json'), img_prefix=str(folder), pipeline=LOAD,
                              **options))


def test_objects365(tmp_path):
    first = coco(tmp_path, 'Objects365V1Dataset', ('person', 'life saver'))
    assert len(first.CLASSES) == len(set(first.CLASSES)) == 365
    assert [first.CLASSES[first.get_ann_info(i)['labels'][0]] for i in range(2)] == ['person', 'life saver']
    files = ('images/v2/patch16/objects365_v2_00908726.jpg', 'images/v1/patch6/kept.jpg', 'patch0/other.jpg')
    second = coco(tmp_path, 'Objects365V2Dataset', ('Person', 'Sneakers'), files)
    assert len(second.CLASSES) == len(set(second.CLASSES)) == 365
    assert [second.img_info(i)['filename'] for i in range(len(second))] == ['patch6/kept.jpg', 'patch0/other.jpg']
    assert [second.get_ann_info(i)['labels'].tolist() for i in range(2)] == [[1], [0]]
    assert second.annotation_facts.strays == []


def test_deepfashion(tmp_path):
    dataset = coco(tmp_path, 'DeepFashionDataset', ('top', 'skin'))
    assert len(dataset.CLASSES) == len(dataset.get_palette()) == 15
    assert [dataset.get_ann_info(i)['labels'].tolist() for i in range(2)] == [[0], [13]]


def test_wider_face(tmp_path):
    for folder in ('Annotations', '0--Parade'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'train.txt').write_text('one\n')
    write_xml(tmp_path / 'Annotations/one.xml', [dict(name='face', box=(11, 11, 30, 40))])
    xml = (tmp_path / 'Annotations/one.xml').read_text()
    (tmp_path / 'Annotations/one.xml').write_text(xml.replace('>VOC<', '>0--Parade<'))
    cv2.imwrite(str(tmp_path / '0--Parade/one.jpg'), np.zeros((96, 128, 3), np.uint8))
    dataset = build_dataset(dict(type='WIDERFaceDataset', ann_file=str(tmp_path / 'train.txt'),
                                 img_prefix=str(tmp_path), min_size=17, pipeline=LOAD))
    assert dataset.CLASSES == ('face',) and dataset.img_info(0)['filename'] == '0--Parade/one.jpg'
    assert dataset[0]['gt_bboxes'].tolist() == [[10, 10, 29, 39]]


HEADER = 'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside'


@pytest.fixture
def open_images(tmp_path):
    """Two images of 128 x 64; /m/b lies below /m/a, /m/c beside it."""
    (tmp_path / 'classes.csv').write_text('/m/a,Animal\n/m/b,"Cat, tame"\n/m/c,Tree\n')
    (tmp_path / 'boxes.csv').write_text('\n'.join([
        HEADER, 'x1,xclick,/m/b,1,0.25,0.5,0,0.5,0,0,0,0,0', 'x2,xclick,/m/c,1,0,1,0,1,1,0,1,0,0',
        'x1,xclick,/m/c,1,0.5,0.75,0.5,1,-1,0,0,0,1', '']))
    (tmp_path / 'tree.json').write_text(json.dumps(dict(LabelName='/m/0bl9f', Subcategory=[
        dict(LabelName='/m/a', Subcategory=[dict(LabelName='/m/b')]), dict(LabelName='/m/c')])))
    (tmp_path / 'labels.csv').write_text('ImageID,Source,LabelName,Confidence\nx2,verification,/m/b,0\nx2,v,/m/zzz,1\n')
    for name in ('x1', 'x2'):
        cv2.imwrite(str(tmp_path / f'{name}.jpg'), np.zeros((64, 128, 3), np.uint8))
    return dict(type='OpenImagesDataset', data_root=str(tmp_path), ann_file='boxes.csv', label_file='classes.csv',
                hierarchy_file='tree.json', image_level_ann_file='labels.csv', img_prefix='',
                pipeline=[LOAD[0], dict(type='LoadAnnotations', with_bbox=True, denorm_bbox=True)])


def test_open_images(open_images, tmp_path):
    dataset = build_dataset(open_images)
    assert dataset.CLASSES == ('Animal', 'Cat, tame', 'Tree') and len(dataset) == 2
    assert [dataset.img_info(i)['filename'] for i in range(2)] == ['x1.jpg', 'x2.jpg']
    info = dataset.get_ann_info(0)
    assert info['labels'].tolist() == [1, 2] and info['bboxes'].tolist() == [[.25, 0, .5, .5], [.5, .5, .75, 1]]
    assert info['is_insides'].tolist() == [False, True] and info['is_occludeds'].tolist() == [False, False]
    assert dataset.get_ann_info(1)['gt_is_group_ofs'].tolist() == [True]
    dataset.img_prefix = str(tmp_path)
    assert dataset[0]['gt_bboxes'].tolist() == [[32, 0, 64, 32], [64, 32, 96, 64]]
    assert dataset.class_tree().astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert [labels.tolist() for labels in dataset.image_labels()] == [[], [1]]
    assert dataset.image_sizes().tolist() == [[128, 64]] * 2


def test_open_images_is_evaluated(open_images, tmp_path):
    (tmp_path / 'metas.pkl').write_bytes(pickle.dumps([dict(filename=f'some/{name}.jpg', ori_shape=(64, 128, 3))
                                                       for name in ('x2', 'x1')]))
    dataset = build_dataset({**open_images, 'test_mode': True, 'meta_file': 'metas.pkl'})
    results = [Instances(bboxes=torch.tensor(boxes), scores=torch.tensor(scores), labels=torch.tensor(labels))
               for boxes, scores, labels in (([[32., 0, 64, 32]], [.9], [1]),
                                             ([[5., 5, 9, 9], [1., 1, 90, 60]], [.8, .7], [2, 2]))]
    values = evaluate(dataset, results, logger='silent')
    # The cat counts as an animal, too; two detections in the group of trees are one, the tree of x1 is not found.
    assert values == dict(mAP=pytest.approx((1 + 1 + 0.5) / 3), AP50=pytest.approx((1 + 1 + 0.5) / 3))


def test_open_images_challenge(open_images, tmp_path):
    (tmp_path / 'classes.csv').write_text('/m/c,Tree,2\n/m/a,Animal,1\n')
    (tmp_path / 'boxes.txt').write_text('validation/x1.jpg\n?\n2\n2 0.1 0.2 0.3 0.4 1\n1 0 0 1 1 0\nx2.jpg\n?\n0\n')
    with open(tmp_path / 'tree.np', 'wb') as file:
        np.save(file, np.eye(3))
    (tmp_path / 'labels.csv').write_text('ImageID,LabelName,Confidence\nx1,/m/c,1\n')
    dataset = build_dataset({**open_images, 'type': 'OpenImagesChallengeDataset', 'ann_file': 'boxes.txt',
                             'hierarchy_file': 'tree.np'})
    assert dataset.CLASSES == ('Animal', 'Tree') and dataset.img_info(0)['filename'] == 'validation/x1.jpg'
    info = dataset.get_ann_info(0)
    assert info['labels'].tolist() == [1, 0] and info['gt_is_group_ofs'].tolist() == [True, False]
    assert info['bboxes'][0] == pytest.approx([.1, .2, .3, .4]) and len(dataset.get_ann_info(1)['labels']) == 0
    assert dataset.class_tree().tolist() == [[True, False], [False, True]]
    assert [labels.tolist() for labels in dataset.image_labels()] == [[1], []]


@pytest.mark.parametrize('changes, kind, message', [
    (dict(label_file=''), ConfigError, 'takes its classes from label_file'),
    (dict(classes=('Tree',)), ConfigError, 'give that, and no classes'),
    (dict(hierarchy_file=None), ConfigError, 'get_supercategory=True needs hierarchy_file'),
    (dict(ann_file='classes.csv'), DataError, 'classes.csv:1: 2 values, and 13 are needed'),
    (dict(label_file='tree.json'), DataError, "boxes.csv:2: class '/m/b' is not among"),
    (dict(type='OpenImagesChallengeDataset'), DataError, 'classes.csv:1: 2 values, and 3 are needed')])
def test_open_images_tells_what_is_wrong(open_images, changes, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        build_dataset({**open_images, **changes})
