"""One table of what a part can do besides what it must, and one way to ask."""
from __future__ import annotations

import ast
from pathlib import Path

import pytest

from boxdet.abilities import ABILITIES, ability, overrides

ROOT = Path(__file__).resolve().parent.parent


class Head:
    fixed_size_prediction = True

    def predict(self):
        return 'parent'


class Narrower(Head):
    def loss(self):
        return 0


class Own(Head):
    def predict(self):
        return 'own'


class OwnAndFixed(Own):
    fixed_size_prediction = True


@pytest.mark.parametrize('name', ABILITIES)
def test_a_part_that_declares_nothing_has_the_default(name):
    assert ability(object(), name) == ABILITIES[name].default
    assert ABILITIES[name].meaning


def test_what_is_declared_is_inherited_with_the_method_it_speaks_for():
    assert ability(Head(), 'fixed_size_prediction') and ability(Narrower, 'fixed_size_prediction')
    assert ability(OwnAndFixed(), 'fixed_size_prediction')
    assert ability(type('More', (OwnAndFixed,), {}), 'fixed_size_prediction')


def test_a_method_of_ones_own_takes_the_ability_away():
    assert not ability(Own(), 'fixed_size_prediction') and not ability(Own, 'fixed_size_prediction')
    head = Head()
    head.predict = lambda: 'patched'
    assert not ability(head, 'fixed_size_prediction')
    mixed_in = type('MixedIn', (type('Mixin', (), dict(predict=lambda self: 'mixin')), Head), {})
    assert not ability(mixed_in(), 'fixed_size_prediction')


def test_an_object_may_declare_what_its_class_does_not():
    part = Own()
    part.fixed_size_prediction = True
    assert ability(part, 'fixed_size_prediction')


def test_what_is_not_inherited_is_of_the_class_alone():
    class Flip:
        can_defer = True

        def __call__(self, results):
            return results

    class Computed:
        @property
        def can_defer(self):
            return 'yes'

    assert ability(Flip(), 'can_defer') and ability(Computed(), 'can_defer') == 'yes'
    assert not ability(type('MyFlip', (Flip,), {})(), 'can_defer')


def test_an_unknown_ability_is_an_error():
    with pytest.raises(ValueError, match="there is no ability 'frees_level'; did you mean 'frees_levels'"):
        ability(object(), 'frees_level')


def test_overrides():
    assert overrides(Own(), 'predict', Head) and not overrides(Narrower(), 'predict', Head)
    assert overrides(Narrower(), 'loss', Head) and not overrides(Head(), 'loss', Head)  # nothing there


def test_nobody_else_looks_into_the_order_of_classes():
    """``__mro__`` asks an object what it is; ``registry`` follows ``**kwargs`` along it, and others read type names.

    ``compat`` asks which of 2.x's methods a subclass brings.
    """
    allowed = {'boxdet/abilities.py', 'boxdet/registry.py', 'boxdet/idle_overrides.py', 'boxdet/compat/data.py',
               'boxdet/compat/forms.py', 'boxdet/compat/models.py', 'boxdet/models/initialization.py',
               'boxdet/visualization/draw.py', 'boxdet/apis/images.py'}
    found = {str(path.relative_to(ROOT)) for path in (ROOT / 'boxdet').rglob('*.py')
             for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
             if isinstance(node, ast.Attribute) and node.attr in ('__mro__', 'mro', 'getmro')}
    assert found <= allowed
