"""The shapes data set: what its annotations promise, that it is drawn the same each time, and whole or not at all."""
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

SCRIPT = Path(__file__).parents[2] / 'tools' / 'make_shapes.py'
SPEC = importlib.util.spec_from_file_location('make_shapes', SCRIPT)
make_shapes = sys.modules.setdefault('make_shapes', importlib.util.module_from_spec(SPEC))
SPEC.loader.exec_module(make_shapes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('make_shapes') / 'shapes'
    make_shapes.make_shapes(out, train=60, val=6, size=128)
    return out


@pytest.fixture(scope='module')
def coco(folder):
    return COCO(str(folder / 'annotations' / 'instances_train.json'))


def digest(folder):
    """{relative path: hash} of every file below a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def test_boxes_and_areas_are_those_of_the_decoded_masks(coco):
    assert len(coco.anns) > 150
    for annotation in coco.anns.values():
        rle = coco.annToRLE(annotation)
        assert coco_mask.area(rle) == annotation['area'] > 0
        assert coco_mask.toBbox(rle).tolist() == annotation['bbox']


def test_boxes_lie_inside_their_images(coco):
    for annotation in coco.anns.values():
        image = coco.imgs[annotation['image_id']]
        x, y, width, height = annotation['bbox']
        assert x >= 0 and y >= 0 and x + width <= image['width'] and y + height <= image['height']


def test_both_kinds_of_masks_crowds_empty_images_and_every_class_occur(coco):
    kinds = {type(annotation['segmentation']) for annotation in coco.anns.values() if not annotation['iscrowd']}
    assert kinds == {list, dict}
    crowds = [annotation for annotation in coco.anns.values() if annotation['iscrowd']]
    assert crowds and all(isinstance(crowd['segmentation']['counts'], list) for crowd in crowds)
    assert any(not coco.imgToAnns[image_id] for image_id in coco.imgs)
    assert {annotation['category_id'] for annotation in coco.anns.values()} == set(range(1, 7))


def test_sizes_spread_from_small_to_large(coco):
    sides = np.sqrt([np.prod(annotation['bbox'][2:]) for annotation in coco.anns.values()])
    assert (sides < 128 * 0.15).mean() > 0.1 and (sides > 128 * 0.4).mean() > 0.1


def test_masks_hold_visible_pixels_so_they_hardly_share_any(coco):
    """Polygons are traced, so neighbours may share a rim of pixels, never a body."""
    overlapping = 0
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.imgToAnns[image_id] if not a['iscrowd']]
        for i, mask in enumerate(masks):
            for other in masks[:i]:
                shared = int((mask & other).sum())
                assert shared <= 0.1 * min(mask.sum(), other.sum()) + 4
                overlapping += shared > 0
    boxes_meet = sum(coco_mask.iou([a['bbox']], [b['bbox']], [0])[0, 0] > 0.05
                     for annotations in coco.imgToAnns.values() for a in annotations for b in annotations
                     if a['id'] < b['id'])
    assert boxes_meet > 20


def test_keypoint_visibility_follows_the_masks(coco):
    category = coco.cats[6]
    assert category['name'] == 'stickman' and len(category['keypoints']) == 11
    assert all(1 <= end <= 11 for bone in category['skeleton'] for end in bone)
    seen = []
    for annotation in coco.anns.values():
        if annotation['category_id'] != 6 or annotation['iscrowd']:
            assert 'keypoints' not in annotation
            continue
        points = np.array(annotation['keypoints']).reshape(11, 3)
        mask = coco.annToMask(annotation)
        height, width = mask.shape
        assert annotation['num_keypoints'] == (points[:, 2] > 0).sum()
        assert (points[points[:, 2] == 0] == 0).all()
        inside = points[points[:, 2] > 0]
        assert (inside[:, 0] < width).all() and (inside[:, 1] < height).all()
        seen += [(v, mask[int(y), int(x)]) for x, y, v in inside]
    visible = np.array([hit for v, hit in seen if v == 2])
    hidden = np.array([hit for v, hit in seen if v == 1])
    assert visible.mean() > 0.97 and len(hidden) > 5 and hidden.mean() < 0.1


def test_uncompressed_counts_agree_with_pycocotools():
    rng = np.random.default_rng(0)
    for first in (0, 1):
        mask = (rng.random((7, 5)) < 0.5).astype(np.uint8)
        mask[0, 0] = first
        rle = coco_mask.frPyObjects({'size': [7, 5], 'counts': make_shapes.uncompressed_counts(mask)}, 7, 5)
        assert (coco_mask.decode(rle) == mask).all()


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        make_shapes.make_shapes(tmp_path / name, train=3, val=2, size=96, seed=seed)
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b')
    assert digest(tmp_path / 'a') != digest(tmp_path / 'c')


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path):
    make_shapes.make_shapes(tmp_path / 'few', train=2, val=1, size=96)
    make_shapes.make_shapes(tmp_path / 'more', train=4, val=3, size=96)
    assert (tmp_path / 'few/train/000001.jpg').read_bytes() == (tmp_path / 'more/train/000001.jpg').read_bytes()


def test_rerun_leaves_an_equal_data_set_alone_and_redraws_a_broken_or_different_one(tmp_path):
    out = tmp_path / 'shapes'
    assert make_shapes.make_shapes(out, train=2, val=1, size=96) is not None
    before = digest(out)
    assert make_shapes.make_shapes(out, train=2, val=1, size=96) is None
    (out / 'train' / '000000.jpg').unlink()
    assert make_shapes.make_shapes(out, train=2, val=1, size=96) is not None
    assert digest(out) == before
    assert make_shapes.make_shapes(out, train=3, val=1, size=96) is not None
    assert len(list((out / 'train').iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ['shapes']


def test_an_interrupted_run_leaves_the_old_data_set(tmp_path):
    out = tmp_path / 'shapes'
    make_shapes.make_shapes(out, train=2, val=1, size=96)
    before = digest(out)

    def interrupt(split, done, count):
        if split == 'val':
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shapes.make_shapes(out, train=3, val=2, size=96, progress=interrupt)
    assert digest(out) == before and [path.name for path in tmp_path.iterdir()] == ['shapes']


def test_a_folder_of_other_files_is_never_replaced(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    done = subprocess.run([sys.executable, str(SCRIPT), '--out', str(tmp_path), '--train', '1', '--val', '1',
                           '--force'],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('error:') and 'Traceback' not in done.stderr
    assert (tmp_path / 'thesis.tex').read_text() == 'years of work'


def test_command_line_draws_and_refuses_bad_numbers(tmp_path):
    command = [sys.executable, str(SCRIPT), '--out', str(tmp_path / 'shapes'), '--train', '2', '--val', '1']
    done = subprocess.run(command + ['--size', '96'], capture_output=True, text=True, check=True)
    assert '2 + 1 images' in done.stdout
    settings = json.loads((tmp_path / 'shapes/annotations/instances_val.json').read_text())['info']['settings']
    assert settings['train'] == 2 and settings['size'] == 96
    refused = subprocess.run(command + ['--size', '10'], capture_output=True, text=True)
    assert refused.returncode == 2 and '--size 10' in refused.stderr
