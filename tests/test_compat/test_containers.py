"""GeneralData and InstanceData, drawings, and which detections are hits."""
import copy

import cv2
import mmcv
import numpy as np
import pytest
import torch

from boxdet.compat import drawing, hits
from boxdet.compat.containers import GeneralData, InstanceData
from boxdet.compat.functions import digit_version
from boxdet.errors import ConfigError


def test_facts_stay_and_values_change():
    data = GeneralData(dict(path='a.jpg', scale=np.ones(2)), dict(bboxes=torch.ones(2, 4), note='x'))
    data.set_meta_info(dict(scale=np.ones(2), size=(3, 4)))
    assert data.meta_info_keys() == ['path', 'scale', 'size'] and data['size'] == (3, 4)
    assert data.keys() == ['bboxes', 'note'] and dict(data.items())['note'] == data.get('note') == 'x'
    for change in (lambda: data.set_meta_info(dict(path='b.jpg')), lambda: data.pop('path'),
                   lambda: delattr(data, 'path'), lambda: data.pop('absent')):
        with pytest.raises(KeyError):
            change()
    for change in (lambda: setattr(data, 'path', 1), lambda: setattr(data, '_data_fields', set())):
        with pytest.raises(AttributeError, match='stays as it is'):
            change()
    data['note'] = 'y'
    assert data.pop('note') == 'y' and 'note' not in data and data.pop('note', 5) == 5
    other = copy.deepcopy(data).new(dict(more=1), dict(masks=np.zeros((1, 2, 3))))
    assert other.meta_info_values()[2:] == [(3, 4), 1] and other.keys() == ['masks']
    assert 'shape of masks: (1, 2, 3)' in repr(other) and 'path: a.jpg' in repr(other)
    with pytest.raises(AssertionError, match='is a dict'):
        GeneralData(data=3)


def test_tensors_are_converted_together():
    data = GeneralData(dict(a=1), dict(x=torch.ones(2, requires_grad=True), y=[1]))
    assert data.to(torch.double).x.dtype == torch.double and not data.detach().x.requires_grad
    assert isinstance(data.numpy().x, np.ndarray) and data.cpu().y == [1] and data.numpy().a == 1


def test_instances_are_of_one_length_and_indexed_together():
    found = InstanceData(dict(path='a'), dict(labels=torch.arange(3), ids=['a', 'b', 'c'], areas=np.arange(3.)))
    for index, labels in ((1, [1]), (-1, [2]), (slice(1, None), [1, 2]), (torch.tensor([2, 0]), [2, 0]),
                          (torch.tensor([True, False, True]), [0, 2])):
        part = found[index]
        assert part.labels.tolist() == labels == part.areas.tolist() and part.path == 'a'
        assert part.ids == ['abc'[k] for k in labels] and len(part) == len(labels)
    joined = InstanceData.cat([found, found[0]])
    assert joined.labels.tolist() == [0, 1, 2, 0] == joined.areas.tolist() and joined.ids == [*'abca']
    assert InstanceData.cat([found]) is found and found['ids'] == [*'abc']
    for wrong in (lambda: setattr(found, 'x', 3), lambda: setattr(found, 'x', [1]), lambda: InstanceData()[0],
                  lambda: found[torch.ones(2)], lambda: found[torch.tensor([True])], lambda: InstanceData.cat([])):
        with pytest.raises(AssertionError):
            wrong()
    with pytest.raises(IndexError, match='instance 3 of 3'):
        found[3]


def test_colours_in_matplotlibs_form():
    assert drawing.color_val_matplotlib((0, 51, 255)) == (1, 0.2, 0) == drawing.color_val_matplotlib(
        np.array([0, 51, 255]))
    assert drawing.color_val_matplotlib(mmcv.Color.red) == drawing.color_val_matplotlib('red') == (1, 0, 0)
    for wrong, error in ((1.5, TypeError), ((0, 0, 256), AssertionError)):
        with pytest.raises(error):
            drawing.color_val_matplotlib(wrong)
    assert drawing.palette_val([(0, 51, 255)]) == [(0, 0.2, 1)]
    assert drawing.get_palette([(1, 2, 3)], 1) == [(1, 2, 3)] and drawing.get_palette('red', 2) == [(255, 0, 0)] * 2
    assert drawing.get_palette((1, 2, 3), 2) == [(1, 2, 3)] * 2
    assert drawing.get_palette(None, 4) == drawing.get_palette('random', 4)
    assert len(drawing.get_palette('coco', 80)) == 80 and drawing.get_palette('citys', 8)[0] == (220, 20, 60)


def test_ground_truth_and_results_are_drawn_over_or_beside_one_another(tmp_path):
    image = np.zeros((60, 80, 3), np.uint8)
    truth = dict(gt_bboxes=np.array([[5., 30, 20, 50]]), gt_labels=np.array([1]))
    result = [np.zeros((0, 5)), np.array([[40., 30, 60, 50, 0.9]])]
    style = dict(show=False, gt_bbox_color='#00ff00', det_bbox_color='#ff0000', gt_mask_color=None, det_mask_color=None)
    over = drawing.imshow_gt_det_bboxes(image, truth, result, out_file=str(tmp_path / 'a.png'), **style)
    assert over[40, 5].tolist() == [0, 255, 0] and over[40, 40].tolist() == [0, 0, 255]
    assert np.array_equal(cv2.imread(str(tmp_path / 'a.png')), over)
    beside = drawing.imshow_gt_det_bboxes(image, truth, result, overlay_gt_pred=False, **style)
    assert beside.shape == (60, 160, 3) and beside[40, 5, 1] == 255 == beside[40, 120, 2] and not beside[40, 85].any()
    truth['gt_masks'] = torch.ones(1, 60, 80)
    with_masks = drawing.imshow_gt_det_bboxes(image, truth, (result, [[], [np.ones((60, 80), bool)]]), **style)
    assert with_masks[58, 2].any() and not over[58, 2].any()
    with pytest.raises(TypeError, match='masks are'):
        drawing.imshow_gt_det_bboxes(image, dict(truth, gt_masks=[]), result, **style)


def test_hits_by_the_rule_of_imagenet():
    truth = np.array([[1., 1, 11, 11], [1, 1, 101, 101]])
    found = np.array([[0., 0, 10, 4, 0.9], [0, 0, 100, 45, 0.8], [0, 0, 100, 55, 0.7], [0, 0, 10, 10, 0.6]])
    right, wrong = hits.tpfp_imagenet(found, truth)  # a box of 10 x 10 needs an overlap of 1/4, one of 100 x 100 of 1/2
    assert right.tolist() == [[1, 0, 1, 0]] and wrong.tolist() == [[0, 1, 0, 1]]
    right, wrong = hits.tpfp_imagenet(found, truth, area_ranges=[(0, 200), (200, 20000)])
    assert right.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]] and wrong.tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    right, wrong = hits.tpfp_imagenet(found[:1], truth[:0], truth[:1])
    assert right.tolist() == wrong.tolist() == [[0]]


def test_hits_by_the_rule_of_openimages():
    truth, groups = np.array([[0., 0, 100, 100], [200, 0, 220, 20], [300, 0, 400, 90]]), np.array([True, False, True])
    found = np.array([[0., 0, 20, 20, 0.5], [50, 50, 70, 70, 0.8], [200, 0, 220, 19, 0.7], [500, 0, 520, 20, 0.9]])
    right, wrong, rows = hits.tpfp_openimages(found, truth, gt_bboxes_group_of=groups)
    assert right.tolist() == [[1, 0, 1, 0]] and wrong.tolist() == [[0, 1, 0, 1]]
    assert np.array_equal(rows, np.stack([found[2], found[3], found[1], np.zeros(5)]))
    right, wrong, rows = hits.tpfp_openimages(found, truth, gt_bboxes_group_of=groups, use_group_of=False)
    assert right.tolist() == [[0, 0, 1, 0]] and wrong.tolist() == [[1, 1, 0, 1]] and rows is not None
    with pytest.raises(ConfigError, match='no ranges of area'):
        hits.tpfp_openimages(found, truth, area_ranges=[(0, 1)])


def test_a_version_of_mmdet_is_a_list():
    assert digit_version('2.28.2') >= [2, 4] and digit_version('2.28.2')[:3] == [2, 28, 2]
