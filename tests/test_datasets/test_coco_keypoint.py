"""Keypoints from the annotation file to the batch: what they are called, what is refused, how they move with pixels."""
import json

import numpy as np
import pytest
import torch

from boxdet.datasets import build_dataloader, build_dataset
from boxdet.datasets.coco_keypoint import CocoKeypointDataset
from boxdet.datasets.collate import collate
from boxdet.datasets.pipelines.geometric import (
    AspectCrop,
    Expand,
    MinIoURandomCrop,
    Pad,
    RandomCrop,
    RandomFlip,
    Resize,
)
from boxdet.datasets.pipelines.loading import FilterAnnotations, LoadAnnotations
from boxdet.datasets.pipelines.mixing import CopyPaste
from boxdet.datasets.warps import visible_keypoints
from boxdet.errors import ConfigError, DataError
from boxdet.structures import coco_person
from boxdet.structures.masks import BitmapMasks

NAMES = ['nose', 'left_paw', 'right_paw', 'tail']
CAT = dict(id=2, name='cat', keypoints=NAMES, skeleton=[[1, 2], [1, 3], [1, 4]])
KEYPOINTS = [10, 20, 2, 30, 25, 1, 0, 0, 0, 40, 30, 2]


def annotation(number, image=1, keypoints=KEYPOINTS, category=2, **more):
    found = dict(id=number, image_id=image, category_id=category, bbox=[5, 5, 50, 40], area=2000, iscrowd=0, **more)
    return found if keypoints is None else dict(found, keypoints=keypoints, num_keypoints=sum(np.sign(keypoints[2::3])))


def write(tmp_path, annotations, categories=(CAT,), images=3):
    path = tmp_path / 'cats.json'
    rows = [dict(id=i + 1, file_name=f'{i + 1}.jpg', width=100, height=80) for i in range(images)]
    path.write_text(json.dumps(dict(images=rows, annotations=annotations, categories=list(categories)), default=int))
    return str(path)


def cats(path, **more):
    return CocoKeypointDataset(path, [], **{'classes': ('cat',), **more})


# ------------------------------------------------------------------------------------------ the data set


def test_the_file_says_what_the_keypoints_are(tmp_path):
    dataset = cats(write(tmp_path, [annotation(1)]))
    assert tuple(NAMES) == dataset.KEYPOINT_NAMES and dataset.FLIP_PAIRS == ((1, 2),)
    assert dataset.SKELETON == ((0, 1), (0, 2), (0, 3)) and dataset.SIGMAS is None
    assert dataset.metainfo['FLIP_PAIRS'] == ((1, 2),) and dataset.metainfo['CLASSES'] == ('cat',)
    keypoints = dataset.get_ann_info(0)['keypoints']
    assert keypoints.dtype == np.float32
    # Half a pixel on from the file's counting of pixels; what is not labelled stays 0.
    assert keypoints.tolist() == [[[10.5, 20.5, 2], [30.5, 25.5, 1], [0, 0, 0], [40.5, 30.5, 2]]]
    as_they_are = cats(write(tmp_path, [annotation(1)]), keypoint_offset=0)
    assert as_they_are.get_ann_info(0)['keypoints'][0].ravel().tolist() == KEYPOINTS


def test_keywords_say_it_too(tmp_path):
    path = write(tmp_path, [annotation(1)], categories=[dict(id=2, name='cat')])
    dataset = cats(path, keypoint_names=['a', 'b', 'c', 'd'], flip_pairs=[[0, 3]], skeleton=[[0, 1]], sigmas=[.1] * 4)
    assert dataset.KEYPOINT_NAMES == ('a', 'b', 'c', 'd') and dataset.FLIP_PAIRS == ((0, 3),)
    assert dataset.SKELETON == ((0, 1),) and dataset.SIGMAS == (.1,) * 4
    assert cats(path, keypoint_names='abcd').FLIP_PAIRS == ()


def test_persons_are_cocos(tmp_path):
    person = dict(id=1, name='person', keypoints=list(coco_person.NAMES),
                  skeleton=[[i + 1, j + 1] for i, j in coco_person.SKELETON])
    rows = [annotation(1, category=1, keypoints=[7, 8, 2] * 17)]
    for categories in ([person], [dict(id=1, name='person')]):
        dataset = CocoKeypointDataset(write(tmp_path, rows, categories), [])
        assert dataset.CLASSES == ('person',) and dataset.KEYPOINT_NAMES == coco_person.NAMES
        assert dataset.FLIP_PAIRS == coco_person.FLIP_PAIRS == coco_person.named_pairs(coco_person.NAMES)
        assert dataset.SIGMAS == coco_person.SIGMAS and dataset.SKELETON == coco_person.SKELETON


@pytest.mark.parametrize('keywords, words', [
    (dict(flip_pairs=[[1, 4]]), 'flip_pairs.*4 keypoints'), (dict(flip_pairs=[[1, 2], [2, 3]]), 'flip_pairs'),
    (dict(skeleton=[[0, 9]]), 'skeleton.*beyond 0 to 3'), (dict(sigmas=[.1] * 3), 'sigmas.*4 keypoints'),
    (dict(sigmas=[.1, .1, 0, .1]), 'sigmas'), (dict(keypoint_names=['nose']), 'keypoint_names are 1, .* have 4')])
def test_keywords_that_disagree(tmp_path, keywords, words):
    with pytest.raises(ConfigError, match=words):
        cats(write(tmp_path, [annotation(1)]), **keywords)


@pytest.mark.parametrize('keypoints, words', [
    (KEYPOINTS[:9], 'annotation 7 has 9 numbers .* 4 keypoints .* have 12'),
    ([1, 2, 3] * 4, 'annotation 7.*visibility'),
    ([float('nan'), 2, 2] * 4, 'annotation 7.*finite'), (['x', 2, 2] * 4, 'annotation 7')])
def test_keypoints_that_cannot_be_right(tmp_path, keypoints, words):
    rows = [annotation(1), dict(annotation(7, keypoints=None), keypoints=keypoints)]
    with pytest.raises(DataError, match=words):
        cats(write(tmp_path, rows))


def test_a_file_without_keypoints(tmp_path):
    path = write(tmp_path, [annotation(1, keypoints=None)], categories=[dict(id=2, name='cat')])
    with pytest.raises(DataError, match='no annotation has .keypoints.*person_keypoints'):
        cats(path)
    assert len(cats(path, test_mode=True)) == 3                                          # to be tested on all the same


def test_categories_of_other_keypoints(tmp_path):
    other = dict(CAT, id=3, name='dog', keypoints=NAMES[:3])
    path = write(tmp_path, [annotation(1)], categories=[CAT, other])
    assert len(cats(path)) == 1                                                          # one class: no question
    with pytest.raises(DataError, match="'cat' and 'dog' have different keypoints"):
        cats(path, classes=('cat', 'dog'))
    with pytest.raises(DataError, match='skeleton of category .cat.*count from 1'):
        cats(write(tmp_path, [annotation(1)], categories=[dict(CAT, skeleton=[[0, 1]])]))


def test_a_class_without_keypoints_beside_one_with(tmp_path):
    rows = [annotation(1), annotation(2, keypoints=None, category=3)]
    info = cats(write(tmp_path, rows, [CAT, dict(id=3, name='box')]), classes=('box', 'cat')).get_ann_info(0)
    assert info['labels'].tolist() == [1, 0] and not info['keypoints'][1].any() and info['keypoints'][0].any()


def test_images_with_few_keypoints_are_left_out_of_training(tmp_path):
    rows = [annotation(1), annotation(2, image=2, keypoints=[0, 0, 0] * 4), annotation(3, image=2, keypoints=None),
            dict(annotation(4, image=2), iscrowd=1, segmentation=dict(size=[80, 100], counts=[8000]))]
    path = write(tmp_path, rows)
    dataset = cats(path)
    assert dataset.img_ids == [1]
    assert dataset.filter_report['few_keypoints'] == 1 and dataset.filter_report['empty'] == 1
    assert cats(path, min_keypoints=0).img_ids == [1, 2] and cats(path, min_keypoints=4).img_ids == []
    assert cats(path, test_mode=True).img_ids == [1, 2, 3] == cats(path, filter_empty_gt=False).img_ids


# ------------------------------------------------------------------------------------------ transforms


def sample(seed=0, height=48, width=64):
    """Two objects; each keypoint lies on a pixel of a colour of its own, and ``colors`` (N, J) tells which."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    spots = rng.permutation(height * width)[:8]
    image.reshape(-1, 3)[spots] = np.arange(1, 9)[:, None] * 25
    keypoints = np.stack([spots % width + 0.5, spots // width + 0.5, rng.integers(1, 3, 8)], axis=1).astype(np.float32)
    keypoints = keypoints.reshape(2, 4, 3)
    keypoints[1, 3] = 0
    corner = keypoints[:, :3, :2].min(axis=1) - 0.5
    boxes = np.concatenate([corner, keypoints[:, :, :2].max(axis=1) + 0.5], axis=1)
    return dict(img=image, img_shape=image.shape, ori_shape=image.shape, img_fields=['img'], bbox_fields=['gt_bboxes'],
                gt_bboxes=boxes, gt_labels=np.array([0, 1]), gt_keypoints=keypoints, keypoint_fields=['gt_keypoints'],
                flip_pairs=[(1, 2)], colors=np.arange(1, 9).reshape(2, 4) * 25)


def check_keypoints(results, swapped=False):
    """Every keypoint lies on its own colour or, when that is not in the image any more, is not labelled."""
    order = [0, 2, 1, 3] if swapped else [0, 1, 2, 3]
    first = sample()
    for row, label in zip(results['gt_keypoints'], results['gt_labels']):
        for j, (x, y, visibility) in enumerate(row):
            color, before = first['colors'][label, order[j]], first['gt_keypoints'][label, order[j]]
            there = np.argwhere(results['img'][..., 0] == color)
            if before[2] == 0 or len(there) == 0:
                assert (x, y, visibility) == (0, 0, 0)
            else:
                assert [int(y), int(x)] == there[0].tolist() and (x % 1, y % 1) == (0.5, 0.5)
                assert visibility == before[2]


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flip_moves_keypoints_and_swaps_sides_in_a_mirror(direction):
    results = RandomFlip(1.0, direction)(sample())
    check_keypoints(results, swapped=direction != 'diagonal')
    np.testing.assert_array_equal(RandomFlip(1.0, direction)({k: v for k, v in results.items() if k != 'flip'}
                                                             )['gt_keypoints'], sample()['gt_keypoints'])


def test_a_flip_needs_the_pairs():
    results = sample()
    del results['flip_pairs']
    with pytest.raises(ConfigError, match='flip_pairs'):
        RandomFlip(1.0)(results)
    del results['flip'], results['flip_direction']
    assert RandomFlip(0.0)(results)['flip'] is False


@pytest.mark.parametrize('transform', [
    RandomCrop((30, 40)), RandomCrop((0.5, 0.7), 'relative'), Expand(prob=1), MinIoURandomCrop(), AspectCrop(0.9, 1.1),
    Pad(size=(64, 96))], ids=lambda t: type(t).__name__)
def test_cut_and_laid_out_images_keep_their_keypoints(transform):
    for seed in range(12):
        np.random.seed(seed)
        results = transform(sample())
        if results is not None:
            assert len(results['gt_keypoints']) == len(results['gt_bboxes']) == len(results['gt_labels'])
            assert results['gt_keypoints'].dtype == np.float32
            check_keypoints(results)


def test_resize_scales_keypoints():
    results = Resize(img_scale=(128, 144), keep_ratio=False)(sample())
    expected = sample()['gt_keypoints'] * np.float32([2, 3, 1])
    np.testing.assert_allclose(results['gt_keypoints'], expected)
    assert results['gt_keypoints'].dtype == np.float32


def test_keypoints_on_the_border_stay_and_beyond_it_are_gone():
    keypoints = np.float32([[[0, 0, 2], [10, 8, 1], [10.1, 3, 2], [-0.1, 3, 2], [5, 5, 0]]])
    assert visible_keypoints(keypoints, (8, 10)).tolist() == [[[0, 0, 2], [10, 8, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]]


def test_loading_and_filtering(tmp_path):
    dataset = cats(write(tmp_path, [annotation(1)]))
    results = dict(img_info=dataset.img_info(0), ann_info=dataset.get_ann_info(0), img_shape=(80, 100, 3))
    dataset.pre_pipeline(results)
    LoadAnnotations(with_keypoint=True)(results)
    assert results['gt_keypoints'].shape == (1, 4, 3) and results['keypoint_fields'] == ['gt_keypoints']
    assert results['gt_keypoints'] is not results['ann_info']['keypoints'] and results['flip_pairs'] == [(1, 2)]
    plain = dict(results, ann_info=dict(bboxes=np.zeros((0, 4)), labels=np.zeros(0)))
    with pytest.raises(ConfigError, match='CocoKeypointDataset'):
        LoadAnnotations(with_keypoint=True)(plain)
    filtered = FilterAnnotations(min_gt_bbox_wh=(100, 100), keep_empty=False)(results)
    assert filtered['gt_keypoints'].shape == (0, 4, 3)


def test_copy_paste_hides_what_it_covers():
    under, over = sample(), sample(1)
    over['gt_bboxes'] = np.float32([[50, 0, 64, 48], [18, 0, 30, 48]])
    for part in (under, over):
        part['gt_masks'] = BitmapMasks.from_boxes(part['gt_bboxes'], 48, 64)
    under['gt_keypoints'][..., 2] = np.where(under['gt_keypoints'][..., 2] > 0, 2, 0)
    region = over['gt_masks'].union()
    before = under['gt_keypoints'].copy()
    found = CopyPaste(selected=False, mask_occluded_thr=0)(dict(under, mix_results=[over]))
    assert len(found['gt_keypoints']) == len(found['gt_labels']) and np.array_equal(found['gt_keypoints'][-2:],
                                                                                    over['gt_keypoints'])
    kept = len(found['gt_keypoints']) - 2
    assert kept and np.array_equal(found['gt_keypoints'][:kept, :, :2], before[:kept, :, :2])
    hidden = 0
    for was, now in zip(before[:kept].reshape(-1, 3), found['gt_keypoints'][:kept].reshape(-1, 3)):
        covered = was[2] > 0 and region[int(was[1]), int(was[0])]
        assert now[2] == (1 if covered else was[2])
        hidden += bool(covered)
    assert hidden and np.array_equal(under['gt_keypoints'], before)


def test_collate_hands_keypoints_on():
    objects = dict(img=np.zeros((32, 32, 3), np.uint8), gt_bboxes=np.zeros((2, 4), np.float32),
                   gt_keypoints=np.ones((2, 4, 3), np.float32),
                   img_metas=dict(img_shape=(32, 32, 3), pad_shape=(32, 32, 3), img_norm_cfg=dict(to_rgb=True)))
    batch = collate([objects])
    assert batch.gt[0].keypoints.shape == (2, 4, 3) and batch.gt[0][1:].keypoints.dtype == torch.float32


def test_from_the_shapes_file_to_the_batch(repo_root, shapes_dir):
    from boxdet.engine.config import load_config
    cfg = load_config(repo_root / 'configs/shapes/keypoint_rcnn_r18_fpn_shapes.py', {
        'data.train.ann_file': str(shapes_dir / 'annotations/instances_train.json'),
        'data.train.img_prefix': str(shapes_dir / 'train')})
    dataset = build_dataset(cfg.data.train)
    assert dataset.FLIP_PAIRS == ((3, 4), (5, 6), (7, 8), (9, 10)) and len(dataset.SKELETON) == 10
    batch = next(iter(build_dataloader(dataset, 2, 0, seed=0)))
    for objects, meta in zip(batch.gt, batch.metas):
        assert objects.keypoints.shape == (len(objects), 11, 3) and objects.keypoints.dtype == torch.float32
        seen = objects.keypoints[..., 2] > 0
        height, width = meta.img_shape[:2]
        place = objects.keypoints[..., :2][seen]
        assert seen.any() and (place >= 0).all() and (place <= torch.tensor([width, height])).all()
        # A stickman faces the viewer: its left side is on the right, flipped or not.
        both = seen[:, 9] & seen[:, 10]
        assert (objects.keypoints[both, 9, 0] > objects.keypoints[both, 10, 0]).all()
