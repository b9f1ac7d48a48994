"""Guided anchoring: which cells are matched, where objects are located, which cells propose."""
from __future__ import annotations

import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.models import build_detector
from boxdet.models.families.guided_anchoring import ApproxMaxIoUAssigner
from boxdet.models.rpn_head import ProposalSettings
from boxdet.structures.instances import Instances
from tests.test_models import tiny_models
from tests.test_models.test_families import guided_anchoring


@pytest.fixture()
def head():
    torch.manual_seed(0)
    model = build_detector(guided_anchoring())
    model.init_weights()
    return model.rpn_head


def test_the_best_approximation_of_a_square_counts():
    squares = torch.tensor([[0., 0., 10., 10.], [20., 0., 30., 10.]])
    approxs = torch.tensor([[0., 0., 10., 10.], [0., 0., 20., 10.], [20., 0., 30., 10.], [20., 0., 25., 20.]])
    wide = torch.tensor([[0., 0., 20., 10.]])
    found = ApproxMaxIoUAssigner(0.7, 0.3).assign(approxs, squares, 2, wide)
    assert found.gt_inds.tolist() == [1, 0] and found.max_overlaps[0] == 1
    ignoring = ApproxMaxIoUAssigner(0.7, 0.3, match_low_quality=False, ignore_iof_thr=0.5)
    # The region covers the square, but only half of the approximation that fits.
    found = ignoring.assign(approxs, squares, 2, wide, torch.tensor([[0., 0., 10., 10.]]))
    assert found.gt_inds.tolist() == [-1, 0]


def test_without_objects_all_is_background():
    found = ApproxMaxIoUAssigner(0.7, 0.3).assign(torch.rand(6, 4), torch.rand(2, 4), 3, torch.zeros(0, 4))
    assert found.gt_inds.tolist() == [0, 0]


def test_with_a_border_one_approximation_inside_the_image_is_enough():
    cfg = guided_anchoring()
    cfg['train_cfg']['rpn']['allowed_border'] = 0
    cfg['train_cfg']['rpn']['sampler'] = cfg['train_cfg']['rpn']['ga_sampler'] = None
    head = build_detector(cfg).rpn_head
    batch = tiny_models.batch((2,), (0,))
    outs = head([torch.rand(1, 16, 96 // s, 128 // s) for s in (4, 8, 16, 32, 64)])
    squares = head.anchors(outs[0])
    sizes = [tuple(x.shape[2:]) for x in outs[0]]
    approxs = torch.cat(head.approx_anchor_generator.grid_priors(sizes, device='cpu'))
    inside, = head._cells_inside(squares, approxs, sizes, batch.metas, (96, 128))
    first = inside[:24 * 32].view(24, 32)
    # Of the approximations, 8 to 12.7 pixels and three shapes, the square of 8 alone is inside at the point (4, 4).
    assert not first[0].any() and not first[:, 0].any() and first[1:, 1:][:22, :30].all()
    losses = head.loss(*outs, batch.gt, None, batch.metas, (96, 128))
    assert set(losses) == {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_anchor_shape', 'loss_anchor_loc'}
    assert tiny_models.total(losses).isfinite()


def test_where_objects_are_located(head):
    sizes, strides = [(16, 16), (8, 8)], (4, 8)
    squares = [torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')[::-1] * 2, -1).reshape(-1, 4)
               * float(s) + torch.tensor([-4., -4., 4., 4.]) for (h, w), s in zip(sizes, strides)]
    near, weights = head.loc_targets(squares, sizes, [Instances(bboxes=torch.tensor([[16., 16., 32., 32.]]))])
    level = int(near[1].any())  # 16 pixels against squares of 8 on the first level: one level up
    assert level == 1 and not near[0].any()
    # In cells the object lies from 2 to 4: its middle fifth is cell 3, its middle half (2.5 to 3.5) cells 2 to 4.
    assert near[1].view(8, 8).nonzero().tolist() == [[3, 3]]
    own = weights[1].view(8, 8)
    assert own[3, 3] == 1 and own[2, 2] == 0 and own[4, 4] == 0 and own[5, 5] == pytest.approx(0.1)
    # On the level below it lies from 4 to 8: the middle half takes no part.
    assert weights[0].view(16, 16)[5, 6] == 0 and weights[0].view(16, 16)[4, 4] == pytest.approx(0.1)


def test_cells_without_an_object_propose_only_while_training(head):
    batch = tiny_models.batch((0,), (0,))
    feats = [torch.rand(1, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64)]
    settings = ProposalSettings(nms_pre=100, max_per_img=1000)
    with torch.no_grad():
        head.conv_loc.weight.zero_()
        head.conv_loc.bias.fill_(-10.)  # a probability below loc_filter_thr everywhere
    assert len(head.train().predict(*head(feats), batch.metas, settings)[0])
    assert not len(head.eval().predict(*head(feats), batch.metas, settings)[0])


def test_offsets_start_larger_than_the_rest(head):
    assert head.feature_adaption.conv_offset.weight.std().item() == pytest.approx(0.1, rel=0.2)
    assert head.conv_reg.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert head.conv_loc.bias.item() == pytest.approx(-4.595, abs=1e-3)  # a probability of 0.01


def test_generators_that_do_not_fit_are_told():
    cfg = guided_anchoring()
    cfg['rpn_head']['square_anchor_generator'] |= dict(scales=[4])
    with pytest.raises(ConfigError, match='same first scale: 2 and 4'):
        build_detector(cfg)
    cfg = guided_anchoring()
    del cfg['train_cfg']['rpn']['ga_assigner']
    with pytest.raises(ConfigError, match="train_cfg.rpn needs a 'ga_assigner'"):
        build_detector(cfg)
