"""OpenImagesEvaluator against numbers of mmdetection 2.28.2's eval_map on the same made images."""
import re

import numpy as np
import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.evaluation.open_images import OpenImagesEvaluator
from boxdet.structures.instances import Instances

CLASSES = tuple('abcde')


class Made:
    """Four images with objects, groups, and detections near them; class a is above b and c, b above d."""
    CLASSES, ann_file, has_annotations = CLASSES, 'made', True

    def __init__(self, seed, filter_labels=True, get_supercategory=True):
        self.filter_labels, self.get_supercategory = filter_labels, get_supercategory
        rng = np.random.default_rng(seed)
        self.objects, self.results, self.searched = [], [], []
        for i in range(4):
            count = int(rng.integers(1, 6))
            corners = rng.uniform(0, 60, (count, 2))
            boxes = np.concatenate([corners, corners + rng.uniform(10, 40, (count, 2))], 1).astype(np.float32)
            labels, groups = rng.integers(0, 5, count), rng.random(count) < .4
            self.objects.append(dict(bboxes=boxes, labels=labels, gt_is_group_ofs=groups))
            found = int(rng.integers(3, 14))
            near = rng.integers(0, count, found)
            boxes = boxes[near] + rng.normal(0, 4, (found, 4))
            small = rng.random(found) < .4
            boxes[small, 2:] = boxes[small, :2] + (boxes[small, 2:] - boxes[small, :2]) * .5
            labels = np.where(rng.random(found) < .7, labels[near], rng.integers(0, 5, found))
            scores = rng.permutation(found) / found + .01 * i + rng.random(found) * .001
            self.results.append(Instances(bboxes=torch.tensor(boxes, dtype=torch.float32),
                                          scores=torch.tensor(scores, dtype=torch.float32),
                                          labels=torch.tensor(labels)))
            self.searched.append(rng.integers(0, 5, int(rng.integers(0, 3))))

    def __len__(self):
        return len(self.objects)

    def class_tree(self):
        tree = np.eye(5, dtype=bool)
        tree[[1, 2, 3, 3], [0, 0, 1, 0]] = True
        return tree

    def image_sizes(self):
        return np.ones((len(self), 2))

    def get_ann_info(self, index):
        return self.objects[index]

    def image_labels(self):
        return self.searched


@pytest.mark.parametrize('seed, data, settings, expected', [
    (3, {}, {}, 0.704444408416748), (8, {}, {}, 0.6550738215446472),
    (3, dict(filter_labels=False, get_supercategory=False), {}, 0.47999995946884155),
    (8, dict(filter_labels=False), dict(use_group_of=False), 0.2804473340511322),
    (21, {}, dict(iou_thr=0.3, ioa_thr=0.8), 0.4429000914096832)])
def test_the_numbers_are_those_of_mmdetection(seed, data, settings, expected):
    made = Made(seed, **data)
    values = OpenImagesEvaluator(**settings).run(made, made.results, 'silent')
    assert values['mAP'] == pytest.approx(expected, abs=1e-6)
    assert set(values) == set(OpenImagesEvaluator(**settings).metric_names())


def test_several_thresholds_and_sizes():
    made = Made(3)
    values = OpenImagesEvaluator(iou_thr=[.5, .75], ioa_thr=[.5, .5], scale_ranges=[(0, 1000), (0, 1)]).run(
        made, made.results, 'silent')
    assert values['mAP'] == pytest.approx((values['AP50'] + values['AP75']) / 2)
    assert values['mAP_0_1000'] == values['mAP'] and values['mAP_0_1'] == 0
    with pytest.raises(ConfigError, match=re.escape('iou_thr=[0.5, 0.7] and ioa_thr=0.5: one of the other')):
        OpenImagesEvaluator(iou_thr=[.5, .7])
    with pytest.raises(ConfigError, match="unknown metric 'recall'"):
        OpenImagesEvaluator('recall')
