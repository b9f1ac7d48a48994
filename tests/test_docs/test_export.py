"""docs/export.md: its commands and its code, run one after the other on small detectors."""
from __future__ import annotations

import importlib.util
import json
import re
import shlex
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

pytest.importorskip('onnxruntime')
ALONE = ('import sys, runpy; sys.modules.update(torch=None, boxdet=None); sys.argv = sys.argv[1:]; '
         'sys.path.insert(0, "."); runpy.run_path(sys.argv[0], run_name="__main__")')


@pytest.fixture(scope='module')
def document(repo_root):
    return (repo_root / 'docs/export.md').read_text()


def blocks(document, kind):
    return re.findall(rf'^```{kind}\n(.*?)^```$', document, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tiny_detector, tmp_path, monkeypatch):
    """A folder with what the document speaks of: config.py, latest.pth, images, val.json (categories 5, 7, 9)."""
    write_detector(tiny_detector, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tool(repo_root, name, *arguments):
    """A tool of the checkout, in this process."""
    spec = importlib.util.spec_from_file_location(f'boxdet_document_{name}', repo_root / f'tools/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(list(arguments))


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
def test_the_commands(document, repo_root, place, capsys):
    export, detect = (shlex.split(line) for line in blocks(document, 'sh')[1].splitlines())
    assert export[:2] == ['python', 'tools/export.py'] and detect[:2] == ['python', 'runtime.py']
    images = sorted(str(path) for path in place.glob('images/*.png'))
    arguments = [name for word in export[2:] for name in (images if word == 'images/*.jpg' else [word])]
    assert tool(repo_root, 'export', *arguments) == 0
    said = capsys.readouterr().out
    assert 'detections equal in 2 images' in said and 'category ids' not in said, said
    run_alone(*detect[1:])
    found = json.loads((place / 'predictions.json').read_text())
    assert {row['category_id'] for row in found} <= {5, 7, 9} and {row['image_id'] for row in found} == {10, 11, 12, 13}
    tool(repo_root, 'test', 'config.py', 'latest.pth', '--device', 'cpu', '--format-only', '--eval-options',
         'jsonfile_prefix=theirs', '--cfg-options', 'evaluation.metric=[bbox,segm]')
    for kind in ('bbox', 'segm'):
        compare(found, json.loads((place / f'theirs.{kind}.json').read_text()), kind)
    code = next(code for code in blocks(document, 'python') if 'from runtime import' in code)
    (place / 'example.py').write_text(code)
    run_alone('example.py')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_the_code(document, place):
    """The blocks that need torch."""
    code = [code for code in blocks(document, 'python') if 'from runtime import' not in code]
    values: dict = {}
    for block in code:
        exec(compile(block, 'docs/export.md', 'exec'), values)
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
    tool(repo_root, 'test', str(config), 'a.pth', '--device', 'cpu', '--format-only', '--eval-options',
         'jsonfile_prefix=theirs', '--cfg-options', *(f'{key}={value}' for key, value in options.items()))
    compare(json.loads((tmp_path / 'predictions.json').read_text()),
            json.loads((tmp_path / 'theirs.keypoints.json').read_text()), 'keypoints')
