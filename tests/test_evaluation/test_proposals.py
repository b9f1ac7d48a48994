"""The own recall against a plain implementation, and against pycocotools' where both mean the same."""

import numpy as np
import pytest

from boxdet.evaluation.proposals import box_iou, greedy_overlaps, proposal_recall


def plain_greedy(overlaps: np.ndarray) -> np.ndarray:
    """Take the largest overlap left, cross out its row and column, until nothing is left."""
    overlaps, matched = overlaps.astype(float).copy(), np.zeros(len(overlaps))
    for _ in range(min(overlaps.shape)):
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        if overlaps[row, column] < 0:
            break
        matched[row] = overlaps[row, column]
        overlaps[row], overlaps[:, column] = -1, -1
    return matched


@pytest.mark.parametrize('seed', range(5))
def test_greedy_overlaps_equal_the_plain_way(seed):
    rng = np.random.default_rng(seed)
    overlaps = np.round(rng.random((6, 9)), 1)  # rounded, so that there are ties
    expected = plain_greedy(overlaps)
    assert np.array_equal(greedy_overlaps(overlaps, 0.5), np.where(expected >= 0.5, expected, 0))


def test_box_iou_by_hand():
    iou = box_iou(np.array([[0, 0, 10, 10]]), np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]]))
    assert iou == pytest.approx(np.array([[1, 1 / 3, 0]]))


def test_recall_counts_the_first_proposals_only():
    truths = [np.array([[0, 0, 10, 10], [20, 0, 30, 10]]), np.zeros((0, 4))]
    proposals = [np.array([[0, 0, 10, 10], [0, 0, 9, 10], [20, 0, 30, 8]]), np.array([[0, 0, 5, 5]])]
    recall = proposal_recall(truths, proposals, (1, 3), (0.5, 0.9))
    assert np.array_equal(recall, [[0.5, 0.5], [1.0, 0.5]])  # the third one overlaps by 0.8


def test_one_proposal_finds_one_box():
    truths = [np.array([[0, 0, 10, 10], [0, 0, 10, 9]])]
    assert proposal_recall(truths, [np.array([[0, 0, 10, 10]])], (100,), (0.5,))[0, 0] == 0.5


def test_nothing_at_all():
    assert proposal_recall([], [], (100,), (0.5,))[0, 0] == 0
    assert proposal_recall([np.zeros((0, 4))], [np.zeros((0, 4))], (100,), (0.5,))[0, 0] == 0
    assert proposal_recall([np.array([[0, 0, 1, 1]])], [np.zeros((0, 4))], (100,), (0.5,))[0, 0] == 0
