"""VOC's data through tools/train.py and tools/test.py: two years, evaluated in training and after it."""
import importlib.util
import json
import shutil
import warnings

import pytest

from boxdet.errors import ConfigError, DataError
from tests.voc_folder import draw

CLASSES = ('disc', 'bar', 'cross')


@pytest.fixture(scope='module')
def tools(repo_root):
    def load(name):
        spec = importlib.util.spec_from_file_location(f'voc_{name}', repo_root / f'tools/{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return {name: load(name) for name in ('train', 'test')}


@pytest.fixture(scope='module')
def years(tmp_path_factory):
    root = tmp_path_factory.mktemp('devkit')
    draw(root / 'VOC2007', ['a', 'b', 'c', 'd'], classes=CLASSES)
    draw(root / 'VOC2012', ['e', 'f'], seed=1, classes=CLASSES)
    return root


def both(years, key='data.test'):
    files, folders = ([f'{years}/VOC{y}{tail}' for y in (2007, 2012)] for tail in ('/ImageSets/Main/trainval.txt', '/'))
    return [f'{key}.ann_file={json.dumps(files)}', f'{key}.img_prefix={json.dumps(folders)}']


@pytest.fixture
def test_tool(tools, tiny_detector, capsys):
    def call(*arguments, options=()):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            tools['test'].main([str(tiny_detector.config), str(tiny_detector.checkpoint), '--device', 'cpu',
                                *map(str, arguments), '--cfg-options', 'data.test.type=VOCDataset',
                                'evaluation.metric=mAP', *map(str, options)])
        return capsys.readouterr().out
    return call


def metrics_of(folder):
    written, = folder.glob('eval_*.json')
    return json.loads(written.read_text())['metric']


def test_evaluation_of_two_years(test_tool, years, tmp_path):
    out = test_tool('--eval', 'mAP', 'recall', '--eval-options', 'iou_thr=[0.3,0.5]', '--work-dir', tmp_path,
                    options=both(years))
    found = metrics_of(tmp_path)
    assert {'0_mAP', '0_AP30', '0_AP50', '1_mAP', '1_recall@100@0.3', '1_AR@300'} <= set(found)
    assert '0.3 (11 points)' in out and '0.3 (area)' in out and '6/6 images' in out
    one = test_tool('--eval', 'mAP', options=[f'{key}={values}' for key, values in (
        ('data.test.ann_file', f'{years}/VOC2012/ImageSets/Main/trainval.txt'),
        ('data.test.img_prefix', f'{years}/VOC2012/'))])
    assert f"mAP: {found['1_AP50']:.4f}" in one


def test_what_voc_cannot(test_tool, years, tmp_path):
    with pytest.raises(ConfigError, match="unknown metric 'bbox'.*mAP, recall"):
        test_tool('--eval', 'bbox', options=both(years))
    with pytest.raises(ConfigError, match='result files of VOCEvaluator are not known: save the results with --out'):
        test_tool('--format-only', options=both(years))
    shutil.copytree(years, tmp_path / 'bare')
    for year in (2007, 2012):
        shutil.rmtree(tmp_path / f'bare/VOC{year}/Annotations')
    with pytest.raises(DataError, match='trainval.txt holds no annotations'):
        test_tool('--eval', 'mAP', options=both(tmp_path / 'bare'))
    test_tool('--out', tmp_path / 'r.pkl', options=both(tmp_path / 'bare'))
    assert (tmp_path / 'r.pkl').exists()


def test_training_evaluates_both_years(tools, years, repo_root, tmp_path):
    small = [f'data.{where}.{key}={value}' for where in ('train.dataset', 'val') for key, value in (
        ('year', 'None'), ('data_root', 'None'), ('classes', json.dumps(CLASSES)))]
    arguments = ['--work-dir', str(tmp_path), '--seed', '0', '--device', 'cpu', '--cfg-options', *small,
                 *both(years, 'data.train.dataset'), *both(years, 'data.val'), 'data.train.times=1',
                 'data.samples_per_gpu=3', 'runner.max_epochs=1', 'evaluation.interval=1', 'img_scale=(128,96)']
    config = str(repo_root / 'configs/pascal_voc/faster_rcnn_r18_fpn_bccd.py')
    with pytest.raises(ConfigError, match=r"'mAP' is no metric of this evaluation; did you mean '._mAP'"):
        tools['train'].main([config, *arguments, 'evaluation.save_best=mAP'])
    tools['train'].main([config, *arguments, 'evaluation.save_best=1_AP50'])
    log, = tmp_path.glob('*.log.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    evaluated, = [row for row in rows if row.get('mode') == 'val']
    assert {'0_mAP', '0_AP50', '1_mAP', '1_AP50'} <= set(evaluated)
    assert (tmp_path / 'best_1_AP50_epoch_1.pth').exists()
