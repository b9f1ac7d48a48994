"""docs/reliability.md names tests that exist."""
import re


def test_every_test_that_is_named_exists(repo_root):
    text = (repo_root / 'docs/reliability.md').read_text()
    tests: dict[str, str] = {}  # several folders may have a file of one name
    for path in (repo_root / 'tests').rglob('test_*.py'):
        tests[path.name] = tests.get(path.name, '') + path.read_text()
    named, file = [], ''
    for found in re.finditer(r'`(?:[\w/]*/)?(test_\w+\.py)?(?:::(test_\w+))?`', text):
        file = found.group(1) or file  # `::test_b` stands behind `test_x.py::test_a`
        if found.group(1) or found.group(2):
            named.append((file, found.group(2)))
    absent = [f'{file}::{test}' for file, test in named
              if file not in tests or test and f'def {test}(' not in tests[file]]
    assert not absent and len(named) > 40
