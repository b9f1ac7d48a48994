"""docs/export.md: its commands and its code, run one after the other on small detectors."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from boxdet.apis import init_detector
from boxdet.checkpoints.io import save_checkpoint
from tests.exported_detector import distinct, write_detector
from tests.test_docs.examples import expanded, run, runs

pytest.importorskip('onnxruntime')
ALONE = ('import sys, runpy; sys.modules.update(torch=None, boxdet=None); sys.argv = sys.argv[1:]; '
         'sys.path.insert(0, "."); runpy.run_path(sys.argv[0], run_name="__main__")')


@pytest.fixture
def place(tiny_detector, tmp_path, monkeypatch):
    """A folder with what the document speaks of: config.py, latest.pth, images, val.json (categories 5, 7, 9)."""
    write_detector(tiny_detector, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_alone(*command):
    """A script in the working folder, without torch and without boxdet."""
    done = subprocess.run([sys.executable, '-c', ALONE, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def compare(found, expected, kind):
    """Rows of the runtime, and those that tools/test.py wrote: the same images, categories, boxes, masks, keypoints."""
    assert len(found) == len(expected) > 3
    field = dict(bbox='bbox', segm='segmentation', keypoints='keypoints')[kind]
    left = list(found)
    for row in expected:
        alike = [own for own in left if (own['image_id'], own['category_id']) == (row['image_id'], row['category_id'])
                 and abs(own['score'] - row['score']) < 5e-4 and near(own[field], row[field])]
        assert alike, row
        left.remove(alike[0])


def near(one, other):
    if isinstance(one, dict):
        return np.array_equal(mask_api.decode(one), mask_api.decode(other))
    return np.abs(np.subtract(one, other)).max() < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@runs('docs/export.md: python tools/export.py', 'docs/export.md: python runtime.py', 'docs/export.md: import cv2',
      'README.md: python tools/export.py CONFIG CHECKPOINT detector.onnx', 'README.md: python runtime.py')
def test_the_commands(examples, place):
    export, detect, code, same, on_files = examples
    assert export.filled == same.filled
    said = run(export.filled)
    assert 'detections equal in 2 images' in said and 'category ids' not in said, said
    files = expanded(on_files.filled)[0][1:]
    assert files[2:4] == ['images/a.png', 'images/d.png']
    run_alone(*files)
    assert {row['image_id'] for row in json.loads((place / 'predictions.json').read_text())} == {1, 2}
    run_alone(*expanded(detect.filled)[0][1:])
    found = json.loads((place / 'predictions.json').read_text())
    assert {row['category_id'] for row in found} <= {5, 7, 9} and {row['image_id'] for row in found} == {10, 11, 12, 13}
    run('python tools/test.py config.py latest.pth --device cpu --format-only --eval-options jsonfile_prefix=theirs '
        '--cfg-options evaluation.metric=[bbox,segm]')
    for kind in ('bbox', 'segm'):
        compare(found, json.loads((place / f'theirs.{kind}.json').read_text()), kind)
    (place / 'example.py').write_text(code.text)
    run_alone('example.py')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@runs('README.md: boxdet export', 'README.md: python tools/export.py CONFIG CHECKPOINT detector.pt2')
def test_images_of_any_size_and_number(examples, place):
    export, program = (one.filled for one in examples)
    assert 'detections equal in 2 images' in run(export) and (place / 'runtime.py').exists()
    run(program)
    loaded = torch.export.load(place / 'detector.pt2').module()
    assert len(loaded(torch.zeros(3, 3, 96, 64, dtype=torch.uint8), torch.tensor([[96, 64]] * 3))[0]) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@runs('docs/export.md: python benchmarks/export.py data/shapes')
def test_the_comparison(examples, place):
    (place / 'configs/shapes').mkdir(parents=True)
    shutil.copy('config.py', 'configs/shapes/mask_rcnn_r18w32_fpn_shapes.py')
    printed = run(examples[0].filled, '--batch', '1', '--ways', 'onnxruntime')
    assert '2 images' in printed and re.search(r'\| onnxruntime \| 1 \| \d+ \| (\d+) of \1, 100', printed), printed


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@runs('docs/export.md: from boxdet.apis', 'docs/export.md: import torch')
def test_the_code(examples, place):
    """The blocks that need torch."""
    values: dict = {}
    for one in examples:
        one.exec(values)
    assert (place / 'detector.onnx').is_file() and (place / 'detector.pt2').is_file()
    assert len(values['boxes']) == 1 and values['boxes'].shape[-1] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_keypoints_reach_the_file(repo_root, shapes_dir, tmp_path, monkeypatch):
    from boxdet.apis import export_onnx
    monkeypatch.chdir(tmp_path)
    content = json.loads((shapes_dir / 'annotations/instances_val.json').read_text())
    content['images'] = [image for image in content['images'] if image['width'] == 160]  # of one size: no filling
    kept = {image['id'] for image in content['images']}
    content['annotations'] = [row for row in content['annotations'] if row['image_id'] in kept]
    (tmp_path / 'val.json').write_text(json.dumps(content))
    options = {'data.test.ann_file': 'val.json', 'data.test.img_prefix': f'{shapes_dir}/val/',
               'model.backbone.base_channels': 16, 'model.neck.in_channels': [16, 32, 64, 128],
               'model.test_cfg.rcnn.score_thr': 0.01}
    config = repo_root / 'configs/shapes/keypoint_rcnn_r18_fpn_shapes.py'
    torch.manual_seed(0)
    model = init_detector(config, device='cpu', cfg_options=options)
    save_checkpoint(dict(meta=dict(CLASSES=model.CLASSES), state_dict=model.state_dict()), tmp_path / 'fresh.pth')
    distinct(tmp_path / 'fresh.pth', tmp_path / 'a.pth')
    model = init_detector(config, 'a.pth', device='cpu', cfg_options=options)
    export_onnx(model, 'a.onnx', shape=(128, 160), batch=1)
    shutil.copy(repo_root / 'boxdet/runtime.py', tmp_path)
    run_alone('runtime.py', 'a.onnx', options['data.test.img_prefix'], '--annotations', options['data.test.ann_file'])
    run(['python', 'tools/test.py', str(config), 'a.pth', '--device', 'cpu', '--format-only', '--eval-options',
         'jsonfile_prefix=theirs', '--cfg-options', *(f'{key}={value}' for key, value in options.items())])
    compare(json.loads((tmp_path / 'predictions.json').read_text()),
            json.loads((tmp_path / 'theirs.keypoints.json').read_text()), 'keypoints')
