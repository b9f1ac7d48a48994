"""A folder in Cityscapes' shape takes the whole way: convert, train, evaluate, files for the server, and back."""
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from boxdet.datasets.cityscapes import LABEL_IDS
from boxdet.engine.config import load_config
from boxdet.errors import ConfigError, DataError

BASE = 'configs/_base_/datasets/cityscapes_instance.py'


@pytest.fixture(scope='module')
def tools(repo_root):
    """tools/train.py and tools/test.py as modules."""
    modules = []
    for name in ('train', 'test'):
        spec = importlib.util.spec_from_file_location(f'boxdet_way_{name}', repo_root / f'tools/{name}.py')
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    return modules


@pytest.fixture(scope='module')
def config(repo_root, cityscapes_dir, tiny_detector, tmp_path_factory):
    """The shipped data-set config, on the drawn folder and with a small Mask R-CNN."""
    model = load_config(tiny_detector.config).to_dict()['model']
    model['backbone']['init_cfg'] = None
    full = load_config(repo_root / 'configs/_base_/models/mask_rcnn_r50_fpn.py').to_dict()
    model['train_cfg'] = full['model']['train_cfg']
    for head in ('bbox_head', 'mask_head'):
        model['roi_head'][head]['num_classes'] = 8
    model['test_cfg']['rcnn']['score_thr'] = 0.01
    path = tmp_path_factory.mktemp('way') / 'config.py'
    splits = {split: dict(ann_file=str(cityscapes_dir / f'annotations/instancesonly_filtered_gtFine_{split}.json'),
                          img_prefix=str(cityscapes_dir / f'leftImg8bit/{split}/')) for split in ('train', 'val')}
    path.write_text(f'''
_base_ = ['{repo_root / BASE}', '{repo_root}/configs/_base_/schedules/schedule_1x.py',
          '{repo_root}/configs/_base_/default_runtime.py']
model = {model!r}
data = dict(samples_per_gpu=2, workers_per_gpu=0, train=dict(times=1, dataset=dict(**{splits['train']!r})),
            val=dict(**{splits['val']!r}), test=dict(**{splits['val']!r}))
evaluation = dict(interval=1, metric=['cityscapes', 'segm'], save_best='mAP')
runner = dict(max_epochs=1)
''')
    return path


@pytest.fixture(scope='module')
def trained(tools, config, tmp_path_factory):
    """The work folder of a training of two steps, evaluated after its epoch."""
    work_dir = tmp_path_factory.mktemp('trained')
    small = ['data.train.dataset.pipeline.2.img_scale=[(256, 100), (256, 128)]',
             'data.val.pipeline.1.img_scale=(256, 128)', 'log_config.interval=1', 'lr_config.warmup_iters=1']
    tools[0].main([str(config), '--work-dir', str(work_dir), '--seed', '0', '--device', 'cpu', '--cfg-options', *small])
    return work_dir


@pytest.fixture
def run(tools, config, trained, capsys):
    def call(*arguments):
        tools[1].main([str(config), str(trained / 'epoch_1.pth'), '--device', 'cpu', '--cfg-options',
                       'data.test.pipeline.1.img_scale=(256, 128)', *map(str, arguments)])
        return capsys.readouterr().out
    return call


def test_training_evaluates_with_both_protocols(trained):
    lines = [json.loads(line) for line in next(trained.glob('*.log.json')).read_text().splitlines()]
    losses = [line['loss_mask'] for line in lines if line.get('mode') == 'train']
    assert len(losses) == 2 and np.isfinite(losses).all()
    found = next(line for line in lines if line.get('mode') == 'val')
    assert {'mAP', 'AP@50', 'segm_mAP'} <= set(found) and 0 <= found['mAP'] <= 1
    assert list(trained.glob('best_mAP_epoch_1.pth'))


def test_evaluation_and_the_files_of_the_server_agree(run, cityscapes_dir, tmp_path, monkeypatch):
    run('--eval', 'cityscapes', 'bbox', '--eval-options', 'classwise=True', '--work-dir', tmp_path / 'work')
    written, = (tmp_path / 'work').glob('eval_*.json')
    ours = json.loads(written.read_text())['metric']
    assert {'mAP', 'AP@50', 'bbox_mAP', 'cityscapes_car_precision'} <= set(ours)

    printed = run('--format-only', '--eval-options', f'txtfile_prefix={tmp_path / "submission"}')
    assert f'predictions: {tmp_path / "submission"}' in printed
    texts = sorted((tmp_path / 'submission').glob('*_pred.txt'))
    assert len(texts) == 4
    for text in texts:
        for line in text.read_text().splitlines():
            name, label, score = line.split(' ')
            with Image.open(tmp_path / 'submission' / name) as mask:
                assert mask.mode == 'L' and mask.size == (256, 128) and set(np.unique(mask)) <= {0, 255}
            assert int(label) in LABEL_IDS.values() and 0 <= float(score) <= 1

    scripts = pytest.importorskip('cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling')
    monkeypatch.setattr(np, 'in1d', np.isin, raising=False)  # gone from numpy 2.4
    monkeypatch.setattr(scripts, 'writeDict2JSON', lambda values, path: None)
    for name, value in dict(JSONOutput=False, quiet=True, predictionPath=str(tmp_path / 'submission'),
                            predictionWalk=None, gtInstancesFile=str(tmp_path / 'gt.json')).items():
        monkeypatch.setattr(scripts.args, name, value)
    truths = sorted(map(str, (cityscapes_dir / 'gtFine/val').rglob('*_instanceIds.png')))
    theirs = scripts.evaluateImgLists([scripts.getPrediction(t, scripts.args) for t in truths], truths, scripts.args)
    assert ours['mAP'] == theirs['averages']['allAp'] and ours['AP@50'] == theirs['averages']['allAp50%']


def test_missing_ground_truth_is_told_before_inference(run, cityscapes_dir, tmp_path):
    (tmp_path / 'leftImg8bit').symlink_to(cityscapes_dir / 'leftImg8bit')
    with pytest.raises(DataError, match="metric 'cityscapes': 4 of 4 files of instance ids are missing, the first is .*"
                                        'gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_instanceIds.png'):
        run('--cfg-options', 'data.test.pipeline.1.img_scale=(256, 128)',
            f'data.test.img_prefix={tmp_path}/leftImg8bit/val/', '--eval', 'cityscapes')


def test_options_of_another_protocol_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="writing result files takes no 'jsonfile_prefix'.*txtfile_prefix"):
        run('--format-only', '--eval-options', f'jsonfile_prefix={tmp_path}')
    with pytest.raises(ConfigError, match="txtfile_prefix.*did you mean 'outfile_prefix'"):
        run('--eval', 'cityscapes', '--eval-options', f'txtfile_prefix={tmp_path}')


@pytest.mark.parametrize('wanted', [('--eval', 'cityscapes'), ('--format-only',)])
def test_a_model_without_masks_is_refused_before_inference(run, wanted):
    with pytest.raises(ConfigError, match='needs? masks, and this FasterRCNN has no mask head'):
        run('--cfg-options', 'data.test.pipeline.1.img_scale=(256, 128)', 'model.type=FasterRCNN',
            'model.roi_head.mask_head=None', 'model.roi_head.mask_roi_extractor=None', *wanted)
