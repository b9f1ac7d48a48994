"""CopyPaste against a slow implementation on whole bitmaps."""
import numpy as np
import pytest

from boxdet.datasets.pipelines.mixing import CopyPaste
from boxdet.errors import ConfigError
from boxdet.structures.masks import BitmapMasks, PolygonMasks

HEIGHT, WIDTH = 60, 80


def sample(seed, count, with_masks=True, size=(HEIGHT, WIDTH)):
    """A picture with ``count`` ellipses."""
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
