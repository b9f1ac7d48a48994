"""Albu, Corrupt and InstaBoost, where their libraries are installed."""
import importlib
import sys

import numpy as np
import pytest

from boxdet.datasets.pipelines.libraries import Albu, Corrupt, InstaBoost
from boxdet.errors import ConfigError
from boxdet.structures.masks import BitmapMasks, PolygonMasks


def library(name):
    """``name``, imported; a test that needs it is skipped where it is not installed or does not start here."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f'{name} cannot be imported: {error}')


@pytest.mark.parametrize('cls, name, options', [
    (Albu, 'albumentations', dict(transforms=[])), (Corrupt, 'imagecorruptions', dict(corruption='fog')),
    (InstaBoost, 'instaboostfast', {})])
def test_a_missing_library_is_named(monkeypatch, cls, name, options):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f'{cls.__name__} needs {name} .*: pip install {name}'):
        cls(**options)


def test_a_library_that_needs_older_setuptools_says_so(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'pkg_resources'", name='pkg_resources')
    monkeypatch.setattr('boxdet.datasets.pipelines.libraries.importlib.import_module', missing)
    with pytest.raises(ConfigError, match=r'Corrupt needs imagecorruptions .*: pip install "setuptools<81"$'):
        Corrupt(corruption='fog')


HW = 60, 80


def sample(polygons=False):
    boxes = np.float32([[5, 6, 30, 25], [40, 10, 70, 50], [60, 40, 79, 59]])
    outlines = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in boxes.astype(float)]
    masks = PolygonMasks(outlines, *HW)
    image = np.zeros((*HW, 3), np.uint8)
    for k, bitmap in enumerate(masks.to_bitmaps()):
        image[bitmap > 0] = 80 * (k + 1)
    keypoints = np.stack([boxes[:, :2] + 1, boxes[:, 2:] - 1], axis=1)
    return dict(img=image, depth=image[..., 0].astype(np.float32), img_shape=image.shape, img_fields=['img', 'depth'],
                gt_bboxes=boxes, gt_labels=np.arange(3), gt_masks=masks if polygons else masks.to_bitmap(),
                gt_keypoints=np.concatenate([keypoints, np.full((3, 2, 1), 2)], axis=2).astype(np.float32),
                gt_bboxes_ignore=np.float32([[1, 1, 20, 9]]), gt_semantic_seg=image[..., 0].copy(), flip_pairs=[(0, 1)],
                bbox_fields=['gt_bboxes', 'gt_bboxes_ignore'], mask_fields=['gt_masks'], seg_fields=['gt_semantic_seg'],
                keypoint_fields=['gt_keypoints'])


def same_everywhere(results):
    """Boxes, masks, map, depth and keypoints say the same."""
    assert isinstance(results['gt_masks'], BitmapMasks)
    assert np.abs(results['gt_masks'].bboxes() - results['gt_bboxes']).max(initial=0) <= 1
    assert len(results['gt_bboxes']) == len(results['gt_labels']) == len(results['gt_keypoints'])
    for mask, label in zip(results['gt_masks'], results['gt_labels']):
        assert (results['gt_semantic_seg'][mask > 0] >= 80 * (label + 1)).mean() > 0.98
    assert np.array_equal(results['gt_semantic_seg'], results['depth']) and results['depth'].dtype == np.float32
    assert results['gt_bboxes'].dtype == results['gt_bboxes_ignore'].dtype == np.float32


@pytest.mark.parametrize('polygons', [False, True])
def test_a_mirror_by_albumentations(polygons):
    library('albumentations')
    results = Albu([dict(type='HorizontalFlip', p=1.0)])(sample(polygons))
    given = sample()
    assert np.array_equal(results['img'], given['img'][:, ::-1]) and results['img'].flags.c_contiguous
    same_everywhere(results)
    flipped = given['gt_bboxes'][:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [80, 0, 80, 0]
    np.testing.assert_allclose(results['gt_bboxes'], flipped, atol=1e-3)
    np.testing.assert_allclose(results['gt_bboxes_ignore'], [[60, 1, 79, 9]], atol=1e-3)
    mirrored = given['gt_keypoints'][:, ::-1, :2]  # left and right change places
    assert np.abs(results['gt_keypoints'][..., :2] - (mirrored * [-1, 1] + [80, 0])).max() <= 1
    bare = {key: value for key, value in sample().items() if key != 'flip_pairs'}
    with pytest.raises(ConfigError, match='Albu: a mirror'):
        Albu([dict(type='HorizontalFlip', p=1.0)])(bare)


def test_albumentations_crops_and_drops():
    library('albumentations')
    crop = dict(type='Crop', x_min=0, y_min=0, x_max=45, y_max=40)
    results = Albu([crop], bbox_params=dict(type='BboxParams', format='pascal_voc', label_fields=['gt_labels'],
                                            min_visibility=0.0, filter_lost_elements=True))(sample())
    assert results['gt_labels'].tolist() == [0, 1] and results['img'].shape == results['img_shape'] == (40, 45, 3)
    assert results['pad_shape'] == (40, 45, 3) and results['gt_semantic_seg'].shape == (40, 45)
    assert results['gt_bboxes'].tolist() == [[5, 6, 30, 25], [40, 10, 45, 40]]
    same_everywhere(results)
    strict = Albu([crop], bbox_params=dict(type='BboxParams', min_visibility=0.5))(sample())
    assert strict['gt_labels'].tolist() == [0] and len(strict['gt_masks']) == 1
    far = dict(crop, x_min=0, y_min=55, x_max=30, y_max=60)
    assert Albu([far], skip_img_without_anno=True)(sample()) is None
    assert len(Albu([far])(sample())['gt_masks']) == 0
    empty = sample()
    empty.update(gt_bboxes=np.zeros((0, 4), np.float32), gt_labels=np.zeros(0, np.int64),
                 gt_masks=empty['gt_masks'][[]], gt_keypoints=np.zeros((0, 2, 3), np.float32))
    assert Albu([crop])(empty)['gt_bboxes'].shape == (0, 4)


def test_albumentations_draws_from_the_seed():
    library('albumentations')
    transform = Albu([dict(type='RandomBrightnessContrast', p=0.9),
                      dict(type='OneOf', p=0.8, transforms=[dict(type='Blur', p=1.0),
                                                            dict(type='VerticalFlip', p=1.0)])],
                     keymap=dict(img='image', gt_bboxes='bboxes', gt_masks='masks', heat='mask'))

    def drawn(seed):
        np.random.seed(seed)
        results = transform(dict(sample(), heat=sample()['gt_semantic_seg']))
        same_everywhere(results)
        assert np.array_equal(results['heat'], results['gt_semantic_seg'])
        return results['img']

    images = [drawn(seed) for seed in range(8)]
    assert all(np.array_equal(drawn(seed), image) for seed, image in enumerate(images))
    assert len({image.tobytes() for image in images}) > 5


def test_what_albumentations_does_not_know():
    library('albumentations')
    for options, message in (
            (dict(transforms=[dict(type='HorizontalFlop')]), "has no 'HorizontalFlop'; did you mean 'HorizontalFlip'"),
            (dict(transforms=[dict(p=1)]), "no config with a 'type'"),
            (dict(transforms=[], bbox_params=dict(type='BboxParams', format='coco')), "'pascal_voc' and not 'coco'"),
            (dict(transforms=[], bbox_params=dict(min_visibilty=1)), 'Albu: BboxParams'),
            (dict(transforms=[], keymap=dict(gt_depth='depth')), "'gt_depth' is treated as 'mask' or 'image'")):
        with pytest.raises(ConfigError, match=message):
            Albu(**options)


def test_corruptions():
    library('imagecorruptions')
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    np.random.seed(0)
    found = Corrupt('gaussian_noise', 3)(dict(img=image))['img']
    assert found.dtype == np.uint8 and found.shape == image.shape and not np.array_equal(found, image)
    for wrong, message in ((dict(corruption='gausian_noise'), "did you mean 'gaussian_noise'"),
                           (dict(corruption='snow', severity=6), 'severity 6')):
        with pytest.raises(ConfigError, match=message):
            Corrupt(**wrong)


def test_a_corruption_that_fails_is_one_line(monkeypatch):
    module = library('imagecorruptions')
    monkeypatch.setattr(module, 'corrupt', lambda *args, **options: np.float_)
    transform = Corrupt('fog')
    with pytest.raises(ConfigError, match=r"imagecorruptions fails in 'fog' with the installed versions .*float_"):
        transform(dict(img=np.zeros((8, 8, 3), np.uint8)))


def test_instaboost():
    library('instaboostfast')
    given = sample()
    info = dict(bboxes=given['gt_bboxes'], labels=given['gt_labels'], names=['a', 'b', 'c'],
                bboxes_ignore=np.zeros((0, 4)),
                masks=[[[float(v) for v in polygon]] for polygon in np.concatenate(sample(True)['gt_masks'].masks)])
    np.random.seed(1)
    results = InstaBoost(aug_ratio=1.0)(dict(img=given['img'], img_info=dict(filename='x.jpg'), ann_info=info))
    moved = results['ann_info']
    assert len(moved['bboxes']) == len(moved['labels']) == len(moved['masks']) == len(moved['names']) > 0
    assert moved['bboxes'].dtype == np.float32 and moved['labels'].dtype == np.int64
    assert ((moved['bboxes'][:, 2:] - moved['bboxes'][:, :2]) > 0).all() and results['img'].shape == given['img'].shape
    kept = dict(img=given['img'], img_info={}, ann_info=info)
    assert InstaBoost(aug_ratio=0.0)(kept)['ann_info'] is info
    with pytest.raises(ConfigError, match='InstaBoost moves masks, and no keypoints; x.jpg has bboxes'):
        InstaBoost(aug_ratio=1.0)(dict(img=given['img'], img_info=dict(filename='x.jpg'), ann_info=dict(bboxes=[])))
