"""tools/dataset_converters/pascal_voc.py and images2coco.py as users run them."""
import importlib.util
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from boxdet.datasets import build_dataset
from boxdet.datasets.class_names import VOC_CLASSES
from boxdet.errors import DataError
from tests.voc_folder import draw, write_xml


@pytest.fixture
def convert(repo_root, capsys):
    """Run a converter in this process; returns what it printed."""
    def call(tool, *arguments, status=None):
        path = repo_root / f'tools/dataset_converters/{tool}.py'
        if tool not in sys.modules:  # the pool's processes find its functions there
            spec = importlib.util.spec_from_file_location(tool, path)
            sys.modules[tool] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[tool])
        assert sys.modules[tool].main([str(a) for a in arguments]) == status
        return ''.join(capsys.readouterr())
    return call


@pytest.fixture
def devkit(tmp_path):
    """2007 with trainval and test, 2012 with trainval; one difficult object, one of another name."""
    draw(tmp_path / 'kit/VOC2007', ['a', 'b', 'c'])
    draw(tmp_path / 'kit/VOC2007', ['t'], 'test', seed=5)
    draw(tmp_path / 'kit/VOC2012', ['d', 'e'], seed=1)
    write_xml(tmp_path / 'kit/VOC2007/Annotations/a.xml', [
        dict(name='cat', box=(1, 2, 40, 30)), dict(name='dog', box=(5, 6, 20, 30), difficult=1),
        dict(name='unicorn', box=(5, 6, 20, 30))])
    return tmp_path / 'kit'


def from_xml(devkit, years, split='trainval'):
    return build_dataset(dict(
        type='VOCDataset', ann_file=[f'{devkit}/VOC{y}/ImageSets/Main/{split}.txt' for y in years],
        img_prefix=[f'{devkit}/VOC{y}' for y in years], pipeline=[]))


def same(one, other):
    assert len(one) == len(other) > 0
    for i in range(len(one)):
        ours, theirs = one.get_ann_info(i), other.get_ann_info(i)
        assert ours['bboxes'].tolist() == theirs['bboxes'].tolist()
        assert ours['labels'].tolist() == theirs['labels'].tolist()
        assert one.img_info(i)['filename'].endswith(other.img_info(i)['filename'].split('/')[-1])


@pytest.mark.filterwarnings('ignore:.*objects have names')
def test_both_formats_train_as_the_xml_files_do(convert, devkit, tmp_path):
    out = convert('pascal_voc', devkit, '-o', tmp_path / 'coco', '--out-format', 'coco', '--nproc', 2)
    assert 'voc0712_trainval: 5 images' in out and '5/5 images' in out and 'unicorn 1' in out
    names = sorted(p.name for p in (tmp_path / 'coco').iterdir())
    assert names == ['voc0712_trainval.json', 'voc07_test.json', 'voc07_trainval.json', 'voc12_trainval.json']
    convert('pascal_voc', devkit, '--out-dir', tmp_path / 'middle')
    for years, name in (((2007, 2012), 'voc0712'), ((2007,), 'voc07')):
        coco = build_dataset(dict(type='CocoDataset', classes=VOC_CLASSES, img_prefix=str(devkit), pipeline=[
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True)],
            ann_file=str(tmp_path / f'coco/{name}_trainval.json')))
        middle = build_dataset(dict(type='CustomDataset', classes=VOC_CLASSES, img_prefix=str(devkit), pipeline=[],
                                    ann_file=str(tmp_path / f'middle/{name}_trainval.pkl')))
        same(coco, from_xml(devkit, years))
        same(middle, from_xml(devkit, years))
        assert middle.get_ann_info(0)['labels_ignore'].tolist() == [VOC_CLASSES.index('dog')]
        assert coco[1]['gt_masks'].areas.tolist() == pytest.approx([39 * 29] * 2, rel=0.06)
    content = COCO(str(tmp_path / 'coco/voc07_trainval.json'))
    assert content.anns[2]['ignore'] == 1 and content.anns[2]['bbox'] == [4, 5, 15, 24]
    assert [c['name'] for c in content.dataset['categories']] == list(VOC_CLASSES) and min(content.anns) == 1


def test_wrong_devkits(convert, devkit, tmp_path):
    def refused(*arguments):
        with pytest.raises(DataError) as error:
            convert('pascal_voc', *arguments)
        return str(error.value)

    assert 'neither VOC2007 nor VOC2012' in refused(tmp_path)
    (devkit / 'VOC2012/Annotations/e.xml').write_text('<annotation><object/></annotation>')
    for processes in (1, 2):
        assert 'e.xml: object 1 has no <name>' in refused(devkit, '-o', tmp_path / 'x', '--nproc', processes)
    assert not (tmp_path / 'x/voc12_trainval.pkl').exists()  # nothing half-written
    with pytest.raises(SystemExit):
        convert('pascal_voc', devkit, '--nproc', 0)
    shutil.rmtree(devkit / 'VOC2007/ImageSets')
    shutil.rmtree(devkit / 'VOC2012/ImageSets')
    assert 'no list train.txt' in refused(devkit)


@pytest.mark.parametrize('tool, lesson', [('pascal_voc', '--out-format {pkl,coco}'), ('images2coco', '--format-only')])
def test_command_lines(repo_root, tmp_path, tool, lesson):
    command = [sys.executable, str(repo_root / f'tools/dataset_converters/{tool}.py')]
    done = subprocess.run([*command, '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and lesson in done.stdout
    names = tmp_path / 'names.txt'
    names.write_text('cat')
    more = [str(names), 'a.json'] if tool == 'images2coco' else []
    failed = subprocess.run([*command, str(tmp_path / 'none'), *more],
                            capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith('error: ') and len(failed.stderr.splitlines()) == 1


def test_real_data(convert, shared_data, tmp_path):
    (tmp_path / 'kit').mkdir()
    (tmp_path / 'kit/VOC2007').symlink_to(shared_data / 'bccd')
    (tmp_path / 'names.txt').write_text('RBC\nWBC\nPlatelets\n')
    convert('pascal_voc', tmp_path / 'kit', '-o', tmp_path, '--out-format', 'coco', '--classes', tmp_path / 'names.txt',
            '--nproc', 2)
    found = build_dataset(dict(type='CocoDataset', ann_file=str(tmp_path / 'voc07_val.json'), pipeline=[],
                               classes=('RBC', 'WBC', 'Platelets'), img_prefix=str(tmp_path / 'kit')))
    same(found, build_dataset(dict(
        type='VOCDataset', ann_file=str(shared_data / 'bccd/ImageSets/Main/val.txt'),
        img_prefix=str(shared_data / 'bccd'),
        classes=('RBC', 'WBC', 'Platelets'), year=2012, pipeline=[])))


def test_images2coco(convert, tmp_path):
    folder = tmp_path / 'images'
    (folder / 'deep').mkdir(parents=True)
    cv2.imwrite(str(folder / 'a.jpg'), np.zeros((30, 40, 3), np.uint8))
    cv2.imwrite(str(folder / 'deep/b c.png'), np.zeros((50, 20), np.uint8))
    (folder / 'notes.txt').write_text('x')
    (tmp_path / 'names.txt').write_text('cat\n\nbig dog\n')
    out = convert('images2coco', folder, tmp_path / 'names.txt', 'all.json', '-e', 'txt', '--nproc', 2, status=0)
    assert '2/2 images' in out and 'annotations/all.json: 2 images, 2 categories' in out
    content = json.loads((tmp_path / 'annotations/all.json').read_text())
    assert content['images'] == [dict(id=0, file_name='a.jpg', width=40, height=30),
                                 dict(id=1, file_name='deep/b c.png', width=20, height=50)]
    assert [c['name'] for c in content['categories']] == ['cat', 'big dog'] and content['annotations'] == []
    out = convert('images2coco', folder, tmp_path / 'names.txt', tmp_path / 'here.json', status=1)
    assert 'left out: ' in out and 'notes.txt: not an image' in out and (tmp_path / 'here.json').exists()
    dataset = build_dataset(dict(type='CocoDataset', ann_file=str(tmp_path / 'here.json'), classes=('cat', 'big dog'),
                                 img_prefix=str(folder), pipeline=[dict(type='LoadImageFromFile')], test_mode=True))
    assert dataset[1]['img'].shape == (50, 20, 3)
    with pytest.raises(DataError, match='none of its 1 files'):
        convert('images2coco', folder, tmp_path / 'names.txt', 'a.json', '-e', 'jpg', 'PNG')
