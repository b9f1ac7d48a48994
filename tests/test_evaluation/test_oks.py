"""Object keypoint similarity: pycocotools' numbers to the last bit, and two worked out by hand."""
import math

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from boxdet.evaluation.oks import oks
from boxdet.structures import coco_person


def scene(keypoints: int, seed: int):
    """Ground truth of every kind (one object without a labelled keypoint) and detections near and far."""
    rng = np.random.default_rng(seed)
    truths = rng.uniform(0, 100, (5, keypoints, 3)).round(1)
    truths[..., 2] = rng.integers(0, 3, (5, keypoints))
    truths[2, :, 2] = 0
    boxes = np.concatenate([rng.uniform(0, 50, (5, 2)), rng.uniform(5, 60, (5, 2))], axis=1)
    found = rng.uniform(-20, 120, (9, keypoints, 3))
    found[:5] = truths + rng.normal(0, 2, truths.shape)
    return found, truths, boxes, rng.uniform(50, 3000, 5), rng.uniform(0.02, 0.11, keypoints)


@pytest.mark.parametrize('keypoints', [1, 5, 11, 17, 21, 140])
def test_every_bit_is_pycocotools(keypoints):
    found, truths, boxes, areas, sigmas = scene(keypoints, keypoints)
    judge = COCOeval(iouType='keypoints')
    judge.params.kpt_oks_sigmas = sigmas
    judge._gts[1, 1] = [dict(keypoints=t.ravel().tolist(), bbox=b.tolist(), area=a)
                        for t, b, a in zip(truths, boxes, areas)]
    judge._dts[1, 1] = [dict(keypoints=d.ravel().tolist(), score=-i) for i, d in enumerate(found)]
    ours = oks(found, truths, boxes, areas, sigmas)
    assert ours.dtype == np.float64 and (ours[:5, [0, 1, 3, 4]].diagonal()[:2] > 0).all()
    assert np.array_equal(ours, judge.computeOks(1, 1))


def test_by_hand():
    truths = np.array([[[10., 10, 2], [20, 10, 1], [0, 0, 0]]])
    found = np.array([[[10., 10, 1], [23, 14, 1], [500, 500, 1]], [[10, 10, 1], [20, 10, 1], [0, 0, 1]]])
    value = oks(found, truths, np.array([[0., 0, 30, 30]]), np.array([100.]), [0.25, 0.5, 0.1])
    # The second keypoint is missed by 5 pixels: 25 / (2 * 100 * (2 * 0.5)^2) = 1 / 8. The third is not labelled.
    assert value[:, 0] == pytest.approx([(1 + math.exp(-1 / 8)) / 2, 1])


def test_an_object_without_labelled_keypoints_is_compared_by_its_box():
    truths = np.zeros((1, 2, 3))
    found = np.array([[[25., 10, 1], [-3, 10, 1]], [[31, 10, 1], [5, 5, 1]]])
    value = oks(found, truths, np.array([[10., 10, 10, 10]]), np.array([50.]), [0.5, 0.5])
    # The doubled box is 0 to 30: one keypoint lies 3 left of it, one 1 right of it.
    assert value[:, 0] == pytest.approx([(1 + math.exp(-9 / 100)) / 2, (math.exp(-1 / 100) + 1) / 2])


def test_nothing_found_and_nothing_there():
    sigmas = coco_person.SIGMAS
    assert oks(np.zeros((0, 17, 3)), np.zeros((2, 17, 3)), np.ones((2, 4)), np.ones(2), sigmas).shape == (0, 2)
    assert oks(np.zeros((3, 17, 3)), np.zeros((0, 17, 3)), np.zeros((0, 4)), np.zeros(0), sigmas).shape == (3, 0)


def test_cocos_sigmas():
    assert np.array_equal(COCOeval(iouType='keypoints').params.kpt_oks_sigmas, coco_person.SIGMAS)
