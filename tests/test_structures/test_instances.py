"""Instances: one index filters all fields, whatever they are."""

import pickle
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from boxdet.errors import DataError, UserError
from boxdet.structures.instances import Instances, empty_result
from boxdet.structures.masks import RleMasks


def masks_of(count: int) -> RleMasks:
    rles = []
    for k in range(count):
        bitmap = np.zeros((6, 8), np.uint8, order='F')
        bitmap[k, :k + 1] = 1
        rles.append(coco_masks.encode(bitmap))
    return RleMasks(rles, 6, 8)


@pytest.fixture
def three() -> Instances:
    return Instances((6, 8), 3, bboxes=torch.arange(12.).reshape(3, 4), scores=torch.tensor([.9, .2, .8]),
                     labels=torch.tensor([2, 0, 2]), names=['a', 'b', 'c'], areas=np.array([1, 2, 3]),
                     masks=masks_of(3))


@pytest.mark.parametrize('index, expected', [(torch.tensor([True, False, True]), [0, 2]),
                                             (np.array([True, False, True]), [0, 2]),
                                             ([True, False, True], [0, 2]), (torch.tensor([2, 0]), [2, 0]),
                                             (np.array([2, 0]), [2, 0]), ([2, 0], [2, 0]),
                                             (slice(1, None), [1, 2]), (slice(None, None, 2), [0, 2]),
                                             (torch.zeros(3, dtype=torch.bool), []), ([], []),
                                             (torch.tensor([], dtype=torch.long), []), (slice(0, 0), []),
                                             (slice(-1, None), [2]), ((0, 2), [0, 2]),
                                             (slice(None, None, -1), [2, 1, 0]), (slice(1, None, -2), [1]),
                                             (np.array([0, 2])[::-1], [2, 0]), (np.array([2, 0], np.uint8), [2, 0])])
def test_one_index_filters_every_field(three, index, expected):
    chosen = three[index]
    assert len(chosen) == len(expected)
    assert chosen.names == ['abc'[k] for k in expected]
    assert chosen.areas.tolist() == [k + 1 for k in expected]
    assert chosen.bboxes.tolist() == three.bboxes[expected].tolist() if expected else len(chosen.bboxes) == 0
    assert [int(coco_masks.area(m)) for m in chosen.masks] == [k + 1 for k in expected]
    assert (chosen.image_size, chosen.num_classes) == ((6, 8), 3)


@pytest.mark.parametrize('index, message', [('bboxes', r"not 'bboxes'; a field is an attribute: result\.bboxes"),
                                            (None, 'not by NoneType'), (True, 'not by bool'), (1.5, 'not by float'),
                                            (torch.tensor([0.5]), 'not by Tensor .torch.float32'),
                                            ([[0, 1]], r'shape \(1, 2\)')])
def test_what_chooses_no_rows(three, index, message, recwarn):
    with pytest.raises(TypeError, match=message):
        three[index]
    assert not recwarn.list


@pytest.mark.parametrize('habit', [
    lambda found: found[0], lambda found: found[-1], lambda found: found[np.int64(0)],
    lambda found: found[torch.tensor(1)],
    lambda found: found[np.array(1)], lambda found: [len(of_class) for of_class in found],
    lambda found: np.vstack(found),
    lambda found: np.concatenate(found), np.asarray, np.array, lambda found: (lambda boxes, masks: boxes)(*found),
    lambda found: dict(zip('abc', found)), lambda found: list(enumerate(found))])
def test_what_code_of_mmdetection_2x_does_with_a_result_is_refused(three, habit):
    with pytest.raises(UserError, match=r'per_class\(\).*bitmap.*result\[i:i \+ 1\]') as caught:
        habit(three)
    assert '\n' not in str(caught.value)
    assert [three[i:i + 1].names for i in range(3)] == [['a'], ['b'], ['c']]  # the advice


def test_fields_of_different_lengths():
    with pytest.raises(ValueError, match="{'a': 1, 'b': 2}"):
        Instances(a=[1], b=[1, 2])


def test_unknown_field_names_the_known(three):
    with pytest.raises(AttributeError, match="no field 'boxes'.*bboxes, scores"):
        three.boxes
    assert 'boxes' not in three and 'bboxes' in three


def test_replace_and_without_leave_the_original(three):
    assert three.replace(scores=torch.zeros(3)).scores.sum() == 0 and three.scores[0] == pytest.approx(.9)
    assert 'masks' not in three.without('masks') and 'masks' in three


def test_cat_in_order(three):
    joined = Instances.cat([three, three[1:2]])
    assert joined.names == ['a', 'b', 'c', 'b'] and len(joined.masks) == len(joined) == 4
    with pytest.raises(ValueError, match='different fields'):
        Instances.cat([three, three.without('masks')])
    with pytest.raises(ValueError, match='nothing'):
        Instances.cat([])


def test_per_class_is_2x_form(three):
    boxes, masks = three.per_class()
    assert [b.shape for b in boxes] == [(1, 5), (0, 5), (2, 5)] and [len(m) for m in masks] == [1, 0, 2]
    assert all(b.dtype == np.float32 for b in boxes)
    assert boxes[2][1].tolist() == pytest.approx([8, 9, 10, 11, .8])
    assert [b.shape for b in three.without('masks').per_class(4)] == [(1, 5), (0, 5), (2, 5), (0, 5)]
    empty_boxes, empty_masks = empty_result((6, 8), 3, masks=True).per_class()
    assert [b.shape for b in empty_boxes] == [(0, 5)] * 3 and empty_masks == [[], [], []]
    with pytest.raises(ValueError, match='num_classes'):
        Instances(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0)).per_class()


def test_per_class_and_back(three):
    back = Instances.from_per_class(three.per_class(), (6, 8))
    order = [1, 0, 2]  # by class
    assert (back.image_size, back.num_classes, back.labels.tolist()) == ((6, 8), 3, [0, 2, 2])
    assert torch.equal(back.bboxes, three.bboxes[order]) and torch.equal(back.scores, three.scores[order])
    assert list(back.masks) == [three.masks[k] for k in order]
    assert Instances.from_per_class(three.per_class()).image_size == (6, 8)  # that of the masks
    boxes_only = Instances.from_per_class(three.without('masks').per_class(4))
    assert boxes_only.num_classes == 4 and 'masks' not in boxes_only and boxes_only.image_size is None
    empty = Instances.from_per_class(empty_result((6, 8), 3, masks=True).per_class(), (6, 8))
    assert len(empty) == 0 and empty.labels.dtype == torch.int64 and (empty.masks.height, empty.masks.width) == (6, 8)
    assert len(Instances.from_per_class([])) == 0


def test_per_class_with_bitmaps(three):
    boxes, rles = three.per_class()
    bitmaps = [[coco_masks.decode(rle).astype(bool) for rle in of_class] for of_class in rles]
    assert list(Instances.from_per_class((boxes, bitmaps)).masks) == [three.masks[k] for k in (1, 0, 2)]
    _, ours = three.per_class(masks='bitmap')  # 2.x's inference_detector
    assert [[mask.tolist() for mask in of_class] for of_class in ours] == [[m.tolist() for m in k] for k in bitmaps]
    assert ours[0][0].shape == (6, 8) and ours[0][0].dtype == bool and ours[1] == []
    assert empty_result((6, 8), 3, masks=True).per_class(masks='bitmap')[1] == [[], [], []]
    with pytest.raises(ValueError, match="'rle' or 'bitmap'"):
        three.per_class(masks='polygon')


@pytest.mark.parametrize('result, message', [
    ('text', 'not str'), ([np.zeros((2, 4))], r'list of \(n, 5\) arrays'),
    (([np.zeros((2, 5))], [[]]), r'\[2\] boxes and \[0\]'), (([np.zeros((1, 5))], [3]), r'\[1\] boxes and \[3\]'),
    (([np.zeros((1, 5))], 3), 'not int'), (([np.zeros((1, 5))], [[np.zeros(4)]]), 'RLE dicts or bitmaps'),
    (([np.zeros((1, 5))], [[{'size': [2, 2]}]]), 'RLE dicts'),
    (([np.zeros((1, 5))], [[{'size': [2, 2], 'counts': [3]}]]), 'add up to 3'),
    (([np.zeros((1, 5))], [[np.zeros((2, 3))]]), r'a mask of 2 x 3 pixels .* of 6 x 8')])
def test_what_is_no_result_by_class(result, message):
    with pytest.raises(DataError, match=message):
        Instances.from_per_class(result, (6, 8))


def test_to_coco_rows(three):
    rows = three.to_coco(42, [10, 20, 30])
    assert rows[2] == dict(image_id=42, bbox=[8, 9, 2, 2], score=pytest.approx(.8), category_id=30,
                           segmentation=dict(size=[6, 8], counts=three.masks[2]['counts'].decode()))
    keypoints = torch.tensor([[[1., 2, 3]]]).repeat(3, 1, 1)
    assert three.without('masks').replace(keypoints=keypoints).to_coco(1, [1, 2, 3])[0]['keypoints'] == [0.5, 1.5, 3]
    assert empty_result((6, 8), 3, masks=True).to_coco(1, [1, 2, 3]) == []
    with pytest.raises(DataError, match='label 2 has no category id: there are 2'):
        three.to_coco(42, [10, 20])


def test_numbers_of_to_coco_are_exact():
    box = torch.tensor([[0.1, 0.2, 100.3, 200.7]])
    x0, y0, x1, y1 = box[0].tolist()  # float32 values, subtracted as float64, as 2.x writes them
    row = Instances(bboxes=box, scores=torch.tensor([.3]), labels=torch.tensor([0])).to_coco(1, [5])[0]
    assert row['bbox'] == [x0, y0, x1 - x0, y1 - y0] and row['score'] == float(torch.tensor(.3))


def test_bitmaps_and_pickling(three):
    assert three.masks_bitmaps().shape == (3, 6, 8) and three.masks_bitmaps().sum() == 6
    copy = pickle.loads(pickle.dumps(three))
    assert copy.names == three.names and torch.equal(copy.bboxes, three.bboxes)
    assert [m['counts'] for m in copy.masks] == [m['counts'] for m in three.masks]


def test_to_and_numpy(three):
    assert three.to('cpu').bboxes.device.type == 'cpu'
    arrays = three.numpy()
    assert isinstance(arrays['bboxes'], np.ndarray) and arrays['masks'] is three.masks


def test_empty_result_has_every_field():
    empty = empty_result((6, 8), 3, masks=True, keypoints=5)
    assert len(empty) == 0 and empty.keypoints.shape == (0, 5, 3) and len(empty.masks) == 0
    assert len(empty[empty.scores > 0.5]) == 0 and len(Instances.cat([empty, empty])) == 0


def test_pickles_take_the_rows_only():
    """Results are often rows of a larger tensor, which a pickle would take along as a whole."""
    boxes = torch.rand(10000, 5)
    some = Instances((10, 10), 3, bboxes=boxes[:3, :4], scores=boxes[:3, 4], labels=torch.zeros(3, dtype=torch.long))
    data = pickle.dumps(some)
    back = pickle.loads(data)
    assert len(data) < 3000 and back.image_size == (10, 10) and back.num_classes == 3
    assert torch.equal(back.bboxes, some.bboxes) and torch.equal(back.scores, some.scores)
    assert some.bboxes.data_ptr() == boxes.data_ptr()  # the object itself still shares its memory


def test_supervisions_detections():
    supervision = pytest.importorskip('supervision', reason='supervision is not installed')
    found = Instances((6, 8), 2, bboxes=torch.tensor([[0., 1, 5, 6], [2, 2, 4, 4]]), scores=torch.tensor([.9, .4]),
                      labels=torch.tensor([1, 0]), masks=masks_of(2), keypoints=torch.rand(2, 17, 3))
    detections = found.to_supervision(('cat', 'dog'))
    assert isinstance(detections, supervision.Detections) and len(detections[detections.confidence > 0.5]) == 1
    assert detections.xyxy.tolist() == found.bboxes.tolist() and detections.class_id.tolist() == [1, 0]
    assert detections.mask.dtype == bool and np.array_equal(detections.mask, found.masks_bitmaps() > 0)
    assert detections['class_name'].tolist() == ['dog', 'cat'] and detections['keypoints'].shape == (2, 17, 3)
    assert found.to_supervision(masks=False).mask is None
    nothing = Instances((6, 8), 2, bboxes=torch.zeros(0, 4), scores=torch.zeros(0),
                        labels=torch.zeros(0, dtype=torch.long))
    assert len(nothing.to_supervision(('cat', 'dog'))) == 0


def test_without_supervision_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(UserError, match='pip install supervision'):
        Instances(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0)).to_supervision()
