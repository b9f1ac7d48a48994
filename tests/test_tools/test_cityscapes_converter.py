"""tools/dataset_converters/cityscapes.py on a drawn folder: against masks cut out one by one, and on broken folders."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from boxdet.errors import DataError
from tests import cityscapes_folder

NAME = 'instancesonly_filtered_gtFine_{}.json'


@pytest.fixture(scope='module')
def tool():
    return cityscapes_folder.converter()


@pytest.fixture
def copy(cityscapes_dir, tmp_path):
    """A copy of the drawn folder to break."""
    shutil.copytree(cityscapes_dir, tmp_path / 'cs')
    shutil.rmtree(tmp_path / 'cs/annotations')
    return tmp_path / 'cs'


def read(folder, split):
    return json.loads((folder / NAME.format(split)).read_text())


def by_one_mask_each(path):
    """What 2.x's converter makes of an image of ids: a whole mask an id, encoded by pycocotools."""
    labels = pytest.importorskip('cityscapesscripts.helpers.labels')
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    found = []
    for number in np.unique(ids[ids >= 24]).tolist():
        label = labels.id2label[number // 1000 if number >= 1000 else number]
        if label.hasInstances and not label.ignoreInEval:
            rle = coco_mask.encode(np.asfortranarray(ids == number, dtype=np.uint8))
            found.append(dict(iscrowd=int(number < 1000), category_id=label.id, bbox=coco_mask.toBbox(rle).tolist(),
                              area=int(coco_mask.area(rle)),
                              segmentation=dict(size=list(rle['size']), counts=rle['counts'].decode())))
    return found


def test_annotations_are_those_of_whole_masks(cityscapes_dir):
    for split in ('train', 'val'):
        data = read(cityscapes_dir / 'annotations', split)
        assert [c['id'] for c in data['categories']] == [24, 25, 26, 27, 28, 31, 32, 33]
        assert [a['id'] for a in data['annotations']] == list(range(1, len(data['annotations']) + 1))
        assert [i['id'] for i in data['images']] == list(range(len(data['images'])))
        assert {a['iscrowd'] for a in data['annotations']} == {0, 1}
        for image in data['images']:
            stem = image['file_name'].removesuffix('_leftImg8bit.png')
            assert image['segm_file'] == f'{stem}_gtFine_labelIds.png'
            assert (image['width'], image['height']) == (256, 128)
            of_image = [{k: v for k, v in a.items() if k not in ('id', 'image_id')}
                        for a in data['annotations'] if a['image_id'] == image['id']]
            assert of_image == by_one_mask_each(cityscapes_dir / f'gtFine/{split}/{stem}_gtFine_instanceIds.png')


def test_a_test_split_without_objects_has_no_annotations(cityscapes_dir):
    data = read(cityscapes_dir / 'annotations', 'test')
    assert 'annotations' not in data and len(data['images']) == 2 and len(data['categories']) == 8


def test_several_processes_write_the_same_and_show_progress(cityscapes_dir, repo_root, tmp_path):
    command = [sys.executable, str(repo_root / 'tools/dataset_converters/cityscapes.py'), str(cityscapes_dir),
               '--nproc', '2', '-o', str(tmp_path / 'out')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '4/4 images' in done.stdout and 'train: 4 images' in done.stdout
    for split in ('train', 'val', 'test'):
        assert read(tmp_path / 'out', split) == read(cityscapes_dir / 'annotations', split)


def test_other_folders_and_a_missing_split(copy, tool, capsys):
    (copy / 'leftImg8bit').rename(copy / 'images')
    (copy / 'gtFine').rename(copy / 'truth')
    shutil.rmtree(copy / 'images/train')
    shutil.rmtree(copy / 'truth/test')  # a test split without ground truth lists its images
    tool.main([str(copy), '--img-dir', 'images', '--gt-dir', 'truth'])
    assert not (copy / NAME.format('train')).exists()
    assert len(read(copy, 'val')['images']) == 4 and len(read(copy, 'test')['images']) == 2
    assert 'annotations' not in read(copy, 'test')


def test_broken_folders_name_the_file_and_leave_no_output(copy, tool):
    def refuses(text):
        with pytest.raises(DataError, match=text):
            tool.main([str(copy), '-o', str(copy / 'out')])
        assert not (copy / 'out' / NAME.format('train')).exists()

    first = sorted((copy / 'gtFine/train').rglob('*_instanceIds.png'))[0]
    good = first.read_bytes()
    ids = cv2.imread(str(first), cv2.IMREAD_UNCHANGED)
    first.unlink()
    refuses('aachen_000000_000019_leftImg8bit.png has no ground truth')
    first.write_bytes(good[:200])
    refuses(f'{first.name}: the image file is truncated')
    cv2.imwrite(str(first), ids[:64])
    refuses(rf'{first.name}: shape \(64, 256\), the image it belongs to is 128 x 256')
    ids[0, 0] = 41003
    cv2.imwrite(str(first), ids)
    refuses(f'{first.name}: instance id 41003: Cityscapes has no label 41')
    first.write_bytes(good)
    image = sorted((copy / 'leftImg8bit/train').rglob('*.png'))[0]
    image.write_bytes(b'')
    refuses(f'{image.name}: empty file')
    image.rename(image.with_name('photo.png'))
    refuses('photo.png: the names of images end in leftImg8bit.png')
    shutil.rmtree(copy / 'leftImg8bit/train')
    (copy / 'leftImg8bit/train').mkdir()
    refuses('train: no images CITY/NAME_leftImg8bit.png')


def test_a_folder_without_splits_and_no_process(tmp_path, tool, capsys):
    with pytest.raises(DataError, match='none of the folders train, val, test is there'):
        tool.main([str(tmp_path)])
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path), '--nproc', '0'])
    assert '--nproc 0: it is 1 at least' in capsys.readouterr().err


def test_no_output_where_a_process_fails(copy, repo_root):
    first = sorted((copy / 'gtFine/train').rglob('*_instanceIds.png'))[0]
    first.write_bytes(b'no image')
    command = [sys.executable, str(repo_root / 'tools/dataset_converters/cityscapes.py'), str(copy), '--nproc', '2']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith('error: ') and first.name in done.stderr
    assert list(copy.glob('*.json')) == []
