"""CityscapesDataset: 2.x's rules on drawn and on written annotations, alone and in wrappers."""
import json

import numpy as np
import pytest

from boxdet.datasets import build_dataset
from boxdet.datasets.cityscapes import LABEL_IDS, CityscapesDataset
from boxdet.datasets.class_names import get_classes
from boxdet.errors import DataError

TRAIN = 'annotations/instancesonly_filtered_gtFine_train.json'
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
        dict(type='Resize', img_scale=[(256, 100), (256, 128)], keep_ratio=True),
        dict(type='RandomFlip', flip_ratio=0.5),
        dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
        dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks', 'gt_semantic_seg'])]


def config(folder, **more):
    return {**dict(type='CityscapesDataset', data_root=str(folder), ann_file=TRAIN, img_prefix='leftImg8bit/train/',
                   seg_prefix='gtFine/train/', pipeline=LOAD), **more}


def test_labels_are_those_of_cityscapesscripts():
    labels = pytest.importorskip('cityscapesscripts.helpers.labels')
    evaluated = {label.name: label for label in labels.labels if label.hasInstances and not label.ignoreInEval}
    assert list(LABEL_IDS) == list(CityscapesDataset.CLASSES) == get_classes('cityscapes') == list(evaluated)
    assert {name: label.id for name, label in evaluated.items()} == LABEL_IDS
    assert [label.color for label in evaluated.values()] == CityscapesDataset.PALETTE


def test_a_drawn_split_loads_with_masks_and_class_maps(cityscapes_dir):
    dataset = build_dataset(config(cityscapes_dir))
    assert len(dataset) == 4 and dataset.cat_ids == list(LABEL_IDS.values()) and dataset.flag.tolist() == [1] * 4
    assert dataset.filter_report['images'] == 4 and dataset.filter_report['missing_classes'] == []
    info = dataset.get_ann_info(0)
    assert info['seg_map'] == 'aachen/aachen_000000_000019_gtFine_labelIds.png'
    sample = dataset[0]
    assert sample['gt_bboxes'].shape == (len(info['labels']), 4) and sample['gt_semantic_seg'].shape[0] == 1
    # The class map and the masks were moved together: under each mask the map shows that class nearly everywhere.
    classes, compared = sample['gt_semantic_seg'][0].numpy(), 0
    for mask, label in zip(sample['gt_masks'].to_bitmaps(), sample['gt_labels'].tolist()):
        rows, columns = classes.shape
        under = classes[mask[:rows, :columns] > 0]
        if len(under) > 40:  # little else than an edge is left of some
            assert (under == list(LABEL_IDS.values())[label]).mean() > 0.9
            compared += 1
    assert compared > 2


def written(tmp_path, annotations, images=4, **more):
    """An annotation file of 40x50 images; ``annotations``: (image, category, iscrowd), category ids 24 and 26."""
    path = tmp_path / 'ann.json'
    rows = [dict(id=i + 1, image_id=image, category_id=category, iscrowd=crowd, bbox=[5, 5, 10, 12], area=100,
                 segmentation=[[5, 5, 15, 5, 15, 17]]) for i, (image, category, crowd) in enumerate(annotations)]
    path.write_text(json.dumps(dict(
        images=[dict(id=i, file_name=f'a/{i}.png', width=50, height=40, **more) for i in range(images)],
        categories=[dict(id=24, name='person'), dict(id=26, name='car')], annotations=rows)))
    return str(path)


def test_images_of_crowds_alone_are_left_out_as_in_2x(tmp_path):
    # An object; crowds only; a crowd of a car and a person; nothing.
    path = written(tmp_path, [(0, 26, 0), (1, 26, 1), (1, 24, 1), (2, 26, 1), (2, 24, 0)])
    dataset = CityscapesDataset(path, [])
    assert dataset.img_ids == [0, 2] and [i['id'] for i in dataset.data_infos] == [0, 2]
    assert {k: dataset.filter_report[k] for k in ('empty', 'only_crowd', 'without_wanted_class', 'kept')} == dict(
        empty=1, only_crowd=1, without_wanted_class=0, kept=2)
    info = dataset.get_ann_info(1)
    assert info['bboxes_ignore'].shape == (1, 4) and info['labels'].tolist() == [0]
    # 2.x keeps an image whose wanted class is a crowd as long as anything in it is an object.
    cars = CityscapesDataset(path, [], classes=('car',))
    assert cars.img_ids == [0, 2] and len(cars.get_ann_info(1)['labels']) == 0
    persons = CityscapesDataset(path, [], classes=('person',))
    assert persons.img_ids == [2] and persons.filter_report['without_wanted_class'] == 1
    assert CityscapesDataset(path, [], filter_empty_gt=False).img_ids == [0, 1, 2, 3]
    assert CityscapesDataset(path, [], min_size=45).img_ids == []
    assert CityscapesDataset(path, [], test_mode=True).img_ids == [0, 1, 2, 3]


def test_the_class_map_is_the_entrys_own_or_the_images_name(tmp_path):
    with_map = CityscapesDataset(written(tmp_path, [(0, 26, 0)], segm_file='a/map.png'), [])
    assert with_map.get_ann_info(0)['seg_map'] == 'a/map.png'
    assert CityscapesDataset(written(tmp_path, [(0, 26, 0)]), []).get_ann_info(0)['seg_map'] == 'a/0.png'


def test_wrappers_and_lists_of_files(cityscapes_dir):
    repeated = build_dataset(dict(type='RepeatDataset', times=8, dataset=config(cityscapes_dir)))
    assert len(repeated) == 32 and repeated.CLASSES == CityscapesDataset.CLASSES
    balanced = build_dataset(dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=config(cityscapes_dir)))
    assert len(balanced) > 4 and set(np.unique(balanced.repeat_indices)) == {0, 1, 2, 3}
    both = build_dataset(config(
        cityscapes_dir, ann_file=[TRAIN, TRAIN.replace('train', 'val')], seg_prefix=['gtFine/train/', 'gtFine/val/'],
        img_prefix=['leftImg8bit/train/', 'leftImg8bit/val/'], classes=('car', 'person')))
    assert both.CLASSES == ('car', 'person') and both.cumulative_sizes[-1] == len(both) and len(both.datasets) == 2
    assert 'img' in both[len(both) - 1]


@pytest.mark.parametrize('change, message', [
    (dict(classes=('car', 'tram')), "class 'tram' is not among the categories"),
    (dict(ann_file=TRAIN.replace('train', 'trainn')), "no such file; did you mean 'instancesonly"),
    (dict(ann_file=TRAIN.replace('train', 'test')), "no 'annotations' list; without it .* test_mode"),
])
def test_what_is_wrong_is_named(cityscapes_dir, change, message):
    with pytest.raises(DataError, match=message):
        build_dataset(config(cityscapes_dir, **change))


def test_a_missing_image_or_class_map_is_named(cityscapes_dir):
    dataset = build_dataset(config(cityscapes_dir, img_prefix='leftImg8bit/val/'))
    with pytest.raises(DataError, match=r"aachen_000000_000019_leftImg8bit.png: no such file \(nor the folder"):
        dataset[0]
    dataset = build_dataset(config(cityscapes_dir, seg_prefix='gtFine/val/'))
    with pytest.raises(DataError, match='aachen_000000_000019_gtFine_labelIds.png: no such file'):
        dataset[0]
