import os
import subprocess
import sys

import pytest

from boxdet.engine.config import load_config
from tests.mmdet3_forms import WHOLE, write_bases


@pytest.fixture
def run(repo_root):
    def run(*arguments, watch=False):
        command = [sys.executable, *(['-X', 'importtime'] if watch else []), 'tools/misc/print_config.py', *arguments]
        return subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    return run


def test_works_from_anywhere_without_an_installation(repo_root, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, str(repo_root / 'tools/misc/print_config.py'), str(repo_root / MASK_R101),
                           '--explain', 'model.backbone.depth'], cwd=tmp_path, capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 0 and 'model.backbone.depth = 101' in done.stdout, done.stderr


MASK_R101 = 'configs/mask_rcnn/mask_rcnn_r101_fpn_1x_coco.py'


def test_prints_a_config_that_loads_again(run, repo_root, tmp_path):
    done = run(MASK_R101, '--cfg-options', 'optimizer.lr=0.005', 'data.train.pipeline.3.flip_ratio=0')
    assert done.returncode == 0, done.stderr
    (tmp_path / 'printed.py').write_text(done.stdout)
    printed = load_config(tmp_path / 'printed.py')
    expected = load_config(repo_root / MASK_R101, {'optimizer.lr': 0.005, 'data.train.pipeline.3.flip_ratio': 0})
    assert printed.to_dict() == expected.to_dict()


def test_explains_a_value(run):
    done = run(MASK_R101, '--explain', 'model.backbone.depth')
    assert done.stdout.splitlines() == [
        'model.backbone.depth = 101',
        '    set by configs/mask_rcnn/mask_rcnn_r101_fpn_1x_coco.py:4',
        '    overrides 50 (configs/_base_/models/faster_rcnn_r50_fpn.py:5)']


def test_explains_an_option_and_a_whole_dict(run):
    done = run(MASK_R101, '--options', 'optimizer.lr=0.1', '--explain', 'optimizer')
    assert 'optimizer.lr = 0.1\n    set by --cfg-options\n    overrides 0.02 (configs/_base_/schedules/' in done.stdout
    assert "optimizer.type = 'SGD'" in done.stdout


@pytest.mark.parametrize('arguments, message', [
    (['configs/mask_rcnn/mask_rcnn_r10_fpn_1x_coco.py'],
     'did you mean configs/mask_rcnn/mask_rcnn_r101_fpn_1x_coco.py'),
    ([MASK_R101, '--explain', 'model.backbone.dept'], "did you mean 'depth'"),
    ([MASK_R101, '--cfg-options', 'model.backbone'], 'KEY=VALUE'),
    ([MASK_R101, '--cfg-options', 'modell.backbone.depth=18'],
     "modell (--cfg-options): nothing reads this variable; did you mean 'model'?"),
    ([MASK_R101, '--cfg-options', 'model.test_cfg.rcnn.score_thresh=0.1', '--check'],
     "model.test_cfg.rcnn.score_thresh (--cfg-options): there is no such setting; did you mean 'score_thr'?"),
])
def test_errors_are_one_line(run, arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith('error: ') and 'Traceback' not in done.stderr and done.stderr.count('\n') == 1


def test_check_accepts_a_good_config(run):
    done = run(MASK_R101, '--check')
    assert done.returncode == 0 and done.stdout == f'{MASK_R101}: every key and type is known\n'


def test_check_warns_of_a_variable_that_reaches_nothing(run, tmp_path, repo_root):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = '{repo_root / MASK_R101}'\ndata_root = 'data/mine/'\n")
    done = run(str(leaf), '--check')
    assert done.returncode == 0
    assert done.stderr.startswith(f'warning: data_root ({leaf}:2): the new value reaches nothing')
    assert run(MASK_R101, '--check', '--cfg-options', 'data_root=data/mine/').stderr == ''  # it moves the whole set


def test_help_teaches_without_importing_torch(run):
    done = run('--help', watch=True)
    assert '--explain model.backbone.depth' in done.stdout and '--cfg-options' in done.stdout
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines() if line.startswith('import time:')}
    assert 'argparse' in imported and not {'torch', 'mmengine', 'cv2', 'numpy'} & imported


def test_a_config_of_mmdetection_3x(run, tmp_path):
    write_bases(tmp_path)
    (tmp_path / 'three.py').write_text(WHOLE + "optim_wrapper = dict(optimizer=dict(lr=0.5))\n")
    as_written = run(str(tmp_path / 'three.py')).stdout
    assert 'optim_wrapper = dict(' in as_written and 'lr_config' not in as_written
    done = run(str(tmp_path / 'three.py'), '--to', '2.x')
    assert 'optim_wrapper' not in done.stdout, done.stderr
    (tmp_path / 'two.py').write_text(done.stdout)
    assert load_config(tmp_path / 'two.py').to_dict() == load_config(tmp_path / 'three.py').to_dict()
    explained = run(str(tmp_path / 'three.py'), '--explain', 'optimizer.lr').stdout.splitlines()
    assert explained[0] == 'optimizer.lr = 0.5' and explained[1].endswith('three.py:2, optim_wrapper.optimizer.lr')
    assert explained[2].strip().startswith('overrides 0.01 (') and '_base_/schedule.py:8' in explained[2]
    assert run(str(tmp_path / 'three.py'), '--explain', 'optim_wrapper.optimizer.lr').stdout.splitlines()[0] == \
        'optim_wrapper.optimizer.lr = 0.5'
    done = run(str(tmp_path / 'three.py'), '--to', '2.x', '--cfg-options', 'train_dataloader.sampler.type=MySampler')
    assert done.returncode == 2 and done.stderr.startswith('error: train_dataloader.sampler.type (--cfg-options)')
