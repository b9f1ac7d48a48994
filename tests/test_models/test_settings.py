"""train_cfg / test_cfg: what is read, what old configs said, and what is wrong."""
from __future__ import annotations

import copy
import dataclasses

import pytest

from boxdet.errors import ConfigError
from boxdet.models.settings import ProposalSettings, RoITestSettings, parse_section, parse_test_cfg, parse_train_cfg
from tests.test_models import tiny_models


def test_every_section_is_read_and_the_config_stays_as_it_is():
    cfg = tiny_models.train_cfg([tiny_models.rcnn_train(0.5), tiny_models.rcnn_train(0.6)])
    before = copy.deepcopy(cfg)
    train = parse_train_cfg(cfg)
    assert cfg == before
    assert train.rpn.allowed_border == -1 and train.rpn.sampler['num'] == 64
    assert (train.rpn_proposal.nms_pre, train.rpn_proposal.max_per_img) == (200, 100)
    assert [s.assigner['pos_iou_thr'] for s in train.rcnn] == [0.5, 0.6]
    cfg['rpn']['sampler']['num'] = 7  # the settings do not see later changes of the caller's dict
    assert train.rpn.sampler['num'] == 64
    test = parse_test_cfg(tiny_models.test_cfg())
    assert (test.rcnn.score_thr, test.rcnn.max_per_img, test.rcnn.mask_thr_binary) == (0.05, 20, 0.5)


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_test_cfg(tiny_models.test_cfg()).rcnn.score_thr = 0.1


def test_absent_sections_are_none_and_settings_pass_through():
    assert parse_train_cfg(None).rcnn is None
    assert parse_test_cfg({}).rpn is None
    settings = parse_test_cfg(tiny_models.test_cfg())
    assert parse_test_cfg(settings) is settings
    assert parse_section(RoITestSettings, settings.rcnn, 'x') is settings.rcnn


@pytest.mark.parametrize('change, message', [
    (dict(rcnn=dict(score_thresh=0.1)),
     "model.test_cfg.rcnn.score_thresh: there is no such setting; did you mean "
     "'score_thr'?"),
    (dict(rpn=dict(nms_per=9)),
     "model.test_cfg.rpn.nms_per: there is no such setting; did you mean 'nms_pre'?"),
    (dict(rcn={}), "model.test_cfg.rcn: there is no such section; did you mean 'rcnn'?"),
    (dict(rcnn=dict(nms=dict(type='nms', iou_treshold=0.5))),
     "model.test_cfg.rcnn.nms: nms: nms takes no 'iou_treshold'; did you mean 'iou_threshold'?"),
    (dict(rcnn=dict(nms=dict(type='sotf_nms'))), "model.test_cfg.rcnn.nms: nms: unknown type 'sotf_nms'"),
    (dict(rcnn=dict(nms=dict(type='nms'))), "model.test_cfg.rcnn.nms: nms: nms needs 'iou_threshold'"),
    (dict(rcnn=dict(nms=0.5)), "model.test_cfg.rcnn.nms must be a dict such as"),
    (dict(rcnn=dict(score_thr=5)), 'model.test_cfg.rcnn.score_thr must lie in [0, 1], not 5'),
    (dict(rcnn=dict(mask_thr_binary=0)), 'model.test_cfg.rcnn.mask_thr_binary must lie in [1e-06, 1], not 0'),
    (dict(rcnn=dict(score_thr='high')), "model.test_cfg.rcnn.score_thr must be a number, not 'high'"),
    (dict(rpn=dict(max_per_img=10.5)), 'model.test_cfg.rpn.max_per_img must be an integer, not 10.5'),
    (dict(rpn=dict(nms=dict(type='nms', iou_threshold=50))),
     'model.test_cfg.rpn.nms.iou_threshold must lie in [0, 1]'),
    (dict(rpn=[1]), 'model.test_cfg.rpn must be a dict, not list'),
    ([1], 'model.test_cfg must be a dict, not list'),
])
def test_wrong_keys_and_values_are_named_with_their_path(change, message):
    with pytest.raises(ConfigError) as error:
        parse_test_cfg(change)
    assert message in str(error.value)


def test_a_wrong_key_of_a_stage_is_named_with_the_stage():
    with pytest.raises(ConfigError, match=r"model\.train_cfg\.rcnn\.1\.mask_sise: .*'mask_size'"):
        parse_train_cfg(dict(rcnn=[dict(mask_size=28), dict(mask_sise=28)]))


def test_keys_of_older_configs():
    with pytest.warns(DeprecationWarning, match='max_per_img'):
        settings = parse_section(ProposalSettings, dict(nms_across_levels=False, nms_pre=2000, nms_post=1000,
                                                        max_num=1000, nms_thr=0.7, min_bbox_size=0), 'rpn')
    assert settings.max_per_img == 1000 and settings.nms_post == 1000 and not settings.nms_across_levels
    assert dict(settings.nms) == dict(type='nms', iou_threshold=0.7)
    assert parse_section(RoITestSettings, dict(nms=dict(type='nms', iou_thr=0.5)), 'rcnn').nms['iou_thr'] == 0.5


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize(
    'cfg, message', [(dict(max_num=10, max_per_img=20), 'max_num=10 and max_per_img=20 disagree'),
                     (dict(nms_thr=0.6, nms=dict(
                         type='nms', iou_threshold=0.7)), 'nms_thr=0.6 and nms.iou_threshold=0.7 disagree')])
def test_old_and_new_keys_must_agree(cfg, message):
    with pytest.raises(ConfigError, match=message):
        parse_section(ProposalSettings, cfg, 'rpn')
