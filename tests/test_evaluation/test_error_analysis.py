"""The curves of error analysis against pycocotools on ground truth that is changed as COCO's analysis changes it."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxdet.evaluation.error_analysis import CAUSES, error_curves
from boxdet.evaluation.predictions import coco_predictions

SIZES = dict(all=(0, 1e10), small=(0, 2000), large=(2000, 1e10))


def plain_curve(dataset, rows: list[dict], kind: str, label: int, thr: float, excused: list[int]) -> np.ndarray:
    """(R, A) precision of one class, with the objects of the ``excused`` categories as its crowds."""
    category, changed = dataset.cat_ids[label], copy.deepcopy(dataset.coco.dataset)
    for annotation in changed['annotations']:
        if annotation['category_id'] in excused:
            annotation.update(ignore=1, iscrowd=1, category_id=category)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = changed
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([r for r in copy.deepcopy(rows) if r['category_id'] == category]),
                              kind)
        params = evaluation.params
        params.imgIds, params.catIds = dataset.img_ids, [category]
        params.maxDets, params.iouThrs = [100], np.array([thr])
        params.areaRng, params.areaRngLbl = [list(r) for r in SIZES.values()], list(SIZES)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval['precision'][0, :, 0, :, 0]


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_every_curve(random_data_set, kind):
    dataset, results = random_data_set(3)
    for category, family in zip(dataset.coco.dataset['categories'], ('animal', 'food', 'animal')):
        category['supercategory'] = family
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.coco.createIndex()
    rows = [row for i, r in zip(dataset.img_ids, results) for row in coco_predictions(r, i, dataset.cat_ids, kind)]
    curves = error_curves(dataset, results, kind, SIZES)
    assert curves.precision.shape == (7, 101, 3, 3) and len(CAUSES) == 7
    for label in range(3):
        others = [c for c in dataset.cat_ids if c != dataset.cat_ids[label]]
        similar = {0: [dataset.cat_ids[2]], 1: [], 2: [dataset.cat_ids[0]]}[label]
        expected = [plain_curve(dataset, rows, kind, label, thr, excused) for thr, excused in (
            (0.75, []), (0.5, []), (0.1, []), (0.1, similar), (0.1, others))]
        assert np.array_equal(curves.precision[:5, :, label], expected)
    other, background, missed = curves.precision[4:]
    assert np.array_equal(background, np.where(other > 0, 1, other)) and (missed[other > -1] == 1).all()
    assert (np.diff(curves.mean().mean(axis=1), axis=0) >= 0).all()  # each excuses more than the one before
