"""README.md and the pages: training, testing, detecting, the demos and the code, one after the other."""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from boxdet.apis.video import VideoFile, VideoWriter
from boxdet.checkpoints import zoo
from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.config import load_config
from boxdet.evaluation import load_results
from tests.test_docs.examples import run, runs
from tests.test_docs.small_config import CONFIG

NAME = 'mask_rcnn_r50_fpn_1x_coco'


@pytest.fixture
def place(shapes_dir, tmp_path, monkeypatch):
    """The working folder: config.py, also under the name of COCO's, images, test.jpg and clip.mp4."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs/mask_rcnn').mkdir(parents=True)
    for name in ('config.py', f'configs/mask_rcnn/{NAME}.py'):
        (tmp_path / name).write_text(CONFIG.replace('DATA', str(shapes_dir)))
    (tmp_path / 'images').mkdir()
    pixels = [cv2.imread(str(path)) for path in sorted((shapes_dir / 'val').iterdir())[:2]]
    for k, image in enumerate(pixels):
        cv2.imwrite(f'images/{k}.png', image)
    cv2.imwrite('test.jpg', pixels[0])
    with VideoWriter('clip.mp4', 12.5) as writer:
        for step in range(3):
            writer.write(np.roll(pixels[0], 9 * step, axis=1))
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@runs('README.md: python tools/train.py', 'docs/reliability.md: python tools/train.py',
      'README.md: python tools/model_converters/publish_model.py', 'README.md: python tools/misc/print_config.py',
      'README.md: boxdet test', 'README.md: python tools/test.py', 'docs/evaluation.md: python tools/',
      'README.md: boxdet infer', 'README.md: python tools/infer_dir.py', 'README.md: python demo/image_demo.py',
      'README.md: python demo/video_demo.py')
def test_from_a_training_to_its_detections(examples, place):
    whole, options, again, resumable, publish, explain, *rest = examples
    run(whole.filled)
    trained = place / f'work_dirs/{NAME}/latest.pth'
    run(options.filled)
    used = load_config('work/config.py')
    assert used.data.samples_per_gpu == 4 and used.optimizer.lr == 0.01
    assert load_checkpoint('work/latest.pth')['meta']['seed'] == 0
    run(again.filled)
    assert (place / 'work_dirs/config/latest.pth').exists()
    shutil.copytree(place / 'work_dirs/config', place / 'runs/a')
    run(resumable.filled, '--cfg-options', 'runner.max_epochs=2')  # it goes on
    assert (place / 'runs/a/epoch_2.pth').exists()

    trained.parent.rename(place / 'work_dirs/x')
    run(publish.filled)
    published, = place.glob('x-*.pth')
    assert 'optimizer' not in load_checkpoint(published)
    assert run(explain.filled).startswith('model.roi_head.bbox_head.num_classes = 6')

    shutil.copy(place / 'work_dirs/x/latest.pth', 'latest.pth')
    same = {'boxdet test': 'python tools/test.py', 'boxdet infer': 'python tools/infer_dir.py'}
    lines = [re.sub('|'.join(same), lambda found: same[found[0]], one.filled) for one in rest]
    printed = {line: run(line) for line in dict.fromkeys(lines)}  # some stand on two pages
    assert len(printed) == 13
    for line, text in printed.items():
        assert ('bbox_mAP: ' in text) == ('--eval bbox' in line or 'test.py' in line and '--report' in line), line
        assert ('segm_mAP: ' in text) == ('--eval bbox segm' in line or 'test.py' in line and '--report' in line), line
        assert ('circle' in text) == ('classwise=True' in line), line
    assert len(load_results('results.pkl')) == 6 and len(list((place / 'images').glob('*.jpg'))) == 6
    for name in ('results.bbox.json', 'results.segm.json', 'found.json', 'predictions.json'):
        assert json.loads((place / name).read_text())
    assert (place / 'report/index.html').stat().st_size > 1000
    assert cv2.imread('result.jpg').shape == cv2.imread('test.jpg').shape
    assert {path.name for path in (place / 'drawn').iterdir()} == {'0.png', '1.png'}
    assert len(VideoFile('result.mp4')) == 3


@pytest.mark.filterwarnings('ignore')
@runs('README.md: from boxdet.apis', 'README.md: class Predictor', 'docs/weights.md')
def test_the_code_of_inference(examples, place, tiny_detector, server, monkeypatch):
    content = tiny_detector.checkpoint.read_bytes()
    file = f'tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    server.files[file] = content
    path = f'configs/mask_rcnn/{NAME}.py'
    shutil.copy(tiny_detector.config, path)
    entry = dict(config=path.removeprefix('configs/'), weights=server.url + file, project='boxdet', metrics={})
    monkeypatch.setattr(zoo, 'entries', lambda: {NAME: entry})
    monkeypatch.setenv('BOXDET_HOME', str(place / 'home'))
    inference, predictor, weights = examples
    names = inference.exec({})
    result, model = names['result'], names['model']
    assert len(result) > 0 and cv2.imread('result.jpg').shape == cv2.imread('test.jpg').shape
    predictor.exec(names)
    drawn = names['Predictor'](tiny_detector.config, tiny_detector.checkpoint, score_thr=0)(cv2.imread('test.jpg'))
    assert drawn.shape == cv2.imread('test.jpg').shape and (drawn != cv2.imread('test.jpg')).any()
    other = weights.exec(names)['model']
    assert other is not model and len(server.asked) == 1  # the file is at hand the second time
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@runs('README.md: eval "$(boxdet completion bash)"')
def test_completion(examples, tmp_path):
    (tmp_path / 'boxdet').write_text(f'#!/bin/sh\nexec {sys.executable} -m boxdet "$@"\n')
    (tmp_path / 'boxdet').chmod(0o755)
    ask = 'COMP_WORDS=(boxdet test mask_rcnn_r50_fpn_2x); COMP_CWORD=2; _boxdet; echo "${COMPREPLY[@]}"'
    done = subprocess.run(['bash', '-c', f'{examples[0].filled}; {ask}'], capture_output=True, text=True,
                          env={**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'})
    assert done.stdout == 'mask_rcnn_r50_fpn_2x_coco\n', done.stderr
