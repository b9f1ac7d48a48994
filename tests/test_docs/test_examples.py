"""Every example of README.md and docs/ is run by a test, or stands here with the reason why it is not."""
from __future__ import annotations

import argparse
import ast

import pytest

from boxdet.engine.config import check_config, load_config
from tests.test_docs.examples import SHELLS, chosen, examples_of, expanded, pages, run

NOT_RUN = {
    'README.md: make demo': 'it installs an environment of 6 GB; tests/test_tools/test_demo.py runs the program',
    'docs/results.md: make demo': 'as above',
    'README.md: make test': 'it runs this test',
    'docs/architecture.md: 7  tools/': 'a picture',
    'docs/results.md: benchmarks/bccd.sh': '40 minutes of training on real images',
}
# What was measured, by commands that take from minutes to days: of these it is tested that the programs are there and
# take the options, and that the config and the options that change it are right.
MEASURED = [
    'docs/evaluation.md: python benchmarks/', 'docs/export.md: python benchmarks/export.py coco_mini/val2017',
    *(f'docs/performance.md: python benchmarks/{name}.py' for name in (
        'data_pipeline', 'train_step', 'train_peers', 'inference', 'precision', 'mask_paste', 'startup', 'throughput',
        'asynchronous', 'drawing', 'plain_operators', 'coco_evaluation', 'folder_profile', 'compiled')),
    'docs/results.md: python tools/demo.py', 'docs/results.md: python tools/make_shapes.py',
    'docs/results.md: python benchmarks/family_table.py', 'docs/results.md: F=', 'docs/results.md: R=',
]


def claims(repo_root):
    """What the decorators ``runs`` of all tests say, and every one of these tests takes what it claims."""
    found = []
    for path in (repo_root / 'tests').rglob('test_*.py'):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if '@runs(' in text else ():
            for call in getattr(node, 'decorator_list', ()):
                if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'runs':
                    looked_at = {getattr(part, 'id', '') for line in node.body for part in ast.walk(line)}
                    assert 'examples' in looked_at, f'{path.name}::{node.name} does not look at its examples'
                    found += [ast.literal_eval(claim) for claim in call.args]
    return found


def test_every_example_is_run_by_a_test(repo_root):
    run_by_tests = {one for claim in claims(repo_root) for one in chosen(claim)}
    excused = {one for claim in (*NOT_RUN, *MEASURED) for one in chosen(claim)}
    every = {one for page in pages() for one in examples_of(page)}
    assert len(every) > 100
    left = [str(one) for one in sorted(every - run_by_tests - excused, key=str)]
    assert not left, 'no test runs them (tests/test_docs/examples.py says how to): ' + '; '.join(left)
    twice = [str(one) for one in run_by_tests & excused]
    assert not twice, f'a test runs them; they need no excuse: {twice}'


def test_blocks_of_all_forms_are_seen(tmp_path, monkeypatch):
    from tests.test_docs import examples
    (tmp_path / 'README.md').write_text(
        'A\n\n    indented a \\\n      and on\n    indented b  # c\n\n* list\n\n      in it\n\n'
        '~~~python\nx = 1\n\ny = 2\n~~~\n```sh\n#!/bin/bash\na CONFIG\nb\n```\n   ```text\nc\n   ```\n')
    monkeypatch.setattr(examples, 'ROOT', tmp_path)
    assert [(one.line, one.language, one.filled) for one in examples.examples_of('README.md')] == [
        (3, 'shell', 'indented a    and on'), (5, 'shell', 'indented b'), (12, 'python', 'x = 1\n\ny = 2\n'),
        (17, 'sh', '#!/bin/bash\na config.py\nb\n'), (22, 'text', 'c\n')]
    with pytest.raises(AssertionError, match="no example that begins with 'other'"):
        examples.chosen('README.md: other')


class Parsed(Exception):
    """The options of a program were read."""


@pytest.mark.parametrize('example', [one for claim in MEASURED for one in chosen(claim)],
                         ids=lambda example: f'{example.page}:{example.line}')
def test_what_was_measured_has_its_options(example, repo_root, monkeypatch):
    assert example.language in SHELLS
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, *args, **kwargs):
        raise Parsed(parse(self, *args, **kwargs))
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', only_parse)
    monkeypatch.chdir(repo_root)
    for words in expanded(example.filled):
        assert words[0] == 'python'
        with pytest.raises(Parsed) as found:
            run(words)
        options = found.value.args[0]
        if words[1] in ('tools/train.py', 'tools/test.py'):
            check_config(load_config(options.config, options.cfg_options))
