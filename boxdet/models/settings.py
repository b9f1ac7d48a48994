"""The ``train_cfg`` / ``test_cfg`` dialect of mmdetection 2.x, read once into frozen dataclasses.

``model.train_cfg``: ``rpn`` (RPNTrainSettings), ``rpn_proposal`` (ProposalSettings), ``rcnn``
(RoITrainSettings, or one a stage for cascades). ``model.test_cfg``: ``rpn`` (ProposalSettings), ``rcnn``
(RoITestSettings). An unknown key is an error with its full path and the nearest valid name; nothing is read
from the caller's dicts after this.
"""
from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from boxdet.errors import ConfigError, nearest
from boxdet.geometry.nms import batched_nms
from boxdet.geometry.nms_rounds import has_rounds


@dataclass(frozen=True)
class RPNTrainSettings:
    """``train_cfg.rpn``: which anchors are objects, and which of them enter the loss.

    Args:
        assigner, sampler: configs for the matching registry; without a sampler every anchor takes part.
        allowed_border: pixels that an anchor may reach over the image's edge; negative admits all.
        pos_weight: loss weight of positives, 1 when <= 0.
        debug: log how many anchors were matched.
    """
    assigner: Any = None
    sampler: Any = None
    allowed_border: float = 0
    pos_weight: float = -1
    debug: bool = False


@dataclass(frozen=True)
class ProposalSettings:
    """``train_cfg.rpn_proposal`` and ``test_cfg.rpn``: from RPN outputs to proposals.

    Args:
        nms_pre: best of a level and image that are decoded; <= 0 for all.
        max_per_img: proposals of an image at most; <= 0 for no limit.
        nms: config of the suppression, by level unless ``nms_across_levels``.
        min_bbox_size: boxes must be wider and higher than this many pixels; negative keeps all.
        nms_post: best of a level and image after the suppression; <= 0 for no limit.
        max_per_batch: best of all images of a batch together (maskrcnn-benchmark's FPN_POST_NMS_PER_BATCH,
            which sets it for training only); <= 0 for no limit.
    """
    nms_pre: int = -1
    max_per_img: int = 1000
    nms: Mapping[str, Any] = field(default_factory=lambda: dict(type='nms', iou_threshold=0.7))
    min_bbox_size: float = 0
    nms_across_levels: bool = False
    nms_post: int = -1
    max_per_batch: int = -1

    @property
    def joins_levels(self) -> bool:
        """Whether boxes of different levels suppress one another."""
        return self.nms_across_levels or bool((self.nms or {}).get('class_agnostic'))

    @property
    def can_be_padded(self) -> bool:
        """Whether ``RPNHead.predict_padded`` can do what these settings say."""
        return self.nms_pre > 0 and has_rounds(self.nms) and not (self.nms_post > 0 and self.joins_levels)


@dataclass(frozen=True)
class RoITrainSettings:
    """``train_cfg.rcnn``: which proposals are objects, and which of them enter the loss.

    Args:
        assigner, sampler: configs for the matching registry.
        mask_size: side of the square mask targets in pixels, or (height, width).
        pos_weight: loss weight of positives, 1 when <= 0.
        debug: log how many proposals were matched.
    """
    assigner: Any = None
    sampler: Any = None
    mask_size: Any = 28
    pos_weight: float = -1
    debug: bool = False


@dataclass(frozen=True)
class RoITestSettings:
    """``test_cfg.rcnn``: from class scores, boxes and masks to results.

    Args:
        score_thr: results score higher than this.
        nms: config of the suppression, by class.
        max_per_img: results of an image at most; <= 0 for no limit.
        mask_thr_binary: a pixel belongs to the object from this probability on; above 0, the probability of every
            pixel outside the box.
        min_bbox_size: boxes must be wider and higher than this many network-input pixels; negative keeps all.
        keep_empty: keep results without area, as mmdetection does; detectron2 drops them from the ``max_per_img`` best.
        paste_whole_pixels: masks are put on boxes whose corners are cut to whole pixels, torchvision's way.
    """
    score_thr: float = 0.05
    nms: Mapping[str, Any] = field(default_factory=lambda: dict(type='nms', iou_threshold=0.5))
    max_per_img: int = 100
    mask_thr_binary: float = 0.5
    min_bbox_size: float = -1
    keep_empty: bool = True
    paste_whole_pixels: bool = False

    @property
    def can_be_padded(self) -> bool:
        """Whether ``BBoxHead.predict_padded`` can do what these settings say."""
        return self.max_per_img > 0 and has_rounds(self.nms)


@dataclass(frozen=True)
class TrainSettings:
    """``model.train_cfg``; a section that is absent is None. ``rcnn`` is a tuple, one a stage, where a list
    was given.
    """
    rpn: RPNTrainSettings | None = None
    rpn_proposal: ProposalSettings | None = None
    rcnn: RoITrainSettings | tuple[RoITrainSettings, ...] | None = None


@dataclass(frozen=True)
class TestSettings:
    """``model.test_cfg``; a section that is absent is None."""
    rpn: ProposalSettings | None = None
    rcnn: RoITestSettings | None = None


# Older spellings of the same settings, as mmdetection up to 2.10 wrote them.
_OLD_PROPOSAL_KEYS = ('max_num', 'nms_thr')
_SECTIONS = {
    'train_cfg': dict(rpn=RPNTrainSettings, rpn_proposal=ProposalSettings, rcnn=RoITrainSettings),
    'test_cfg': dict(rpn=ProposalSettings, rcnn=RoITestSettings),
}
_RANGES = {
    'score_thr': (0, 1), 'mask_thr_binary': (1e-6, 1), 'pos_weight': (None, None),
    'allowed_border': (None, None), 'min_bbox_size': (None, None)}
_INTEGERS = ('nms_pre', 'max_per_img', 'nms_post', 'max_per_batch')


def parse_train_cfg(cfg: Any, where: str = 'model.train_cfg') -> TrainSettings:
    """Read ``train_cfg``; None gives settings with every section absent.

    Args:
        cfg: a mapping, None, or settings that are returned as they are.
        where: the config path for messages.

    Raises:
        ConfigError: an unknown key, or a value that cannot be right.
    """
    if isinstance(cfg, TrainSettings):
        return cfg
    cfg = _sections(cfg, 'train_cfg', where)
    return TrainSettings(
        rpn=parse_section(RPNTrainSettings, cfg.get('rpn'), f'{where}.rpn'),
        rpn_proposal=parse_section(ProposalSettings, cfg.get('rpn_proposal'), f'{where}.rpn_proposal'),
        rcnn=parse_rcnn(cfg.get('rcnn'), f'{where}.rcnn'))


def parse_test_cfg(cfg: Any, where: str = 'model.test_cfg') -> TestSettings:
    """Read ``test_cfg``; as ``parse_train_cfg``."""
    if isinstance(cfg, TestSettings):
        return cfg
    cfg = _sections(cfg, 'test_cfg', where)
    return TestSettings(rpn=parse_section(ProposalSettings, cfg.get('rpn'), f'{where}.rpn'),
                        rcnn=parse_section(RoITestSettings, cfg.get('rcnn'), f'{where}.rcnn'))


def parse_rcnn(cfg: Any, where: str = 'train_cfg.rcnn') -> Any:
    """Read ``train_cfg.rcnn``: RoITrainSettings, or a tuple of them where a list (one a stage) was given."""
    if isinstance(cfg, Sequence) and not isinstance(cfg, str):
        return tuple(parse_section(RoITrainSettings, stage, f'{where}.{i}') for i, stage in enumerate(cfg))
    return parse_section(RoITrainSettings, cfg, where)


def parse_section(cls: type, cfg: Any, where: str) -> Any:
    """Read one section into the dataclass ``cls``; None, or an object of the class, is returned as it is.

    Raises:
        ConfigError: an unknown key, or a value that cannot be right.
    """
    if cfg is None or isinstance(cfg, cls):
        return cfg
    if not isinstance(cfg, Mapping):
        raise ConfigError(f'{where} must be a dict, not {type(cfg).__name__}')
    check_section(cls, cfg, where)
    values = {key: copy.deepcopy(cfg[key]) for key in cfg}
    if cls is ProposalSettings:
        _translate_old_keys(values, where)
    return cls(**values)


def check_section(cls: type, cfg: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for the first key of ``cfg`` that ``cls`` does not have, or whose value cannot be
    right.
    """
    names = _keys(cls)
    for key, value in cfg.items():
        path = f'{where}.{key}'
        if key not in names:
            raise ConfigError(f'{path}: there is no such setting{nearest(key, names)}')
        if key in _INTEGERS and (not isinstance(value, int) or isinstance(value, bool)):
            raise ConfigError(f'{path} must be an integer, not {value!r}')
        if key in _RANGES:
            _check_range(path, value, *_RANGES[key])
        if key == 'nms':
            _check_nms(path, value)


def _keys(cls: type) -> list[str]:
    return [f.name for f in fields(cls)] + (list(_OLD_PROPOSAL_KEYS) if cls is ProposalSettings else [])


def _sections(cfg: Any, name: str, where: str) -> Mapping[str, Any]:
    if cfg is None:
        return {}
    if not isinstance(cfg, Mapping):
        raise ConfigError(f'{where} must be a dict, not {type(cfg).__name__}')
    for key in cfg:
        if key not in _SECTIONS[name]:
            raise ConfigError(f'{where}.{key}: there is no such section{nearest(key, _SECTIONS[name])}')
    return cfg


def _check_range(path: str, value: Any, low: float | None, high: float | None) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f'{path} must be a number, not {value!r}')
    if low is not None and not low <= value <= high:
        raise ConfigError(f'{path} must lie in [{low}, {high}], not {value!r}')


def _check_nms(path: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} must be a dict such as dict(type='nms', iou_threshold=0.5), not {value!r}")
    try:
        batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), value)  # checks its config first
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from None
    for key in ('iou_threshold', 'iou_thr'):
        if key in value:
            _check_range(f'{path}.{key}', value[key], 0, 1)


def _translate_old_keys(values: dict[str, Any], where: str) -> None:
    """Turn ``max_num`` and ``nms_thr`` into today's keys, in place.

    Raises:
        ConfigError: the old and the new key are both there and disagree.
    """
    if 'max_num' in values:
        old = values.pop('max_num')
        warnings.warn(f'{where}.max_num is now max_per_img', DeprecationWarning, stacklevel=4)
        if values.setdefault('max_per_img', old) != old:
            raise ConfigError(f"{where}: max_num={old} and max_per_img={values['max_per_img']} disagree")
    if 'nms_thr' in values:
        old = values.pop('nms_thr')
        warnings.warn(f"{where}.nms_thr is now nms=dict(type='nms', iou_threshold={old})", DeprecationWarning,
                      stacklevel=4)
        nms = values.setdefault('nms', dict(type='nms', iou_threshold=old))
        if nms.get('iou_threshold', old) != old:
            raise ConfigError(f"{where}: nms_thr={old} and nms.iou_threshold={nms['iou_threshold']} disagree")
