"""Functions of mmdet.core and mmdet.utils, by values worked out by hand."""
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict

from boxdet.compat import arrays, configs, evaluation, forms, functions
from boxdet.structures.masks import BitmapMasks, PolygonMasks

SQUARE = [[np.array([1., 1, 3, 1, 3, 3, 1, 3])]]


def test_masks_of_any_kind_are_one_array():
    bits = PolygonMasks(SQUARE, 4, 4).to_bitmaps()
    for masks in (PolygonMasks(SQUARE, 4, 4), BitmapMasks(bits, 4, 4), torch.from_numpy(bits), bits,
                  BitmapMasks(bits, 4, 4).to_rle()):
        assert np.array_equal(arrays.mask2ndarray(masks), bits)
    with pytest.raises(TypeError, match='not <class \'list\'>'):
        arrays.mask2ndarray([bits])
    assert functions.mask2bbox(torch.from_numpy(bits)).tolist() == PolygonMasks(SQUARE, 4, 4).to_bitmap().bboxes(
        ).tolist() == [[1, 1, 3, 3]]


def test_center_of_mass_is_weighted():
    mask = torch.tensor([[0., 0, 0], [0, 1, 3]])
    row, column = arrays.center_of_mass(mask)
    assert (row.item(), column.item()) == (1, 1.75)
    assert arrays.center_of_mass(torch.zeros(2, 3))[0] == 0


def test_maps_are_mirrored_and_taken_apart():
    maps = torch.arange(6.).view(1, 1, 2, 3)
    assert arrays.flip_tensor(maps, 'horizontal')[0, 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert arrays.flip_tensor(maps, 'diagonal')[0, 0].tolist() == [[5, 4, 3], [2, 1, 0]]
    with pytest.raises(AssertionError, match="'up' is none of"):
        arrays.flip_tensor(maps, 'up')
    level = torch.rand(2, 3, 4, 4, requires_grad=True)
    assert torch.equal(arrays.select_single_mlvl([level], 1)[0], level[1])
    assert arrays.select_single_mlvl([level], 1, detach=False)[0].requires_grad
    assert arrays.interpolate_as(torch.rand(5, 4, 4), np.zeros((8, 6))).shape == (5, 8, 6)


@pytest.mark.parametrize('kind', [lambda rows: rows, lambda rows: [rows], lambda rows: dict(rows=rows), lambda _: None])
def test_the_highest_scores_take_their_rows_along(kind):
    scores, rows = torch.tensor([[.1, .6], [.9, .2], [.3, .8]]), torch.tensor([10, 11, 12])
    best, labels, place, chosen = arrays.filter_scores_and_topk(scores, 0.25, 3, kind(rows))
    assert torch.equal(best, torch.tensor([.9, .8, .6]))
    assert labels.tolist() == [0, 1, 1] and place.tolist() == [1, 2, 0]
    chosen = chosen['rows'] if isinstance(chosen, dict) else chosen[0] if isinstance(chosen, list) else chosen
    assert chosen is None or chosen.tolist() == [11, 12, 10]


@pytest.mark.parametrize('kernel, second', [('gaussian', 0.5 * np.exp(-2.)), ('linear', 0.)])
def test_matrix_nms_lets_the_worse_of_equal_masks_decay(kernel, second):
    masks = torch.zeros(3, 4, 4)
    masks[:2, :2] = masks[2, 2:] = 1
    scores, labels, _, keep = arrays.mask_matrix_nms(masks, torch.zeros(3), torch.tensor([.5, .9, .4]), kernel=kernel)
    assert keep.tolist() == ([1, 2, 0]) and labels.tolist() == [0, 0, 0]
    assert torch.allclose(scores, torch.tensor([.9, .4, second], dtype=torch.float32))
    _, _, _, keep = arrays.mask_matrix_nms(masks, torch.arange(3), torch.tensor([.5, .9, .4]), kernel=kernel, max_num=2)
    assert keep.tolist() == [1, 0]  # of different classes none decays


def test_avoid_oom_tries_half_precision_then_the_cpu():
    seen = []

    def product(first, index):
        seen.append((first.dtype, index.dtype))
        if len(seen) < 3:
            raise torch.cuda.OutOfMemoryError
        return first[index]

    found = arrays.AvoidOOM().retry_if_cuda_oom(product)(torch.ones(3), index=torch.tensor([0, 2]))
    assert seen == [(torch.float, torch.long), (torch.half, torch.long), (torch.float, torch.long)]
    assert found.dtype == torch.float and found.shape == (2,)
    seen[:] = []
    with pytest.raises(torch.cuda.OutOfMemoryError):
        arrays.AvoidOOM(to_cpu=False, test=True).retry_if_cuda_oom(product)(torch.ones(3), torch.tensor([0]))
    assert len(seen) == 2


def test_recall_and_hits():
    found = np.float32([[0, 0, 10, 10, .3], [20, 20, 30, 30, .9]])
    truth = np.float32([[0, 0, 10, 10], [50, 50, 60, 60]])
    assert evaluation.eval_recalls([truth], [found], [1, 2], 0.5).tolist() == [[0], [.5]]
    hits, alarms = evaluation.tpfp_default(found, truth[:1])
    assert hits.tolist() == [[1, 0]] and alarms.tolist() == [[0, 1]]  # in the order that was given
    hits, alarms = evaluation.tpfp_default(found, truth[1:], truth[:1], area_ranges=[None, (0, 50)])
    assert hits.tolist() == [[0, 0], [0, 0]] and alarms.tolist() == [[0, 1], [0, 0]]
    assert functions.bbox_overlaps(truth[:1], np.float32([[0, 0, 9, 9]]), use_legacy_coordinate=True)[0, 0] == \
        np.float32(100 / 121)


def test_distances_to_boxes_are_clipped_to_each_image():
    points, distance = torch.tensor([[5., 5], [90, 40]]), torch.tensor([[10., 2, 3, 4], [1, 1, 99, 99]])
    one = functions.distance2bbox(points, distance, max_shape=(50, 100))
    assert one.tolist() == [[0, 3, 8, 9], [89, 39, 100, 50]]
    both = functions.distance2bbox(points, torch.stack([distance, distance]), max_shape=[(50, 100), (45, 95)])
    assert torch.equal(both[0], one) and both[1].tolist() == [[0, 3, 8, 9], [89, 39, 95, 45]]
    with pytest.raises(AssertionError, match='shapes of 1 images for boxes of 2'):
        functions.distance2bbox(points, torch.stack([distance, distance]), max_shape=[(50, 100)])


def test_values_of_a_config_stand_in_its_texts():
    cfg = Config(dict(name='a', work_dir='runs/${name}/${model.depth}', model=dict(depth=50),
                      model_wrapper=dict(type='Teacher', detector='${model}')))
    found = configs.replace_cfg_vals(cfg)
    assert found.work_dir == 'runs/a/50' and found.model == dict(type='Teacher', detector=dict(depth=50))
    cfg.work_dir = 'runs/${model}'
    with pytest.raises(AssertionError, match='model: a ConfigDict within a text'):
        configs.replace_cfg_vals(cfg)


def test_older_keys_of_a_config_become_newer_ones():
    cfg = ConfigDict(total_epochs=3, data=dict(imgs_per_gpu=2, workers_per_gpu=1, train=dict(), val=dict(),
                                               test=[dict(samples_per_gpu=2), dict(samples_per_gpu=3)]))
    with pytest.warns(UserWarning, match='imgs_per_gpu|total_epochs'):
        found = configs.compat_cfg(cfg)
    assert found.runner == dict(type='EpochBasedRunner', max_epochs=3) and 'runner' not in cfg
    assert found.data.train_dataloader == dict(samples_per_gpu=2, workers_per_gpu=1)
    assert found.data.val_dataloader == dict(workers_per_gpu=1)
    assert found.data.test_dataloader == dict(samples_per_gpu=3, workers_per_gpu=1)
    assert found.data.test == [{}, {}]
    cfg.data.train_dataloader = dict(workers_per_gpu=4)
    with pytest.warns(UserWarning, match='imgs_per_gpu'), pytest.raises(AssertionError, match='workers_per_gpu: both'):
        configs.compat_cfg(cfg)


class Caller:
    def name(self):
        return functions.get_caller_name()

    def asks(self):
        return Caller.name(None)

    def logs(self):
        return functions.log_img_scale((800, 1333))


def test_who_logs_is_said(caplog, monkeypatch):
    assert Caller().asks() == 'Caller.asks'
    logger = functions.logging.getLogger('boxdet')
    monkeypatch.setattr(logger, 'propagate', True)
    with caplog.at_level('INFO', 'boxdet'):
        assert Caller().logs() and not functions.log_img_scale((5, 5), 'wh', skip_square=True)
    assert caplog.messages == ['image shape: height=800, width=1333 in Caller.logs']
    with pytest.raises(ValueError, match="'hw' or 'wh', not 'xy'"):
        functions.log_img_scale((5, 5), 'xy')


@pytest.mark.parametrize('sizes', [{}, dict(num_preds=0, num_gts=0), dict(num_preds=3, num_gts=0),
                                   dict(num_preds=64, num_gts=7)])
def test_assignments_of_chance_hold_together(sizes):
    found = forms.AssignResult.random(**sizes, p_use_label=1, rng=3)
    count = len(found.labels)
    assert len(found.gt_inds) == len(found.max_overlaps) == count == sizes.get('num_preds', count)
    assert ((found.gt_inds >= -1) & (found.gt_inds <= found.num_gts)).all()
    assert ((found.labels >= 0) == (found.gt_inds > 0)).all()
    assert found.num_gts != 7 or {-1, 0, 1, 7} <= set(found.gt_inds.tolist())
