"""docs/migrating.md and docs/migrating_3x.md: their scripts, run as they say, and the commands on a config of 3.x."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys

import cv2
import pytest

from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.config import check_config, load_config
from tests.exported_detector import distinct
from tests.mmdet3_forms import WHOLE, write_bases
from tests.test_docs.examples import run, runs
from tests.test_docs.small_config import CONFIG

NARROW = """
model = dict(backbone=dict(base_channels=8), neck=dict(in_channels=[8, 16, 32, 64]))
train_cfg = dict(max_epochs=1)
"""
# What a script has before it comes to docs/migrating.md's runner.
BEFORE_THE_RUNNER = '''
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmcv.runner import build_optimizer, build_runner
from mmdet.core import EvalHook
from mmdet.datasets import build_dataloader, build_dataset
from mmdet.models import build_detector
from mmdet.utils import get_root_logger

cfg = Config.fromfile('small.py')
model = build_detector(cfg.model)
logger = get_root_logger()
optimizer = build_optimizer(model, cfg.optimizer)
train_loader = build_dataloader(build_dataset(cfg.data.train), 4, 0, dist=False)
val_loader = build_dataloader(build_dataset(cfg.data.val, dict(test_mode=True)), 1, 0, dist=False, shuffle=False)
'''


def script(folder, *command):
    done = subprocess.run([sys.executable, '-W', 'ignore', *command], capture_output=True, text=True, cwd=folder,
                          env={**os.environ, 'PYTHONPATH': os.environ['PYTHONPATH']}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch, shapes_dir):
    """The working folder, with a config of mmdetection 3.x and an image."""
    monkeypatch.chdir(tmp_path)
    write_bases(tmp_path, shapes_dir)
    (tmp_path / 'my_mmdet3_config.py').write_text(f'{WHOLE}{NARROW}')
    shutil.copy(sorted((shapes_dir / 'val').iterdir())[0], tmp_path / 'street.jpg')
    return tmp_path


@pytest.mark.slow
@runs('docs/migrating.md')
def test_scripts_of_2x_run_through_the_layer_and_the_code_after_gives_the_same(examples, tiny_detector, shapes_dir,
                                                                                folder, capsys):
    command, install, runner, before, _ = (one.filled for one in examples)
    shutil.copy(tiny_detector.config, 'config.py')
    shutil.copy(tiny_detector.images[2], 'street.jpg')
    distinct(tiny_detector.checkpoint, 'model.pth')  # with scores above 0.5
    (folder / 'small.py').write_text(CONFIG.replace('DATA', str(shapes_dir)))
    told = 'import sys\nprint("options", sys.argv[1:])\n'
    python, *words = command.split()
    assert (python, words[2]) == ('python', 'my_script.py')
    (folder / 'my_script.py').write_text(told + before)
    first, *found = script(folder, *words).splitlines()
    assert first == "options ['--its', '--options']" and len(found) > 3

    # Installed by the program itself, which then trains by the runner.
    checked = 'assert "boxdet" in StandardRoIHead.__module__\n'
    (folder / 'other.py').write_text(install + checked + before + BEFORE_THE_RUNNER + runner)
    assert script(folder, 'other.py').splitlines()[:len(found)] == found
    assert load_checkpoint(folder / 'work/epoch_1.pth')['meta']['iter'] == 3

    # Without the layer: one line for each object that was printed before, best first.
    capsys.readouterr()
    examples[-1].exec({})
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(line.split()[0] for line in found)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@runs('docs/migrating_3x.md')
def test_a_config_of_3x_trains_tests_and_detects(examples, folder):
    train, test, translate, inferencer, in_a_script = (one.filled for one in examples)
    run(train)
    trained = folder / 'work_dirs/my_mmdet3_config'
    shutil.copy(trained / 'epoch_1.pth', 'epoch_12.pth')
    assert load_checkpoint('epoch_12.pth')['meta']['epoch'] == 1
    printed = run(test)
    assert 'bbox_mAP: ' in printed and (folder / 'results.pkl').exists()
    assert len(list((folder / 'images').iterdir())) == 6
    line, _, out = translate.partition(' > ')
    (folder / out).write_text(run(line))
    check_config(load_config(out))

    images = sorted((folder / 'images').iterdir())
    found = examples[3].exec({})['found']
    assert len(found['predictions']) == len(list((folder / 'outputs/preds').iterdir())) == len(images)
    told = 'print(bool((found.scores > 0.5).all()), found.masks.shape[1:])\n'
    (folder / 'my_script.py').write_text(in_a_script + told)
    height, width, _ = cv2.imread('street.jpg').shape
    assert script(folder, '-m', 'boxdet.compat', 'my_script.py').endswith(f'True torch.Size([{height}, {width}])\n')
