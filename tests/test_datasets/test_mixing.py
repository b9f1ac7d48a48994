"""CopyPaste against a slow implementation on whole bitmaps; Mosaic and MixUp against the geometry spelt out."""
import cv2
import numpy as np
import pytest

from boxdet.datasets.pipelines.mixing import CopyPaste, MixUp, Mosaic
from boxdet.errors import ConfigError
from boxdet.structures.masks import BitmapMasks, PolygonMasks

HEIGHT, WIDTH = 60, 80


def sample(seed, count, with_masks=True, size=(HEIGHT, WIDTH)):
    """An image with ``count`` ellipses."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:size[0], :size[1]]
    centres, radii = rng.uniform(10, [WIDTH - 10, HEIGHT - 10], (count, 2)), rng.uniform(3, 20, (count, 2))
    bitmaps = [((xs - x) / rx) ** 2 + ((ys - y) / ry) ** 2 <= 1 for (x, y), (rx, ry) in zip(centres, radii)]
    masks = BitmapMasks([b.astype(np.uint8) for b in bitmaps], *size)
    return dict(img=rng.integers(0, 256, (*size, 3)).astype(np.uint8), gt_bboxes=masks.bboxes(),
                gt_labels=rng.integers(0, 5, count), **(dict(gt_masks=masks) if with_masks else {}))


def slow_paste(under, over, box_thr, mask_thr):
    """Objects of ``over`` in front of ``under``, pixel by pixel."""
    front, below = over['gt_masks'].to_bitmaps().astype(bool), under['gt_masks'].to_bitmaps().astype(bool)
    covered = front.any(axis=0)
    image = np.where(covered[..., None], over['img'], under['img'])
    boxes, labels, masks = [], [], []
    for mask, box, label in zip(below & ~covered, under['gt_bboxes'], under['gt_labels']):
        ys, xs = np.nonzero(mask)
        if not len(ys):
            continue
        now = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        if np.abs(now - box).max() <= box_thr or mask.sum() > mask_thr:
            boxes.append(now), labels.append(label), masks.append(mask)
    return (image, np.array(boxes + list(over['gt_bboxes'])), labels + over['gt_labels'].tolist(),
            np.array(masks + list(front)))


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('thresholds', [(10, 300), (0, 100), (3, 10 ** 6)])
def test_all_objects_in_front(seed, thresholds):
    under, over = sample(seed, 6), sample(seed + 100, 3)
    image, boxes, labels, masks = slow_paste(under, over, *thresholds)
    before = under['img'].copy()
    given = dict(under, mix_results=[over])
    found = CopyPaste(bbox_occluded_thr=thresholds[0], mask_occluded_thr=thresholds[1], selected=False)(given)
    assert np.array_equal(found['img'], image) and found['img'].dtype == np.uint8
    assert np.array_equal(found['gt_bboxes'], boxes) and found['gt_bboxes'].dtype == np.float32
    assert found['gt_labels'].tolist() == labels and np.array_equal(found['gt_masks'].to_bitmaps(), masks)
    assert np.array_equal(under['img'], before)  # another view of the same arrays is not drawn on


def test_a_covered_object_is_dropped():
    under, over = sample(0, 0), sample(0, 0)
    under.update(gt_bboxes=np.array([[2, 2, 6, 6], [30, 30, 70, 50]], dtype=np.float32), gt_labels=np.array([1, 2]))
    over.update(gt_bboxes=np.array([[0, 0, 8, 8], [30, 30, 55, 50]], dtype=np.float32), gt_labels=np.array([3, 4]))
    for part in (under, over):
        part['gt_masks'] = BitmapMasks.from_boxes(part['gt_bboxes'], HEIGHT, WIDTH)
    found = CopyPaste(selected=False)(dict(under, mix_results=[over]))
    # Nothing of the first shows, and its empty box (0, 0, 0, 0) is not far away; half of the second, 300 pixels,
    # is too little; one pixel more is enough.
    assert found['gt_labels'].tolist() == [3, 4]
    found = CopyPaste(selected=False, mask_occluded_thr=299)(dict(under, mix_results=[over]))
    assert found['gt_labels'].tolist() == [2, 3, 4] and found['gt_bboxes'][0].tolist() == [55, 30, 70, 50]


def test_a_drawn_number_of_objects():
    under, over = sample(1, 2), sample(2, 4)
    counts, pasted = set(), set()
    np.random.seed(0)
    for _ in range(100):
        found = CopyPaste(mask_occluded_thr=0)(dict(under, mix_results=[dict(over, gt_labels=np.arange(10, 14))]))
        new = [label for label in found['gt_labels'].tolist() if label >= 10]
        assert len(set(new)) == len(new) and len(found['gt_masks']) == len(found['gt_labels'])
        counts.add(len(new)), pasted.update(new)
    assert counts == {0, 1, 2, 3, 4} and pasted == {10, 11, 12, 13}
    for _ in range(30):
        found = CopyPaste(max_num_pasted=2, mask_occluded_thr=0)(dict(under, mix_results=[over]))
        assert len(found['gt_labels']) <= 2 + 1
    draws = {CopyPaste().get_indexes(range(3)) for _ in range(50)}
    assert draws == {0, 1, 2}


def test_nothing_to_paste_and_nothing_below():
    under, empty = sample(1, 2), sample(2, 0)
    found = CopyPaste()(dict(under, mix_results=[empty]))
    assert found['img'] is under['img'] and found['gt_masks'] is under['gt_masks']
    found = CopyPaste(selected=False)(dict(empty, mix_results=[under]))
    assert np.array_equal(found['gt_bboxes'], under['gt_bboxes']) and len(found['gt_masks']) == 2


def test_boxes_without_masks():
    under, over = sample(3, 3, with_masks=False), sample(4, 2, with_masks=False)
    found = CopyPaste(selected=False)(dict(under, mix_results=[over]))
    x1, y1, x2, y2 = over['gt_bboxes'][0].astype(int)
    assert np.array_equal(found['img'][y1:y2, x1:x2], over['img'][y1:y2, x1:x2]) and 'gt_masks' not in found
    assert np.array_equal(found['gt_bboxes'][-2:], over['gt_bboxes']) and len(found['gt_labels']) >= 2


def test_wrong_use():
    with pytest.raises(ConfigError, match='MultiImageMixDataset'):
        CopyPaste()(sample(0, 1))
    with pytest.raises(ConfigError, match=r'\(60, 80, 3\).*\(40, 80, 3\).*Pad'):
        CopyPaste()(dict(sample(0, 1, size=(40, 80)), mix_results=[sample(0, 1)]))
    with pytest.raises(ConfigError, match='poly2mask=True'):
        polygons = dict(sample(0, 1), gt_masks=PolygonMasks([[np.array([1, 1, 9, 1, 9, 9.])]], HEIGHT, WIDTH))
        CopyPaste(selected=False)(dict(sample(1, 1), mix_results=[polygons]))
    with pytest.raises(ConfigError, match='max_num_pasted 0'):
        CopyPaste(max_num_pasted=0)


def full_sample(seed, count=4, size=(HEIGHT, WIDTH)):
    """With everything that a data set can bring; the semantic map is where an object is."""
    results = sample(seed, count, size=size)
    centres = (results['gt_bboxes'][:, :2] + results['gt_bboxes'][:, 2:]) / 2
    keypoints = np.concatenate([centres, np.full((count, 1), 2)], axis=1)[:, None].astype(np.float32)
    return dict(results, gt_keypoints=keypoints, flip_pairs=[], gt_semantic_seg=results['gt_masks'].union(),
                ori_filename=f'{seed}.jpg', bbox_fields=['gt_bboxes'], mask_fields=['gt_masks'],
                seg_fields=['gt_semantic_seg'], keypoint_fields=['gt_keypoints'], img_fields=['img'])


def check_objects(results):
    """Masks fill their boxes, keypoints lie in the middle of what is whole, and all are as many."""
    boxes, size = results['gt_bboxes'], np.array(results['img'].shape[1::-1])
    assert len(boxes) == len(results['gt_labels']) == len(results['gt_masks']) == len(results['gt_keypoints'])
    assert (results['gt_masks'].width, results['gt_masks'].height) == tuple(size)
    whole = ((boxes[:, :2] > 1) & (boxes[:, 2:] < size - 1)).all(axis=1) & (results['gt_masks'].areas > 60)
    assert np.abs(results['gt_masks'].bboxes() - boxes)[whole].max(initial=0) < 2.5
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert np.abs(results['gt_keypoints'][:, 0, :2] - middle)[whole].max(initial=0) < 1.5
    assert boxes.dtype == np.float32 and results['img_shape'] == results['pad_shape'] == results['img'].shape


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('filtered', [False, True])
def test_mosaic(seed, filtered):
    sizes = [(60, 80), (40, 90), (70, 30), (50, 50)]
    samples = [full_sample(10 * seed + k, size=size) for k, size in enumerate(sizes)]
    before = samples[1]['img'].copy(), samples[1]['gt_bboxes'].copy()
    options = dict(min_bbox_size=12, skip_filter=False) if filtered else {}
    np.random.seed(seed)
    results = Mosaic((50, 64), (0.4, 1.7), pad_val=33, **options)(dict(samples[0], mix_results=samples[1:]))
    np.random.seed(seed)
    np.random.uniform(0, 1)
    x, y = (int(np.random.uniform(0.4, 1.7) * side) for side in (64, 50))
    canvas, boxes, labels = np.full((100, 128, 3), 33, np.uint8), [], []
    for k, one in enumerate(samples):
        height, width = one['img'].shape[:2]
        ratio = min(50 / height, 64 / width)
        w, h = int(width * ratio), int(height * ratio)
        left, top = x - w if k % 2 == 0 else x, y - h if k < 2 else y
        large = np.full((400, 400, 3), 33, np.uint8)  # the canvas with a margin of 150 pixels
        large[150:250, 150:278] = canvas
        large[150 + top:150 + top + h, 150 + left:150 + left + w] = cv2.resize(one['img'], (w, h))
        canvas = large[150:250, 150:278]
        boxes.append(one['gt_bboxes'] * ratio + [left, top, left, top])
        labels += one['gt_labels'].tolist()
    boxes = np.clip(np.concatenate(boxes), 0, [128, 100, 128, 100])
    kept = (boxes[:, 0] < 128) & (boxes[:, 1] < 100) & (boxes[:, 2:] > 0).all(axis=1)
    kept &= ((boxes[:, 2:] - boxes[:, :2]) > 12).all(axis=1) | (not filtered)
    assert np.array_equal(results['img'], canvas)
    np.testing.assert_allclose(results['gt_bboxes'], boxes[kept], atol=1e-4)
    assert results['gt_labels'].tolist() == np.array(labels)[kept].tolist()
    check_objects(results)
    covered = results['gt_masks'].union()
    assert (results['gt_semantic_seg'][covered > 0] == 1).mean() > 0.97
    assert set(np.unique(results['gt_semantic_seg'])) <= {0, 1, 255}
    assert np.array_equal(samples[1]['img'], before[0]) and np.array_equal(samples[1]['gt_bboxes'], before[1])


def test_mosaic_of_what_does_not_fit():
    given = full_sample(0)
    with pytest.raises(ConfigError, match='Mosaic mixes in 3 images, got 1: it belongs into .* MultiImageMixDataset'):
        Mosaic()(dict(given, mix_results=[given]))
    bare = {key: value for key, value in full_sample(7).items() if key != 'gt_masks'}
    with pytest.raises(ConfigError, match="Mosaic: 7.jpg has no 'gt_masks', which other images have"):
        Mosaic((50, 50))(dict(given, mix_results=[given, bare, given]))
    assert Mosaic(prob=0.0)(given) is given
    np.random.seed(0)
    indexes = [Mosaic().get_indexes(range(3)) for _ in range(20)]
    assert {index for drawn in indexes for index in drawn} == {0, 1, 2} and {len(drawn) for drawn in indexes} == {3}
    for wrong in (dict(img_scale=640), dict(prob=3)):
        with pytest.raises(ConfigError, match='Mosaic'):
            Mosaic(**wrong)


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('filtered', [False, True])
def test_mix_up(seed, filtered):
    given, other = full_sample(seed), full_sample(seed + 50, size=(70, 45))
    options = dict(skip_filter=False, min_area_ratio=0.5, min_bbox_size=6, max_aspect_ratio=3) if filtered else {}
    np.random.seed(seed)
    results = MixUp((48, 90), (0.5, 2.0), 0.5, pad_val=99, **options)(dict(given, mix_results=[other]))
    np.random.seed(seed)
    factor, flip = np.random.uniform(0.5, 2.0), np.random.uniform(0, 1) < 0.5
    ratio = min(48 / 70, 90 / 45)
    canvas = np.full((48, 90, 3), 99, np.uint8)
    w, h = int(45 * ratio), int(70 * ratio)
    canvas[:h, :w] = cv2.resize(other['img'], (w, h))
    width, height = int(90 * factor), int(48 * factor)
    canvas = cv2.resize(canvas, (width, height))
    boxes = np.clip(other['gt_bboxes'] * (ratio * factor), 0, [width, height, width, height])
    if flip:
        canvas = canvas[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    padded = np.zeros((max(height, HEIGHT), max(width, WIDTH), 3), np.uint8)
    padded[:height, :width] = canvas
    top = np.random.randint(0, height - HEIGHT) if height > HEIGHT else 0
    left = np.random.randint(0, width - WIDTH) if width > WIDTH else 0
    mixed = (given['img'] * 0.5 + padded[top:top + HEIGHT, left:left + WIDTH] * 0.5).astype(np.uint8)
    assert np.array_equal(results['img'], mixed)
    cut = np.clip(boxes - [left, top, left, top], 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    kept = (cut[:, 0] < WIDTH) & (cut[:, 1] < HEIGHT) & (cut[:, 2:] > 0).all(axis=1)
    if filtered:
        sides, whole = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
        slim = np.maximum(sides[:, 0] / (sides[:, 1] + 1e-9), sides[:, 1] / (sides[:, 0] + 1e-9)) < 3
        kept &= (sides > 6).all(axis=1) & (sides.prod(1) > 0.5 * whole.prod(1)) & slim
    np.testing.assert_allclose(results['gt_bboxes'], np.concatenate([given['gt_bboxes'], cut[kept]]), atol=1e-4)
    assert results['gt_labels'].tolist() == given['gt_labels'].tolist() + other['gt_labels'][kept].tolist()
    check_objects(results)
    assert results['gt_semantic_seg'] is given['gt_semantic_seg']


def test_mix_up_looks_for_objects():
    class Annotations:
        def __len__(self):
            return 6

        def get_ann_info(self, index):
            return dict(bboxes=np.zeros((int(index == 4), 4)))

    np.random.seed(0)
    found = [MixUp(max_iters=200).get_indexes(Annotations()) for _ in range(5)]
    assert found == [4] * 5
    assert {MixUp(max_iters=1).get_indexes(Annotations()) for _ in range(60)} == set(range(6))
    given, empty = full_sample(0), full_sample(1, count=0)
    assert MixUp((50, 50))(dict(given, mix_results=[empty]))['img'] is given['img']
    flat = dict(full_sample(1), bbox_fields=['gt_bboxes', 'gt_bboxes_ignore'], gt_bboxes_ignore=np.zeros(0, np.float32))
    mixed = MixUp((50, 50))(dict(flat, mix_results=[flat]))
    assert mixed['gt_bboxes_ignore'].shape == (0, 4) and len(mixed['gt_bboxes'])
    with pytest.raises(ConfigError, match='MixUp mixes in 1 image, got 0'):
        MixUp()(given)
    with pytest.raises(ConfigError, match='MixUp.max_iters 0'):
        MixUp(max_iters=0)


def test_semantic_maps_are_pasted_with_their_objects():
    under, over = full_sample(1), full_sample(2)
    over['gt_semantic_seg'] = over['gt_semantic_seg'] * 7
    results = CopyPaste(selected=False)(dict(under, mix_results=[over]))
    front = over['gt_masks'].union() > 0
    assert (results['gt_semantic_seg'][front] == 7).all()
    assert np.array_equal(results['gt_semantic_seg'][~front], under['gt_semantic_seg'][~front])
