"""docs/migrating_3x.md shows the tables of engine/dialects, every section, transform, evaluator and schedule."""
import pytest

from boxdet.engine.chained_rates import SCHEDULERS
from boxdet.engine.dialects.mmdet3 import SECTIONS
from boxdet.engine.dialects.mmdet3_data import EVALUATORS
from boxdet.engine.dialects.mmdet3_pipeline import TRANSFORMS


@pytest.fixture(scope='module')
def page(repo_root):
    return (repo_root / 'docs/migrating_3x.md').read_text()


def test_every_section_is_in_the_table(page):
    assert [name for name in SECTIONS if f'\n| `{name}` | ' not in page] == []


def test_every_transform_is_in_the_table(page):
    for kind, (name, table, _) in TRANSFORMS.items():
        row = next(line for line in page.splitlines() if line.startswith(f'| `{kind}` | '))
        assert row.split('|')[2].strip() == f'`{name}`'
        assert all(f'`{key}` → `{rule}`' in row for key, rule in table.items() if isinstance(rule, str) and rule != key)


def test_every_evaluator_and_schedule_is_named(page):
    assert [name for name in (*EVALUATORS, *SCHEDULERS) if f'`{name}`' not in page] == []
