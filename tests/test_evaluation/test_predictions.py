"""Results as files: what is written comes back, and nothing in a file is run."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from boxdet.errors import DataError
from boxdet.evaluation import from_legacy, load_results, predictions, save_results
from boxdet.evaluation.predictions import coco_predictions
from boxdet.files.writing import write_whole
from boxdet.structures.instances import Instances, empty_result
from boxdet.structures.masks import RleMasks


@pytest.fixture
def results() -> list[Instances]:
    bitmap = np.zeros((30, 40), np.uint8, order='F')
    bitmap[3:9, 5:20] = 1
    masks = RleMasks([coco_masks.encode(bitmap), coco_masks.encode(bitmap)], 30, 40)
    return [
        Instances((30, 40), 3, bboxes=torch.tensor([[5.25, 3, 20, 9], [0, 0, 1 / 3, 7]]), masks=masks,
                  scores=torch.tensor([0.1, 0.7]), labels=torch.tensor([2, 0])),
        empty_result((30, 40), 3, masks=True)]


@pytest.mark.parametrize('name', ['results.pkl', 'results.pickle', 'deep/results.json'])
def test_results_come_back_as_they_were(tmp_path, results, name):
    save_results(results, tmp_path / name)
    loaded = load_results(tmp_path / name)
    assert len(loaded) == 2 and len(loaded[1]) == 0 and len(loaded[1].masks) == 0
    assert (loaded[0].image_size, loaded[0].num_classes) == ((30, 40), 3)
    for field in ('bboxes', 'scores', 'labels'):
        assert torch.equal(getattr(loaded[0], field), getattr(results[0], field))
        assert getattr(loaded[1], field).dtype == getattr(results[1], field).dtype
    assert [m['counts'] for m in loaded[0].masks] == [m['counts'] for m in results[0].masks]


def test_the_pickle_holds_what_mmdetection_2x_writes(tmp_path, results):
    """By class: arrays (n, 5), and with masks a pair whose RLEs have bytes; only numpy is needed to read it."""
    save_results(results, tmp_path / 'r.pkl')
    assert b'boxdet' not in (tmp_path / 'r.pkl').read_bytes() and b'torch' not in (tmp_path / 'r.pkl').read_bytes()
    rows = pickle.loads((tmp_path / 'r.pkl').read_bytes())
    assert isinstance(rows, list) and all(isinstance(row, tuple) for row in rows)
    for boxes, masks in rows:
        assert len(boxes) == len(masks) == 3
        assert all(isinstance(b, np.ndarray) and b.dtype == np.float32 and b.shape == (len(m), 5)
                   for b, m in zip(boxes, masks))
    boxes, masks = rows[0]
    assert [len(b) for b in boxes] == [1, 0, 1] and [len(b) for b in rows[1][0]] == [0, 0, 0]
    assert boxes[2].tolist() == [[5.25, 3, 20, 9, np.float32(0.1)]]
    assert masks[2] == [dict(size=[30, 40], counts=results[0].masks.rles[0]['counts'])]
    assert isinstance(masks[2][0]['counts'], bytes)
    save_results([r.without('masks') for r in results], tmp_path / 'r.pkl')
    boxes = pickle.loads((tmp_path / 'r.pkl').read_bytes())[0]
    assert isinstance(boxes, list) and [b.shape for b in boxes] == [(1, 5), (0, 5), (1, 5)]


def test_the_quick_way_reads_what_the_thorough_one_reads(tmp_path, results, monkeypatch):
    """It takes what ``save_results`` writes, and leaves everything else to the other."""
    some = [*results, *(r.without('masks') for r in results), Instances(None, 3, **results[0].fields),
            results[0].replace(keypoints=torch.ones(2, 2, 3))]
    quick, seen = predictions._packed_quickly, []

    def watched(*entry):
        seen.append(quick(*entry))
        return seen[-1]
    monkeypatch.setattr(predictions, '_packed_quickly', watched)
    save_results(some, tmp_path / 'r.pkl')
    found = load_results(tmp_path / 'r.pkl')
    assert [data is not None for data in seen] == [True] * 4 + [False]  # of unknown size; keypoints are not by class
    monkeypatch.setattr(predictions, '_packed_quickly', lambda *_: None)
    thorough = load_results(tmp_path / 'r.pkl')
    assert [found.packed(k) for k in range(6)] == [thorough.packed(k) for k in range(6)]


@pytest.mark.parametrize('damage, message', [
    (lambda boxes, masks, order: (boxes, masks, [30, 40, 0, 0]), 'the order of the objects does not fit'),
    (lambda boxes, masks, order: ([b[:, :4] for b in boxes], masks, order), r'list of \(n, 5\) arrays'),
    (lambda boxes, masks, order: (boxes, [*masks[:2], []], order), r'of \[1, 0, 1\] boxes and \[1, 0, 0\] masks'),
    (lambda boxes, masks, order: (boxes, masks, [31, 40, *order[2:]]), 'a mask of 30 x 40 pixels')])
def test_an_entry_that_is_wrong_is_told_by_the_thorough_way(results, damage, message):
    (boxes, masks), order = predictions._as_legacy(results[0], 3)
    boxes, masks, order = damage(boxes, masks, order)
    order = np.array(order, '<i4')
    assert predictions._packed_quickly(pickle.dumps((boxes, masks), 3), order) is None
    with pytest.raises(DataError, match=message):
        predictions._from_row((boxes, masks), '.pkl', order)


def test_boxes_without_masks_keep_size_and_order(tmp_path, results):
    save_results([r.without('masks') for r in results], tmp_path / 'r.pkl')
    loaded = load_results(tmp_path / 'r.pkl')
    assert loaded[0].labels.tolist() == [2, 0] and [r.image_size for r in loaded] == [(30, 40)] * 2


def test_the_form_of_the_first_versions_is_read(tmp_path, results):
    """A list of dicts."""
    row = dict(bboxes=results[0].bboxes.numpy(), scores=results[0].scores.numpy(), labels=results[0].labels.numpy(),
               masks=list(results[0].masks), image_size=(30, 40), num_classes=3)
    (tmp_path / 'r.pkl').write_bytes(pickle.dumps([row]))
    loaded, = load_results(tmp_path / 'r.pkl')
    assert torch.equal(loaded.bboxes, results[0].bboxes) and loaded.num_classes == 3
    assert list(loaded.masks) == list(results[0].masks)


def test_what_mmdetection_2x_has_no_form_for_is_a_dict(tmp_path, results):
    save_results([r.replace(keypoints=torch.ones(len(r), 2, 3)) for r in results], tmp_path / 'r.pkl')
    rows = pickle.loads((tmp_path / 'r.pkl').read_bytes())
    assert [row['keypoints'].shape for row in rows] == [(2, 2, 3), (0, 2, 3)]
    assert load_results(tmp_path / 'r.pkl')[0].keypoints.shape == (2, 2, 3)


def test_the_number_of_classes_is_needed_and_no_label_is_lost(tmp_path, results):
    unknown = Instances((30, 40), None, **results[0].without('masks').fields)
    with pytest.raises(DataError, match='num_classes'):
        save_results([unknown], tmp_path / 'r.pkl')
    with pytest.raises(DataError, match='labels from 0 to 2 in a result of 2 classes'):
        save_results([unknown], tmp_path / 'r.pkl', num_classes=2)
    assert not (tmp_path / 'r.pkl').exists()
    save_results([unknown], tmp_path / 'r.pkl', num_classes=4)
    assert load_results(tmp_path / 'r.pkl')[0].num_classes == 4


def test_results_of_mmdetection_2x(tmp_path, results):
    with open(tmp_path / 'r.pkl', 'wb') as file:
        pickle.dump([r.per_class() for r in results], file)
    loaded = load_results(tmp_path / 'r.pkl')
    assert loaded[0].labels.tolist() == [0, 2] and loaded[0].num_classes == 3  # sorted by class
    assert torch.equal(loaded[0].bboxes, results[0].bboxes[[1, 0]]) and len(loaded[1].masks) == 0


def test_an_array_of_proposals():
    found = from_legacy(np.array([[1, 2, 3, 4, 0.5]]))
    assert found.bboxes.tolist() == [[1, 2, 3, 4]] and found.labels.tolist() == [0]


@pytest.mark.parametrize('name', ['rpn.pkl', 'rpn.json'])
def test_proposals_are_written_as_a_data_set_reads_them(tmp_path, results, name):
    save_results([r.without('masks') for r in results], tmp_path / name, proposals=True)
    raw = pickle.loads((tmp_path / name).read_bytes()) if name == 'rpn.pkl' else json.loads(
        (tmp_path / name).read_bytes())
    assert [np.shape(row)[0] for row in raw] == [2, 0] and np.shape(raw[0]) == (2, 5)
    loaded = load_results(tmp_path / name)
    assert torch.equal(loaded[0].bboxes, results[0].bboxes) and torch.equal(loaded[0].scores,
                                                                            results[0].scores)
    assert len(loaded[1]) == 0


@pytest.mark.parametrize('thing', ['text', [np.zeros((2, 4))], 3])
def test_what_is_no_result(thing):
    with pytest.raises(DataError):
        from_legacy(thing)


class Attack:
    def __reduce__(self):
        return os.system, ('echo attacked > attacked.txt',)


class Evaluated:
    def __reduce__(self):
        return eval, ("open('attacked.txt', 'w')",)


@pytest.mark.parametrize('evil', [Attack(), Evaluated()])
def test_code_in_a_results_file_is_refused(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    with open('r.pkl', 'wb') as file:
        pickle.dump([evil], file)
    with pytest.raises(DataError, match=r'r\.pkl: not a results file .*it asks for'):
        load_results('r.pkl')
    assert not os.path.exists('attacked.txt')


@pytest.mark.parametrize(
    'content',
    [b'', b'not a pickle', pickle.dumps({'a': 1}),
     pickle.dumps([{'bboxes': []}])])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / 'r.pkl').write_bytes(content)
    with pytest.raises(DataError, match=r'r\.pkl: '):
        load_results(tmp_path / 'r.pkl')


def test_missing_file_and_unknown_ending(tmp_path):
    with pytest.raises(DataError, match='nothing.json: no such file'):
        load_results(tmp_path / 'nothing.json')
    with pytest.raises(DataError, match="r.txt: results are written to a '.pkl' or '.json' file"):
        save_results([], tmp_path / 'r.txt')


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'r.json'
    path.write_text('old')

    def full_disk(file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    with pytest.raises(DataError, match='cannot write .*r.json: No space left on device'):
        write_whole(path, full_disk)
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['r.json']


def test_coco_rows_by_kind(results):
    assert coco_predictions(results[0], 12, [7, 8, 9], 'bbox')[0] == dict(
        image_id=12, category_id=9, bbox=[5.25, 3, 14.75, 6], score=pytest.approx(0.1))
    row = coco_predictions(results[0], 12, [7, 8, 9], 'segm')[0]
    assert set(row) == {'image_id', 'category_id', 'segmentation', 'score'}
    assert json.loads(json.dumps(row)) == row
    assert {r['category_id'] for r in coco_predictions(results[0], 12, [7, 8, 9], 'proposal')} == {1}
    with pytest.raises(DataError, match='image 12: the results hold no masks'):
        coco_predictions(results[0].without('masks'), 12, [7, 8, 9], 'segm')


def test_mask_scoring_of_2x_has_scores_for_the_masks(tmp_path, results):
    """A pickle of its Mask Scoring R-CNN: boxes, and a pair of masks and their scores."""
    boxes, masks = results[0].per_class(3)
    (tmp_path / 'ms.pkl').write_bytes(pickle.dumps([
        (boxes, (masks, [np.array([0.2], np.float32), np.zeros(0, np.float32), np.array([0.9], np.float32)]))]))
    read = load_results(tmp_path / 'ms.pkl')[0]
    assert read.labels.tolist() == [0, 2] and read.mask_scores.tolist() == pytest.approx([0.2, 0.9])
    assert [row['score'] for row in coco_predictions(read, 1, [1, 2, 3], 'bbox')] == pytest.approx([0.7, 0.1])
    assert [row['score'] for row in coco_predictions(read, 1, [1, 2, 3], 'segm')] == pytest.approx([0.2, 0.9])
    save_results([read], tmp_path / 'again.pkl')
    assert load_results(tmp_path / 'again.pkl')[0].mask_scores.tolist() == read.mask_scores.tolist()
