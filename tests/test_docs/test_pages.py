"""The pages of tasks: their commands run, and their code does what it says."""
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch

from boxdet.apis import inference_detector, init_detector
from boxdet.checkpoints import zoo
from boxdet.datasets import build_dataset
from boxdet.engine.config import check_config, load_config
from boxdet.geometry.boxes import box_overlaps
from boxdet.structures.instances import Instances
from tests.test_docs.examples import run, runs


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@runs('docs/getting_started.md: boxdet', 'docs/getting_started.md: from pathlib')
def test_getting_started(examples, tmp_path, monkeypatch):
    *commands, code = examples
    monkeypatch.chdir(tmp_path)
    short = {'make_shapes': ['--train', '8', '--val', '4'],
             'train': ['--seed', '0', '--cfg-options', 'runner.max_epochs=1', 'data.workers_per_gpu=0',
                       'evaluation.interval=1']}
    for one in commands:
        run(one.text, *short.get(one.text.split()[1], []))
    for name in ('work_dirs/shapes/latest.pth', 'report/index.html', 'found.json'):
        assert (tmp_path / name).stat().st_size > 100
    assert len(list((tmp_path / 'drawn').iterdir())) == 4
    names = code.exec({})
    assert (tmp_path / 'drawn.jpg').exists() and isinstance(names['result'], Instances)


@runs('docs/your_data.md: _base_')
def test_the_config_of_your_data(examples, repo_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/mine.py').write_text(examples[0].text)
    cfg = load_config('mine')
    check_config(cfg)
    assert cfg.model.roi_head.bbox_head.num_classes == 2 and cfg.optimizer.momentum == 0.9
    for name in re.findall(r'^\| .* \| `(.*)` \|$', (repo_root / 'docs/your_data.md').read_text(), re.MULTILINE):
        for one in name.split('`, `'):
            load_config(one)


@runs('docs/large_images.md: import torch')
def test_tiles(examples, tiny_detector):
    names = examples[0].exec({})
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


# A small detector under the name that the pages train, for one epoch.
SMALL = """_base_ = 'boxdet::shapes/faster_rcnn_r18_fpn_shapes.py'
model = dict(backbone=dict(base_channels=8), neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
             rpn_head=dict(in_channels=16, feat_channels=16),
             roi_head=dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16)),
             train_cfg=dict(rpn_proposal=dict(max_per_img=50)))
"""
NAME = 'faster_rcnn_r50_fpn_1x_coco'


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@runs('docs/your_data.md: boxdet', 'README.md: boxdet train', 'docs/large_images.md: boxdet test', 'docs/labels.md')
def test_your_data_and_what_follows_by_their_commands(examples, shapes_dir, server, tmp_path, monkeypatch):
    convert, train, from_zoo, in_short, large, read, read_split, read_yolo, infer, correct = (
        one.filled for one in examples)
    assert from_zoo.startswith(f'{in_short} --cfg-options ')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('BOXDET_HOME', str(tmp_path / 'home'))
    (tmp_path / 'configs').mkdir()
    (tmp_path / f'configs/{NAME}.py').write_text(SMALL)
    shutil.copytree(shapes_dir / 'train', 'photos')
    source = shapes_dir / 'annotations/instances_train.json'
    run(f'boxdet from_coco {source} my_labels --to yolo --images photos')
    for link in list((tmp_path / 'my_labels').rglob('*.jpg')):  # files, as in a folder of one's own
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)

    images = re.search("img_prefix='(.*?)'", run(convert))[1]
    assert images == 'my_labels/images/train/'
    counts = []
    for split in ('train', 'val'):
        shutil.copy(f'data/mine/annotations/instances_{split}.json', f'{split}.json')
        counts.append(len(json.loads((tmp_path / f'{split}.json').read_text())['images']))
    assert sum(counts) == 12 and counts[1] == 2
    short = ['data.workers_per_gpu=0', 'runner.max_epochs=1', 'evaluation.interval=1']
    assert train.endswith('--data train.json val.json')
    run(f'{train} --images {images} --cfg-options {" ".join(short)}')
    folder = tmp_path / f'work_dirs/{NAME}'
    content = (folder / 'latest.pth').read_bytes()

    file = f'small-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    server.files[file] = content
    entry = dict(config=f'{NAME}.py', weights=server.url + file, project='boxdet', metrics={})
    monkeypatch.setattr(zoo, 'entries', lambda: {NAME: entry})
    shutil.rmtree(folder)
    run(f'{from_zoo} {" ".join(short)} --images {images}')
    assert len(server.asked) == 1 and (tmp_path / 'home/checkpoints' / file).exists()
    assert f'load_from zoo://{NAME}: 150 entries loaded, 0 missing' in next(folder.glob('*.log')).read_text()
    assert load_config(folder / f'{NAME}.py').optimizer.lr == 0.0025

    config, weights = folder / f'{NAME}.py', folder / 'latest.pth'
    run(f'boxdet check {NAME} --data train.json val.json --images {images}')
    shutil.copy(config, 'config.py')
    shutil.copy(weights, 'latest.pth')
    assert load_config(config, {'data.test.pipeline.1.img_scale': (2666, 1600)}).data.test.pipeline[1].flip is False
    assert 'bbox_mAP' in run(large)

    run(read)
    run(read_split)
    classes = ' '.join(name for name in load_config(config).data.train.classes)
    run(read_yolo.replace('cat dog', classes).replace('--images photos', '--images my_labels/images'))
    assert (tmp_path / 'converted/annotations/instances_val.json').exists()
    run(infer)
    run(correct.replace('--score-thr 0.5', '--score-thr 0'))
    assert len(json.loads((tmp_path / 'out/tasks.json').read_text())) == 12


@pytest.mark.filterwarnings('ignore')
@runs('docs/evaluation.md: from boxdet.evaluation', 'docs/checks.md')
def test_the_code_of_other_pages(examples, tiny_detector, tmp_path, monkeypatch):
    operating_points, preflight = examples
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    dataset = build_dataset(model.cfg.data.test)
    names = dict(dataset=dataset, results=inference_detector(model, [str(path) for path in tiny_detector.images]))
    operating_points.exec(names)
    assert len(names['points'].classes) == 3 and 0 <= names['best'].threshold <= 1

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(f'_base_ = {str(tiny_detector.config)!r}\n{preflight.text}')
    check_config(load_config('mine.py'))
