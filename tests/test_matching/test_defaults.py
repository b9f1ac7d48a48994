"""Keywords that a config leaves out have mmdetection 2.28's values."""
import inspect

import pytest

from boxdet.matching import anchors, assigner, box_coder, sampler

DRAWN = dict(neg_pos_ub=-1, add_gt_as_proposals=True)
DEFAULTS = {
    anchors.AnchorGenerator: dict(scales=None, base_sizes=None, scale_major=True, octave_base_scale=None,
                                  scales_per_octave=None, centers=None, center_offset=0.0),
    assigner.BboxOverlaps2D: dict(scale=1.0, dtype=None),
    assigner.MaxIoUAssigner: dict(min_pos_iou=0.0, gt_max_assign_all=True, ignore_iof_thr=-1,
                                  ignore_wrt_candidates=True, match_low_quality=True, gpu_assign_thr=-1,
                                  iou_calculator=None),
    box_coder.DeltaXYWHBBoxCoder: dict(target_means=(0., 0., 0., 0.), target_stds=(1., 1., 1., 1.), clip_border=True,
                                       add_ctr_clamp=False, ctr_clamp=32),
    sampler.RandomSampler: DRAWN, sampler.CombinedSampler: DRAWN,
    sampler.IoUBalancedNegSampler: dict(DRAWN, floor_thr=-1, floor_fraction=0, num_bins=3),
    sampler.OHEMSampler: dict(DRAWN, loss_key='loss_cls')}


@pytest.mark.parametrize('part', DEFAULTS, ids=lambda part: part.__name__)
def test_defaults(part):
    parameters = inspect.signature(part).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == DEFAULTS[part]
