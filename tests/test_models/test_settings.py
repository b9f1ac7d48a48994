"""train_cfg / test_cfg: what is read, what old configs said, and what is wrong."""
from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from boxdet.errors import ConfigError
from boxdet.models import build_detector, detectors
from boxdet.models.bbox_head import RoITestSettings
from boxdet.models.rpn_head import ProposalSettings, RPNHead
from boxdet.models.settings import PerStage, check_number, parse_section, section
from boxdet.models.standard_roi_head import StandardRoIHead
from boxdet.registry import HEADS
from tests.test_models import tiny_models

FASTER, CASCADE = tiny_models.faster_rcnn(), tiny_models.cascade_mask_rcnn()


def parse_train_cfg(cfg, model=FASTER):
    return parse_section(detectors.TrainSettings, cfg, 'model.train_cfg', model)


def parse_test_cfg(cfg, model=FASTER):
    return parse_section(detectors.TestSettings, cfg, 'model.test_cfg', model)


@pytest.fixture
def registered(monkeypatch):
    """Put classes into the registry of heads for one test."""
    def register(*classes):
        HEADS.names()
        for cls in classes:
            monkeypatch.setitem(HEADS.module_dict, cls.__name__, cls)
    return register


def test_every_section_is_read_and_the_config_stays_as_it_is():
    cfg = tiny_models.train_cfg([tiny_models.rcnn_train(0.5), tiny_models.rcnn_train(0.6)])
    before = copy.deepcopy(cfg)
    train = parse_train_cfg(cfg, CASCADE)
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
    assert parse_train_cfg({}).rcnn is None and parse_section(detectors.TrainSettings, None, 'x') is None
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
        parse_train_cfg(dict(rcnn=[dict(mask_size=28), dict(mask_sise=28)]), CASCADE)


def test_keys_of_older_configs():
    with pytest.warns(DeprecationWarning, match='max_per_img'), \
            pytest.warns(DeprecationWarning, match=r'nms_thr is now nms='):
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


# ------------------------------------------------------------------------------ heads of one's own


@dataclasses.dataclass(frozen=True)
class VotingSettings(RoITestSettings):
    """One more key than the head that it extends."""
    vote_thr: float = dataclasses.field(default=0.6, metadata=dict(
        check=lambda path, value: check_number(path, value, 0, 1)))


class VotingRoIHead(StandardRoIHead):
    test_settings = VotingSettings


class FreeRoIHead(StandardRoIHead):
    """Declares nothing for testing."""
    test_settings = None


class TopRPN(RPNHead):
    @dataclasses.dataclass(frozen=True)
    class Settings(ProposalSettings):
        top: int = 5

    test_settings = Settings


def faster(**rcnn):
    cfg = tiny_models.copied(FASTER)
    cfg['roi_head']['type'] = rcnn.pop('type')
    cfg['test_cfg']['rcnn'].update(rcnn)
    return cfg


def test_a_head_has_a_setting_of_its_own(registered):
    registered(VotingRoIHead)
    model = build_detector(faster(type='VotingRoIHead', vote_thr=0.7))
    assert model.test_cfg.rcnn is model.roi_head.test_cfg
    assert model.roi_head.test_cfg.vote_thr == 0.7 and model.roi_head.test_cfg.score_thr == 0.05
    assert build_detector(faster(type='VotingRoIHead')).roi_head.test_cfg.vote_thr == 0.6
    with pytest.raises(ConfigError, match=r"^model\.test_cfg\.rcnn\.vote_th: .*; did you mean 'vote_thr'"):
        build_detector(faster(type='VotingRoIHead', vote_th=0.7))
    with pytest.raises(ConfigError, match=r'model\.test_cfg\.rcnn\.vote_thr must lie in \[0, 1\], not 7'):
        build_detector(faster(type='VotingRoIHead', vote_thr=7))
    with pytest.raises(ConfigError, match=r"^model\.test_cfg\.rcnn\.vote_thr: there is no such setting"):
        build_detector(faster(type='StandardRoIHead', vote_thr=0.7))


def test_a_head_that_is_built_already_says_how_its_settings_are_read(registered):
    built = build_detector(faster(type='StandardRoIHead')).roi_head
    with pytest.raises(ConfigError, match=r"model\.test_cfg\.rcnn\.scor_thr: .*'score_thr'"):
        build_detector(FASTER | dict(roi_head=built, test_cfg=dict(rpn={}, rcnn=dict(scor_thr=0.1))))


def test_the_class_of_an_rpn_reads_the_proposals_of_training_too(registered):
    registered(TopRPN)
    cfg = tiny_models.copied(FASTER)
    cfg['rpn_head']['type'] = 'TopRPN'
    cfg['train_cfg']['rpn_proposal']['top'] = 3
    model = build_detector(cfg)
    assert (model.train_cfg.rpn_proposal.top, model.test_cfg.rpn.top, model.rpn_head.test_cfg.top) == (3, 5, 5)


class UndeclaredRoIHead(StandardRoIHead):
    """As plug-ins of mmdetection 2.x are written: it inherits what boxdet's head declares."""


class LargeVotingRoIHead(VotingRoIHead):
    """Inherits what a user's head declares."""


def test_a_head_that_inherits_boxdets_declaration_gets_further_keys(registered):
    registered(UndeclaredRoIHead, LargeVotingRoIHead)
    model = build_detector(faster(type='UndeclaredRoIHead', subdivision_steps=5, graph=dict(type='knn')))
    copies = pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
    for test in (model.roi_head.test_cfg, copies[0].roi_head.test_cfg, copies[1].test_cfg.rcnn):
        assert isinstance(test, RoITestSettings)
        assert test.subdivision_steps == 5 and test.graph == dict(type='knn') and test.keep_empty is True
        assert test['subdivision_steps'] == 5 and test.get('subdivision_steps') == 5 and 'graph' in test
        assert test.get('nothing', 3) == 3 and 'nothing' not in test and test['score_thr'] == 0.05
    with pytest.raises(ConfigError, match=r"model\.test_cfg\.rcnn\.scor_thr: .*did you mean 'score_thr'"):
        build_detector(faster(type='UndeclaredRoIHead', scor_thr=0.5))
    with pytest.raises(ConfigError, match=r'model\.test_cfg\.rcnn\.score_thr must lie in'):
        build_detector(faster(type='UndeclaredRoIHead', score_thr=5))
    with pytest.raises(ConfigError, match=r'rcnn\.subdivision_steps: there is no such setting'):  # declared by a user
        build_detector(faster(type='LargeVotingRoIHead', subdivision_steps=5))
    with pytest.raises(ConfigError, match=r'rcnn\.subdivision_steps: there is no such setting'):
        build_detector(faster(type='StandardRoIHead', subdivision_steps=5))


def test_a_head_that_declares_nothing_gets_a_dict(registered):
    registered(FreeRoIHead)
    cfg = faster(type='FreeRoIHead', anything=dict(deep=[dict(a=1)]))
    given = build_detector(cfg).roi_head.test_cfg
    assert isinstance(given, dict) and given == cfg['test_cfg']['rcnn']
    assert given.anything.deep[0].a == 1  # as mmdetection's own code reads it
    with pytest.raises(AttributeError, match="no 'keep_empty' in this section"):
        _ = given.keep_empty
    cfg['test_cfg']['rcnn']['anything']['deep'][0]['a'] = 2
    assert given['anything']['deep'][0]['a'] == 1  # later changes of the caller's dict are not seen
    copied = copy.deepcopy(given)
    assert copied == given and copied is not given and copied.score_thr == 0.05


def test_a_section_without_a_reader_is_told():
    model = {name: value for name, value in FASTER.items() if name != 'rpn_head'}
    with pytest.warns(UserWarning, match=r'model\.test_cfg\.rpn is read by nobody: the model has no rpn_head'):
        test = parse_test_cfg(tiny_models.test_cfg(), model)
    assert isinstance(test.rcnn, RoITestSettings) and test.rpn['nms_pre'] == 100


def test_a_list_of_stages_is_for_cascades():
    with pytest.raises(ConfigError, match=r'model\.train_cfg\.rcnn must be a dict, not list; .* for CascadeRoIHead'):
        parse_train_cfg(dict(rcnn=[{}, {}]))


def test_a_detector_has_a_section_of_its_own():
    @dataclasses.dataclass(frozen=True)
    class Settings(detectors.TestSettings):
        tracker: VotingSettings | None = section('tracker', 'test_settings')
        limit: int = dataclasses.field(kw_only=True)

    cfg = dict(tracker=dict(vote_thr=0.1), limit=1)
    read = parse_section(Settings, cfg, 'model.test_cfg', dict(tracker=VotingRoIHead))
    assert read.tracker.vote_thr == 0.1 and read.limit == 1
    with pytest.raises(ConfigError, match=r"model\.test_cfg: .*'limit'"):
        parse_section(Settings, {}, 'model.test_cfg', {})


def test_every_stage_of_a_cascade_has_the_key():
    stages = PerStage(VotingSettings)
    assert [s.vote_thr for s in parse_section(stages, [{}, dict(vote_thr=0.3)], 'x')] == [0.6, 0.3]
    assert parse_section(stages, dict(vote_thr=0.3), 'x').vote_thr == 0.3  # the head says that it wants a list
