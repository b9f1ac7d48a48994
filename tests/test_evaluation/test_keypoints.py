"""Metric 'keypoints' from a data set's file to that of predictions, which pycocotools reads and measures the same."""
import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxdet.datasets.coco_keypoint import CocoKeypointDataset
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation import evaluate, format_results, load_results, save_results
from boxdet.structures.instances import Instances

SIGMAS = (0.079, 0.079, 0.107, 0.072, 0.072, 0.062, 0.062, 0.087, 0.087, 0.089, 0.089)


@pytest.fixture(params=[('stickman',), None], ids=['one class', 'all classes'])
def dataset(request, shapes_dir):
    classes = request.param or ('circle', 'square', 'triangle', 'star', 'ring', 'stickman')
    return CocoKeypointDataset(str(shapes_dir / 'annotations/instances_train.json'), [], classes=classes,
                               sigmas=SIGMAS, keypoint_offset=0, test_mode=True)


def guesses(dataset, noise=2.0, seed=0) -> list[Instances]:
    """The ground truth, moved a little, with some of it left out and some false alarms."""
    rng, results = np.random.default_rng(seed), []
    for i in range(len(dataset)):
        truth = dataset.get_ann_info(i)
        rows = np.concatenate([np.flatnonzero(rng.random(len(truth['labels'])) < 0.9)] * 2)
        keypoints = truth['keypoints'][rows] + np.append(rng.normal(0, noise, 2), 0).astype(np.float32)
        keypoints[..., :2] += rng.normal(0, noise, keypoints[..., :2].shape)
        results.append(Instances(num_classes=len(dataset.CLASSES), bboxes=torch.from_numpy(truth['bboxes'][rows]),
                                 scores=torch.from_numpy(rng.random(len(rows)).astype(np.float32)),
                                 labels=torch.from_numpy(truth['labels'][rows]), keypoints=torch.from_numpy(keypoints)))
    return results


def test_numbers_are_pycocotools_of_the_written_file(dataset, tmp_path):
    results = guesses(dataset, noise=1.2)
    found = evaluate(dataset, results, 'keypoints', logger='silent', jsonfile_prefix=str(tmp_path / 'r'),
                     metric_items=['mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l'])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(dataset.ann_file)
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / 'r.keypoints.json')), 'keypoints')
        judge.params.kpt_oks_sigmas, judge.params.catIds = np.array(SIGMAS), [6]
        judge.evaluate(), judge.accumulate(), judge.summarize()
    ours = [value for name, value in found.items() if name != 'keypoints_mAP_copypaste']
    assert ours == judge.stats.tolist() and 0.2 < ours[0] < 0.95


def test_perfect_keypoints_and_far_ones(dataset):
    perfect = evaluate(dataset, guesses(dataset, noise=0, seed=3), 'keypoints', logger='silent')
    far = evaluate(dataset, guesses(dataset, noise=60), ['keypoints'], logger='silent')
    assert perfect['keypoints_mAP'] > 0.75 and far['keypoints_mAP'] < 0.05


def test_a_half_pixel_is_taken_off_for_files_that_count_pixels(dataset, tmp_path):
    counted = CocoKeypointDataset(dataset.ann_file, [], classes=dataset.CLASSES, sigmas=SIGMAS, test_mode=True)
    one = evaluate(dataset, guesses(dataset), 'keypoints', logger='silent')
    other = evaluate(counted, guesses(counted), 'keypoints', logger='silent')
    assert other['keypoints_mAP'] == pytest.approx(one['keypoints_mAP'], abs=1e-6)
    truths = [counted.get_ann_info(i) for i in range(len(counted))]
    results = [Instances(bboxes=torch.from_numpy(t['bboxes']), scores=torch.ones(len(t['labels'])),
                         labels=torch.from_numpy(t['labels']), keypoints=torch.from_numpy(t['keypoints']))
               for t in truths]
    path = format_results(counted, results, str(tmp_path / 'r'), proposals=False)['keypoints']
    written = [np.reshape(row['keypoints'], (-1, 3)) for row in json.loads(Path(path).read_text())]
    compared = 0
    for row, keypoints in zip(written, np.concatenate([t['keypoints'] for t in truths])):
        assert np.allclose(row[:, :2], keypoints[:, :2] - 0.5)
        in_file = [a['keypoints'] for a in counted.coco.anns.values() if 'keypoints' in a]
        labelled = keypoints[:, 2] > 0
        if labelled.any():  # what stood in the file stands in the file again
            assert any(np.allclose(np.reshape(a, (-1, 3))[labelled], row[labelled], atol=1e-4) for a in in_file)
            compared += 1
    assert compared > 3


def test_results_with_keypoints_come_back_from_files(dataset, tmp_path):
    results = guesses(dataset)
    for name in ('r.pkl', 'r.json'):
        save_results(results, tmp_path / name)
        again = load_results(tmp_path / name)
        assert all(torch.allclose(a.keypoints, b.keypoints) for a, b in zip(again, results) if len(b))
        assert evaluate(dataset, again, 'keypoints', logger='silent') == evaluate(dataset, results, 'keypoints',
                                                                                  logger='silent')


def test_what_is_missing_is_told(dataset):
    results = guesses(dataset)
    with pytest.raises(DataError, match='no keypoints'):
        evaluate(dataset, [r.without('keypoints') for r in results], 'keypoints', logger='silent')
    dataset.SIGMAS = None
    with pytest.raises(ConfigError, match='sigmas'):
        evaluate(dataset, results, 'keypoints', logger='silent')
