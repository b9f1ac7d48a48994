"""docs/extending.md: exactly its code, trained and tested by exactly its command lines on a tiny set."""

import json
import re
import sys

import pytest
import torch

from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.config import check_config, load_config
from boxdet.errors import ConfigError
from tests.test_docs.examples import examples_of, run, runs

# What keeps the trainings of a test short; the document's own are the config's 8 epochs.
SHORT = ['--cfg-options', 'runner.max_epochs=1', 'data.workers_per_gpu=0', 'data.samples_per_gpu=4',
         'model.train_cfg.rpn_proposal.max_per_img=50', 'log_config.interval=1']


@pytest.fixture
def project(repo_root, tmp_path, monkeypatch):
    """A folder with the document's files in their places, beside boxdet's own configs; it is the working folder."""
    (tmp_path / 'configs').mkdir()
    for name in ('_base_', 'shapes'):
        (tmp_path / 'configs' / name).symlink_to(repo_root / 'configs' / name)
    document = (repo_root / 'docs/extending.md').read_text()
    files = re.findall(r'^`(\S+\.py)`:\n\n```python\n(.*?)^```$', document, re.MULTILINE | re.DOTALL)
    assert [code for _, code in files] == [
        one.text for one in examples_of('docs/extending.md') if one.language == 'python']
    assert [name for name, _ in files] == ['my_parts.py', 'configs/mine/tiny.py', 'my_hooks.py',
                                           'configs/mine/tiny_watched.py', 'my_evaluators.py',
                                           'configs/mine/tiny_counted.py']
    for name, code in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path  # a class registers once, so that 'my_parts' and 'my_hooks' stay imported from test to test


def code_lines(text):
    return [line for line in text.splitlines() if line.strip()]


def test_three_parts_in_under_forty_lines(project):
    parts = code_lines((project / 'my_parts.py').read_text())
    assert sum(line.startswith('@') for line in parts) == 3
    assert len(parts + code_lines((project / 'configs/mine/tiny.py').read_text())) < 40


@runs('docs/extending.md')
def test_code_and_commands_of_the_document(examples, project, shapes_dir, repo_root):
    make, train, test = (one.text for one in examples if one.language == 'shell')  # the code is the project's
    assert make == 'python tools/make_shapes.py' and (repo_root / 'tools/make_shapes.py').exists()
    (project / 'data').mkdir()
    cfg = load_config('configs/mine/tiny.py')
    assert cfg.data.train.ann_file.startswith('data/shapes/')
    (project / 'data/shapes').symlink_to(shapes_dir)  # what that command makes, with 12 images

    run(train, '--seed', '0', '--no-validate', *SHORT)
    weights = load_checkpoint('work_dirs/tiny/latest.pth')['state_dict']
    assert weights['backbone.stages.4.0.weight'].shape == (128, 64, 3, 3)
    temperature = weights['roi_head.bbox_head.temperature'].item()
    assert temperature != 2.0 and abs(temperature - 2) < 0.1  # it began there and learns
    assert 'bbox_mAP: ' in run(test)


def test_the_hook_of_the_document(project, shapes_dir):
    (project / 'data').mkdir()
    (project / 'data/shapes').symlink_to(shapes_dir)
    run('python tools/train.py configs/mine/tiny_watched.py', '--no-validate', *SHORT)
    folder = project / 'work_dirs/tiny_watched'
    entries = [json.loads(line) for line in next(folder.glob('*.log.json')).read_text().splitlines()[1:]]
    assert entries and all(entry['weight_norm'] > 1 for entry in entries)
    assert set(load_checkpoint(folder / 'weights_1.pth')) == {'meta', 'state_dict'}


def test_the_evaluator_of_the_document(project, shapes_dir):
    (project / 'data').mkdir()
    (project / 'data/shapes').symlink_to(shapes_dir)
    run('python tools/train.py configs/mine/tiny_counted.py', *SHORT)
    folder = project / 'work_dirs/tiny_counted'
    entries = [json.loads(line) for line in next(folder.glob('*.log.json')).read_text().splitlines()[1:]]
    measured = next(entry for entry in entries if entry['mode'] == 'val')
    assert 'bbox_mAP' in measured and measured['count_error'] >= 0
    told = run(f'python tools/test.py configs/mine/tiny_counted.py {folder}/latest.pth', '--eval', 'CountError',
               '--eval-options', 'score_thr=1.1')
    truth = json.loads((shapes_dir / 'annotations/instances_val.json').read_text())
    name, value = told.split()[-2:]
    assert name == 'count_error:'  # nothing scores above 1: every object is missing
    assert float(value) == pytest.approx(len(truth['annotations']) / len(truth['images']), abs=1e-3)


def test_the_loss_is_log_cosh(project):
    load_config('configs/mine/tiny.py')
    pred, target = torch.tensor([[-60., 0, 0.5, 2]]), torch.tensor([[40., 0, 0, 1]])
    expected = (pred - target).double().cosh().log().sum() / 4
    torch.testing.assert_close(sys.modules['my_parts'].LogCoshLoss()(pred, target, avg_factor=4), expected.float())


def test_a_wrong_keyword_names_the_nearest(project):
    config = project / 'configs/mine/tiny.py'
    config.write_text(config.read_text().replace('width=16', 'widht=16'))
    with pytest.raises(ConfigError, match="TinyNet takes no 'widht'.*'width'"):
        check_config(load_config(config))
