"""Models, built from configs. The registries are those that a user's own modules join."""
from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from boxdet.errors import ConfigError
from boxdet.registry import BACKBONES, DETECTORS, HEADS, LOSSES, NECKS, ROI_EXTRACTORS, SHARED_HEADS, Cfg

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    'BACKBONES', 'DETECTORS', 'HEADS', 'LOSSES', 'NECKS', 'ROI_EXTRACTORS', 'SHARED_HEADS', 'build_backbone',
    'build_detector', 'build_head', 'build_loss', 'build_neck', 'build_roi_extractor', 'build_shared_head']


def build_detector(cfg: Cfg, train_cfg: Cfg | None = None,
                   test_cfg: Cfg | None = None) -> nn.Module:
    """Build the detector of ``cfg``, the ``model`` of a config; it has random weights until ``init_weights()``.

    Args:
        cfg: with a ``type``; it is not changed.
        train_cfg: where configs before mmdetection 2.4 had it, beside ``model`` and not in it.
        test_cfg: likewise.

    Raises:
        ConfigError: an unknown type, keyword or setting, or settings in both places.
    """
    settings = dict(train_cfg=train_cfg, test_cfg=test_cfg)
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        warnings.warn(f'{name} beside model is the older way: write model.{name}',
                      DeprecationWarning,
                      stacklevel=2)
        if isinstance(cfg, Mapping) and cfg.get(name) is not None:
            raise ConfigError(f'{name} is given twice, in model.{name} and beside model: keep model.{name} and '
                              'take the other one out')
    if given:
        cfg = {**cfg, **given}
    return DETECTORS.build(cfg)


def build_backbone(cfg: Cfg) -> nn.Module:
    """Build a backbone."""
    return BACKBONES.build(cfg)


def build_neck(cfg: Cfg) -> nn.Module:
    """Build a neck."""
    return NECKS.build(cfg)


def build_head(cfg: Cfg) -> nn.Module:
    """Build a head."""
    return HEADS.build(cfg)


def build_roi_extractor(cfg: Cfg) -> nn.Module:
    """Build a RoI extractor."""
    return ROI_EXTRACTORS.build(cfg)


def build_shared_head(cfg: Cfg) -> nn.Module:
    """Build a shared head."""
    return SHARED_HEADS.build(cfg)


def build_loss(cfg: Cfg) -> nn.Module:
    """Build a loss."""
    return LOSSES.build(cfg)
