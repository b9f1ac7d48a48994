"""The shipped LVIS config trains, evaluates and keeps its best, on four images with LVIS's federated annotations."""
import importlib.util
import json
import shutil

import pytest

from boxdet.engine.config import load_config
from boxdet.errors import DataError

CONFIG = 'configs/lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1.py'


@pytest.fixture(scope='module')
def tool(repo_root):
    """``tool('train')`` is tools/train.py as a module."""
    def load(name):
        spec = importlib.util.spec_from_file_location(f'boxdet_lvis_{name}', repo_root / f'tools/{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return load


@pytest.fixture(scope='module')
def config(repo_root, tiny_detector, tmp_path_factory):
    """The shipped config with a small model, on the tiny detector's images laid out as LVIS v1 has them."""
    folder = tmp_path_factory.mktemp('lvis')
    shutil.copytree(tiny_detector.folder / 'images', folder / 'val2017')
    data = json.loads(tiny_detector.ann_file.read_text())
    for image in data['images']:
        image['coco_url'] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
        image.update(neg_category_ids=[5], not_exhaustive_category_ids=[7])
    for category, frequency in zip(data['categories'], 'rcf'):
        category['frequency'] = frequency
    (folder / 'lvis.json').write_text(json.dumps(data))
    model = load_config(tiny_detector.config).to_dict()['model']
    model['backbone']['init_cfg'] = None
    full = load_config(repo_root / CONFIG).to_dict()['model']
    model['train_cfg'], model['test_cfg'] = full['train_cfg'], full['test_cfg']
    data = dict(ann_file=str(folder / 'lvis.json'), img_prefix=str(folder))
    (folder / 'config.py').write_text(f'''
_base_ = '{repo_root / CONFIG}'
model = dict(_delete_=True, **{model!r})
data = dict(workers_per_gpu=0, train=dict(dataset=dict(**{data!r})), val=dict(**{data!r}), test=dict(**{data!r}))
evaluation = dict(interval=1, save_best='bbox_AP')
runner = dict(max_epochs=1)
''')
    return folder / 'config.py'


def test_train_evaluate_and_write(config, tool, tmp_path, capsys):
    small = ['data.{}.pipeline.1.img_scale=(160, 128)', 'data.train.dataset.pipeline.2.img_scale=[(160, 128)]']
    tool('train').main([str(config), '--work-dir', str(tmp_path), '--seed', '0', '--device', 'cpu', '--cfg-options',
                        small[0].format('val'), small[1], 'log_config.interval=1'])
    lines = [json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()]
    found = next(line for line in lines if line.get('mode') == 'val')
    assert {f'{kind}_AP{item}' for kind in ('bbox', 'segm') for item in ('', '50', 's', 'r', 'c', 'f')} <= set(found)
    assert list(tmp_path.glob('best_bbox_AP_epoch_1.pth'))
    # No class is rare enough to repeat one of the four images: three wide ones in two batches, and a tall one.
    assert len([line for line in lines if line.get('mode') == 'train']) == 3

    capsys.readouterr()
    arguments = [str(config), str(tmp_path / 'epoch_1.pth'), '--device', 'cpu', '--cfg-options',
                 small[0].format('test')]
    tool('test').main([*arguments, '--eval', 'bbox', 'segm', '--out', str(tmp_path / 'r.pkl')])
    printed = capsys.readouterr().out
    assert f"bbox_AP: {found['bbox_AP']:.4f}" in printed and 'classes=    rare' in printed
    tool('test').main([*arguments, '--format-only', '--eval-options', f'jsonfile_prefix={tmp_path}/r'])
    rows = json.loads((tmp_path / 'r.segm.json').read_text())
    assert rows and {row['image_id'] for row in rows} <= {10, 11, 12, 13}
    assert {row['category_id'] for row in rows} <= {5, 7, 9}


def test_a_plain_coco_file_is_told_before_inference(config, tool, tiny_detector, tmp_path):
    arguments = ['--device', 'cpu', '--eval', 'bbox', '--cfg-options', f'data.test.ann_file={tiny_detector.ann_file}',
                 f'data.test.img_prefix={tiny_detector.folder / "images"}']
    with pytest.raises(DataError, match="image 10 has no list 'neg_category_ids'.*CocoDataset evaluates"):
        tool('test').main([str(config), str(tmp_path / 'no.pth'), *arguments])
