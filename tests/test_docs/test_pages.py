"""The pages of tasks: every block of docs/getting_started.md runs, and the code of the others does what it says."""
import importlib.util
import re
import shlex

import numpy as np
import pytest
import torch

from boxdet.apis import init_detector
from boxdet.cli.programs import PROGRAMS
from boxdet.engine.config import check_config, load_config
from boxdet.geometry.boxes import box_overlaps
from boxdet.structures.instances import Instances

# What keeps the training of a test short.
SHORT = {'train': ['--device', 'cpu', '--seed', '0', '--cfg-options', 'runner.max_epochs=1', 'data.workers_per_gpu=0',
                   'evaluation.interval=1'],
         'test': ['--device', 'cpu'], 'infer': ['--device', 'cpu'], 'check': [],
         'make_shapes': ['--train', '8', '--val', '4']}


def blocks(page, language):
    return re.findall(rf'^```{language}\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_getting_started(repo_root, tmp_path, monkeypatch):
    page = (repo_root / 'docs/getting_started.md').read_text()
    install, *commands = blocks(page, 'shell')
    assert install.startswith('pip install boxdet')
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in commands:
        boxdet, name, *arguments = shlex.split(line)
        spec = importlib.util.spec_from_file_location('boxdet_page_tool', repo_root / PROGRAMS[name])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert boxdet == 'boxdet' and not module.main([*arguments, *SHORT[name]])
        ran.append(name)
    assert ran == ['make_shapes', 'check', 'train', 'test', 'infer']
    for name in ('work_dirs/shapes/latest.pth', 'report/index.html', 'found.json'):
        assert (tmp_path / name).stat().st_size > 100
    assert len(list((tmp_path / 'drawn').iterdir())) == 4
    code, = blocks(page, 'python')
    names = {}
    exec(compile(code, 'getting_started.md', 'exec'), names)
    assert (tmp_path / 'drawn.jpg').exists() and isinstance(names['result'], Instances)


def test_the_config_of_your_data(repo_root, tmp_path, monkeypatch):
    code, = blocks((repo_root / 'docs/your_data.md').read_text(), 'python')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/mine.py').write_text(code)
    cfg = load_config('mine')
    check_config(cfg)
    assert cfg.model.roi_head.bbox_head.num_classes == 2 and cfg.optimizer.momentum == 0.9
    for name in re.findall(r'^\| .* \| `(.*)` \|$', (repo_root / 'docs/your_data.md').read_text(), re.MULTILINE):
        for one in name.split('`, `'):
            load_config(one)


def test_tiles(repo_root, tiny_detector):
    code, = blocks((repo_root / 'docs/large_images.md').read_text(), 'python')
    names = {}
    exec(compile(code, 'large_images.md', 'exec'), names)
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    image = np.random.default_rng(0).integers(0, 255, (230, 350, 3), dtype=np.uint8)
    boxes, scores, labels = names['detect_in_tiles'](model, image, side=150, overlap=50, iou=0.5)
    assert len(boxes) == len(scores) == len(labels) > 0 and bool((scores.diff() <= 0).all())
    assert boxes[:, 2].max() > 250 and boxes[:, 3].max() > 150  # of the last tiles, in the image's pixels
    assert boxes[:, 2].max() <= 350 and boxes[:, 3].max() <= 230
    for label in labels.unique():
        same = boxes[labels == label]
        overlaps = box_overlaps(same, same).fill_diagonal_(0)
        assert overlaps.max() <= 0.5 + 1e-6
    whole = names['detect_in_tiles'](model, image, side=400)
    torch.testing.assert_close(whole[1], names['inference_detector'](model, image).scores)
