"""Registries import a family's module when one of its names is asked for, and not before."""
from __future__ import annotations

import sys

import pytest
import torch

from boxdet.errors import ConfigError
from boxdet.models import build_detector
from boxdet.models.bbox_head import Shared2FCBBoxHead
from boxdet.registry import MODELS, Registry, accepted_keywords
from tests.test_models import tiny_models

MODULE = '''
from tests.test_registry import HOLDER
@HOLDER[0].register_module()
class LateHead:
    pass
@HOLDER[0].register_module()
class LateLoss:
    pass
'''
HOLDER: list[Registry] = []


@pytest.fixture
def late(tmp_path, monkeypatch):
    """A registry of two classes in a module that is not imported yet; its name."""
    (tmp_path / 'late_family.py').write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    HOLDER[:] = [Registry('part', (), {'late_family': ('LateHead', 'LateLoss')})]
    yield HOLDER[0]
    sys.modules.pop('late_family', None)


def test_a_name_imports_its_module(late):
    with pytest.raises(ConfigError, match='needs a'):
        late.build(dict(kind='LateHead'))
    assert 'late_family' not in sys.modules
    assert 'LateHead' in late and 'late_family' in sys.modules
    assert type(late.build(dict(type='mmdet.LateLoss'))).__name__ == 'LateLoss'


def test_names_and_errors_know_them_all(late):
    with pytest.raises(ConfigError, match="unknown part type 'LateHaed'; did you mean 'LateHead'"):
        late.get('LateHaed')
    assert late.names() == ['LateHead', 'LateLoss']


def test_a_class_of_the_users_keeps_the_name_that_it_took_first(late):
    @late.register_module()
    class LateHead:
        pass

    assert late.get('LateHead') is LateHead and 'late_family' not in sys.modules
    with pytest.warns(UserWarning, match="part 'LateHead' is that of tests.test_registry"):
        assert late.get('LateLoss').__module__ == 'late_family'
    assert late.get('LateHead') is LateHead


# ------------------------------------------------------------------------------ keywords


class Base:
    def __init__(self, width=8, pretrained=None):
        self.width, self.pretrained = width, pretrained


class Dropping(Base):
    def __init__(self, **kwargs):  # as published backbones have it: what else the config holds is dropped here
        super().__init__(kwargs.get('width', 8), kwargs.get('pretrained'))


class HandingOn(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


def test_keyword_arguments_of_a_users_own_classes_are_theirs_to_judge():
    registry = Registry('part')
    for cls in (Dropping, HandingOn, Base):
        registry.register_module(module=cls)
    assert accepted_keywords(Dropping) == ({'width', 'pretrained'}, True)
    assert accepted_keywords(Base) == ({'width', 'pretrained'}, False)
    assert registry.build(dict(type='Dropping', style='pytorch', width=3)).width == 3
    with pytest.raises(ConfigError, match="widht: HandingOn takes no 'widht'; did you mean 'width'"):
        registry.build(dict(type='HandingOn', widht=3))
    with pytest.raises(ConfigError, match="widht: Base takes no 'widht'; did you mean 'width'"):
        registry.build(dict(type='Base', widht=3))


def test_keyword_arguments_that_end_at_a_class_of_boxdets_are_checked():
    class MyHead(Shared2FCBBoxHead):
        def __init__(self, start=1., **kwargs):
            super().__init__(**kwargs)

    names, open_ended = accepted_keywords(MyHead)
    assert {'start', 'num_classes', 'fc_out_channels'} <= names and not open_ended


def test_pretrained_goes_to_the_keyword_that_a_backbone_has(monkeypatch):
    class Plain(torch.nn.Module):
        def __init__(self, pretrained=None):
            super().__init__()
            self.pretrained = pretrained

    class Neither(torch.nn.Module):
        def __init__(self, width=8):
            super().__init__()

    MODELS.names()
    for cls in (Plain, Neither):
        monkeypatch.setitem(MODELS.module_dict, cls.__name__, cls)
    cfg = tiny_models.faster_rcnn(pretrained='weights.pth')
    assert build_detector(cfg | dict(backbone=dict(type='Plain'))).backbone.pretrained == 'weights.pth'
    with pytest.raises(ConfigError, match=r'model\.pretrained: Neither takes neither init_cfg nor pretrained'):
        build_detector(cfg | dict(backbone=dict(type='Neither')))


# ------------------------------------------------------------------------------ names that two have


def test_a_users_class_takes_the_place_of_boxdets():
    ours, users = type('Albu', (), dict(__module__='boxdet.datasets.x')), type('Albu', (), dict(__module__='mine'))
    for first, second in ((ours, users), (users, ours)):
        registry = Registry('pipeline')
        registry.register_module(module=first)
        with pytest.warns(UserWarning, match="pipeline 'Albu' is that of mine, in the place of boxdet's"):
            registry.register_module(module=second)
        assert registry.get('Albu') is users
    with pytest.raises(KeyError, match='already registered'):
        registry.register_module(module=type('Albu', (), dict(__module__='other')))
