"""Registries import a family's module when one of its names is asked for, and not before."""
from __future__ import annotations

import sys

import pytest

from boxdet.errors import ConfigError
from boxdet.registry import Registry

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
    assert late.get('LateLoss').__module__ == 'late_family' and late.get('LateHead') is LateHead
