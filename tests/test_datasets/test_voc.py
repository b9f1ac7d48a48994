"""XMLDataset and VOCDataset: rules of VOC's files, by mmdetection 2.x's numbers."""
import os
import warnings

import cv2
import numpy as np
import pytest

from boxdet.datasets import build_dataset
from boxdet.datasets.voc import VOCDataset, XMLDataset, read_voc_file
from boxdet.errors import ConfigError, DataError
from tests.voc_folder import draw, write_xml


@pytest.fixture
def root(tmp_path):
    return draw(tmp_path / 'VOC2007', ['a', 'b', 'c'])


def config(root, split='trainval', **more):
    return dict(type='VOCDataset', ann_file=str(root / f'ImageSets/Main/{split}.txt'), img_prefix=str(root) + '/',
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')], **more)


def xml(root, objects, name='a', **more):
    write_xml(root / f'Annotations/{name}.xml', objects, **more)


def test_annotations_are_2x(root):
    xml(root, [dict(name='cat', box=(1, 2, 40, 30)), dict(name='dog', box=(5.7, 6.2, 20.9, 30), difficult=1),
               dict(name='person', box=(3, 3, 9, 9), difficult=0)])
    dataset = build_dataset(config(root, classes=('dog', 'cat')))
    info = dataset.get_ann_info(0)
    assert info['bboxes'].tolist() == [[0, 1, 39, 29]] and info['bboxes'].dtype == np.float32
    assert info['labels'].tolist() == [1] and info['labels'].dtype == np.int64
    assert info['bboxes_ignore'].tolist() == [[4, 5, 19, 29]] and info['labels_ignore'].tolist() == [0]
    assert dataset.get_cat_ids(0) == [1, 0]
    assert dataset.data_infos[0] == dict(id='a', filename='JPEGImages/a.jpg', width=128, height=96)
    assert dataset.img_ids == ['a', 'b', 'c'] and dataset.flag.tolist() == [1, 1, 0]
    assert dataset.filter_report['objects_of_other_classes'] == 1
    sample = dataset[0]
    assert sample['gt_bboxes_ignore'].shape == (1, 4) and sample['img'].shape == (96, 128, 3)
    assert dataset.year == 2007 and dataset.ap_rule == '11points' and len(dataset.get_palette()) == 2


def test_load_annotations_of_a_subclass(root):
    class Some(VOCDataset):
        def load_annotations(self, ann_file):
            return [dict(id=name, filename=f'JPEGImages/{name}.jpg', width=128, height=96) for name in ('c', 'a')]

    class Without(VOCDataset):
        def load_annotations(self, ann_file):
            return [{k: v for k, v in info.items() if k != 'id'} for info in super().load_annotations(ann_file)]

    arguments = {key: value for key, value in config(root).items() if key != 'type'}
    some, usual = Some(**arguments), VOCDataset(**arguments)
    assert some.img_ids == ['c', 'a'] and usual.img_ids == ['a', 'b', 'c']
    assert [some.get_ann_info(i)['bboxes'].tolist() for i in range(2)] == [
        usual.get_ann_info(i)['bboxes'].tolist() for i in (2, 0)]
    with pytest.raises(DataError, match="entry 0 of what Without.load_annotations returned needs an 'id'"):
        Without(**arguments)


def test_names_of_voc_and_those_beside_them(root):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataset = build_dataset(config(root))
    assert dataset.CLASSES[7] == 'cat' and dataset.get_ann_info(0)['labels'].tolist() == [7, 11]
    xml(root, [dict(name='cat', box=(1, 2, 40, 30)), dict(name='unicorn', box=(1, 2, 40, 30))])
    with pytest.warns(UserWarning, match='1 objects have names that are no class of VOCDataset.*: unicorn'):
        assert len(build_dataset(config(root)).get_ann_info(0)['labels']) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # who names classes narrows the data set
        build_dataset(config(root, classes=('cat', 'cow')))
    with pytest.raises(DataError, match="no object is of class 'Cat'; did you mean 'cat'"):
        build_dataset(config(root, classes=('Cat', 'dog')))
    with pytest.raises(DataError, match='of any of the 1 classes; the names are cat, unicorn, dog'):
        build_dataset(config(root, classes=('elephant',)))
    with pytest.raises(ConfigError, match='XMLDataset has no class names'):
        build_dataset({**config(root), 'type': 'XMLDataset'})


def test_filtering(root):
    draw(root, ['d', 'e', 'f'])
    xml(root, [], 'd')
    xml(root, [dict(name='cow', box=(1, 2, 40, 30))], 'e')
    xml(root, [dict(name='cat', box=(1, 2, 40, 30))], 'f', size=(400, 20))
    xml(root, [dict(name='cat', box=(10, 2, 10, 30)), dict(name='cat', box=(30, 2, 10, 30)),
               dict(name='cat', box=(30, 2, 60, 30), difficult=1)])
    dataset = build_dataset(config(root, classes=('cat', 'dog')))
    assert dataset.img_ids == ['a', 'b', 'c']  # an image of difficult objects only is kept, as in 2.x
    report = dataset.filter_report
    assert (report['images'], report['kept'], report['empty'], report['without_wanted_class'], report['too_small'],
            report['degenerate_boxes']) == (6, 3, 1, 1, 1, ['a.xml object 1', 'a.xml object 2'])
    assert dataset.get_ann_info(1)['bboxes'].shape == (2, 4)
    assert len(build_dataset(config(root, classes=('cat', 'dog'), filter_empty_gt=False))) == 5
    assert len(build_dataset(config(root, classes=('cat', 'dog'), test_mode=True))) == 6


def test_small_objects_are_ignored(root):
    xml(root, [dict(name='cat', box=(1, 1, 9, 60)), dict(name='cat', box=(1, 1, 60, 60))])
    info = build_dataset(config(root, min_size=10)).get_ann_info(0)
    assert info['bboxes'].tolist() == [[0, 0, 59, 59]] and info['bboxes_ignore'].tolist() == [[0, 0, 8, 59]]
    with pytest.raises(ConfigError, match='min_size is for training'):
        build_dataset(config(root, min_size=10, test_mode=True))


def test_files_that_count_from_zero(root):
    xml(root, [dict(name='cat', box=(0, 0.5, 40, 30.25))])
    with pytest.warns(UserWarning, match=r'1 boxes begin at 0, .*\(a.xml is the first\).*zero_based=True'):
        assert build_dataset(config(root)).get_ann_info(0)['bboxes'].tolist() == [[-1, -1, 39, 29]]
    assert build_dataset(config(root, zero_based=True)).get_ann_info(0)['bboxes'].tolist() == [[0, 0.5, 40, 30.25]]


@pytest.mark.parametrize('size', [None, (0, 0), ('', '')])
def test_a_missing_size_is_that_of_the_image(root, size):
    xml(root, [dict(name='cat', box=(1, 1, 40, 30))], 'c', size=size)
    info = build_dataset(config(root)).img_info(2)
    assert (info['width'], info['height']) == (96, 128)


def test_images_of_other_endings(root):
    cv2.imwrite(str(root / 'JPEGImages/b.PNG'), np.zeros((96, 128, 3), np.uint8))
    (root / 'JPEGImages/b.jpg').unlink()
    assert build_dataset(config(root)).img_info(1)['filename'] == 'JPEGImages/b.PNG'
    dataset = build_dataset(config(root, img_subdir='images'))
    assert dataset.img_info(0)['filename'] == 'images/a.jpg'


def test_the_year(root, tmp_path):
    os.rename(root, tmp_path / 'mine')
    mine = tmp_path / 'mine'
    with pytest.raises(ConfigError, match="neither 'VOC2007' nor 'VOC2012'.*year=2007"):
        build_dataset(config(mine))
    with pytest.raises(ConfigError, match='year=2010'):
        build_dataset(config(mine, year=2010))
    assert build_dataset(config(mine, year=2012)).ap_rule == 'area'
    assert isinstance(build_dataset({**config(mine, classes=('cat',)), 'type': 'XMLDataset'}), XMLDataset)


def test_both_years(root, tmp_path):
    later = draw(tmp_path / 'VOC2012', ['x', 'y'], seed=1)
    both = build_dataset(dict(type='RepeatDataset', times=2, dataset={
        **config(root), 'ann_file': [config(root)['ann_file'], config(later)['ann_file']],
        'img_prefix': [str(root), str(later)]}))
    assert len(both) == 10 and both.img_info(4)['id'] == 'y'
    assert [part.year for part in both.dataset.datasets] == [2007, 2012]
    assert both[3]['img'].shape == (96, 128, 3)


def test_without_annotations_in_test_mode(root):
    for path in (root / 'Annotations').iterdir():
        path.unlink()
    with pytest.raises(DataError, match='a.xml: no such file'):  # some are expected where there is the folder
        build_dataset(config(root, test_mode=True))
    (root / 'Annotations').rmdir()
    dataset = build_dataset(config(root, test_mode=True))
    assert len(dataset) == 3 and not dataset.has_annotations
    assert (dataset.img_info(2)['width'], dataset.img_info(2)['height']) == (96, 128)
    with pytest.raises(DataError, match='a.xml: no such file'):
        build_dataset(config(root))


def test_names_with_spaces_and_lists_of_one_class(root):
    draw(root, ['my cat 1'], 'spaces')
    dataset = build_dataset(config(root, 'spaces'))
    assert dataset[0]['ori_filename'] == 'JPEGImages/my cat 1.jpg'
    (root / 'ImageSets/Main/cat_train.txt').write_text('a  1\nb -1\n')
    with pytest.raises(DataError, match="cat_train.txt: 'a  1' is a line of one class's list"):
        build_dataset(config(root, 'cat_train'))


def test_entities_are_refused(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY x "aaaaaaaaaa">' + ''.join(
        f'<!ENTITY x{i} "{f"&x{i - 1 if i else str()};" * 10}">' for i in range(9)) + ']>'
    outside = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    for k, head in enumerate((bomb, outside)):
        for encoding in ('utf-8', 'utf-16'):
            path = tmp_path / f'{k}{encoding}.xml'
            path.write_bytes(f'<?xml version="1.0"?>{head}<annotation>&x;</annotation>'.encode(encoding))
            with pytest.raises(DataError, match='document type'):
                read_voc_file(str(path))


def test_other_encodings(tmp_path):
    text = '<?xml version="1.0" encoding="{}"?><annotation><object><name>Käfer</name><bndbox><xmin>1</xmin>' \
           '<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'
    for encoding in ('latin-1', 'utf-8', 'utf-16'):
        (tmp_path / 'a.xml').write_bytes(text.format(encoding).encode(encoding))
        assert read_voc_file(str(tmp_path / 'a.xml')).names == ['Käfer']


def test_blood_cells(shared_data):
    root = shared_data / 'bccd'
    classes = ('RBC', 'WBC', 'Platelets')
    train, val = (VOCDataset(str(root / f'ImageSets/Main/{split}.txt'), [], year=2012, classes=classes,
                             img_prefix=str(root)) for split in ('train', 'val'))
    assert (len(train), len(val)) == (205, 87)
    counts = np.bincount(np.concatenate([d.get_ann_info(i)['labels'] for d in (train, val) for i in range(len(d))]))
    names = [name for d in (train, val) for i in range(len(d))
             for name in read_voc_file(str(root / f'Annotations/{d.img_ids[i]}.xml')).names]
    written = [names.count(name) for name in classes]
    assert counts.tolist() == [written[0] - 2, *written[1:]]  # two red cells without an area
