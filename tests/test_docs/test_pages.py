"""The pages of tasks: every block of docs/getting_started.md runs, and the code of the others does what it says."""
import hashlib
import importlib.util
import json
import re
import shlex
import shutil

import cv2
import numpy as np
import pytest
import torch

from boxdet.apis import inference_detector, init_detector
from boxdet.checkpoints import zoo
from boxdet.cli.programs import PROGRAMS
from boxdet.datasets import build_dataset
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


def run(repo_root, line, more=()):
    """A command line of a page, in this process."""
    name, *arguments = shlex.split(line, comments=True)
    if name == 'boxdet':
        path = PROGRAMS[arguments.pop(0)]
    else:
        assert name == 'python'
        path = arguments.pop(0)
    spec = importlib.util.spec_from_file_location('boxdet_page_tool', repo_root / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.main([*arguments, *more])


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_getting_started(repo_root, tmp_path, monkeypatch):
    page = (repo_root / 'docs/getting_started.md').read_text()
    install, *commands = blocks(page, 'shell')
    assert install.startswith('pip install boxdet')
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in commands:
        ran.append(shlex.split(line)[1])
        run(repo_root, line, SHORT[ran[-1]])
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
def test_your_data_and_what_follows_by_their_commands(repo_root, shapes_dir, server, tmp_path, monkeypatch, capsys):
    pages = {name: (repo_root / f'docs/{name}.md').read_text() for name in ('your_data', 'large_images', 'labels')}
    convert, train, from_zoo = (line for block in blocks(pages['your_data'], 'shell') for line in block.splitlines())
    read, read_split, read_yolo, infer, correct = (line for block in blocks(pages['labels'], 'shell')
                                                   for line in block.splitlines())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('BOXDET_HOME', str(tmp_path / 'home'))
    (tmp_path / 'configs').mkdir()
    (tmp_path / f'configs/{NAME}.py').write_text(SMALL)
    shutil.copytree(shapes_dir / 'train', 'photos')
    source = shapes_dir / 'annotations/instances_train.json'
    run(repo_root, f'boxdet from_coco {source} my_labels --to yolo --images photos')
    for link in list((tmp_path / 'my_labels').rglob('*.jpg')):  # files, as in a folder of one's own
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)

    capsys.readouterr()
    run(repo_root, convert)
    images = re.search("img_prefix='(.*?)'", capsys.readouterr().out)[1]
    assert images == 'my_labels/images/train/'
    counts = []
    for split in ('train', 'val'):
        shutil.copy(f'data/mine/annotations/instances_{split}.json', f'{split}.json')
        counts.append(len(json.loads((tmp_path / f'{split}.json').read_text())['images']))
    assert sum(counts) == 12 and counts[1] == 2
    short = ['data.workers_per_gpu=0', 'runner.max_epochs=1', 'evaluation.interval=1']
    assert train.endswith('--data train.json val.json')
    run(repo_root, f'{train} --images {images} --device cpu --cfg-options {" ".join(short)}')
    folder = tmp_path / f'work_dirs/{NAME}'
    content = (folder / 'latest.pth').read_bytes()

    file = f'small-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    server.files[file] = content
    entry = dict(config=f'{NAME}.py', weights=server.url + file, project='boxdet', metrics={})
    monkeypatch.setattr(zoo, 'entries', lambda: {NAME: entry})
    shutil.rmtree(folder)
    run(repo_root, f'{from_zoo} {" ".join(short)} --images {images} --device cpu')
    assert len(server.asked) == 1 and (tmp_path / 'home/checkpoints' / file).exists()
    assert f'load_from zoo://{NAME}: 150 entries loaded, 0 missing' in next(folder.glob('*.log')).read_text()
    assert load_config(folder / f'{NAME}.py').optimizer.lr == 0.0025

    config, weights = folder / f'{NAME}.py', folder / 'latest.pth'
    run(repo_root, f'boxdet check {NAME} --data train.json val.json --images {images}')
    named = {'CONFIG': str(config), 'CHECKPOINT': str(weights), 'SOURCE': 'my_labels', 'OUT': 'converted'}

    def filled(line):
        return re.sub('|'.join(named), lambda found: named[found[0]], line)
    large, = blocks(pages['large_images'], 'shell')
    assert load_config(config, {'data.test.pipeline.1.img_scale': (2666, 1600)}).data.test.pipeline[1].flip is False
    capsys.readouterr()
    run(repo_root, filled(large), ['--device', 'cpu'])
    assert 'bbox_mAP' in capsys.readouterr().out

    run(repo_root, filled(read))
    run(repo_root, filled(read_split))
    classes = ' '.join(name for name in load_config(config).data.train.classes)
    read_yolo = filled(read_yolo).replace('cat dog', classes).replace('--images photos', '--images my_labels/images')
    run(repo_root, read_yolo)
    assert (tmp_path / 'converted/annotations/instances_val.json').exists()
    run(repo_root, filled(infer), ['--device', 'cpu'])
    run(repo_root, correct.replace('--score-thr 0.5', '--score-thr 0'))
    assert len(json.loads((tmp_path / 'out/tasks.json').read_text())) == 12


@pytest.mark.filterwarnings('ignore')
def test_the_code_of_other_pages(repo_root, tiny_detector, tmp_path, monkeypatch):
    pages = {name: (repo_root / f'docs/{name}.md').read_text() for name in ('evaluation', 'checks', 'migrating')}
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    dataset = build_dataset(model.cfg.data.test)
    names = dict(dataset=dataset, results=inference_detector(model, [str(path) for path in tiny_detector.images]))
    code, = blocks(pages['evaluation'], 'python')
    exec(compile(code, 'evaluation.md', 'exec'), names)
    assert len(names['points'].classes) == 3 and 0 <= names['best'].threshold <= 1

    code, = blocks(pages['checks'], 'python')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(f'_base_ = {str(tiny_detector.config)!r}\n{code}')
    check_config(load_config('mine.py'))

    after = blocks(pages['migrating'], 'python')[-1]
    shutil.copy(tiny_detector.config, 'config.py')
    shutil.copy(tiny_detector.checkpoint, 'model.pth')
    cv2.imwrite('street.jpg', cv2.imread(str(tiny_detector.images[0])))
    assert after.count("'cuda:0'") == 1
    exec(compile(after.replace('cuda:0', 'cpu'), 'migrating.md', 'exec'), names)
    assert tiny_detector.classes == names['model'].CLASSES
