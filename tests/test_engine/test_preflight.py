"""What is found before the first step: heads for other classes, missing images, odd boxes, empty data, the batch."""
import json
import logging
import re

import numpy as np
import pytest
from torch import nn

from boxdet.datasets import build_dataset
from boxdet.engine.config import load_config
from boxdet.engine.findings import report
from boxdet.engine.preflight import (
    _class_weights,
    check_keypoints,
    check_metrics,
    check_num_classes,
    check_training,
    check_writable,
    learning_rate_scale,
    missing_files,
    scale_steps,
)
from boxdet.errors import ConfigError, DataError
from boxdet.models import build_detector


class Head(nn.Module):
    def __init__(self, num_classes, class_agnostic=False):
        super().__init__()
        self.num_classes, self.class_agnostic = num_classes, class_agnostic


class Detector(nn.Module):
    def __init__(self, bbox=2, mask=2, rpn=1, agnostic=False):
        super().__init__()
        self.rpn_head = Head(rpn)
        self.roi_head = nn.ModuleDict(dict(bbox_head=Head(bbox), mask_head=Head(mask, agnostic)))


@pytest.fixture
def coco(tmp_path):
    """``coco(annotations, images=2)`` writes a COCO file with classes cat, dog and gives the data set."""
    import cv2

    def make(annotations, images=2, written=None, **kwargs):
        for i in range(images if written is None else written):
            cv2.imwrite(str(tmp_path / f'{i}.jpg'), np.zeros((64, 64, 3), np.uint8))
        data = dict(images=[dict(id=i, file_name=f'{i}.jpg', width=64, height=64) for i in range(images)],
                    categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
                    annotations=[dict(id=10 + i, image_id=image, category_id=1 + i % 2, bbox=box, area=box[2] * box[3],
                                      iscrowd=0) for i, (image, box) in enumerate(annotations)])
        (tmp_path / 'ann.json').write_text(json.dumps(data))
        return build_dataset(dict(type='CocoDataset', ann_file=str(tmp_path / 'ann.json'), img_prefix=str(tmp_path),
                                  pipeline=TEST if kwargs.get('test_mode') else TRAIN,
                                  **{'classes': ('cat', 'dog'), **kwargs}))
    return make


@pytest.fixture
def log(caplog):
    logging.getLogger('boxdet').propagate = True
    caplog.set_level(logging.INFO, logger='boxdet')
    return caplog


TRAIN = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='DefaultFormatBundle'),
         dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'], meta_keys=[])]
TEST = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(64, 64), transforms=[
    dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img'])])]
GOOD = [(0, [4, 4, 20, 20]), (1, [8, 8, 30, 30])]


@pytest.mark.parametrize('part, loss, message', [
    ('roi_head.bbox_head', dict(class_weight=[1., 2., 3.]),
     'model.roi_head.bbox_head.loss_cls.class_weight has 3 numbers, and 4 scores are weighed: 3 classes and, as the '
     'last, the background'),
    ('roi_head.bbox_head', dict(use_sigmoid=True, class_weight=[1.] * 3), 'and 4 scores are weighed'),
    ('rpn_head', dict(use_sigmoid=True, class_weight=[1., 2.]), 'model.rpn_head.loss_cls.class_weight has 2 numbers'),
    ('roi_head.bbox_head', dict(class_weight=[1.] * 4), None),
    ('rpn_head', dict(use_sigmoid=False, class_weight=[1.] * 2), None)])
def test_class_weights_of_the_wrong_length(tiny_detector, part, loss, message):
    cfg = load_config(tiny_detector.config)
    cfg.merge_from_dict({f'model.{part}.loss_cls': dict(type='CrossEntropyLoss', **loss)})
    model = build_detector(cfg.model)
    if message is None:
        assert not list(_class_weights(model))
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        report(_class_weights(model))


def test_a_good_set_passes_and_is_logged(coco, log):
    check_training(Detector(), coco(GOOD), coco(GOOD, test_mode=True))
    assert 'data.train: 2 images (of 2 in the file)' in log.text and 'WARNING' not in log.text


@pytest.mark.parametrize('detector, named', [
    (Detector(bbox=80), 'model.roi_head.bbox_head.num_classes = 80'), (Detector(mask=3), 'mask_head.num_classes = 3')])
def test_heads_for_another_number_of_classes(coco, detector, named):
    with pytest.raises(ConfigError, match=rf'{named}.*has 2 classes \(cat, dog\); set num_classes to 2'):
        check_training(detector, coco(GOOD))


def test_heads_that_tell_no_classes_apart_are_left_alone(coco):
    check_num_classes(Detector(rpn=7), coco(GOOD))
    check_num_classes(Detector(mask=80, agnostic=True), coco(GOOD))


def test_one_class_as_a_string():
    dataset = type('Data', (), dict(CLASSES='cat'))()
    with pytest.raises(ConfigError, match=r"classes='cat' is one text, .* write classes=\('cat',\)"):
        check_num_classes(Detector(), dataset)


def test_missing_images_are_counted_and_named(coco):
    dataset = coco([(i, [4, 4, 20, 20]) for i in range(9)], images=9, written=2)
    assert missing_files(dataset)[1] == 9
    with pytest.raises(DataError, match=r'data\.train: 7 of 9 image files are missing: .*2\.jpg, .*6\.jpg, …; check'):
        check_training(Detector(), dataset)


def test_degenerate_boxes_are_warned_of_by_id(coco, log):
    check_training(Detector(), coco([*GOOD, (0, [5, 5, 0, 10]), (1, [5, 5, 10, 0])]))
    assert '2 boxes have no area, or lie outside their image, and are not used (annotation ids 12, 13)' in log.text


def test_an_empty_set_says_why(coco):
    with pytest.raises(DataError, match=r'no image is left to use \(of 2 in the file; left out: .*empty.* 2\);'):
        check_training(Detector(), coco([]))


def test_left_out_images_are_counted(coco, log):
    check_training(Detector(), coco(GOOD[:1]))
    assert 'data.train: 1 images (of 2 in the file; left out: ' in log.text


def test_validation_with_classes_in_another_order(coco, log):
    check_training(Detector(), coco(GOOD), coco(GOOD, classes=('dog', 'cat'), test_mode=True))
    assert "data.val: the data set has the model's classes in another order: labels are matched by name" in log.text
    assert 'WARNING' not in log.text


def test_wrapped_sets_are_looked_into(coco):
    inner = coco(GOOD, written=1)
    with pytest.raises(DataError, match='1 of 2 image files are missing'):
        check_training(Detector(), build_dataset(dict(type='RepeatDataset', times=3, dataset=inner)))


# --- batch and learning rate ---

def test_matching_batch_is_told(log):
    assert learning_rate_scale(2, 8, 1, 0.02, dict(enable=False, base_batch_size=16)) == 1.
    assert '8 processes x 2 images x 1 accumulated = effective batch 16; base batch 16; learning rate 0.02' in log.text
    assert 'WARNING' not in log.text


def test_another_batch_is_a_warning(log):
    assert learning_rate_scale(2, 1, 1, 0.02, dict(base_batch_size=16)) == 1.
    assert 'WARNING' in log.text and 'linear scaling rule would give 0.0025: --auto-scale-lr applies it' in log.text


def test_scaling(log):
    assert learning_rate_scale(2, 1, 4, 0.02, dict(enable=True, base_batch_size=16)) == 0.5
    assert 'effective batch 8; base batch 16; learning rate 0.02 x 0.5 = 0.01' in log.text
    with pytest.raises(ConfigError, match='needs auto_scale_lr.base_batch_size'):
        learning_rate_scale(2, 1, 1, 0.02, dict(enable=True))


def test_without_a_base(log):
    assert learning_rate_scale(2, 1, 1, 0.02) == 1.
    assert '1 process x 2 images x 1 accumulated = effective batch 2; learning rate 0.02' in log.text


def test_masks_are_measured_of_models_that_make_them():
    model = nn.Linear(1, 1)
    check_metrics(model, 'segm')  # a user's own model, which does not tell
    model.with_mask = False
    check_metrics(model, ['bbox', 'proposal'])
    with pytest.raises(ConfigError, match="'segm' needs masks, and this Linear has no mask head"):
        check_metrics(model, ['bbox', 'segm'])


def test_an_rpn_has_no_classes():
    model = nn.Linear(1, 1)
    model.with_roi_head = False
    check_metrics(model, ['proposal', 'proposal_fast'])
    for metric in ('bbox', None, ['proposal', 'bbox']):
        with pytest.raises(ConfigError, match="'bbox' needs classes, and an RPN's proposals have none .*evaluate "
                                              "'proposal'"):
            check_metrics(model, metric)


# --- keypoints

def keypoint_model(**head):
    from boxdet.models import build_detector
    from tests.test_models import tiny_models
    cfg = tiny_models.keypoint_rcnn()
    cfg['roi_head']['keypoint_head'] |= head
    cfg['roi_head']['bbox_head']['num_classes'] = 1
    return build_detector(cfg)


def animals(tmp_path, **keywords):
    names = ['nose', 'left_paw', 'right_paw', 'left_ear', 'right_ear']
    row = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 30, 30], area=900, iscrowd=0, keypoints=[9, 9, 2] * 5)
    path = tmp_path / 'animals.json'
    path.write_text(json.dumps(dict(images=[dict(id=1, file_name='1.jpg', width=64, height=64)], annotations=[row],
                                    categories=[dict(id=1, name='cat', keypoints=names)])))
    return build_dataset(dict(type='CocoKeypointDataset', ann_file=str(path), pipeline=[], classes=('cat',),
                              **keywords))


def test_keypoint_models_and_data_sets_are_compared(coco, tmp_path):
    animal = animals(tmp_path)
    check_keypoints(keypoint_model(), animal)
    check_keypoints(keypoint_model(flip_pairs=[(4, 3), (2, 1)]), animal)                # another order is the same
    check_keypoints(keypoint_model(flip_pairs=None), animal)
    check_keypoints(Detector(), coco(GOOD))
    repeated = build_dataset(dict(type='RepeatDataset', times=2, dataset=coco(GOOD)))
    with pytest.raises(ConfigError, match='KeypointRCNN learns keypoints, .* training data set CocoDataset has none'):
        check_training(keypoint_model(), coco(GOOD, classes=('cat',)))
    with pytest.raises(ConfigError, match='CocoDataset has none'):
        check_keypoints(keypoint_model(), repeated)
    with pytest.raises(ConfigError, match=r'num_keypoints = 4: .*animals.json has 5 keypoints \(nose, left_paw'):
        check_keypoints(keypoint_model(num_keypoints=4, flip_pairs=[(1, 2)], skeleton=[]), animal)
    with pytest.raises(ConfigError, match=r'flip_pairs = \[\(1, 2\)\]: .* swaps \[\(1, 2\), \(3, 4\)\]'):
        check_keypoints(keypoint_model(flip_pairs=[(1, 2)]), animal)


def test_metric_keypoints_needs_a_head_keypoints_and_sigmas(coco, tmp_path):
    check_metrics(keypoint_model(), ['bbox', 'keypoints'], animals(tmp_path, sigmas=[.1] * 5))
    with pytest.raises(ConfigError, match='has no keypoint head'):
        from boxdet.models import build_detector
        from tests.test_models import tiny_models
        check_metrics(build_detector(tiny_models.faster_rcnn()), 'keypoints')
    with pytest.raises(ConfigError, match='the test data set CocoDataset has none'):
        check_metrics(keypoint_model(), 'keypoints', coco(GOOD))
    with pytest.raises(ConfigError, match=r'needs sigmas=\[...\] of the 5 keypoints of .*animals.json'):
        check_metrics(keypoint_model(), 'keypoints', animals(tmp_path))


@pytest.mark.parametrize('length, rates, expected', [
    (dict(type='IterBasedRunner', max_iters=90000), dict(policy='step', step=[60000, 80000]),
     (dict(type='IterBasedRunner', max_iters=180000), dict(policy='step', step=[120000, 160000]))),
    (dict(type='IterBasedRunner', max_iters=9), dict(policy='CosineRestart', by_epoch=False, periods=[4, 5], min_lr=0),
     (dict(type='IterBasedRunner', max_iters=18),
      dict(policy='CosineRestart', by_epoch=False, periods=[8, 10], min_lr=0))),
    (dict(type='EpochBasedRunner', max_epochs=12), dict(policy='step', step=[8, 11]),
     (dict(type='EpochBasedRunner', max_epochs=12), dict(policy='step', step=[8, 11]))),
    (dict(type='IterBasedRunner', max_iters=90000), None, (dict(type='IterBasedRunner', max_iters=180000), None))])
def test_half_the_batch_doubles_a_schedule_of_iterations(log, length, rates, expected):
    before = dict(length), None if rates is None else dict(rates)
    assert scale_steps(0.5, length, rates) == expected
    assert (length, rates) == before and 'the schedule is 2 times as long' in log.text


def test_what_counts_iterations_is_scaled_along(log):
    length, every = dict(type='IterBasedRunner', max_iters=4), dict(interval=4, start=2)
    _, _, evaluation, saving = scale_steps(2., length, None, evaluation=every, checkpoint_config=dict(interval=-1))
    assert (evaluation, saving) == (dict(interval=2, start=1), dict(interval=-1)) and every == dict(interval=4, start=2)
    assert "evaluation {'interval': 2, 'start': 1}" in log.text and 'checkpoint_config' not in log.text
    epochs = dict(type='EpochBasedRunner', max_epochs=12)
    assert scale_steps(2., epochs, None, evaluation=every)[2] == every
    changing = dict(interval=100, dynamic_intervals=[(400, 50)])
    assert scale_steps(2., length, None, evaluation=changing)[2] == dict(interval=50, dynamic_intervals=[(200, 25)])
    assert scale_steps(2., length, None, evaluation=None)[2] is None
    chain = dict(policy='param_scheduler', schedulers=[dict(type='LinearLR', by_epoch=False, begin=0, end=500),
                                                       dict(type='MultiStepLR', milestones=[8])])
    assert scale_steps(2., length, chain)[1]['schedulers'] == [
        dict(type='LinearLR', by_epoch=False, begin=0, end=250), chain['schedulers'][1]]


def test_folders_are_tried_before(tmp_path):
    check_writable(tmp_path / 'a' / 'b', 'work_dir')
    assert list((tmp_path / 'a' / 'b').iterdir()) == []
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match=f'work_dir {tmp_path}/file/run cannot be written: Not a directory'):
        check_writable(tmp_path / 'file' / 'run', 'work_dir')
