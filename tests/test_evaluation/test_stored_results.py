"""Results come back as they were put, from memory and from disk, and take little of either."""

import contextlib
import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from boxdet.errors import DataError
from boxdet.evaluation import load_results, save_results
from boxdet.evaluation.stored_results import StoredResults, arrays_of, labels_of, pack, unpack
from boxdet.structures.instances import Instances, empty_result
from boxdet.structures.masks import BitmapMasks, RleMasks


def result(seed: int, count: int = 5, keypoints: bool = False) -> Instances:
    rng = np.random.default_rng(seed)
    bitmaps = np.asfortranarray(rng.random((30, 40, count)) < 0.5).astype(np.uint8)
    fields = dict(keypoints=torch.rand(count, 17, 3, dtype=torch.float64)) if keypoints else {}
    return Instances((30, 40), 3, bboxes=torch.rand(count, 4) * 30, scores=torch.rand(count),
                     labels=torch.randint(0, 3, (count,)), masks=RleMasks(coco_masks.encode(bitmaps), 30, 40), **fields)


def same(one: Instances, other: Instances) -> bool:
    return (one.image_size, one.num_classes, set(one.fields)) == \
        (other.image_size, other.num_classes, set(other.fields)) \
        and all(torch.equal(one.fields[k], other.fields[k]) and one.fields[k].dtype == other.fields[k].dtype
                for k in one.fields if k != 'masks') and list(one.masks) == list(other.masks)


@pytest.mark.parametrize('limit', [1 << 20, 500, 0])
def test_what_was_put_comes_back(limit):
    results = [result(0), result(1, keypoints=True), empty_result((30, 40), 3, masks=True), result(3, 1)]
    stored = StoredResults(4, memory_limit=limit)
    for index in (2, 0, 3, 1):
        stored.put(index, results[index])
    assert all(same(a, b) for a, b in zip(results, stored)) and same(stored[-1], results[3])
    assert [len(r) for r in stored[1:3]] == [5, 0] and len(stored) == 4
    assert (stored.on_disk > 0) == (limit < 1 << 20)
    assert all(same(unpack(stored.packed(k)), r) for k, r in enumerate(results))
    assert [len(labels) for labels in labels_of(stored)] == [5, 5, 0, 1]
    stored.put(1, results[3])
    assert same(stored[1], results[3]) and same(stored[2], results[2])
    assert [len(labels) for labels in labels_of(stored)] == [5, 1, 0, 1]


def test_bitmaps_and_fields_of_a_users_own():
    bitmaps = np.zeros((1, 8, 9), np.uint8)
    bitmaps[0, 2:4, 3:7] = 1
    own = Instances(masks=BitmapMasks(bitmaps, 8, 9), depth=torch.tensor([1.5]), sure=np.array([True]))
    back = unpack(pack(own))
    assert np.array_equal(back.masks.to_bitmaps(), bitmaps)
    assert back.depth.tolist() == [1.5] and back.sure.tolist() == [True]
    assert back.image_size is None
    with pytest.raises(TypeError, match="field 'names' of a result holds"):
        pack(Instances(names=['a']))


def test_fields_left_out_while_reading():
    stored = StoredResults.of([result(0, keypoints=True)])
    light = stored.without('masks', 'keypoints')[0]
    assert set(light.fields) == {'bboxes', 'scores', 'labels'} and 'masks' in stored[0]
    assert torch.equal(light.labels, stored[0].labels)


@pytest.mark.parametrize('limit', [1 << 20, 0])
def test_arrays_without_tensors(limit):
    results = [result(0, keypoints=True), empty_result((30, 40), 3, masks=True), result(2)]
    stored = StoredResults.of(results, memory_limit=limit)
    for kept in (results, stored):
        for one, row in zip(results, arrays_of(kept, 'keypoints')):
            assert {'bboxes', 'scores', 'labels', 'masks'} <= set(row) and list(row['masks']) == list(one.masks)
            assert all(np.array_equal(row[name], one.numpy()[name]) for name in ('bboxes', 'scores', 'labels'))
        for _ in range(2):  # read, and kept
            assert [labels.tolist() for labels in labels_of(kept)] == [one.labels.tolist() for one in results]
    assert all('keypoints' not in row for row in arrays_of(stored, 'keypoints'))
    assert [set(row) for row in arrays_of(stored.without('masks', 'keypoints'), 'scores')] == [{'bboxes', 'labels'}] * 3
    unlabelled = StoredResults.of([Instances(bboxes=torch.zeros(1, 4))])
    assert list(unlabelled.arrays(lambda name: name == 'labels')) == [{}]


def test_what_is_missing_is_named():
    stored = StoredResults(3)
    stored.put(1, result(0))
    assert stored.missing() == [0, 2] and stored.packed(0) is None
    with pytest.raises(DataError, match='the result of image 2 of 3 is missing'):
        stored[2]


def test_a_folder_that_takes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'absent'))
    with pytest.raises(DataError, match='kept in .*absent.*another folder with TMPDIR'):
        StoredResults(1, memory_limit=0).put(0, result(0))


@contextlib.contextmanager
def traced():
    """Python's memory is measured inside."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('name', ['r.pkl', 'r.json'])
def test_saving_and_loading_hold_one_image_at_a_time(tmp_path, monkeypatch, name):
    """60 results of 400 kB: neither way takes the memory of ten of them."""
    rng = np.random.default_rng(0)
    bitmaps = np.asfortranarray(rng.random((800, 800, 8)) < 0.05).astype(np.uint8)
    one = Instances((800, 800), 1, bboxes=torch.rand(8, 4), scores=torch.rand(8),
                    labels=torch.zeros(8, dtype=torch.long), masks=RleMasks(coco_masks.encode(bitmaps)))
    size = len(pack(one))
    assert size > 4e5
    stored = StoredResults.of((one for _ in range(60)), memory_limit=size)
    monkeypatch.setattr('boxdet.evaluation.predictions.StoredResults.__init__.__defaults__', (size,))
    with traced():
        save_results(stored, tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 10 * size
    if name == 'r.pkl':
        for nproc in (1, 2):  # each process has delivered two images, and reads another one
            with traced():
                loaded = load_results(tmp_path / name, nproc)
                assert tracemalloc.get_traced_memory()[1] < 10 * nproc * size
            assert len(loaded) == 60 and same(loaded[59], one)
