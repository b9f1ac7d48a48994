"""Several gloo ranks come to the numbers of one: results, gradients, statistics; and they get along without objects."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    """What numbers_of_ranks.py asked of 1 to 4 ranks."""
    folder = tmp_path_factory.mktemp('ranks')
    command = [sys.executable, str(Path(__file__).with_name('numbers_of_ranks.py')), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / 'answers.pth', weights_only=False)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys() and ours
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5,
                                   msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('name, shares', [
    ('evaluate_2', [3, 3]), ('evaluate_3', [2, 2, 2]), ('evaluate_4', [2, 2, 2, 2]), ('files', [2, 2, 2])])
def test_results_of_five_images_are_those_of_one_process_to_the_last_bit(answers, name, shares):
    (count, alone), = answers['evaluate_1']
    assert count == len(alone) == 5 and sum(len(boxes) for boxes, *_ in alone) > 20
    ranks = answers[name]
    assert [share for share, _ in ranks] == shares and all(results is None for _, results in ranks[1:])
    assert len(ranks[0][1]) == 5
    for ours, theirs in zip(ranks[0][1], alone):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3])) and ours[3] == theirs[3]


def test_files_of_the_results_are_cleared_away(answers):
    assert answers['left'] == []


def test_gradients_of_two_ranks_are_those_of_their_batch(answers):
    whole, first, second = answers['frozen_statistics']
    assert all(torch.equal(first[name], second[name]) for name in whole)
    assert_close(first, whole)


def test_gradients_are_the_mean_of_the_ranks(answers):
    for by_ddp, by_hand in answers['mean_of_ranks']:
        assert_close(by_ddp, by_hand)


@pytest.mark.parametrize('name', ['sync_bn', 'sync_bn_checkpointed'])
def test_sync_bn_makes_two_ranks_one_batch(answers, name):
    (whole, statistics), first, second = answers[name]
    for gradients, buffers in (first, second):
        assert_close(gradients, whole)
        assert_close(buffers, statistics)


def test_checkpointed_blocks_have_the_same_gradients(answers):
    for (ours, statistics), (theirs, expected) in zip(answers['sync_bn_checkpointed'], answers['sync_bn']):
        assert_close(ours, theirs)
        assert_close(statistics, expected)


@pytest.mark.parametrize('model', ['faster_rcnn', 'mask_rcnn', 'cascade_mask_rcnn'])
def test_a_rank_without_objects_keeps_the_others_going(answers, model):
    (*here, weights), (*there, copies) = (answer[model] for answer in answers['empty'])
    keys = {tuple(sorted_keys) for sorted_keys, _ in (*here, *there)}
    assert len(keys) == 1 and any(key.endswith('loss_bbox') for key in keys.pop())
    assert all(finite for _, finite in (*here, *there))
    assert all(torch.equal(weights[name], copies[name]) for name in weights)


def test_unused_parameters_are_found_when_asked_for(answers):
    found, refused = zip(*answers['spare_branch'])
    # Half of what rank 0 has: rank 1 did not use the branch.
    assert torch.equal(found[0], found[1]) and found[0].abs().sum() > 0
    assert all('find_unused_parameters=True' in text for text in refused)
