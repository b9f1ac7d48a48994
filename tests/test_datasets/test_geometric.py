"""Geometric transforms: mmdetection 2.28's numbers, boxes, masks and pixels moving together."""
import inspect

import cv2
import numpy as np
import pytest

from boxdet.datasets.pipelines import geometric as G
from boxdet.datasets.pipelines.geometric import (
    AspectCrop,
    Expand,
    MinIoURandomCrop,
    Pad,
    RandomAffine,
    RandomCrop,
    RandomFlip,
    RandomShift,
    Resize,
    SegRescale,
    larger_than,
)
from boxdet.datasets.warps import flip_boxes
from boxdet.errors import ConfigError
from boxdet.structures.masks import BitmapMasks


def sample(height=48, width=64, seed=0, objects=4):
    """An image with one grey rectangle an object; boxes and masks are those rectangles."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    bitmaps, boxes = np.zeros((objects, height, width), dtype=np.uint8), []
    for i in range(objects):
        x1, y1 = int(rng.integers(0, width - 12)), int(rng.integers(0, height - 12))
        x2, y2 = x1 + int(rng.integers(4, 12)), y1 + int(rng.integers(4, 12))
        bitmaps[i, y1:y2, x1:x2] = 1
        image[y1:y2, x1:x2] = 60 * (i + 1)
        boxes.append([x1, y1, x2, y2])
    return dict(img=image, img_shape=image.shape, ori_shape=image.shape, img_fields=['img'],
                gt_bboxes=np.array(boxes, dtype=np.float32), gt_labels=np.arange(objects),
                gt_bboxes_ignore=np.array([[2, 3, 20, 30]], dtype=np.float32),
                gt_masks=BitmapMasks(bitmaps, height, width), gt_semantic_seg=image[..., 0].copy(),
                bbox_fields=['gt_bboxes', 'gt_bboxes_ignore'], mask_fields=['gt_masks'],
                seg_fields=['gt_semantic_seg'])


def check_together(results, tolerance=0.0):
    """Boxes are those of the masks, and all arrays have one size."""
    hw = results['img'].shape[:2]
    assert results['gt_semantic_seg'].shape == hw and (results['gt_masks'].height, results['gt_masks'].width) == hw
    assert len(results['gt_masks']) == len(results['gt_labels']) == len(results['gt_bboxes'])
    assert np.abs(results['gt_masks'].bboxes() - results['gt_bboxes']).max(initial=0) <= tolerance


def test_resize_of_a_line_and_of_a_point():
    line = Resize(img_scale=(1333, 800))(dict(img=np.full((3000, 1, 3), 9, dtype=np.uint8)))
    assert line['img'].shape == (1333, 1, 3) and np.allclose(line['scale_factor'], [1, 1333 / 3000] * 2)
    point = Resize(img_scale=(1333, 800))(dict(img=np.full((1, 1, 3), 9, dtype=np.uint8)))
    assert point['img'].shape == (800, 800, 3) and (point['img'] == 9).all()


@pytest.mark.parametrize('hw, expected', [((480, 640), (800, 1067)), ((640, 427), (1199, 800)),
                                          ((427, 640), (800, 1199)), ((300, 1500), (267, 1333)),
                                          ((640, 638), (803, 800))])
def test_resize_keeps_the_ratio(hw, expected):
    results = sample(*hw)
    Resize(img_scale=(1333, 800))(results)
    assert results['img'].shape == results['img_shape'] == results['pad_shape'] == (*expected, 3)
    factor = np.array([expected[1] / hw[1], expected[0] / hw[0]] * 2, dtype=np.float32)
    assert results['scale_factor'].dtype == np.float32 and np.array_equal(results['scale_factor'], factor)
    original = sample(*hw)
    assert np.array_equal(results['gt_bboxes'], original['gt_bboxes'] * factor)
    assert np.array_equal(results['img'], cv2.resize(original['img'], expected[::-1]))
    assert np.array_equal(results['gt_masks'].masks[0], cv2.resize(original['gt_masks'].masks[0], expected[::-1],
                                                                   interpolation=cv2.INTER_NEAREST))
    check_together(results, tolerance=max(factor.max(), 1))


def test_resize_exactly_and_by_factor():
    results = Resize(img_scale=(100, 30), keep_ratio=False)(sample())
    assert results['img'].shape == (30, 100, 3) and results['keep_ratio'] is False
    assert results['scale_factor'].tolist() == [np.float32(100 / 64), 0.625] * 2
    results = sample()
    results['scale_factor'] = 0.5
    assert Resize()(results)['img'].shape == (24, 32, 3)
    for backend in ('cv2', 'pillow'):
        resize = Resize(img_scale=(32, 24), backend=backend, interpolation='nearest')
        assert resize(sample())['img'].shape == (24, 32, 3)


def test_resize_draws_scales():
    np.random.seed(0)
    value = Resize(img_scale=[(64, 40), (64, 44), (64, 48)], multiscale_mode='value')
    shorter = {value(sample())['img'].shape[0] for _ in range(40)}
    assert shorter == {40, 44, 48}
    ranged = Resize(img_scale=[(100, 40), (64, 48)])
    shorter = {ranged(sample())['img'].shape[0] for _ in range(60)}
    assert shorter == set(range(40, 49))
    ratio = Resize(img_scale=(64, 48), ratio_range=(0.5, 2.0))
    sides = [ratio(sample())['img'].shape[0] for _ in range(40)]
    assert min(sides) >= 24 and max(sides) <= 96 and max(sides) - min(sides) > 40
    assert value(sample())['scale_idx'] in (0, 1, 2) and ranged(sample())['scale_idx'] is None


def test_resize_twice():
    once = Resize(img_scale=(32, 24))(sample())
    with pytest.raises(ConfigError, match='override=True'):
        Resize(img_scale=(64, 48))(dict(once))
    assert Resize(img_scale=(64, 48), override=True)(once)['img'].shape == (48, 64, 3)


def test_boxes_are_clipped_or_not():
    results = sample()
    results['gt_bboxes'][0] = [-5, -5, 70, 50]
    assert Resize(img_scale=(128, 96))(dict(results))['gt_bboxes'][0].tolist() == [0, 0, 128, 96]
    free = Resize(img_scale=(128, 96), bbox_clip_border=False)(dict(results))
    assert free['gt_bboxes'][0].tolist() == [-10, -10, 140, 100]


@pytest.mark.parametrize('wrong', [dict(img_scale=(1, 2), multiscale_mode='any'), dict(ratio_range=(1, 2)),
                                   dict(img_scale=[(1, 2), (3, 4)], ratio_range=(1, 2)), dict(img_scale=[(1, 2, 3)]),
                                   dict(img_scale=[(1, 2), (3, 4), (5, 6)]), dict(interpolation='linear'),
                                   dict(backend='turbo')])
def test_resize_refuses(wrong):
    with pytest.raises(ConfigError, match='Resize'):
        Resize(**wrong)


def test_resize_takes_lists_from_the_command_line():
    assert Resize(img_scale=[1333, 800]).img_scale == [(1333, 800)]
    assert Resize(img_scale=[[1333, 640], [1333, 800]]).img_scale == [(1333, 640), (1333, 800)]
    assert Resize(img_scale=((1333, 640), (1333, 800))).img_scale == [(1333, 640), (1333, 800)]


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flip(direction):
    results, original = sample(), sample()
    results.update(flip=True, flip_direction=direction)
    RandomFlip()(results)
    axes = dict(horizontal=(1,), vertical=(0,), diagonal=(0, 1))[direction]
    assert np.array_equal(results['img'], np.flip(original['img'], axes))
    check_together(results)
    assert np.array_equal(flip_boxes(results['gt_bboxes'], (48, 64), direction), original['gt_bboxes'])


def test_flip_ratios():
    np.random.seed(0)

    def shares(transform):
        drawn = [transform(sample(objects=1)) for _ in range(400)]
        directions = 'horizontal', 'vertical', 'diagonal', None
        return [np.mean([r['flip_direction'] == direction for r in drawn]) for direction in directions]

    assert shares(RandomFlip(0.0)) == [0, 0, 0, 1] and shares(RandomFlip(1.0, 'vertical')) == [0, 1, 0, 0]
    assert np.allclose(shares(RandomFlip(0.5)), [0.5, 0, 0, 0.5], atol=0.08)
    assert np.allclose(shares(RandomFlip(0.5, ['horizontal', 'vertical'])), [0.25, 0.25, 0, 0.5], atol=0.08)
    assert np.allclose(shares(RandomFlip([0.1, 0.2, 0.6], ['horizontal', 'vertical', 'diagonal'])), [.1, .2, .6, .1],
                       atol=0.08)
    told = RandomFlip(0.0, 'vertical')(dict(sample(), flip=True))
    assert told['flip_direction'] == 'vertical' and not np.array_equal(told['img'], sample()['img'])
    with pytest.raises(ConfigError, match='sideways'):
        RandomFlip(0.5, 'sideways')
    with pytest.raises(ConfigError, match='sum to 1'):
        RandomFlip([0.7, 0.7], ['horizontal', 'vertical'])
    with pytest.raises(ConfigError, match='flip_ratio'):
        RandomFlip()(sample())


def test_pad():
    results = Pad(size_divisor=32)(sample(48, 65))
    assert results['img'].shape == results['pad_shape'] == (64, 96, 3) and results['img_shape'] == (48, 65, 3)
    assert results['pad_size_divisor'] == 32 and results['pad_fixed_size'] is None
    assert not results['img'][48:].any() and (results['gt_semantic_seg'][48:] == 255).all()
    check_together(results)
    assert Pad(size=(50, 80), pad_val=7)(sample())['img'][49, 79].tolist() == [7, 7, 7]
    assert Pad(pad_to_square=True, pad_val=dict(img=(1, 2, 3)))(sample())['img'][63, 0].tolist() == [1, 2, 3]
    with pytest.raises(ConfigError, match='exactly one'):
        Pad(size=(3, 4), size_divisor=32)
    with pytest.raises(ConfigError, match='smaller'):
        Pad(size=(10, 10))(sample())
    filled = Pad(size_divisor=32, pad_val=dict(img=3, masks=1, seg=9))(sample(40, 60))
    assert (filled['gt_masks'].masks[:, 40:] == 1).all() and (filled['gt_masks'].masks[:, :40, 60:] == 1).all()
    assert (filled['gt_semantic_seg'][40:] == 9).all() and (filled['img'][40:] == 3).all()
    assert np.array_equal(filled['gt_masks'].masks[:, :40, :60], sample(40, 60)['gt_masks'].masks)
    with pytest.raises(ConfigError, match="Pad.pad_val knows no 'mask'; did you mean 'masks'"):
        Pad(size_divisor=32, pad_val=dict(mask=1))


@pytest.mark.parametrize('options', [dict(crop_size=(30, 40)), dict(crop_size=(20, 40), crop_type='absolute_range'),
                                     dict(crop_size=(0.5, 0.6), crop_type='relative'),
                                     dict(crop_size=(0.5, 0.5), crop_type='relative_range')])
def test_random_crop(options):
    for seed in range(20):
        np.random.seed(seed)
        results = RandomCrop(**options)(sample(seed=seed))
        if results is None:
            continue
        check_together(results)
        assert results['img'].shape == results['img_shape']
        for box, label in zip(results['gt_bboxes'].astype(int), results['gt_labels']):
            inside = results['img'][box[1]:box[3], box[0]:box[2], 0]
            assert inside.size and (inside >= 60 * (label + 1)).all()  # later rectangles lie on top


def test_random_crop_without_objects():
    results = sample(objects=1)
    results['gt_bboxes'][:] = [0, 0, 1, 1]
    np.random.seed(3)
    assert RandomCrop((10, 10))(dict(results)) is None
    np.random.seed(3)
    kept = RandomCrop((10, 10), allow_negative_crop=True)(dict(results))
    assert len(kept['gt_bboxes']) == len(kept['gt_labels']) == len(kept['gt_masks']) == 0
    for wrong in (dict(crop_size=(0, 3)), dict(crop_size=(2, 3), crop_type='relative'),
                  dict(crop_size=(1, 1), crop_type='x')):
        with pytest.raises(ConfigError, match='RandomCrop'):
            RandomCrop(**wrong)


def test_recomputed_boxes_come_from_the_masks():
    results = sample()
    results['gt_bboxes'] -= [2, 2, -2, -2]
    np.random.seed(1)
    check_together(RandomCrop((40, 50), recompute_bbox=True)(results))


def test_expand():
    np.random.seed(0)
    results = Expand(mean=(10, 20, 30), prob=1.0, ratio_range=(1.5, 3), seg_ignore_label=9)(sample())
    height, width = results['img'].shape[:2]
    assert height >= 72 and width >= 96 and results['img_shape'] == results['img'].shape
    check_together(results)
    outside = np.ones((height, width), dtype=bool)
    top = int(results['gt_bboxes'][0, 1] - sample()['gt_bboxes'][0, 1])
    left = int(results['gt_bboxes'][0, 0] - sample()['gt_bboxes'][0, 0])
    outside[top:top + 48, left:left + 64] = False
    assert (results['img'][outside] == [30, 20, 10]).all() and (results['gt_semantic_seg'][outside] == 9).all()
    assert Expand(prob=0.0)(sample())['img'].shape == (48, 64, 3)
    grown = [Expand(prob=0.3, ratio_range=(2, 2))(sample())['img'].shape[0] > 48 for _ in range(300)]
    assert 0.22 < np.mean(grown) < 0.38


def long_sample(boxes, height=40, width=200):
    """An image whose columns are numbered, with objects at ``boxes``."""
    bitmaps = np.zeros((len(boxes), height, width), dtype=np.uint8)
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes):
        bitmap[y1:y2, x1:x2] = 1
    image = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 3)).copy()
    keypoints = np.array([[[x1, y1, 2], [x2, y2, 1]] for x1, y1, x2, y2 in boxes], dtype=np.float32).reshape(-1, 2, 3)
    return dict(img=image, img_shape=image.shape, img_fields=['img'], gt_labels=np.arange(len(boxes)),
                gt_bboxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
                gt_masks=BitmapMasks(bitmaps, height, width),
                gt_keypoints=keypoints, keypoint_fields=['gt_keypoints'], bbox_fields=['gt_bboxes'],
                mask_fields=['gt_masks'])


def test_aspect_crop_keeps_all_objects_where_they_fit():
    """40 x 200 at a ratio of 2 leaves 80 columns; objects from 100 to 150: it starts between 70 and 100."""
    starts = set()
    for seed in range(60):
        np.random.seed(seed)
        results = AspectCrop(0.5, 2.0)(long_sample([[100, 5, 120, 15], [130, 10, 150, 40]]))
        assert results['img'].shape == results['img_shape'] == results['pad_shape'] == (40, 80, 3)
        start = int(results['img'][0, 0, 0])
        starts.add(start)
        assert results['gt_bboxes'].tolist() == [[100 - start, 5, 120 - start, 15], [130 - start, 10, 150 - start, 40]]
        assert np.array_equal(results['gt_masks'].bboxes(), results['gt_bboxes'])
        assert results['gt_keypoints'][1].tolist() == [[130 - start, 10, 2], [150 - start, 40, 1]]
    assert starts <= {*range(70, 101)} and len(starts) > 15


def test_aspect_crop_of_objects_that_do_not_fit():
    """Objects from 20 to 180 reach 80 columns too far: it starts in the first half of that, from 20 to 60."""
    starts = set()
    for seed in range(60):
        np.random.seed(seed)
        results = AspectCrop(0.5, 2.0)(long_sample([[20, 5, 40, 15], [90, 0, 180, 20], [170, 0, 180, 20]]))
        start = int(results['img'][0, 0, 0])
        starts.add(start)
        expected = [box for box in ([max(20 - start, 0), 5, max(40 - start, 0), 15],
                                    [max(90 - start, 0), 0, min(180 - start, 80), 20]) if box[2] > box[0]]
        assert results['gt_bboxes'].tolist() == expected
        assert results['gt_labels'].tolist() == [i for i in range(2) if i or start < 40]  # the third is always outside
        assert len(results['gt_masks']) == len(results['gt_keypoints']) == len(expected)
    assert starts <= {*range(20, 61)} and len(starts) > 20


def test_aspect_crop_of_upright_empty_and_ordinary_images():
    upright = {k: v for k, v in long_sample([]).items() if k in ('img', 'img_shape', 'gt_bboxes', 'bbox_fields')}
    upright['img'] = np.ascontiguousarray(upright['img'].transpose(1, 0, 2))
    heights, starts = set(), set()
    for seed in range(40):
        np.random.seed(seed)
        results = AspectCrop(0.7, 1.5)(dict(upright))
        heights.add(results['img_shape'])
        starts.add(int(results['img'][0, 0, 0]))
    assert heights == {(58, 40, 3)} and len(starts) > 20 and max(starts) <= 142  # ceil(40 / 0.7)
    ordinary = long_sample([[3, 4, 30, 20]], width=80)
    before = ordinary['img'].copy()
    results = AspectCrop()(ordinary)
    assert np.array_equal(results['img'], before) and results['gt_bboxes'].tolist() == [[3, 4, 30, 20]]
    with pytest.raises(ConfigError, match='aspect_lo=3 and aspect_hi=2'):
        AspectCrop(aspect_lo=3, aspect_hi=2)


def test_min_iou_random_crop_drops_what_has_its_centre_on_the_edge(monkeypatch):
    transform, patch = MinIoURandomCrop(), np.array([10, 10, 30, 30])
    monkeypatch.setattr(transform, '_draw_patch', lambda results, least: patch)
    results = sample(objects=3)
    results['gt_bboxes'] = np.float32([[5, 12, 15, 20], [25, 12, 35, 20], [12, 24, 20, 34]])
    np.random.seed(1)  # another mode than the whole image
    assert transform(results)['gt_labels'].tolist() == [2]
    assert results['gt_bboxes'].tolist() == [[2, 14, 10, 20]]


def test_min_iou_random_crop():
    changed = 0
    for seed in range(30):
        np.random.seed(seed)
        results = MinIoURandomCrop(min_crop_size=0.5)(sample(seed=seed))
        assert results['img'].shape == results['img_shape'] and results['img'].dtype == np.uint8
        assert results['gt_semantic_seg'].shape == results['img'].shape[:2]
        assert len(results['gt_bboxes']) == len(results['gt_labels']) == len(results['gt_masks'])
        assert results['gt_bboxes'].dtype == np.float32
        assert np.abs(results['gt_masks'].bboxes() - results['gt_bboxes']).max(initial=0) == 0
        changed += results['img'].shape != (48, 64, 3)
    assert changed > 5


@pytest.mark.parametrize('wrong', [dict(shift_ratio=1.5), dict(shift_ratio=-0.1), dict(max_shift_px=-1)])
def test_a_shift_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match='RandomShift: shift_ratio='):
        RandomShift(**wrong)


@pytest.mark.parametrize('boxes, moves', [([[10., 10., 30., 30.]], True), ([[0., 0., 2., 2.]], False)])
def test_a_shift_that_leaves_no_object_is_not_made(monkeypatch, boxes, moves):
    monkeypatch.setattr(np.random, 'random', lambda: 0.)
    monkeypatch.setattr(np.random, 'randint', lambda low, high: -5)
    image = np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3)
    sample = dict(img=image.copy(), img_fields=['img'], bbox_fields=['gt_bboxes'],
                  gt_bboxes=np.array(boxes, np.float32), gt_labels=np.zeros(1, np.int64))
    shifted = RandomShift(shift_ratio=1., max_shift_px=8, filter_thr_px=1)(sample)
    assert shifted['gt_bboxes'].tolist() == [[value - 5 * moves for value in boxes[0]]]
    assert np.array_equal(shifted['img'][:35, :35], image[5:, 5:]) is moves


def test_boxes_as_wide_as_the_limit_are_not_larger():
    boxes = np.array([[0, 0, 4, 5], [0, 0, 5, 4], [1, 1, 6, 6], [3, 3, 8, 7]], np.float32)
    assert larger_than(4)(boxes, boxes).tolist() == [False, False, True, False]


# ---------------------------------------------------------------------------------------------- by hand

DEFAULTS = {
    Resize: dict(img_scale=None, multiscale_mode='range', ratio_range=None, keep_ratio=True, bbox_clip_border=True,
                 backend='cv2', interpolation='bilinear', override=False),
    RandomFlip: dict(flip_ratio=None, direction='horizontal'),
    Pad: dict(size=None, size_divisor=None, pad_to_square=False, pad_val=None),
    SegRescale: dict(scale_factor=1, backend='cv2'),
    RandomCrop: dict(crop_type='absolute', allow_negative_crop=False, recompute_bbox=False, bbox_clip_border=True),
    AspectCrop: dict(aspect_lo=0.5, aspect_hi=2.0),
    Expand: dict(mean=(0, 0, 0), to_rgb=True, ratio_range=(1, 4), seg_ignore_label=None, prob=0.5),
    MinIoURandomCrop: dict(min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3, bbox_clip_border=True),
    RandomShift: dict(shift_ratio=0.5, max_shift_px=32, filter_thr_px=1),
    RandomAffine: dict(max_rotate_degree=10.0, max_translate_ratio=0.1, scaling_ratio_range=(0.5, 1.5),
                       max_shear_degree=2.0, border=(0, 0), border_val=(114, 114, 114), min_bbox_size=2,
                       min_area_ratio=0.2, max_aspect_ratio=20, bbox_clip_border=True, skip_filter=True)}


@pytest.mark.parametrize('transform', DEFAULTS, ids=lambda transform: transform.__name__)
def test_defaults_are_those_of_2x(transform):
    parameters = inspect.signature(transform).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == DEFAULTS[transform]


def test_which_boxes_have_an_area_and_reach_into_the_image():
    boxes = np.float32([[0, 0, 0, 5], [0, 0, 5, 0], [2, 2, 3, 3], [4, 4, 3, 5], [4, 4, 5, 3]])
    assert G.with_area(boxes, boxes).tolist() == [False, False, True, False, False]
    edges = np.float32([[20, 0, 25, 5], [19, 9, 25, 15], [0, 10, 5, 15], [-5, 0, 0, 5], [0, -5, 5, 0], [-5, -5, 1, 1]])
    assert G.inside(edges, (10, 20)).tolist() == [False, True, False, False, False, True]


def test_what_is_left_of_an_object_looks_like_it():
    left = np.float32([[0, 0, 2, 10], [0, 0, 10, 2], [1, 1, 4, 4], [0, 0, 9, 3], [0, 0, 3, 9], [2, 3, 7, 8],
                       [0, 0, 10, 4]])
    whole = np.tile(np.float32([[0, 0, 10, 10]]), (len(left), 1))
    found = G.alike(whole, left, min_size=2, min_area_ratio=0.2, max_aspect_ratio=2.9)
    assert found.tolist() == [False, False, False, False, False, True, True]
    assert not G.alike(whole[:1], np.float32([[0, 0, 4, 5]]), 2, 0.2, 9).any()  # not above the share


def test_resize_draws_between_the_scales_with_both_ends(monkeypatch):
    asked = []
    monkeypatch.setattr(np.random, 'randint', lambda low, high: asked.append((low, high)) or low)
    assert Resize(img_scale=[(100, 40), (48, 64)])._draw_scale() == ((64, 40), None)
    assert asked == [(64, 101), (40, 49)]
    assert Resize(img_scale=(100, 40))._draw_scale() == ((100, 40), 0)


@pytest.mark.parametrize('wrong', [dict(crop_size=(3, 0)), dict(crop_size=(0, 3)), dict(crop_size=(5, 3),
                         crop_type='absolute_range'), dict(crop_size=(0, .5), crop_type='relative'),
                         dict(crop_size=(.5, 0), crop_type='relative'), dict(crop_size=(.5, 1.1),
                         crop_type='relative')])
def test_sizes_of_a_crop_that_are_none(wrong):
    with pytest.raises(ConfigError, match='RandomCrop.crop_size'):
        RandomCrop(**wrong)


@pytest.mark.parametrize('options', [dict(crop_size=(5, 3)), dict(crop_size=(3, 3), crop_type='absolute_range'),
                                     dict(crop_size=(1, 1)), dict(crop_size=(1, 1), crop_type='relative')])
def test_sizes_of_a_crop_that_are_just_right(options):
    assert RandomCrop(**options).crop_size == options['crop_size']


def test_padding_is_put_off_only_where_it_is_black():
    assert Pad(size_divisor=32).can_defer and Pad(size_divisor=32, pad_val=dict(img=(0, 0, 0))).can_defer
    assert not Pad(size_divisor=32, pad_val=1).can_defer


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_semantic_maps_alone_are_rescaled(backend):
    classes = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12)
    results = SegRescale(0.25, backend)(dict(seg=classes, seg_fields=['seg'], img=classes))
    first = 0 if backend == 'cv2' else 2  # of four pixels OpenCV takes the first, Pillow the middle one
    assert np.array_equal(results['seg'], classes[first::4, first::4]) and results['img'] is classes
    same = dict(seg=classes, seg_fields=['seg'])
    assert SegRescale(1, backend)(same)['seg'] is classes
    for wrong in (dict(scale_factor=0), dict(backend='turbo')):
        with pytest.raises(ConfigError, match='SegRescale'):
            SegRescale(**wrong)


@pytest.mark.parametrize('firsts, lasts, drawn', [
    ([], [], (0, 61)), ([10, 20], [30, 45], (5, 11)), ([70.5], [79.5], (40, 61)), ([10], [70], (10, 21))])
def test_where_a_part_of_a_long_image_begins(firsts, lasts, drawn, monkeypatch):
    """40 of 100 pixels: anywhere, around the objects, or within the first half of what they reach too far."""
    asked = []
    monkeypatch.setattr(np.random, 'randint', lambda low, high: asked.append((low, high)) or low)
    AspectCrop._draw_start(np.array(firsts), np.array(lasts), 100, 40)
    assert asked == [drawn]


def test_expand_draws_the_ratio_and_then_the_place(monkeypatch):
    drawn, asked = iter([0.5, 2.0, 10.9, 7.9]), []
    monkeypatch.setattr(np.random, 'uniform', lambda low, high: asked.append((low, high)) or next(drawn))
    results = Expand(ratio_range=(1, 4), prob=0.5)(sample())
    assert asked == [(0, 1), (1, 4), (0, 64), (0, 48)] and results['img'].shape == (96, 128, 3)
    assert np.array_equal(results['img'][7:55, 10:74], sample()['img'])


def test_overlaps_and_centres_of_a_part():
    boxes, patch = np.float64([[0, 0, 4, 4], [2, 2, 6, 6], [6, 6, 9, 9], [0, 0, 2, 2]]), np.array([2, 2, 6, 6])
    assert G._overlaps(boxes, patch).tolist() == [4 / 28, 1, 0, 0]
    assert G._centres_inside(boxes, patch).tolist() == [False, True, False, False]
    assert G._overlaps(np.float64([[0, 1, 3, 7]]), patch).tolist() == [4 / (18 + 16 - 4)]


@pytest.mark.parametrize('drawn, expected', [
    ([20.0, 30.0, 3.5, 4.5], [3, 4, 23, 34]), ([20.0, 41.0], None), ([41.0, 20.0], None),
    ([0.4, 0.5, 3.1, 4.1], None), ([0.5, 0.9, 3.1, 4.2], None), ([0.9, 0.5, 3.2, 4.1], None)])
def test_a_part_is_drawn_or_refused(drawn, expected, monkeypatch):
    """No longer than twice its width, and with an area in whole pixels."""
    numbers, asked = iter(drawn), []
    monkeypatch.setattr(np.random, 'uniform', lambda *bounds: asked.append(bounds) or next(numbers))
    found = MinIoURandomCrop(min_crop_size=0.5)._draw_patch(dict(img=np.zeros((48, 64, 3), np.uint8)), 0.5)
    assert (found if found is None else found.tolist()) == expected
    assert asked[:2] == [(32, 64), (24, 48)]
    assert asked[2:] == [(64 - drawn[0],), (48 - drawn[1],)][:len(asked) - 2]


def test_a_part_has_to_overlap_every_box(monkeypatch):
    results = dict(img=np.zeros((48, 64, 3), np.uint8), bbox_fields=['gt_bboxes'],
                   gt_bboxes=np.float32([[0, 0, 20, 30], [2, 2, 18, 40]]))

    def draw(least, boxes=results['gt_bboxes']):
        numbers = iter([20.0, 30.0, 0.0, 0.0])
        monkeypatch.setattr(np.random, 'uniform', lambda *_: next(numbers))
        return MinIoURandomCrop()._draw_patch(dict(results, gt_bboxes=boxes), least)
    overlap = 16 * 28 / (16 * 38 + 20 * 30 - 16 * 28)
    assert draw(overlap) is not None and draw(overlap + 1e-3) is None
    assert draw(0, np.float32([[30, 40, 50, 48]])) is None and draw(0, np.zeros((0, 4), np.float32)) is not None


def test_a_shift_of_no_pixel_and_one_by_chance(monkeypatch):
    monkeypatch.setattr(np.random, 'random', lambda: 0.5)
    monkeypatch.setattr(np.random, 'randint', lambda low, high: (low + 32, high)[high < 0])
    for transform in (RandomShift(shift_ratio=0.5), RandomShift(shift_ratio=1, max_shift_px=0)):
        assert np.array_equal(transform(sample())['gt_bboxes'], sample()['gt_bboxes'])
    monkeypatch.setattr(np.random, 'randint', lambda low, high: low)
    moved = RandomShift(shift_ratio=0.51, max_shift_px=3)(sample(objects=1))['gt_bboxes']
    assert np.array_equal(moved, np.clip(sample(objects=1)['gt_bboxes'] - 3, 0, None))
    assert RandomShift(0, 0).shift_ratio == 0 and RandomShift(1, 0).shift_ratio == 1  # both ends are allowed


def test_an_upright_image_is_cut_around_its_objects():
    starts = set()
    for seed in range(30):
        np.random.seed(seed)
        image = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 40, 3)).copy()
        results = AspectCrop()(dict(img=image, img_fields=['img'], bbox_fields=['gt_bboxes'], gt_labels=np.zeros(1),
                                    gt_bboxes=np.float32([[5, 100, 15, 150]])))
        start = int(results['img'][0, 0, 0])
        starts.add(start)
        assert results['img'].shape == (80, 40, 3)
        assert results['gt_bboxes'].tolist() == [[5, 100 - start, 15, 150 - start]]
    assert starts <= {*range(70, 101)} and len(starts) > 10
